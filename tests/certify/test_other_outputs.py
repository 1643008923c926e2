"""Every output counts: as a head, or said to be nobody's business; and draws count, too."""

import json
import warnings
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fcompress import shrink, verify
from fcompress.certify.other_outputs import said
from fcompress.errors import ResultWarning, UnsupportedNetworkError
from fcompress.report.text import agreement_sentence

X = torch.randn(900, 10, generator=torch.Generator().manual_seed(0))
COLOURS = (X[:, :3] + 0.5 * X[:, 3:6]).argmax(1)
SIDES = (X[:, 6] > X[:, 7]).long()


@dataclass
class Answer:
    logits: Any
    side: Any
    embedding: Any


class Heads(nn.Module):
    """Two heads, each with a layer of its own, and an embedding."""

    def __init__(self, shape):
        super().__init__()
        self.trunk = nn.Linear(10, 24)
        self.a, self.b, self.e = (nn.Linear(24, 16) for _ in range(3))
        self.colour, self.side = nn.Linear(16, 3), nn.Linear(16, 2)
        self.shape = (shape,)

    def forward(self, x):
        x = torch.relu(self.trunk(x))
        colour, side = self.colour(self.a(x).relu()), self.side(self.b(x).relu())
        return self.shape[0](colour, side, torch.tanh(self.e(x)))


def as_dict(colour, side, embedding):
    return {"logits": colour, "side": side, "embedding": embedding}


def named_alike(colour, side, embedding):
    return {"colour": colour, "side": side}


def as_tuple(colour, side, embedding):
    return colour, [side, None], embedding


