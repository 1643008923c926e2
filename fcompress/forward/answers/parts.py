"""Answers in parts: a class at each of many positions, of which each may change by itself.

What counts of such an answer is the share of its positions that changed. Positions of one example
are not independent of each other, so a bound is one on the mean of the shares of examples
(`certify/bounded_mean.py`). Where answers have to be remembered, for the search, an example is
remembered by some of its positions, drawn evenly, so that memory does not grow with their number.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

PADDED = -2  # in place of a label, at positions that are not asked for
# Drawn for an example. One in each of as many equal stretches: the share of changed ones is that of
# all positions on average, and off by 0.03 at most (standard deviation) where a twentieth changes.
DRAWN = 64


def kept(labels: Tensor) -> Tensor:
    """Which positions count: bool [n, places]."""
    return labels != PADDED


def same_share(reference: Tensor, found: Tensor) -> Tensor:
    """Share of an example's positions that kept their label.

    Args:
        reference: Labels [n, places], -1 where the outputs are not finite, `PADDED` where none is
            asked for.
        found: Those of another network.

    Returns:
        float64 [n]; nan where an example has no position that counts.
    """
    same = (reference == found) & (reference >= 0)
    return same.double().sum(1) / kept(reference).double().sum(1)


def right_share(given: Tensor, truth: Tensor) -> Tensor:
    """Share of the positions with a true label whose label is true: float64 [n]; nan of none.

    Args:
        given: Labels [n, places].
        truth: True labels, negative where there is none.
    """
    known = kept(given) & (truth >= 0)
    return ((given == truth) & known).double().sum(1) / known.double().sum(1)


def drawn(labels: Tensor, first: int) -> Tensor:
    """The positions that examples are remembered by: [n, at most `DRAWN`].

    All of them if there are no more. Which ones are drawn is a function of the numbers of the
    examples alone, so that it is the same for every network.

    Args:
        labels: [n, places].
        first: Number of the first of these examples among all.
    """
    places = labels.shape[1]
    if places <= DRAWN:
        return labels
    counted = kept(labels)
    sizes = counted.sum(1, keepdim=True).cpu()
    shares = drawn_shares(first * DRAWN, len(labels) * DRAWN).reshape(-1, DRAWN)
    ranks = ((torch.arange(DRAWN) + shares) / DRAWN * sizes).long().clamp_max(places - 1)
    order = (~counted).to(torch.uint8).argsort(dim=1, stable=True)
    return labels.gather(1, order.gather(1, ranks.to(labels.device)))


def drawn_shares(first: int, count: int) -> Tensor:
    """Numbers in [0, 1) that are functions of their own number alone: float64 [count].

    Uniform, and so that they cannot depend on a network (SplitMix64; Steele, Lea and Flood 2014,
    "Fast Splittable Pseudorandom Number Generators").

    Args:
        first: Number of the first; the others follow.
        count: How many.
    """
    with np.errstate(over="ignore"):
        z = (np.arange(first, first + count, dtype=np.uint64) + np.uint64(1)) * np.uint64(
            0x9E3779B97F4A7C15
        )
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    return torch.from_numpy((z >> np.uint64(11)).astype(np.float64) * 2.0**-53)
