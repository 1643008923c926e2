import dataclasses
import math
from types import SimpleNamespace

import pytest
import torch
from cases.trained import examples, trained
from torch import nn

from fcompress.certify.bounds import examples_at, most_changes, upper_bound
from fcompress.certify.fixed_sequence import Candidate, certify, refusal, sequence_to_test
from fcompress.certify.labels import changed_labels
from fcompress.compress import search
from fcompress.compress.pipeline import shrink
from fcompress.compress.search import RUNGS, SHRINKING, lattice, path, within
from fcompress.errors import FcompressError, ToleranceError
from fcompress.forward.predictor import Predictor
from fcompress.showing.progress import silent


def _candidate(removed, changed=0, n=1000, model=None):
    return Candidate(removed, {}, model or nn.Identity(), 1000 - removed, changed, n)


def _maker(changed_at):
    """Makes candidates that change `changed_at(removed)` of 1000, each at most once."""
    tried = []

    def make(removed):
        assert removed not in tried
        tried.append(removed)
        return _candidate(removed, changed_at(removed))

    return make, tried


def _never(candidate):
    return False


@pytest.mark.parametrize("total", [1, 2, 3, 12, 40, 1023, 20_000])
def test_the_lattice_goes_from_one_unit_to_everything(total):
    points = lattice(total)
    assert points == sorted(set(points))
    assert points[0] == 1 or total == 0
    assert points[-1] == total
    left = [total + 1 - removed for removed in points]
    assert all(a * SHRINKING - b <= 1 for a, b in zip([total + 1, *left], left, strict=False))


@pytest.mark.parametrize("units", [1, 2, 3, 40, 500])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 0.98, 1.0])
def test_the_path_leads_to_the_last_point_that_is_allowed(units, share):
    limit = round(share * units)
    make, tried = _maker(lambda removed: 0 if removed <= limit else 100)
    found = path(units, make, lambda c: c.changed > 50)
    assert [c.removed for c in found] == sorted({c.removed for c in found})
    assert max((c.removed for c in found if not c.changed), default=0) == limit
    # Whatever is beyond is the last.
    assert sum(c.changed > 50 for c in found[len(RUNGS) + 1 :]) <= 1
    assert len(tried) <= 18


def test_nothing_to_remove_is_no_candidate():
    assert lattice(0) == []
    assert path(0, _candidate, _never) == []


@pytest.mark.parametrize("power", [1, 2, 4])
def test_the_path_begins_well_before_labels_change(power):
    make, tried = _maker(lambda removed: round(900 * (removed / 4000) ** power))
    found = path(4000, make, lambda c: c.changed > 70)
    assert found[0].removed <= 0.1 * found[len(RUNGS)].removed
    assert found[len(RUNGS)].changed <= 10
    assert found[-1].changed > 70 >= found[-2].changed
    # Nothing is tried twice, and little that does not meet the certificate.
    assert len(tried) <= len(found) + 7


def test_the_path_takes_wider_steps_where_many_labels_change():
    make, _ = _maker(lambda removed: round(200 * removed / 1000))
    found = path(1000, make, _never)
    for a, b in zip(found[len(RUNGS) :], found[len(RUNGS) + 1 : -1], strict=False):
        left = 1001 - b.removed
        if a.removed >= 100 and left > 100:
            steps = 2 if a.changed > 30 else 1
            assert left / (1001 - a.removed) == pytest.approx(SHRINKING**steps, abs=0.02)


def test_where_changes_jump_networks_in_between_are_tried():
    for cliff in (13, 137, 500, 777, 995):
        make, tried = _maker(lambda removed, cliff=cliff: 0 if removed < cliff else 400)
        found = path(1000, make, lambda c: c.changed > 70)
        assert found[-2].removed == cliff - 1
        assert found[-1].removed == cliff
        assert len(tried) < 20


def test_a_tighter_tolerance_takes_the_beginning_of_the_same_sequence():
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        noise = (1 + torch.rand(601, generator=generator)).tolist()
        power = 1 + 4 * float(torch.rand(1, generator=generator))
        before = []
        for most in (0, 3, 10, 30, 100, 300, 1000):

            def beyond(candidate, most=most):
                return candidate.changed > most

            make, _ = _maker(
                lambda r, p=power, z=noise: min(1000, round(600 * (r / 600) ** p * z[r]))
            )
            sequence = [c.removed for c in sequence_to_test(path(600, make, beyond), beyond)]
            assert sequence[: len(before)] == before
            before = sequence
        assert len(before) > 10


