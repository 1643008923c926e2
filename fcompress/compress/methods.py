"""The ways to make a network thinner, side by side.

A method says two things: in which order units go (a `RemovalOrder` of nested choices), and how the
network is made that keeps a given choice. Everything else, the search for the amount, the
certificate and the report, is the same for all of them (`shrink.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor, nn

from fcompress.compress.blocks.chain import Choice, chain
from fcompress.compress.blocks.thinning import thinned
from fcompress.compress.evidence.units import UnitMap, unit_map
from fcompress.compress.ranking.allocation import BlockCost, Load, RemovalOrder, layer_loads, merge
from fcompress.compress.ranking.divergence import (
    KEPT,
    Reading,
    ablation_effects,
    dense,
    measured_costs,
)
from fcompress.compress.ranking.fisher import output_fisher, unit_fisher
from fcompress.compress.ranking.subset_selection import pivoted, weighted
from fcompress.compress.refitting.reconstruct import refit_network
from fcompress.compress.refitting.samples import (
    Target,
    collect_targets,
    consumers_of,
    unit_columns,
    unit_moments,
)
from fcompress.forward.predictor import Predictor
from fcompress.forward.recording import Recording
from fcompress.structure.groups import Group, Structure


@dataclass(frozen=True)
class Context:
    """What every method works with.

    Attributes:
        original: The network to compress, in eval mode; never changed.
        structure: Its groups.
        batches: Calibration inputs on the model's device, several batches of one size.
        seed: Chooses sampled rows.
        macs: Multiply-adds of the original network for one example.
        objective: What removing units is to save, one of `OBJECTIVES`.
        recordings: Its recordings, by batch size, made when first needed and shared by all.
        choice: Its blocks that may go.
        maps: Where the units of each group stand, noted by methods that measure it.
    """

    original: Predictor
    structure: Structure
    batches: Sequence[Tensor]
    seed: int
    macs: int
    objective: str = "macs"
    recordings: dict[int, Recording] = field(default_factory=dict)
    choice: Choice = field(default_factory=Choice)
    maps: dict[str, UnitMap] = field(default_factory=dict)

    def thin(self, kept: Mapping[str, Tensor]) -> Predictor:
        """The network with some units and blocks, to be run and thrown away: not refitted."""
        network, groups = self.original.network, self.structure.groups
        return self.original.of(thinned(network, groups, self.choice, kept, share=True).network)

    def keep(self, kept: Mapping[str, Tensor]) -> Mapping[tuple[str, int], Tensor]:
        """Indices of each (tensor, dim) that stay with some units and blocks."""
        network, groups = self.original.network, self.structure.groups
        return thinned(network, groups, self.choice, kept, share=True).keep

    def blocks(self, inputs: Tensor) -> list[BlockCost]:
        """What the loss of each block costs, in nats, measured on some inputs."""
        return chain(self.original, self.choice, self.structure.groups, self.loads, inputs)

    @cached_property
    def loads(self) -> list[Load]:
        """What every layer of the original network costs."""
        return layer_loads(
            self.original, self.structure.groups, self.batches[0], self.objective, self.recordings
        )

    @cached_property
    def fisher(self) -> dict[str, Tensor]:
        """How much the labels listen to every layer's outputs (one sweep with gradients)."""
        return output_fisher(
            self.original, self.batches, seed=self.seed, recordings=self.recordings
        )

    @cached_property
    def targets(self) -> dict[str, Target]:
        """Rows of every layer of the original network (one sweep, done when first needed)."""
        return collect_targets(
            self.original, self.batches, seed=self.seed, recordings=self.recordings
        )


class Method(Protocol):
    """A way to choose units and to make the network without the others.

    Attributes:
        takes_blocks: Whether its costs are in nats, so that whole blocks can be among the choices.
    """

    takes_blocks: bool

    def not_pruned(self, context: Context) -> dict[str, str]:
        """Proven groups that this method cannot use, with the reason."""
        ...

    def removal_order(self, context: Context) -> RemovalOrder:
        """Nested choices of units."""
        ...

    def make(self, context: Context, kept: Mapping[str, Tensor]) -> nn.Module:
        """The network that keeps the units `kept` of each group."""
        ...


