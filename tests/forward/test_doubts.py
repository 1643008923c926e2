"""Outputs that look like an embedding and not like class scores are refused, or warned of."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fcompress import load_data, shrink, verify
from fcompress.errors import ResultWarning, UnsupportedNetworkError
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


@pytest.mark.parametrize(
    ("make", "outputs", "loss"),
    [
        (mlp, 16, contrastive),
        (mlp, 64, contrastive),
        (cnn, 16, contrastive),
        (cnn, 64, contrastive),
        (cnn, 64, products),
    ],
)
def test_a_trained_embedding_is_refused(make, outputs, loss):
    with pytest.raises(UnsupportedNetworkError, match="look like an embedding") as error:
        doubt(trained(make, outputs, loss))
    assert "--answer regression|sigmoid|embedding|classes" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("outputs", [16, 64])
def test_one_whose_largest_output_stands_out_is_doubted(outputs):
    said = doubt(trained(mlp, outputs, products))
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


@pytest.mark.parametrize("spread", [0.5, 4.0])
@pytest.mark.parametrize("layer", [nn.ReLU, nn.Tanh])
@pytest.mark.parametrize("steps", [0, 10, 60])
def test_whoever_is_unsure_is_not_refused(layer, spread, steps):
    """Of centred inputs scores may lie around zero like an embedding's."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.randint(40, (2000,), generator=generator)
    inputs = torch.randn(40, 20, generator=generator)[truth]
    inputs += spread * torch.randn(2000, 20, generator=generator)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(20, 64), layer(), nn.Linear(64, 40))
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    for _ in range(steps):
        rows = torch.randint(2000, (64,), generator=generator)
        optimizer.zero_grad()
        F.cross_entropy(network(inputs[rows]), truth[rows]).backward()
        optimizer.step()
    scoring = understood(Predictor(network.eval()), [(inputs[:300], None)]).scoring
    assert scoring.labels == "classes"


@pytest.mark.parametrize("outputs", [2, 3, 5])
@pytest.mark.parametrize("layer", [nn.ReLU, nn.Tanh])
@pytest.mark.parametrize("numbers", [True, False])
def test_a_few_numbers_are_told_from_scores(layer, outputs, numbers):
    """What all scores have in common is not trained by a softmax, and is by a squared error.

    The wanted numbers are independent of each other; of others the mean may vary less.
    """
    generator = torch.Generator().manual_seed(outputs)
    inputs = torch.randn(1000, 12, generator=generator)
    wanted = (inputs @ torch.linalg.qr(torch.randn(12, outputs, generator=generator))[0]).sin()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(12, 64), layer(), nn.Linear(64, outputs))
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    for _ in range(100):
        rows = torch.randint(1000, (64,), generator=generator)
        found = network(inputs[rows])
        right = F.cross_entropy(found, wanted[rows].argmax(1))
        optimizer.zero_grad()
        (F.mse_loss(found, wanted[rows]) if numbers else right).backward()
        optimizer.step()
    scoring = understood(Predictor(network.eval()), [(inputs[:300], None)]).scoring
    assert ("--answer regression" in str(scoring.doubt)) == numbers


def test_a_word_or_labels_end_the_doubt():
    network = trained(mlp, 16, contrastive)
    for run in (verify, lambda one, _, data, **how: shrink(one, data, ratio=0.5, **how)):
        with pytest.raises(UnsupportedNetworkError, match="look like an embedding"):
            run(network, network, UNLABELLED)
    assert shrink(network, UNLABELLED, ratio=0.5, answer="classes").agreement.labels == "classes"
    assert not verify(network, network, UNLABELLED, answer="classes").warnings
    assert not verify(network, network, UNLABELLED, answer="embedding").warnings
    labels = torch.zeros(len(UNLABELLED), dtype=torch.long)
    assert not verify(network, network, [(UNLABELLED, labels)]).warnings


def test_what_looks_less_like_one_is_a_warning():
    network = trained(mlp, 16, contrastive)
    with torch.no_grad():
        network[-1].bias += 0.5 * network(UNLABELLED).std()
    with pytest.warns(ResultWarning, match="look more like an embedding"):
        result = shrink(network, UNLABELLED, ratio=0.5)
    assert any("--answer embedding" in line for line in result.warnings)
    with pytest.warns(ResultWarning, match="look more like an embedding"):
        assert "look more like" in verify(network, network, UNLABELLED).warnings[0]
