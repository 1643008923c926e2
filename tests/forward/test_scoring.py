"""Labels of every kind, and outputs and inputs of any: shrunk, verified and analysed."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fcompress import analyze, shrink, verify
from fcompress.certify.agreement import Tally
from fcompress.certify.bounded_mean import betting_bound
from fcompress.certify.bounds import upper_bound
from fcompress.data.packing import Packing
from fcompress.errors import DataError, FcompressError, UnsupportedNetworkError
from fcompress.forward.answers import parts
from fcompress.forward.answers.scoring import Scoring
from fcompress.forward.predictor import Predictor

N = 600


def draw(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


IDS = torch.randint(0, 40, (N, 9), generator=torch.Generator().manual_seed(1))
WORDS = draw(40, 3)


def trained(model, loss, steps=120):
    """Fit `model` to what `loss(rows)` says; seeded."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for module in model.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
        optimizer = torch.optim.Adam(model.parameters(), 5e-3)
        for _ in range(steps):
            optimizer.zero_grad()
            loss(torch.randint(N, (64,))).backward()
            optimizer.step()
    return model.eval()


def batches(x, y=None, size=100):
    parts = zip(x.split(size), [None] * N if y is None else y.split(size), strict=False)
    return [part if part[1] is not None else part[0] for part in parts]


class Given(nn.Module):
    """Scores that are known, whatever comes in: all of them at once."""

    def __init__(self, scores):
        super().__init__()
        self.scores = scores

    def forward(self, x):
        return self.scores


def body(inputs, outputs):
    return nn.Sequential(nn.Linear(inputs, 32), nn.ReLU(), nn.Linear(32, outputs))


class Many(nn.Module):
    """Several outputs, the labels' scores not the first of them."""

    def __init__(self):
        super().__init__()
        self.body, self.side = body(10, 3), nn.Linear(10, 5)

    def forward(self, x):
        return {"side": self.side(x), "labels": self.body(x)}


def test_several_labels_of_an_example():
    x, y = draw(N, 10), (draw(N, 10) @ draw(10, 3) > 0).float()
    y = (x[:, :3] + 0.3 * x[:, 3:6] > 0).float()
    model = Many()
    trained(model, lambda r: F.binary_cross_entropy_with_logits(model(x[r])["labels"], y[r]))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    how = {"output": "labels", "labels": "sigmoid"}
    result = shrink(model, batches(x, y), 0.4, **how)
    assert result.macs["after"] < result.macs["before"] and result.certified
    assert result.agreement.labels == "sigmoid" and result.agreement.positions is None
    # An example changed where any of its labels did; the thin network carries how it is read.
    checked = verify(model, result.model, batches(x, y))
    same = (model(x)["labels"] > 0) == (result.model(x)["labels"] > 0)
    assert checked.same == int(same.all(1).sum()) < int(same.any(1).sum())
    right = ((model(x)["labels"] > 0) == y.bool()).all(1).double().mean()
    assert checked.accuracy["before"] == pytest.approx(float(right))
    # The caller's network is as it was, and the thin one returns what it returned.
    assert set(result.model(x[:2])) == {"side", "labels"}
    assert not model._forward_hooks and not result.model._forward_hooks
    assert "_fcompress_scoring" not in vars(model)
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
    found = analyze(model, batches(x), **how, orders=1, by_layer=False)
    assert found.labels == "sigmoid" and found.ablation.network.agreement[0][0] == 1
    with pytest.raises(UnsupportedNetworkError, match="no output 'other': it gives side, labels"):
        shrink(model, batches(x), output="other")
    with pytest.raises(UnsupportedNetworkError, match=r"dict with side, labels.*--output"):
        shrink(model, batches(x), labels="sigmoid")
    with pytest.raises(DataError, match=r"expected 3 labels \(0 or 1\) an input"):
        shrink(model, batches(x, y[:, :2]), **how)
    with pytest.raises(ValueError, match="labels='both'"):
        shrink(model, batches(x), labels="both")


@pytest.mark.parametrize("flat", [True, False])
def test_a_single_score_is_a_label_by_its_sign(flat):
    x = draw(N, 10)
    y = (x[:, 0] * x[:, 1] > 0).float()
    model = nn.Sequential(body(10, 1), nn.Flatten(0)) if flat else body(10, 1)
    trained(model, lambda r: F.binary_cross_entropy_with_logits(model(x[r]).flatten(), y[r]))
    result = shrink(model, batches(x, y), 0.3, method="factor")
    changed = (model(x) > 0) != (result.model(x) > 0)
    checked = verify(model, result.model, batches(x, y))
    assert checked.labels == "sigmoid" and checked.changed == int(changed.sum())


