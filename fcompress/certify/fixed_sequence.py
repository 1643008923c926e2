"""Several candidates, one certificate: test them in an order fixed beforehand.

Angelopoulos et al. 2021, "Learn then Test": as long as the order does not depend on the
certification data and testing stops at the first failure, every candidate before it keeps the
confidence of a single test.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from fcompress.certify.agreement import AgreementResult, compare, with_upper_bound
from fcompress.forward.predictor import Predictor


@dataclass(frozen=True)
class Candidate:
    """One network of a removal_order.

    Attributes:
        removed: Number of units removed.
        kept: Kept units of each group.
        model: The network.
        macs: Its multiply-adds.
        changed: Changed labels on the search split.
        n: Examples of the search split.
        distill: What distillation did (`Distilled.to_dict`), None for a network as it was refitted.
    """

    removed: int
    kept: dict[str, Tensor]
    model: nn.Module
    macs: int
    changed: int
    n: int
    distill: dict[str, Any] | None = None


def certify(
    original: Predictor,
    candidates: Sequence[Candidate],
    data: Iterable[tuple[Tensor, Tensor | None]],
    tolerance: float,
    confidence: float,
) -> tuple[tuple[Candidate, AgreementResult] | None, list[AgreementResult]]:
    """Test candidates in a fixed order until one fails.

    Args:
        original: The original network.
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
        result = compare(original, original.of(candidate.model), data, confidence)
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
