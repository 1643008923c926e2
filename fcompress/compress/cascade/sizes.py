"""Compressed networks of many sizes, and what each would do in a cascade, on the search split."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from fcompress.cascades.margins import margins
from fcompress.certify.fixed_sequence import Candidate
from fcompress.certify.labels import predicted
from fcompress.forward.predictor import Predictor

# Shares of the MACs that are looked at: each is so much of the one before.
LARGEST, SHRINKING = 0.75, 0.75
SMALLEST = 0.02
# Log-odds beyond which double precision tells no two margins apart.
_CERTAIN = 36.0
# Intercept and slope that are expected beforehand, and the inverse of their variances.
PRIOR, CERTAINTY = (0.0, -1.0), (0.1, 1.0)
_STEPS = 50  # of Newton's method; it takes about ten


@dataclass(frozen=True)
class Size:
    """A compressed network and what it does on the search split.

    Attributes:
        candidate: The network.
        margins: How sure it is of each example, float64 [N]; -1 where it cannot be.
        lost: How much of each example's answer changed, float64 [N].
    """

    candidate: Candidate
    margins: Tensor
    lost: Tensor

    @cached_property
    def thresholds(self) -> Tensor:
        """Half way between neighbouring margins, ascending, float64 [M]; the last one is 2.

        An example is never at a threshold, where rounding would decide who answers.
        """
        found = self.margins.clamp_min(0.0).unique()
        between = (found[1:] + found[:-1]) / 2
        return torch.cat([found.new_zeros(1), between, found.new_full((1,), 2.0)])

    @cached_property
    def deferred(self) -> Tensor:
        """Share of the examples that the original answers, at each threshold: float64 [M]."""
        return self._above(torch.ones_like(self.lost)).neg() + 1

    @cached_property
    def changes(self) -> Tensor:
        """Share of all answers that change, at each threshold: float64 [M].

        The larger of what was counted and of what a logistic regression of the change on the
        margin's log-odds expects: where nothing changed any more it still tells thresholds apart.
        """
        return torch.maximum(self._above(self.lost), self._above(self._expected()))

    def at(self, threshold: float) -> Tensor:
        """How much of each example's answer changes in a cascade: float64 [N]."""
        return torch.where(self.margins >= threshold, self.lost, 0.0)

    def _above(self, values: Tensor) -> Tensor:
        """The sum of values of examples that are not deferred, over all examples."""
        margins, order = self.margins.sort()
        sums = torch.cat([values[order].flip(0).cumsum(0).flip(0), values.new_zeros(1)])
        first = torch.searchsorted(margins, self.thresholds)
        return sums[first] / len(values)

    def _expected(self) -> Tensor:
        """What the regression expects of each example: float64 [N]."""
        odds = log_odds(self.margins)
        slope = logistic(odds, self.lost)
        return torch.sigmoid(slope[0] + slope[1] * odds)


def log_odds(margins: Tensor) -> Tensor:
    """The difference of two logits whose probabilities differ by so much, in nats."""
    sure = margins.clamp(0.0, 1.0)
    return (torch.log1p(sure) - torch.log1p(-sure)).clamp_max(_CERTAIN)


def logistic(odds: Tensor, lost: Tensor) -> tuple[float, float]:
    """Intercept and slope of a logistic regression, the slope at most 0.

    What it knows beforehand is worth about one example (`PRIOR`): that a network is as sure as it
    says, so that odds of a change fall as fast as those of its second choice (a slope of -1), and
    that an answer without a margin is as good as drawn (two more examples, of which one changes).
    That keeps it finite and cautious where no example changed.

    Args:
        odds: float64 [N].
        lost: What share of each example's answer changed, float64 [N].
    """
    odds, lost = torch.cat([odds, odds.new_zeros(2)]), torch.cat([lost, lost.new_tensor([0, 1])])
    inputs = torch.stack([torch.ones_like(odds), odds], 1)
    weights = prior = inputs.new_tensor(PRIOR)
    certain = torch.diag(inputs.new_tensor(CERTAINTY))
    for _ in range(_STEPS):
        expected = torch.sigmoid(inputs @ weights)
        spread = (expected * (1 - expected)).clamp_min(1e-12)
        curvature = inputs.T @ (inputs * spread.unsqueeze(1)) + certain
        uphill = inputs.T @ (lost - expected) - certain @ (weights - prior)
        step = torch.linalg.solve(curvature, uphill)
        step = step * min(1.0, 2.0 / max(float(step.abs().max()), 1e-12))
        weights = weights + step
        if float(step.abs().max()) < 1e-9:
            break
    return float(weights[0]), min(float(weights[1]), 0.0)


def examined(
    candidate: Candidate, predictor: Predictor, batches: Iterable[Tensor], reference: Tensor
) -> Size:
    """What a network does on the search split.

    Args:
        candidate: The network.
        predictor: The same.
        batches: Inputs of the split.
        reference: Answers of the original (`labels.reference_labels`).
    """
    found, sure, done = [], [], 0
    with predictor.evaluating():
        for batch in batches:
            scores = predictor.scores(predictor.place(batch))
            sure.append(margins(predictor.scoring, scores).cpu())
            found.append(predicted(scores, predictor.scoring, done).cpu())
            done += len(scores)
    lost = predictor.scoring.lost(reference, torch.cat(found)).nan_to_num(0.0)
    return Size(candidate, torch.cat(sure).nan_to_num(-1.0), lost)


def spaced(points: Sequence[int], macs: Callable[[int], float]) -> list[int]:
    """Numbers of removed units whose networks are of evenly spaced sizes, in logarithms.

    Args:
        points: Numbers of removed units to choose from, ascending.
        macs: Share of the original's MACs that is left without so many units; falls.
    """
    found: list[int] = []
    share = LARGEST
    low = 0
    while share >= SMALLEST and low < len(points):
        high = len(points)
        first = low
        while first < high:
            middle = (first + high) // 2
            first, high = (first, middle) if macs(points[middle]) <= share else (middle + 1, high)
        if first == len(points):
            break
        found.append(points[first])
        # Where one step removes much, sizes in between do not exist.
        share = min(share, macs(points[first])) * SHRINKING
        low = first + 1
    return found or list(points[-1:])