class Dense(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.first, self.norm = nn.Conv2d(2, 12, 3, padding=1), nn.BatchNorm2d(12)
        self.second = nn.Conv2d(12, 8, 3, padding=1)
        self.last = nn.Conv2d(8, classes, 1)

    def forward(self, x):
        return x, self.last(self.second(self.norm(self.first(x)).relu()).relu())


@pytest.mark.parametrize(("classes", "method"), [(3, "hybrid"), (1, "prune")])
def test_a_label_at_every_position(classes, method):
    x = F.avg_pool2d(draw(N, 2, 10, 10), 3, 1) * 3
    truth = (x[:, 0] > x[:, 1]).long() + (x.sum(1) > 1).long() * (classes > 1)
    model = Dense(classes)

    def loss(r):
        scores = model(x[r])[1]
        if classes > 1:
            return F.cross_entropy(scores, truth[r])
        return F.binary_cross_entropy_with_logits(scores[:, 0], truth[r].float())

    trained(model, loss, 60)
    how = {"output": 1, "labels": "positions"}
    result = shrink(model, batches(x, truth), 0.3, method=method, calibration=64, **how)
    assert result.macs["after"] < result.macs["before"] and result.certified

    def labels(network):
        scores = network(x)[1]
        return (scores[:, 0] > 0).long() if classes == 1 else scores.argmax(1)

    same = (labels(model) == labels(result.model)).flatten(1)
    shares = 1 - same.double().mean(1)
    # However the data comes in batches.
    for size in (100, 37):
        checked = verify(model, result.model, batches(x, truth, size), **how)
        assert checked.changed == pytest.approx(float(shares.sum()))
        assert checked.upper_bound == pytest.approx(betting_bound(shares.numpy()))
        assert checked.deviation == pytest.approx(float(shares.std(unbiased=False)))
        assert checked.positions == pytest.approx(float(same.double().mean()))
    right = (labels(model) == truth).double().mean()
    assert checked.accuracy["before"] == pytest.approx(float(right))
    with pytest.raises(UnsupportedNetworkError, match="labels positions"):
        shrink(model, batches(x), output=1)
    found = analyze(model, batches(x), examples=20, orders=1, by_layer=False, **how)
    assert 0 < found.ablation.network.agreement[0][-1] < 1


def test_positions_are_drawn_evenly_and_by_number_alone():
    places = 640
    labels = torch.arange(places).expand(3000, places)
    drawn = parts.drawn(labels, 0)
    assert drawn.shape == (3000, parts.DRAWN)
    counts = drawn.flatten().bincount(minlength=places).double()  # 300 each
    assert ((counts - 300).abs() < 5 * math.sqrt(300)).all()
    assert all(len(row.unique()) == parts.DRAWN for row in drawn[:50])
    assert torch.equal(parts.drawn(labels[:50], 123), drawn[123:173])
    # Neighbours are drawn independently of each other.
    ranks = drawn[:, 7] % 10
    pairs = (ranks[:-1] * 10 + ranks[1:]).bincount(minlength=100).double()
    assert float(((pairs - 29.99).square() / 29.99).sum()) < 150
    # Few positions are all taken.
    assert torch.equal(parts.drawn(labels[:, :64], 0), labels[:, :64])


def test_drawn_positions_show_the_share_of_all():
    generator = torch.Generator().manual_seed(0)
    labels = torch.zeros(4000, 900, dtype=torch.long)
    found = (torch.rand(4000, 900, generator=generator) < 0.05).long()
    found[:, :300] = 0  # not alike from place to place
    labels[::2, 400:] = parts.PADDED  # and half of the examples are shorter
    found[::2, 400:] = parts.PADDED
    every = parts.same_share(labels, found)
    drawn = parts.same_share(*(parts.drawn(one, 5) for one in (labels, found)))
    assert float(drawn.mean()) == pytest.approx(float(every.mean()), abs=0.002)
    assert float(drawn[::2].mean()) == pytest.approx(float(every[::2].mean()), abs=0.003)
    assert float((drawn - every).std()) < 0.03


def test_the_bound_covers_the_share_of_changed_positions():
    """Positions of one example that change together are no independent evidence."""
    generator = torch.Generator().manual_seed(0)
    wrong = careless = 0
    for _ in range(200):
        # A tenth of the positions change on average, in some examples all and in most none.
        changed = torch.rand(60, 1, generator=generator) < 0.1
        before = torch.zeros(60, 2, 16)
        before[:, 0] = 1
        after = torch.where(changed[:, None], -before, before)
        tally = Tally()
        networks = [
            Predictor(Given(scores), scoring=Scoring(labels="positions"))
            for scores in (before, after)
        ]
        tally.compare(*networks, torch.arange(60), None)
        result = tally.result(0.95)
        wrong += result.upper_bound < 0.1
        careless += upper_bound(round(result.changed * 16), 60 * 16) < 0.1
    assert wrong <= 20  # 5% expected; 20 of 200 would come once in 500 times
    assert careless > 40


def test_divergences_are_those_of_the_outcomes():
    one, other = draw(5, 4).double(), draw(4, 5).T.double()
    sigmoid = Scoring(labels="sigmoid")
    found = sigmoid.divergence(*(sigmoid.log_probabilities(s) for s in (one, other)))
    p, q = other.sigmoid(), one.sigmoid()
    expected = (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).sum(1).mean()
    assert float(found) == pytest.approx(float(expected))
    dense = Scoring(labels="positions")
    a, b = draw(5, 3, 4, 2).double(), draw(2, 3, 4, 5).transpose(0, 3).double()
    found = dense.divergence(*(dense.log_probabilities(s) for s in (a, b)))
    p, q = b.softmax(1), a.softmax(1)
    assert float(found) == pytest.approx(float((p * (p / q).log()).sum(1).mean()))


@pytest.mark.parametrize("labels", ["classes", "sigmoid", "positions"])
def test_fisher_information_is_the_curvature_of_the_divergence(labels):
    """E[g g^T] of drawn labels predicts the divergence of a small change."""
    scoring = Scoring(labels=labels)
    base = draw(1, 3, 2).double() if labels == "positions" else draw(1, 3).double()
    scores = base.expand(100_000, *base.shape[1:]).clone().requires_grad_()
    scoring.surprise(scores, torch.Generator().manual_seed(0)).backward()
    gradients = scores.grad.flatten(1)
    step = 0.05 * draw(*base.shape).double()
    predicted = float((gradients @ step.flatten()).square().mean() / 2)
    measured = scoring.divergence(*(scoring.log_probabilities(s) for s in (base + step, base)))
    assert predicted == pytest.approx(float(measured), rel=0.1)


class Text(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.body = nn.Embedding(40, 16), body(16, 3)

    def forward(self, ids):
        return self.body(self.embedding(ids).mean(1))


def test_token_ids():
    truth = WORDS[IDS].mean(1).argmax(1)
    model = Text()
    trained(model, lambda r: F.cross_entropy(model(IDS[r]), truth[r]), 200)
    result = shrink(model, batches(IDS, truth), 0.3)
    assert result.macs["after"] < result.macs["before"] and result.certified
    assert result.model.embedding.weight.shape[1] < 16
    assert verify(model, result.model, IDS).rate > 0.6
    assert analyze(model, IDS, orders=1, examples=100, by_layer=False).groups


class Masked(Text):
    def __init__(self):
        super().__init__()
        self.more = nn.Linear(4, 16)

    def forward(self, ids, mask, more=None):
        mask = mask.unsqueeze(2)
        found = (self.embedding(ids) * mask).sum(1) / mask.sum(1)
        return (self.body(found + self.more(more)), None)


def test_several_inputs():
    mask = (draw(N, 9) > -1).long()
    mask[:, 0] = 1
    more = draw(N, 4)
    truth = ((WORDS[IDS] * mask[..., None]).sum(1) / mask.sum(1, True) + more[:, :3]).argmax(1)
    model = Masked()
    trained(model, lambda r: F.cross_entropy(model(IDS[r], mask[r], more[r])[0], truth[r]), 200)
    parts = [slice(start, start + 100) for start in range(0, N, 100)]
    named = [{"ids": IDS[p], "mask": mask[p], "more": more[p], "labels": truth[p]} for p in parts]
    numbered = [((IDS[p], mask[p], more[p]), truth[p]) for p in parts]
    result = shrink(model, named, 0.3, method="factor")
    assert result.macs["after"] < result.macs["before"] and result.certified
    assert not any("view" in skipped["reason"] for skipped in result.skipped)
    same = model(IDS, mask, more)[0].argmax(1) == result.model(IDS, mask, more)[0].argmax(1)
    checked = [verify(model, result.model, data) for data in (named, numbered)]
    assert checked[0] == checked[1] and checked[0].same == int(same.sum())
    assert checked[0].accuracy["before"] > 0.7
    assert shrink(model, numbered, 0.3, method="factor").macs == result.macs
    assert not model._forward_pre_hooks and not result.model._forward_pre_hooks
    assert analyze(model, named, orders=1, examples=100, by_layer=False).groups


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ((IDS, IDS, IDS), r"several inputs go in a dict"),
        ({"ids": IDS, "mask": 3}, "input 'mask' of a batch is a int"),
        ({"ids": IDS, "mask": IDS[:5]}, "hold 600, 5 examples"),
        ({"ids": IDS, "mask": draw(N, 2) / 0}, "not finite"),
        ({"what": IDS}, r"does not run on inputs what \[9\] int64: TypeError"),
    ],
)
def test_inputs_that_cannot_be_used_are_one_line(batch, message):
    with pytest.raises(FcompressError, match=message) as caught:
        shrink(Text(), [batch])
    assert "\n" not in str(caught.value)


def test_packing_loses_nothing():
    inputs = {"a": draw(7, 3, 2).half(), "b": IDS[:7] << 50, "c": draw(7) > 0}
    packing = Packing.of(inputs)
    packed = packing.pack(inputs)
    for rows in (slice(7), slice(3, 4)):
        args, found = packing.unpack(packed[rows], None)
        assert not args and all(torch.equal(found[k], v[rows]) for k, v in inputs.items())
    assert packing.unpack(packed, torch.float64)[1]["a"].dtype == torch.float64
    with pytest.raises(DataError, match="different shapes"):
        packing.pack(inputs | {"c": draw(7, 2) > 0})
