"""Outputs that look more like an embedding than like class scores are warned of, not refused."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fcompress import load_data, shrink, verify
from fcompress.errors import ResultWarning
from fcompress.forward.answers.understanding import understood
from fcompress.forward.predictor import Predictor

DIGITS = load_data("digits")
X, Y = DIGITS.train.batch(torch.arange(len(DIGITS.train)))
UNLABELLED = DIGITS.calibration.batch(torch.arange(300))[0]


def mlp(outputs):
    widths = nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, outputs)
    return nn.Sequential(nn.Flatten(), *widths)


def cnn(outputs):
    first, second = nn.Conv2d(1, 8, 3, 1, 1), nn.Conv2d(8, 16, 3, 2, 1)
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.Flatten(), nn.Linear(256, outputs))


def contrastive(z, rows):
    """By cosines; the lengths are free, as those of a network without a last normalisation."""
    z = F.normalize(z, dim=1)
    close = (z @ z.T / 0.1).fill_diagonal_(-1e9).log_softmax(1)
    same = (Y[rows][:, None] == Y[rows][None]).float().fill_diagonal_(0)
    return -(close * same).sum(1).div(same.sum(1).clamp_min(1)).mean()


def products(z, rows):
    same = (Y[rows][:, None] == Y[rows][None]).float()
    return F.binary_cross_entropy_with_logits(z @ z.T / 4, same)


def classes(z, rows):
    return F.cross_entropy(z, Y[rows] % z.shape[1])


def smoothed(z, rows):
    return F.cross_entropy(z, Y[rows] % z.shape[1], label_smoothing=0.1)


def trained(make, outputs, loss, steps=80):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(outputs)
        network = make(outputs)
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        rows = torch.randint(len(X), (128,), generator=generator)
        optimizer.zero_grad()
        loss(network(X[rows]), rows).backward()
        optimizer.step()
    return network.eval()


def doubt(network):
    scoring = understood(Predictor(network), [(UNLABELLED, None)]).scoring
    assert scoring.labels == "classes"
    return scoring.doubt


@pytest.mark.parametrize("make", [mlp, cnn])
@pytest.mark.parametrize("loss", [contrastive, products])
@pytest.mark.parametrize("outputs", [16, 64])
def test_a_trained_embedding_is_doubted(make, loss, outputs):
    said = doubt(trained(make, outputs, loss))
    assert said is not None and "--answer embedding" in said


@pytest.mark.parametrize("make", [mlp, cnn])
@pytest.mark.parametrize("loss", [classes, smoothed])
@pytest.mark.parametrize("outputs", [2, 5, 10])
def test_a_trained_classifier_is_not(make, loss, outputs):
    assert doubt(trained(make, outputs, loss)) is None


@pytest.mark.parametrize("make", [mlp, cnn])
@pytest.mark.parametrize("outputs", [3, 10, 100])
def test_a_classifier_of_these_images_that_was_never_trained_is_not(make, outputs):
    assert doubt(trained(make, outputs, classes, steps=0)) is None


def test_it_is_a_warning_that_a_word_ends():
    network = trained(mlp, 16, contrastive)
    with pytest.warns(ResultWarning, match="look more like an embedding"):
        result = shrink(network, UNLABELLED, ratio=0.5)
    assert any("--answer embedding" in line for line in result.warnings)
    with pytest.warns(ResultWarning, match="look more like an embedding"):
        assert "look more like" in verify(network, network, UNLABELLED).warnings[0]
    assert not verify(network, network, UNLABELLED, answer="classes").warnings
    assert not verify(network, network, UNLABELLED, answer="embedding").warnings
    labels = torch.zeros(len(UNLABELLED), dtype=torch.long)
    assert not verify(network, network, [(UNLABELLED, labels)]).warnings
