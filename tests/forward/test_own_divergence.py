"""A divergence of the user's: where it is used, and what is wrong with one."""

import math

import pytest
import torch
from torch import nn

from fcompress import shrink
from fcompress.errors import FcompressError
from fcompress.forward.answers.own import Own
from fcompress.forward.answers.scoring import Scoring

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(500, 8, generator=GENERATOR)


def near(ours, theirs):
    return (ours - theirs).abs()[:, 0] < 0.2


def first_alone(ours, theirs):
    """Only the first output counts."""
    return 8 * (ours[:, 0] - theirs[:, 0]).square()


def second_alone(ours, theirs):
    return 8 * (ours[:, 1] - theirs[:, 1]).square()


def two_halves(seed=0):
    """Two outputs, each made by 16 hidden units of its own."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 2))
    with torch.no_grad():
        network[2].weight[0, 16:] = 0
        network[2].weight[1, :16] = 0
    return network


@pytest.mark.parametrize("values", [3, 600])
def test_fisher_information_is_the_curvature_of_the_divergence(values):
    """Of few outputs that of the user's; of many that of Gaussians."""
    weight = torch.rand(values, generator=GENERATOR).double() + 0.5
    mix = torch.randn(3, 3, generator=GENERATOR).double()

    def mixed(ours, theirs):
        gap = (ours - theirs)[:, :3] @ mix.to(ours)
        return (gap.square().sum(1) * ours[:, 0].square() + gap.pow(4).sum(1)) / 2

    base = torch.randn(1, values, generator=GENERATOR).double()
    step = 0.01 * torch.randn(1, values, generator=GENERATOR).double()
    scoring = Own(None, "same", same=near, own=mixed, deviation=tuple(weight.tolist()))
    scores = base.expand(5000 if values > 9 else 50_000, values).clone().requires_grad_()
    scoring.surprise(scores, torch.Generator().manual_seed(0)).backward()
    predicted = float((scores.grad @ step.flatten()).square().mean() / 2)
    told = scoring if values <= 9 else Scoring(None, "same", same=near, deviation=scoring.deviation)
    measured = told.divergence(*(told.log_probabilities(s) for s in (base + step, base)))
    assert predicted == pytest.approx(float(measured), rel=0.1)


@pytest.mark.parametrize("method", ["prune", "hybrid"])
def test_units_that_only_the_other_output_reads_go_first(method):
    """With the divergence of the wrong output the wrong units go, so this one did decide."""
    network = two_halves()
    for number, nats in enumerate((first_alone, second_alone)):
        found = shrink(network, X, ratio=0.5, method=method, same=near, divergence=nats)
        with torch.no_grad():
            gap = (network(X) - found.model(X)).square().mean(0)
        assert gap[number] < 0.25 * gap[1 - number], gap
        assert found.agreement.answer["divergence"] == nats.__name__


def test_distillation_follows_it():
    result = shrink(
        two_halves(1),
        X,
        ratio=0.3,
        same=near,
        divergence=first_alone,
        distill=True,
    )
    told = result.distill
    assert told["after"]["divergence"] <= told["before"]["divergence"]
    with torch.no_grad():
        nats = float(first_alone(two_halves(1)(X), result.model(X)).mean())
    assert math.isfinite(nats)
    # It is the user's number, at no temperature.
    assert nats == pytest.approx(told["after"]["divergence"], rel=0.5, abs=1e-3)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (lambda a, b: (a - b).square(), r"gives \[\d+, 2\] for \d+ examples"),
        (lambda a, b: 3.0, "gives float for"),
        (lambda a, b: (a - b)[:, 0].long(), "expected a tensor of floats"),
        (lambda a, b: (a - b).square().sum(1) - 1, "gives -1; a divergence is 0"),
        (lambda a, b: (a - b).square().sum(1) / 0, "is not finite"),
        (lambda a, b: 1 / 0, r"fails on outputs of shape \[\d+, 2\]: ZeroDivisionError"),
        (lambda a, b: (a - b).detach().square().sum(1), "cannot be differentiated twice"),
        (lambda a, b: (a - b).abs().sum(1), "second derivatives at equal outputs that are 0"),
    ],
)
def test_a_divergence_that_is_none_is_said_in_a_line(bad, message):
    with pytest.raises(FcompressError, match=message) as caught:
        shrink(two_halves(), X, ratio=0.5, same=near, divergence=bad)
    assert "\n" not in str(caught.value) and "--divergence" in str(caught.value)


def test_it_stands_beside_a_decision():
    for arguments, message in (
        ({"divergence": first_alone}, "belongs to same="),
        ({"divergence": first_alone, "answer": "classes"}, "belongs to same="),
        ({"divergence": 3, "same": near}, "expected a function"),
    ):
        with pytest.raises(ValueError, match=message):
            shrink(two_halves(), X, **arguments)