@pytest.fixture(scope="module")
def trained():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Heads(as_dict)
        optimizer = torch.optim.Adam(network.parameters(), 1e-2)
        for _ in range(150):
            rows = torch.randint(600, (128,))
            out = network(X[rows])
            loss = F.cross_entropy(out["logits"], COLOURS[rows])
            loss = loss + F.cross_entropy(out["side"], SIDES[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return network.eval()


def of_shape(trained, shape):
    network = Heads(shape)
    network.load_state_dict(trained.state_dict())
    return network.eval()


def changed(one, other):
    return (one["logits"].argmax(1) != other["logits"].argmax(1)) | (
        one["side"].argmax(1) != other["side"].argmax(1)
    )


@pytest.mark.parametrize("shape", [as_dict, Answer, as_tuple, named_alike])
def test_all_heads_keep_their_answers(trained, shape):
    network = of_shape(trained, shape)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = shrink(network, [X], 0.15)
    side = {as_tuple: "1.0"}.get(shape, "side")
    assert result.certified and result.agreement.heads == (side,)
    assert result.macs["after"] < result.macs["before"]
    # The layers that only one head reads are as little free as any other.
    compressed = result.model
    compressed.shape = (as_dict,)
    with torch.no_grad():
        before, after = trained(X), compressed(X)
    assert after["embedding"].shape == before["embedding"].shape
    assert float(changed(before, after).double().mean()) < 0.2
    compressed.shape = (shape,)
    # verify says the same by itself, of the network and of what became of it.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResultWarning)
        checked = verify(network, compressed, [X])
    assert checked.changed == int(changed(before, after).sum())
    assert checked.heads == (side,) and f"another head ({side})" in agreement_sentence(
        result.agreement, "examples"
    )
    others = {one["name"]: one for one in result.other_outputs}
    if shape is named_alike:
        assert not others and not result.warnings
        return
    name = {as_tuple: "2"}.get(shape, "embedding")
    assert list(others) == [name] == [one["name"] for one in checked.other_outputs]
    assert others[name]["shape"] == [16] and others[name]["changed"] is None
    gap = (before["embedding"] - after["embedding"]).square().sum()
    size = before["embedding"].square().sum()
    assert checked.other_outputs[0]["rms"] == pytest.approx(float((gap / size) ** 0.5), rel=1e-4)
    (line,) = (w for w in result.warnings if "does not vouch" in w)
    assert f"the output {name} (moved by" in line
    assert line in [str(w.message) for w in caught if w.category is ResultWarning]
    assert checked.warnings and json.dumps([result.to_dict(), checked.to_dict()])


def test_output_narrows_the_promise_and_says_so(trained):
    with pytest.warns(ResultWarning, match=r"output.*side \(moved by"):
        result = shrink(trained, [X], 0.15, output="logits")
    assert result.agreement.heads == ()
    assert [one["name"] for one in result.other_outputs] == ["side", "embedding"]
    assert result.other_outputs[0]["changed"] > 0
    out = result.model(X[:2])
    assert out["side"].shape == (2, 2) and out["embedding"].shape == (2, 16)
    # The compressed network remembers: verify looks at the same output.
    with pytest.warns(ResultWarning, match="side"):
        assert verify(trained, result.model, [X]).heads == ()


def test_a_network_with_one_output_has_no_others():
    network = nn.Sequential(nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    found = verify(network, network, [X])
    assert found.other_outputs == found.heads == found.warnings == ()


def test_what_is_said_of_outputs():
    assert said([{"name": "a", "shape": [2], "rms": 0.0, "changed": None}]) is None
    assert said([{"name": "a", "shape": [2], "rms": 1e-7, "changed": 0.0}]) is None
    several = [{"name": f"h.{i}", "shape": [2], "rms": 0.5, "changed": None} for i in range(8)]
    line = said([*several, {"name": "z", "shape": None, "rms": None, "changed": None}])
    assert "the outputs h.0 (moved by 50.0%)" in line and "h.4" in line and "4 more" in line
    assert "not comparable" in said([{"name": "z", "shape": None, "rms": None, "changed": None}])


class Unsure(nn.Module):
    """Draws in eval mode, in one of several ways."""

    def __init__(self, draw):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = nn.Linear(10, 24), nn.Linear(24, 24), nn.Linear(24, 3)
        self.draw = (draw,)

    def forward(self, x):
        return self.c(self.b(self.draw[0](self.a(x).relu())).relu())


def dropout(x):
    return F.dropout(x, 0.02, training=True)


def noise(x):
    return x + 0.01 * torch.randn_like(x)


def flips(x):
    return x if float(torch.rand(())) < 0.5 else -3 * x


@pytest.mark.parametrize("draw", [dropout, noise, flips])
def test_draws_are_refused_or_counted(draw):
    network = Unsure(draw).eval()
    with pytest.raises(UnsupportedNetworkError, match=r"repeat.*Unsure.*--stochastic"):
        shrink(network, [X], 0.3)
    # Two runs of it, example by example: what the network disagrees with itself.
    with torch.no_grad():
        runs = [torch.cat([network(x) for x in X.split(1)]).argmax(1) for _ in range(2)]
    own = float((runs[0] != runs[1]).double().mean())
    state = torch.get_rng_state()
    with pytest.warns(ResultWarning, match="does not repeat its answers"):
        found = verify(network, network, [X])
    assert abs(found.changed / found.n - own) < 0.08 and own > 0
    assert torch.equal(state, torch.get_rng_state())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert verify(network, network, X.split(100), stochastic=True).changed == found.changed


@pytest.mark.parametrize("draw", [pytest.param(dropout, marks=pytest.mark.slow), noise])
def test_a_network_that_draws_is_compressed_with_its_disagreement_counted(draw):
    network = Unsure(draw).eval()
    result = shrink(network, [X], 0.3, stochastic=True)
    assert result.certified and result.macs["after"] < result.macs["before"]
    assert result.agreement.changed > 0


def test_verify_warns_of_networks_that_depend_on_the_batch():
    network = nn.Sequential(
        nn.Linear(10, 8), nn.BatchNorm1d(8, track_running_stats=False), nn.Linear(8, 3)
    ).eval()
    with pytest.warns(ResultWarning, match=r"layer 1, BatchNorm1d without.*batches like these"):
        found = verify(network, network, [X])
    assert found.changed == 0 and len(found.warnings) == 1
    with pytest.raises(UnsupportedNetworkError, match="depend on the other examples"):
        shrink(network, [X], 0.2)
