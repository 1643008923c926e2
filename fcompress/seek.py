"""From a family of thin networks to one: the thinnest within a tolerance, or of a given size."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from fcompress import cost
from fcompress.agreement import AgreementResult, most_changes, reference_labels, verify
from fcompress.capture import placed
from fcompress.errors import ToleranceError
from fcompress.excise import excise
from fcompress.methods import Context, Method
from fcompress.polishing import HELD_OUT_MOST, polish
from fcompress.roles import Roles, batches_of
from fcompress.search import Candidate, Say, certify, measure, sequence_to_test, thinner, thinnest
from fcompress.selection import Family

# Polishing learns from all calibration examples, up to so many and so many bytes of them.
POLISH_EXAMPLES = 8192
POLISH_BYTES = 1 << 30
# Multiples that `round_to="auto"` chooses from, and how much slower it may be by accident.
MULTIPLES = (1, 2, 4, 8, 16)
JITTER = 1.03
TIMED_EXAMPLES = 64


@dataclass(frozen=True)
class Found:
    """The network that was looked for.

    Attributes:
        candidate: The network.
        agreement: On the certification split.
        tried: Every network that was compared on the search split.
        tested: How many met the certification split.
    """

    candidate: Candidate
    agreement: AgreementResult
    tried: list[Candidate]
    tested: int


@dataclass
class Workshop:
    """Makes the networks of a family and measures each on the search split.

    Attributes:
        context: The wide network with all that belongs to it.
        method: Makes networks.
        family: Which units they keep.
        roles: The data.
        say: Called with a line for each network.
        multiple: Numbers of units are rounded up to multiples of this.
        polish_seconds: Most seconds to polish one network; None to polish none.
        tried: Every network so far.
    """

    context: Context
    method: Method
    family: Family
    roles: Roles
    say: Say
    multiple: int = 1
    polish_seconds: float | None = None
    tried: list[Candidate] = field(default_factory=list)

    @cached_property
    def reference(self) -> Tensor:
        """Labels of the wide network on the search split."""
        return reference_labels(self.context.model, (x for x, _ in self.roles.search))

    @cached_property
    def lessons(self) -> list[Tensor]:
        """Batches to polish on."""
        first = self.roles.calibration.first(1)
        affordable = max(1, POLISH_BYTES // (first.numel() * first.element_size()))
        inputs = self.roles.calibration.first(min(POLISH_EXAMPLES, affordable))
        return [placed(self.context.model, batch) for batch in batches_of(inputs)]

    @cached_property
    def exam(self) -> list[Tensor]:
        """Batches that decide which state of polishing is kept; nothing was fitted to them."""
        inputs = self.roles.search.first(HELD_OUT_MOST)
        return [placed(self.context.model, batch) for batch in batches_of(inputs)]

    @property
    def steps(self) -> int:
        """How many units can go in all."""
        return len(self.family.prices)

    def kept(self, removed: int) -> dict[str, Tensor]:
        """Kept units of each group when `removed` units are gone, apart from rounding."""
        return self.family.kept(removed, self.multiple)

    def macs(self, removed: int) -> int:
        """Multiply-adds of the network without `removed` units, without refactoring it."""
        thin = excise(
            self.context.model, self.context.structure.groups, self.kept(removed), share=True
        )
        return cost.count(thin, self.context.batches[0]).macs

    def make(self, removed: int) -> Candidate:
        """Build the network without `removed` units and measure it."""
        return self._measured(removed, polished=False)

    def make_polished(self, removed: int) -> Candidate:
        """The same, polished."""
        return self._measured(removed, polished=True)

    def _measured(self, removed: int, *, polished: bool) -> Candidate:
        kept = self.kept(removed)
        thin = self.method.make(self.context, kept)
        record = None
        if polished:
            assert self.polish_seconds is not None
            done = polish(
                self.context.model,
                thin,
                self.lessons,
                held_out=self.exam,
                seconds=self.polish_seconds,
                seed=self.context.seed,
            )
            thin, record = done.model, done.to_dict()
        macs = cost.count(thin, self.context.batches[0]).macs
        found = measure(
            removed, kept, thin, macs, (x for x, _ in self.roles.search), self.reference
        )
        found = replace(found, polish=record)
        self.tried.append(found)
        self.say(
            f"{removed} of {self.steps} units removed{' and polished' if polished else ''}: "
            f"{macs / max(self.context.macs, 1):.1%} of MACs, "
            f"{found.changed} of {found.n} labels changed"
        )
        return found


def within(shop: Workshop, tol: float, confidence: float) -> Found:
    """The thinnest network within the tolerance.

    Raises:
        ToleranceError: None can be certified.
    """
    n = len(shop.roles.certification)
    most = most_changes(n, tol, confidence)

    def passes(candidate: Candidate) -> bool:
        return candidate.changed * n <= most * candidate.n

    good = thinnest(shop.family, shop.make, passes)
    if shop.polish_seconds is not None:
        low = max((c.removed for c in good), default=0)
        failed = [c.removed for c in shop.tried if c.removed > low]
        high = min(failed, default=shop.steps + 1)
        good += thinner(shop.steps, low, high, shop.make_polished, passes)
    sequence = sequence_to_test(good)
    shop.say(f"certifying on {n} examples")
    passed, results = certify(
        shop.context.model, sequence, shop.roles.certification, tol, confidence
    )
    if passed is None:
        least = min(shop.tried, key=lambda c: c.changed, default=None)
        seen = (
            "no candidate could be built"
            if least is None
            else f"the mildest change tried altered {least.changed} of {least.n} labels"
        )
        if results:
            seen = (
                f"the best candidate changed {results[0].changed} of {n} certification labels, "
                f"which bounds the change only by {results[0].upper_bound:.2%}"
            )
        raise ToleranceError(
            f"no thinner network keeps the labels within a tolerance of {tol:g} by this method: "
            f"{seen}; choose a larger tolerance, another method, or bring more data"
        )
    return Found(*passed, shop.tried, len(results))


def of_size(shop: Workshop, wanted: int, confidence: float) -> Found:
    """The network of a family with at most `wanted` MACs; only that one is refactored.

    Raises:
        ToleranceError: Even the thinnest has more.
    """
    low, high = 0, shop.steps
    if shop.macs(high) > wanted:
        raise ToleranceError(
            f"at most {wanted} MACs cannot be reached: with the fewest units in each group "
            f"{shop.macs(high)} remain; ask for more"
        )
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if shop.macs(middle) <= wanted else (middle + 1, high)
    candidate = shop.make(low) if shop.polish_seconds is None else shop.make_polished(low)
    agreement = verify(
        shop.context.model, candidate.model, shop.roles.certification, confidence=confidence
    )
    return Found(candidate, agreement, shop.tried, 1)


def best_multiple(context: Context, family: Family) -> int:
    """The largest multiple of units that costs no time on this device.

    Networks that are half way down the family, rounded up to each of `MULTIPLES`, are timed in
    turns. More units for the same time change fewer labels.
    """
    groups = context.structure.groups
    half = len(family.prices) // 2
    thin = [
        excise(context.model, groups, family.kept(half, multiple), share=True)
        for multiple in MULTIPLES
    ]
    example = torch.cat(list(context.batches[:1]))[:TIMED_EXAMPLES]
    times = cost.latency(thin, example)
    limit = JITTER * min(times)
    return max(m for m, time in zip(MULTIPLES, times, strict=True) if time <= limit)
