"""What is told, refused or asked for of a network's answers, and how they are compared."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fcompress import analyze, build, verify
from fcompress.errors import FcompressError, UnsupportedNetworkError
from fcompress.forward.answers import continuous
from fcompress.forward.answers.asked import Asked, asked
from fcompress.forward.answers.scoring import Scoring
from fcompress.forward.answers.understanding import understood
from fcompress.forward.predictor import Predictor

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(400, 8, generator=GENERATOR)
BINARY = (X[:, 0] > 0).long()


class Ends(nn.Module):
    """A network that does something to what a linear layer gives."""

    def __init__(self, outputs, end=lambda z: z):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(outputs)
            self.body = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, outputs))
        self.end = end

    def forward(self, x):
        return self.end(self.body(x))


def told(network, labels=None):
    return understood(Predictor(network), [(X, labels)]).scoring


@pytest.mark.parametrize(
    ("network", "labels", "kind", "ending"),
    [
        (Ends(3), None, "classes", None),
        (Ends(2), BINARY, "classes", None),
        (Ends(1), BINARY, "sigmoid", None),
        (Ends(1, lambda z: z.squeeze(1)), BINARY.float(), "sigmoid", None),
        (Ends(3), (X[:, :3] > 0).float(), "sigmoid", None),
        (Ends(1, torch.sigmoid), None, "sigmoid", "sigmoid"),
        (Ends(1, lambda z: torch.sigmoid(z)[:, 0]), None, "sigmoid", "sigmoid"),
        (Ends(4, lambda z: z.sigmoid_()), None, "sigmoid", "sigmoid"),
        (Ends(4, torch.sigmoid), BINARY, "classes", "sigmoid"),
        (Ends(4, lambda z: z.softmax(-1)), None, "classes", "softmax"),
        (Ends(4, lambda z: F.log_softmax(z, 1)), None, "classes", None),
        # A softmax over examples says nothing.
        (Ends(4, lambda z: z.softmax(0)), None, "classes", None),
        (Ends(4, lambda z: z.sigmoid() * 2), None, "classes", None),
        # Saturated or constant outputs of classifiers have one length, too.
        (Ends(2, lambda z: 9 * (9e9 * z).tanh() / 3), None, "classes", None),
        (Ends(5, lambda z: 0 * z + torch.arange(5.0)), None, "classes", None),
        (Ends(1000), None, "classes", None),
        (Ends(1000, lambda z: z.relu()), None, "classes", None),
        (build("mlp", in_features=8, classes=64), None, "classes", None),
    ],
)
def test_what_can_be_told(network, labels, kind, ending):
    scoring = told(network, labels)
    assert (scoring.labels, scoring.ending) == (kind, ending)


@pytest.mark.parametrize(
    ("network", "labels", "message"),
    [
        (Ends(1), None, "gives one output"),
        (Ends(1, lambda z: z[:, 0]), None, "gives one output"),
        (Ends(1), 3 * X[:, 0], "gives one output"),
        (Ends(3), X[:, :3], "labels of the data are numbers"),
        (Ends(3), X[:, 0], "labels of the data are numbers"),
        (Ends(32, lambda z: F.normalize(z, dim=1)), None, "32 outputs .* have the same length"),
        (Ends(64, lambda z: F.layer_norm(z, (64,))), None, "64 outputs .* have the same length"),
        (Ends(6, torch.tanh), None, "ends in a tanh"),
    ],
)
def test_what_cannot_be_told_is_refused(network, labels, message):
    with pytest.raises(UnsupportedNetworkError, match=message) as caught:
        told(network, labels)
    assert "--answer regression|sigmoid|embedding|classes" in str(caught.value)
    assert "\n" not in str(caught.value)
    data = [X] if labels is None else [(X, labels)]
    for run in (lambda: verify(network, network, data), lambda: analyze(network, data)):
        with pytest.raises(UnsupportedNetworkError, match=message):
            run()
    # A word is enough.
    assert verify(network, network, data, within=0.1).same == len(X)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"answer": "both"}, r"answer='both': expected one of classes, top-K"),
        ({"answer": "top-0"}, "expected one of"),
        ({"answer": "same"}, "expected one of"),
        ({"answer": "regression"}, "needs within="),
        ({"answer": "regression", "within": "far"}, "expected a distance above 0"),
        ({"answer": "regression", "within": -1}, "expected a distance above 0"),
        ({"answer": "classes", "within": 1}, "belongs to answer='regression'"),
        ({"answer": "embedding", "cosine": 1.0}, "expected a number between -1 and 1"),
        ({"within": 1, "cosine": 0.9}, "belongs to answer='embedding'"),
        ({"answer": "classes", "labels": "sigmoid"}, "say one of them"),
        ({"answer": "classes", "same": print}, "expected a function"),
    ],
)
def test_what_contradicts_itself_is_said(arguments, message):
    with pytest.raises(ValueError, match=message):
        asked(**arguments)
    with pytest.raises(ValueError, match=message):
        verify(Ends(3), Ends(3), X, **arguments)


def test_particulars_imply_their_kind():
    assert asked(within="10%") == Asked("regression", "10%")
    assert asked(cosine=0.9).kind == "embedding"
    assert asked(same=torch.eq).kind == "same"
    assert asked(labels="top-3") == asked(answer="top-3") == Asked("top-3")


def test_a_last_sigmoid_or_softmax_is_undone():
    z = 4 * torch.randn(300, 3, generator=GENERATOR)
    logits, other = z.double(), (z + 0.1).double()
    for kind, ending, make in (
        ("sigmoid", "sigmoid", torch.sigmoid),
        ("classes", "softmax", lambda t: t.softmax(1)),
    ):
        plain, ended = Scoring(labels=kind), Scoring(labels=kind, ending=ending)
        assert torch.equal(ended.labels_of(make(logits)), plain.labels_of(logits))
        assert torch.allclose(
            ended.log_probabilities(make(logits), 4.0), plain.log_probabilities(logits, 4.0)
        )
        found = [
            scoring.divergence(*(scoring.log_probabilities(t) for t in pair))
            for scoring, pair in ((plain, (other, logits)), (ended, (make(other), make(logits))))
        ]
        assert float(found[0]) == pytest.approx(float(found[1]), abs=1e-9)
    # What is saturated stays finite.
    ended = Scoring(labels="sigmoid", ending="sigmoid")
    assert ended.log_probabilities(torch.tensor([[0.0, 1.0]])).isfinite().all()
    ended = Scoring(labels="classes", ending="softmax")
    assert ended.log_probabilities(torch.tensor([[0.0, 1.0]])).isfinite().all()


@pytest.mark.parametrize("kind", ["regression", "embedding", "sigmoid", "softmax"])
def test_fisher_information_is_the_curvature_of_the_divergence(kind):
    base = torch.randn(1, 3, generator=GENERATOR).double()
    step = 0.01 * torch.randn(1, 3, generator=GENERATOR).double()
    if kind == "regression":
        scoring = Scoring(labels=kind, within=1.0, deviation=(0.5, 1.0, 2.0))
    elif kind == "embedding":
        scoring = Scoring(labels=kind, deviation=(0.3,))
    elif kind == "sigmoid":
        scoring, base = Scoring(labels=kind, ending=kind), base.sigmoid()
    else:
        scoring, base = Scoring(labels="classes", ending=kind), base.softmax(1)
        step = step - step.mean()
    scores = base.expand(100_000, 3).clone().requires_grad_()
    scoring.surprise(scores, torch.Generator().manual_seed(0)).backward()
    predicted = float((scores.grad @ step.flatten()).square().mean() / 2)
    measured = scoring.divergence(*(scoring.log_probabilities(s) for s in (base + step, base)))
    assert predicted == pytest.approx(float(measured), rel=0.1)


def test_how_far_outputs_may_move():
    one = torch.zeros(4, 2)
    other = torch.tensor([[0.1, 0.0], [0.1, 0.3], [0.0, 0.4], [torch.nan, 0.0]])
    moved = continuous.moved(one, other, "regression", (0.11, 0.31))
    assert moved.tolist() == [False, False, True, True]
    assert continuous.moved(one, other, "regression-norm", (0.35,)).tolist() == [
        False,
        False,
        True,
        True,
    ]
    assert continuous.allowed("10%", "regression", (1.0, 3.0)) == pytest.approx((0.1, 0.3))
    assert continuous.allowed("50%", "regression-norm", (3.0, 4.0)) == pytest.approx((2.5,))
    assert continuous.deviations(torch.tensor([1.0, -1.0]), "regression") == (1.0,)
    dense = torch.randn(50, 2, 6, 6, generator=GENERATOR) * torch.tensor([1.0, 3.0])[:, None, None]
    assert continuous.deviations(dense, "regression") == pytest.approx((1.0, 3.0), rel=0.1)
    with pytest.raises(FcompressError, match="same output to all"):
        continuous.deviations(torch.ones(9, 3), "regression")


def test_embeddings_are_compared_by_their_direction():
    one = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 0.0], [1.0, 0.0]])
    other = torch.tensor([[5.0, 0.1], [1.0, 1.0], [0.0, 0.0], [torch.inf, 0.0]])
    assert continuous.turned(one, other, 0.95).tolist() == [False, True, True, True]
    scoring = Scoring(labels="embedding", cosine=0.7)
    assert scoring.changed(one, other).tolist() == [False, False, True, True]
    with pytest.raises(UnsupportedNetworkError, match="a vector for each example"):
        verify(Ends(1), Ends(1), X, answer="embedding")


def test_the_top_k_are_a_set():
    scoring = Scoring(labels="top-2")
    one = torch.tensor([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0], [1.0, 2.0, 3.0]])
    other = torch.tensor([[2.0, 3.0, 1.0], [3.0, 1.0, 2.0], [torch.nan, 2.0, 3.0]])
    ours, theirs = scoring.labels_of(one), scoring.labels_of(other)
    assert scoring.changed(ours, theirs).tolist() == [False, True, True]
    truth = scoring.truth(torch.tensor([1, 2, 0]), 2)
    assert scoring.right(ours, truth).tolist() == [1, 0, 0]
    with pytest.raises(UnsupportedNetworkError, match="more than 3 classes"):
        verify(Ends(3), Ends(3), X, answer="top-3")
    found = verify(Ends(5), Ends(5), [(X, BINARY)], answer="top-2")
    assert found.labels == "top-2" and found.changed == 0
    assert found.accuracy["before"] >= verify(Ends(5), Ends(5), [(X, BINARY)]).accuracy["before"]


def test_a_function_of_the_users_decides():
    one, other = Ends(3), Ends(4, lambda z: z[:, :3])

    def near(ours, theirs):
        assert ours.shape == theirs.shape
        return (ours - theirs).abs().amax(1) < 0.5

    found = verify(one, other, X.split(90), same=near)
    with torch.no_grad():
        assert found.same == int(near(one(X), other(X)).sum())
    assert found.answer == {"kind": "same", "function": "near"}
    with pytest.raises(FcompressError, match=r"gives torch.float32 \[256\].*expected a bool"):
        verify(one, other, X, same=lambda a, b: a[:, 0])
    with pytest.raises(FcompressError, match=r"fails on outputs of shape .* ZeroDivisionError"):
        verify(one, other, X, same=lambda a, b: 1 / 0)
    with pytest.raises(FcompressError, match="name it again: same="):
        Scoring(labels="same").changed(X, X)


def test_networks_with_and_without_their_last_sigmoid_agree():
    found = verify(Ends(3), Ends(3, torch.sigmoid), X, answer="sigmoid")
    assert found.changed == 0
    found = verify(Ends(3, lambda z: z.softmax(1)), Ends(3), X)
    assert found.changed == 0 and found.answer == {"kind": "classes", "ending": "softmax"}
    assert math.isfinite(found.largest_difference)
