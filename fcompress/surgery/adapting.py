"""Modules that hold on to one width, made to go by their tensors instead."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fcompress.nn.attention import MultiheadAttention, WindowAttention
from fcompress.surgery.rewrite_reshapes import inferring, subclass

_SWIN = "torchvision.models.swin_transformer"
_WINDOWS = {(_SWIN, "ShiftedWindowAttention"), (_SWIN, "ShiftedWindowAttentionV2")}
# Attributes that say, in files too, what was done: to a network, to a convolution.
ADAPTED, FOLDED = "_fcompress_adapted", "_fcompress_folded"
_windowed_kinds: dict[type[nn.Module], type[nn.Module]] = {}


def adapt(model: nn.Module, given: Collection[str] = ()) -> None:
    """Change modules, in place, so that the network computes the same but runs at other widths.

    - Attention goes by its weights instead of the width of its input, so that heads can go:
      `nn.MultiheadAttention`, torchvision's windows, and reshapes in anybody's code (`reshapes`).
    - Convolutions that compute their weight out of parameters at every call (weight
      standardisation) get the result as a plain weight; the other parameters of theirs go.

    Modules stay instances of the classes they were, but for those convolutions. Parameters and
    buffers keep their names.

    Args:
        model: The network, changed in place; its tensors may be on any device, `meta` too.
        given: Names of parameters that the network is about to get: a convolution all of whose
            parameters are among them is left as it is.

    Example:
        >>> layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
        >>> x = torch.randn(3, 5, 8)
        >>> before = layer(x)
        >>> adapt(layer)
        >>> isinstance(layer.self_attn, MultiheadAttention)
        True
        >>> torch.allclose(layer(x), before, atol=1e-5)
        True
    """
    model.__dict__[ADAPTED] = 1
    for path, module in model.named_modules():
        kind = type(module)
        if isinstance(module, nn.MultiheadAttention):
            _free_heads(module)
        elif (kind.__module__, kind.__name__) in _WINDOWS:
            _free_windows(module)
        elif isinstance(module, nn.Conv2d):
            own = {f"{path}.{name}" for name, p in module._parameters.items() if p is not None}
            if kind is not nn.Conv2d and not own <= set(given):
                _fold(module)
        elif not kind.__module__.startswith(("torch.", "fcompress.")):
            module.__class__ = inferring(kind) or kind


def _free_heads(module: nn.MultiheadAttention) -> None:
    if type(module) is nn.MultiheadAttention and module.bias_k is None and not module.add_zero_attn:
        module.__class__ = MultiheadAttention
        # Torch's encoder layers look at this before they hand the weights to a fused kernel that
        # knows full heads only.
        module._qkv_same_embed_dim = False


def _free_windows(module: Any) -> None:
    module.head_dim = module.qkv.in_features // module.num_heads
    module.__class__ = _windowed(type(module))


def _windowed(kind: type[nn.Module]) -> type[nn.Module]:
    if kind not in _windowed_kinds:
        _windowed_kinds[kind] = subclass(kind, _windowed, {}, WindowAttention)
    return _windowed_kinds[kind]


def _fold(module: nn.Conv2d) -> None:
    """Make a convolution that computes its weight from parameters a plain one."""
    seen: list[tuple[Any, ...]] = []

    class Watching(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
        ) -> Any:
            if getattr(func, "__name__", "") == "conv2d" and not kwargs:
                seen.append(args)
            return func(*args, **(kwargs or {}))

    extent = [
        (kernel - 1) * dilation + 1
        for kernel, dilation in zip(module.kernel_size, module.dilation, strict=True)
    ]
    x = module.weight.new_zeros(1, module.in_channels, *extent)
    training = module.training
    try:
        with torch.no_grad(), Watching():
            module.eval()(x)
    except Exception:  # no convolution of an ordinary kind: it is traced as it stands
        return
    finally:
        module.train(training)
    if len(seen) != 1 or len(seen[0]) != 7:
        return
    given, weight, *settings = seen[0]
    own = (module.bias, module.stride, module.padding, module.dilation, module.groups)
    plain = all(
        a is b or (not isinstance(a, Tensor) and a == b) for a, b in zip(settings, own, strict=True)
    )
    if given is not x or not plain or weight is module.weight or module.padding_mode != "zeros":
        return
    if weight.shape != module.weight.shape or list(module.children()):
        return
    for name in set(module._parameters) - {"weight", "bias"}:
        del module._parameters[name]
    module._buffers.clear()
    module.weight = nn.Parameter(weight.detach().clone(), module.weight.requires_grad)
    module.__class__ = nn.Conv2d
    module.__dict__[FOLDED] = 1
