"""Gains of planted records, the choice of the learning rate, and the words of the comparison."""

import json
from dataclasses import asdict
from itertools import pairwise

import pytest
from cases.measured import (
    measured_network,  # networks with chosen numbers of prunable and redundant units
)

from fcompress.errors import FcompressError
from fcompress.experiments import recipe as recipes
from fcompress.experiments.report import tables
from fcompress.experiments.report.measured import analyzed_of, gains
from fcompress.experiments.report.summary import summary
from fcompress.experiments.report.tables import compare, range_text
from fcompress.experiments.trials.results import Results
from fcompress.experiments.trials.trial import trials_of
from fcompress.measure.growth import QUANTITIES, gain_of

WIDTHS = (0.25, 0.5, 1, 2, 4)
# Prunable share and redundant units (of 8 and 16 at 1x) by width.
SHARES = dict(zip(WIDTHS, (0.2, 0.25, 0.3, 0.4, 0.48), strict=True))
KEPT = dict(zip(WIDTHS, ((2, 3), (3, 6), (5, 11), (9, 20), (17, 38)), strict=True))


def own(folder, *changes, text=""):
    path = folder / "own.toml"
    path.write_text(
        'draw = ["growth"]\nfamily = "mlp"\ndata = "digits"\nmeasure.analyze = {}\n'
        f"{text}\n[smoke]\n"
    )
    ordinary = [f"widths={list(WIDTHS)}", *changes]
    return recipes.read(str(path), "smoke", ordinary)


def planted(trial, share=None, accuracy=0.5):
    """The record of a trial with the shares of its width, more prunable for later seeds."""
    own_share = SHARES[trial.width] if share is None else share
    one = measured_network(trial.width, own_share + 0.01 * trial.seed, KEPT[trial.width])
    course = {"lr": 0.1, "epochs": 1, "loss": [1.0], "train_accuracy": [1.0]}
    return json.loads(
        json.dumps(
            {
                "work": trial.work,
                "versions": {"fcompress": "0"},
                "data": {"spec": "digits", "sha256": "0" * 64, "sizes": {"train": 797}},
                "params": 100,
                "macs": 100,
                "train": {**course, "test_accuracy": accuracy},
                "measure": {
                    "analyze": {
                        "ablation": asdict(one.ablation),
                        "redundancy": asdict(one.redundancy),
                    }
                },
            }
        )
    )


def filled(recipe, make=planted, keep=lambda trial: True):
    every = tuple(trials_of(recipe))
    return Results(recipe, "made by hand", every, {t.id: make(t) for t in every if keep(t)})


def rows(results):
    return {row.quantity: row for row in compare(results)}


# --- gains ----------------------------------------------------------------------------------------


def test_gains_of_records_are_those_of_the_measurements(tmp_path):
    results = filled(own(tmp_path, "seeds=2"))
    (found,) = gains(results).values()
    measured = [
        measured_network(w, SHARES[w] + 0.01 * seed, KEPT[w]) for w in WIDTHS for seed in (0, 1)
    ]
    expected = gain_of(measured)
    assert found.network == expected.network and found.layers == expected.layers
    assert found.widths == WIDTHS and found.networks == (2,) * 5
    (loose,) = gains(results, 0.5, 0.1).values()
    assert loose.network == gain_of(measured, tolerance=0.5, redundancy_tolerance=0.1).network
    assert loose.network != found.network
    growth = {c.quantity: c for c in found.network}["prunable"]
    mean = [SHARES[w] + 0.005 for w in WIDTHS]
    doublings = pairwise(mean)
    assert growth.gain == pytest.approx(sum(2 * b / a for a, b in doublings) / 4)


def test_a_record_keeps_all_that_wasmeasured_network(tmp_path):
    trial = trials_of(own(tmp_path))[0]
    one = measured_network(trial.width, SHARES[trial.width], KEPT[trial.width])
    back = analyzed_of(planted(trial))
    assert back.ablation.network == one.ablation.network
    assert back.ablation.layers == one.ablation.layers
    assert back.redundancy == one.redundancy
    assert back.args["width"] == trial.width
    with pytest.raises(FcompressError, match=r"add measure\.analyze"):
        analyzed_of({"measure": {"shrunk": {}}})


