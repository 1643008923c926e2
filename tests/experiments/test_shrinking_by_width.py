"""How small each width of a family gets: the measure, its summary and its figure."""

import json
import warnings

import pytest
import torch
from cases.trained import weights_of

import fcompress
from fcompress.errors import FcompressError
from fcompress.experiments.measures.shrinking_by_width import figure, shrunk, sizes


def trial(width, params, after, failed=False, accuracy=0.9, tolerance=0.2):
    """The record of a trial, by hand: params and half as many MACs."""
    found = {
        "tolerance": tolerance,
        "params": {"before": params, "after": after},
        "macs": {"before": params // 2, "after": after // 2},
        "accuracy": {"before": accuracy, "after": accuracy - 0.1},
        "agreement": 0.85,
    }
    if failed:
        found = {"tolerance": tolerance, "failed": "no thinner network"}
    return {
        "params": params,
        "macs": params // 2,
        "train": {"test_accuracy": accuracy},
        "measure": {"shrunk": {"method": "hybrid", "found": [found]}},
    }


@pytest.fixture(scope="module")
def digits():
    splits = fcompress.load_data("digits")
    trials = {}
    for width in (0.25, 1.0):
        model = fcompress.build("mlp", width=width, in_features=64, seed=0)
        config = fcompress.default_config("mlp", epochs=10, device="cpu")
        result = fcompress.train(model, splits, config)
        before = weights_of(result.model)
        state = torch.get_rng_state()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            record = shrunk(result.model, splits, {"seed": 0, "tolerances": [0.2, 0.05]})
        assert weights_of(result.model) == before
        assert torch.equal(torch.get_rng_state(), state)
        cost = fcompress.count(result.model, splits.test.batch(torch.arange(1))[0])
        trials[width] = [
            {
                "params": cost.params,
                "macs": cost.macs,
                "train": {"test_accuracy": result.test_accuracy},
                "measure": {"shrunk": record},
            }
        ]
    return trials, splits


def test_each_tolerance_is_recorded_with_its_bound(digits):
    trials, splits = digits
    for (whole,) in trials.values():
        record = whole["measure"]["shrunk"]
        assert json.loads(json.dumps(record)) == record
        assert [found["tolerance"] for found in record["found"]] == [0.2, 0.05]
        for found in record["found"]:
            assert found["params"]["before"] == whole["params"]
            assert found["macs"]["before"] == whole["macs"]
            assert found["accuracy"]["before"] == pytest.approx(whole["train"]["test_accuracy"])
            assert found["certified"]
            assert 1 - found["tolerance"] <= found["lower_bound"] <= found["agreement"]
            assert found["test_examples"] == len(splits.test)
            before, after = found["units"]["fc1"]
            assert found["units"]["out"] == [10, 10]
            # All that an MLP with one hidden layer can lose are hidden units: 64 + 10 weights
            # and a bias each.
            assert found["params"]["before"] - found["params"]["after"] == 75 * (before - after)
        assert record["found"][0]["params"]["after"] < record["found"][1]["params"]["after"]


def test_the_wide_network_shrinks_below_the_1x(digits):
    trials, _ = digits
    found = {(size.tolerance, size.width): size for size in sizes(trials)}
    assert list(found) == [(0.2, 0.25), (0.2, 1.0), (0.05, 0.25), (0.05, 1.0)]
    for size in found.values():
        assert size.networks == 1 and size.failed == 0
        assert size.params_of_1x == size.params[1] / (64 * 128 + 128 + 1290)
        assert size.params_of_1x < 0.6
    assert found[0.2, 1.0].params_of_1x < 0.2


def test_a_network_that_cannot_be_certified_says_so(digits):
    _, splits = digits
    model = fcompress.build("mlp", width=0.25, in_features=64, seed=0).eval()
    # 300 examples cannot prove a bound of one in ten thousand.
    (found,) = shrunk(model, splits, {"seed": 0, "tolerances": [1e-4]})["found"]
    assert set(found) == {"tolerance", "failed"} and found["failed"]


def test_means_deviations_and_the_1x():
    trials = {
        2.0: [trial(2, 400, 100), trial(2, 400, 140, accuracy=0.8)],
        1.0: [trial(1, 200, 80), trial(1, 200, 0, failed=True)],
        4.0: [],
    }
    one, two = sizes(trials)
    assert (one.width, two.width) == (1.0, 2.0)
    assert one.params == (200, 140) and one.failed == 1  # 80, and 200 that stay
    assert one.accuracy == pytest.approx((0.9, 0.85)) and one.agreement == pytest.approx(0.925)
    assert two.params == (400, 120) and two.macs == (200, 60)
    assert two.params_std == (0, pytest.approx(800**0.5))
    assert two.params_of_1x == 0.6 and two.macs_of_1x == 0.6
    alone = sizes({2.0: trials[2.0]})
    assert alone[0].params_of_1x is None
    assert sizes({}) == ()


def test_other_trials_are_refused():
    with pytest.raises(FcompressError, match=r"add measure\.shrunk"):
        sizes({1.0: [{"params": 1, "macs": 1, "train": None, "measure": {"analyze": {}}}]})
    mixed = {1.0: [trial(1, 200, 100)], 2.0: [trial(2, 400, 100, tolerance=0.1)]}
    with pytest.raises(FcompressError, match="different tolerances"):
        sizes(mixed)


def test_the_figure_has_the_line_of_the_1x(digits):
    trials, _ = digits
    params, macs, accuracy = figure(trials, "mlp on digits").axes
    for axes, key in ((params, "params"), (macs, "macs")):
        assert axes.get_xscale() == axes.get_yscale() == "log"
        (line,) = [x for x in axes.lines if x.get_label() == "same size as the 1x"]
        assert set(line.get_ydata()) == {trials[1.0][0][key]}
    assert len(accuracy.lines) == 3
    without = figure({0.25: trials[0.25]}).axes[0]
    assert "same size as the 1x" not in [x.get_label() for x in without.lines]
