"""Several candidates, one certificate: test them in an order fixed beforehand.

Angelopoulos et al. 2021, "Learn then Test": as long as the order does not depend on the
certification data and testing stops at the first failure, every candidate before it keeps the
confidence of a single test.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from fcompress.certify.agreement import AgreementResult, compare, with_upper_bound
from fcompress.certify.bounded_mean import examples_for_mean
from fcompress.certify.bounds import examples_at, examples_needed
from fcompress.certify.per_label import ByLabel, LabelFare
from fcompress.errors import ToleranceError
from fcompress.forward.predictor import Predictor


@dataclass(frozen=True)
class Candidate:
    """One network of an order of removal.

    Attributes:
        removed: Number of units removed.
        kept: Kept units of each group.
        model: The network.
        macs: Its multiply-adds.
        changed: Changed labels on the search split; of answers in parts, the sum of the shares of
            each example that changed.
        n: Examples of the search split.
        deviation: Standard deviation of these shares; None where there are no parts.
        distill: What distillation did (`Distilled.to_dict`), None for a network as it was refitted.
    """

    removed: int
    kept: dict[str, Tensor]
    model: nn.Module
    macs: int
    changed: float
    n: int
    deviation: float | None = None
    distill: dict[str, Any] | None = None

    @property
    def rank(self) -> int:
        """Of two that pass, the one of the higher rank is taken."""
        return self.removed


def counted(found: Candidate | AgreementResult, noun: str, split: str = "") -> str:
    """How much changed, in words: "3 of 120 search labels"; `noun` as `asked.noun_of` has it."""
    split = f"{split} " if split else ""
    if found.deviation is None:
        return f"{found.changed:.0f} of {found.n} {split}{noun}"
    return f"{found.changed / found.n:.2%} of the {noun} of {found.n:,} {split}examples"


def certify(
    original: Predictor,
    candidates: Sequence[Candidate],
    data: Iterable[tuple[Tensor, Tensor | None]],
    tolerance: float,
    confidence: float,
    label_tolerance: float | None = None,
) -> tuple[tuple[Candidate, AgreementResult] | None, list[AgreementResult]]:
    """Test candidates in a fixed order until one fails.

    Args:
        original: The original network.
        candidates: In an order chosen without looking at `data`.
        data: The certification split.
        tolerance: Largest share of labels that may change.
        confidence: Of the bound.
        label_tolerance: Largest share of each label that may change, of those with enough
            examples; None where nothing is promised of single labels.

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
        if not holds(result, tolerance, label_tolerance):
            break
        if passed is None or candidate.rank > passed[0].rank:
            passed = candidate, result
    if passed is not None:
        bound = proven(results, tolerance, label_tolerance)
        passed = passed[0], with_promise(with_upper_bound(passed[1], bound), label_tolerance)
    return passed, results


def holds(result: AgreementResult, tolerance: float, label_tolerance: float | None = None) -> bool:
    """Whether one network passes: a single test, of all labels and of each.

    A network is beyond what is asked for if all labels together are, or one of them alone. Each
    of these has a test at the full level and all have to be passed, so that such a network passes
    no more often than the test of what it is beyond (`ByLabel.holds`).
    """
    if result.upper_bound > tolerance or label_tolerance is None:
        return result.upper_bound <= tolerance
    return result.by_label is not None and result.by_label.holds(label_tolerance)


def with_promise(result: AgreementResult, label_tolerance: float | None) -> AgreementResult:
    """The same with what is promised of every label."""
    if label_tolerance is None or result.by_label is None:
        return result
    return replace(result, by_label=result.by_label.promised(label_tolerance))


