"""Images that maximise units: networks whose best images are known; the measure and its figure."""

import copy
import json
import math

import numpy as np
import pytest
import torch
from cases.trained import weights_of
from torch import nn

import fcompress
from fcompress.errors import FcompressError, UnsupportedNetworkError
from fcompress.experiments.measures.feature_images import (
    COLOURS,
    feature_images,
    margins,
    transformed,
    unit_means,
)
from fcompress.experiments.measures.interpretability import compare, sheet_images, visualise
from fcompress.experiments.report.feature_figure import figure
from fcompress.forward.predictor import Predictor
from fcompress.measure.hooks import before_relu, observe

LOW, HIGH = torch.tensor([-1.0]), torch.tensor([1.0])


def edges(inplace=False):
    """Feature maps: brightness, darkness, vertical edge, never active, asleep on flat images."""
    conv = nn.Conv2d(1, 5, 3, padding=1, padding_mode="replicate")
    weight = torch.zeros(5, 1, 3, 3)
    weight[0, 0, 1, 1] = 1.0
    weight[1, 0, 1, 1] = -1.0
    weight[2, 0, :, 0], weight[2, 0, :, 2] = -1.0, 1.0
    weight[4] = weight[2]
    with torch.no_grad():
        conv.weight.copy_(weight)
        conv.bias.copy_(torch.tensor([0.0, 0.0, 0.0, -100.0, -3.0]))
    return nn.Sequential(conv, nn.ReLU(inplace=inplace), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def drawn(model, units, layer="1", shape=(1, 12, 10), **settings):
    settings = {"steps": 60, "low": LOW, "high": HIGH, **settings}
    return feature_images(model, layer, units, shape=shape, **settings)


@pytest.mark.parametrize("inplace", [False, True])
def test_images_show_what_the_units_look_for(inplace):
    found = drawn(edges(inplace), [0, 1, 2, 3, 4])
    bright, dark, *_ = found.images
    assert bright.min() > 0.9 and dark.max() < 0.1
    assert found.after[0] > 0.8 and found.after[1] > 0.8
    assert found.after[2] > 1.0 > 5 * found.before[2]
    # The fifth unit is off at every position at the start.
    assert found.before[4] == 0 and found.after[4] > 0.03
    assert found.dead.tolist() == [False, False, False, True, False]
    assert found.images.shape == (5, 1, 12, 10) and found.units == (0, 1, 2, 3, 4)
    assert found.images.min() >= 0 and found.images.max() <= 1


def test_before_and_after_are_what_the_network_gives():
    model = edges()
    found = drawn(model, [2, 0])
    with Predictor(model).evaluating():
        output = model[:2](LOW + (HIGH - LOW) * found.images)
    means = unit_means(output, 0)
    assert found.after.tolist() == pytest.approx([means[0, 2].item(), means[1, 0].item()])


def test_the_images_of_a_batch_do_not_touch_each_other():
    model = edges()
    one = drawn(model, [2, 0], seed=3)
    other = drawn(model, [2, 1], seed=3)
    assert torch.equal(one.images[0], other.images[0])
    assert not torch.equal(one.images[1], other.images[1])


def test_colours_and_neurons():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 4), nn.Tanh(), nn.Linear(4, 2))
    with torch.no_grad():
        model[1].weight.view(4, 3, 64)[0] = torch.tensor([0.02, 0.02, -0.02])[:, None]
    low, high = torch.tensor([-1.0, -2.0, -1.0]), torch.tensor([2.0, 1.0, 1.0])
    found = drawn(model, [0, 3], "2", (3, 8, 8), low=low, high=high, steps=300)
    assert (found.after > found.before + 0.5).all()
    red, green, blue = found.images[0].mean((1, 2))
    assert min(red, green) > 0.8 and blue < 0.6


def test_the_first_images_have_the_spectrum_and_the_colours_of_photographs():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 2), nn.Tanh(), nn.Linear(2, 2))
    start = drawn(model, [0] * 400, "2", (3, 16, 16), steps=1, lr=1e-9).images.double().logit()
    pixels = start - start.mean((2, 3), keepdim=True)
    colours = torch.tensor(COLOURS, dtype=torch.float64)
    wanted = torch.corrcoef(pixels.movedim(1, 0).reshape(3, -1))
    covariance = colours @ colours.T
    scale = covariance.diagonal().sqrt()
    assert torch.allclose(wanted, covariance / scale / scale[:, None], atol=0.02)
    # An amplitude of 1 / frequency: neighbours are much alike, as no white noise is.
    grey = pixels.mean(1)
    alike = (grey[:, 1:] * grey[:, :-1]).mean() / grey.square().mean()
    assert 0.5 < alike < 0.8


def test_everything_comes_back_as_it_was():
    model = fcompress.build("resnet20", width=0.25, in_channels=1, image_size=8)
    model.layer1.eval()
    before, state = weights_of(model), torch.random.get_rng_state()
    modes = [m.training for m in model.modules()]
    drawn(model, [0, 1], "layer1", (1, 8, 8), steps=2)
    assert weights_of(model) == before and torch.equal(torch.random.get_rng_state(), state)
    assert [m.training for m in model.modules()] == modes
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks for m in model.modules())


