"""What every layer of the original network reads and writes on the calibration data.

One sweep over the data, batch by batch. Only sampled rows are kept, a few times as many as a
layer has inputs, so memory does not grow with the number of examples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fcompress.forward.graph import Layer, run
from fcompress.forward.predictor import Predictor, as_predictor
from fcompress.forward.recording import Recording, recordings_for
from fcompress.structure.groups import Group, Slot

ROWS_AT_LEAST = 16384
ROWS_PER_INPUT = 8
ROWS_OF_FILTERS = 1024  # of depthwise layers, which have few numbers to find in each channel
MOST_NUMBERS = 10**8  # in the rows of one layer, as far as that leaves ROWS_AT_LEAST


@dataclass(frozen=True)
class Target:
    """Sampled rows of one layer of the original network.

    Attributes:
        layer: The layer, as recorded for the first batch size.
        places: Which rows were sampled from each batch.
        inputs: [rows, C]: input channels at the centre of the patch, or input features.
        outputs: [rows, O]: what the layer writes there.
        joined: [rows, O]: what is added to that (after a norm), or None if nothing is.
    """

    layer: Layer
    places: Places
    inputs: Tensor
    outputs: Tensor
    joined: Tensor | None


def collect_targets(
    original: nn.Module | Predictor,
    batches: Sequence[Tensor],
    *,
    seed: int = 0,
    recordings: dict[int, Recording] | None = None,
) -> dict[str, Target]:
    """Sample rows of every layer in one sweep.

    Args:
        original: The original network, in eval mode.
        batches: Calibration inputs [N, ...], on its device.
        seed: Chooses the rows.
        recordings: Recordings of the network that exist already, by batch size; more are added.

    Returns:
        A target for each layer, by the name of its weight.
    """
    recordings = recordings_for(original, batches, recordings)
    tensors = as_predictor(original).tensors()
    generator = torch.Generator().manual_seed(seed)
    examples = sum(len(b) for b in batches)
    found: dict[str, list[tuple[Tensor, Tensor, Tensor, Tensor | None]]] = {}
    layers = recordings[len(batches[0])].layers
    with torch.no_grad():
        for batch in batches:
            recording = recordings[len(batch)]
            values = {recording.inputs[0]: batch.clone()}
            at = 0
            for layer in recording.layers:
                run(recording.steps[at : layer.step], values, tensors)
                x = values[layer.x]
                weight = tensors[layer.weight]
                run(recording.steps[layer.step : layer.step + 1], values, tensors)
                at = layer.step + 1
                out = values[layer.out]
                width = weight[0].numel() if layer.convolution else x.shape[1]
                wanted = max(ROWS_AT_LEAST, min(ROWS_PER_INPUT * width, MOST_NUMBERS // width))
                if layer.convolution and layer.convolution[3] == x.shape[1] > 1:
                    wanted = max(ROWS_OF_FILTERS, ROWS_PER_INPUT * width)
                places = sample_places([out], round(wanted * len(batch) / examples), generator)
                joined = None
                if layer.joins is not None and values[layer.joins].shape == out.shape:
                    joined = output_rows([values[layer.joins]], places)
                rows = centre(input_rows(layer, weight, [x], places))
                found.setdefault(layer.weight, []).append(
                    (places.batches[0], rows.clone(), output_rows([out], places), joined)
                )
    targets = {}
    for layer in layers:
        parts = found[layer.weight]
        skips = [skip for _, _, _, skip in parts if skip is not None]
        targets[layer.weight] = Target(
            layer,
            Places(tuple(at for at, _, _, _ in parts)),
            torch.cat([inputs for _, inputs, _, _ in parts]),
            torch.cat([outputs for _, _, outputs, _ in parts]),
            torch.cat(skips) if len(skips) == len(parts) else None,
        )
    return targets


def centre(rows: Tensor) -> Tensor:
    """The middle tap of patches [..., C, taps]: [..., C]."""
    return rows[..., rows.shape[-1] // 2]


def unit_columns(layer: Layer, slot: Slot) -> Tensor | None:
    """Which input columns of a layer hold each unit of a consumer slot.

    Returns:
        int64 [units, columns of each], or None where the units have different numbers of them.
    """
    units = slot.units
    if layer.convolution is not None:
        units = units.repeat(layer.convolution[3])
    inside = (units >= 0).nonzero().flatten()
    order = units[inside].argsort(stable=True)
    count = int(units.max()) + 1
    each = units[inside].bincount(minlength=count)
    if not count or bool((each != each[0]).any()):
        return None
    return inside[order].view(count, -1)


def unit_moments(target: Target, columns: Tensor) -> tuple[Tensor, Tensor]:
    """Covariance and mean of a group's units as one consumer reads them.

    Positions that a unit occupies in a row (a flattened feature map) are further examples.

    Args:
        target: The consumer.
        columns: int64 [units, columns of each] (`unit_columns`).

    Returns:
        float64 [units, units] and float64 [units], on the CPU.
    """
    x = target.inputs[:, columns].transpose(1, 2).reshape(-1, len(columns))
    mean = x.mean(0, dtype=torch.float64)
    x = x - mean.to(x.dtype)
    return (x.T @ x).double().cpu() / len(x), mean.cpu()


def consumers_of(group: Group, targets: Mapping[str, Target]) -> list[tuple[Slot, Target]] | None:
    """The group's consumers with their targets, or None if one of them is no whole layer."""
    found = []
    for slot in group.consumers:
        if slot.tensor not in targets:
            return None
        found.append((slot, targets[slot.tensor]))
    return found


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
