"""The layers of a network in the order in which they run, what joins them and what they cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fcompress.compress.ranking.allocation import layer_loads
from fcompress.errors import FcompressError
from fcompress.forward.predictor import Predictor
from fcompress.structure.groups import Structure


@dataclass(frozen=True)
class LayerCosts:
    """One convolution or linear map before and after.

    Attributes:
        name: The layer.
        weight: Its weight.
        kind: "conv", "transposed" or "linear".
        inputs_before: Channels that it reads.
        inputs_after: The same in the compressed network; 0 of a layer that is gone.
        units_before: Channels that it writes.
        units_after: The same.
        macs_before: Multiply-adds for one example.
        macs_after: The same.
        ms_before: Milliseconds of the layer alone for a batch of `Flow.batch`; None where layers
            could not be timed.
        ms_after: The same.
    """

    name: str
    weight: str
    kind: str
    inputs_before: int
    inputs_after: int
    units_before: int
    units_after: int
    macs_before: int
    macs_after: int
    ms_before: float | None
    ms_after: float | None


@dataclass(frozen=True)
class JoinedUnits:
    """A set of units, and which layers write and read it; several that write it are joined.

    Attributes:
        name: Of the group.
        before: Units.
        after: Units that stay.
        writers: Names of the weights that write them.
        readers: Names of the weights that read them.
        reason: Why none can go; None where they can.
    """

    name: str
    before: int
    after: int
    writers: tuple[str, ...]
    readers: tuple[str, ...]
    reason: str | None


@dataclass(frozen=True)
class Flow:
    """A network along its data flow.

    Attributes:
        layers: In order of execution.
        groups: What joins them.
        batch: Examples of the batch that layers were timed with.
        untimed: Why there are no times; None where there are.
    """

    layers: tuple[LayerCosts, ...]
    groups: tuple[JoinedUnits, ...]
    batch: int
    untimed: str | None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        groups = [
            {**vars(g), "writers": list(g.writers), "readers": list(g.readers)} for g in self.groups
        ]
        return {
            "layers": [dict(vars(layer)) for layer in self.layers],
            "groups": groups,
            "batch": self.batch,
            "untimed": self.untimed,
        }


def flow_of(
    original: Predictor,
    compressed: Predictor,
    structure: Structure,
    kept: Mapping[str, Tensor],
    batch: Tensor,
) -> Flow:
    """Follow the data through both networks.

    Args:
        original: The original network.
        compressed: Made from it; what is gone from it has no weights there.
        structure: Groups of the original.
        kept: Kept units of each group, as the compressed network was made with.
        batch: Inputs [N, ...] to time the layers with.
    """
    before, after = dict(original.network.named_parameters()), dict(_parameters(compressed))
    macs = [_summed(one, batch[:1], "macs") for one in (original, compressed)]
    times: list[dict[str, float]] | None = None
    untimed = None
    try:
        times = [_summed(one, batch, "latency") for one in (original, compressed)]
    except FcompressError as error:
        untimed = str(error)
    layers: list[LayerCosts] = []
    dims = _dims(structure)
    for found in structure.contractions:
        if found.weight not in before or any(one.weight == found.weight for one in layers):
            continue
        shapes = [tuple(t[found.weight].shape) for t in (before, after) if found.weight in t]
        thin = shapes[1] if len(shapes) > 1 else (0,) * len(shapes[0])
        into = dims.get((found.weight, "consumer"), 0 if found.kind == "transposed" else 1)
        out = dims.get((found.weight, "producer"), 1 if found.kind == "transposed" else 0)
        ms = [None, None] if times is None else [1e3 * t.get(found.weight, 0.0) for t in times]
        layers.append(
            LayerCosts(
                found.weight.rpartition(".")[0] or found.weight,
                found.weight,
                found.kind,
                shapes[0][into] if into < len(shapes[0]) else 1,
                thin[into] if into < len(thin) else 1,
                shapes[0][out],
                thin[out],
                round(macs[0].get(found.weight, 0.0)),
                round(macs[1].get(found.weight, 0.0)),
                *ms,
            )
        )
    return Flow(tuple(layers), _groups(structure, after, kept), len(batch), untimed)


def _parameters(predictor: Predictor) -> list[tuple[str, Tensor]]:
    return list(predictor.network.named_parameters())


def _summed(predictor: Predictor, batch: Tensor, objective: str) -> dict[str, float]:
    """What each weight costs, over all of its uses."""
    found: dict[str, float] = {}
    with predictor.evaluating():
        for load in layer_loads(predictor, (), batch, objective):
            found[load.weight] = found.get(load.weight, 0.0) + load.cost
    return found


def _dims(structure: Structure) -> dict[tuple[str, str], int]:
    """Which dimension of a weight its units are written along, and which they are read along."""
    return {
        (slot.tensor, slot.role): slot.dim
        for group in (*structure.groups, *structure.not_pruned)
        for slot in group.slots
        if slot.role != "between"
    }


def _groups(
    structure: Structure, after: Mapping[str, Tensor], kept: Mapping[str, Tensor]
) -> tuple[JoinedUnits, ...]:
    found = []
    for group in (*structure.groups, *structure.not_pruned):
        there = any(slot.tensor in after for slot in group.producers)
        units = len(kept[group.name]) if group.name in kept else group.size
        found.append(
            JoinedUnits(
                group.name,
                group.size,
                units if there or not group.producers else 0,
                tuple(dict.fromkeys(slot.tensor for slot in group.producers)),
                tuple(dict.fromkeys(slot.tensor for slot in group.consumers)),
                group.reason,
            )
        )
    return tuple(found)
