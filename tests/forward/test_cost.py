import json

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fcompress.forward import cost
from fcompress.forward.timing import timed
from fcompress.models import build


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(6, 2, 3, 3))
        self.matrix = nn.Parameter(torch.randn(6, 5))

    def forward(self, x):
        return F.conv2d(x, self.kernel).mean((2, 3)) @ self.matrix


@pytest.mark.parametrize(
    ("module", "shape", "params", "macs"),
    [
        (nn.Linear(7, 5), (7,), 40, 35),
        (nn.Linear(7, 5, bias=False), (7,), 35, 35),
        (nn.Linear(7, 5), (11, 7), 40, 11 * 35),
        (nn.Linear(7, 5, bias=False), (3, 4, 7), 35, 12 * 35),
        (nn.Conv2d(3, 4, 3), (3, 8, 8), 112, 36 * 4 * 3 * 9),
        (nn.Conv2d(3, 4, 3, padding=1, stride=2), (3, 9, 7), 112, 5 * 4 * 4 * 3 * 9),
        (nn.Conv2d(6, 4, 3, groups=2, bias=False), (6, 8, 8), 108, 36 * 4 * 3 * 9),
        (nn.Conv2d(6, 6, 3, groups=6, bias=False), (6, 8, 8), 54, 36 * 6 * 9),
        (nn.Conv2d(6, 12, 3, groups=6, dilation=2), (6, 8, 8), 120, 16 * 12 * 9),
        (nn.Conv1d(3, 4, 3), (3, 10), 40, 8 * 4 * 3 * 3),
        (nn.Conv3d(2, 3, 2), (2, 4, 4, 4), 51, 27 * 3 * 2 * 8),
        (nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)), (4, 6, 6), 8, 0),
        (Functional(), (2, 5, 5), 108 + 30, 9 * 108 + 30),
    ],
)
def test_known_layers(module, shape, params, macs):
    found = cost.count(module, torch.randn(3, *shape))
    assert (found.params, found.macs) == (params, macs)


def test_each_module_gets_its_share():
    model = nn.Sequential(
        nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4)), nn.Flatten(), nn.Linear(36, 3)
    )
    found = cost.count(model, torch.randn(1, 2, 5, 5))
    assert {name: (c.params, c.macs) for name, c in found.layers.items()} == {
        "0.0": (76, 9 * 72),
        "0.1": (8, 0),
        "2": (111, 108),
    }
    assert found.macs == sum(layer.macs for layer in found.layers.values())
    assert json.loads(json.dumps(found.to_dict()))["layers"]["2"] == {"params": 111, "macs": 108}


def test_shared_parameters_count_once_but_work_twice():
    layer = nn.Linear(4, 4)
    found = cost.count(nn.Sequential(layer, nn.ReLU(), layer), torch.randn(1, 4))
    assert (found.params, found.macs) == (20, 32)


def test_published_counts():
    found = cost.count(build("resnet18", classes=1000), torch.randn(1, 3, 224, 224))
    assert found.params == 11_689_512
    assert found.macs == pytest.approx(1.814e9, rel=1e-3)


def test_counting_leaves_the_network_as_it_was():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 2))
    model[1].eval()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    state = torch.get_rng_state()
    cost.count(model, torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator()))
    timed([model], [torch.zeros(5, 4)], runs=2, seconds=0)
    assert torch.equal(torch.get_rng_state(), state)
    assert [m.training for m in model] == [True, False, True, True]
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
