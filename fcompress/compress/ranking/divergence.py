"""What it really costs to keep only the first k units of a group, in nats, measured.

Predicted costs are sums of squares over layers and positions that are taken to err
independently; how far that is from the truth differs from group to group by orders of
magnitude. So for a few k the removed units of one group are folded into the kept ones, the rest
of the network is run, and the divergence of its class probabilities is compared with the
prediction. Between the measured k the prediction's own shape is kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from fcompress.compress.refitting.samples import Target
from fcompress.forward.answers.scoring import Scoring
from fcompress.forward.graph import run
from fcompress.forward.predictor import Predictor, as_predictor
from fcompress.forward.recording import Recording, copies, recordings_for, to_end
from fcompress.structure.groups import Group

KEPT = (0.75, 0.5, 0.33, 0.2, 0.1, 0.05)  # shares of a group's units to measure at
RIDGE = 1e-4
TINY = 1e-12
DEAREST = 1e6  # nats; stands for outputs that are not finite
FAINT = 1e-4  # costs below this share of the largest are rounding as much as cost


@dataclass(frozen=True)
class Reading:
    """How one consumer reads the units of a group.

    Attributes:
        target: Its layer, with sampled rows.
        columns: int64 [units, columns of each]: which of its input columns hold each unit.
        covariance: float64 [units, units] of the units as it reads them.
        mean: float64 [units].
    """

    target: Target
    columns: Tensor
    covariance: Tensor
    mean: Tensor


def measured_costs(
    original: nn.Module | Predictor,
    groups: Sequence[Group],
    readings: Mapping[str, Sequence[Reading]],
    orders: Mapping[str, Tensor],
    predicted: Mapping[str, Tensor],
    inputs: Tensor,
    recordings: dict[int, Recording] | None = None,
) -> dict[str, Tensor]:
    """Bring predicted costs to the scale of measured ones, group by group.

    Args:
        original: The original network, in eval mode.
        groups: The groups to measure.
        readings: The consumers of each group, by its name; a group that is not among them loses
            its units without being folded into the others.
        orders: The units of each group, those that stay longest first: int64 [C].
        predicted: For each group float64 [C]: entry k is the cost when only the first k stay.
        inputs: Examples [N, ...], all run as one batch.
        recordings: Recordings of the network that exist already, by batch size; more are added.

    Returns:
        For each group float64 [C], in nats.
    """
    predictor = as_predictor(original)
    tensors = {name: tensor.detach() for name, tensor in predictor.tensors().items()}
    recording = recordings_for(original, [inputs], recordings)[len(inputs)]
    written = any(step.func._schema.is_mutable for step in recording.steps)
    costs = {}
    with torch.no_grad():
        reference = to_end(recording, 0, {recording.inputs[0]: inputs.clone()}, tensors)
        scoring = predictor.scoring
        reference = scoring.log_probabilities(reference.double())
        for group in groups:
            first = first_use(recording, group)
            values = {recording.inputs[0]: inputs.clone()}
            run(recording.steps[:first], values, tensors)
            measured = {}
            for k in sorted({max(1, round(share * group.size)) for share in KEPT}):
                thin = dict(tensors)
                order = orders[group.name]
                for reading in readings.get(group.name, ()):
                    thin |= folded(reading, order[:k].sort().values, thin)
                if group.name not in readings:
                    thin |= silenced(group, order[k:], thin)
                start = copies(values) if written else dict(values)
                outputs = to_end(recording, first, start, thin).double()
                loss = scoring.divergence(scoring.log_probabilities(outputs), reference)
                measured[k] = float(loss.nan_to_num(torch.inf, torch.inf))
            costs[group.name] = rescaled(predicted[group.name], measured)
    return costs


def silenced(group: Group, removed: Tensor, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The consumers of a group with the columns of some units set to 0.

    Args:
        group: The group.
        removed: int64: the units.
        tensors: Parameters and buffers by name.

    Returns:
        The tensors that change.
    """
    changed: dict[str, Tensor] = {}
    for slot in group.consumers:
        stored = changed.get(slot.tensor, tensors[slot.tensor])
        columns = torch.isin(slot.units, removed.cpu()).nonzero().flatten().to(stored.device)
        changed[slot.tensor] = stored.index_fill(slot.dim, columns, 0.0)
    return changed