def test_the_seed_decides():
    model = edges()
    first, again, other = (drawn(model, [2], seed=s, steps=5).images for s in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize("inplace", [False, True])
def test_what_a_relu_was_given(inplace):
    model = edges(inplace)
    images = torch.rand(2, 1, 5, 5)
    with torch.no_grad(), observe(model, ["1", "2"]) as outputs, before_relu(model) as given:
        model(images)
        assert torch.equal(given(outputs["1"]), model[0](images))
        assert given(outputs["2"]) is outputs["2"]
        assert torch.equal(outputs["1"], model[0](images).relu())


def test_a_stage_of_a_residual_network_ends_with_a_relu():
    model = fcompress.build("resnet20", width=0.25, in_channels=1, image_size=8).eval()
    with torch.no_grad(), observe(model, ["layer2"]) as outputs, before_relu(model) as given:
        model(torch.rand(2, 1, 8, 8))
        assert given(outputs["layer2"]).min() < 0 <= outputs["layer2"].min()
        assert torch.equal(given(outputs["layer2"]).relu(), outputs["layer2"])


def test_in_place_modules_are_in_place_again_after_an_error():
    model = edges(inplace=True)
    with pytest.raises(RuntimeError), before_relu(model):
        model(torch.zeros(1, 2, 4, 4))
    assert model[1].inplace


def test_transformations_are_small_and_never_look_beyond_the_canvas():
    generator = torch.Generator().manual_seed(0)
    for height, width in ((8, 8), (28, 20), (32, 96)):
        rows, columns = margins(height, width)
        canvas = torch.ones(500, 1, height + 2 * rows, width + 2 * columns)
        # Beyond the canvas lies 0.
        assert transformed(canvas, (1, height, width), generator).min() > 0.999
    side, rim = 41, margins(41, 41)[0]
    dot = torch.zeros(200, 1, side + 2 * rim, side + 2 * rim)
    middle = slice(rim + 18, rim + 23)
    dot[:, :, middle, middle] = 1.0
    moved = transformed(dot, (1, side, side), generator)[:, 0]
    where = torch.stack([moved.sum(2), moved.sum(1)]) @ torch.arange(41.0) / moved.sum((1, 2))
    away = (where - 20).norm(dim=0)
    # Up to a sixteenth of the image along each side, seen through a scale of 0.9 or more.
    assert 2 < away.max() < 41 / 16 / 0.9 * 2**0.5 + 0.1
    assert (moved.sum((1, 2)) / 25).min() > 1 / 1.1**2 - 0.05


def test_a_turn_keeps_shapes_in_images_that_are_not_square():
    height, width = 20, 60
    rim = margins(height, width)
    line = torch.zeros(100, 1, height + 2 * rim[0], width + 2 * rim[1])
    line[..., rim[1] + width // 2] = 1.0  # upright, through the middle
    seen = transformed(line, (1, height, width), torch.Generator().manual_seed(0))[:, 0]
    at = seen @ torch.arange(float(width)) / seen.sum(2)
    tilt = torch.atan((at[:, -3] - at[:, 2]) / (height - 5)).rad2deg()
    assert 8 < tilt.abs().max() < 11


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"units": [5]}, "units 0 to 4, not"),
        ({"units": []}, "name at least one"),
        ({"shape": (10,)}, "expected .channels, height, width."),
        ({"steps": 0}, "at least 1"),
        ({"lr": math.nan}, "above 0"),
    ],
)
def test_what_cannot_be_drawn(change, words):
    with pytest.raises(FcompressError, match=words):
        drawn(edges(), **{"units": [0], **change})


def test_a_layer_that_is_not_there_and_one_that_is_not_finite():
    with pytest.raises(UnsupportedNetworkError, match="no layer"):
        drawn(edges(), [0], "7")
    broken = edges()
    with torch.no_grad():
        broken[0].bias[2] = math.inf
    with pytest.raises(FcompressError, match="not finite"):
        drawn(broken, [2])


@pytest.fixture(scope="module")
def records():
    """Digits, two widths, two seeds each; not trained: the machinery is tested."""
    splits = fcompress.load_data("digits")
    settings = {"units": 6, "steps": 40, "sheet": 4, "examples": 40}

    def record(width, seed):
        model = fcompress.build(
            "resnet20", width=width, in_channels=1, image_size=8, classes=10, seed=seed
        )
        return visualise(model, splits, {**settings, "seed": seed})

    return {width: [record(width, seed) for seed in (0, 1)] for width in (0.25, 1.0)}


