"""Examples that are nearly the same: one picture saved twice, neighbouring frames, added noise.

Of each example 32 numbers are kept, sums of its values with random signs (a count sketch: Charikar,
Chen and Farach-Colton 2002), whose distances are those of the examples to about an eighth. Two
examples are near-copies if they are far closer than the data's own nearest neighbours are. That
finds what was copied and changed a little. Crops, mirror images and other augmentations of one
picture are as far from each other as different pictures are, and are not found.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

WIDTH = 32
# Near: within this share of the median distance of two examples, and of the distance at which
# nearest neighbours are expected, among all and around the examples at hand: of a class of nearly
# blank pictures all are near each other.
OF_TYPICAL, OF_NEAREST = 0.05, 0.15
# Chance alone may give so many times as many without a word.
BEYOND_CHANCE = 10.0
# The reference: third neighbours within a sample so small that three copies seldom meet in it. Of
# points spread smoothly in d dimensions, c x^d for the distance x to the third has the distribution
# Gamma(3), with this median, and the logarithm of the tenth distance over the third the mean
# (1/3 + ... + 1/9) / d (Levina and Bickel 2004).
LEAST, SAMPLE, SAMPLE_SHARE, FEWEST = 40, 256, 16, 320
NEIGHBOUR, FARTHER = 3, 10
MEDIAN = 2.674
HARMONIC = sum(1 / i for i in range(NEIGHBOUR, FARTHER))
# In fewer dimensions than this, neighbours are near by chance.
LOWEST = 2.5
ROWS_AT_ONCE = 4096
# Where more than this share of the other points have a neighbour within so many times the
# distance, neighbours are near by nature.
BESIDE, MOST_BESIDE = 3.0, 0.15
# How much farther than near the members of one component may be from its first.
CHAIN = 1.3
# Candidates: examples are sorted so many times by cells of a few sketch numbers, and compared with
# so many of those behind them.
TABLES, CELL_NUMBERS, BEHIND = 12, 4, 8

Floats = NDArray[np.float32]
Flags = NDArray[np.bool_]


class Sketches:
    """32 numbers of each example."""

    def __init__(self) -> None:
        self._signs: Tensor | None = None
        self._parts: list[Floats] = []

    def add(self, inputs: Tensor) -> None:
        """Take up a batch [n, ...]; whole numbers other than bytes are names, and have none."""
        if not inputs.is_floating_point() and inputs.dtype != torch.uint8:
            return
        values = inputs.detach().cpu().reshape(len(inputs), -1).float().nan_to_num()
        if self._signs is None or len(self._signs) != values.shape[1]:
            generator = torch.Generator().manual_seed(0)
            self._signs = torch.randint(0, 2, (values.shape[1],), generator=generator) * 2.0 - 1
        signed = values * self._signs
        padded = torch.nn.functional.pad(signed, (0, -signed.shape[1] % WIDTH))
        self._parts.append(padded.view(len(inputs), -1, WIDTH).sum(1).numpy())

    def all(self) -> Floats:
        """[examples, 32], or fewer where there are none."""
        return np.concatenate(self._parts) if self._parts else np.zeros((0, WIDTH), np.float32)


@dataclass(frozen=True)
class Near:
    """Near-copies among the examples that are asked about.

    Attributes:
        shared: bool [asked], near one of the other examples, perhaps by way of a third.
        repeated: bool [asked], near an earlier one that is asked about, and none of the others.
    """

    shared: Flags
    repeated: Flags


def near_copies(others: Floats, asked: Floats) -> Near:
    """Find near-copies.

    Args:
        others: Sketches of examples that they must not be near to, [n, 32].
        asked: Sketches of the examples that are asked about, [m, 32], no two of all the same.

    Returns:
        What was found; nothing where the data is so dense that neighbours are near by chance, or
        where there are too few examples to tell.
    """
    none = Near(np.zeros(len(asked), bool), np.zeros(len(asked), bool))
    points = np.concatenate([others, asked]).astype(np.float64)
    usual = _Usual.of(points)
    if usual is None:
        return none
    one, other = _within(points, usual, 1.0)
    labels = _components(len(points), one, other)
    labels, chained = _without_chains(points, labels, usual)
    members = np.isin(labels, labels[labels != np.arange(len(points))])
    if not members.any() or chained >= members.sum():
        return none
    # Copies stand out: others have no neighbours that are almost as near.
    one, other = _within(points, usual, BESIDE)
    beside = np.zeros(len(points), bool)
    beside[one] = beside[other] = True
    if (beside & ~members).sum() > MOST_BESIDE * (~members).sum():
        return none
    touched = np.zeros(len(points), bool)
    touched[labels[: len(others)]] = True
    of_asked = labels[len(others) :]
    shared = touched[of_asked]
    repeated = ~shared & (of_asked != np.arange(len(others), len(points)))
    if int((shared | repeated).sum()) <= BEYOND_CHANCE * usual.chance * len(asked):
        return none
    return Near(shared, repeated)


@dataclass(frozen=True)
class _Usual:
    """How far apart examples are.

    Attributes:
        sample: Some of them, [size, 32].
        shrinks: The expected distance of the nearest of all, as a share of that of the third
            nearest in the sample.
        radius: Within which near-copies are.
        chance: The share of examples that have a neighbour so near by chance.
    """

    sample: NDArray[np.float64]
    shrinks: float
    radius: float
    chance: float

    @classmethod
    def of(cls, points: NDArray[np.float64]) -> _Usual | None:
        """Of these points; None where there are too few, copies by the dozen, or dense."""
        if len(points) < FEWEST:
            return None
        size = min(SAMPLE, max(LEAST, len(points) // SAMPLE_SHARE))
        sample = points[np.random.default_rng(0).permutation(len(points))[:size]]
        distances = _distances(sample, sample)
        typical = float(np.median(distances[np.triu_indices(size, 1)]))
        np.fill_diagonal(distances, np.inf)
        third, tenth = np.sort(distances, 1)[:, [NEIGHBOUR - 1, FARTHER - 1]].T
        # Medians, not means: a few may have met three copies of theirs.
        spread = float(np.median(tenth / np.maximum(third, 1e-30)))
        dimension = HARMONIC / max(math.log(spread), 1e-9)
        if dimension < LOWEST or np.median(third) <= 0:
            return None
        shrinks = (math.log(2) / MEDIAN * size / len(points)) ** (1 / dimension)
        radius = float(min(OF_TYPICAL * typical, OF_NEAREST * shrinks * np.median(third)))
        chance = math.log(2) * OF_NEAREST**dimension
        return cls(sample, shrinks, radius, chance)

    def nearest(self, points: NDArray[np.float64], rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """The distance at which the nearest neighbour of each of some points is expected."""
        found = [np.zeros(0)]
        for start in range(0, len(rows), ROWS_AT_ONCE):
            part = points[rows[start : start + ROWS_AT_ONCE]]
            # One of them may be the point itself; without it the third would be the second.
            found.append(np.sort(_distances(part, self.sample), 1)[:, NEIGHBOUR])
        return self.shrinks * np.concatenate(found)


def _without_chains(
    points: NDArray[np.float64], labels: NDArray[np.int64], usual: _Usual
) -> tuple[NDArray[np.int64], int]:
    """Components whose points are all near the first; and how many points are in other ones.

    Copies of one example are near each other. Points that lie closely along a curve are near
    their neighbours only, and nobody's copies.
    """
    rows = np.flatnonzero(labels != np.arange(len(points)))
    firsts = labels[rows]
    allowed = CHAIN * OF_NEAREST * usual.nearest(points, firsts)
    far = np.linalg.norm(points[rows] - points[firsts], axis=1) > allowed
    drop = np.isin(labels, firsts[far])
    return np.where(drop, np.arange(len(points)), labels), int(drop.sum())


def _distances(one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    squares = (one**2).sum(1)[:, None] + (other**2).sum(1) - 2 * one @ other.T
    return np.sqrt(np.maximum(squares, 0))


def _within(
    points: NDArray[np.float64], usual: _Usual, times: float
) -> tuple[NDArray[np.int64], ...]:
    """Pairs of points that are near, or within so many times that distance."""
    one, other = _pairs(points, times * usual.radius)
    rows, places = np.unique(np.stack([one, other]), return_inverse=True)
    nearest = usual.nearest(points, rows)[places.reshape(2, -1)].min(0)
    close = np.linalg.norm(points[one] - points[other], axis=1) <= times * OF_NEAREST * nearest
    return one[close], other[close]


def _pairs(points: NDArray[np.float64], radius: float) -> tuple[NDArray[np.int64], ...]:
    """Pairs of points within the radius; few are missed."""
    random = np.random.default_rng(1)
    found: list[list[NDArray[np.int64]]] = [[], []]
    width = 4 * radius
    for _ in range(TABLES):
        numbers = random.permutation(WIDTH)[: CELL_NUMBERS + 1]
        cells = np.floor(points[:, numbers[:-1]] / width + random.random(CELL_NUMBERS))
        key = (cells.astype(np.int64) * random.integers(1, 1 << 40, CELL_NUMBERS)).sum(1)
        order = np.lexsort((points[:, numbers[-1]], key))
        for step in range(1, min(BEHIND, len(points) - 1) + 1):
            one, other = order[:-step], order[step:]
            # Cheap tests first.
            apart = np.abs(points[one, numbers[-1]] - points[other, numbers[-1]])
            close = (key[one] == key[other]) & (apart <= radius)
            one, other = one[close], other[close]
            close = np.linalg.norm(points[one] - points[other], axis=1) <= radius
            found[0].append(one[close])
            found[1].append(other[close])
    return np.concatenate(found[0]), np.concatenate(found[1])


def _components(count: int, one: NDArray[np.int64], other: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each point the first point that it is connected to."""
    labels = np.arange(count)
    while True:
        before = labels.copy()
        lowest = np.minimum(labels[one], labels[other])
        np.minimum.at(labels, one, lowest)
        np.minimum.at(labels, other, lowest)
        labels = labels[labels]
        if np.array_equal(labels, before):
            return labels
