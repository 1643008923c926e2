"""Bounds on means of shares: exact where that can be said, and in simulation what they promise."""

import itertools
import math

import numpy as np
import pytest

from fcompress.certify.bounded_mean import (
    betting_bound,
    betting_p_value,
    examples_for_any,
    examples_for_mean,
    expected_bound,
    hoeffding_bentkus,
    hoeffding_bentkus_p_value,
    least_bound,
)
from fcompress.certify.bounds import at_most, examples_needed, upper_bound


def inside(random, n, rate, places=64, share=0.5):
    """Examples that a part of the rate comes to as a whole; the rest comes place by place."""
    whole = random.random(n) < rate * share
    parts = random.binomial(places, rate * (1 - share) / (1 - rate * share), n) / places
    return np.where(whole, 1.0, parts)


# Shares of n examples whose true mean is the rate.
KINDS = {
    "none or all": lambda random, n, rate: (random.random(n) < rate).astype(float),
    "sparse": lambda random, n, rate: np.where(random.random(n) < 2 * rate, 0.5, 0.0),
    "rare and whole": lambda random, n, rate: (
        0.8 * rate + (1 - 0.8 * rate) * (random.random(n) < 0.2 * rate / (1 - 0.8 * rate))
    ),
    "spread": lambda random, n, rate: random.beta(2 * rate, 2 * (1 - rate), n),
    "place by place": lambda random, n, rate: random.binomial(64, rate, n) / 64,
    "correlated inside": inside,
    "steady": lambda random, n, rate: np.full(n, rate) + random.uniform(-rate, rate, n) / 10,
}


def normal_bound(shares, confidence=0.95):
    """What is done by habit, and promises nothing: mean and 1.645 standard errors."""
    quantile = {0.9: 1.2816, 0.95: 1.6449}[confidence]
    return shares.mean() + quantile * shares.std() / math.sqrt(len(shares))


BOUNDS = {
    "betting": betting_bound,
    "hoeffding-bentkus": lambda x, c: hoeffding_bentkus(x.mean(), len(x), c),
}


def too_low(bound, kind, n, rate, confidence, runs, seed=0):
    """In how many runs the bound is below the true mean."""
    random = np.random.default_rng(seed)
    drawn = (KINDS[kind](random, n, rate) for _ in range(runs))
    return sum(bound(shares, confidence) < rate for shares in drawn)


def most(runs, confidence):
    """More has a probability below 1 in 1,000 if so many may be too low."""
    return runs * (1 - confidence) + 3.2 * math.sqrt(runs * (1 - confidence) * confidence)


@pytest.mark.slow
@pytest.mark.parametrize("bound", BOUNDS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n, rate", [(60, 0.05), (300, 0.1), (300, 0.02), (1000, 0.3)])
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_bounds_are_too_low_no_more_often_than_promised(bound, kind, n, rate, confidence):
    wrong = too_low(BOUNDS[bound], kind, n, rate, confidence, runs=1000)
    assert wrong <= most(1000, confidence)


@pytest.mark.slow
def test_the_simulation_finds_bounds_that_do_not_hold():
    for kind, n, rate in [("none or all", 60, 0.05), ("rare and whole", 300, 0.02)]:
        assert too_low(normal_bound, kind, n, rate, 0.95, 1000) > most(1000, 0.95)
    # Bounds that are a fifth or a quarter too tight.
    tight = {
        "betting": lambda x, c: betting_bound(x, c) * 0.8,
        "hoeffding-bentkus": lambda x, c: hoeffding_bentkus(x.mean(), len(x), c) * 0.75,
    }
    for bound in tight.values():
        assert too_low(bound, "none or all", 300, 0.1, 0.95, 1000) > most(1000, 0.95)


@pytest.mark.parametrize("bound", BOUNDS)
def test_one_hundred_runs(bound):
    wrong = [too_low(BOUNDS[bound], kind, 150, 0.1, 0.9, 100) for kind in KINDS]
    assert max(wrong) <= 20
    assert too_low(normal_bound, "rare and whole", 60, 0.05, 0.9, 100) > 20


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["none or all", "spread", "place by place"])
def test_a_tolerance_just_exceeded_is_proven_no_more_often_than_promised(kind):
    """The test of a single network, as the fixed sequence takes it."""
    random = np.random.default_rng(1)
    proven = sum(
        betting_p_value(KINDS[kind](random, 300, 0.0501), 0.05) <= 0.05 for _ in range(1000)
    )
    assert proven <= most(1000, 0.95)


def test_betting_wastes_less_than_one_draw_an_example_unless_all_of_it_changes():
    random = np.random.default_rng(0)

    def margins(kind, n, rate):
        """Mean distance from the rate of: the bound on shares, that on one draw each."""
        found = []
        for _ in range(20):
            shares = KINDS[kind](random, n, rate)
            drawn = int((random.random(n) < shares).sum())
            found.append((betting_bound(shares) - rate, upper_bound(drawn, n) - rate))
        return np.mean(found, 0)

    for kind in ("place by place", "steady"):
        shares, drawn = margins(kind, 1000, 0.05)
        assert shares < 0.6 * drawn
    shares, drawn = margins("none or all", 1000, 0.05)
    assert drawn < shares < 1.6 * drawn


