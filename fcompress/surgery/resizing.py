"""Give the tensors of a network other shapes, and let its modules know.

A module of torch keeps its sizes twice: in the shapes of its tensors and as plain numbers
(`out_channels`, `num_features`, `groups`). `resize` replaces the tensors and reads the numbers
off them again. Excising units and rebuilding a compressed network from a file both come down to it.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from fcompress.errors import FcompressError
from fcompress.nn.attention import MultiheadAttention, WindowAttention

_DEFORMABLE = ("torchvision.ops.deform_conv", "DeformConv2d")
_TRANSPOSED_LINEAR = ("transformers.pytorch_utils", "Conv1D")


class _Place(NamedTuple):
    """One name under which a parameter or buffer is registered."""

    path: str
    owner: nn.Module
    key: str
    is_parameter: bool


def resize(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Replace parameters and buffers in place and refresh the sizes that modules keep.

    Tensors are taken as they are (shape, dtype, device, memory). A replaced parameter keeps its
    `requires_grad`; one that was registered as None (a layer without bias) comes into being; a
    parameter that several modules share stays shared. Refreshed are convolutions, linear and
    bilinear layers, batch, instance, group, layer and RMS normalisation, embeddings, PReLU and
    attention that goes by its weights (`nn.attention`); any other module only gets its
    tensors. What modules on the way have cached is forgotten. A depthwise convolution (as many
    groups as input channels) keeps its number of outputs for each input channel, group
    normalisation the size of its groups where that is possible; other grouped layers, and norms
    that lose a part of each group, keep their number of groups.
    Nothing is changed if a name is wrong.

    Args:
        module: The network, changed in place.
        tensors: New value of each parameter or buffer, by its name in `module`.

    Raises:
        FcompressError: A name is not a parameter or buffer of `module`, or the new shapes do not
            fit each other within one module.

    Example:
        >>> import torch
        >>> layer = nn.Conv2d(4, 8, 3)
        >>> resize(layer, {"weight": torch.zeros(5, 2, 3, 3), "bias": torch.zeros(5)})
        >>> layer
        Conv2d(2, 5, kernel_size=(3, 3), stride=(1, 1))
    """
    places = {name: _place(module, name) for name in tensors}
    sharing = _sharing(module)
    touched: dict[str, nn.Module] = {}
    for place in places.values():
        for each in _together(place, sharing):
            # A parametrised weight lies below its layer, so every module on the way counts.
            parts = each.path.split(".")
            for path in ("", *(".".join(parts[: depth + 1]) for depth in range(len(parts)))):
                touched[path] = module.get_submodule(path)
    outputs_each = {path: _outputs_each(layer) for path, layer in touched.items()}
    for name, tensor in tensors.items():
        _put(places[name], tensor, sharing)
    for path, layer in touched.items():
        forget_caches(layer)
        try:
            _refresh(layer, outputs_each[path])
        except ValueError as error:
            kind = type(layer).__name__
            raise FcompressError(f"{kind} {path or '(the network itself)'}: {error}") from None


def forget_caches(module: nn.Module) -> None:
    """Empty dictionaries of tensors that a module calls a cache: they hold what it once computed.

    Modules (LeViT's attention, for one) keep what they derive from parameters in evaluation mode.
    """
    for attribute, value in vars(module).items():
        kept = value.values() if isinstance(value, dict) and "cache" in attribute else ()
        if kept and all(isinstance(item, Tensor) for item in kept):
            value.clear()


