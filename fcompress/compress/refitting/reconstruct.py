"""Refit a compressed network layer by layer, from input to output, against the original one.

Each layer's inputs come from the compressed network as it now is, its targets from the original
(docs/design.md section 1). So every layer also makes up, as far as it can, for what the layers
before it lost. Batch norms that follow are moved by as much as their input moved.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from fcompress.compress.refitting.least_squares import Fit, Rectifier, fit, in_sets
from fcompress.compress.refitting.samples import (
    Target,
    centre,
    input_rows,
    output_rows,
    unit_columns,
)
from fcompress.forward.graph import Layer, Named, Norm
from fcompress.forward.predictor import Predictor, as_predictor
from fcompress.forward.recording import Recording, Replay, recordings_for
from fcompress.structure.groups import Group
from fcompress.surgery.resizing import resize

WIDEST_SOLVE = 6000  # numbers a side of the largest matrix, of inputs or of rows, that is factored
FAINT = 1e-2


def refit_network(
    original: nn.Module | Predictor,
    compressed: nn.Module,
    groups: Sequence[Group],
    keep: Mapping[tuple[str, int], Tensor],
    targets: Mapping[str, Target],
    batches: Sequence[Tensor],
) -> nn.Module:
    """Solve every layer of `compressed` whose inputs changed.

    Args:
        original: The original network.
        compressed: Its excised copy; changed in place.
        groups: The groups that were cut.
        keep: Indices that stay of each (tensor, dim) (`excision.kept_indices`).
        targets: Rows of the original network (`samples.collect_targets`) on the same batches.
        batches: Calibration inputs.

    Returns:
        `compressed`.
    """
    give_biases(compressed, targets)
    predictor = as_predictor(original).of(compressed)
    originals, tensors = as_predictor(original).tensors(), predictor.tensors()
    recordings = recordings_for(predictor, batches)
    replay = Replay(recordings, tensors, batches)
    begin = _first_change(recordings[len(batches[0])], groups, keep)
    with torch.no_grad():
        for index, layer in enumerate(replay.layer_list):
            target = targets.get(layer.weight)
            if target is None or layer.step < begin:
                continue
            rows = input_rows(layer, tensors[layer.weight], replay.inputs(index), target.places)
            joined = None
            if target.joined is not None:
                joined = output_rows(replay.joined(index), target.places)
            _solve_layer(layer, rows, joined, target, originals, tensors, keep, groups)
    return compressed


def _first_change(
    recording: Recording, groups: Sequence[Group], keep: Mapping[tuple[str, int], Tensor]
) -> int:
    """The first step that reads fewer units than in the original network: all before it agree."""
    readers = {
        slot.tensor for g in groups for slot in g.consumers if (slot.tensor, slot.dim) in keep
    }
    for index, step in enumerate(recording.steps):
        if any(isinstance(leaf, Named) and leaf.name in readers for leaf in step.leaves):
            return index
    return len(recording.steps)


def give_biases(compressed: nn.Module, targets: Mapping[str, Target]) -> None:
    """A zero bias for layers that have none and no batch norm after them to shift instead."""
    missing = {}
    modules = dict(compressed.named_modules())
    for target in targets.values():
        layer = target.layer
        owner, _, attribute = layer.weight.rpartition(".")
        module = modules.get(owner)
        if layer.bias is not None or layer.norm is not None or attribute != "weight":
            continue
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
            missing[f"{owner}.bias"] = module.weight.new_zeros(module.weight.shape[0])
    if missing:
        resize(compressed, missing)


def _solve_layer(
    layer: Layer,
    rows: Tensor,
    joined: Tensor | None,
    target: Target,
    originals: Mapping[str, Tensor],
    tensors: Mapping[str, Tensor],
    keep: Mapping[tuple[str, int], Tensor],
    groups: Sequence[Group],
) -> None:
    """Give one layer of the compressed network the weights that suit its inputs."""
    device = rows.device
    out_dim, in_dim = (1, 0) if layer.inputs_first else (0, 1)
    original = originals[layer.weight].detach().double()
    if layer.inputs_first:
        original = original.T
    stays_out = _kept(keep, layer.weight, out_dim, original.shape[0]).to(device)
    width = original.shape[1]
    stays_in = _kept(keep, layer.weight, in_dim, width).to(device)
    sets = layer.convolution[3] if layer.convolution else 1
    thin = in_sets(rows, sets)
    wide = in_sets(target.inputs, target.inputs.shape[1] // width)
    if sets < len(wide):  # a depthwise layer has lost whole channels
        wide = wide[stays_out.view(sets, -1)[:, 0] // (len(original) // len(wide))]
    outputs = target.outputs[:, stays_out]
    missing = None
    if joined is not None and target.joined is not None:
        missing = target.joined[:, stays_out] - joined
    unchanged = len(stays_in) == width and torch.equal(centre(thin), wide)
    if unchanged and (missing is None or not bool(missing.any())):
        return
    wanted = outputs if missing is None else outputs + _before_norm(layer, missing, tensors)
    rectifier = None
    if layer.rectified and target.layer.rectified and (layer.joins is None or missing is not None):
        skips = None
        if missing is not None and joined is not None and target.joined is not None:
            skips = target.joined[:, stays_out], joined
        rectifier = _rectifier(layer, outputs, skips, tensors)
    found = _solve(
        thin,
        in_sets(wanted, sets),
        original[stays_out].reshape(sets, len(stays_out) // sets, width, -1),
        wide,
        stays_in,
        _positions(layer, groups, keep),
        layer.bias is not None or layer.norm is not None,
        None if rectifier is None else rectifier.sets(sets),
    )
    weight, bias = found.weight.flatten(0, 1), found.bias.flatten()
    place = tensors[layer.weight]
    place.copy_((weight.T if layer.inputs_first else weight).reshape(place.shape))
    if layer.bias is not None:
        tensors[layer.bias].copy_(bias)
    elif layer.norm is not None:
        _move_norm(layer, bias, tensors)


def _rectifier(
    layer: Layer,
    outputs: Tensor,
    skips: tuple[Tensor, Tensor] | None,
    tensors: Mapping[str, Tensor],
) -> Rectifier:
    """Where a ReLU switches off what a layer writes, in terms of its output before its norm.

    Args:
        layer: A layer that a ReLU follows.
        outputs: [rows, O] of the original network.
        skips: What is added in the original network and in the compressed one, [rows, O] each.
        tensors: Of the compressed network.
    """
    gain = outputs.new_ones(outputs.shape[1])
    mean, offset = torch.zeros_like(gain), torch.zeros_like(gain)
    if layer.norm is not None:
        mean = tensors[layer.norm.mean]
        gain = _gain(layer.norm, tensors)
        if layer.norm.offset is not None:
            offset = tensors[layer.norm.offset]
    able = gain.abs() > FAINT * gain.abs().max()
    gain = torch.where(able, gain, 1.0)
    before, after = (offset, offset) if skips is None else (offset + skips[0], offset + skips[1])
    off = ((outputs - mean) * gain + before <= 0) & able
    return Rectifier(off, (mean - after / gain).expand_as(outputs), (gain < 0)[None])


def _gain(norm: Norm, tensors: Mapping[str, Tensor]) -> Tensor:
    """By how much a batch norm scales each channel."""
    spread = (tensors[norm.var] + norm.eps).sqrt()
    return 1 / spread if norm.scale is None else tensors[norm.scale] / spread


def _before_norm(layer: Layer, missing: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
    """What a layer has to add so that `missing` [rows, O] is added after its batch norm.

    A channel whose norm scales it to (almost) nothing cannot make up for anything.
    """
    if layer.norm is None:
        return missing
    gain = _gain(layer.norm, tensors)
    able = gain.abs() > FAINT * gain.abs().max()
    return missing * torch.where(able, 1 / gain, 0.0)


def _solve(
    rows: Tensor,
    outputs: Tensor,
    original: Tensor,
    wide_inputs: Tensor,
    stays: Tensor,
    positions: tuple[Tensor, Tensor] | None,
    centred: bool,
    rectifier: Rectifier | None,
) -> Fit:
    """Weights of all convolution groups, side by side ("sets"; one where there are none).

    Args:
        rows: [sets, rows, inputs left, taps].
        outputs: [sets, rows, out] that are wanted.
        original: [sets, out, inputs, taps].
        wide_inputs: [sets, rows, inputs] of the original network.
        stays: Which inputs of each set are left.
        positions: `_positions`.
        centred: Whether a bias is fitted.
        rectifier: Where the outputs do not matter.
    """
    finite = rows.isfinite().all(3).all(2).all(0) & outputs.isfinite().all(2).all(0)
    if not bool(finite.all()):
        # What overflows inside a network is nothing to fit: one such row would be in every mean.
        finite &= wide_inputs.isfinite().all(2).all(0)
        if not bool(finite.any()):
            kept = original[:, :, stays].flatten(2).double()
            bias = kept.new_zeros(kept.shape[:2])
            return Fit(kept, bias, bias.new_full((len(kept),), torch.inf))
        rows, outputs, wide_inputs = rows[:, finite], outputs[:, finite], wide_inputs[:, finite]
        rectifier = None if rectifier is None else rectifier.rows(finite)
    if positions is not None or rows.shape[3] > 1:
        prior = _channel_prior(rows, original, wide_inputs, stays, positions, centred)
    else:
        prior = original[:, :, stays]
    flat, prior = rows.flatten(2), prior.flatten(2)
    if min(flat.shape[1:]) > WIDEST_SOLVE:
        # As many rows as can be solved for, evenly spread, correct what all of them say by channel.
        spread = torch.linspace(0, flat.shape[1] - 1, WIDEST_SOLVE, device=flat.device).long()
        flat, outputs = flat[:, spread], outputs[:, spread]
        rectifier = None if rectifier is None else rectifier.rows(spread)
    return fit(flat, outputs, prior, centred=centred, rectifier=rectifier)


def _channel_prior(
    rows: Tensor,
    original: Tensor,
    wide_inputs: Tensor,
    stays: Tensor,
    positions: tuple[Tensor, Tensor] | None,
    centred: bool,
) -> Tensor:
    """Original weights with every wide channel replaced by its best guess from thin ones.

    One map from thin to wide channels serves all taps (and all positions of a flattened map):
    far fewer unknowns than the layer has weights, so it holds with few rows.
    """
    thin = centre(rows)
    if positions is None:
        selection = _selection(wide_inputs.shape[2], stays).expand(len(rows), -1, -1)
        guess = fit(thin, wide_inputs, selection, centred=centred).weight
        return torch.einsum("soct,scd->sodt", original, guess)
    wide_columns, thin_columns = positions
    wide_units = wide_inputs[0][:, wide_columns].transpose(1, 2).flatten(0, 1)
    thin_units = thin[0][:, thin_columns].transpose(1, 2).flatten(0, 1)
    kept = torch.isin(wide_columns[:, 0].to(stays.device), stays).nonzero().flatten()
    selection = _selection(len(wide_columns), kept)
    guess = fit(thin_units, wide_units, selection, centred=centred).weight
    by_unit = original[0][:, wide_columns, 0]
    prior = original.new_zeros(*original.shape[:2], thin.shape[2], 1)
    prior[0][:, thin_columns, 0] = torch.einsum("oup,uv->ovp", by_unit, guess)
    return prior


def _selection(size: int, kept: Tensor) -> Tensor:
    """[size, kept] with a one where a kept unit stands for itself."""
    return torch.eye(size, dtype=torch.float64, device=kept.device)[:, kept]


def _positions(
    layer: Layer, groups: Sequence[Group], keep: Mapping[tuple[str, int], Tensor]
) -> tuple[Tensor, Tensor] | None:
    """Columns of each unit before and after excision, where units have several (flatten)."""
    if layer.convolution is not None:
        return None
    slots = [s for g in groups for s in g.consumers if s.tensor == layer.weight]
    if len(slots) != 1 or bool((slots[0].units < 0).any()):
        return None
    columns = unit_columns(layer, slots[0])
    if columns is None or columns.shape[1] < 2:
        return None
    stays = _kept(keep, layer.weight, slots[0].dim, columns.numel())
    new = torch.full((columns.numel(),), -1, dtype=torch.int64)
    new[stays] = torch.arange(len(stays))
    thin = new[columns]
    return columns, thin[(thin >= 0).all(1)]


def _kept(keep: Mapping[tuple[str, int], Tensor], tensor: str, dim: int, size: int) -> Tensor:
    return keep.get((tensor, dim), torch.arange(size))


def _move_norm(layer: Layer, bias: Tensor, tensors: Mapping[str, Tensor]) -> None:
    """The batch norm takes over the bias that a layer without one would need.

    Its statistics stay what training left them otherwise: the refitted outputs approximate the
    original network's, so they fit. Scaling the variance to the (smaller) one of the refitted
    outputs was measured to agree less, estimating it anew would break exact refits.
    """
    assert layer.norm is not None
    mean = tensors[layer.norm.mean]
    mean.copy_(mean.double() - bias)
