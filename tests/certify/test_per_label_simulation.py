"""The promise for every label in simulation: broken no more often than it says.

Counts are drawn as they arise: examples fall on labels, and of each label's a binomial number
changes. Networks go through the certificate's own decision from the mildest on, until one fails.
"""

import numpy as np
import pytest

from fcompress.certify.agreement import AgreementResult, with_upper_bound
from fcompress.certify.bounds import upper_bound
from fcompress.certify.fixed_sequence import holds, proven
from fcompress.certify.per_label import by_label

N, TOLERANCE = 1500, 0.1


def agreement(counts, changed, confidence):
    """A result with these counts."""
    n, k = int(counts.sum()), int(changed.sum())
    found = by_label("classes", [counts, changed, counts - changed], confidence)
    bound = 1 - upper_bound(k, n, confidence)
    return AgreementResult(n, n - k, 1 - k / n, bound, confidence, 0, 0, None, by_label=found)


def simulate(shares, networks, confidence, runs, seed=0):
    """How often what happened.

    A certificate was given; a label that it promises is beyond the tolerance; a network with a
    label beyond it would have passed by the test of all labels together; the bound is too low.

    Args:
        shares: Of examples with each label.
        networks: Shares of each label that change, [networks, labels], mildest first.
        confidence: Of the certificate.
        runs: Independent repetitions.
        seed: Of everything.
    """
    random = np.random.default_rng(seed)
    given = broken = careless = above = 0
    for _ in range(runs):
        counts = random.multinomial(N, shares)
        passed, unequal = None, False
        results = []
        for rates in networks:
            results.append(agreement(counts, random.binomial(counts, rates), confidence))
            unequal |= holds(results[-1], TOLERANCE) and max(rates) > TOLERANCE
            if not holds(results[-1], TOLERANCE, TOLERANCE):
                break
            passed = rates, results[-1]
        careless += unequal
        if passed is None:
            continue
        rates, result = passed
        bound = proven(results, TOLERANCE, TOLERANCE)
        assert with_upper_bound(result, bound).upper_bound <= TOLERANCE
        given += 1
        promised = [one.label for one in result.by_label.enough(TOLERANCE)]
        broken += max(rates[label] for label in promised) > TOLERANCE
        above += float(np.dot(shares, rates)) > bound
    return given, broken, careless, above


def edge(labels, beyond):
    """Networks of which the last ones change some labels a little more than is allowed."""
    mild = np.full((2, labels), TOLERANCE / 5)
    hard = np.full((3, labels), TOLERANCE / 5)
    hard[:, labels - beyond :] = TOLERANCE * 1.001
    return np.concatenate([mild, hard])


CASES = {
    "one rare label": (np.array([0.5, 0.4, 0.1]), edge(3, 1)),
    "all labels at the edge": (np.full(10, 0.1), edge(10, 10)),
    "one of many": (np.full(10, 0.1), edge(10, 1)),
    "some have too few examples": (np.array([0.6, 0.37, 0.02, 0.01]), edge(4, 2)),
}


@pytest.mark.slow
@pytest.mark.parametrize("confidence", [0.9, 0.95])
@pytest.mark.parametrize("case", CASES)
def test_no_label_is_beyond_the_tolerance_more_often_than_promised(case, confidence):
    runs = 1000
    given, broken, careless, above = simulate(*CASES[case], confidence, runs)
    # More than this has a probability below 1 in 1,000 if so many may be wrong.
    wrong = 1 - confidence
    allowed = runs * wrong + 3.2 * (runs * wrong * confidence) ** 0.5
    assert broken <= allowed and above <= allowed
    assert given > 0.3 * runs
    # A certificate for all labels together says nothing of one.
    if case != "all labels at the edge":
        assert careless > 2 * allowed


def test_one_hundred_runs():
    given, broken, careless, above = simulate(*CASES["one rare label"], 0.9, 100)
    assert given == 100 and 0 < broken <= 20 and above == 0
    assert careless == 100


def test_a_single_network_at_the_edge_is_wrong_about_as_often_as_is_allowed():
    shares, networks = np.array([0.5, 0.5]), np.array([[0.01, TOLERANCE * 1.0001]])
    given, broken, _, _ = simulate(shares, networks, 0.9, 300)
    assert given == broken and 10 <= broken <= 48