@pytest.mark.parametrize("n", [1, 7, 59, 400])
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.999])
def test_of_none_or_all_the_mean_alone_proves_no_more_than_the_exact_bound(n, confidence):
    for changed in {0, 1, n // 20, n // 3, n}:
        exact = upper_bound(changed, n, confidence)
        assert hoeffding_bentkus(changed / n, n, confidence) >= exact * (1 - 1e-9)
    # With no change Hoeffding's bound is that of Clopper and Pearson.
    exact = upper_bound(0, n, confidence)
    assert hoeffding_bentkus(0.0, n, confidence) == pytest.approx(exact, rel=1e-6)
    assert exact < least_bound(n, confidence) <= 1


@pytest.mark.parametrize("rate", [0.05, 0.2, 0.35, 0.6])
@pytest.mark.parametrize("confidence", [0.6, 0.8, 0.95])
def test_of_none_or_all_the_chance_of_an_error_is_as_small_as_promised(rate, confidence):
    """Exactly: all sequences of 9 examples, each with its probability."""
    sequences = (np.arange(512)[:, None] >> np.arange(9)) & 1
    changed = sequences.sum(1)
    chances = rate**changed * (1 - rate) ** (9 - changed)
    refuted = [betting_p_value(x, rate, confidence) <= 1 - confidence for x in sequences]
    assert chances @ refuted <= 1 - confidence
    refuted = [hoeffding_bentkus_p_value(k / 9, 9, rate) <= 1 - confidence for k in changed]
    assert chances @ refuted <= 1 - confidence
    # A test at nearly twice the level is found.
    low = [betting_p_value(x, rate, confidence) <= 1.9 * (1 - confidence) for x in sequences]
    if confidence == 0.6:
        assert chances @ low > 1 - confidence


def test_bounds_move_as_they_have_to():
    random = np.random.default_rng(0)
    shares = random.beta(1, 20, 300)
    for bound in (betting_bound, lambda x, c=0.95: hoeffding_bentkus(x.mean(), len(x), c)):
        assert shares.mean() < bound(shares) < bound(np.minimum(shares + 0.05, 1))
        assert bound(shares, 0.8) < bound(shares, 0.95) < bound(shares, 0.99)
        # Four times the examples: half the distance, about.
        more = np.tile(shares, 4)
        near, far = bound(more) - shares.mean(), bound(shares) - shares.mean()
        assert 0.2 * far < near < 0.6 * far
    assert betting_bound([1.0] * 50) == 1.0 and hoeffding_bentkus(1.0, 50) == 1.0
    assert betting_bound([]) == 1.0


def test_what_is_proven_at_a_tolerance_is_proven_at_every_looser_one():
    random = np.random.default_rng(3)
    grid = np.linspace(0.001, 0.999, 300)
    for kind in KINDS:
        shares = KINDS[kind](random, 200, 0.06)
        values = [betting_p_value(shares, t) for t in grid]
        assert all(a >= b for a, b in itertools.pairwise(values))
        bound = betting_bound(shares)
        assert all((v <= 0.05) == (bound <= t) for v, t in zip(values, grid, strict=True))
        values = [hoeffding_bentkus_p_value(shares.mean(), 200, t) for t in grid]
        assert all(a >= b for a, b in itertools.pairwise(values))


def test_hoeffding_bentkus_is_its_formula():
    mean, n, t = 0.034, 250, 0.06
    entropy = mean * math.log(mean / t) + (1 - mean) * math.log((1 - mean) / (1 - t))
    expected = min(math.exp(-n * entropy), math.e * at_most(9, n, t))
    assert hoeffding_bentkus_p_value(mean, n, t) == pytest.approx(expected)
    assert hoeffding_bentkus_p_value(t, n, t) == 1 and hoeffding_bentkus_p_value(0.1, n, 1) == 0


def test_the_capital_is_that_of_the_bets():
    """Step by step, as the docstring of the module says it, for one tolerance."""
    random = np.random.default_rng(5)
    shares = random.beta(1, 15, 80)
    ordered = shares[np.random.default_rng(0).permutation(80)]
    tolerance, capital, largest = 0.11, 1.0, 1.0
    total, squares, count = 0.0, 0.25, 1
    for x in ordered:
        theta = min(math.sqrt(2 * math.log(20) / (80 * squares / count)), 0.9)
        capital *= 1 - theta + theta * (1 - x) / (1 - tolerance)
        largest = max(largest, capital)
        total, count = total + x, count + 1
        squares += (x - total / count) ** 2
    assert betting_p_value(shares, tolerance) == pytest.approx(1 / largest)


def test_sorted_data_proves_as_much():
    shares = np.random.default_rng(0).beta(1, 12, 500)
    bounds = [betting_bound(x) for x in (shares, np.sort(shares), np.sort(shares)[::-1])]
    assert max(bounds) < min(bounds) * 1.05


def test_how_many_examples():
    for tolerance in (0.01, 0.05, 0.2):
        needed = examples_for_any(tolerance)
        assert least_bound(needed) <= tolerance < least_bound(needed - 1)
        assert examples_needed(tolerance) < needed < 1.15 * examples_needed(tolerance) + 1
    random = np.random.default_rng(0)
    for kind, rate in [("place by place", 0.04), ("spread", 0.02), ("correlated inside", 0.03)]:
        deviation = KINDS[kind](random, 20_000, rate).std()
        n = examples_for_mean(rate, deviation, 0.05)
        assert expected_bound(rate, deviation, n) <= 0.05 < expected_bound(rate, deviation, n - 1)
        found = np.median([betting_bound(KINDS[kind](random, n, rate)) for _ in range(60)])
        assert rate < found < 0.052
        fewer = [betting_bound(KINDS[kind](random, n // 4, rate)) for _ in range(15)]
        assert np.median(fewer) > 0.05
    assert examples_for_mean(0.06, 0.1, 0.05) is None
    assert examples_for_mean(0.001, 0.01, 0.5, more_than=1000) == 1001


@pytest.mark.parametrize("bad", [-0.1, 1.1, math.nan])
def test_shares_are_shares(bad):
    with pytest.raises(ValueError, match="outside"):
        betting_bound([0.0, bad])
