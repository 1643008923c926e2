"""What a cascade costs: on average, at worst, and in memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fcompress.compress.cascade.search import FoundCascade
from fcompress.forward import cost


@dataclass(frozen=True)
class CascadeGains:
    """What is known of a cascade beside its certificate.

    Attributes:
        threshold: The least margin with which the compressed network's answer stays.
        deferred: Certification examples that the original answers: {"count": , "n": , "share": ,
            "upper_bound": , "confidence": }. The bound on the share of all examples holds with that
            confidence by itself, whichever pair was taken; it and the bound on changed answers both
            hold with at least `confidence_of_both`.
        confidence_of_both: Of the two bounds together: what each may be wrong by, added up.
        macs: Multiply-adds for one example: {"original": , "compressed": , "average": ,
            "average_at_most": , "worst": }. The average is that of the certification examples.
        params: {"original": , "compressed": }; a cascade holds both.
        tested: How many pairs there were to test.
    """

    threshold: float
    deferred: dict[str, float]
    confidence_of_both: float
    macs: dict[str, float]
    params: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return dict(vars(self))


def gains(
    found: FoundCascade, before: cost.Cost, after: cost.Cost, confidence: float
) -> CascadeGains:
    """What a cascade costs.

    Args:
        found: The pair.
        before: Cost of the original.
        after: Cost of the compressed network.
        confidence: Of the certificate.
    """
    share = found.deferred / found.deferred_of
    return CascadeGains(
        threshold=found.threshold,
        deferred={
            "count": found.deferred,
            "n": found.deferred_of,
            "share": share,
            "upper_bound": found.deferred_at_most,
            "confidence": confidence,
        },
        confidence_of_both=max(2 * confidence - 1, 0.0),
        macs={
            "original": before.macs,
            "compressed": after.macs,
            "average": after.macs + share * before.macs,
            "average_at_most": after.macs + found.deferred_at_most * before.macs,
            "worst": after.macs + before.macs,
        },
        params={"original": before.params, "compressed": after.params},
    )