class Flips(nn.Module):
    """Gives label 1 to the share `rate` of all examples, by their column's uniform number."""

    def __init__(self, rate, column):
        super().__init__()
        self.rate, self.column = rate, column

    def forward(self, x):
        one = (x[:, self.column] < self.rate).float()
        return torch.stack([1 - one, one], 1)


COLUMNS = 5


class Builder:
    """As much of a `CandidateBuilder` as `within` needs, over networks of given true shares."""

    def __init__(self, rates, seen, unseen, columns):
        self.rates, self.seen, self.columns = rates, seen, columns
        self.steps, self.distill_effort, self.report, self.tried = len(rates), None, silent, []
        self.context = SimpleNamespace(original=Predictor(Flips(0.0, 0)))
        self.roles = SimpleNamespace(certification=_Split(unseen))

    def make(self, removed):
        model = Flips(self.rates[removed - 1], removed % self.columns)
        changed, n = changed_labels(model, [self.seen], torch.zeros(len(self.seen)))
        found = _candidate(removed, changed, n, model)
        self.tried.append(found)
        return found


class Distilling(Builder):
    """The same, which can distil: half as many labels change."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.distill_effort = 1.0

    def make_distilled(self, removed):
        model = Flips(0.5 * self.rates[removed - 1], removed % self.columns)
        changed, n = changed_labels(model, [self.seen], torch.zeros(len(self.seen)))
        found = dataclasses.replace(_candidate(removed, changed, n, model), distill={})
        self.tried.append(found)
        return found


class _Split(list):
    """One batch, with the number of its examples as length."""

    def __init__(self, inputs):
        super().__init__([(inputs, None)])
        self.count = len(inputs)

    def __len__(self):
        return self.count


def _curves(generator):
    """True shares of changed labels: smooth, in steps, with bumps, by accident falling."""
    total = int(torch.randint(1, 400, (1,), generator=generator))
    at = torch.arange(1, total + 1) / total
    power = 0.5 + 6 * float(torch.rand(1, generator=generator))
    rates = float(torch.rand(1, generator=generator)) * at**power
    kind = int(torch.randint(3, (1,), generator=generator))
    if kind == 1:
        rates = rates * (0.3 + 1.4 * torch.rand(total, generator=generator))
    if kind == 2:
        rates = torch.round(rates * 8) / 8 + 0.002
    return rates.clamp(0, 1).tolist()


TOLERANCES = (0.01, 0.015, 0.02, 0.03, 0.05, 0.07, 0.1, 0.13, 0.2, 0.3, 0.5, 0.8)


def _certified(seed, tolerances=TOLERANCES, builder=Builder):
    """Units removed at each tolerance, 0 where nothing is certified."""
    generator = torch.Generator().manual_seed(seed)
    rates = _curves(generator)
    seen, unseen = (torch.rand(n, COLUMNS, generator=generator) for n in (200, 300))
    columns = 1 if seed % 2 else COLUMNS
    found = []
    for tolerance in tolerances:
        try:
            found.append(
                within(builder(rates, seen, unseen, columns), tolerance, 0.95).candidate.removed
            )
        except ToleranceError as error:
            assert "\n" not in str(error)
            found.append(0)
    return found


@pytest.mark.parametrize("networks", [6, pytest.param(60, marks=pytest.mark.slow)])
def test_a_looser_tolerance_never_gives_less(networks):
    results = [_certified(seed) for seed in range(networks)]
    assert all(found == sorted(found) for found in results)
    # It was no empty exercise.
    assert sum(len(set(found)) > 3 for found in results) > networks / 2
    assert sum(found[0] == 0 for found in results) > networks / 12


def test_a_looser_tolerance_never_gives_less_where_networks_are_distilled():
    some = TOLERANCES[::3]
    results = [_certified(seed, some, Distilling) for seed in range(6)]
    assert all(found == sorted(found) for found in results)
    # Distilled networks were reached: more goes than without.
    assert sum(map(sum, results)) > sum(sum(_certified(seed, some)) for seed in range(6))


def test_from_the_last_mild_network_on_all_are_distilled():
    rates = (torch.arange(1, 1001) / 1000).square().tolist()
    seen = torch.rand(2000, COLUMNS, generator=torch.Generator().manual_seed(0))
    builder = Distilling(rates, seen, seen, 1)
    found = within(builder, 0.2, 0.95)
    assert found.candidate.distill is not None
    distilled = [c.removed for c in builder.tried if c.distill is not None]
    assert len(distilled) == len(set(distilled)) < 12
    mild = [c.removed for c in builder.tried if c.distill is None and c.changed <= 20]
    assert min(distilled) == max(mild)


def test_a_sequence_that_depends_on_the_tolerance_can_give_less(monkeypatch):
    # As a control: the three last points of the path only, as bisection might have found them.
    monkeypatch.setattr(search, "path", lambda *arguments: path(*arguments)[-4:])
    results = map(_certified, range(60))
    assert any(found != sorted(found) for found in results)


@pytest.mark.parametrize("method", ["hybrid", "prune"])
@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_looser_tolerance_never_gives_less_of_a_real_network(method, seed):
    x, _ = examples(1000, seed=seed + 50)
    macs = []
    for tolerance in (0.02, 0.03, 0.05, 0.07, 0.1, 0.2, 0.4):
        try:
            result = shrink(trained(seed), [x], tolerance, method=method, seed=seed)
            macs.append(result.macs["after"])
        except FcompressError:
            macs.append(result.macs["before"] if macs else math.inf)
    assert macs == sorted(macs, reverse=True)
    assert len(set(macs)) > 2


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
    chain = [_candidate(10, 0), _candidate(20, 5), _candidate(30, 4), _candidate(40, 12)]
    assert sequence_to_test(chain, _never) == chain
    assert sequence_to_test([], _never) == []


def test_what_is_beyond_hope_is_not_tested():
    chain = [_candidate(10, 0), _candidate(20, 5), _candidate(30, 40)]
    assert [c.removed for c in sequence_to_test(chain, lambda c: c.changed > 9)] == [10, 20]


def test_a_candidate_that_the_next_one_clearly_beats_is_left_out():
    # Luck explains 5 changes against 4, not 30.
    chain = [_candidate(10, 30), _candidate(20, 5), _candidate(30, 4), _candidate(40, 12)]
    assert [c.removed for c in sequence_to_test(chain, _never)] == [20, 30, 40]
    # What comes later says nothing, so that a longer path begins like a shorter one.
    chain = [_candidate(10, 5), _candidate(20, 9), _candidate(30, 0), _candidate(40, 12)]
    assert [c.removed for c in sequence_to_test(chain, _never)] == [10, 30, 40]


def _refusal(seen, unseen, tolerance, n=300, candidates=18):
    tried = [_candidate(i + 1, seen + i, 200, Labels(unseen)) for i in range(candidates)]
    data = [(torch.arange(n).float()[:, None], None)]
    passed, results = certify(Predictor(Labels(0)), tried, data, tolerance, 0.95)
    assert passed is None
    return refusal(tried, tried, results, tolerance, 0.95)


def test_an_error_says_what_was_shown_and_what_would_help():
    said = _refusal(seen=1, unseen=1, tolerance=0.01)
    assert said == (
        "no thinner network could be certified within a tolerance of 0.01: of 18 candidates the "
        "mildest changed 1 of 300 certification labels, which proves 1.58%; certifying 1% needs "
        "about 913 certification examples if 1 in 250 changes; bring more data"
    )
    # What it asks for is enough, at that rate.
    assert upper_bound(math.ceil(913 / 250), 913) <= 0.01 < upper_bound(4, 912)


def test_more_data_is_not_advised_where_it_would_not_help():
    said = _refusal(seen=20, unseen=30, tolerance=0.05)
    proven = upper_bound(30, 300)
    assert "1 in 10 changes, so more data would not help" in said
    assert f"a tolerance of at least {math.ceil(1e4 * proven) / 100:.2f}%" in said
    assert "bring more data" not in said


def test_a_looser_tolerance_is_not_advised_where_data_is_missing():
    for tolerance in (0.01, 0.02, 0.05):
        unseen = most_changes(300, tolerance) + 1
        said = _refusal(seen=0, unseen=unseen, tolerance=tolerance)
        assert said.endswith("bring more data")
        assert "a tolerance of at least" not in said


def test_an_error_without_a_test_speaks_of_the_search():
    said = refusal([_candidate(1, 70), _candidate(2, 30)], [], [], 0.05, 0.95)
    assert "of 2 candidates the best changed 30 of 1000 search labels" in said
    assert "every group has one unit left" in refusal([], [], [], 0.05, 0.95)


@pytest.mark.parametrize("tolerance", [0.01, 0.05, 0.3])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.8, 1.0, 2.0])
def test_how_many_examples_certify_at_a_rate(tolerance, share):
    rate = share * tolerance
    needed = examples_at(rate, tolerance, more_than=40)
    if share >= 1:
        assert needed is None
    else:
        assert needed > 40
        assert upper_bound(math.ceil(rate * needed - 1e-9), needed) <= tolerance + 1e-12
