"""Prunable units: how many random units can be ablated before the labels change.

Paper section 4, "Prunability", and docs/protocol.md section 1. A unit is one element of a layer's
activation, or, on request, a whole feature map, which is what the authors' public code ablates.
"""

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fcompress.errors import UnsupportedNetworkError
from fcompress.forward.predictor import Predictor, as_predictor
from fcompress.measure.hooks import Prefix, ablate
from fcompress.measure.layers import Layer, Skipped, ablation_layers
from fcompress.measure.options import LAYER_EXAMPLES, ORDERS, STEPS, TOLERANCES, Unit
from fcompress.showing.progress import Progress, Report, silent
from fcompress.showing.results import Shown

NETWORK = "network"  # name of the curve of all layers at once
# Agreements are compared with this slack, so that 1 - tolerance is not decided by rounding.
SHARE_SLACK = 1e-12


@dataclass(frozen=True)
class AblationCurve:
    """Label agreement against the proportion of ablated units.

    Attributes:
        name: Address of the layer, or "network" for all layers at the same proportion at once.
        units: Units that proportion 1 ablates.
        examples: Examples that were measured.
        agreement: For each random order, the share of examples whose label is unchanged at
            `proportions`.
        accuracy: The same for the share of right labels; None without labels.
    """

    name: str
    units: int
    examples: int
    agreement: tuple[tuple[float, ...], ...] = field(repr=False)
    accuracy: tuple[tuple[float, ...], ...] | None = field(repr=False)

    @property
    def proportions(self) -> tuple[float, ...]:
        """The proportions of units that were ablated."""
        return proportions(len(self.agreement[0]) - 1)

    def shares(self, tolerance: float) -> tuple[float, ...]:
        """Prunable share p* of each random order."""
        return tuple(prunable_share(values, tolerance) for values in self.agreement)

    def share(self, tolerance: float) -> float:
        """Prunable share p*: that of the random order with the largest (docs/protocol.md 1.5)."""
        return max(self.shares(tolerance))

    def prunable(self, tolerance: float) -> float:
        """Prunable units, p* times the units; interpolated, so not a whole number."""
        return self.share(tolerance) * self.units


