"""Gains of a recipe's records, the choice of a learning rate, and the comparison with the paper."""

import itertools

import numpy as np
import pytest

from fcompress.ablation import STEPS
from fcompress.experiments import measured, tables
from fcompress.experiments.results import Results
from fcompress.experiments.spec import Curve, Recipe
from fcompress.experiments.trials import trials_of

WIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0)
UNITS = 16  # of the 0.25x


def recipe(widths=WIDTHS, seeds=1, lr=0.1, published="fig4d_mlp"):
    curve = Curve(
        "one", "mlp", {"hidden": 64}, "digits", False, {"epochs": 1, "lr": lr}, widths, seeds,
        {"analyze": {}},
    )  # fmt: skip
    return Recipe("own", "paper", "", "", "", published, "curves", ("growth",), None, "", (curve,))


def record(trial, share, redundant, accuracy=0.5):
    """What a network gives, `share` of whose units is prunable and `redundant` units redundant."""
    units = round(UNITS * trial.width / WIDTHS[0])
    # Agreement falls from 1 to 0 around the share, so that 0.8 is crossed right there.
    grid = np.arange(STEPS + 1) / STEPS
    agreement = [float(np.clip(0.8 + (share - p), 0, 1)) if p else 1.0 for p in grid]
    crossed = next(i for i, a in enumerate(agreement) if a < 0.8)
    # Linear between the two grid points around the share.
    before, after = grid[crossed - 1], grid[crossed]
    top = agreement[crossed - 1]
    agreement[crossed] = top - (top - 0.8) * (after - before) / (share - before)
    explained = [0.9] * (units - redundant - 1) + [1.0] * (redundant + 1)
    curve = {
        "name": "network", "units": units, "examples": 9, "agreement": [agreement],
        "accuracy": None,
    }  # fmt: skip
    layer = {
        "name": "relu1", "units": units, "rows": 9, "explained": explained, "dead": [],
        "constant": [], "correlations": None,
    }  # fmt: skip
    return {
        "work": trial.work,
        "train": {"test_accuracy": accuracy, "train_accuracy": [1.0], "lr": 0.1},
        "measure": {
            "analyze": {
                "ablation": {
                    "network": curve, "layers": [], "tolerances": [0.2], "skipped": [],
                    "unit": "element", "units": {"relu1": units}, "accuracy": None, "seed": 0,
                    "rule": "",
                },
                "redundancy": {
                    "layers": [layer], "tolerances": [0.05], "skipped": [], "examples": 9,
                    "rule": "",
                },
            }
        },
    }  # fmt: skip


def results(shares, redundant, **options):
    wanted = recipe(**options)
    trials = tuple(trials_of(wanted))
    records = {
        t.id: record(t, shares[t.width], redundant[t.width]) for t in trials if t.width in shares
    }
    return Results(wanted, "", trials, records)


def gain(values):
    return np.mean([b / a for a, b in itertools.pairwise(values)])


def test_gains_are_those_of_the_planted_counts():
    shares = dict(zip(WIDTHS, (0.3, 0.4, 0.55, 0.6, 0.7), strict=True))
    redundant = dict(zip(WIDTHS, (4, 10, 30, 80, 200), strict=True))
    (found,) = measured.gains(results(shares, redundant)).values()
    by_quantity = {c.quantity: c for c in found.network}
    prunable = [shares[w] * w for w in WIDTHS]
    assert by_quantity["prunable"].gain == pytest.approx(gain(prunable), rel=1e-9)
    rest = [(1 - shares[w]) * w for w in WIDTHS]
    assert by_quantity["non_prunable"].gain == pytest.approx(gain(rest), rel=1e-9)
    counts = list(redundant.values())
    assert by_quantity["redundant"].gain == pytest.approx(gain(counts))
    assert by_quantity["redundant"].gain_last == pytest.approx(gain(counts[1:]))


def test_comparison_takes_the_doublings_of_the_published_plots():
    shares = dict(zip(WIDTHS, (0.3, 0.4, 0.55, 0.6, 0.7), strict=True))
    redundant = dict(zip(WIDTHS, (4, 10, 30, 80, 200), strict=True))
    rows = {row.quantity: row for row in tables.compare(results(shares, redundant))}
    prunable = gain([shares[w] * w for w in WIDTHS])
    assert rows["prunable"].here == pytest.approx((prunable, prunable))
    assert rows["prunable"].published == (2.03, 2.14)
    assert rows["prunable"].off == pytest.approx(max(prunable - 2.14, 0))
    assert rows["prunable"].same is True
    last = gain([10, 30, 80, 200])
    assert rows["redundant"].here == pytest.approx((last, last))
    assert rows["redundant"].doublings == 3
    assert rows["redundant"].all_doublings == pytest.approx((gain([4, 10, 30, 80, 200]),) * 2)
    assert rows["redundant"].off == pytest.approx(last - 2.45)


def test_units_that_keep_their_share_are_another_conclusion():
    rows = {
        row.quantity: row
        for row in tables.compare(
            results(dict.fromkeys(WIDTHS, 0.4), {w: round(20 * w) for w in WIDTHS})
        )
    }
    assert rows["prunable"].here == pytest.approx((2.0, 2.0))
    assert rows["prunable"].same is False and rows["prunable"].off == pytest.approx(0.03)
    assert rows["redundant"].same is False


def test_without_published_gains_nothing_is_said():
    rows = tables.compare(
        results(dict.fromkeys(WIDTHS, 0.4), {w: round(20 * w) for w in WIDTHS}, published=None)
    )
    assert all(row.off is None and row.same is None for row in rows)


def test_a_missing_width_ends_a_curve():
    shares = {w: 0.3 for w in WIDTHS if w != 0.5}
    (found,) = measured.gains(results(shares, {w: round(20 * w) for w in WIDTHS})).values()
    assert found.widths == (1.0, 2.0, 4.0)
    assert not measured.gains(results({1.0: 0.3}, {1.0: 9}))


def test_the_best_rate_is_that_of_all_networks_of_a_width():
    wanted = recipe(widths=(0.25, 0.5), seeds=2, lr=[1.0, 0.1, 0.01])
    trials = tuple(trials_of(wanted))
    accuracy = {1.0: (0.9, 0.99), 0.1: (0.8, 0.7), 0.01: (0.6, 0.85)}
    records = {}
    for t in trials:
        rate = t.work["train"]["lr"]
        records[t.id] = record(t, 0.3, 2, accuracy[rate][t.seed])
        records[t.id]["train"]["lr"] = rate
        if rate == 1.0 and t.seed == 1 and t.width == 0.25:
            records[t.id] = {"work": t.work, "failed": "training diverged"}
    found = Results(wanted, "", trials, records)
    # At 0.25x one network of rate 1 diverged; of the others 0.1 has the better mean.
    assert [r["train"]["lr"] for r in found.of("one", 0.25)] == [0.1, 0.1]
    assert [r["train"]["lr"] for r in found.of("one", 0.5)] == [1.0, 1.0]
    assert len(found.failed) == 1