class Prune:
    """Prunable units: those whose ablation changes the outputs least go first."""

    takes_blocks = True
    budget = 4e12  # multiply-adds to spend on measuring

    def not_pruned(self, context: Context) -> dict[str, str]:
        """Nothing: zeroing needs no refitting."""
        return {}

    def removal_order(self, context: Context) -> RemovalOrder:
        """Units of a group by their effect, those of all groups by effect for what they save."""
        groups = context.structure.groups
        inputs = torch.cat(list(context.batches))[: self.examples(context)]
        effects = ablation_effects(context.original, groups, inputs, context.recordings)
        orders = {n: e.argsort(descending=True, stable=True) for n, e in effects.items()}
        # The cost of keeping the first k is the sum of the effects of the others.
        costs = {n: e[orders[n]].flip(0).cumsum(0).flip(0) for n, e in effects.items()}
        return merge(orders, costs, context.loads, context.blocks(inputs))

    def examples(self, context: Context) -> int:
        """How many examples the budget allows to measure every unit on."""
        units = sum(g.size for g in context.structure.groups)
        affordable = int(self.budget / max(1, units * context.macs))
        return max(16, min(affordable, 512))

    def make(self, context: Context, kept: Mapping[str, Tensor]) -> nn.Module:
        """Excise, nothing else."""
        network, groups = context.original.network, context.structure.groups
        return thinned(network, groups, context.choice, kept).network


class Factor:
    """Redundant units: those that are linear combinations of others go, folded into them."""

    takes_blocks = False

    def not_pruned(self, context: Context) -> dict[str, str]:
        """Groups read by something that is no whole convolution or linear layer."""
        reasons = {}
        for group in context.structure.groups:
            consumers = consumers_of(group, context.targets)
            if consumers is None:
                reasons[group.name] = "one of its consumers cannot be refitted"
            elif any(unit_columns(t.layer, s) is None for s, t in consumers):
                reasons[group.name] = "a consumer reads different numbers of columns of its units"
        return reasons

    def removal_order(self, context: Context) -> RemovalOrder:
        """Rank-revealing choices, joined by the share of variance left unexplained."""
        skipped = self.not_pruned(context)
        chosen = {
            g.name: self.choose(context, g)
            for g in context.structure.groups
            if g.name not in skipped
        }
        orders = {name: order for name, (order, _) in chosen.items()}
        # Every consumer suffers from what is unexplained: a stream read by many layers is dear.
        readers = {g.name: len(g.consumers) for g in context.structure.groups}
        costs = {name: readers[name] * share for name, (_, share) in chosen.items()}
        return merge(orders, costs, context.loads)

    def choose(self, context: Context, group: Group) -> tuple[Tensor, Tensor]:
        """Order and unexplained share of one group by pivoted elimination on its covariance.

        Every consumer sees the units in its own way (after other norms and sums); each counts
        the same.
        """
        total = torch.zeros(group.size, group.size, dtype=torch.float64)
        for slot, target in consumers_of(group, context.targets) or ():
            columns = unit_columns(target.layer, slot)
            assert columns is not None
            covariance, _ = unit_moments(target, columns)
            trace = float(covariance.trace())
            if trace > 0:
                total += (covariance / trace).cpu()
        return pivoted(total)

    def make(self, context: Context, kept: Mapping[str, Tensor]) -> nn.Module:
        """Excise, then refit every touched layer against the original network."""
        network, groups = context.original.network, context.structure.groups
        thin = thinned(network, groups, context.choice, kept)
        return refit_network(
            context.original,
            thin.network,
            thin.groups,
            thin.keep,
            context.targets,
            context.batches,
        )


