"""How much images vary, and whether those of two groups differ (docs/protocol.md section 7)."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

PERMUTATIONS = 20_000
# Ranks drawn at a time: bounds the memory whatever the number of permutations.
CHUNK_VALUES = 2**22
# Midranks are halves, so that equal statistics differ by rounding only.
TIE = 1e-9


@dataclass(frozen=True)
class RankTest:
    """A rank-based permutation test of two groups, two-sided.

    Attributes:
        thin: Values in the first group.
        wide: Values in the second.
        effect: Rank-biserial correlation, P(wide > thin) - P(wide < thin) of a value drawn from
            each group: 1 where all of the second lie above all of the first, -1 the reverse.
        superiority: Common-language effect size, P(wide > thin) + P(wide = thin) / 2.
        p: Share of the assignments to the groups whose rank sum is at least as far from its
            expectation as the one seen.
        permutations: Assignments that were looked at.
        exact: Whether these were all there are; otherwise they were drawn at random and the one
            seen counts as one of them, so that p is never 0.
    """

    thin: int
    wide: int
    effect: float
    superiority: float
    p: float
    permutations: int
    exact: bool


def total_variation(images: Tensor) -> Tensor:
    """Anisotropic total variation: sum of |differences| of neighbours, down and across.

    Args:
        images: [n, C, H, W].

    Returns:
        [n], float64: sums over channels and positions, not divided by their number.
    """
    images = images.double()
    return sum(images.diff(dim=d).abs().sum((1, 2, 3)) for d in (2, 3)) + images.new_zeros(1)


def fourier_variation(images: Tensor) -> Tensor:
    """Total variation of the magnitudes of the two-dimensional Fourier transforms.

    The transform is unitary, its frequencies lie in order with 0 in the middle, so that neighbours
    are neighbouring frequencies. The paper does not say more than that the Fourier transforms'
    variation was used; the mean of an image (frequency 0) is left in.

    Args:
        images: [n, C, H, W].

    Returns:
        [n], float64.
    """
    spectrum = torch.fft.fft2(images.double(), norm="ortho").abs()
    return total_variation(torch.fft.fftshift(spectrum, dim=(2, 3)))


def rank_test(
    thin: Sequence[float],
    wide: Sequence[float],
    *,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> RankTest:
    """Test whether the values of two groups could have been dealt to them at random.

    Args:
        thin: Values of the first group, finite.
        wide: Values of the second.
        permutations: Random assignments; where there are not more in all, each is looked at once.
        seed: Of the random assignments.

    Raises:
        ValueError: A group is empty, a value is not finite, or `permutations` is below 1.
    """
    values = np.asarray([*thin, *wide], dtype=np.float64)
    if not len(thin) or not len(wide) or not np.isfinite(values).all() or permutations < 1:
        raise ValueError(
            f"cannot test groups of {len(thin)} and {len(wide)} values with {permutations} "
            "permutations: expected at least one finite value in each, and one permutation"
        )
    ranks = midranks(values)
    total, count = len(values), len(wide)
    expected = count * (total + 1) / 2
    seen = ranks[len(thin) :].sum() - expected
    effect = rank_biserial(thin, wide)
    exact = math.comb(total, count) <= permutations
    if exact:
        chosen = np.array(list(itertools.combinations(range(total), count)))
        sums = ranks[chosen].sum(1)
        p = float((np.abs(sums - expected) >= abs(seen) - TIE).mean())
        permutations = len(chosen)
    else:
        sums = _random_sums(ranks, count, permutations, seed)
        extreme = int((np.abs(sums - expected) >= abs(seen) - TIE).sum())
        p = (1 + extreme) / (1 + permutations)
    return RankTest(
        thin=len(thin),
        wide=count,
        effect=effect,
        superiority=(effect + 1) / 2,
        p=p,
        permutations=permutations,
        exact=exact,
    )


def rank_biserial(thin: Sequence[float], wide: Sequence[float]) -> float:
    """P(wide > thin) - P(wide < thin) of a value drawn from each group, neither of them empty."""
    ranks = midranks(np.asarray([*thin, *wide], dtype=np.float64))
    least = len(wide) * (len(wide) + 1) / 2
    # Mann and Whitney: U, the pairs in which the second is larger, is the rank sum less its least.
    return 2 * float(ranks[len(thin) :].sum() - least) / (len(thin) * len(wide)) - 1


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p values of several tests (Holm 1979), in their order.

    The smallest of m is multiplied by m, the next by m - 1 and so on; none gets smaller than one
    before it, nor larger than 1.
    """
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for place, index in enumerate(np.argsort(p_values, kind="stable")):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[index]))
        corrected[index] = largest
    return corrected


def midranks(values: np.ndarray) -> np.ndarray:
    """Ranks of [n] values from 1; equal values share the mean of their ranks."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum()
    return (last - (counts - 1) / 2)[inverse]


def _random_sums(ranks: np.ndarray, count: int, permutations: int, seed: int) -> np.ndarray:
    """Rank sums [permutations] of `count` values each, drawn without replacement."""
    generator = np.random.default_rng(seed)
    at_once = max(1, CHUNK_VALUES // len(ranks))
    sums = []
    for start in range(0, permutations, at_once):
        rows = np.tile(ranks, (min(at_once, permutations - start), 1))
        sums.append(generator.permuted(rows, axis=1)[:, :count].sum(1))
    return np.concatenate(sums)