@pytest.mark.parametrize(
    ("gone", "left"),
    [
        ((), WIDTHS),
        ((4,), (0.25, 0.5, 1, 2)),
        ((0.25, 0.5), (1, 2, 4)),
        ((0.5,), (1, 2, 4)),
        ((1,), (2, 4)),
        ((0.5, 2), None),
        (WIDTHS, None),
    ],
)
def test_widths_that_are_missing(gone, left, tmp_path):
    results = filled(own(tmp_path), keep=lambda trial: trial.width not in gone)
    assert results.missing == len(gone)
    found = gains(results)
    assert [result.widths for result in found.values()] == ([] if left is None else [left])
    assert bool(compare(results)) is (left is not None)
    page = summary(results, 0.0)
    assert f"{5 - len(gone)} of 5 trials" in page and "made by `made by hand`" in page


def test_a_missing_seed_leaves_the_other(tmp_path):
    results = filled(own(tmp_path, "seeds=2"), keep=lambda t: (t.width, t.seed) != (1, 0))
    (found,) = gains(results).values()
    assert found.widths == WIDTHS and found.networks == (2, 2, 1, 2, 2)


# --- the learning rate ----------------------------------------------------------------------------


def rated(accuracies):
    """Records with the accuracy of (learning rate, seed); None for one that diverged."""

    def make(trial):
        accuracy = accuracies[trial.work["train"]["lr"]][trial.seed]
        if accuracy is None:
            head = {key: planted(trial)[key] for key in ("work", "versions", "data")}
            return {**head, "failed": "the loss is no longer finite: it diverged"}
        return planted(trial, accuracy=accuracy)

    return make


@pytest.mark.parametrize(
    ("accuracies", "best"),
    [
        ({1.0: (0.9, 0.5), 0.1: (0.8, 0.7), 0.01: (0.1, 0.99)}, 0.1),  # the mean decides
        ({1.0: (0.7, 0.7), 0.1: (0.8, 0.8), 0.01: (0.9, 0.9)}, 0.01),
        ({1.0: (0.99, None), 0.1: (0.6, 0.6), 0.01: (0.5, 0.5)}, 0.1),  # one diverged
        ({1.0: (0.6, 0.6), 0.1: (0.6, 0.6), 0.01: (0.6, 0.6)}, 1.0),  # the first of equals
        ({1.0: (None, None), 0.1: (None, 0.9), 0.01: (0.9, None)}, None),
        ({1.0: (0.0, 0.0), 0.1: (None, 0.9), 0.01: (0.9, None)}, 1.0),
    ],
)
def test_the_best_learning_rate(accuracies, best, tmp_path):
    recipe = own(tmp_path, "seeds=2", "train.lr=[1.0, 0.1, 0.01]", "widths=[0.25]")
    results = filled(recipe, rated(accuracies))
    chosen = results.of("mlp", 0.25)
    assert [r["work"]["train"]["lr"] for r in chosen] == ([] if best is None else [best] * 2)
    assert [r["work"]["seed"] for r in chosen] == ([] if best is None else [0, 1])
    assert len(results.failed) == sum(a is None for pair in accuracies.values() for a in pair)
    assert results.missing == 0


def test_each_width_has_its_own_rate(tmp_path):
    recipe = own(tmp_path, "train.lr=[1.0, 0.1]")
    make = lambda t: planted(t, accuracy=t.work["train"]["lr"] * (1 if t.width < 1 else -1))  # noqa: E731
    results = filled(recipe, make)
    chosen = [results.of("mlp", w)[0]["work"]["train"]["lr"] for w in WIDTHS]
    assert chosen == [1.0, 1.0, 0.1, 0.1, 0.1]


def test_a_single_rate_leaves_out_only_what_diverged(tmp_path):
    recipe = own(tmp_path, "seeds=2", "train.lr=0.1", "widths=[0.25]")
    results = filled(recipe, rated({0.1: (None, 0.8)}))
    assert [r["work"]["seed"] for r in results.of("mlp", 0.25)] == [1]
    assert "1 trainings at learning rate 0.1 diverged" in summary(results, 0.0)


# --- beside the published -------------------------------------------------------------------------


def test_redundancy_is_over_the_last_three_doublings(tmp_path):
    results = filled(own(tmp_path, "published=fig4d_mlp"))
    (found,) = gains(results).values()
    by_quantity = {c.quantity: c for c in found.network}
    assert by_quantity["redundant"].gain != by_quantity["redundant"].gain_last
    for quantity, row in rows(results).items():
        curve = by_quantity[quantity]
        redundancy = quantity.endswith("redundant")
        assert row.here == ((curve.gain_last if redundancy else curve.gain),) * 2
        assert row.doublings == (3 if redundancy else 4)
        assert row.all_doublings == (curve.gain, curve.gain)
    assert tuple(rows(results)) == QUANTITIES