def folded(reading: Reading, kept: Tensor, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """One consumer with the other units guessed from the kept ones, at its full width.

    Args:
        reading: The consumer.
        kept: Sorted int64 indices of units.
        tensors: Parameters and buffers by name.

    Returns:
        The tensors that change: its weight, and the bias or batch norm mean that takes over the
        constant part.
    """
    layer = reading.target.layer
    columns = reading.columns
    gone = torch.ones(len(columns), dtype=torch.bool)
    gone[kept] = False
    removed = gone.nonzero().flatten()
    among = reading.covariance[kept][:, kept].clone()
    among.diagonal().add_(max(RIDGE * float(reading.covariance.diagonal().mean()), TINY))
    guess = torch.linalg.solve(among, reading.covariance[kept][:, removed])  # [kept, removed]
    constant = reading.mean[removed] - reading.mean[kept] @ guess
    stored = tensors[layer.weight]
    guess, constant = guess.to(stored.device), constant.to(stored.device)
    weight = dense(layer.convolution, layer.inputs_first, stored)
    lost = weight[:, columns[removed]]  # [out, removed, columns of each, taps]
    weight[:, columns[kept]] += torch.einsum("orpt,kr->okpt", lost, guess)
    weight[:, columns[removed].flatten()] = 0
    shift = torch.einsum("orpt,r->o", lost, constant)
    changed = {layer.weight: undense(layer.convolution, layer.inputs_first, weight, stored)}
    if layer.bias is not None:
        changed[layer.bias] = (tensors[layer.bias].double() + shift).to(stored.dtype)
    elif layer.norm is not None:
        mean = tensors[layer.norm.mean]
        changed[layer.norm.mean] = (mean.double() - shift).to(mean.dtype)
    return changed


def dense(convolution: tuple | None, inputs_first: bool, stored: Tensor) -> Tensor:
    """A weight as float64 [out, all inputs, taps], zero between different convolution groups."""
    weight = stored.double()
    if inputs_first:
        weight = weight.T
    weight = weight.flatten(2) if weight.dim() > 2 else weight.unsqueeze(2)
    blocks = convolution[3] if convolution else 1
    if blocks == 1:
        return weight.clone()
    out, width, taps = weight.shape
    whole = weight.new_zeros(blocks, out // blocks, blocks, width, taps)
    each = torch.arange(blocks, device=weight.device)
    whole[each, :, each] = weight.view(blocks, out // blocks, width, taps)
    return whole.view(out, blocks * width, taps)


def undense(convolution: tuple | None, inputs_first: bool, weight: Tensor, like: Tensor) -> Tensor:
    """The inverse of `dense`, in the shape and type of `like`."""
    blocks = convolution[3] if convolution else 1
    if blocks > 1:
        out, width, taps = weight.shape
        each = torch.arange(blocks, device=weight.device)
        whole = weight.view(blocks, out // blocks, blocks, width // blocks, taps)
        weight = whole[each, :, each].reshape(out, width // blocks, taps)
    if inputs_first:
        weight = weight.squeeze(2).T
    return weight.reshape(like.shape).to(like.dtype).contiguous()


def rescaled(predicted: Tensor, measured: Mapping[int, float]) -> Tensor:
    """A predicted curve through the measured points.

    Args:
        predicted: float64 [C]: the cost when only the first k units stay.
        measured: k -> measured cost, k in [1, C).

    Returns:
        float64 [C]: the prediction times a factor that is interpolated (in logarithms) between
        the measured k and constant beyond them.
    """
    at = sorted(k for k in measured if k < len(predicted))
    if not at:
        return predicted
    least_measured = max(FAINT * min(max(measured[k] for k in at), 1.0), TINY)
    least_predicted = max(FAINT * float(predicted.max()), TINY)
    factors = [
        np.log(min(max(measured[k], least_measured), DEAREST))
        - np.log(max(float(predicted[k]), least_predicted))
        for k in at
    ]
    every = np.log(np.maximum(np.arange(len(predicted)), 0.5))
    factor = np.exp(np.interp(every, np.log(at), factors))
    return predicted * torch.from_numpy(factor)


def ablation_effects(
    original: nn.Module | Predictor,
    groups: tuple[Group, ...],
    inputs: Tensor,
    recordings: dict[int, Recording] | None = None,
) -> dict[str, Tensor]:
    """Measure every unit of every group.

    Args:
        original: The network, in eval mode.
        groups: Proven groups.
        inputs: Calibration examples [N, ...], all run as one batch.
        recordings: Recordings of the network that exist already, by batch size; more are added.

    Returns:
        For each group float64 [units]: mean divergence in nats.
    """
    predictor = as_predictor(original)
    tensors = predictor.tensors()
    recording = recordings_for(original, [inputs], recordings)[len(inputs)]
    with torch.no_grad():
        values = {recording.inputs[0]: inputs.clone()}
        outputs = to_end(recording, 0, values, tensors)
        scoring = predictor.scoring
        reference = scoring.log_probabilities(outputs.double())
        return {g.name: _group(recording, g, inputs, tensors, (scoring, reference)) for g in groups}


def _group(
    recording: Recording,
    group: Group,
    inputs: Tensor,
    tensors: Mapping[str, Tensor],
    wanted: tuple[Scoring, Tensor],
) -> Tensor:
    scoring, reference = wanted
    first = first_use(recording, group)
    values = {recording.inputs[0]: inputs.clone()}
    run(recording.steps[:first], values, tensors)
    written = any(step.func._schema.is_mutable for step in recording.steps[first:])
    effects = torch.zeros(group.size, dtype=torch.float64)
    for unit in range(group.size):
        own = dict(tensors)
        own |= silenced(group, torch.tensor([unit]), own)
        start = copies(values) if written else dict(values)
        ablated = scoring.log_probabilities(to_end(recording, first, start, own).double())
        effects[unit] = scoring.divergence(ablated, reference)
    return effects.nan_to_num(nan=float("inf"))


def first_use(recording: Recording, group: Group) -> int:
    """The first step that a consumer's weight takes part in."""
    names = {slot.tensor for slot in group.consumers}
    for index, step in enumerate(recording.steps):
        if any(getattr(leaf, "name", None) in names for leaf in step.leaves):
            return index
    return 0
