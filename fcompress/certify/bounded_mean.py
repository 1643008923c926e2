"""What shares of changed positions prove: upper bounds on the mean of numbers in [0, 1].

An example with many positions changes by a share of them. The shares of different examples are
independent and alike, those positions of one example are not; so the bound is one on the mean of
the shares. Two that hold for every distribution and every number of examples:

- betting (Waudby-Smith and Ramdas 2024, "Estimating means of bounded random variables by betting",
  JRSS B 86). A player starts with 1 and puts the share theta of the capital on the claim that less
  changes than m: a share x multiplies the capital by 1 - theta + theta (1 - x) / (1 - m). If the
  mean is m or more the game is unfair to the player, and the capital ever reaches 1 / alpha with a
  probability of alpha at most (Ville 1939). Every m for which it does is refuted. How much is put
  depends on the shares before, not on m: so the capital grows with m, what is refuted has no gaps,
  and a looser tolerance is never harder to prove. It adapts to the spread of the shares.
- Hoeffding-Bentkus (Bates et al. 2021, "Distribution-free, risk-controlling prediction sets", JACM
  68), which looks at the mean alone.

In simulation betting wastes less wherever shares are spread less than 0 or 1 are, and next to
nothing more where they are 0 or 1 (`docs/certificate.md` has the numbers), so it is the one that
certificates use.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fcompress.certify.bounds import CONFIDENCE, MOST_EXAMPLES, at_most

Shares = NDArray[np.float64]

# Of the capital, never more is put on one example: what remains after one that changes wholly. With
# 0.9, proving a tolerance without any change takes 12% more examples than Clopper and Pearson ask.
MOST_PUT = 0.9
PRIOR_VARIANCE = 0.25  # the largest that there is, counted as one example seen before
_HALVINGS = 50


def mean_kept(
    missed: Sequence[ArrayLike], confidence: float = CONFIDENCE
) -> dict[str, float] | None:
    """How much is kept of answers on average, with its bound.

    Args:
        missed: In [0, 1], batch by batch, what each example lost; independent examples.
        confidence: Of the bound, in (0, 1).

    Returns:
        {"share": , "lower_bound": }; None for no batch.

    Example:
        >>> found = mean_kept([[0.0, 0.5], [0.0] * 98])
        >>> round(found["share"], 3), found["lower_bound"] < found["share"]
        (0.995, True)
    """
    if not missed:
        return None
    shares = np.concatenate([np.asarray(some, dtype=np.float64) for some in missed])
    bound = betting_bound(shares, confidence)
    return {"share": 1 - float(shares.mean()), "lower_bound": 1 - bound}


def betting_bound(shares: ArrayLike, confidence: float = CONFIDENCE) -> float:
    """Upper bound on the mean of which these are independent examples, by betting.

    The examples are taken in an order that is drawn from their number alone.

    Args:
        shares: [n], each in [0, 1].
        confidence: With this probability the true mean is at most the returned one.

    Returns:
        The smallest mean that is refuted, as is every larger one; 1 if none is.

    Raises:
        ValueError: A share is outside [0, 1].

    Example:
        >>> round(betting_bound([0.0, 0.02, 0.04, 0.02] * 100), 4)
        0.0283
    """
    ordered = _ordered(shares)
    put, gain = _put(ordered, confidence), 1.0 - ordered
    wanted = -math.log1p(-confidence)
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if _log_capital(put, gain, middle) >= wanted:
            high = middle
        else:
            low = middle
    return high


def betting_p_value(shares: ArrayLike, tolerance: float, confidence: float = CONFIDENCE) -> float:
    """P-value of the claim that the mean is above a tolerance, by betting.

    It is at most 1 - confidence exactly where `betting_bound` is at most the tolerance.

    Args:
        shares: [n], each in [0, 1].
        tolerance: In [0, 1).
        confidence: At which the bets are best; the p-value holds for any.

    Returns:
        In (0, 1]; if the mean is above the tolerance, it is at most p with probability p.

    Example:
        >>> betting_p_value([0.0] * 100, 0.05) < 0.05 < betting_p_value([0.1] * 100, 0.05)
        True
    """
    ordered = _ordered(shares)
    log = _log_capital(_put(ordered, confidence), 1.0 - ordered, tolerance)
    return math.exp(-max(log, 0.0))


def hoeffding_bentkus(mean: float, n: int, confidence: float = CONFIDENCE) -> float:
    """Upper bound on the true mean from the mean of n independent examples in [0, 1].

    Args:
        mean: Of the examples.
        n: How many there are.
        confidence: With this probability the true mean is at most the returned one.

    Example:
        >>> round(hoeffding_bentkus(0.02, 400), 4)
        0.0404
    """
    low, high = mean, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if hoeffding_bentkus_p_value(mean, n, middle) <= 1 - confidence:
            high = middle
        else:
            low = middle
    return high


def hoeffding_bentkus_p_value(mean: float, n: int, tolerance: float) -> float:
    """P-value of the claim that the true mean is above a tolerance.

    The smaller of two tail bounds, each of which holds: both fall with the mean of the examples, so
    the smaller one is a p-value too.

    Args:
        mean: Of the examples, in [0, 1].
        n: How many there are.
        tolerance: In [0, 1].

    Example:
        >>> round(hoeffding_bentkus_p_value(0.0, 59, 0.05), 3)
        0.048
    """
    if mean >= tolerance:
        return 1.0
    if tolerance >= 1:
        return 0.0
    entropy = (1 - mean) * math.log((1 - mean) / (1 - tolerance))
    entropy += mean * math.log(mean / tolerance) if mean > 0 else 0.0
    bentkus = math.e * at_most(math.ceil(n * mean - 1e-9), n, tolerance)
    return min(math.exp(-n * entropy), bentkus, 1.0)


@lru_cache(maxsize=256)
def least_bound(n: int, confidence: float = CONFIDENCE) -> float:
    """What n examples prove if nothing changes at all.

    Example:
        >>> round(least_bound(100), 4)
        0.0329
    """
    return betting_bound(np.zeros(n), confidence)


@lru_cache(maxsize=256)
def examples_for_any(tolerance: float, confidence: float = CONFIDENCE) -> int:
    """The fewest examples that prove a tolerance above 0: nothing of them may change.

    Example:
        >>> examples_for_any(0.05)
        66
    """
    low, high = 0, 1
    while least_bound(high, confidence) > tolerance:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (
            (low, middle) if least_bound(middle, confidence) <= tolerance else (middle, high)
        )
    return high


def expected_bound(mean: float, deviation: float, n: int, confidence: float = CONFIDENCE) -> float:
    """About what `betting_bound` will be on n examples, rather more than less.

    Args:
        mean: True mean of the shares.
        deviation: Their true standard deviation.
        n: Examples to come.
        confidence: Of the bound.

    Example:
        >>> round(expected_bound(0.02, 0.014, 400), 4)
        0.0292
    """
    wanted = -math.log1p(-confidence)
    return mean + deviation * math.sqrt(2 * wanted / n) + wanted / n


def examples_for_mean(
    mean: float,
    deviation: float,
    tolerance: float,
    confidence: float = CONFIDENCE,
    *,
    more_than: int = 0,
) -> int | None:
    """About how many examples certify a tolerance for shares of a mean and a deviation.

    Args:
        mean: True mean of the shares.
        deviation: Their true standard deviation.
        tolerance: To be certified, in (0, 1).
        confidence: Of the certificate.
        more_than: The answer is more than this.

    Returns:
        None if even `bounds.MOST_EXAMPLES` are too few.

    Example:
        >>> examples_for_mean(0.04, 0.05, 0.05)
        600
    """
    if expected_bound(mean, deviation, MOST_EXAMPLES, confidence) > tolerance:
        return None
    low, high = more_than, MOST_EXAMPLES
    while high - low > 1:
        middle = (low + high) // 2
        enough = expected_bound(mean, deviation, middle, confidence) <= tolerance
        low, high = (low, middle) if enough else (middle, high)
    return high


def _ordered(shares: ArrayLike) -> Shares:
    """In an order that nobody has chosen: data often comes sorted, and order matters to a bet."""
    found = np.asarray(shares, dtype=np.float64).reshape(-1)
    if not bool(((found >= 0) & (found <= 1)).all()):
        raise ValueError("shares outside [0, 1]: expected the changed share of each example")
    return found[np.random.default_rng(0).permutation(len(found))]


def _put(shares: Shares, confidence: float) -> Shares:
    """What share of the capital is put on each example: [n], from those before it alone.

    Their "predictable plug-in": sqrt(2 log(1 / alpha) / (n s^2)) is best for a known variance s^2.
    """
    n = len(shares)
    seen = np.arange(1, n + 1)
    means = np.cumsum(shares) / (seen + 1)
    variances = (PRIOR_VARIANCE + np.cumsum((shares - means) ** 2)) / (seen + 1)
    before = np.concatenate([[PRIOR_VARIANCE], variances])[:n]
    best: Shares = np.sqrt(-2 * math.log1p(-confidence) / (max(n, 1) * before))
    return np.minimum(best, MOST_PUT)


def _log_capital(put: Shares, gain: Shares, mean: float) -> float:
    """Logarithm of the largest capital on the way, against a mean."""
    if mean >= 1:
        return math.inf
    # 1 - put + put * gain / (1 - mean), written so that it loses nothing near 1.
    steps = np.log1p(put * (gain / (1.0 - mean) - 1.0))
    return float(np.cumsum(steps).max(initial=0.0))
