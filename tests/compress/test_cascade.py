"""A cascade from shrink(): certified as one network, cheaper on average than any thin one."""

import itertools

import pytest
import torch
from cases.trained import examples, trained
from torch import nn

import fcompress
from fcompress import shrink, verify
from fcompress.cascades.network import Cascade
from fcompress.compress.cascade.sizes import log_odds, logistic, spaced
from fcompress.errors import ToleranceError, UnsupportedNetworkError
from fcompress.models.fingerprint import fingerprint


def data(n=2000):
    return examples(n, seed=9)[0]


@pytest.fixture(scope="module")
def found():
    return shrink(trained(), data(), tol=0.02, cascade=True)


def test_it_is_certified_and_keeps_its_promise_on_new_examples(found):
    cascade = found.model
    assert isinstance(cascade, Cascade) and found.certified
    assert found.agreement.upper_bound <= 0.02
    new = examples(20000, seed=77)[0]
    assert verify(trained(), cascade, new).changed / len(new) <= 0.02
    share = float(cascade.deferred(new).double().mean())
    assert 0 < share <= found.cascade.deferred["upper_bound"]
    # The control: its compressed network alone breaks the promise.
    assert verify(trained(), cascade.compressed, new).changed / len(new) > 0.02


def test_costs_are_those_of_both_networks(found):
    macs, deferred = found.cascade.macs, found.cascade.deferred
    original = trained()
    assert macs["original"] == fcompress.count(original, data(2)).macs
    assert macs["compressed"] == fcompress.count(found.model.compressed, data(2)).macs
    assert macs["worst"] == macs["compressed"] + macs["original"]
    average = macs["compressed"] + deferred["share"] * macs["original"]
    assert macs["average"] == pytest.approx(average) and found.macs["after"] == round(average)
    assert macs["average"] < macs["average_at_most"] < macs["original"] < macs["worst"]
    both = sum(p.numel() for p in found.model.parameters())
    assert found.params["after"] == both > found.params["before"]
    assert found.bytes["after"] > found.bytes["before"]
    assert found.cascade.confidence_of_both == pytest.approx(0.9)
    record = found.to_dict()["cascade"]
    assert record["macs"] == macs and record["threshold"] == float(found.model.threshold)


def test_it_costs_less_than_the_thin_network_alone(found):
    thin = shrink(trained(), data(), tol=0.02)
    assert thin.cascade is None
    assert found.macs["after"] < 0.8 * thin.macs["after"]


def test_the_same_call_gives_the_same_pair(found):
    again = shrink(trained(), data(), tol=0.02, cascade=True)
    assert fingerprint(again.model) == fingerprint(found.model)


@pytest.mark.slow
def test_a_looser_tolerance_never_costs_more():
    model, x = trained(seed=3), data(2500)
    costs = [shrink(model, x, tol=tol, cascade=True).macs["after"] for tol in (0.01, 0.02, 0.06)]
    assert costs == sorted(costs, reverse=True) and costs[0] > costs[-1]


def test_for_every_label():
    result = shrink(trained(), data(), tol=0.05, tol_label=0.05, cascade=True)
    promise = result.agreement.by_label.promise
    assert promise is not None and promise.labels == 4
    assert isinstance(result.model, Cascade)


class Several(nn.Module):
    """Two heads and positions, as an answer may have."""

    def __init__(self):
        super().__init__()
        self.body, self.head = trained()[:5], trained()[6]
        self.other = nn.Linear(24, 3)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            self.other.weight.data.normal_()

    def forward(self, x):
        hidden = self.body(x)
        return {"logits": self.head(hidden), "other": self.other(hidden)}


def test_all_heads_count_and_are_merged():
    model = Several().eval()
    result = shrink(model, data(2000), tol=0.1, cascade=True)
    assert result.agreement.heads == ("other",)
    new = examples(5000, seed=78)[0]
    assert verify(model, result.model, new).changed / len(new) <= 0.1


class Dense(nn.Module):
    """A class at each of six positions."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(2)
            self.layers = nn.Sequential(
                nn.Conv1d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv1d(16, 3, 3, padding=1)
            )

    def forward(self, x):
        return self.layers(x.unsqueeze(1))


@pytest.mark.parametrize(
    "answer", ["positions", "sigmoid", pytest.param("top-2", marks=pytest.mark.slow)]
)
def test_other_kinds_of_answers(answer):
    model = Dense().eval() if answer == "positions" else trained()
    result = shrink(model, data(2000), tol=0.12, answer=answer, cascade=True)
    new = examples(5000, seed=79)[0]
    after = verify(model, result.model, new, answer=answer)
    assert after.changed / after.n <= 0.12
    assert result.agreement.labels == answer


def test_what_cannot_be_is_refused_in_words():
    x = data()
    for more, words in (
        ({"answer": "regression", "within": 0.1}, "are numbers; leave cascade out"),
        ({"cosine": 0.9}, "are vectors; leave cascade out"),
        ({"same": lambda a, b: (a - b).abs().amax(1) < 1}, "a function of yours"),
    ):
        with pytest.raises(UnsupportedNetworkError, match=words):
            shrink(trained(), x, tol=0.05, cascade=True, **more)
    with pytest.raises(ToleranceError, match="tolerance of 0 cannot be proven"):
        shrink(trained(), x, tol=0, cascade=True)
    with pytest.raises(ToleranceError, match=r"600 certification examples cannot.*2995 are needed"):
        shrink(trained(), x, tol=0.001, cascade=True)
    for size in ({"ratio": 0.5}, {"max_macs": 1000}):
        with pytest.raises(ValueError, match="a size promises none"):
            shrink(trained(), x, cascade=True, **size)


class Noisy(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = trained()

    def forward(self, x):
        return self.inner(x) + 0.3 * torch.randn(len(x), 1)


def test_networks_that_draw_are_refused():
    with pytest.raises(UnsupportedNetworkError, match="gives other answers each time"):
        shrink(Noisy().eval(), data(), tol=0.3, stochastic=True, cascade=True)


def test_a_cascade_is_no_network_to_shrink(found):
    with pytest.raises(UnsupportedNetworkError, match="give the original"):
        shrink(found.model, data(), tol=0.1)


def test_the_regression_tells_thresholds_apart_where_nothing_changed():
    margins = torch.linspace(0, 0.999, 400).double()
    odds = log_odds(margins)
    generator = torch.Generator().manual_seed(0)
    lost = (torch.rand(400, generator=generator) < torch.sigmoid(-1 - odds)).double()
    intercept, slope = logistic(odds, lost)
    assert -2 < intercept < 0 and -2 < slope < -0.5
    none = logistic(odds, torch.zeros_like(lost))
    assert -5 < none[1] < -0.5
    # Even then a sure answer is less likely to change than an unsure one, and none is certain.
    assert 1e-6 < torch.sigmoid(torch.tensor(none[0] + none[1] * 5.0)) < 1e-2
    assert logistic(odds, torch.ones_like(lost))[1] <= 0


def test_sizes_are_spaced_evenly():
    found = spaced(range(1, 1000), lambda removed: 1 - removed / 1000)
    shares = [1 - removed / 1000 for removed in found]
    assert shares[0] <= 0.75 and shares[-1] < 0.03
    assert all(0.7 < b / a < 0.78 for a, b in itertools.pairwise(shares) if a > 0.1)
    # Where one unit is nearly everything there are no sizes in between.
    assert spaced([1, 2], lambda removed: {1: 0.9, 2: 0.1}[removed]) == [2]
