"""Distillation: closer to the original on unseen examples, never worse, nothing else touched."""

import copy
import json
from types import SimpleNamespace

import pytest
import torch
from cases.trained import examples, trained, weights_of
from torch import Tensor, nn

from fcompress.certify.agreement import verify
from fcompress.compress import distillation
from fcompress.compress.distillation import Closeness, distill
from fcompress.errors import DataError, FcompressError
from fcompress.forward import running

LONG = 1e5  # seconds: the plan is the number of epochs, whatever the clock says


def inputs(count: int = 600, seed: int = 3) -> list[Tensor]:
    return list(examples(count, seed)[0].split(50))


def damaged(wide: nn.Module, size: float = 0.15, seed: int = 0) -> nn.Module:
    """A copy with noise on its weights: what a refactored network is to the wide one."""
    thin = copy.deepcopy(wide)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in thin.parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))
    return thin


class Clock:
    """Each reading is `tick` later than the one before."""

    def __init__(self, monkeypatch, tick: float) -> None:
        self.now, self.tick = 0.0, tick
        for module in (distillation, running):
            monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=self.read))

    def read(self) -> float:
        self.now += self.tick
        return self.now


@pytest.fixture
def wide():
    return trained()


@pytest.fixture
def thin(wide):
    return damaged(wide)


def test_closer_on_examples_that_it_has_not_seen(wide, thin):
    unseen = [examples(2000, seed=9)[0]]
    found = distill(wide, thin, inputs(), seconds=LONG, epochs=20)
    before, after = verify(wide, thin, unseen), verify(wide, found.model, unseen)
    assert found.kept and found.stopped_by == "done"
    assert after.rate > before.rate + 0.02
    assert found.after.agreement >= found.before.agreement
    assert found.after.divergence < found.before.divergence
    assert (found.examples, found.held_out) == (525, 75)
    assert found.steps == found.planned == 20 * (525 // 64)
    assert found.epochs == 20


def test_held_out_numbers_are_those_of_the_returned_network(wide, thin):
    batches = inputs()
    found = distill(wide, thin, batches, seconds=LONG, epochs=2)
    held = [torch.cat(batches)[-75:]]
    assert verify(wide, thin, held).rate == pytest.approx(found.before.agreement)
    assert verify(wide, found.model, held).rate == pytest.approx(found.after.agreement)
    with torch.no_grad():
        p, q = (m(held[0]).double().log_softmax(1) for m in (wide, found.model.eval()))
    assert float((p.exp() * (p - q)).sum(1).mean()) == pytest.approx(found.after.divergence, 1e-4)


def test_held_out_examples_of_the_callers_choice(wide, thin):
    others = [examples(200, seed=8)[0]]
    found = distill(wide, thin, inputs(), held_out=others, seconds=LONG, epochs=2)
    assert (found.examples, found.held_out) == (600, 200)
    assert verify(wide, found.model, others).rate == pytest.approx(found.after.agreement)


def test_batch_norm_learns_new_statistics(wide, thin):
    found = distill(wide, thin, inputs(), seconds=LONG, epochs=2)
    assert not torch.equal(found.model[1].running_mean, thin[1].running_mean)


def test_nothing_of_the_caller_changes(wide, thin):
    wide.train()
    thin.eval()[1].train()
    thin[0].weight.requires_grad_(False)
    wide.zero_grad()
    thin[3].weight.grad = torch.ones_like(thin[3].weight)
    modes = [m.training for network in (wide, thin) for m in network.modules()]
    prints = weights_of(wide), weights_of(thin)
    state = torch.get_rng_state()
    with torch.no_grad():
        found = distill(wide, thin, inputs(), seconds=LONG, epochs=1)
        assert not torch.is_grad_enabled()
    assert torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), state)
    assert (weights_of(wide), weights_of(thin)) == prints
    assert [m.training for network in (wide, thin) for m in network.modules()] == modes
    assert torch.equal(thin[3].weight.grad, torch.ones_like(thin[3].weight))
    assert all(p.grad is None for p in wide.parameters())
    assert all(p.grad is None for p in found.model.parameters())
    assert [p.requires_grad for p in found.model.parameters()] == [
        p.requires_grad for p in thin.parameters()
    ]
    assert [m.training for m in found.model.modules()] == [m.training for m in thin.modules()]
    assert weights_of(found.model) != prints[1]


def test_same_seed_same_network(wide, thin):
    prints = []
    for caller, seed in ((0, 0), (1, 0), (0, 1)):
        torch.manual_seed(caller)
        prints.append(
            weights_of(distill(wide, thin, inputs(), seconds=LONG, epochs=2, seed=seed).model)
        )
    assert prints[0] == prints[1] != prints[2]


def test_cutting_into_batches_does_not_matter(wide, thin):
    whole = torch.cat(inputs())
    found = [
        weights_of(distill(wide, thin, batches, seconds=LONG, epochs=1).model)
        for batches in ([whole], list(whole.split(7)))
    ]
    assert found[0] == found[1]


@pytest.mark.parametrize("rate", [10.0, 1e30])
def test_what_makes_it_worse_is_not_kept(wide, thin, rate, monkeypatch):
    monkeypatch.setattr(distillation, "MOMENTUM_RATE", rate)
    found = distill(wide, thin, inputs(), seconds=LONG, epochs=3)
    assert not found.kept and found.steps > 0
    assert found.after == found.before
    assert weights_of(found.model) == weights_of(thin)
    assert found.model is not thin
    assert found.stopped_by == ("held-out" if rate == 1e30 else "done")


