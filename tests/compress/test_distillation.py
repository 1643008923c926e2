"""Distillation: closer to the original on unseen examples, never worse, nothing else touched."""

import copy
import json
from types import SimpleNamespace

import pytest
import torch
from cases.trained import examples, trained, weights_of
from torch import Tensor, nn

from fcompress.certify.agreement import verify
from fcompress.compress.distillation import distilling, student
from fcompress.compress.distillation.distilling import distill, distill_by
from fcompress.compress.distillation.teacher import Closeness, Teacher, teacher_of
from fcompress.errors import DataError, FcompressError
from fcompress.forward.answers.scoring import Scoring
from fcompress.forward.predictor import Predictor


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
        monkeypatch.setattr(distilling, "time", SimpleNamespace(perf_counter=self.read))

    def read(self) -> float:
        self.now += self.tick
        return self.now


def one_way(monkeypatch, rate: float, moving: bool = False) -> None:
    """Let nothing but this be tried."""
    monkeypatch.setattr(distilling._Run, "_search", lambda *_: {student.Way(moving, rate): 1.0})
    monkeypatch.setattr(distilling, "RAISED", {False: (), True: ()})


@pytest.fixture
def wide():
    return trained()


@pytest.fixture
def thin(wide):
    return damaged(wide)


def test_closer_on_examples_that_it_has_not_seen(wide, thin):
    unseen = [examples(2000, seed=9)[0]]
    found = distill(wide, thin, inputs(), effort=20)
    before, after = verify(wide, thin, unseen), verify(wide, found.model, unseen)
    assert found.kept and found.stopped_by == "done"
    assert after.rate > before.rate + 0.02
    assert found.after.agreement >= found.before.agreement
    assert found.after.divergence < found.before.divergence
    assert (found.examples, found.held_out) == (525, 75)
    assert found.planned < found.steps and found.epochs == found.steps * 16 / 525


def test_held_out_numbers_are_those_of_the_returned_network(wide, thin):
    batches = inputs()
    found = distill(wide, thin, batches, effort=2)
    held = [torch.cat(batches)[-75:]]
    assert verify(wide, thin, held).rate == pytest.approx(found.before.agreement)
    assert verify(wide, found.model, held).rate == pytest.approx(found.after.agreement)
    with torch.no_grad():
        p, q = (m(held[0]).double().log_softmax(1) for m in (wide, found.model.eval()))
    assert float((p.exp() * (p - q)).sum(1).mean()) == pytest.approx(found.after.divergence, 1e-4)


def test_held_out_examples_of_the_callers_choice(wide, thin):
    others = [examples(200, seed=8)[0]]
    found = distill(wide, thin, inputs(), held_out=others, effort=2)
    assert (found.examples, found.held_out) == (600, 200)
    assert verify(wide, found.model, others).rate == pytest.approx(found.after.agreement)


@pytest.mark.parametrize("effort", [1, 5, 20])
def test_the_work_is_the_effort(wide, thin, effort, monkeypatch):
    passes = 0
    run = nn.Sequential.forward

    def counting(self, x):
        nonlocal passes
        passes += (3 if torch.is_grad_enabled() else 1) * len(x) * (self is not wide)
        return run(self, x)

    monkeypatch.setattr(nn.Sequential, "forward", counting)
    found = distill(wide, thin, inputs(), effort=effort)
    # The first look, at the network as it was, is no part of it; the last may be cut short.
    assert passes - 75 == pytest.approx(3 * effort * 525, abs=6 * 75)
    assert (found.effort, found.sweep) == (effort, 525)


@pytest.mark.parametrize("moving", [False, True])
def test_statistics_of_batch_norms_move_or_stay(wide, thin, moving, monkeypatch):
    one_way(monkeypatch, 1e-3, moving)
    found = distill(wide, thin, inputs(), effort=5)
    assert found.kept and found.moving == moving
    assert torch.equal(found.model[1].running_mean, thin[1].running_mean) == (not moving)


def test_trials_decide_whether_statistics_move(wide, thin, monkeypatch):
    for better in (False, True):
        monkeypatch.setattr(
            distilling._Run, "_trial", lambda run, way, *_, b=better: float(way.moving != b)
        )
        assert distill(wide, thin, inputs(), effort=30).moving == better


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
        found = distill(wide, thin, inputs(), effort=1)
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
        prints.append(weights_of(distill(wide, thin, inputs(), effort=2, seed=seed).model))
    assert prints[0] == prints[1] != prints[2]


def test_cutting_into_batches_does_not_matter(wide, thin):
    whole = torch.cat(inputs())
    found = [
        weights_of(distill(wide, thin, batches, effort=1).model)
        for batches in ([whole], list(whole.split(7)))
    ]
    assert found[0] == found[1]


@pytest.mark.parametrize("rate", [1e3, 1e30])
def test_what_makes_it_worse_is_not_kept(wide, thin, rate, monkeypatch):
    one_way(monkeypatch, rate)
    found = distill(wide, thin, inputs(), effort=3)
    assert not found.kept and found.steps > 0 and found.returns > 1
    assert found.after == found.before
    assert weights_of(found.model) == weights_of(thin)
    assert found.model is not thin


def test_a_rate_that_is_too_large_is_made_smaller_until_it_helps(wide, thin, monkeypatch):
    one_way(monkeypatch, 1.0)
    found = distill(wide, thin, inputs(), effort=60)
    assert found.returns > 0 and found.kept
    assert found.after.divergence < 0.8 * found.before.divergence
    # As a control: without going back.
    monkeypatch.setattr(distilling, "MOST_RETURNS", 0)
    assert distill(wide, thin, inputs(), effort=60).after.divergence > found.after.divergence


