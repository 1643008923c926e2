"""A result of `shrink` with chosen numbers, without a network."""

from dataclasses import replace
from typing import Any

from torch import nn

from fcompress.certify.agreement import AgreementResult
from fcompress.certify.screening import Copies
from fcompress.compress.result import LayerChange, ShrinkResult


def agreement(changed: int, n: int, bound: float, **changes: Any) -> AgreementResult:
    """So many changed labels, and an upper bound on their share."""
    found = AgreementResult(n, n - changed, (n - changed) / n, 1 - bound, 0.95, 0.5, 0.1, None)
    return replace(found, **changes)


def shrunk(**changes: Any) -> ShrinkResult:
    """5 of 300 labels changed; a tolerance of 5% is certified."""
    found = ShrinkResult(
        model=nn.Identity(),
        method="hybrid",
        objective="macs",
        round_to=1,
        distill=None,
        tolerance=0.05,
        certified=True,
        agreement=agreement(5, 300, 0.0349),
        tested=1,
        copies=Copies(0, 0, 0, 0),
        warnings=(),
        test=None,
        params={"before": 1000, "after": 250},
        macs={"before": 2000, "after": 1},
        bytes={"before": 4000, "after": 0},
        latency_ms={"before": 2.0, "after": 1.0},
        latency_single_ms={"before": 0.0, "after": 1.0},
        accuracy=None,
        layers=(LayerChange("fc1", 128, 32, None), LayerChange("out", 10, 10, "output layer")),
        skipped=({"name": "out", "reason": "output layer"},),
        candidates=(
            {"removed": 96, "macs": 500, "changed": 4, "n": 200},
            {"removed": 64, "macs": 900, "changed": 1, "n": 200},
        ),
        calibration=100,
        data={},
        seed=0,
        versions={},
    )
    return replace(found, **changes)
