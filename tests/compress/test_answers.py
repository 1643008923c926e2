"""Networks whose answers are no classes of logits: compressed, certified and read again."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fcompress import analyze, export, load, save, shrink, verify
from fcompress.errors import UnsupportedNetworkError
from fcompress.models.external import Architecture
from fcompress.models.provenance import Described, describe
from fcompress.report.text import verdict

X = torch.randn(2400, 12, generator=torch.Generator().manual_seed(0))
FRESH = torch.randn(2000, 12, generator=torch.Generator().manual_seed(1))
DATA = list(X[1200:].split(200))
# A smooth thing to learn, and its values for all examples.
Y = torch.stack([X[:, :3].sum(1).sin(), 3 * X[:, 3], X[:, 4] * X[:, 5]], 1)


def fitted(outputs, loss, end=None, norm=False):
    """A network that is far wider than what it learns needs."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [nn.Linear(12, 48), nn.ReLU(), nn.Linear(48, 48)]
        layers += [nn.BatchNorm1d(48)] if norm else []
        network = nn.Sequential(*layers, nn.ReLU(), nn.Linear(48, outputs), *([end] if end else []))
        optimizer = torch.optim.Adam(network.parameters(), 3e-3)
        for _ in range(300):
            rows = torch.randint(1200, (64,))
            optimizer.zero_grad()
            loss(network(X[rows]), rows).backward()
            optimizer.step()
    return network.eval()


def outputs(*networks):
    with torch.no_grad():
        return [network(FRESH) for network in networks]


def squares(out, rows):
    return (out - Y[rows, : out.shape[1]]).square().mean()


@pytest.mark.parametrize(
    ("width", "how"),
    [
        (1, {"answer": "regression", "within": "40%"}),
        (3, {"within": 0.6}),
        (3, {"answer": "regression-norm", "within": "30%"}),
    ],
)
def test_regression(width, how, tmp_path):
    network = fitted(width, squares)
    with pytest.raises(UnsupportedNetworkError, match="answer"):
        shrink(network, list(zip(DATA, Y[1200:].split(200), strict=True)))
    describe(network, Described(Architecture("somewhere:network")))
    result = shrink(network, DATA, 0.2, **how)
    assert result.certified and result.macs["after"] < 0.8 * result.macs["before"]
    kind = how.get("answer", "regression")
    assert result.agreement.labels == kind and result.accuracy is None
    within = result.agreement.answer["within"]
    before, after = outputs(network, result.model)
    gap = (before - after).abs()
    gap = gap.norm(dim=1, keepdim=True) if kind == "regression-norm" else gap
    stayed = (gap <= torch.tensor(within)).all(1)
    assert float(stayed.float().mean()) > 0.75
    # The compressed network carries what was promised, in memory and in a file.
    checked = verify(network, result.model, FRESH)
    assert checked.same == int(stayed.sum()) and checked.answer["within"] == within
    save(result.model, tmp_path / "thin.pt")
    again = load(tmp_path / "thin.pt", arch=lambda: copy.deepcopy(network))
    assert verify(network, again, FRESH) == checked
    assert any("stayed within" in line for line in verdict(result))
    written = export(result.model, tmp_path / "thin.safetensors", FRESH, original=network)
    assert written.same == written.n and written.agreement.labels == kind


@pytest.mark.slow
def test_regression_with_distillation():
    network = fitted(3, squares, norm=True)
    how = {"tol": 0.2, "within": "40%"}
    plain = shrink(network, DATA, **how)
    result = shrink(network, DATA, **how, distill=True)
    assert result.certified and result.macs["after"] <= plain.macs["after"]


def test_embeddings():
    directions = torch.randn(4, 20, generator=torch.Generator().manual_seed(3))
    network = fitted(20, lambda out, rows: (out - X[rows, :4] @ directions).square().mean())
    result = shrink(network, DATA, 0.2, answer="embedding")
    assert result.certified and result.macs["after"] < 0.5 * result.macs["before"]
    near = F.cosine_similarity(*outputs(network, result.model), dim=1) >= 0.95
    checked = verify(network, result.model, FRESH)
    assert checked.same == int(near.sum()) > 1500
    assert checked.answer == {"kind": "embedding", "cosine": 0.95}
    strict = shrink(network, DATA, 0.2, cosine=0.99)
    assert strict.macs["after"] > result.macs["after"]
    found = analyze(network, DATA, answer="embedding", orders=1, by_layer=False)
    assert found.labels == "embedding" and found.ablation.network.agreement[0][0] == 1


def test_a_last_sigmoid():
    label = ((X[:, 0] * X[:, 1] > 0) ^ (X[:, 2] > 0.3)).float()
    network = fitted(1, lambda o, r: F.binary_cross_entropy(o[:, 0], label[r]), nn.Sigmoid())
    result = shrink(network, DATA, 0.2)
    assert result.certified and result.agreement.answer == {"kind": "sigmoid", "ending": "sigmoid"}
    before, after = outputs(network, result.model)
    same = (before > 0.5) == (after > 0.5)
    assert float(same.float().mean()) > 0.75
    assert 0.2 < float((after > 0.5).float().mean()) < 0.8
    assert verify(network, result.model, FRESH).same == int(same.sum())


def test_a_last_softmax_is_as_good_as_none():
    label = Y[:, :3].argmax(1)

    def loss(out, rows):
        return F.cross_entropy(out, label[rows])

    plain = fitted(3, loss)
    ended = nn.Sequential(*plain, nn.Softmax(dim=1))
    one, other = (shrink(network, DATA, 0.1) for network in (plain, ended))
    assert one.macs["after"] == other.macs["after"]
    assert one.agreement.changed == other.agreement.changed
    assert one.agreement.answer == {"kind": "classes"}


def test_top_k():
    label = (X @ torch.randn(12, 8, generator=torch.Generator().manual_seed(4))).argmax(1)
    network = fitted(8, lambda o, r: F.cross_entropy(o, label[r]))
    result = shrink(network, DATA, 0.3, answer="top-2")
    assert result.certified and result.macs["after"] < result.macs["before"]
    before, after = (o.topk(2).indices.sort(1).values for o in outputs(network, result.model))
    checked = verify(network, result.model, FRESH)
    assert checked.labels == "top-2" and checked.same == int((before == after).all(1).sum())


def test_a_function_of_the_users():
    network = fitted(3, squares)

    def same_sign(ours, theirs):
        return ((ours[:, 1] > 0) == (theirs[:, 1] > 0)) & ((ours - theirs)[:, 1].abs() < 1)

    result = shrink(network, DATA, 0.1, same=same_sign)
    assert result.certified and result.macs["after"] < result.macs["before"]
    assert result.agreement.answer == {"kind": "same", "function": "same_sign"}
    expected = int(same_sign(*outputs(network, result.model)).sum())
    assert verify(network, result.model, FRESH).same == expected > 1700
