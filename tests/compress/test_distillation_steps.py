"""How distillation steps, and what of it goes on to the next network."""

import copy

import pytest
import torch
from cases.trained import examples, trained
from torch import nn

from fcompress.compress.distillation import rotated
from fcompress.compress.distillation.carrying import Learned, carried
from fcompress.compress.distillation.distilling import distill_by
from fcompress.compress.distillation.rotated import RotatedAdam
from fcompress.compress.distillation.student import Student
from fcompress.compress.distillation.teacher import teacher_of
from fcompress.forward.predictor import Predictor


def _descended(shape, operations, seed, rate=0.4, steps=150):
    """How far from a target a weight ends whose inputs are strongly correlated."""
    generator = torch.Generator().manual_seed(seed)
    width = shape[1]
    mix = torch.linalg.qr(torch.randn(width, width, generator=generator))[0]
    inputs = torch.logspace(0, -2, width)[:, None] * mix
    target = torch.randn(shape, generator=generator)
    weight = torch.zeros(shape, requires_grad=True)
    optimizer = RotatedAdam([weight], operations)

    def error(x):
        return torch.einsum("bi,oi...->bo...", x, weight - target).square().mean()

    for done in range(steps):
        x = torch.randn(64, width, generator=generator) @ inputs
        (weight.grad,) = torch.autograd.grad(error(x), weight)
        optimizer.step(rate * (1 - done / steps))
    with torch.no_grad():
        return float(error(torch.randn(500, width, generator=generator) @ inputs))


@pytest.mark.parametrize("shape", [(12, 12), (6, 12, 3, 3)])
@pytest.mark.parametrize("seed", [0, 1])
def test_rotated_steps_go_further_where_inputs_are_correlated(shape, seed):
    # As a control: nothing is turned where no work is allowed for it.
    assert _descended(shape, 1e9, seed) < 0.1 * _descended(shape, 0.0, seed)


def test_where_nothing_is_turned_it_is_adam():
    weights = [torch.ones(4, 3, requires_grad=True) for _ in range(2)]
    optimizer = RotatedAdam(weights[:1], 0.0)
    adam = torch.optim.Adam(weights[1:], lr=0.1, betas=rotated.BETAS)
    for step in range(5):
        for weight in weights:
            weight.grad = torch.arange(12.0).view(4, 3) - step
        optimizer.step(0.1)
        adam.step()
    assert torch.equal(*weights)


def test_what_is_cheap_to_turn_comes_first_and_large_dimensions_never():
    small, large = torch.zeros(8, 8), torch.zeros(8, rotated.LARGEST + 1)
    cost = rotated.PRODUCTS * 64 * 8 + rotated.EIGENVECTORS * 8**3
    turned = {
        share: [len(one.axes) for one in RotatedAdam([large, small], share * cost)._rotated]
        for share in (0.5, 1 / rotated.SHARE, 2 / rotated.SHARE, 1e9)
    }
    assert [sum(found) for found in turned.values()] == [0, 1, 2, 3]


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16])
def test_weights_of_all_types_are_stepped(kind):
    weight = torch.ones(4, 4, dtype=kind)
    weight.grad = torch.eye(4, dtype=kind)
    RotatedAdam([weight], 1e9).step(0.1)
    assert weight.dtype == kind and weight.isfinite().all() and not torch.all(weight == 1)


def test_a_step_that_is_not_finite_is_not_taken():
    network = trained()
    student = Student(Predictor(copy.deepcopy(network)), 1e9)
    student.begin(False)
    inputs = examples(8, 0)[0]
    before = student.state()
    for bad in (torch.full((8, 4), torch.nan), torch.full((8, 4), torch.inf)):
        assert not student.step(inputs, bad, 0.1).isfinite()
        assert all(torch.equal(a, before[name]) for name, a in student.state().items())
    assert student.step(inputs, torch.zeros(8, 4), 0.1).isfinite()
    assert any(not torch.equal(a, before[name]) for name, a in student.state().items())


def _tensors(stays):
    """An MLP with some of eight hidden units: what was refitted, and what distillation changed."""
    wide = nn.Sequential(nn.Linear(5, 8, bias=False), nn.ReLU(), nn.Linear(8, 3))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        change = {name: torch.randn_like(p) for name, p in wide.named_parameters()}
    change["0.bias"] = torch.arange(8.0)  # refitting gave it one
    cut = {"0.weight": change["0.weight"][stays], "0.bias": change["0.bias"][stays]}
    cut |= {"2.weight": change["2.weight"][:, stays], "2.bias": change["2.bias"]}
    keep = {("0.weight", 0): torch.tensor(stays), ("2.weight", 1): torch.tensor(stays)}
    return cut, keep


@pytest.mark.parametrize("stays", [[1, 7], [3], [0, 1, 3, 6, 7]])
def test_what_was_learned_of_the_units_that_are_left_is_carried_on(stays):
    change, keep = _tensors([0, 1, 3, 6, 7])
    before = {name: torch.ones_like(c) for name, c in change.items()}
    learned = Learned(3, keep, before, {name: before[name] + c for name, c in change.items()})
    wanted, thin = _tensors(stays)
    found = carried(learned, {name: torch.zeros_like(c) for name, c in wanted.items()}, thin)
    assert all(torch.allclose(found[name], c) for name, c in wanted.items())


def test_what_the_larger_network_does_not_have_stays():
    change, keep = _tensors([0, 1])
    learned = Learned(6, keep, change, {name: c + 1 for name, c in change.items()})
    mine = {"new": torch.ones(2), "0.weight": torch.ones(2, 9), "2.bias": torch.zeros(3)}
    counted = mine | {"count": torch.tensor(4)}
    found = carried(learned, counted, keep)
    assert all(found[name] is counted[name] for name in ("new", "0.weight", "count"))
    assert torch.equal(found["2.bias"], torch.ones(3))


def test_distillation_begins_at_the_closest_of_its_starts():
    wide = trained()
    thin = copy.deepcopy(wide)
    with torch.no_grad():
        for parameter in thin.parameters():
            parameter.add_(0.15 * torch.randn(parameter.shape, generator=torch.manual_seed(0)))
    teacher = teacher_of(Predictor(wide), [examples(300, 3)[0]])
    worse = {name: torch.zeros_like(t) for name, t in thin.state_dict().items()}
    plain = distill_by(teacher, thin, effort=1)
    assert distill_by(teacher, thin, starts=[worse], effort=1).before == plain.before
    assert distill_by(teacher, thin, starts=[worse], effort=1).after.divergence < (
        plain.before.divergence
    )
    exact = distill_by(teacher, thin, starts=[worse, wide.state_dict()], effort=1)
    assert exact.before == plain.before
    assert exact.kept and exact.after.divergence < 1e-9 < plain.after.divergence
