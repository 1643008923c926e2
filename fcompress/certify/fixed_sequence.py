"""Several candidates, one certificate: test them in an order fixed beforehand.

Angelopoulos et al. 2021, "Learn then Test": as long as the order does not depend on the
certification data and testing stops at the first failure, every candidate before it keeps the
confidence of a single test.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from fcompress.certify.agreement import AgreementResult, compare, with_upper_bound
from fcompress.certify.bounds import examples_at
from fcompress.forward.predictor import Predictor


@dataclass(frozen=True)
class Candidate:
    """One network of an order of removal.

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


def sequence_to_test(
    path: Sequence[Candidate], beyond: Callable[[Candidate], bool]
) -> list[Candidate]:
    """Which candidates meet the certificate, mildest first.

    Starting further on would save runs, but a first candidate that fails by bad luck takes all
    the others with it. For the same reason a candidate does not take part if the next thinner one
    changed clearly fewer labels, by more than two standard deviations. It is compared with the next
    one only: then what a longer path adds at its end changes nothing about the beginning, and the
    sequence of a tighter tolerance is the beginning of that of a looser one.

    Args:
        path: Candidates, mildest first, at most the last of them beyond hope.
        beyond: Whether a candidate is beyond hope.
    """

    def beaten(one: Candidate, following: Candidate) -> bool:
        return following.changed + 2 * math.sqrt(following.changed + 1) < one.changed

    found = [one for one, after in itertools.pairwise(path) if not beaten(one, after)]
    return found + [one for one in path[-1:] if not beyond(one)]


def refusal(
    tried: Sequence[Candidate],
    sequence: Sequence[Candidate],
    results: Sequence[AgreementResult],
    tolerance: float,
    confidence: float,
) -> str:
    """Why nothing was certified, and what would help, in one line.

    Args:
        tried: Every candidate.
        sequence: Those that were to be tested.
        results: Of those that were: none, or one that failed.
        tolerance: What it was tested for.
        confidence: Of the bound.
    """
    line = f"no thinner network could be certified within a tolerance of {tolerance:g}: "
    if not tried:
        return line + "every group has one unit left; give a network with more units"
    another = "try another method, or distillation"
    if not results:
        least = min(tried, key=lambda c: c.changed)
        return line + (
            f"of {len(tried)} candidates the best changed {least.changed} of {least.n} search "
            f"labels; {another}"
        )
    first, result = sequence[0], results[0]
    which = "the only candidate" if len(tried) == 1 else f"of {len(tried)} candidates the mildest"
    line += (
        f"{which} changed {result.changed} of {result.n} certification labels, "
        f"which proves {_percent(result.upper_bound)}; "
    )
    rate = (first.changed + result.changed) / (first.n + result.n)
    if result.changed < tolerance * result.n:
        rate = max(rate, result.changed / result.n)
    needed = examples_at(rate, tolerance, confidence, more_than=result.n)
    if needed is None:
        # Whatever passed first passes at every looser tolerance, since the sequence begins alike.
        return line + (
            f"1 in {round(1 / rate)} changes, so more data would not help; {another}, or a "
            f"tolerance of at least {_percent(result.upper_bound)}"
        )
    return line + (
        f"certifying {100 * tolerance:.4g}% needs about {needed:,} certification examples if "
        f"1 in {round(1 / rate):,} changes; bring more data"
    )


def _percent(bound: float) -> str:
    """Rounded up, so that it holds as it is read."""
    return f"{math.ceil(bound * 1e4 - 1e-9) / 1e4:.2%}"
