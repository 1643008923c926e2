"""How much to remove: the thinnest network of a family that an agreement still allows.

Every candidate is really excised, refactored and compared with the wide network on the search
split. The certificate is given on another split: candidates meet it in an order that the search
split alone decided and the first that fails ends the test, which keeps the confidence of the
bound however many are tried (fixed-sequence testing; Angelopoulos et al. 2021, "Learn then Test").
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from fcompress.agreement import AgreementResult, changed_labels, verify, with_upper_bound
from fcompress.selection import Family

Say = Callable[[str], None]

STEPS = 9
POLISHED_STEPS = 5
STRIDE = 0.75  # share of the remaining units that a polished network is tried with next
RUNGS = (1 / 2, 1 / 4, 1 / 8)  # milder networks to have: how far back to the whole one, logarithmic


@dataclass(frozen=True)
class Candidate:
    """One network of a family.

    Attributes:
        removed: Number of units removed.
        kept: Kept units of each group.
        model: The thin network.
        macs: Its multiply-adds.
        changed: Changed labels on the search split.
        n: Examples of the search split.
        polish: What polishing did (`Polished.to_dict`), None for a network as it was refactored.
    """

    removed: int
    kept: dict[str, Tensor]
    model: nn.Module
    macs: int
    changed: int
    n: int
    polish: dict[str, Any] | None = None


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


def certify(
    wide: nn.Module,
    candidates: Sequence[Candidate],
    data: Iterable[tuple[Tensor, Tensor | None]],
    tolerance: float,
    confidence: float,
) -> tuple[tuple[Candidate, AgreementResult] | None, list[AgreementResult]]:
    """Test candidates in a fixed order until one fails.

    Args:
        wide: The original network.
        candidates: In an order chosen without looking at `data`.
        data: The certification split.
        tolerance: Largest share of labels that may change.
        confidence: Of the bound.

    Returns:
        The thinnest of those that passed, with its agreement, whose bound holds although several
        were tested (None if the first one fails already), and the agreement of every one that was
        tested, with the bound that it would have had alone.
    """
    passed: tuple[Candidate, AgreementResult] | None = None
    results: list[AgreementResult] = []
    for candidate in candidates:
        result = verify(wide, candidate.model, data, confidence=confidence)
        results.append(result)
        if result.upper_bound > tolerance:
            break
        if passed is None or candidate.removed > passed[0].removed:
            passed = candidate, result
    if passed is not None:
        passed = passed[0], with_upper_bound(passed[1], proven(results, tolerance))
    return passed, results


def proven(results: Sequence[AgreementResult], tolerance: float) -> float:
    """What holds for all candidates that passed, with the confidence of a single bound.

    The bound of the one that is taken is not proven by itself: it was taken because it passed,
    so luck had a say. Where the test ended by a failure, the tolerance is what is proven;
    where all passed, the largest of their bounds is (Hsu and Berger 1999, "Stepwise Confidence
    Intervals without Multiplicity Adjustment": only one fixed candidate can make either wrong, the
    first beyond the tolerance or else the one that changes most labels).

    Args:
        results: Of the candidates that were tested, at least one, in order.
        tolerance: What each was tested for.
    """
    if results[-1].upper_bound > tolerance:
        return tolerance
    return max(result.upper_bound for result in results)


def sequence_to_test(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Which candidates meet the certificate, mildest first.

    Starting further on would save runs, but a first candidate that fails by bad luck takes all
    the others with it. For the same reason a candidate does not take part if a thinner one
    changed clearly fewer labels, by more than two standard deviations.
    """

    def beaten(c: Candidate) -> bool:
        return any(
            t.removed > c.removed and t.changed + 2 * math.sqrt(t.changed + 1) < c.changed
            for t in candidates
        )

    return sorted((c for c in candidates if not beaten(c)), key=lambda c: c.removed)
