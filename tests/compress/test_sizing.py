"""Sizes that people have to meet: counted on the network, or measured on it."""

import pytest
import torch
from cases.blocks import WITH_BLOCKS, build, inputs
from cases.trained import examples, trained

from fcompress import count, shrink
from fcompress.compress.sizing import Target
from fcompress.errors import ToleranceError
from fcompress.forward import cost


def data():
    return examples(900, seed=9)[0]


def held(model):
    return sum(t.nbytes for t in [*model.parameters(), *model.buffers()])


def test_parameters_and_bytes():
    model = trained()
    before = count(model, data())
    result = shrink(model, data(), max_params=400, method="factor")
    assert count(result.model, data()).params == result.params["after"] <= 400
    assert result.params["after"] > 340
    assert result.target["limits"] == {"params": 400} and not result.certified
    assert result.target["before"] == {"params": before.params}
    assert result.target["reached"] == {"params": result.params["after"]}
    result = shrink(model, data(), max_bytes=1600, method="factor")
    assert 1300 < held(result.model) <= 1600


def test_all_that_is_asked_for_holds():
    result = shrink(trained(), data(), max_params=400, max_macs=200, method="factor")
    assert result.macs["after"] <= 200 and result.params["after"] < 300
    assert set(result.target["limits"]) == {"params", "macs"}


@pytest.mark.parametrize("objective", ["macs", "params"])
def test_a_ratio_is_one_of_what_the_objective_counts(objective):
    result = shrink(trained(), data(), ratio=0.4, objective=objective, method="factor")
    pair = getattr(result, objective)
    assert 0.3 < pair["after"] / pair["before"] <= 0.4


@pytest.mark.parametrize("objective", ["macs", "params"])
@pytest.mark.parametrize("kind", WITH_BLOCKS.values(), ids=WITH_BLOCKS)
def test_blocks_that_go_are_counted(kind, objective):
    """One block computes nothing that is seen, so it goes at any size."""
    model = build(kind)
    with torch.no_grad():
        model.end(kind.blocks[-1]).zero_()
    how = {"method": "prune", "answer": "regression", "within": 1.0, "ratio": 0.6}
    x = inputs(kind, 300)
    result = shrink(model, x, objective=objective, **how)
    assert kind.blocks[-1] in result.blocks
    cost = {"macs": count(result.model, x).macs, "params": count(result.model, x).params}
    assert cost[objective] == result.target["reached"][objective]
    assert cost[objective] <= result.target["limits"][objective]
    kept = shrink(model, x, objective=objective, keep_depth=True, **how)
    assert kept.blocks == ()
    assert kept.target["reached"][objective] <= kept.target["limits"][objective]


@pytest.fixture
def clock(monkeypatch):
    """A network takes as many milliseconds as a thousandth of its MACs, and a little."""
    asked = []

    def latency(models, example, **more):
        asked.append(len(example))
        return [cost.count(one, example).macs / 1000 + 0.01 for one in models]

    monkeypatch.setattr("fcompress.compress.sizing.timing.latency", latency)
    return asked


def test_a_latency_is_measured_on_the_network_itself(clock):
    model = trained()
    result = shrink(model, data(), max_latency=0.4, batch=7, method="factor")
    assert result.target["reached"]["latency"] <= 0.4
    assert result.macs["after"] / 1000 + 0.01 == result.target["reached"]["latency"]
    assert result.target["batch"] == 7 and 7 in clock
    half = shrink(model, data(), ratio=0.5, objective="latency", method="factor")
    target = half.target
    assert target["reached"]["latency"] <= 0.5 * target["before"]["latency"]
    assert target["reached"]["latency"] > 0.35 * target["before"]["latency"]
    assert target["batch"] == 64


def test_a_latency_that_is_not_held_when_measured_again_is_said(monkeypatch):
    calls = []

    def latency(models, example, **more):
        calls.append(None)
        # Only what was not refitted is fast.
        return [0.1 if len(calls) < 8 else 9.0 for _ in models]

    monkeypatch.setattr("fcompress.compress.sizing.timing.latency", latency)
    with pytest.raises(ToleranceError, match=r"3 networks .* up to 9 when"):
        shrink(trained(), data(), max_latency=0.5, method="factor")


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"max_params": 5}, "at most 5 parameters cannot be reached: .* remain .of [0-9]+.; ask"),
        ({"max_bytes": 5}, "at most 5 bytes of parameters and buffers cannot be reached"),
        ({"max_macs": 5}, "at most 5 MACs cannot be reached"),
        ({"max_latency": 0.001}, r"at most 0.001 ms for 64 examples cannot be reached: .* 0.021"),
    ],
)
def test_what_even_the_smallest_misses_is_said(asked, words, clock):
    with pytest.raises(ToleranceError, match=words):
        shrink(trained(), data(), method="factor", **asked)


@pytest.mark.parametrize(
    "asked",
    [
        {"max_params": 0},
        {"max_bytes": 1.5},
        {"max_latency": 0.0},
        {"max_latency": float("nan")},
        {"batch": 0},
        {"tol": 0.1, "max_latency": 3.0},
        {"tol": 0.1, "max_params": 3},
    ],
)
def test_numbers_out_of_range_are_refused(asked):
    with pytest.raises(ValueError, match=r"expected|contradict"):
        shrink(trained(), data(), **asked)


def test_limits_and_a_ratio_together():
    target = Target(macs=70, ratio=0.5)
    assert target.limits({"macs": 100, "params": 10, "bytes": 40}) == {"macs": 50}
    assert Target(macs=30, ratio=0.5).limits({"macs": 100})["macs"] == 30
    assert not target.timed and Target(ratio=0.5, share_of="latency").timed
