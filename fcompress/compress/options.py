"""What `shrink` can be asked for, checked in one place."""

from __future__ import annotations

from fcompress.compress.allocation import OBJECTIVES
from fcompress.compress.methods import METHODS

POLISH_SECONDS = 60.0


def check(
    tol: float | None,
    ratio: float | None,
    max_macs: int | None,
    calibration: int | None,
    confidence: float,
) -> None:
    """Refuse numbers that are out of their range."""
    if tol is not None and not 0 <= tol < 1:
        raise ValueError(f"tol={tol}: expected a share of labels in [0, 1)")
    if tol is None and ratio is None and max_macs is None:
        raise ValueError("nothing to aim at: give tol, ratio or max_macs")
    if ratio is not None and not 0 < ratio <= 1:
        raise ValueError(f"ratio={ratio}: expected a share of the MACs in (0, 1]")
    if max_macs is not None and max_macs < 1:
        raise ValueError(f"max_macs={max_macs}: expected at least 1")
    if calibration is not None and calibration < 2:
        raise ValueError(f"calibration={calibration}: expected at least 2 examples")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence}: expected a number in (0, 1)")


def check_choices(method: str, objective: str, round_to: int | str, polish_seconds: float) -> None:
    """Refuse choices that there are not."""
    if method not in METHODS:
        raise ValueError(f"method={method!r}: expected one of {', '.join(METHODS)}")
    if objective not in OBJECTIVES:
        raise ValueError(f"objective={objective!r}: expected one of {', '.join(OBJECTIVES)}")
    if round_to != "auto" and (not isinstance(round_to, int) or round_to < 1):
        raise ValueError(f'round_to={round_to!r}: expected a whole number from 1 on, or "auto"')
    if not 0 < polish_seconds < float("inf"):
        raise ValueError(f"polish_seconds={polish_seconds}: expected a number above 0")
