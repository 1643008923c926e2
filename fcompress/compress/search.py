"""From a family of thin networks to one: the thinnest within a tolerance, or of a given size."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from fcompress.certify.agreement import AgreementResult, changed_labels, reference_labels, verify
from fcompress.certify.bounds import most_changes
from fcompress.certify.fixed_sequence import Candidate, Say, certify, sequence_to_test
from fcompress.compress.allocation import Family
from fcompress.compress.distill import HELD_OUT_MOST, polish
from fcompress.compress.methods import Context, Method
from fcompress.data.roles import Roles, batches_of
from fcompress.errors import ToleranceError
from fcompress.forward import cost
from fcompress.forward.running import placed
from fcompress.surgery.excision import excise

STEPS = 9
POLISHED_STEPS = 5
STRIDE = 0.75  # share of the remaining units that a polished network is tried with next
RUNGS = (1 / 2, 1 / 4, 1 / 8)  # milder networks to have: how far back to the whole one, logarithmic
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


def thinnest(
    family: Family,
    make: Callable[[int], Candidate],
    passes: Callable[[Candidate], bool],
    *,
    steps: int = STEPS,
) -> list[Candidate]:
    """Bisect the number of removed units.

    The share that *remains* is halved on a logarithmic scale, so that very thin networks are
    found as precisely as wide ones. The thinnest is at the edge by construction and often fails
    the certificate, so milder ones are built as well: a few rungs on the way back to the whole
    network, unless the bisection came by there, and with steps that are left the next ones.

    Args:
        family: Nested choices.
        make: Builds and measures the network with that many units removed.
        passes: Whether a candidate is good enough.
        steps: Most candidates to build, rungs apart.

    Returns:
        The candidates that pass, mildest first; empty if none does.
    """
    total = len(family.prices)
    low, high = 0, total + 1
    good: list[Candidate] = []
    left = steps
    while left and high - low > 1:
        left -= 1
        remaining = math.sqrt((total - low + 1) * (total - high + 2))
        middle = min(max(total + 1 - round(remaining), low + 1), high - 1)
        candidate = make(middle)
        if passes(candidate):
            good.append(candidate)
            low = middle
        else:
            high = middle

    def back(share: float) -> int:
        return total + 1 - round((total + 1 - low) ** (1 - share) * (total + 1) ** share)

    tried = {candidate.removed for candidate in good}
    rungs = {
        back(share)
        for share in RUNGS
        if not any(back(share * 1.4) <= removed <= back(share / 1.4) for removed in tried)
    }
    rungs -= {0, low}
    rest = [n for n in range(low - 1, 0, -1) if n not in tried | rungs]
    good += [c for c in map(make, [*sorted(rungs), *rest[:left]]) if passes(c)]
    return sorted(good, key=lambda c: c.removed)


def thinner(
    total: int,
    low: int,
    high: int,
    make: Callable[[int], Candidate],
    passes: Callable[[Candidate], bool],
    *,
    steps: int = POLISHED_STEPS,
) -> list[Candidate]:
    """Go on with networks that are dear to make and better than those tried so far.

    Strides from the thinnest that passed until one fails, then one step half way back.

    Args:
        total: Units that can go in all.
        low: Units removed from the thinnest network that passed, 0 if none did.
        high: The fewest removed units that did not pass.
        make: Builds and measures the better network with that many units removed.
        passes: Whether a candidate is good enough.
        steps: Most candidates to build.

    Returns:
        Those that pass, mildest first.
    """
    good: list[Candidate] = []
    for left in range(steps, 0, -1):
        # The first stride goes at least as far as what did not pass before.
        wanted = total + 1 - round((total + 1 - low) * STRIDE)
        wanted = min(max(wanted, low + 1, 0 if good else min(high, total)), total)
        if wanted <= low:
            break
        candidate = make(wanted)
        if passes(candidate):
            good.append(candidate)
            low = wanted
            continue
        middle = total + 1 - round(math.sqrt((total + 1 - low) * (total + 1 - wanted)))
        if left > 1 and low < middle < wanted:
            candidate = make(middle)
            good += [candidate] if passes(candidate) else []
        break
    return good


def measure(
    removed: int,
    kept: dict[str, Tensor],
    model: nn.Module,
    macs: int,
    batches: Iterable[Tensor],
    reference: Tensor,
) -> Candidate:
    """Compare a thin network's labels with the wide network's."""
    changed, n = changed_labels(model, batches, reference)
    return Candidate(removed, kept, model, macs, changed, n)