@dataclass(frozen=True, repr=False)
class AblationResult(Shown):
    """Prunable units of a network.

    Attributes:
        network: The curve of all layers at once.
        layers: Each layer's own curve, in order of execution; empty if not asked for.
        unit: "element" or "map".
        units: Units of each layer that the network's curve ablates, in order of execution.
        accuracy: Of the unmodified network on the measured examples; None without labels.
        tolerances: Tolerances to report, the main one first; any other can be asked for.
        seed: Of the random orders.
        rule: How the layers were chosen, in words.
        skipped: Layers that could not be ablated.
    """

    network: AblationCurve
    layers: tuple[AblationCurve, ...]
    unit: Unit
    units: dict[str, int]
    accuracy: float | None
    tolerances: tuple[float, ...]
    seed: int
    rule: str
    skipped: tuple[Skipped, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""

        def curve(measured: AblationCurve) -> dict[str, Any]:
            shares = {f"{t:g}": measured.share(t) for t in self.tolerances}
            units = {f"{t:g}": measured.prunable(t) for t in self.tolerances}
            return {**asdict(measured), "prunable_share": shares, "prunable": units}

        return {
            "unit": self.unit,
            "units": self.units,
            "proportions": list(self.network.proportions),
            "tolerances": list(self.tolerances),
            "orders": len(self.network.agreement),
            "seed": self.seed,
            "rule": self.rule,
            "accuracy": self.accuracy,
            "network": curve(self.network),
            "layers": [curve(layer) for layer in self.layers],
            "skipped": [asdict(s) for s in self.skipped],
        }


def proportions(steps: int = STEPS) -> tuple[float, ...]:
    """The proportions of units that are ablated: 0, 1/6, ... 1, or in as many steps as asked."""
    return tuple(step / steps for step in range(steps + 1))


def prunable_share(agreement: Sequence[float], tolerance: float) -> float:
    """Proportion p* at which agreement first falls below 1 - tolerance (docs/protocol.md 1.4).

    Args:
        agreement: At `proportions`, however many; the first one is 1.
        tolerance: Share of labels that may change.

    Returns:
        p*, by linear interpolation between the two neighbouring proportions; 1 if it never
        falls below.
    """
    least = 1.0 - tolerance
    grid = proportions(len(agreement) - 1)
    for i, value in enumerate(agreement):
        if value < least - SHARE_SLACK:
            if i == 0:
                return 0.0
            before = agreement[i - 1]
            # A tie within the slack may lie just below `least`; it still counts as reached.
            part = max(0.0, before - least) / (before - value)
            return grid[i - 1] + part * (grid[i] - grid[i - 1])
    return 1.0


def measure_ablation(
    model: nn.Module | Predictor,
    batches: Iterable[tuple[Tensor, Tensor | None]],
    *,
    tolerances: Sequence[float] = TOLERANCES,
    unit: Unit = "element",
    by_layer: bool = True,
    layer_examples: int | None = LAYER_EXAMPLES,
    steps: int = STEPS,
    orders: int = ORDERS,
    seed: int = 0,
    layers: Sequence[str] | None = None,
    progress: Report = silent,
    of: int | None = None,
) -> AblationResult:
    """Measure the prunable units of a network in one pass over the examples.

    Every batch is read once; the network then runs on it once for each proportion and order,
    from the first ablated layer on, and, by layer, again for each layer, from that layer on.

    Args:
        model: The network; comes back as it was.
        batches: (inputs [n, ...], true labels [n] or None) pairs, gone through once. Labels
            serve only to report accuracies.
        tolerances: Shares of labels that may change, in [0, 1), main one first.
        unit: "element" ablates single elements of a feature map, "map" whole maps.
        by_layer: Whether to measure each layer's own curve as well.
        layer_examples: Measure the layers' curves on the first so many examples only; None for
            all. Every curve says how many it was measured on.
        steps: Steps from nothing to everything ablated, each of the same size. More than the
            protocol's six tell networks apart whose labels change within the first.
        orders: Random orders; of each layer's units, nested from proportion to proportion, and
            the same in the network's curve and the layer's own.
        seed: Of the orders.
        layers: Addresses of the layers; None for docs/protocol.md 1.2's.
        progress: Told after each batch.
        of: How many examples there are, where that is known.

    Raises:
        UnsupportedNetworkError: There is no layer to ablate, or the network is no classifier.
        ValueError: A tolerance is outside [0, 1), `layer_examples` or `steps` is below 1, or
            there are no examples.
    """
    for tolerance in tolerances:
        if not 0 <= tolerance < 1:
            raise ValueError(f"tolerance {tolerance} is outside [0, 1)")
    if layer_examples is not None and layer_examples < 1:
        raise ValueError(f"layer_examples is {layer_examples}; expected 1 or more, or None")
    if steps < 1:
        raise ValueError(f"steps is {steps}; expected 1 or more")
    run = None
    predictor = as_predictor(model)
    with predictor.evaluating():
        for batch, labels in batches:
            inputs = predictor.place(batch)
            if run is None:
                found = ablation_layers(predictor, inputs[:2], layers)
                ranks = [
                    [_ranks(layer, unit, [seed, order, i]) for order in range(orders)]
                    for i, layer in enumerate(found.measured)
                ]
                limit = (sys.maxsize if layer_examples is None else layer_examples) * by_layer
                run = _Run(predictor, found.measured, ranks, unit, limit, steps, inputs.device)
            run.add(inputs, None if labels is None else labels.to(inputs.device))
            progress(Progress("ablation", run.examples, of, "examples"))
    if run is None:
        raise ValueError("no examples to ablate units on")
    units = {layer.name: layer_units(layer, unit) for layer in found.measured}
    return AblationResult(
        network=run.curve(0, NETWORK, sum(units.values())),
        layers=tuple(
            run.curve(i, name, units[name])
            for i, name in enumerate(units if by_layer else (), start=1)
        ),
        unit=unit,
        units=units,
        accuracy=run.accuracy(),
        tolerances=tuple(tolerances),
        seed=seed,
        rule=found.rule,
        skipped=found.skipped,
    )


def layer_units(layer: Layer, unit: Unit) -> int:
    """How many units a layer has under a convention."""
    return layer.elements if unit == "element" else layer.maps


def _ranks(layer: Layer, unit: Unit, seed: Sequence[int]) -> Tensor:
    """Place of each unit in a random order, int32, in a shape that fits the layer's output."""
    units = layer_units(layer, unit)
    order = np.random.default_rng(seed).permutation(units)
    ranks = torch.empty(units, dtype=torch.int32)
    ranks[torch.from_numpy(order)] = torch.arange(units, dtype=torch.int32)
    if unit == "element":
        return ranks.view(layer.shape)
    return ranks.view([-1 if i == layer.axis else 1 for i in range(len(layer.shape))])


class _Run:
    """Counts of unchanged and of right labels, summed over batches.

    Counts are [curves, orders, proportions]; curve 0 is the network's, the others the layers',
    which stop after `layer_examples` examples. They stay on the device, so that nothing waits
    for it between two forward passes.
    """

    def __init__(
        self,
        predictor: Predictor,
        layers: Sequence[Layer],
        ranks: Sequence[Sequence[Tensor]],
        unit: Unit,
        layer_examples: int,
        steps: int,
        device: torch.device,
    ) -> None:
        self._predictor = predictor
        self._steps = steps
        self._scoring = predictor.scoring
        self._ranks = {
            layer.name: [r.to(device) for r in own]
            for layer, own in zip(layers, ranks, strict=True)
        }
        self._units = {layer.name: layer_units(layer, unit) for layer in layers}
        self._orders = len(ranks[0])
        self._curves = [list(self._units)]
        # The curve of a lone layer is the network's; it is not measured twice.
        self._layer_examples = layer_examples if len(layers) > 1 else 0
        if self._layer_examples:
            self._curves += [[name] for name in self._units]
        self._prefix = Prefix(predictor.network)
        shape = (len(self._curves), self._orders, steps + 1)
        # Numbers of examples; of labels at positions, the share of an example's.
        self._same = torch.zeros(shape, dtype=torch.float64, device=device)
        self._right = torch.zeros(shape, dtype=torch.float64, device=device)
        # Examples of each curve with a true label at some position.
        self._known = [0] * len(self._curves)
        self.examples = 0
        self._labelled = True

    def add(self, inputs: Tensor, truth: Tensor | None) -> None:
        """Measure one batch: inputs [n, ...], true labels [n, ...] or None."""
        left = self._layer_examples - self.examples
        if 0 < left < len(inputs):
            self.add(inputs[:left], None if truth is None else truth[:left])
            self.add(inputs[left:], None if truth is None else truth[left:])
            return
        with self._prefix.recording():
            scores = self._predictor.scores(inputs)
        if not torch.isfinite(scores).all():
            raise UnsupportedNetworkError(
                f"{self._predictor.name} gives scores that are not finite for examples "
                f"{self.examples} to {self.examples + len(inputs) - 1}; it has no labels there"
            )
        scoring = self._scoring
        labels = scoring.labels_of(scores)
        if scoring.continuous:
            truth = None
        if truth is not None:
            truth = scoring.truth(truth, labels.shape[1])
        self._labelled = self._labelled and truth is not None
        self.examples += len(inputs)
        for curve in range(len(self._curves) if left > 0 else 1):
            if truth is not None:
                self._known[curve] += int((~scoring.right(labels, truth).isnan()).sum())
            for order, step, masks in self._ablations(curve):
                predicted = self._ablated(inputs, curve, masks) if masks else labels
                # Everything ablated is the same in every order: measured once, counted for each.
                orders = slice(None) if step in (0, self._steps) else order
                self._same[curve, orders, step] += scoring.shares(labels, predicted).sum()
                if truth is not None:
                    self._right[curve, orders, step] += scoring.right(predicted, truth).nansum()

    def _ablations(self, curve: int) -> Iterator[tuple[int, int, dict[str, Tensor]]]:
        """Order, step and masks of each run that a curve needs on a batch."""
        for step in range(self._steps + 1):
            for order in range(1 if step in (0, self._steps) else self._orders):
                yield (
                    order,
                    step,
                    {
                        name: self._ranks[name][order] < step * self._units[name] // self._steps
                        for name in (self._curves[curve] if step else ())
                    },
                )

    def _ablated(self, inputs: Tensor, curve: int, masks: dict[str, Tensor]) -> Tensor:
        """Labels [n, places] of the ablated network."""
        with self._prefix.replaying(self._curves[curve][0]), ablate(self._predictor.network, masks):
            return self._predictor.labels(inputs)

    def curve(self, number: int, name: str, units: int) -> AblationCurve:
        """The curve of the network (0) or of a layer (1, 2, ...)."""
        row = number if number < len(self._curves) else 0
        examples = min(self.examples, self._layer_examples) if row else self.examples
        return AblationCurve(
            name=name,
            units=units,
            examples=examples,
            agreement=_shares(self._same[row], examples),
            accuracy=self._accuracies(row),
        )

    def accuracy(self) -> float | None:
        """Of the unmodified network."""
        found = self._accuracies(0)
        return None if found is None else found[0][0]

    def _accuracies(self, row: int) -> tuple[tuple[float, ...], ...] | None:
        known = self._known[row]
        return _shares(self._right[row], known) if self._labelled and known else None


def _shares(counts: Tensor, examples: int) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(count / examples for count in order) for order in counts.tolist())