class Hybrid(Factor):
    """Prunable and redundant at once: what the labels would notice of what others cannot explain.

    The paper's discussion asks for "hybrid compression methods which target both". A unit's cost
    is the part of its activity that the kept units do not explain linearly, through the weights
    of whatever reads it, as far as the labels listen (docs/design.md section 1). Costs are nats,
    brought to their measured scale group by group, so that groups compare.
    """

    takes_blocks = True
    budget = 4.0  # sweeps over the calibration data to spend on measuring
    least, most = 64, 512  # examples to measure on

    def not_pruned(self, context: Context) -> dict[str, str]:
        """Nothing: what cannot be refitted loses units by their effect alone."""
        return {}

    def removal_order(self, context: Context) -> RemovalOrder:
        """Weighted greedy choices, joined by measured divergence."""
        groups = context.structure.groups
        plain = super().not_pruned(context)
        readings = {g.name: readings_of(context, g) for g in groups if g.name not in plain}
        chosen = {name: self.rank(context, found) for name, found in readings.items()}
        for name, found in readings.items():
            context.maps[name] = mapped(context, name, found, chosen[name][0])
        inputs = torch.cat(list(context.batches))[: self.examples(context, len(groups))]
        chosen |= self.by_effect(context, [g for g in groups if g.name in plain], inputs)
        orders = {name: order for name, (order, _) in chosen.items()}
        predicted = {name: cost for name, (_, cost) in chosen.items()}
        costs = measured_costs(
            context.original, groups, readings, orders, predicted, inputs, context.recordings
        )
        for name, known in context.maps.items():
            context.maps[name] = known.with_cost(costs[name])
        return merge(orders, costs, context.loads, context.blocks(inputs))

    def rank(self, context: Context, readings: Sequence[Reading]) -> tuple[Tensor, Tensor]:
        """Order and predicted cost, in nats, of one group."""
        importances = [importance(context, reading) for reading in readings]
        return weighted([r.covariance for r in readings], importances)

    def by_effect(
        self, context: Context, groups: Sequence[Group], inputs: Tensor
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """Order and predicted cost of groups whose readers cannot be refitted."""
        if not groups:
            return {}
        found = unit_fisher(
            context.original, groups, inputs, seed=context.seed, recordings=context.recordings
        )
        orders = {n: e.argsort(descending=True, stable=True) for n, e in found.items()}
        # The cost of keeping the first k is the sum of the effects of the others.
        return {n: (orders[n], e[orders[n]].flip(0).cumsum(0).flip(0)) for n, e in found.items()}

    def examples(self, context: Context, groups: int) -> int:
        """How many examples the budget allows to measure every group on."""
        total = sum(len(b) for b in context.batches)
        runs = max(1, groups * len(KEPT) / 2)  # a group's run starts in the middle on average
        return max(self.least, min(int(self.budget * total / runs), self.most))


def readings_of(context: Context, group: Group) -> list[Reading]:
    """How each consumer reads the units of a group that `Factor` can use."""
    found = []
    for slot, target in consumers_of(group, context.targets) or ():
        columns = unit_columns(target.layer, slot)
        assert columns is not None
        covariance, mean = unit_moments(target, columns)
        found.append(Reading(target, columns, covariance, mean))
    return found


def importance(context: Context, reading: Reading) -> Tensor:
    """What an error of the units costs through one consumer: float64 [units, units], nats.

    W^T G W / 2 summed over the taps and columns in which the consumer meets a unit; errors there
    are taken to be independent.
    """
    layer = reading.target.layer
    stored = context.original.tensors()[layer.weight].detach().cpu()
    weight = dense(layer.convolution, layer.inputs_first, stored)[:, reading.columns]
    fisher = context.fisher.get(layer.weight)
    heard = weight if fisher is None else torch.einsum("op,pcku->ocku", fisher, weight)
    return torch.einsum("ocku,odku->cd", weight, heard) / 2


def mapped(context: Context, name: str, readings: Sequence[Reading], order: Tensor) -> UnitMap:
    """Where the units of a group stand, for reports."""
    importances = [importance(context, reading) for reading in readings]
    return unit_map(name, [r.covariance for r in readings], importances, order)


# By the names of `options.METHODS`.
METHODS: dict[str, Method] = {"prune": Prune(), "factor": Factor(), "hybrid": Hybrid()}
