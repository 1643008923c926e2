"""Rare labels in real compressions: said, warned of, and kept where that is asked for."""

import json
import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fcompress.compress.options import ShrinkOptions
from fcompress.compress.pipeline import shrink
from fcompress.errors import FcompressError, ResultWarning, ToleranceError

pytestmark = pytest.mark.filterwarnings("ignore::fcompress.errors.ResultWarning")


def trained(net, loss, steps, lr=3e-3, seed=0):
    """Train a network in place; `loss(generator)` draws a batch and gives its loss."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(net.parameters(), lr)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(generator).backward()
        optimizer.step()
    return net.eval()


@pytest.fixture(scope="module")
def rare():
    """A network with a rare class, and data that is not seen in training."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        x = torch.randn(12000, 12)
        y = (x[:, 0] * x[:, 1] + x[:, 2] > 0).long()
        y[x[:, 3] * x[:, 4] + x[:, 5] > 2.6] = 2
        net = nn.Sequential(nn.Linear(12, 96), nn.ReLU(), nn.Linear(96, 64), nn.ReLU())
        net.append(nn.Linear(64, 3))

        def loss(generator):
            rows = torch.randint(4000, (128,), generator=generator)
            return F.cross_entropy(net(x[rows]), y[rows])

        return trained(net, loss, 600), list(x[4000:].split(200))


def test_a_rare_class_is_warned_of(rare):
    with pytest.warns(ResultWarning, match="label 2"):
        result = shrink(*rare, tol=0.06)
    assert any("label 2" in line for line in result.warnings)
    worst = result.agreement.by_label.worst()[0]
    assert worst.label == 2 and worst.share > 2 * result.agreement.changed / result.agreement.n
    assert result.agreement.by_label.promise is None
    assert json.loads(json.dumps(result.to_dict(), default=str))["agreement"]["by_label"]["labels"]


def test_a_tolerance_for_every_label_is_kept(rare):
    net, data = rare
    plain = shrink(net, data, tol=0.06)
    result = shrink(net, data, tol=0.06, tol_label=0.1)
    found = result.agreement.by_label
    assert result.certified and found.promise.tolerance == 0.1 and found.promise.labels == 3
    assert all(one.bound <= 0.1 for one in found.labels)
    assert max(one.share for one in plain.agreement.by_label.labels) > 0.1
    assert result.macs["after"] > plain.macs["after"]
    with torch.no_grad():
        fresh = torch.randn(20000, 12, generator=torch.Generator().manual_seed(5))
        before, after = net(fresh).argmax(1), result.model(fresh).argmax(1)
    assert all(float((after[before == c] != c).float().mean()) <= 0.1 for c in range(3))


def test_labels_with_too_few_examples_are_named(rare):
    net, data = rare
    result = shrink(net, data, tol=0.03, per_label=True)
    promise = result.agreement.by_label.promise
    assert promise.too_few == ("label 2",) and promise.labels == 2
    assert any(line.startswith("nothing is promised of label 2") for line in result.warnings)


def test_what_cannot_be_kept_is_refused(rare):
    net, data = rare
    few = [torch.cat(data)[:200]]
    with pytest.raises(ToleranceError, match="most frequent label has about"):
        shrink(net, few, tol=0.06, per_label=True)
    with pytest.raises(ToleranceError, match=r"every label with enough examples .* within 0.04"):
        # Of a network whose units all count.
        small = nn.Sequential(nn.Linear(12, 4), nn.ReLU(), nn.Linear(4, 3))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            small[0].reset_parameters()
            small[2].reset_parameters()
        shrink(small, data, tol=0.06, tol_label=0.04)


def test_segmentation_with_a_rare_class():
    def pictures(n, generator):
        x = 0.3 * torch.randn(n, 1, 12, 12, generator=generator)
        y = torch.zeros(n, 12, 12, dtype=torch.long)
        for i in range(n):
            r, c = torch.randint(1, 10, (2,), generator=generator).tolist()
            x[i, 0, r : r + 2, c : c + 2] += 2
            y[i, r : r + 2, c : c + 2] = 1
        return x, y

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(1, 24, 3, padding=1), nn.ReLU())
        net.extend([nn.Conv2d(24, 24, 3, padding=1), nn.ReLU(), nn.Conv2d(24, 2, 1)])
        known = pictures(300, torch.Generator().manual_seed(1))

        def loss(generator):
            rows = torch.randint(300, (24,), generator=generator)
            return F.cross_entropy(net(known[0][rows]), known[1][rows])

        trained(net, loss, 150, lr=1e-2)
    data = pictures(1200, torch.Generator().manual_seed(2))[0]
    plain = shrink(net, data, tol=0.05, labels="positions")
    found = {one.label: one for one in plain.agreement.by_label.labels}
    assert found[1].positions < 0.05 * found[0].positions
    assert found[1].share > 0.1 and found[1].iou < 0.9
    assert any("class 1" in line for line in plain.warnings)
    kept = shrink(net, data, tol=0.05, tol_label=0.1, labels="positions")
    found = {one.label: one for one in kept.agreement.by_label.labels}
    assert kept.agreement.by_label.promise.labels == 2
    assert found[1].n > 200 and found[1].bound <= 0.1 and found[1].share <= 0.1
    assert found[1].iou > 0.8


def test_sigmoid_heads_with_a_rare_label():
    x = torch.randn(6000, 10, generator=torch.Generator().manual_seed(0))
    y = torch.stack([x[:, 0] > 0, x[:, 1] + x[:, 2] * x[:, 3] > 2.2], 1).float()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(10, 64), nn.ReLU(), nn.Linear(64, 2))

        def loss(generator):
            rows = torch.randint(2000, (128,), generator=generator)
            return F.binary_cross_entropy_with_logits(net(x[rows]), y[rows])

        trained(net, loss, 1200)
    result = shrink(net, x[2000:], tol=0.08, labels="sigmoid")
    yes = result.agreement.by_label.labels[3]
    assert yes.name == 'label 1 "yes"' and yes.share > 0.24
    assert any('label 1 "yes"' in line for line in result.warnings)
    kept = shrink(net, x[2000:], tol=0.08, tol_label=0.2, labels="sigmoid")
    assert all(one.bound <= 0.2 for one in kept.agreement.by_label.labels)
    assert kept.agreement.by_label.promise.labels == 4


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"tol_label": 0}, "tol_label=0: expected"),
        ({"tol_label": 1.0}, "tol_label=1.0: expected"),
        ({"ratio": 0.5, "per_label": True}, "a size (ratio, max_macs, "),
        ({"max_macs": 50, "tol_label": 0.1}, "a size (ratio, max_macs, "),
    ],
)
def test_options_that_contradict_each_other(asked, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        ShrinkOptions(**asked)


def test_what_is_asked_of_labels():
    assert ShrinkOptions().label_tolerance is None
    assert ShrinkOptions(tol=0.1, per_label=True).label_tolerance == 0.1
    assert ShrinkOptions(tol=0.1, per_label=True, tol_label=0.2).label_tolerance == 0.2
    assert issubclass(ToleranceError, FcompressError)
