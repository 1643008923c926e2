"""What so many changed labels of so many examples prove: exact binomial bounds.

Clopper and Pearson 1934, "The Use of Confidence or Fiducial Limits Illustrated in the Case of the
Binomial", one-sided.
"""

from __future__ import annotations

import math

CONFIDENCE = 0.95
MOST_EXAMPLES = 1_000_000  # more are not worth advising


def upper_bound(changed: int, n: int, confidence: float = CONFIDENCE) -> float:
    """One-sided Clopper-Pearson bound on the probability of a change.

    Args:
        changed: Examples whose label changed.
        n: Examples in all.
        confidence: With this probability the true share is at most the returned one.

    Returns:
        The largest p for which at most `changed` changes of n have probability 1 - confidence.
    """
    if changed >= n:
        return 1.0
    if changed == 0:
        return -math.expm1(math.log1p(-confidence) / n)
    low, high = changed / n, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if at_most(changed, n, middle) > 1 - confidence:
            low = middle
        else:
            high = middle
    return high


def at_most(k: int, n: int, p: float) -> float:
    """P(X <= k) for X binomial (n, p), 0 < p < 1, summed in logarithms."""
    import numpy as np  # here, so that the command line can take `CONFIDENCE` without it

    i = np.arange(k + 1, dtype=np.float64)
    steps = np.log((n - i[1:] + 1) / i[1:])
    choose = np.concatenate([[0.0], np.cumsum(steps)])
    terms = choose + i * math.log(p) + (n - i) * math.log1p(-p)
    top = terms.max()
    return float(math.exp(top) * np.exp(terms - top).sum())


def most_changes(n: int, tolerance: float, confidence: float = CONFIDENCE) -> int:
    """The most changed labels of n at which the bound still holds; -1 if not even none."""
    if upper_bound(0, n, confidence) > tolerance:
        return -1
    low, high = 0, n
    while high - low > 1:
        middle = (low + high) // 2
        if upper_bound(middle, n, confidence) <= tolerance:
            low = middle
        else:
            high = middle
    return low


def examples_needed(tolerance: float, confidence: float = CONFIDENCE) -> int:
    """The fewest examples that can certify a tolerance above 0: none of them may change."""
    return math.ceil(math.log1p(-confidence) / math.log1p(-tolerance))


def examples_at(
    rate: float, tolerance: float, confidence: float = CONFIDENCE, *, more_than: int = 0
) -> int | None:
    """How many examples certify a tolerance if so many of them change.

    Args:
        rate: Share of changed labels, in [0, 1].
        tolerance: To be certified, in (0, 1).
        confidence: Of the certificate.
        more_than: The answer is more than this.

    Returns:
        About the fewest examples; None if even `MOST_EXAMPLES` are too few.
    """

    def enough(n: int) -> bool:
        changed = math.ceil(rate * n - 1e-9)
        return changed < n and at_most(changed, n, tolerance) <= 1 - confidence

    high = more_than + 1
    while not enough(high):
        if high >= MOST_EXAMPLES:
            return None
        high = min(2 * high, MOST_EXAMPLES)
    low = more_than
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