def test_the_measure(records):
    (record, other) = records[1.0]
    assert [s["layer"] for s in record["stages"]] == ["relu", "layer1", "layer2", "layer3"]
    assert [s["units"] for s in record["stages"]] == [16, 16, 32, 64]
    assert [len(s["drawn"]) for s in records[0.25][0]["stages"]] == [4, 4, 6, 6]
    assert record["stages"][3]["drawn"] != other["stages"][3]["drawn"]
    for stage in record["stages"]:
        counts = {key: len(stage[key]) for key in ("before", "after", "data_max", "raw", "fourier")}
        assert set(counts.values()) == {6}
        assert all(a > b for a, b in zip(stage["after"], stage["before"], strict=True))
        assert all(m >= a for m, a in zip(stage["data_max"], stage["data_mean"], strict=True))
        assert sheet_images(stage).shape == (4, 8, 8, 3)
    assert json.loads(json.dumps(record)) == record


def test_the_same_again(records):
    model = fcompress.build("resnet20", width=0.25, in_channels=1, image_size=8, classes=10, seed=1)
    settings = records[0.25][1]["settings"]
    assert visualise(model, fcompress.load_data("digits"), settings) == records[0.25][1]


def test_comparison_and_figure(records):
    thin, wide = records[0.25], records[1.0]
    found = compare(thin, wide, permutations=200)
    assert [t.stage for t in found.tests[:4]] == ["relu", "layer1", "layer2", "layer3"]
    assert found.networks == (2, 2) and not found.untested and len(found.tests) == 8
    assert [(t.test.thin, t.test.wide) for t in found.tests[:4]] == [(8, 12)] * 2 + [(12, 12)] * 2
    assert all(t.p >= t.test.p for t in found.tests)
    back = compare(wide, thin, permutations=200)
    assert [t.test.effect for t in back.tests] == [
        pytest.approx(-t.test.effect) for t in found.tests
    ]
    json.dumps(found.to_dict())
    only = compare(thin[:1], wide[:1], permutations=10)
    assert all(t.between_seeds is None for t in only.tests)
    picture = figure(thin[0], wide[0], found, ("1/4x", "1x"), "digits")
    assert len([a for a in picture.axes if a.images]) == 8


def test_a_planted_difference_is_found_in_its_stage(records):
    wide = copy.deepcopy(records[1.0])
    for record in wide:
        record["stages"][2]["raw"] = [v + 1000 for v in record["stages"][2]["raw"]]
    found = {(t.quantity, t.stage): t for t in compare(records[0.25], wide).tests}
    planted = found["raw", "layer2"]
    assert planted.between_seeds < 1
    assert planted.test.effect == 1 and planted.p < 0.001
    again = {(t.quantity, t.stage): t for t in compare(records[0.25], records[1.0]).tests}
    assert all(found[key].test == again[key].test for key in found if key != ("raw", "layer2"))


def test_seeds_that_differ_as_much_as_widths_are_seen(records):
    wide = copy.deepcopy(records[1.0])
    stage = wide[1]["stages"][2]
    stage["raw"] = [v + 1000 for v in stage["raw"]]
    found = {(t.quantity, t.stage): t for t in compare(records[0.25], wide).tests}
    assert found["raw", "layer2"].between_seeds == 1
    assert found["fourier", "layer2"].between_seeds < 1


def test_units_that_stayed_dead_count_for_nothing(records):
    record = copy.deepcopy(records[0.25][0])
    for quantity in ("raw", "fourier"):
        record["stages"][0][quantity] = [None] * 4
        record["stages"][1][quantity][0] = None
    found = compare([record], records[1.0], permutations=100)
    assert found.untested == ("relu",)
    assert [t.test.thin for t in found.tests] == [3, 6, 6] * 2


def test_dead_units_are_named():
    model = fcompress.build("mlp", width=0.125, in_features=64)
    splits = fcompress.load_data("digits")
    dead = edges()
    with torch.no_grad():
        dead[0].weight[3] = 0
    record = visualise(dead, splits, {"layers": ["1"], "units": 5, "steps": 40, "examples": 40})
    (stage,) = record["stages"]
    assert stage["dead"] == [3] and stage["raw"][3] is None and stage["fourier"][3] is None
    assert stage["sheet"]["units"] == [0, 1, 2, 4]
    assert np.isfinite(stage["raw"][0])
    with pytest.raises(FcompressError, match="needs images"):
        visualise(model, fcompress.load_data("gaussian:64,n=40,seed=0"), {})


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"unit": 3}, "no setting 'unit'"),
        ({"units": 0}, "units 0: expected a whole number, at least 1"),
        ({"steps": 1.5}, "steps 1.5"),
        ({"seed": True}, "seed True"),
    ],
)
def test_settings_that_make_no_sense(settings, words):
    with pytest.raises(FcompressError, match=words):
        visualise(edges(), fcompress.load_data("digits"), settings)


def test_what_cannot_be_compared(records):
    with pytest.raises(FcompressError, match="at least one"):
        compare([], records[1.0])
    shorter = {**records[1.0][0], "stages": records[1.0][0]["stages"][:2]}
    with pytest.raises(FcompressError, match="different stages"):
        compare(records[0.25], [shorter])