def test_a_perfect_copy_stays_as_it_is(wide):
    found = distill(wide, copy.deepcopy(wide), inputs(), effort=1)
    assert not found.kept
    assert found.before.agreement == 1.0 and found.before.divergence < 1e-12
    assert weights_of(found.model) == weights_of(wide)


def test_of_several_good_states_the_one_of_least_divergence(wide, thin, monkeypatch):
    looks = [(0.90, 0.5), (0.93, 0.4), (0.94, 0.2), (0.95, 0.3), (0.89, 0.1)]
    told = iter(looks)
    monkeypatch.setattr(
        Teacher, "closeness", lambda self, thin: Closeness(*next(told, (0.94, 0.25)))
    )
    found = distill(wide, thin, inputs(), effort=3)
    assert found.after == Closeness(0.94, 0.2)


def test_dropout_is_off(wide, thin):
    without = copy.deepcopy(thin)
    without[5].p = 0.0
    thin[5].p = 0.9
    found = [distill(wide, t, inputs(), effort=1).model for t in (thin, without)]
    assert weights_of(found[0]) == weights_of(found[1])


def test_a_time_limit_cuts_it_short(wide, thin, monkeypatch):
    Clock(monkeypatch, 1.0)
    found = distill(wide, thin, inputs(), effort=20, seconds=50.0)
    assert found.stopped_by == "time"
    assert 40 < found.steps < 52
    assert found.after.agreement >= found.before.agreement
    assert found.after.divergence <= found.before.divergence


def test_no_time_at_all_is_no_error(wide, thin, monkeypatch):
    Clock(monkeypatch, 1.0)
    found = distill(wide, thin, inputs(), seconds=0.01)
    assert (found.steps, found.kept, found.stopped_by) == (0, False, "time")
    assert weights_of(found.model) == weights_of(thin)


def test_without_a_limit_no_clock_decides_anything(wide, thin, monkeypatch):
    calm = distill(wide, thin, inputs(), effort=2)
    ticks = torch.rand(10_000, generator=torch.Generator().manual_seed(0)).mul(1e6).tolist()
    monkeypatch.setattr(distilling, "time", SimpleNamespace(perf_counter=ticks.pop))
    wild = distill(wide, thin, inputs(), effort=2)
    assert weights_of(wild.model) == weights_of(calm.model) and wild.steps == calm.steps
    # As a control: a limit does depend on it.
    assert distill(wide, thin, inputs(), effort=2, seconds=1.0).stopped_by == "time"


def test_a_teacher_may_be_used_again(wide, thin):
    teacher = teacher_of(Predictor(wide), inputs(), sweep=300)
    assert not teacher.known.any()
    one = distill_by(teacher, thin, effort=2)
    assert teacher.known.any()
    two = distill_by(teacher, thin, effort=2)
    assert weights_of(one.model) == weights_of(two.model)
    assert one.sweep == 300 and one.steps < distill(wide, thin, inputs(), effort=2).steps


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 4))


def layer_norms() -> nn.Module:
    parts = (nn.Linear(6, 20), nn.LayerNorm(20), nn.GELU(), nn.Linear(20, 20), nn.LayerNorm(20))
    return nn.Sequential(*parts, nn.Linear(20, 4))


class Attention(nn.Module):
    """A transformer layer over six tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(1, 16)
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(self.embed(x.unsqueeze(2))).mean(1))


def probabilities() -> nn.Module:
    return nn.Sequential(mlp(), nn.Softmax(1))


def steep() -> nn.Module:
    """A batch norm that makes its input a hundred times as large: a small rate is too large."""
    parts = (nn.Linear(6, 20), nn.BatchNorm1d(20), nn.ReLU(), nn.Linear(20, 4))
    network = nn.Sequential(*parts).eval()
    with torch.no_grad():
        network[1].running_var.fill_(1e-4)
    return network


ENDINGS = {probabilities: "softmax"}


@pytest.mark.parametrize("kind", [mlp, layer_norms, Attention, probabilities, steep])
@pytest.mark.parametrize("size", [0.02, 0.3])
def test_all_kinds_of_networks_come_closer(kind, size):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        wide = kind().eval()
    thin = damaged(wide, size)
    original = Predictor(wide, scoring=Scoring(labels="classes", ending=ENDINGS.get(kind)))
    found = distill(original, thin, inputs(), effort=30)
    assert found.kept and found.after.agreement >= found.before.agreement
    assert found.after.divergence < 0.7 * found.before.divergence


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
    found = distill(wide, damaged(wide, 0.3), images, effort=5)
    assert found.kept and found.after.divergence < found.before.divergence


def test_progress_and_plain_values(wide, thin):
    lines = []
    found = distill(wide, thin, inputs(), effort=2, progress=lines.append)
    assert len(lines) >= distilling.LEAST_LOOKS
    plain = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert plain["after"]["agreement"] == found.after.agreement
    assert "model" not in plain and plain["steps"] == found.steps


@pytest.mark.parametrize(
    "given",
    [{"seconds": 0.0}, {"seconds": float("nan")}, {"effort": 0}, {"effort": float("inf")}],
)
def test_arguments_out_of_range(wide, thin, given):
    with pytest.raises(ValueError, match=r"expected .* above 0"):
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
    found = distill(wide, thin, inputs(), effort=1)
    assert not found.kept and found.before.agreement == 0.0
    assert found.to_dict()["before"]["divergence"] is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu(wide, thin):
    found = distill(wide.cuda(), thin.cuda(), inputs(), effort=5)
    again = distill(wide, thin, inputs(), effort=5)
    assert found.kept and next(found.model.parameters()).is_cuda
    assert weights_of(found.model.cpu()) == weights_of(again.model.cpu())
