"""Attention whose heads can go: the inner width is free of the width of the stream.

The attention modules of torch and torchvision take the width of queries, keys and values from
their input, so that they only run with all heads in place. These compute the same, but go by
their weights: whole heads may be missing. They keep the names of all parameters, so weights fit
either way.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class MultiheadAttention(nn.MultiheadAttention):
    """`torch.nn.MultiheadAttention` with any number of heads of `head_dim` each.

    Made out of a module of torch (`surgery.adapt`), never from scratch. `in_proj_weight` is
    [3 * heads * head_dim, embed_dim], `out_proj.weight` [embed_dim, heads * head_dim]; with
    separate projections `q_proj_weight` is [heads * head_dim, embed_dim] and so on. Modules with
    `bias_k`, `bias_v` or `add_zero_attn` are not supported.
    """

    def refresh(self) -> None:
        """Read the number of heads off the tensors.

        Raises:
            ValueError: Rows are no whole heads, or the projections do not fit each other.
        """
        weight = self.in_proj_weight
        inner = len(self.q_proj_weight) if weight is None else len(weight) // 3
        self.num_heads = _whole_heads(inner, self.head_dim, self.out_proj.weight.shape[1])

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As torch's: `query` [L, N, E], [N, L, E] with `batch_first`, or [L, E].

        `is_causal` is a hint only; the mask has to be given.
        """
        if is_causal and attn_mask is None:
            raise ValueError("is_causal is only a hint: give attn_mask as well")
        batched = query.dim() == 3
        same = query is key and key is value
        dim = None if self.batch_first and batched else 1 if batched else 0
        query, key, value = (_batch_first(x, dim) for x in (query, key, value))
        heads = self._project(query, key, value, same)
        q, k, v = (x.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2) for x in heads)
        mask = self._mask(key_padding_mask, attn_mask, q)
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = (q * self.head_dim**-0.5) @ k.transpose(-2, -1)
            weights = F.softmax(scores if mask is None else scores + mask, -1)
            weights = F.dropout(weights, dropout, bool(dropout))
            out = weights @ v
            if average_attn_weights:
                weights = weights.mean(1)
        else:
            out = F.scaled_dot_product_attention(q, k, v, mask, dropout)
        out = self.out_proj(out.transpose(1, 2).flatten(2))
        if not batched:
            return out.squeeze(0), None if weights is None else weights.squeeze(0)
        return out if self.batch_first else out.transpose(0, 1), weights

    def _project(
        self, query: Tensor, key: Tensor, value: Tensor, same: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values [N, L, heads * head_dim]."""
        weight, bias = self.in_proj_weight, self.in_proj_bias
        if weight is not None and same:
            q, k, v = F.linear(query, weight, bias).chunk(3, -1)
            return q, k, v
        weights = (
            (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
            if weight is None
            else weight.chunk(3)
        )
        biases = (None, None, None) if bias is None else bias.chunk(3)
        q, k, v = (
            F.linear(x, w, b) for x, w, b in zip((query, key, value), weights, biases, strict=True)
        )
        return q, k, v

    def _mask(self, padding: Tensor | None, mask: Tensor | None, q: Tensor) -> Tensor | None:
        """Both masks as one that is added to the scores [N, heads, L, S]."""
        added = None
        if mask is not None:
            mask = _additive(mask, q.dtype)
            added = mask.view(-1, self.num_heads, *mask.shape[1:]) if mask.dim() == 3 else mask
        if padding is not None:
            padding = _additive(padding, q.dtype)
            padding = padding.view(-1, 1, 1, padding.shape[-1])
            added = padding if added is None else added + padding
        return added


def _batch_first(x: Tensor, dim: int | None) -> Tensor:
    """[N, L, E] of a tensor whose batch stands at `dim` (1), is missing (0) or first (None)."""
    return x if dim is None else x.unsqueeze(0) if dim == 0 else x.transpose(0, 1)


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    if mask.dtype == torch.bool:
        return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask, float("-inf"))
    return mask.to(dtype)


def _whole_heads(inner: int, head_dim: int, read: int) -> int:
    if inner % head_dim or inner != read:
        raise ValueError(
            f"{inner} rows and {read} columns are not the same whole heads of {head_dim}"
        )
    return inner // head_dim


class WindowAttention(nn.Module):
    """Forward of torchvision's shifted window attention (Swin, versions 1 and 2), by its weights.

    Mixed into the module's own class (`surgery.adapt`), which brings the parameters `qkv`,
    `proj`, the position bias and, in version 2, `logit_scale`.
    """

    head_dim: int
    num_heads: int
    window_size: list[int]
    shift_size: list[int]
    attention_dropout: float
    dropout: float
    qkv: nn.Linear
    proj: nn.Linear
    get_relative_position_bias: Callable[[], Tensor]

    def refresh(self) -> None:
        """Read the number of heads off the tensors.

        Raises:
            ValueError: Rows are no whole heads, or the projections do not fit each other.
        """
        inner = len(self.qkv.weight) // 3
        self.num_heads = _whole_heads(inner, self.head_dim, self.proj.weight.shape[1])

    def forward(self, x: Tensor) -> Tensor:
        """Attention within windows of `x` [N, H, W, C]; returns the same shape."""
        number, height, width, channels = x.shape
        rows, columns = self.window_size
        x = F.pad(x, (0, 0, 0, -width % columns, 0, -height % rows))
        down, across = x.shape[1] // rows, x.shape[2] // columns
        # A window as large as the map needs no shift.
        shift = [0 if n == 1 else s for n, s in zip((down, across), self.shift_size, strict=True)]
        if any(shift):
            x = torch.roll(x, (-shift[0], -shift[1]), (1, 2))
        x = x.view(number, down, rows, across, columns, channels).transpose(2, 3)
        x = x.reshape(number * down * across, rows * columns, channels)
        x = self._attend(x, self._apart(x, down, across, shift) if any(shift) else None)
        x = x.view(number, down, across, rows, columns, -1).transpose(2, 3)
        x = x.reshape(number, down * rows, across * columns, -1)
        if any(shift):
            x = torch.roll(x, (shift[0], shift[1]), (1, 2))
        return x[:, :height, :width].contiguous()

    def _attend(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Attention over `x` [windows, positions, C]; `mask` [windows of one image, 1, P, P]."""
        logit_scale = getattr(self, "logit_scale", None)
        qkv = F.linear(x, self.qkv.weight, self._bias(logit_scale is not None))
        qkv = qkv.view(*x.shape[:2], 3, self.num_heads, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        if logit_scale is None:
            scores = (q * self.head_dim**-0.5) @ k.transpose(-2, -1)
        else:  # cosine attention; torch clamps the scale at 100 as the authors do
            scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)
            scores = scores * logit_scale.clamp(max=math.log(100.0)).exp()
        scores = scores + self.get_relative_position_bias()
        if mask is not None:
            per_image = scores.view(-1, len(mask), *scores.shape[1:])
            scores = (per_image + mask).view(scores.shape)
        weights = F.dropout(F.softmax(scores, -1), self.attention_dropout, self.training)
        out = self.proj((weights @ v).transpose(1, 2).flatten(2))
        return F.dropout(out, self.dropout, self.training)

    def _bias(self, no_key: bool) -> Tensor | None:
        """The bias of queries, keys and values; version 2 has none for the keys."""
        if not no_key or self.qkv.bias is None:
            return self.qkv.bias
        bias = self.qkv.bias.clone()
        third = len(bias) // 3
        bias[third : 2 * third].zero_()
        return bias

    def _apart(self, x: Tensor, down: int, across: int, shift: list[int]) -> Tensor:
        """Keeps positions apart that only the shift has brought into one window."""
        rows, columns = self.window_size
        lines = [
            (torch.arange(n * size, device=x.device) >= (n - 1) * size).long()
            + (torch.arange(n * size, device=x.device) >= n * size - s).long()
            for n, size, s in zip((down, across), (rows, columns), shift, strict=True)
        ]
        region = 3 * lines[0].unsqueeze(1) + lines[1]
        region = region.view(down, rows, across, columns).transpose(1, 2).flatten(0, 1).flatten(1)
        different = region.unsqueeze(1) != region.unsqueeze(2)
        return torch.zeros_like(different, dtype=x.dtype).masked_fill_(different, -100.0)[:, None]