def _outputs_each(layer: Any) -> int | None:
    """Outputs for each input channel of a depthwise layer, channels in each group of a norm."""
    deformable = (type(layer).__module__, type(layer).__name__) == _DEFORMABLE
    if (isinstance(layer, _ConvNd) or deformable) and layer.groups == layer.in_channels > 1:
        return int(layer.out_channels // layer.groups)
    if isinstance(layer, nn.GroupNorm):
        return layer.num_channels // layer.num_groups
    return None


def _place(module: nn.Module, name: str) -> _Place:
    path, _, key = name.rpartition(".")
    try:
        owner = module.get_submodule(path)
    except AttributeError:
        owner = None
    if owner is not None and key in owner._parameters:
        return _Place(path, owner, key, True)
    if owner is not None and key in owner._buffers:
        return _Place(path, owner, key, False)
    raise FcompressError(
        f"{type(module).__name__} has no parameter or buffer {name!r}; "
        "expected a name out of its state_dict, or the name of a bias that is None"
    )


def _sharing(module: nn.Module) -> dict[int, list[_Place]]:
    """Every place of each parameter, by the identity of the parameter."""
    places: dict[int, list[_Place]] = {}
    for path, owner in module.named_modules():
        for key, parameter in owner._parameters.items():
            if parameter is not None:
                places.setdefault(id(parameter), []).append(_Place(path, owner, key, True))
    return places


def _together(place: _Place, sharing: dict[int, list[_Place]]) -> list[_Place]:
    """All places of the parameter at `place`, or `place` alone."""
    old = place.owner._parameters.get(place.key)
    return [place] if old is None else sharing.get(id(old), [place])


def _put(place: _Place, tensor: Tensor, sharing: dict[int, list[_Place]]) -> None:
    if not place.is_parameter:
        place.owner._buffers[place.key] = tensor.detach()
        return
    old = place.owner._parameters[place.key]
    trainable = tensor.is_floating_point() if old is None else old.requires_grad
    new = nn.Parameter(tensor.detach(), requires_grad=trainable)
    together = _together(place, sharing)
    for each in together:
        each.owner._parameters[each.key] = new
    sharing[id(new)] = together


def _refresh(module: nn.Module, outputs_each: int | None) -> None:
    """Read the sizes of one module off its tensors.

    Args:
        module: Any module; one without sizes of its own stays as it is.
        outputs_each: For a layer that treats every channel on its own (a depthwise convolution,
            group normalisation of groups of one), its outputs for each input channel.

    Raises:
        ValueError: Its tensors do not fit each other.
    """
    if isinstance(module, _ConvNd):
        _refresh_convolution(module, outputs_each)
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
        _check("bias", module.bias, (module.out_features,))
    elif isinstance(module, nn.Bilinear):
        module.out_features, module.in1_features, module.in2_features = module.weight.shape
        _check("bias", module.bias, (module.out_features,))
    elif isinstance(module, _NormBase):
        _refresh_features(module)
    elif isinstance(module, nn.GroupNorm):
        _refresh_group_norm(module, outputs_each)
    elif isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
        if module.weight is not None:
            module.normalized_shape = tuple(module.weight.shape)
            _check("bias", getattr(module, "bias", None), module.normalized_shape)
    elif isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        module.num_embeddings, module.embedding_dim = module.weight.shape
    elif isinstance(module, nn.PReLU):
        module.num_parameters = len(module.weight)
    elif (type(module).__module__, type(module).__name__) == _DEFORMABLE:
        _refresh_deformable(module, outputs_each)
    elif (type(module).__module__, type(module).__name__) == _TRANSPOSED_LINEAR:
        _refresh_transposed(module)
    elif isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
        _refresh_recurrent(module)
    elif isinstance(module, (MultiheadAttention, WindowAttention)):
        module.refresh()


def _refresh_convolution(module: _ConvNd, outputs_each: int | None) -> None:
    """Weight is [out, in / groups, *kernel], or transposed [in, out / groups, *kernel]."""
    first, second = module.weight.shape[:2]
    if isinstance(module, _ConvTransposeNd):
        if outputs_each is not None:
            module.groups = first
        module.in_channels, module.out_channels = first, second * module.groups
    else:
        if outputs_each is not None:
            module.groups = first // outputs_each
        module.in_channels, module.out_channels = second * module.groups, first
    if first == 0 or first % (outputs_each or module.groups):
        raise ValueError(
            f"{first} channels do not divide among {module.groups} groups; "
            "take as many from each group"
        )
    _check("bias", module.bias, (module.out_channels,))


def _refresh_features(module: _NormBase) -> None:
    """Batch and instance normalisation: one entry a channel in each tensor there is."""
    for key in ("weight", "running_mean"):
        tensor = getattr(module, key)
        if tensor is not None:
            module.num_features = len(tensor)
            break
    for key in ("weight", "bias", "running_mean", "running_var"):
        _check(key, getattr(module, key), (module.num_features,))


def _refresh_group_norm(module: nn.GroupNorm, outputs_each: int | None) -> None:
    if module.weight is None:
        return
    module.num_channels = len(module.weight)
    if outputs_each is not None and module.num_channels % outputs_each == 0:
        module.num_groups = module.num_channels // outputs_each  # whole groups went
    if module.num_channels % module.num_groups:
        raise ValueError(
            f"{module.num_channels} channels do not divide among {module.num_groups} groups; "
            "take as many from each group"
        )
    _check("bias", module.bias, (module.num_channels,))


def _refresh_deformable(module: Any, outputs_each: int | None) -> None:
    module.out_channels, each = module.weight.shape[:2]
    if outputs_each is not None:
        module.groups = module.out_channels // outputs_each
    module.in_channels = each * module.groups
    _check("bias", module.bias, (module.out_channels,))


def _refresh_transposed(module: Any) -> None:
    module.nx = len(module.weight)  # its nf is one of its group's numbers (`excision`)


def _refresh_recurrent(module: Any) -> None:
    """Weights are [gates * hidden, in] and [gates * hidden, hidden or projected]."""
    if isinstance(module, nn.RNNCellBase):
        module.input_size, module.hidden_size = module.weight_ih.shape[1], module.weight_hh.shape[1]
        return
    module.input_size = module.weight_ih_l0.shape[1]
    module.hidden_size = module.weight_hh_l0.shape[1]
    if module.proj_size:
        module.proj_size, module.hidden_size = module.weight_hr_l0.shape
    widths = {
        tuple(p.shape[1:]) for name, p in module.named_parameters() if name.startswith("weight_h")
    }
    if len(widths) > (2 if module.proj_size else 1):
        raise ValueError("its layers and directions have different widths; give all the same")
    module._init_flat_weights()


def _check(key: str, tensor: Tensor | None, expected: tuple[int, ...]) -> None:
    if tensor is not None and tuple(tensor.shape) != expected:
        raise ValueError(
            f"its {key} has shape {list(tensor.shape)} where its weight needs {list(expected)}; "
            "give both in one call"
        )
