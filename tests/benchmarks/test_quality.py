"""The comparison of methods: the search, torch-pruning as a rival, records and tables."""

import json
import math

import pytest
from cases.trained import examples, trained, weights_of
from click.testing import CliRunner

import fcompress
from benchmarks import bench
from benchmarks.quality import networks, report
from benchmarks.quality import run as quality
from benchmarks.quality import search as searching
from benchmarks.rivals import base as rivals
from benchmarks.rivals import torch_pruning as pruning
from fcompress.comparison import torch_pruning as comparison
from fcompress.forward.predictor import Predictor

N = 100_000


def setting(seed: int = 0):
    model = trained(seed)
    batches = list(examples(512, seed=seed + 9)[0].split(64))
    return rivals.Setting(model, fcompress.find_groups(model, batches[0][:4]), batches, seed)


def network_of(amount: float, changed: float, **values):
    macs = int(1e6 * (1 - amount) ** 2)
    return searching.Evaluation(amount, macs, macs, round(changed * N), N, 0.0, **values)


def smooth(power: float, scale: float):
    """A method whose disagreement is scale * (amount / (1 - amount))^power, and its inverse."""

    def evaluate(amount):
        return network_of(amount, min(scale * (amount / (1 - amount)) ** power, 0.9))

    def remaining(tolerance):
        return 1 / (1 + (tolerance / scale) ** (1 / power))

    return evaluate, remaining


@pytest.mark.parametrize("power", [1.0, 2.0, 3.5])
@pytest.mark.parametrize("scale", [1e-4, 1e-2, 0.2])
def test_search_finds_the_thinnest_network(power, scale):
    evaluate, remaining = smooth(power, scale)
    known = searching.search(evaluate)
    assert len(known) <= sum(searching.STEPS.values()) == 12
    for tolerance in (0.05, 0.01):
        best = max(remaining(tolerance), searching.LEAST)
        found = searching.smallest(known, tolerance, "macs")
        assert best <= 1.01 * (1 - found.amount)  # labels are whole
        assert 1 - found.amount < 1.15 * best


def test_search_goes_the_same_way_again():
    evaluate, _ = smooth(2.0, 0.05)
    assert searching.search(evaluate) == searching.search(evaluate)


def test_search_when_nothing_or_everything_passes():
    known = searching.search(lambda amount: network_of(amount, 0.9))
    assert searching.smallest(known, 0.2, "macs") is None
    known = searching.search(lambda amount: network_of(amount, 0.0))
    assert 1 - searching.smallest(known, 0.01, "params").amount < 2 * searching.LEAST


def test_a_method_that_cannot_do_the_network_is_given_up():
    known = searching.search(lambda amount: network_of(amount, 0.0, error="no"))
    assert len(known) == searching.HOPELESS
    assert searching.smallest(known, 0.2, "macs") is None


def test_search_begins_with_given_amounts():
    evaluate, _ = smooth(2.0, 0.05)
    known = searching.search(evaluate, {0.05: 1}, (0.3, 0.9))
    assert [e.amount for e in known[:2]] == [0.3, 0.9] and 0.3 < known[2].amount < 0.9


def test_the_rivals_are_those_of_compare():
    given = setting()
    ours = comparison.Given(Predictor(given.model), given.batches, given.seed)
    assert [r.name for r in pruning.RIVALS] == [r.name for r in comparison.RIVALS]
    for rival, other in zip(pruning.RIVALS[:4], comparison.RIVALS, strict=False):
        assert weights_of(rival.make(given, 0.5)) == weights_of(other.make(ours, 0.5))


L1 = pruning.Pruning(comparison.Pruning("l1", False))


class Counting:
    """A rival that counts what it makes and can be killed on the way."""

    name, summary = "counting", "for tests"

    def __init__(self, killed_after=math.inf):
        self.made, self.killed_after = [], killed_after

    def make(self, given, amount):
        if len(self.made) >= self.killed_after:
            raise KeyboardInterrupt
        self.made.append(amount)
        return L1.make(given, amount)


@pytest.fixture
def job(tmp_path, monkeypatch):
    given = setting()
    search, _ = examples(300, seed=70)
    test, labels = examples(300, seed=71)
    answer = [networks.labels_of(given.model, [x], 4) for x in (search, test)]
    cost = fcompress.count(given.model, search)
    case = networks.Case(
        given, (search,), ((test, labels),), *answer, cost.macs, cost.params, 0.9, {"network": "t"}
    )
    monkeypatch.setattr(quality, "case_of", lambda *_: case)
    monkeypatch.setattr(networks.labels_of, "__defaults__", (4,))
    monkeypatch.setitem(quality.KIND, "counting", "torch-pruning")
    (tmp_path / "quality" / "t").mkdir(parents=True)
    return quality.Job("t", "counting", tmp_path, None, True)


def without_times(record):
    for evaluation in record["evaluations"]:
        evaluation.pop("seconds")
    return record


