"""The network of a size that is asked for: multiply-adds, parameters, bytes, milliseconds.

What is counted is counted on the network itself, excised as it will be. Latencies are measured on
it, on its device, in batches of the size that was said, taking turns with the original; a busy
machine measures another one each time, so that the network may be another one each time, too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fcompress.certify.agreement import compare
from fcompress.certify.fixed_sequence import Candidate
from fcompress.compress.search import CandidateBuilder, Found, lattice
from fcompress.errors import ToleranceError
from fcompress.forward import cost, timing
from fcompress.showing.progress import Progress

# How a limit is called, in words.
UNITS = {
    "macs": "MACs",
    "params": "parameters",
    "bytes": "bytes of parameters and buffers",
    "latency": "ms",
}
# Refitted networks that may miss a latency before that is said: their measurements vary.
TRIES = 3


@dataclass(frozen=True)
class Target:
    """What a network may cost at most; None for any.

    Attributes:
        macs: Multiply-adds for one example.
        params: Numbers in its parameters.
        bytes: Of its parameters and buffers. A file is some kilobytes larger.
        latency: Median milliseconds of a batch.
        ratio: At most this share of what the original has of `share_of`.
        share_of: A key of `UNITS`.
        batch: Examples of a batch whose latency counts.
    """

    macs: int | None = None
    params: int | None = None
    bytes: int | None = None
    latency: float | None = None
    ratio: float | None = None
    share_of: str = "macs"
    batch: int = 64

    def limits(self, before: dict[str, float]) -> dict[str, float]:
        """What each cost may be at most, of those that are limited.

        Args:
            before: Costs of the original, by the keys of `UNITS`.
        """
        found: dict[str, float] = {
            name: getattr(self, name) for name in UNITS if getattr(self, name) is not None
        }
        if self.ratio is not None:
            most = self.ratio * before[self.share_of]
            if self.share_of != "latency":
                most = int(most)
            found[self.share_of] = min(most, found.get(self.share_of, math.inf))
        return found

    @property
    def timed(self) -> bool:
        """Whether a latency is limited."""
        return self.latency is not None or (self.ratio is not None and self.share_of == "latency")


@dataclass(frozen=True)
class FoundOfSize(Found):
    """The network of a size.

    Attributes:
        target: {"limits": , "before": , "reached": , "batch": }, what was limited and what the
            original and the compressed network have of it.
    """

    target: dict[str, Any] | None = None


def of_size(builder: CandidateBuilder, target: Target, confidence: float) -> FoundOfSize:
    """The largest network of the removal order within a size; only that one is refitted.

    Args:
        builder: Makes networks.
        target: The size.
        confidence: Of the bound on its changed labels.

    Raises:
        ToleranceError: Even the smallest network is larger.
    """
    costs = _Costs(builder, target.batch)
    original = builder.context.original
    before = costs.of([original.network], timed=target.timed)[0]
    limits = target.limits(before)
    _check_reachable(costs, before, limits, target)
    counted = {name: most for name, most in limits.items() if name != "latency"}

    def fits(removed: int) -> bool:
        found = costs.counted(removed)
        return all(found[name] <= most for name, most in counted.items())

    removed = _first(range(builder.steps + 1), fits)
    points = [removed]
    if target.timed:
        points += [point for point in lattice(builder.steps) if point > removed]
        points = points[_first(points, lambda n: costs.timed(n) <= limits["latency"]) :]
    for point in points[:TRIES]:
        candidate = _made(builder, point)
        reached = costs.of([original.network, candidate.model], timed=target.timed)[1]
        if not target.timed or reached["latency"] <= limits["latency"]:
            break
    else:
        raise ToleranceError(
            f"at most {limits['latency']:.3g} ms cannot be held: {TRIES} networks that should take "
            f"no longer took up to {reached['latency']:.3g} when they were measured again; measure "
            "on a machine that does nothing else, or ask for more"
        )
    agreement = compare(
        original, original.of(candidate.model), builder.roles.certification, confidence
    )
    record = {
        "limits": limits,
        "before": {name: before[name] for name in limits},
        "reached": {name: reached[name] for name in limits},
        "batch": target.batch if target.timed else None,
    }
    return FoundOfSize(candidate, agreement, builder.tried, 1, target=record)


def _made(builder: CandidateBuilder, removed: int) -> Candidate:
    if builder.distill_effort is None:
        return builder.make(removed)
    return builder.make_distilled(removed)


def _first(points: Sequence[int], fits: Callable[[int], bool]) -> int:
    """Number of the first point that fits, as all after it do; the last one if none does."""
    low, high = 0, len(points) - 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(points[middle]) else (middle + 1, high)
    return low


def _check_reachable(
    costs: _Costs, before: dict[str, float], limits: dict[str, float], target: Target
) -> None:
    smallest = costs.smallest(timed=target.timed)
    for name, most in limits.items():
        if smallest[name] <= most:
            continue
        said = {key: _said(name, value) for key, value in (("most", most), ("it", smallest[name]))}
        for_batch = f" for {target.batch} examples" if name == "latency" else ""
        raise ToleranceError(
            f"at most {said['most']} {UNITS[name]}{for_batch} cannot be reached: with the fewest "
            f"units in each group {said['it']} remain (of {_said(name, before[name])}); ask for "
            "more"
        )


def _said(name: str, value: float) -> str:
    return f"{value:.3g}" if name == "latency" else f"{value:.0f}"


class _Costs:
    """What networks of a removal order cost, counted or measured once each."""

    def __init__(self, builder: CandidateBuilder, batch: int) -> None:
        self._builder = builder
        self._example = _batch_of(builder, batch)
        self._counted: dict[int, dict[str, float]] = {}
        self._timed: dict[int, float] = {}

    def counted(self, removed: int) -> dict[str, float]:
        """All but the latency of the network without so many units."""
        if removed not in self._counted:
            self._counted[removed] = self.of([self._thin(removed)], timed=False)[0]
        return self._counted[removed]

    def timed(self, removed: int) -> float:
        """Milliseconds that it takes."""
        if removed not in self._timed:
            original = self._builder.context.original.network
            found = self.of([original, self._thin(removed)], timed=True)[1]["latency"]
            line = f"{removed} of {self._builder.steps} units removed: {found:.3g} ms"
            self._builder.report(Progress(line, line=line))
            self._timed[removed] = found
        return self._timed[removed]

    def smallest(self, *, timed: bool) -> dict[str, float]:
        """Of the network with the fewest units."""
        steps = self._builder.steps
        return {**self.counted(steps), **({"latency": self.timed(steps)} if timed else {})}

    def of(self, networks: Sequence[nn.Module], *, timed: bool) -> list[dict[str, float]]:
        """Costs of networks, which take turns where they are timed."""
        context = self._builder.context
        found: list[dict[str, float]] = []
        for network in networks:
            counts = cost.count(context.original.of(network), context.batches[0])
            held = sum(t.nbytes for t in [*network.parameters(), *network.buffers()])
            found.append({"macs": counts.macs, "params": counts.params, "bytes": held})
        if timed:
            predictors = [context.original.of(network) for network in networks]
            times = timing.latency(predictors, self._example)
            found = [{**one, "latency": ms} for one, ms in zip(found, times, strict=True)]
        return found

    def _thin(self, removed: int) -> nn.Module:
        # Weights before refitting: they have the shapes that count.
        return self._builder.context.thin(self._builder.kept(removed)).network


def _batch_of(builder: CandidateBuilder, size: int) -> Tensor:
    """A batch of so many calibration examples, again from the first where there are fewer."""
    inputs = torch.cat(list(builder.context.batches))
    return inputs[torch.arange(size) % len(inputs)]
