"""What a network's changes on the search split let expect of its certificate."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

from fcompress.certify.bounded_mean import expected_bound
from fcompress.certify.bounds import most_changes
from fcompress.certify.fixed_sequence import Candidate

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