def test_published_and_here(tmp_path, monkeypatch):
    """A plot's ends are those of its curves; off is how far they reach beyond the published."""
    text = "[curves.low]\n[curves.high]\nargs = { hidden = 64 }"
    recipe = own(tmp_path, "published=fig4d_mlp", "widths=[1, 2]", text=text)
    shares = {("low", 1): 0.3, ("low", 2): 0.315, ("high", 1): 0.3, ("high", 2): 0.39}
    results = filled(recipe, lambda t: planted(t, share=shares[t.curve, t.width]))
    row = rows(results)["prunable"]
    assert row.here == pytest.approx((2.1, 2.6)) and row.published == (2.03, 2.14)
    assert row.off == pytest.approx(2.6 - 2.14) and row.same is True
    shares["low", 2] = 0.27  # 1.8: below 2
    low = filled(recipe, lambda t: planted(t, share=shares[t.curve, t.width]))
    row = rows(low)["prunable"]
    assert row.here == pytest.approx((1.8, 2.6)) and row.same is False
    assert row.off == pytest.approx(0.46)
    shares["high", 2] = 0.3
    row = rows(filled(recipe, lambda t: planted(t, share=shares[t.curve, t.width])))["prunable"]
    assert row.off == pytest.approx(2.03 - 1.8)
    assert "| prunable | 2.03 to 2.14 | 2.10 to 2.60 | 1 |" in summary(results, 0.0)


@pytest.mark.parametrize(
    ("quantity", "here", "printed", "same"),
    [
        ("prunable", (2.1, 3.0), [2.05, 2.2], True),
        ("prunable", (1.9, 3.0), [2.05, 2.2], False),
        ("prunable", (2.0, 2.0), [2.03, 2.14], False),  # as the network does
        ("prunable", (1.9, 3.0), [1.97, 2.7], True),  # some do not outgrow, in both
        ("redundant", (1.9, 3.0), [None, 2.2], None),
        ("non_prunable", (1.5, 1.9), [1.7, 1.98], True),
        ("non_prunable", (1.5, 2.1), [1.7, 1.98], False),
        ("non_redundant", (1.5, 2.1), [1.7, 2.3], True),
        ("non_redundant", (1.5, 2.1), [1.7, None], None),
        ("prunable", None, [2.0, 2.1], None),
    ],
)
def test_the_same_conclusion(quantity, here, printed, same):
    assert tables._same(quantity, here, printed) is same


@pytest.mark.parametrize(
    ("here", "printed", "off"),
    [
        ((2.1, 2.3), [2.0, 2.4], 0),
        ((1.9, 2.3), [2.0, 2.4], 0.1),
        ((2.1, 2.7), [2.0, 2.4], 0.3),
        ((1.5, 2.7), [2.0, 2.4], 0.5),
        ((2.3, 2.5), [2.31, None], 0.19),  # one curve is published
        (None, [2.0, 2.4], None),
        ((2.0, 2.1), [None, 2.4], None),
        ((2.0, 2.1), [None, None], None),
    ],
)
def test_off(here, printed, off):
    found = tables._off(here, printed)
    assert found is None if off is None else found == pytest.approx(off)


def test_layers_are_compared_where_the_paper_compares_layers(tmp_path):
    recipe = own(tmp_path, "published=alexnet_layers", "compare=layers")
    results = filled(recipe)
    (found,) = gains(results).values()
    layers = [c.gain for c in found.layers if c.quantity == "prunable"]
    network = next(c.gain for c in found.network if c.quantity == "prunable")
    row = rows(results)["prunable"]
    assert row.here == (min(layers), max(layers)) and row.published == (2.48, 3.2)
    redundant = [c.gain_last for c in found.layers if c.quantity == "redundant"]
    assert len(set(redundant)) == 2 and len(layers) == 2 and network is not None
    assert rows(results)["redundant"].here == (min(redundant), max(redundant))


def test_nothing_published(tmp_path):
    for row in compare(filled(own(tmp_path))):
        assert row.published == (None, None) and row.off is None and row.same is None
        assert row.here is not None
    assert range_text(None) == "-" and range_text([None, None]) == "-"
    assert range_text([2.0, 2.0]) == "2.00" and range_text([2.31, None]) == "2.31"
    assert range_text([1.0, 2.346]) == "1.00 to 2.35"


def test_all_tables_are_plain_values(tmp_path):
    results = filled(own(tmp_path, "published=fig4d_mlp"))
    content = tables.tables(results)
    assert json.loads(json.dumps(content, allow_nan=False))["compared"][0]["published"] == [
        2.03,
        2.14,
    ]
    assert content["accuracy"]["mlp"]["0.25"]["mean"] == 0.5
