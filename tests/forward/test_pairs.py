"""Pairs of inputs: whether the cosine of their embeddings is above a threshold."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fcompress import load_data, shrink, verify
from fcompress.errors import UnsupportedNetworkError
from fcompress.forward.answers.pairs import Pairs

DIGITS = load_data("digits")
GENERATOR = torch.Generator().manual_seed(0)


class Twice(nn.Module):
    """One network that embeds both inputs, in one batch: its weights are used once."""

    def __init__(self, values=12):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            widths = nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU()
            self.body = nn.Sequential(nn.Flatten(), *widths, nn.Linear(64, values))

    def forward(self, first, second):
        return self.body(torch.cat([first, second])).chunk(2)


def pairs_of(split):
    """Examples of a split in disjoint pairs, half of them of one digit: inputs, whether alike."""
    x, y = split.batch(torch.arange(len(split)))
    order = y.argsort(stable=True)
    half = len(order) // 2 // 2 * 2
    # Neighbours in the order of digits, then pairs out of both halves of what is left.
    rest = order[half:][torch.randperm(len(order) - half, generator=GENERATOR)]
    rows = torch.cat([order[:half], rest[: len(rest) // 2 * 2]]).view(-1, 2)
    rows = rows[torch.randperm(len(rows), generator=GENERATOR)]
    return [((x[rows[:, 0]], x[rows[:, 1]]), (y[rows[:, 0]] == y[rows[:, 1]]).long())]


@pytest.fixture(scope="module")
def network():
    """Trained by a contrastive loss."""
    found = Twice()
    x, y = DIGITS.train.batch(torch.arange(len(DIGITS.train)))
    optimizer = torch.optim.Adam(found.parameters(), 2e-3)
    for _ in range(120):
        rows = torch.randint(len(x), (128,), generator=GENERATOR)
        z = F.normalize(found.body(x[rows]), dim=1)
        same = (y[rows][:, None] == y[rows][None]).float()
        loss = F.binary_cross_entropy_with_logits((z @ z.T - 0.5) / 0.1, same)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return found.eval()


def test_the_answer_is_on_which_side_of_the_threshold_the_cosine_is():
    one = torch.tensor([[1.0, 0.0], [1.0, 0.0], [2.0, 0.0], [0.0, 0.0], [torch.nan, 0.0]])
    other = torch.tensor([[3.0, 0.0], [0.0, 1.0], [1.0, 1.0], [1.0, 0.0], [1.0, 0.0]])
    for threshold, expected in ((0.5, [1, 0, 1, -1, -1]), (0.8, [1, 0, 0, -1, -1])):
        scoring = Pairs(None, "pairs", threshold=threshold)
        for given in ((one, other), {"a": one, "b": other}):
            scores = scoring.checked(scoring.chosen(given), "it", 5)
            answers = scoring.labels_of(scores)
            assert answers.flatten().tolist() == expected
    assert scoring.changed(answers, answers).tolist() == [False] * 3 + [True] * 2
    assert scoring.described(scores) == {"kind": "pairs", "threshold": 0.8}


def test_fisher_information_is_the_curvature_of_the_divergence():
    base = torch.randn(1, 2, 4, generator=GENERATOR).double()
    step = 0.01 * torch.randn(1, 2, 4, generator=GENERATOR).double()
    scoring = Pairs(None, "pairs", threshold=0.2)
    scores = base.expand(100_000, 2, 4).clone().requires_grad_()
    scoring.surprise(scores, torch.Generator().manual_seed(0)).backward()
    predicted = float((scores.grad * step).flatten(1).sum(1).square().mean() / 2)
    measured = scoring.divergence(*(scoring.log_probabilities(s) for s in (base + step, base)))
    assert predicted == pytest.approx(float(measured), rel=0.1)


def test_a_trained_network_keeps_its_decisions(network):
    data = pairs_of(DIGITS.train)
    result = shrink(network, data, tol=0.3, threshold=0.5)
    # A pair is one trial, whatever it is made of.
    assert result.certified and result.agreement.n < len(DIGITS.train) / 2 / 3
    assert result.agreement.answer == {"kind": "pairs", "threshold": 0.5}
    assert result.agreement.accuracy["before"] > 0.8 and not result.other_outputs
    assert result.macs["after"] < result.macs["before"]
    fresh = pairs_of(DIGITS.certification)
    assert verify(network, result.model, fresh).rate > 0.6
    # Decisions may stay where neighbours and cosines do not, and the other way round.
    (((one, other), _),) = fresh
    with torch.no_grad():
        a, b = network(one, other)
        cosine = F.cosine_similarity(a, b)
    at = float(cosine.median())
    assert verify(network, result.model, fresh, threshold=at).answer["threshold"] == at


def test_the_threshold_decides_what_counts(network):
    """Embeddings that all move by a common vector: cosines rise, and decisions change with them."""

    class Moved(nn.Module):
        def __init__(self, by):
            super().__init__()
            self.inner, self.by = network, by

        def forward(self, first, second):
            return tuple(one + self.by for one in self.inner(first, second))

    fresh = pairs_of(DIGITS.certification)
    assert verify(network, Moved(0.0), fresh, threshold=0.5).changed == 0
    assert verify(network, Moved(20.0), fresh, threshold=0.5).rate < 0.8
    for bad in ({"answer": "pairs"}, {"threshold": 1.5}, {"answer": "pairs", "threshold": -1}):
        with pytest.raises(ValueError, match="threshold"):
            verify(network, network, fresh, **bad)
    with pytest.raises(UnsupportedNetworkError, match="expected two embeddings for each pair"):
        verify(network.body, network.body, DIGITS.certification, threshold=0.5)
