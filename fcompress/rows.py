"""Rows of a layer: what it reads at sampled places, as a matrix.

A convolution is a linear map of patches (im2col). A row is one output position of one example:
the patch that the layer reads there, zero padding included, and what it writes. Positions are
drawn once for each layer, so the same rows can be read from the wide and the thin network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from fcompress.record import Layer


@dataclass(frozen=True)
class Places:
    """Sampled rows of one layer: flat row numbers for each batch, sorted int64."""

    batches: tuple[Tensor, ...]

    @property
    def count(self) -> int:
        """Number of rows over all batches."""
        return sum(len(b) for b in self.batches)


def sample_places(outputs: Sequence[Tensor], wanted: int, generator: torch.Generator) -> Places:
    """Draw about `wanted` rows, evenly over the batches.

    Args:
        outputs: The layer's output for each batch: [N, O, *spatial] or [rows, O].
        wanted: Number of rows; all are taken where there are fewer.
        generator: Source of the draw.
    """
    sizes = [o.numel() // o.shape[1] for o in outputs]
    share = wanted / max(1, sum(sizes))
    batches = []
    for size in sizes:
        count = size if share >= 1 else max(1, round(size * share))
        drawn = torch.randperm(size, generator=generator)[:count]
        batches.append(drawn.sort().values)
    return Places(tuple(batches))


def output_rows(outputs: Sequence[Tensor], places: Places) -> Tensor:
    """What the layer writes at the places: [rows, O]."""
    return torch.cat(
        [
            _positions_first(out).index_select(0, at.to(out.device))
            for out, at in zip(outputs, places.batches, strict=True)
        ]
    )


def input_rows(layer: Layer, weight: Tensor, inputs: Sequence[Tensor], places: Places) -> Tensor:
    """What the layer reads at the places.

    Args:
        layer: The layer.
        weight: Its weight, for the kernel size.
        inputs: Its input for each batch: [N, C, *spatial] or [rows, features].
        places: Row numbers.

    Returns:
        [rows, C, taps]: taps is the number of kernel elements, 1 for a linear map.
    """
    if layer.convolution is None:
        picked = [
            x.index_select(0, at.to(x.device)).unsqueeze(2)
            for x, at in zip(inputs, places.batches, strict=True)
        ]
        return torch.cat(picked)
    stride, padding, dilation, _ = layer.convolution
    kernel = weight.shape[2:]
    return torch.cat(
        [
            _patches(x, kernel, stride, padding, dilation, at.to(x.device))
            for x, at in zip(inputs, places.batches, strict=True)
        ]
    )


def _positions_first(x: Tensor) -> Tensor:
    """[N, O, *spatial] as [N * positions, O]."""
    return x if x.dim() == 2 else x.flatten(2).transpose(1, 2).reshape(-1, x.shape[1])


def _patches(
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    at: Tensor,
) -> Tensor:
    """Patches of x [N, C, *spatial] at flat output positions `at`: [rows, C, taps]."""
    x = F.pad(x, [p for pad in reversed(list(padding)) for p in (pad, pad)])
    dims = len(kernel)
    size = [
        (x.shape[2 + d] - dilation[d] * (kernel[d] - 1) - 1) // stride[d] + 1 for d in range(dims)
    ]
    steps = x.stride()
    windows = x.as_strided(
        [x.shape[0], *size, x.shape[1], *kernel],
        [
            steps[0],
            *(steps[2 + d] * stride[d] for d in range(dims)),
            steps[1],
            *(steps[2 + d] * dilation[d] for d in range(dims)),
        ],
    )
    index = torch.unravel_index(at, (x.shape[0], *size))
    return windows[index].flatten(2)
