"""Modules that hold on to one width, made to go by their tensors instead."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import nn

from fcompress.nn.attention import MultiheadAttention, WindowAttention
from fcompress.surgery.folding import fold_weights
from fcompress.surgery.rewrite_reshapes import inferring, subclass

_SWIN = "torchvision.models.swin_transformer"
_WINDOWS = {(_SWIN, "ShiftedWindowAttention"), (_SWIN, "ShiftedWindowAttentionV2")}
# An attribute that says, in files too, that this was done to a network.
ADAPTED = "_fcompress_adapted"
_windowed_kinds: dict[type[nn.Module], type[nn.Module]] = {}


def adapt(model: nn.Module, given: Collection[str] = ()) -> list[str]:
    """Change modules, in place, so that the network computes the same but runs at other widths.

    - Attention goes by its weights instead of the width of its input, so that heads can go:
      `nn.MultiheadAttention`, torchvision's windows, and reshapes in anybody's code (`reshapes`).
    - Weights that are computed at every call become plain ones (`folding.fold_weights`).

    Modules stay instances of the classes they were, and parameters and buffers keep their names,
    but for those whose weights were computed.

    Args:
        model: The network, changed in place; its tensors may be on any device, `meta` too.
        given: Names of parameters that the network is about to get: what is computed from them is
            left as it is.

    Returns:
        Names of the weights that were computed and are plain now.

    Example:
        >>> import torch
        >>> layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
        >>> x = torch.randn(3, 5, 8)
        >>> before = layer(x)
        >>> adapt(layer)
        []
        >>> isinstance(layer.self_attn, MultiheadAttention)
        True
        >>> torch.allclose(layer(x), before, atol=1e-5)
        True
    """
    model.__dict__[ADAPTED] = 1
    folded = fold_weights(model, given)
    for module in model.modules():
        kind = type(module)
        if isinstance(module, nn.MultiheadAttention):
            _free_heads(module)
        elif (kind.__module__, kind.__name__) in _WINDOWS:
            _free_windows(module)
        elif not kind.__module__.startswith(("torch.", "fcompress.")) and not isinstance(
            module, nn.Conv2d
        ):
            module.__class__ = inferring(kind) or kind
    return folded


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
