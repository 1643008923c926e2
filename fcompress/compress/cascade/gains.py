"""What a cascade costs: on average, at worst, and in memory."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from fcompress.compress.cascade.search import FoundCascade
from fcompress.forward import cost
from fcompress.forward.predictor import Predictor
from fcompress.forward.running import now

SINGLES = 64  # examples that are timed one by one: a deferred one takes both networks
_SECONDS = 4.0


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


def single_latency(networks: Sequence[nn.Module | Predictor], examples: Tensor) -> list[float]:
    """Mean milliseconds of one example alone, the networks taking turns.

    The mean over examples, not the median: a cascade takes little time for most and much for a few.
    Each example is timed three times and counts by its median.

    Args:
        networks: On one device.
        examples: [n, ...]; up to `SINGLES` are timed.
    """
    predictors = [cost.as_predictor(network) for network in networks]
    examples = predictors[0].place(examples[:SINGLES])
    means = [0.0] * len(predictors)
    start, done = time.perf_counter(), 0
    for example in examples.split(1):
        times: list[list[float]] = [[] for _ in predictors]
        for _ in range(3):
            for predictor, mine in zip(predictors, times, strict=True):
                with predictor.evaluating():
                    begin = now(example.device)
                    predictor(example)
                    mine.append(1e3 * (now(example.device) - begin))
        means = [sum + sorted(mine)[1] for sum, mine in zip(means, times, strict=True)]
        done += 1
        if done >= 8 and time.perf_counter() - start > _SECONDS:
            break
    return [total / done for total in means]
