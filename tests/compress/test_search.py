import dataclasses
import math

import pytest
import torch
from torch import nn

from fcompress.certify.bounds import most_changes, upper_bound
from fcompress.certify.fixed_sequence import Candidate, certify, sequence_to_test
from fcompress.compress.allocation import GroupOrder, RemovalOrder
from fcompress.compress.search import thinnest
from fcompress.forward.predictor import Predictor


def _removal_order(units):
    prices = torch.cat([torch.tensor([torch.inf]), torch.arange(units, 0, -1).double()])
    return RemovalOrder.of({"g": GroupOrder(torch.arange(units + 1), prices)})


def _candidate(removed, changed=0, n=1000, model=None):
    return Candidate(removed, {}, model or nn.Identity(), 1000 - removed, changed, n)


@pytest.mark.parametrize("units", [1, 2, 3, 40, 500])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 0.98, 1.0])
def test_the_thinnest_that_passes_is_found(units, share):
    limit, tried = round(share * units), []

    def make(removed):
        assert 0 < removed <= units
        assert removed not in tried
        tried.append(removed)
        return _candidate(removed)

    good = thinnest(_removal_order(units), make, lambda c: c.removed <= limit, steps=30)
    assert len(tried) <= 33
    assert [c.removed for c in good] == sorted(r for r in tried if r <= limit)
    assert (good[-1].removed if good else 0) == limit


def test_the_search_is_fine_where_little_remains():
    tried = []

    def make(removed):
        tried.append(removed)
        return _candidate(removed)

    for limit in (10_000, 9_990, 9_900, 5_000):
        good = thinnest(_removal_order(10_000), make, lambda c, limit=limit: c.removed <= limit)
        left = 10_001 - limit
        assert left <= 10_001 - good[-1].removed <= 1.05 * left + 1
    assert len(tried) <= 4 * 12


def test_steps_that_are_left_go_to_the_next_milder_networks():
    good = thinnest(_removal_order(12), _candidate, lambda c: c.removed <= 8, steps=20)
    assert [c.removed for c in good] == list(range(1, 9))
    tried = []

    def make(removed):
        tried.append(removed)
        return _candidate(removed)

    # Only those that pass count.
    good = thinnest(_removal_order(12), make, lambda c: c.removed in (2, 3, 5, 6, 8), steps=6)
    assert len(tried) <= 9
    assert {c.removed for c in good} <= {2, 3, 5, 6, 8}


@pytest.mark.parametrize("limit", [130, 1000, 3500, 3990])
def test_milder_networks_are_at_hand_if_the_thinnest_fails(limit):
    good = thinnest(_removal_order(4000), _candidate, lambda c: c.removed <= limit)
    left = [4001 - c.removed for c in good]
    thinnest_left = left[-1]
    for share in (1 / 2, 1 / 4, 1 / 8):
        wanted = thinnest_left * (4001 / thinnest_left) ** share
        nearest = min(left, key=lambda n: abs(n - wanted))
        ratio = math.log(nearest / thinnest_left) / math.log(4001 / thinnest_left)
        assert share / 1.5 <= ratio <= share * 1.5


def test_nothing_to_remove_is_no_candidate():
    assert thinnest(RemovalOrder.of({}), _candidate, lambda c: True) == []


class Labels(nn.Module):
    """Gives label 1 to examples whose number is below `changed`, label 0 to the others."""

    def __init__(self, changed):
        super().__init__()
        self.changed, self.runs = changed, 0

    def forward(self, x):
        self.runs += 1
        one = (x[:, 0] < self.changed).float()
        return torch.stack([1 - one, one], 1)


N = 400
DATA = [(torch.arange(N).float()[:, None], None)]


def _certify(*changed, tolerance=0.05, confidence=0.95):
    candidates = [_candidate(10 * (i + 1), model=Labels(c)) for i, c in enumerate(changed)]
    passed, results = certify(Predictor(Labels(0)), candidates, DATA, tolerance, confidence)
    tested = [c.model.runs > 0 for c in candidates]
    assert tested == [True] * len(results) + [False] * (len(candidates) - len(results))
    assert [r.changed for r in results] == list(changed[: len(results)])
    if passed is not None:
        own = results[passed[0].removed // 10 - 1]
        assert dataclasses.replace(passed[1], lower_bound=own.lower_bound) == own
    return (passed[0].removed if passed else None), len(results)


def test_the_certificate_goes_to_the_last_before_the_first_that_fails():
    most = most_changes(N, 0.05)
    assert _certify(0, 3, most) == (30, 3)
    assert _certify(0, most, most + 1) == (20, 3)
    # Whatever comes after a failure is not looked at, even if it would pass.
    assert _certify(0, most + 1, 0) == (10, 2)
    assert _certify(most + 1, 0, 0) == (None, 1)
    assert _certify() == (None, 0)


def test_confidence_is_part_of_the_certificate():
    most = most_changes(N, 0.05, 0.95)
    assert _certify(most, confidence=0.95) == (10, 1)
    assert _certify(most, confidence=0.999) == (None, 1)


def test_of_those_that_pass_the_thinnest_counts():
    candidates = [_candidate(r, model=Labels(c)) for r, c in ((30, 0), (10, 2), (20, 3))]
    passed, results = certify(Predictor(Labels(0)), candidates, DATA, 0.05, 0.95)
    assert len(results) == 3
    assert passed[0].removed == 30
    assert passed[1].changed == 0
    # The bound is that of the network with most changes: it holds for each of them.
    assert passed[1].upper_bound == pytest.approx(upper_bound(3, N))


def test_the_bound_of_the_certificate_is_the_tolerance_where_one_failed():
    most = most_changes(N, 0.05)
    for changed, bound in (
        ((3,), upper_bound(3, N)),
        ((0, 5, 3), upper_bound(5, N)),
        ((0, 5, most + 1), 0.05),
        ((0, 5, most + 1, 0), 0.05),
    ):
        candidates = [_candidate(10 * (i + 1), model=Labels(c)) for i, c in enumerate(changed)]
        passed, _ = certify(Predictor(Labels(0)), candidates, DATA, 0.05, 0.95)
        assert passed[1].upper_bound == pytest.approx(bound, abs=1e-15)
        assert passed[1].upper_bound <= 0.05


def test_the_mildest_is_tested_first():
    chain = [_candidate(40, 12), _candidate(20, 5), _candidate(10, 0), _candidate(30, 4)]
    assert [c.removed for c in sequence_to_test(chain)] == [10, 20, 30, 40]
    assert sequence_to_test([]) == []


def test_a_candidate_that_a_thinner_one_clearly_beats_is_left_out():
    # Luck explains 5 changes against 4, not 30.
    chain = [_candidate(10, 30), _candidate(20, 5), _candidate(30, 4), _candidate(40, 12)]
    assert [c.removed for c in sequence_to_test(chain)] == [20, 30, 40]
