"""The nearest neighbour among a gallery as an answer."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fcompress import load, load_data, save, shrink, verify
from fcompress.data.roles import gallery_apart, roles_of
from fcompress.errors import DataError, FcompressError
from fcompress.forward.answers.nearest import Nearest, gallery_of

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(400, 8, generator=GENERATOR)
GALLERY = torch.randn(50, 8, generator=GENERATOR)


class Spread(nn.Module):
    """Embeddings of 5 values whose largest coordinate is always the same as in `Mirrored`."""

    def __init__(self, sign=1.0):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([1.0, 1.0, sign, sign]))

    def forward(self, x):
        low = torch.tanh(x[:, :4]) * self.scale
        return torch.cat([low, 2 + 0 * x[:, :1]], 1)


@pytest.fixture(scope="module")
def digits():
    return load_data("digits")


@pytest.fixture(scope="module")
def embedding(digits):
    """A network that was trained to embed digits, by a contrastive loss."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        widths = nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 12)
        network = nn.Sequential(nn.Flatten(), *widths)
    x, y = digits.train.batch(torch.arange(len(digits.train)))
    optimizer = torch.optim.Adam(network.parameters(), 2e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(120):
        rows = torch.randint(len(x), (128,), generator=generator)
        z = F.normalize(network(x[rows]), dim=1)
        close = (z @ z.T / 0.1).fill_diagonal_(-1e9).log_softmax(1)
        same = (y[rows][:, None] == y[rows][None]).float().fill_diagonal_(0)
        loss = -(close * same).sum(1).div(same.sum(1).clamp_min(1)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.eval()


def test_the_answer_is_the_number_of_the_entry():
    entries = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 0.0], [-1.0, -1.0]])
    scoring = Nearest(None, "nearest", embedded=gallery_of(entries.split(3)))
    queries = torch.tensor([[9.0, 1.0], [0.1, 0.2], [-3, -2], [0.0, 0.0], [torch.nan, 1.0]])
    # The third entry has the direction of the first; what has no direction has no neighbour.
    assert scoring.labels_of(queries).flatten().tolist() == [0, 1, 3, -1, -1]
    assert scoring.labels_of(queries * torch.tensor([[7.0]])).flatten().tolist()[:3] == [0, 1, 3]
    answers = scoring.labels_of(queries)
    assert scoring.changed(answers, answers).tolist() == [False] * 3 + [True] * 2
    assert scoring.described(queries)["gallery"]["entries"] == 4
    for bad, message in (
        (torch.zeros(3, 2), "embeddings of 3 of 3 entries .* zero or not finite"),
        (torch.tensor([[1.0, 0.0], [torch.inf, 0.0]]), "of 1 of 2 entries"),
        (torch.ones(3, 2) * torch.arange(1.0, 4)[:, None], "same embedding"),
    ):
        with pytest.raises(FcompressError, match=message):
            gallery_of([bad])


def test_the_original_embeds_the_gallery_and_both_query_it():
    one, other = Spread(), Spread(-1)
    found = verify(one, other, X.split(90), gallery=GALLERY)
    with torch.no_grad():
        index = F.normalize(one(GALLERY).double(), dim=1)
        ours, theirs = (
            (index @ F.normalize(n(X).double(), dim=1).T).argmax(0) for n in (one, other)
        )
    assert found.same == int((ours == theirs).sum())
    assert found.labels == found.answer["kind"] == "nearest"
    # A gallery that each network embeds for itself would be another promise.
    with torch.no_grad():
        own = F.normalize(other(GALLERY).double(), dim=1)
        theirs = (own @ F.normalize(other(X).double(), dim=1).T).argmax(0)
    assert found.same != int((ours == theirs).sum())


def test_a_certificate_by_the_largest_value_would_have_passed():
    one, other = Spread(), Spread(-1)
    assert verify(one, other, X, answer="classes").upper_bound < 0.01
    assert verify(one, other, X, answer="nearest", gallery=[GALLERY]).lower_bound < 0.5
    assert verify(one, one, X, answer="nearest", gallery=[GALLERY]).changed == 0


def test_a_gallery_is_needed_where_none_can_be_set_aside():
    with pytest.raises(FcompressError, match=r"needs a gallery.*gallery= \(--gallery SPEC\)"):
        verify(Spread(), Spread(), X, answer="nearest")
    with pytest.raises(DataError, match=r"no entry|no example"):
        verify(Spread(), Spread(), X, answer="nearest", gallery=GALLERY[:0])
    with pytest.raises(ValueError, match="belongs to answer='nearest'"):
        verify(Spread(), Spread(), X, answer="embedding", gallery=GALLERY)


def test_a_gallery_is_set_aside_of_the_calibration_examples_alone():
    roles = roles_of(torch.arange(200.0)[:, None])
    rest, gallery = gallery_apart(roles)
    taken, left = (set(e.first(999).flatten().tolist()) for e in (gallery, rest.calibration))
    assert len(taken) == 25 and not taken & left
    assert taken | left == set(roles.calibration.first(999).flatten().tolist())
    assert len(gallery_apart(roles, most=7)[1]) == 7


def test_fisher_information_is_the_curvature_of_the_divergence():
    base = torch.randn(1, 4, generator=GENERATOR).double()
    step = 0.01 * torch.randn(1, 4, generator=GENERATOR).double()
    scoring = Nearest(None, "nearest").filled([GALLERY[:, :4]], [X[:, :4]])
    scores = base.expand(50_000, 4).clone().requires_grad_()
    scoring.surprise(scores, torch.Generator().manual_seed(0)).backward()
    predicted = float((scores.grad @ step.flatten()).square().mean() / 2)
    measured = scoring.divergence(*(scoring.log_probabilities(s) for s in (base + step, base)))
    assert predicted == pytest.approx(float(measured), rel=0.1)


def test_a_trained_embedding_is_shrunk_and_certified(embedding, digits, tmp_path):
    result = shrink(embedding, digits, tol=0.3, answer="nearest")
    assert result.certified and result.macs["after"] < 0.95 * result.macs["before"]
    assert result.agreement.answer["gallery"]["entries"] == 75
    assert result.agreement.accuracy is None and result.agreement.by_label is None
    # In memory both know the gallery; a file does not.
    again = verify(embedding, result.model, digits.certification)
    assert again.changed == result.agreement.changed
    save(result.model, tmp_path / "thin.pt")
    opened = load(tmp_path / "thin.pt", arch=lambda: copy.deepcopy(embedding))
    with pytest.raises(FcompressError, match="needs a gallery"):
        verify(embedding, opened, digits.certification)
    gallery = gallery_apart(roles_of(digits))[1]
    assert verify(embedding, opened, digits.certification, gallery=gallery).changed == again.changed
