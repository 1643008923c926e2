"""The search of `bench quality`, the same for every method: which amounts to try.

A method turns an amount in (0, 1) into a network. For each tolerance the largest amount that
keeps enough labels lies between the thinnest network that passes and the mildest thinner one that
does not; the next amount is taken between the two, on a logarithmic scale of what remains. Where
both were measured the place is interpolated (disagreement on a logarithmic scale too), else it is
the middle. All tolerances share what was measured.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

TOLERANCES = (0.2, 0.1, 0.05, 0.02, 0.01)
# Networks to try for each tolerance, in this order: those with a goal first, the others profit.
STEPS: Mapping[float, int] = {0.05: 5, 0.01: 3, 0.2: 2, 0.1: 1, 0.02: 1}
MORE_STEPS: Mapping[float, int] = {0.05: 6, 0.01: 5, 0.2: 3, 0.1: 3, 0.02: 3}
FEW_STEPS: Mapping[float, int] = {0.05: 4, 0.01: 3, 0.2: 1, 0.1: 1, 0.02: 1}
POLISH_STEPS: Mapping[float, int] = {0.05: 3, 0.01: 2}
LEAST = 0.01  # share that remains at the thinnest end
CLOSE = 0.02  # two amounts, or the MACs of their networks, that differ by less are the same
HOPELESS = 2  # first networks that all cannot be made: the method is given up
EDGE = 0.15  # an interpolated place stays that far (of the distance) from both ends


@dataclass(frozen=True)
class Evaluation:
    """One network of a method, on the search split.

    Attributes:
        amount: What it was made with, in (0, 1).
        macs: For one example.
        params: All of its numbers that training sets.
        changed: Labels that differ from the wide network's.
        n: Of so many.
        seconds: To make and to measure it.
        error: Why there is no network; the numbers above are then 0.
    """

    amount: float
    macs: int
    params: int
    changed: int
    n: int
    seconds: float
    error: str | None = None

    def passes(self, tolerance: float) -> bool:
        """Whether the share of changed labels is within the tolerance."""
        return self.error is None and self.changed <= tolerance * self.n + 1e-9

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def search(
    evaluate: Callable[[float], Evaluation],
    steps: Mapping[float, int] = STEPS,
    first: Sequence[float] = (),
) -> list[Evaluation]:
    """Try amounts.

    Args:
        evaluate: Makes and measures the network of an amount.
        steps: How many networks at most for each tolerance.
        first: Amounts to begin with.

    Returns:
        Everything that was tried, in order. Depends on nothing but what `evaluate` returns, so a
        search that was interrupted goes the same way again.
    """
    known = [evaluate(amount) for amount in first]
    for tolerance, most in steps.items():
        for _ in range(most):
            amount = next_amount(known, tolerance)
            if amount is None:
                break
            known.append(evaluate(amount))
            if len(known) == HOPELESS and all(e.error for e in known):
                return known
    return known


def next_amount(known: Sequence[Evaluation], tolerance: float) -> float | None:
    """Where to look next for the thinnest network within a tolerance; None if it is found."""
    low = max((e for e in known if e.passes(tolerance)), key=_depth, default=None)
    floor = 0.0 if low is None else _depth(low)
    above = [e for e in known if not e.passes(tolerance) and _depth(e) > floor]
    high = min(above, key=_depth, default=None)
    top = -math.log(LEAST) if high is None else _depth(high)
    if top - floor < CLOSE:
        return None
    share = 0.5
    if low is not None and high is not None and high.error is None:
        if high.macs > (1 - CLOSE) * low.macs:
            return None
        below, over, aim = _height(low), _height(high), math.log(tolerance)
        share = min(max((aim - below) / (over - below), EDGE), 1 - EDGE)
    return 1 - math.exp(-(floor + share * (top - floor)))


def smallest(known: Sequence[Evaluation], tolerance: float, by: str) -> Evaluation | None:
    """The network with the fewest `by` ("macs" or "params") within the tolerance."""
    good = [e for e in known if e.passes(tolerance)]
    return min(good, key=lambda e: (getattr(e, by), e.changed), default=None)


def _depth(evaluation: Evaluation) -> float:
    return -math.log1p(-evaluation.amount)


def _height(evaluation: Evaluation) -> float:
    """Logarithm of the disagreement, with half a label for none."""
    return math.log(max(evaluation.changed, 0.5) / evaluation.n)
