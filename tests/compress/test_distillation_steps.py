"""How distillation steps."""

import copy

import pytest
import torch
from cases.trained import examples, trained

from fcompress.compress.distillation import rotated
from fcompress.compress.distillation.rotated import RotatedAdam
from fcompress.compress.distillation.student import Student
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
