"""Layers that no example reached: what they may read stays, unless that is asked for."""

import warnings

import pytest
import torch
from torch import nn

import fcompress

CLASSES, WIDTH = 3, 24


class Branch(nn.Module):
    """A second head for inputs that are larger than any example."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, WIDTH), nn.Linear(WIDTH, 17)
        self.head, self.rare = nn.Linear(17, CLASSES), nn.Linear(17, CLASSES)

    def forward(self, x):
        hidden = self.b(self.a(x).relu()).relu()
        return self.rare(hidden) if float(x.abs().max()) > 1e3 else self.head(hidden)


class Expert(nn.Module):
    """One of two experts, of which the second is for inputs larger than any example."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, WIDTH), nn.Linear(WIDTH, 17)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(17, 9), nn.ReLU(), nn.Linear(9, 17)) for _ in range(2)
        )
        self.head = nn.Linear(17, CLASSES)

    def forward(self, x):
        hidden = self.b(self.a(x).relu()).relu()
        return self.head(hidden + self.experts[int(x.abs().max() > 1e3)](hidden))


class Auxiliary(Branch):
    """The second head serves training only."""

    def forward(self, x):
        hidden = self.b(self.a(x).relu()).relu()
        return self.head(hidden) + (self.rare(hidden) if self.training else 0)


def shrunk(kind, **options):
    torch.manual_seed(0)
    x, model = torch.randn(400, 6), kind().eval()
    with torch.no_grad():
        model.head.bias -= model(x).mean(0)  # so that all labels occur
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        result = fcompress.shrink(model, list(x.split(100)), tol=0.4, **options)
    return result, " ".join(str(one.message) for one in said)


@pytest.mark.parametrize("kind", [Branch, Expert])
def test_what_a_layer_that_nobody_reached_may_read_stays(kind):
    result, said = shrunk(kind)
    assert "no calibration example reached" in said
    assert result.model.b.out_features == 17
    assert result.model.a.out_features < WIDTH
    assert result.model(torch.full((2, 6), 1e4)).shape == (2, CLASSES)
    reasons = [layer.reason for layer in result.layers if layer.name == "b"]
    assert reasons[0].endswith("only_seen_paths prunes them all the same")


@pytest.mark.parametrize("kind", [Branch, pytest.param(Expert, marks=pytest.mark.slow)])
def test_if_asked_for_it_goes_and_that_way_runs_no_more(kind):
    result, _ = shrunk(kind, only_seen_paths=True)
    assert result.model.b.out_features < 17
    with pytest.raises(RuntimeError):
        result.model(torch.full((2, 6), 1e4))


def test_what_only_training_reaches_holds_nothing_back():
    result, said = shrunk(Auxiliary)
    assert "reached" not in said
    assert result.model.b.out_features < 17
