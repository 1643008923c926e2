"""Networks that do not repeat their answers are found, and no others."""

import copy
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fcompress.errors import UnsupportedNetworkError
from fcompress.forward.predictor import Predictor
from fcompress.forward.repeats import check_repeats, unsteadiness

X = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Through(nn.Module):
    """A layer, a function of what it gives, and a last layer."""

    def __init__(self, function, *inside):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Conv2d(3, 6, 3, padding=1), nn.Linear(6, 4)
        self.inside = nn.Sequential(*inside)
        self.function = (function,)

    def forward(self, x):
        x = self.inside(self.function[0](self.first(x)))
        return self.last(x.relu().mean((2, 3)))


class StaysOn(nn.Dropout):
    def train(self, mode=True):
        return super().train(True)


class Block(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = (function,)

    def forward(self, x):
        return self.function[0](x)


class Counts(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return x + self.calls


class BatchNormOfMine(nn.Module):
    def forward(self, x):
        return (x - x.mean(0, keepdim=True)) / (x.std(0, keepdim=True) + 1)


def same(x):
    return x


DRAWING = {
    "functional dropout": (Through(lambda x: F.dropout(x, 0.3)), "Through"),
    "dropout that stays on": (Through(same, StaysOn(0.3)), r"layer inside\.0, StaysOn"),
    "noise": (Through(same, Block(lambda x: x + 0.1 * torch.randn_like(x))), r"inside\.0, Block"),
    "noise in place": (Through(lambda x: x.add_(torch.rand(()))), "Through"),
    "once a pass": (Through(same, Block(lambda x: x if torch.rand(()) < 0.5 else -x)), "Block"),
    "random branch": (Through(same, Block(lambda x: x * (torch.rand(1) < 0.3))), "Block"),
    "numpy": (Through(same, Block(lambda x: x * np.random.random())), "Block"),  # noqa: NPY002
    "python": (Through(same, Block(lambda x: x * random.random())), "Block"),
    "a state of its own": (Through(same, Counts()), "Counts"),
    "random rectifier": (Through(same, Block(lambda x: -F.rrelu(x, 0.1, 0.9, True))), "Block"),
}
BATCH = {
    "norm without statistics": (
        Through(same, nn.BatchNorm2d(6, track_running_stats=False)),
        r"layer inside\.0, BatchNorm2d without running statistics",
    ),
    "functional norm": (
        Through(same, Block(lambda x: F.batch_norm(x, None, None, training=True))),
        r"inside\.0, Block",
    ),
    "mean of the batch": (Through(lambda x: x - x.mean(0, keepdim=True)), "forward of Through"),
    "norm of mine": (Through(same, BatchNormOfMine()), "BatchNormOfMine"),
    "by place in the batch": (
        Through(same, Block(lambda x: x * torch.arange(len(x)).view(-1, 1, 1, 1))),
        "Block",
    ),
    "the largest of the batch": (Through(same, Block(lambda x: x / x.abs().max())), "Block"),
    "softmax over the batch": (Through(same, Block(lambda x: x.softmax(0) * 8)), "Block"),
}


@pytest.mark.parametrize("name", DRAWING)
def test_draws_are_found_and_the_layer_is_named(name):
    network, layer = DRAWING[name]
    before = torch.get_rng_state(), random.getstate()
    with pytest.raises(UnsupportedNetworkError, match=f"does not repeat.*{layer}.*--stochastic"):
        check_repeats(Predictor(network), X)
    assert torch.equal(before[0], torch.get_rng_state()) and before[1] == random.getstate()
    assert check_repeats(Predictor(network), X, stochastic=True)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())


@pytest.mark.parametrize("name", BATCH)
def test_dependence_on_the_batch_is_found_and_the_layer_is_named(name):
    network, layer = BATCH[name]
    for stochastic in (False, True):
        with pytest.raises(UnsupportedNetworkError, match=f"other examples.*{layer}.*statistics"):
            check_repeats(Predictor(network), X, stochastic=stochastic)


class Attention(nn.Module):
    def __init__(self, batch_first=True):
        super().__init__()
        layer = nn.TransformerEncoderLayer(12, 2, 16, batch_first=batch_first)
        self.map, self.last = nn.Conv2d(3, 12, 4, 4), nn.Linear(12, 5)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, x):
        x = self.map(x).flatten(2).transpose(1, 2)
        return {"logits": self.last(self.encoder(x).mean(1)), "states": x.transpose(0, 1)}


def steps(x):
    return x.sign() + (4 * x).round()


class Detector(nn.Module):
    """A list of boxes for each image, as many as there are."""

    def __init__(self, apart=1.0):
        super().__init__()
        self.map, self.apart = nn.Conv2d(3, 4, 1), apart

    def forward(self, x):
        boxes = self.map(x).flatten(2).transpose(1, 2)
        boxes = boxes - (1 - self.apart) * boxes.mean((0, 1))
        return [{"boxes": b[b[:, 0] > 0], "scores": b[b[:, 0] > 0, 1]} for b in boxes]


ORDINARY = {
    "detector": Detector(),
    "batch norm": Through(same, nn.BatchNorm2d(6)),
    "dropout": Through(same, nn.Dropout(0.5), nn.Dropout2d(0.5), nn.AlphaDropout(0.1)),
    "layer norm": Through(same, nn.LayerNorm([6, 8, 8])),
    "group and instance norm": Through(same, nn.GroupNorm(2, 6), nn.InstanceNorm2d(6)),
    "attention": Attention(),
    "ties of a pool": Through(lambda x: x.sign(), nn.MaxPool2d(2)),
    "quantised in steps": Through(steps),
    "draws of no consequence": Through(lambda x: x + 0 * torch.randn_like(x)),
    "a seed of its own": Through(
        lambda x: x + torch.randn(1, 6, 8, 8, generator=torch.Generator().manual_seed(3))
    ),
    "large values": Through(lambda x: 1e6 * x),
    "half": Through(same, nn.BatchNorm2d(6)).bfloat16(),
    "lstm": nn.Sequential(nn.Flatten(2), nn.LSTM(64, 6, batch_first=True)),
    "values that are not finite": Through(lambda x: x / 0),
    "nothing to learn": nn.Flatten(),
}


@pytest.mark.parametrize("name", ORDINARY)
def test_ordinary_networks_are_not_refused(name):
    network = copy.deepcopy(ORDINARY[name])
    predictor = Predictor(network)
    assert unsteadiness(predictor, predictor.place(X)) is None
    assert unsteadiness(predictor, predictor.place(X[:1])) is None
    assert network.training


def test_detections_that_depend_on_the_batch():
    found = unsteadiness(Predictor(Detector(0.2).eval()), X)
    assert found is not None and not found.draws


def test_a_network_for_one_size_of_batch_is_no_matter_here():
    network = Through(lambda x: x.view(8, 6, 8, 8))
    assert not check_repeats(Predictor(network), X)
