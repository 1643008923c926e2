"""The certificate of a cascade in simulation: broken no more often than it says.

Margins and changes are drawn as planted, for networks of several sizes. Size and threshold are
chosen on the search examples by the code that `shrink` uses, and tested on others in its order. The
true share of changes of a pair is known.
"""

import functools
import math

import pytest
import torch

from fcompress.certify import bounds
from fcompress.certify.agreement import AgreementResult
from fcompress.certify.fixed_sequence import Candidate, holds, proven
from fcompress.certify.outlook import Outlook
from fcompress.compress.cascade.sequence import pairs, until
from fcompress.compress.cascade.sizes import Size, log_odds

upper_bound = functools.cache(bounds.upper_bound)
SEARCH, CERTIFICATION, MACS = 600, 1000, 1000


def constant(odds, scale):
    """The margin says nothing of the change."""
    return torch.full_like(odds, 0.052 * scale)


def falling(odds, scale):
    """Odds of a change fall with those of the second choice."""
    return torch.sigmoid(math.log(scale) - odds)


def heavy(odds, scale):
    """The same, and some sure answers change too: the regression expects fewer."""
    return (falling(odds, scale) + 0.004).clamp_max(1.0)


PLANTED = {"constant": constant, "falling": falling, "heavy": heavy}
# Share of MACs of each size -> by how much more its answers change.
SIZES = {600: 0.3, 300: 0.6, 150: 1.2}


def draw(change, scale, n, generator):
    """Margins of n examples, and which of their answers change."""
    margins = 1 - torch.rand(n, generator=generator, dtype=torch.float64) ** 3
    odds = change(log_odds(margins), scale)
    return margins, (torch.rand(n, generator=generator, dtype=torch.float64) < odds).double()


def true_share(change, scale, threshold, points=20001):
    """The share of all answers that change, and of examples that are deferred."""
    uniform = (torch.arange(points, dtype=torch.float64) + 0.5) / points
    margins = 1 - uniform**3
    kept = (margins >= threshold).double()
    rates = change(log_odds(margins), scale)
    return float((rates * kept).mean()), float(1 - kept.mean())


def simulate(change, tolerance, confidence, runs, seed=0):
    """How often a certificate was given, broken, below the truth; careless ones; deferred beyond.

    Careless is the cheapest pair within the tolerance on the search examples, untested.
    """
    generator = torch.Generator().manual_seed(seed)
    given = broken = above = careless = beyond = 0
    outlook = Outlook(CERTIFICATION, tolerance, confidence)
    for _ in range(runs):
        sizes = []
        for macs, scale in SIZES.items():
            margins, lost = draw(change, scale, SEARCH, generator)
            one = Candidate(MACS - macs, {}, None, macs, int(lost.sum()), SEARCH)
            sizes.append(Size(one, margins, lost))
        everything = pairs(sizes, MACS, CERTIFICATION)
        sequence = until(everything, outlook.beyond)
        within = [pair for _, pair in everything if pair.changed <= tolerance * pair.n]
        if within:
            share, _ = true_share(change, SIZES[within[-1].macs], within[-1].threshold)
            careless += share > tolerance
        new = {macs: draw(change, scale, CERTIFICATION, generator) for macs, scale in SIZES.items()}
        results, passed = [], None
        for _, pair in sequence:
            margins, lost = new[pair.macs]
            k = int(lost[margins >= pair.threshold].sum())
            bound = upper_bound(k, CERTIFICATION, confidence)
            n = CERTIFICATION
            results.append(AgreementResult(n, n - k, 1 - k / n, 1 - bound, confidence, 0, 0, None))
            if not holds(results[-1], tolerance):
                break
            passed = pair
        if passed is None:
            continue
        given += 1
        share, deferred = true_share(change, SIZES[passed.macs], passed.threshold)
        broken += share > tolerance
        above += share > proven(results, tolerance)
        count = int((new[passed.macs][0] < passed.threshold).sum())
        apart = 1 - (1 - confidence) / len(sequence)
        beyond += deferred > upper_bound(count, CERTIFICATION, apart)
    return given, broken, above, careless, beyond


@pytest.mark.slow
@pytest.mark.parametrize("change", PLANTED)
@pytest.mark.parametrize("tolerance", [0.01, 0.03])
def test_no_certificate_is_broken_more_often_than_promised(change, tolerance):
    runs, confidence = 1000, 0.9
    given, broken, above, careless, beyond = simulate(PLANTED[change], tolerance, confidence, runs)
    # More than this has a probability below 1 in 1,000 if so many may be wrong.
    allowed = runs * (1 - confidence) + 3.2 * (runs * (1 - confidence) * confidence) ** 0.5
    assert broken <= allowed and above <= allowed and beyond <= allowed
    # Where the margin says nothing, hardly any pair is cheap enough and within 1%.
    assert given > (0.01 if change == "constant" else 0.8) * runs
    # The control: what the search examples say by themselves is wrong more often than that.
    assert careless > 1.5 * allowed


def test_sixty_runs():
    given, broken, above, careless, beyond = simulate(falling, 0.03, 0.9, 60)
    assert given > 50 and broken <= 14 and above <= 14 and beyond <= 14
    assert careless > 14


def test_the_sequence_of_a_tighter_tolerance_is_the_beginning_of_that_of_a_looser_one():
    generator = torch.Generator().manual_seed(1)
    sizes = []
    for macs, scale in SIZES.items():
        margins, lost = draw(falling, scale, SEARCH, generator)
        one = Candidate(MACS - macs, {}, None, macs, int(lost.sum()), SEARCH)
        sizes.append(Size(one, margins, lost))
    everything = pairs(sizes, MACS, CERTIFICATION)
    costs = [pair.average(MACS) for _, pair in everything]
    assert len(costs) > 8 and costs == sorted(costs, reverse=True) and costs[0] < MACS
    assert [pair.rank for _, pair in everything] == list(range(len(everything)))
    changes = [pair.changed for _, pair in everything]
    assert changes[0] <= 1 and changes[-1] > 10
    before = []
    for tolerance in (0.004, 0.01, 0.03, 0.1):
        found = until(everything, Outlook(CERTIFICATION, tolerance, 0.95).beyond)
        assert found[: len(before)] == before and len(found) >= len(before)
        before = found
    # Never at a margin that was seen, where rounding would decide.
    for size, pair in everything:
        assert not bool((size.margins == pair.threshold).any())
