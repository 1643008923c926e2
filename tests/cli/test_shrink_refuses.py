"""What shrink() refuses, and what it says then."""

import math
import re

import pytest
import torch
from cases.trained import CLASSES, examples, trained
from torch import nn

from fcompress.compress.options import ShrinkOptions
from fcompress.compress.pipeline import shrink
from fcompress.errors import DataError, FcompressError, ToleranceError, UnsupportedNetworkError


@pytest.fixture(scope="module")
def model():
    return trained()


def test_a_size_out_of_reach_is_refused(model):
    with pytest.raises(ToleranceError, match=r"at most 5 MACs cannot be reached: .* 11 remain"):
        shrink(model, [examples()[0]], max_macs=5)


def test_too_few_examples_are_named_with_how_many_would_do(model):
    x, _ = examples(100)
    with pytest.raises(
        ToleranceError, match=r"30 certification examples .* 59 are needed"
    ) as error:
        shrink(model, [x], tol=0.05)
    # The tolerance that it suggests instead is one that works.
    suggested = float(re.search(r"at least ([\d.]+)%", str(error.value))[1]) / 100
    assert shrink(model, [x], tol=suggested, method="factor").certified
    with pytest.raises(ToleranceError, match="are needed"):
        shrink(model, [x], tol=suggested - 2e-4)


def test_a_tolerance_of_nothing_cannot_be_proven(model):
    with pytest.raises(ToleranceError, match="tolerance of 0 cannot be proven"):
        shrink(model, [examples()[0]], tol=0)


def test_a_network_that_needs_all_its_units_is_refused():
    # Each unit decides the label of an eighth of the examples; without it they get label 8.
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 9))
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.weight.copy_(torch.eye(*layer.weight.shape))
            layer.bias.zero_()
        model[2].bias[8] = 0.1
    x = torch.eye(8).repeat(100, 1) * torch.linspace(0.9, 1.1, 800)[:, None]
    with pytest.raises(
        ToleranceError, match=r"the (mildest|only candidate) changed \d+ of \d+ certification"
    ):
        shrink(model, [x], tol=0.05, method="prune")
    # One of eight that are never active together is an affine combination of the others.
    assert shrink(model, [x], tol=0.05, method="factor").layers[0].units_after == 7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tol": 1.0}, "tol=1.0: expected a share"),
        ({"tol": -0.1}, "tol=-0.1"),
        ({"tol": math.nan}, "tol=nan"),
        ({"tol": 0.1, "ratio": 0.5}, "tol=0.1 and ratio=0.5 contradict each other"),
        ({"tol": 0.2, "max_macs": 9}, "tol=0.2 and max_macs=9 contradict each other"),
        ({"method": "magic"}, "method='magic': expected one of prune, factor"),
        ({"ratio": 0.0}, "ratio=0.0"),
        ({"ratio": 1.5}, "ratio=1.5"),
        ({"ratio": math.nan}, "ratio=nan"),
        ({"max_macs": 0}, "max_macs=0"),
        ({"confidence": 1.0}, "confidence=1.0"),
        ({"confidence": math.nan}, "confidence=nan"),
        ({"calibration": 1}, "calibration=1"),
        ({"calibration": -5}, "calibration=-5"),
    ],
)
def test_arguments_out_of_range(model, arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        shrink(model, [examples()[0]], **arguments)


class Gives(nn.Module):
    """A network that gives something else than scores."""

    def __init__(self, what):
        super().__init__()
        self.body, self.what = trained(), what

    def forward(self, x):
        return self.what(self.body(x))


@pytest.mark.parametrize(
    "what",
    [
        lambda s: (None, s),
        lambda s: s.flatten(),
        lambda s: s[:, :, None],
        lambda s: {"scores": s},
    ],
    ids=["tuple", "flat", "map", "dict"],
)
def test_networks_without_scores_are_refused(what):
    with pytest.raises(UnsupportedNetworkError, match="expected one score per class"):
        shrink(Gives(what), [examples()[0]])


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_and_data_that_are_no_numbers_are_refused(value):
    broken = trained()
    with torch.no_grad():
        broken[3].weight[0, 0] = value
    x, _ = examples()
    with pytest.raises(FcompressError, match="a weight of the network is not finite"):
        shrink(broken, [x])
    x[::10] = value
    with pytest.raises(FcompressError, match=r"\d+ of 600 calibration examples hold"):
        shrink(trained(), [x])


def test_data_that_does_not_fit_is_refused(model):
    with pytest.raises(FcompressError, match=r"does not run on an example of shape \[\(2, 5\)\]"):
        shrink(model, [torch.randn(1000, 5)])
    with pytest.raises(DataError, match="5 examples are too few"):
        shrink(model, [torch.randn(5, 6)], tol=0.9)
    with pytest.raises(DataError, match="different shapes"):
        shrink(model, [torch.randn(500, 6), torch.randn(500, 5)])
    with pytest.raises(DataError, match="no batch"):
        shrink(model, [])
    with pytest.raises(DataError, match="data of type str"):
        shrink(model, "digits")


def test_networks_with_nothing_to_excise_are_refused():
    with pytest.raises(UnsupportedNetworkError, match="nothing in this network can be excised"):
        shrink(nn.Linear(6, CLASSES), [examples()[0]])


class Product(nn.Module):
    """Consumers that are no convolution and no linear layer: fit for `prune` only."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(6, 16)), nn.Parameter(torch.randn(16, CLASSES))

    def forward(self, x):
        hidden = torch.einsum("ni,ik->nk", x, self.a).relu()
        return torch.einsum("nk,ko->no", hidden, self.b)


def test_a_method_that_can_use_no_group_says_so():
    torch.manual_seed(0)
    model, x = Product(), examples()[0]
    assert shrink(model, [x], tol=0.3, method="prune").params["after"] < 160
    with pytest.raises(UnsupportedNetworkError, match="method factor can use no group"):
        shrink(model, [x], tol=0.3, method="factor")


def test_the_tolerance_is_a_twentieth_unless_a_size_is_asked_for():
    assert ShrinkOptions().tolerance == 0.05
    assert ShrinkOptions(tol=0.2).tolerance == 0.2
    assert ShrinkOptions(ratio=0.5).tolerance is None
    assert ShrinkOptions(max_macs=9).tolerance is None
