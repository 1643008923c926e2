"""Weights that are computed at every call, made into plain ones.

In eval mode a weight that is a function of parameters alone is a constant. The result takes its
place, so that it can be excised like any other.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize, prune, remove_spectral_norm, remove_weight_norm
from torch.overrides import TorchFunctionMode

# Says, in files too, that a convolution was folded.
FOLDED = "_fcompress_folded"
# Of torch.nn.functional.conv2d.
_ARGUMENTS = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_DEFAULTS: dict[str, Any] = {"bias": None, "stride": 1, "padding": 0, "dilation": 1, "groups": 1}
# Old-style normalisations and masks hang on a hook with a class of this name.
_HOOKS: dict[str, Callable[[nn.Module, str], nn.Module]] = {
    "WeightNorm": remove_weight_norm,
    "SpectralNorm": remove_spectral_norm,
}


def fold_weights(model: nn.Module, given: Collection[str] = ()) -> list[str]:
    """Give modules whose weights are computed the results as plain parameters, in place.

    - parametrizations (`torch.nn.utils.parametrizations.weight_norm`, `spectral_norm`,
      `orthogonal`, one of the user's),
    - the older `torch.nn.utils.weight_norm` and `spectral_norm`,
    - masks of `torch.nn.utils.prune`,
    - convolutions that compute their weight out of parameters (weight standardisation).

    A weight that is not the same twice in a row is left as it is.

    Args:
        model: The network, changed in place; its tensors may be on any device, `meta` too.
        given: Names of parameters that the network is about to get: what is computed from some of
            them is left as it is.

    Returns:
        Names of the tensors that are plain now.

    Example:
        >>> from torch.nn.utils.parametrizations import weight_norm
        >>> layer = weight_norm(nn.Linear(3, 2))
        >>> before = layer(torch.ones(1, 3))
        >>> fold_weights(layer), [name for name, _ in layer.named_parameters()]
        (['weight'], ['bias', 'weight'])
        >>> torch.allclose(layer(torch.ones(1, 3)), before)
        True
    """
    found = []
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        for path, module in list(model.named_modules()):
            prefix = f"{path}." if path else ""
            names = [*_parametrized(module, prefix, given), *_hooked(module, prefix, given)]
            if isinstance(module, nn.Conv2d) and type(module) is not nn.Conv2d and not names:
                own = {f"{prefix}{n}" for n, p in module._parameters.items() if p is not None}
                if not own <= set(given) and _fold_convolution(module):
                    names = ["weight"]
            found += [f"{prefix}{name}" for name in names]
    finally:
        for module, training in modes:
            module.training = training
    return found


def folded_weights(original: nn.Module, copied: nn.Module) -> tuple[str, ...]:
    """Names of the tensors of a copy that the original network computes at every call.

    Example:
        >>> from torch.nn.utils.parametrizations import spectral_norm
        >>> original = nn.Sequential(spectral_norm(nn.Linear(3, 2)))
        >>> folded_weights(original, nn.Sequential(nn.Linear(3, 2)))
        ('0.weight',)
    """
    convolutions = {path for path, module in copied.named_modules() if FOLDED in vars(module)}
    known = dict(original.named_parameters())
    return tuple(
        name
        for name, _ in copied.named_parameters()
        if name not in known
        or (name.rpartition(".")[0] in convolutions and name.endswith("weight"))
    )


def _parametrized(module: nn.Module, prefix: str, given: Collection[str]) -> list[str]:
    """Names of a module's own tensors whose parametrization was replaced by its result."""
    if not parametrize.is_parametrized(module):
        return []
    # A copy shares the class that torch made for the original, and removing changes the class.
    kind = type(module)
    members = {k: v for k, v in vars(kind).items() if k not in ("__dict__", "__weakref__")}
    module.__class__ = type(kind.__name__, kind.__bases__, members)
    names = []
    for name in list(module.parametrizations):  # type: ignore[arg-type]
        inside = f"{prefix}parametrizations.{name}."
        if any(one.startswith(inside) for one in given):
            continue
        parameters = bool(list(module.parametrizations[name].parameters()))  # type: ignore[index,union-attr]
        with torch.no_grad():
            first, second = getattr(module, name), getattr(module, name)
        if not first.is_meta and not torch.equal(first, second):
            continue
        with torch.no_grad():
            parametrize.remove_parametrizations(module, name, leave_parametrized=True)
        plain = module._buffers.pop(name, None)
        if plain is not None and parameters:  # torch makes a buffer where it needs no gradient
            module.register_parameter(name, nn.Parameter(plain.detach().clone()))
        names.append(name)
    return names


def _hooked(module: nn.Module, prefix: str, given: Collection[str]) -> list[str]:
    """The same of normalisations and masks that are computed by a hook before each call."""
    names = []
    for hook in list(module._forward_pre_hooks.values()):
        kind = type(hook)
        masks = isinstance(hook, prune.BasePruningMethod)
        if not masks and not (
            kind.__name__ in _HOOKS and kind.__module__.startswith("torch.nn.utils.")
        ):
            continue
        name = str(getattr(hook, "_tensor_name" if masks else "name"))
        sources = {f"{prefix}{name}_{suffix}" for suffix in ("orig", "g", "v")}
        if sources & set(given):
            continue
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            remove = prune.remove if masks else _HOOKS[kind.__name__]
            remove(module, name)
        names.append(name)
    return names


def _both(setting: Any) -> Any:
    return (setting, setting) if isinstance(setting, int) else tuple(setting)


def _fold_convolution(module: nn.Conv2d) -> bool:
    """Make a convolution that computes its weight from parameters a plain one, if it is one."""
    seen: list[dict[str, Any]] = []

    class Watching(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
        ) -> Any:
            if getattr(func, "__name__", "") == "conv2d":
                seen.append(_DEFAULTS | dict(zip(_ARGUMENTS, args, strict=False)) | (kwargs or {}))
            return func(*args, **(kwargs or {}))

    extent = [
        (kernel - 1) * dilation + 1
        for kernel, dilation in zip(module.kernel_size, module.dilation, strict=True)
    ]
    x = module.weight.new_zeros(1, module.in_channels, *extent)
    try:
        with torch.no_grad(), Watching():
            module(x)
    except Exception:  # no convolution of an ordinary kind: it is traced as it stands
        return False
    if len(seen) != 1 or list(module.children()):
        return False
    used, weight = seen[0], seen[0]["weight"]
    plain = used["input"] is x and used["bias"] is module.bias and used["groups"] == module.groups
    for name in ("stride", "padding", "dilation"):
        plain = plain and _both(used[name]) == _both(getattr(module, name))
    if not plain or weight is module.weight or module.padding_mode != "zeros":
        return False
    if weight.shape != module.weight.shape:
        return False
    for name in set(module._parameters) - {"weight", "bias"}:
        del module._parameters[name]
    module._buffers.clear()
    module.weight = nn.Parameter(weight.detach().clone(), module.weight.requires_grad)
    module.__class__ = nn.Conv2d
    module.__dict__[FOLDED] = 1
    return True