def test_a_killed_run_goes_on(job, monkeypatch):
    whole = Counting()
    monkeypatch.setitem(quality.METHODS, "counting", whole)
    record = quality.measured(job)
    assert json.loads(job.path.read_text()) == record
    job.path.unlink()
    first = Counting(killed_after=3)
    monkeypatch.setitem(quality.METHODS, "counting", first)
    with pytest.raises(KeyboardInterrupt):
        quality.measured(job)
    second = Counting()
    monkeypatch.setitem(quality.METHODS, "counting", second)
    assert without_times(quality.measured(job)) == without_times(record)
    assert set(first.made) | set(second.made) == set(whole.made)
    assert len(second.made) < len(whole.made)
    third = Counting()
    monkeypatch.setitem(quality.METHODS, "counting", third)
    quality.measured(job)
    assert third.made == []


def test_agreement_on_test_is_that_of_the_chosen_network(job, monkeypatch):
    monkeypatch.setitem(quality.METHODS, "counting", Counting())
    record = quality.measured(job)
    row = next(r for r in report.rows_of([record]) if r["tolerance"] == 0.2)
    case = quality.case_of()
    thin = L1.make(case.setting, record["smallest"]["macs"]["0.2"])
    agreement = fcompress.verify(case.setting.model, thin, case.test)
    assert row["macs_test"] == pytest.approx(agreement.rate)
    assert row["macs_accuracy"] == pytest.approx(agreement.accuracy["after"])
    assert row["macs"] == fcompress.count(thin, case.search[0]).macs / case.macs
    assert row["macs_search"] >= 0.8


def test_a_method_that_fails_is_reported(job, monkeypatch):
    failing = Counting()
    failing.make = lambda given, amount: 1 / 0
    monkeypatch.setitem(quality.METHODS, "counting", failing)
    record = quality.measured(job)
    assert record["failed"].startswith("ZeroDivisionError")
    assert "fails: ZeroDivisionError" in quality.line(record)
    record["facts"] |= {"data": "d", "epochs": 1, "calibration": 1, "search": 1, "test": 1}
    assert "| counting | fails: ZeroDivisionError" in report.markdown([record], "bench")


def record_of(network: str, method: str, kind: str, shares: dict[float, float | None]):
    """A record with one network for each tolerance, by its share of MACs."""
    made = {
        f"{t:g}": None if share is None else network_of(1 - share, t / 2).to_dict()
        for t, share in shares.items()
    }
    evaluations = [e | {"macs": int(1e6 * (1 - e["amount"]))} for e in made.values() if e]
    amounts = {t: None if e is None else e["amount"] for t, e in made.items()}
    facts = {"network": network, "method": method, "summary": f"does {method}", "data": "d"}
    return {
        "facts": facts | {"epochs": 1, "calibration": 9, "search": N, "test": 9},
        "kind": kind,
        "wide": {"macs": 1_000_000, "params": 1_000_000, "accuracy": 0.9},
        "evaluations": evaluations,
        "smallest": {"macs": amounts, "params": amounts},
        "test": {str(a): {"n": 9, "agreement": 0.97, "accuracy": 0.9} for a in amounts.values()},
        "failed": None,
    }


@pytest.fixture
def records():
    def all_of(method, kind, at_95, at_99):
        shares = {0.2: at_95, 0.1: at_95, 0.05: at_95, 0.02: at_99, 0.01: at_99}
        return record_of("resnet20", method, kind, shares)

    return [
        all_of("tp-l1-layer", "torch-pruning", 0.8, None),
        all_of("tp-l2-layer", "torch-pruning", 0.6, 0.9),
        all_of("folding", "reconstruction", 0.3, 0.5),
        all_of("hybrid", "fcompress", 0.15, 0.45),
        all_of("hybrid+polish", "fcompress", 0.12, 0.2),
    ]


def test_goals_compare_with_the_best_of_each_kind(records):
    lines = report.goals(report.rows_of(records))
    at_95, at_99 = (next(x for x in lines if f"| resnet20 | {a} |" in x) for a in ("0.95", "0.99"))
    assert "| tp-l2-layer 60.0% (0.970) | 0.25 | 0.33 reached |" in at_95
    assert "| folding 30.0% (0.970) | 0.50 | 0.70 reached |" in at_95
    assert "| 12.0% (0.970) | 0.80 | 0.60 missed |" in at_95
    assert "| 0.50 | 0.50 reached |" in at_99 and "| 0.90 | 0.80 missed |" in at_99


def test_the_picture_is_drawn(records):
    picture = report.png(records)
    assert picture.startswith(b"\x89PNG") and len(picture) > 10_000


def test_results_are_written(records, tmp_path):
    report.save(records, tmp_path / "results", "scripts/bench quality")
    text = (tmp_path / "results" / "quality.md").read_text()
    assert "`scripts/bench quality`" in text and "- `folding`: does folding" in text
    assert "| tp-l1-layer | 80.0% | 80.0% | 80.0% | none | none |" in text
    assert len(json.loads((tmp_path / "results" / "quality.json").read_text())) == len(records)


def test_names_are_checked(tmp_path):
    result = CliRunner().invoke(bench.main, ["quality", "--methods", "magic"])
    assert result.exit_code == 2 and "no method 'magic'" in result.output
    assert list(tmp_path.iterdir()) == []