def proven(
    results: Sequence[AgreementResult], tolerance: float, label_tolerance: float | None = None
) -> float:
    """What holds for all candidates that passed, with the confidence of a single bound.

    The bound of the one that is taken is not proven by itself: it was taken because it passed,
    so luck had a say. Where the test ended by a failure, the tolerance is what is proven;
    where all passed, the largest of their bounds is (Hsu and Berger 1999, "Stepwise Confidence
    Intervals without Multiplicity Adjustment": only one fixed candidate can make either wrong, the
    first beyond the tolerance or else the one that changes most labels).

    Args:
        results: Of the candidates that were tested, at least one, in order.
        tolerance: What each was tested for.
        label_tolerance: What each label of each was tested for, if it was.
    """
    if not holds(results[-1], tolerance, label_tolerance):
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
    noun: str = "labels",
) -> str:
    """Why nothing was certified, and what would help, in one line.

    Args:
        tried: Every candidate.
        sequence: Those that were to be tested.
        results: Of those that were: none, or one that failed.
        tolerance: What it was tested for.
        confidence: Of the bound.
        noun: What changed, as `asked.noun_of` has it.
    """
    line = f"no thinner network could be certified within a tolerance of {tolerance:g}: "
    if not tried:
        return line + "every group has one unit left; give a network with more units"
    another = "try another method, or distillation"
    if not results:
        least = min(tried, key=lambda c: c.changed)
        best = counted(least, noun, "search")
        return line + f"of {len(tried)} candidates the best changed {best}; {another}"
    first, result = sequence[0], results[0]
    which = "the only candidate" if len(tried) == 1 else f"of {len(tried)} candidates the mildest"
    line += (
        f"{which} changed {counted(result, noun, 'certification')}, "
        f"which proves {_percent(result.upper_bound)}; "
    )
    rate = (first.changed + result.changed) / (first.n + result.n)
    if result.changed < tolerance * result.n:
        rate = max(rate, result.changed / result.n)
    if result.deviation is None:
        needed = examples_at(rate, tolerance, confidence, more_than=result.n)
    else:
        spread = max(result.deviation, first.deviation or 0.0)
        needed = examples_for_mean(rate, spread, tolerance, confidence, more_than=result.n)
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


class EachLabel:
    """Whether networks look, on the search split, as if the tolerance would hold for every label.

    The certification split is not asked which labels it has enough examples of: the search split
    has the same labels in the same shares.
    """

    def __init__(
        self,
        original: Predictor,
        search: Iterable[tuple[Tensor, Tensor | None]],
        ratio: float,
        tolerance: float,
        confidence: float,
    ) -> None:
        """See that there is something to promise.

        Args:
            original: The original network.
            search: The search split.
            ratio: Certification examples for each search example.
            tolerance: Largest share of each label that may change.
            confidence: Of the certificate.

        Raises:
            ToleranceError: No label will have enough examples.
        """
        self._original, self._search, self._ratio = original, search, ratio
        self._tolerance, self._confidence = tolerance, confidence
        whole = self._by_label(original)
        most = max((one.n for one in whole.labels), default=0) * ratio
        needed = examples_needed(tolerance, confidence)
        if most < needed:
            raise ToleranceError(
                f"a tolerance of {tolerance:g} for every label takes {needed:,} certification "
                f"examples of a label at {confidence:.0%} confidence, and the most frequent "
                f"{whole.word} has about {most:,.0f}; bring more data or choose a larger tolerance "
                "for labels"
            )

    def _by_label(self, network: Predictor) -> ByLabel:
        found = compare(self._original, network, self._search, self._confidence)
        assert found.by_label is not None  # see `per_label.check_labelled`
        return found.by_label

    def __call__(self, candidate: Candidate) -> bool:
        """Whether each label that can be promised changed little enough."""
        network = self._original.of(candidate.model)
        return self._by_label(network).would_hold(self._tolerance, self._ratio)

    def shortfall(self, tested: AgreementResult | None) -> str:
        """What to add to why no network passed: the label that changed most.

        Args:
            tested: Of the mildest network on the certification split; None if none got there.
        """
        said = f"; every label with enough examples has to stay within {self._tolerance:g} too"
        beyond = [] if tested is None else self._beyond(tested)
        if beyond:
            one = beyond[0]
            said += (
                f", and {one.name} changed {one.changed:,} of its {one.n:,}, which bounds its "
                f"change only by {one.bound:.2%}"
            )
        return said

    def _beyond(self, tested: AgreementResult) -> list[LabelFare]:
        return [] if tested.by_label is None else tested.by_label.beyond(self._tolerance)
