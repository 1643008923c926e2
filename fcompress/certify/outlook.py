"""What a network's changes on the search split let expect of its certificate."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

from fcompress.certify.agreement import AgreementResult
from fcompress.certify.bounded_mean import expected_bound
from fcompress.certify.bounds import most_changes
from fcompress.certify.fixed_sequence import Candidate, EachLabel
from fcompress.data.roles import Roles
from fcompress.forward.predictor import Predictor

# What the search split may be wrong by, in standard deviations, before the search ends.
DOUBT = 2.0


@dataclass(frozen=True)
class Outlook:
    """Whether networks look as if they would be certified.

    Of two tolerances, whatever passes at the tighter passes at the looser, and whatever is beyond
    the looser is beyond the tighter: the search hangs on that (`compress/search.py`).

    Attributes:
        n: Certification examples.
        tolerance: Largest share that may change.
        confidence: Of the certificate.
    """

    n: int
    tolerance: float
    confidence: float

    @cached_property
    def most(self) -> int:
        """The most labels of the certification split that may change."""
        return most_changes(self.n, self.tolerance, self.confidence)

    def passes(self, candidate: Candidate) -> bool:
        """Whether the certification split would pass it if it were like the search split."""
        if candidate.deviation is None:
            return candidate.changed * self.n <= self.most * candidate.n
        return self._expected(candidate, candidate.deviation) <= self.tolerance

    def beyond(self, candidate: Candidate) -> bool:
        """Whether it fails even if the search split was unlucky by `DOUBT`."""
        if candidate.deviation is None:
            allowed = self.most * candidate.n / self.n
            return candidate.changed > allowed + DOUBT * math.sqrt(allowed + 1)
        # As for labels, of which the search split may have shown one more by accident.
        error = math.hypot(candidate.deviation / math.sqrt(candidate.n), 1 / candidate.n)
        lucky = self._expected(candidate, candidate.deviation) - DOUBT * error
        return lucky > self.tolerance

    def _expected(self, candidate: Candidate, deviation: float) -> float:
        mean = candidate.changed / candidate.n
        return expected_bound(mean, deviation, self.n, self.confidence)


class Limits:
    """What ends a search: too many changes to look at anything thinner, in all or of one label."""

    def __init__(
        self,
        original: Predictor,
        roles: Roles,
        tolerance: float,
        confidence: float,
        label_tolerance: float | None = None,
    ) -> None:
        """Set what is allowed.

        Args:
            original: The original network.
            roles: The data; only how many certification examples there are is asked of those.
            tolerance: Largest share that may change.
            confidence: Of the certificate.
            label_tolerance: Largest share of each label that may change; None for any.

        Raises:
            ToleranceError: No label will have enough examples to promise anything of it.
        """
        n = len(roles.certification)
        self._outlook = Outlook(n, tolerance, confidence)
        self._keeps_each = None
        if label_tolerance is not None:
            ratio = n / len(roles.search)
            self._keeps_each = EachLabel(original, roles.search, ratio, label_tolerance, confidence)

    def beyond(self, candidate: Candidate) -> bool:
        """Whether a network changes so much that no thinner one is worth a look."""
        if self._outlook.beyond(candidate):
            return True
        return self._keeps_each is not None and not self._keeps_each(candidate)

    def far(self, candidate: Candidate) -> bool:
        """Whether it is beyond by all its changes; unlike `beyond` this runs no network."""
        return self._outlook.beyond(candidate)

    def shortfall(self, result: AgreementResult | None) -> str:
        """What to add to a refusal about single labels; nothing where none was promised."""
        return "" if self._keeps_each is None else self._keeps_each.shortfall(result)
