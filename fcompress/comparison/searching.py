"""The search for a rival: how much of the network can go.

An amount in (0, 1) makes a network, a larger one a thinner network. What remains is bisected on a
logarithmic scale, between the thinnest network within the tolerance and the mildest beyond it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

LEAST = 0.01  # share that remains at the thinnest end
CLOSE = 0.01  # what remains is known to within this share
HOPELESS = 2  # first networks that all cannot be made: the method is given up


@dataclass(frozen=True)
class Tried:
    """One network.

    Attributes:
        macs: Multiply-adds for one example; None where it could not be made.
        changed: Search examples whose answer it changes.
        model: The network.
        error: Why it could not be made.
    """

    macs: int | None
    changed: float | None
    model: nn.Module | None = None
    error: str | None = None

    def within(self, most: float) -> bool:
        """Whether there is a network that changes at most so many answers."""
        return self.changed is not None and self.changed <= most

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"macs": self.macs, "changed": self.changed}


def bisect(make: Callable[[float], Tried], most: float, tries: int) -> list[Tried]:
    """Look for the thinnest network that changes at most so many answers.

    Args:
        make: Makes and measures the network of an amount.
        most: So many answers.
        tries: So many networks at most.

    Returns:
        Everything that was tried, in order.

    Example:
        >>> found = bisect(lambda amount: Tried(round(100 * (1 - amount)), 10 * amount), 5, 12)
        >>> min(one.macs for one in found if one.within(5))
        50
    """
    mild, thin = 0.0, -math.log(LEAST)  # logarithms of what remains, negative
    tried: list[Tried] = []
    while len(tried) < tries and thin - mild > CLOSE:
        middle = (mild + thin) / 2
        tried.append(make(1 - math.exp(-middle)))
        if tried[-1].within(most):
            mild = middle
        else:
            thin = middle
        if len(tried) == HOPELESS and all(one.error for one in tried):
            break
    return tried
