"""How much the outputs change when one unit is ablated: measured, without labels.

The effect of a unit is the mean Kullback-Leibler divergence of the class probabilities with the
unit zeroed at all its consumers from those of the whole network. Every unit costs one run of the
network from its first consumer on; everything before is computed once for the whole group.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fcompress.groups import Group
from fcompress.record import Recording, record, run
from fcompress.scoring import Scoring, scoring_of


def ablation_effects(
    model: nn.Module, groups: tuple[Group, ...], inputs: Tensor
) -> dict[str, Tensor]:
    """Measure every unit of every group.

    Args:
        model: The network, in eval mode, which gives scores (`scoring.Scoring`) only.
        groups: Proven groups.
        inputs: Calibration examples [N, ...], all run as one batch.

    Returns:
        For each group float64 [units]: mean divergence in nats.
    """
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    recording = record(model, inputs)
    with torch.no_grad():
        values = {recording.inputs[0]: inputs.clone()}
        outputs = to_end(recording, 0, values, tensors)
        scoring = scoring_of(model)
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
        for slot in group.consumers:
            columns = (slot.units == unit).nonzero().flatten().to(own[slot.tensor].device)
            own[slot.tensor] = own[slot.tensor].index_fill(slot.dim, columns, 0.0)
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


def copies(values: Mapping[int, Tensor]) -> dict[int, Tensor]:
    """Copies that share memory with each other exactly where the originals do."""
    storages: dict[int, torch.UntypedStorage] = {}
    copies = {}
    for slot, value in values.items():
        storage = value.untyped_storage()
        if storage.data_ptr() not in storages:
            storages[storage.data_ptr()] = storage.clone()
        memory = storages[storage.data_ptr()]
        copies[slot] = value.new_empty(0).set_(
            memory, value.storage_offset(), value.shape, value.stride()
        )
    return copies


def to_end(
    recording: Recording, start: int, values: dict[int, Tensor], tensors: Mapping[str, Tensor]
) -> Tensor:
    """Run a recording from a step to its end: the outputs."""
    run(recording.steps[start:], values, tensors)
    return values[recording.outputs[0]]
