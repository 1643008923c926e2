"""The certificate in simulation: what it promises is wrong no more often than it says.

Synthetic networks with known true shares of changed labels go through the code that `shrink`
uses: a path on the search split, order of the candidates, test on the certification split.
"""

import math
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from fcompress.certify.bounds import most_changes, upper_bound
from fcompress.certify.fixed_sequence import certify, sequence_to_test
from fcompress.certify.labels import changed_labels
from fcompress.certify.outlook import DOUBT
from fcompress.compress.ranking.allocation import GroupOrder, RemovalOrder
from fcompress.compress.search import measure, path
from fcompress.forward.predictor import Predictor

SEARCH, N = 200, 400


class Changes(nn.Module):
    """Gives label 1 to the share `rate` of all examples, label 0 to the others.

    Examples are rows of uniform numbers. Networks that look at the same column are nested: what
    the milder one changes, the thinner one changes too.
    """

    def __init__(self, rate, column=0):
        super().__init__()
        self.rate, self.column = rate, column

    def forward(self, x):
        one = (x[:, self.column] < self.rate).float()
        return torch.stack([1 - one, one], 1)


WIDE = Changes(0.0)


def _tail(count, runs, share):
    """P(at least `count` of `runs`) at a share, from the sum of the lower terms in logarithms."""
    choose = math.lgamma(runs + 1)
    below = sum(
        math.exp(
            choose
            - math.lgamma(i + 1)
            - math.lgamma(runs - i + 1)
            + i * math.log(share)
            + (runs - i) * math.log1p(-share)
        )
        for i in range(count)
    )
    return 1 - below


def _most_by_chance(runs, share):
    """More wrong results than this have a probability below 1 in 1,000 if `share` may be wrong."""
    return next(c for c in range(runs + 1) if _tail(c + 1, runs, share) < 1e-3)


@dataclass
class Tally:
    """How often something was wrong.

    Attributes:
        runs: Simulated runs.
        given: Runs in which a certificate was given.
        several: Runs in which several networks met the certification split.
        beyond: The true share of the certified network exceeds the tolerance.
        above: It exceeds the reported bound.
        own_above: It exceeds the bound that the network would have had alone.
        any_beyond: So does that of the thinnest network that passes if all are looked at.
    """

    runs: int = 0
    given: int = 0
    several: int = 0
    beyond: int = 0
    above: int = 0
    own_above: int = 0
    any_beyond: int = 0


def _simulate(rates_of, tolerance, confidence, *, nested, search=True, runs=1000, seed=0):
    """Run the search and the certificate on networks whose true shares `rates_of` draws.

    Args:
        rates_of: Generator -> true shares, mildest network first.
        tolerance: Of the certificate.
        confidence: Of the certificate.
        nested: Whether one uniform number an example decides for all networks.
        search: Whether the search split chooses which networks are tested; else all are.
        runs: Independent repetitions.
        seed: Of everything.
    """
    generator = torch.Generator().manual_seed(seed)
    most = most_changes(N, tolerance, confidence)

    def beyond(candidate):
        allowed = most * candidate.n / N
        return candidate.changed > allowed + DOUBT * math.sqrt(allowed + 1)

    found = Tally(runs=runs)
    for _ in range(runs):
        rates = rates_of(generator)
        columns = 1 if nested else len(rates)
        seen, unseen = (torch.rand(n, columns, generator=generator) for n in (SEARCH, N))
        prices = torch.cat([torch.tensor([math.inf]), torch.arange(len(rates), 0, -1.0)])
        removal_order = RemovalOrder.of({"g": GroupOrder(torch.arange(len(rates) + 1), prices)})

        def make(removed, rates=rates, nested=nested, seen=seen, removal_order=removal_order):
            model = Changes(rates[removed - 1], 0 if nested else removed - 1)
            labels = torch.zeros(SEARCH, dtype=torch.int64)
            kept = removal_order.kept(removed)
            return measure(removed, kept, Predictor(model), 100 - removed, [seen], labels)

        if search:
            good = path(len(rates), make, beyond)
        else:
            good = [make(removed) for removed in range(1, len(rates) + 1)]
        sequence = sequence_to_test(good, beyond) if search else good
        passed, results = certify(
            Predictor(WIDE), sequence, [(unseen, None)], tolerance, confidence
        )
        found.several += len(results) > 1
        if not search:
            changed = [changed_labels(c.model, [unseen], torch.zeros(N))[0] for c in good]
            within = [c.model.rate for c, k in zip(good, changed, strict=True) if k <= most]
            found.any_beyond += bool(within) and within[-1] > tolerance
        if passed is None:
            continue
        winner, agreement = passed
        assert agreement.upper_bound <= tolerance
        own = next(r for c, r in zip(sequence, results, strict=False) if c is winner)
        found.given += 1
        found.beyond += winner.model.rate > tolerance
        found.above += winner.model.rate > agreement.upper_bound
        found.own_above += winner.model.rate > own.upper_bound
    return found