def test_a_perfect_copy_stays_as_it_is(wide):
    found = distill(wide, copy.deepcopy(wide), inputs(), seconds=LONG, epochs=1)
    assert not found.kept
    assert found.before.agreement == 1.0 and found.before.divergence < 1e-12
    assert weights_of(found.model) == weights_of(wide)


def test_of_several_good_states_the_one_of_least_divergence(wide, thin, monkeypatch):
    looks = iter([(0.90, 0.5), (0.93, 0.4), (0.94, 0.2), (0.95, 0.3), (0.89, 0.1), (0.94, 0.25)])
    monkeypatch.setattr(
        distillation._Teacher, "closeness", lambda self, thin: Closeness(*next(looks))
    )
    found = distill(wide, thin, inputs(), seconds=LONG, epochs=3)
    assert found.after == Closeness(0.94, 0.2)


def test_dropout_is_off(wide, thin):
    without = copy.deepcopy(thin)
    without[5].p = 0.0
    thin[5].p = 0.9
    found = [distill(wide, t, inputs(), seconds=LONG, epochs=1).model for t in (thin, without)]
    assert weights_of(found[0]) == weights_of(found[1])


def test_the_clock_cuts_a_plan_short(wide, thin, monkeypatch):
    clock = Clock(monkeypatch, 2**-10)
    step = distillation._Student.step

    def slower(self, *args):
        if args[-1]:  # trial steps have a learning rate of 0
            clock.now += 0.05
        return step(self, *args)

    monkeypatch.setattr(distillation._Student, "step", slower)
    found = distill(wide, thin, inputs(), seconds=2.0)
    assert found.stopped_by == "time"
    assert 0 < found.steps < found.planned
    assert found.seconds < 2.2
    assert found.after.agreement >= found.before.agreement
    assert found.after.divergence <= found.before.divergence


def test_no_time_at_all_is_no_error(wide, thin, monkeypatch):
    Clock(monkeypatch, 1.0)
    found = distill(wide, thin, inputs(), seconds=0.01)
    assert (found.steps, found.kept, found.stopped_by) == (0, False, "time")
    assert weights_of(found.model) == weights_of(thin)


def test_the_plan_follows_powers_of_two_of_the_clock(wide, thin, monkeypatch):
    def planned(tick):
        Clock(monkeypatch, tick)
        return distill(wide, thin, inputs(), seconds=1.0).planned

    slow, same, fast = planned(2**-7), planned(0.6 * 2**-7), planned(0.4 * 2**-7)
    assert slow == same < fast
    assert slow > 1


def test_without_batch_norm():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        wide = nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 4))
    found = distill(wide, damaged(wide, 0.1), inputs(), seconds=LONG, epochs=30)
    assert found.kept and found.after.divergence < 0.5 * found.before.divergence


def test_convolutions():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        wide = nn.Sequential(
            nn.Conv2d(1, 8, 3),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, 3),
        ).eval()
        images = [torch.randn(90, 1, 6, 6)]
    found = distill(wide, damaged(wide, 0.3), images, seconds=LONG, epochs=5)
    assert found.kept and found.after.divergence < found.before.divergence


def test_progress_and_plain_values(wide, thin):
    lines = []
    found = distill(wide, thin, inputs(), seconds=LONG, epochs=2, progress=lines.append)
    assert len(lines) == distillation.CHECKS
    plain = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert plain["after"]["agreement"] == found.after.agreement
    assert "model" not in plain and plain["steps"] == found.steps


@pytest.mark.parametrize(
    "given", [{"seconds": 0.0}, {"seconds": float("nan")}, {"seconds": -1.0}, {"epochs": 0}]
)
def test_arguments_out_of_range(wide, thin, given):
    with pytest.raises(ValueError, match=r"expected .* (above 0|at least 1)|expected at least 1"):
        distill(wide, thin, inputs(), **given)


def test_errors_say_what_to_do(wide, thin):
    with pytest.raises(DataError, match=r"15 examples .* and 3 held out .* at least 16"):
        distill(wide, thin, [torch.zeros(18, 6)])
    with pytest.raises(DataError, match=r"600 examples .* and 0 held out"):
        distill(wide, thin, inputs(), held_out=[])
    with pytest.raises(FcompressError, match="4 and 3 scores"):
        distill(wide, nn.Linear(6, 3), inputs())
    with pytest.raises(FcompressError, match="no weights"):
        distill(wide, nn.Identity(), inputs())


def test_a_wide_network_that_is_not_finite(wide, thin):
    with torch.no_grad():
        wide[6].bias[0] = float("nan")
    found = distill(wide, thin, inputs(), seconds=LONG, epochs=1)
    assert not found.kept and found.before.agreement == 0.0
    assert found.to_dict()["before"]["divergence"] is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu(wide, thin):
    found = distill(wide.cuda(), thin.cuda(), inputs(), seconds=LONG, epochs=20)
    again = distill(wide, thin, inputs(), seconds=LONG, epochs=20)
    assert found.kept and next(found.model.parameters()).is_cuda
    assert weights_of(found.model.cpu()) == weights_of(again.model.cpu())