def _around(tolerance):
    """Shares just below and just above the tolerance, and some far from it."""

    def rates(generator):
        return sorted((tolerance * (0.4 + 0.8 * torch.rand(12, generator=generator))).tolist())

    return rates


def _all_above(tolerance):
    """Networks that all change a little more than the tolerance: none may pass."""
    return lambda generator: [tolerance * (1.001 + 0.001 * i) for i in range(8)]


def _half(tolerance):
    """Good networks, then some just beyond the tolerance."""
    return lambda generator: [tolerance * f for f in (0.3, 0.5, 0.7, 1.001, 1.002, 1.003)]


def _unluckiest(tolerance, confidence):
    """Two networks within the tolerance, each with its share where its bound fails most often."""
    most = most_changes(N, tolerance, confidence)
    rates = [upper_bound(most // 3, N, confidence), upper_bound(most, N, confidence)]
    return lambda generator: [rate * (1 + 1e-6) for rate in rates]


@pytest.mark.slow
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
@pytest.mark.parametrize("nested", [True, False], ids=["nested", "independent"])
@pytest.mark.parametrize("shares", [_around, _all_above, _half])
@pytest.mark.parametrize("search", [True, False], ids=["searched", "all tested"])
def test_what_is_certified_is_true_as_often_as_promised(shares, nested, search, confidence):
    tolerance = 0.05
    found = _simulate(shares(tolerance), tolerance, confidence, nested=nested, search=search)
    allowed = _most_by_chance(found.runs, 1 - confidence)
    assert found.beyond <= allowed
    assert found.above <= allowed
    # It was no empty exercise.
    if shares is _all_above:
        assert found.given > 0 or confidence == 0.99
    else:
        assert found.given > 0.3 * found.runs
        assert found.several > 0.2 * found.runs


def test_none_beyond_the_tolerance_passes_more_often_than_promised():
    found = _simulate(_all_above(0.05), 0.05, 0.9, nested=False, search=False, runs=400)
    assert 0 < found.beyond <= _most_by_chance(found.runs, 0.1)
    # Whoever looks at all of them and takes the thinnest that passes is wrong far more often.
    assert found.any_beyond > 3 * _most_by_chance(found.runs, 0.1)


@pytest.mark.slow
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
def test_the_simulation_sees_it_if_the_best_of_all_is_taken(confidence):
    tolerance = 0.05
    found = _simulate(_all_above(tolerance), tolerance, confidence, nested=False, search=False)
    allowed = _most_by_chance(found.runs, 1 - confidence)
    assert found.beyond <= allowed < found.any_beyond


@pytest.mark.slow
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_the_bound_of_the_taken_network_alone_would_not_hold(confidence):
    most = most_changes(N, 0.05, confidence)
    tolerance = upper_bound(most, N, confidence) * (1 + 1e-5)
    shares = _unluckiest(tolerance, confidence)
    found = _simulate(shares, tolerance, confidence, nested=False, search=False, runs=2000)
    allowed = _most_by_chance(found.runs, 1 - confidence)
    assert found.beyond == 0
    assert found.above <= allowed < found.own_above


def _covered(share, bounds):
    """Exact probability that the bound is at least the true share."""
    n = len(bounds) - 1
    return sum(
        math.comb(n, k) * share**k * (1 - share) ** (n - k)
        for k, bound in enumerate(bounds)
        if bound >= share
    )


@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
@pytest.mark.parametrize("n", [1, 7, 60])
def test_the_bound_covers_whatever_the_true_share_is(n, confidence):
    # The worst shares lie just above a bound that can come out, where coverage jumps down.
    bounds = [upper_bound(k, n, confidence) for k in range(n + 1)]
    grid = [i / 20 for i in range(1, 20)]
    grid += [bound * (1 + s) for bound in bounds[:-1] for s in (-1e-9, 1e-9)]
    covered = [_covered(share, bounds) for share in grid if share < 1]
    assert min(covered) >= confidence - 1e-6
    # It is exact, not merely careful: somewhere nothing is wasted.
    assert min(covered) == pytest.approx(confidence, abs=1e-6)
