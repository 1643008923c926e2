"""Depthwise, grouped and very wide layers solved again, with planted dependent channels."""

from dataclasses import replace

import pytest
import torch
from cases.planted import context_of, duplicate, images, misfit, network, settle
from torch import nn

from fcompress.compress.methods import Factor, Prune
from fcompress.compress.refitting import reconstruct
from fcompress.compress.refitting.reconstruct import refit_network
from fcompress.data.roles import batches_of
from fcompress.surgery.excision import excise, kept_indices

EXACT = 1e-7


class Filters(nn.Module):
    """A depthwise layer behind a transposed convolution, which cannot be solved again."""

    def __init__(self, norm: bool, each: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 8, 3, padding=1)
        self.mix = nn.ConvTranspose2d(8, 6, 1, bias=False)
        self.filter = nn.Conv2d(6, 6 * each, 3, groups=6, bias=not norm)
        self.norm = nn.BatchNorm2d(6 * each) if norm else nn.Identity()
        self.narrow, self.head = nn.Conv2d(6 * each, 5, 1), nn.Linear(5, 4)

    def forward(self, x):
        x = self.mix(self.stem(x).relu())
        x = self.norm(self.filter(x)).tanh()
        return self.head(self.narrow(x).mean((2, 3)))


def _filters(norm, each):
    """Unit 1 of the stem is twice unit 0, unit 7 is constant; kept are the others."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        model = Filters(norm, each).double().eval().requires_grad_(False)
        settle(model)
    model.stem.weight[1], model.stem.bias[1] = 2 * model.stem.weight[0], 2 * model.stem.bias[0]
    model.stem.weight[7], model.stem.bias[7] = 0.0, 1.0
    model.mix.weight.mul_(3)
    model.mix.weight[:2, 3:] = 0.0  # the first three channels read units 0 and 1 alone,
    model.mix.weight[2:7, :3] = 0.0  # the others none of them, and all of them the constant one
    x = images(192, 100)
    context = context_of(model, x)
    assert context.structure.groups[0].name == "stem"
    return context, {"stem": torch.tensor([0, 2, 3, 4, 5, 6])}


@pytest.mark.parametrize("each", [1, 2])
@pytest.mark.parametrize("norm", [True, False])
def test_a_depthwise_layer_makes_up_for_scaled_channels_and_lost_constants(norm, each):
    context, kept = _filters(norm, each)
    wide, fresh = context.original.network, images(100, 7)
    assert misfit(Factor().make(context, kept), wide, fresh) < EXACT
    assert misfit(Prune().make(context, kept), wide, fresh) > 1e-2
    # Layers behind it cannot make up for it in its place.
    others = {w: t for w, t in context.targets.items() if w != "filter.weight"}
    groups = context.structure.groups
    keep = kept_indices(context.original.tensors(), groups, kept)
    thin = excise(wide, groups, kept)
    refit_network(context.original, thin, groups, keep, others, context.batches)
    assert misfit(thin, wide, fresh) > 1e-3


def test_a_depthwise_layer_whose_inputs_did_not_change_stays_as_it_is():
    context, _ = _filters(True, 2)
    channels = context.structure.groups[1]
    assert channels.slots[0].tensor == "mix.weight"
    thin = Factor().make(context, {channels.name: torch.arange(5)})
    before = context.original.network.filter.weight
    assert len(thin.filter.weight) == 10 and torch.equal(thin.filter.weight, before[:10])


@pytest.mark.parametrize("groups", [2, 3])
def test_a_grouped_convolution_makes_up_for_combinations_of_its_channels(groups):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(2, 4 * groups, 3),
            nn.Conv2d(4 * groups, 2 * groups, 3, groups=groups, bias=False),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(2 * groups, 4),
        )
    model = model.double().eval().requires_grad_(False)
    first = model[0]
    for start in range(0, 4 * groups, 4):
        for tensor in (first.weight, first.bias):
            tensor[start + 2] = tensor[start] / 2 - 2 * tensor[start + 1]
    first.bias[2] += 3.0  # a constant as well
    context = context_of(model, images(192, 100))
    assert context.structure.groups[0].size == 4
    kept = {context.structure.groups[0].name: torch.tensor([0, 1, 3])}
    fresh = images(100, 7)
    assert misfit(Factor().make(context, kept), model, fresh) < EXACT
    assert misfit(Prune().make(context, kept), model, fresh) > 1e-2


def test_rows_that_overflow_are_left_out_where_a_relu_follows():
    """Also from what the ReLU hides: everything keeps the same rows."""
    model, x = network("residual", 0), images(192, 100)
    kept = duplicate(model, x, 0, 0.5)
    x[5] = 1e308
    model.stem.weight.mul_(100)
    wide = context_of(model, images(192, 100))
    context = replace(wide, batches=batches_of(x))
    assert not bool(context.targets["a.weight"].inputs.isfinite().all())
    assert misfit(Factor().make(context, kept), model, images(100, 7)) < EXACT


def test_the_more_rows_of_a_wide_layer_are_solved_for_the_better(monkeypatch):
    """Layers with more inputs and more rows than can be factored."""
    model = network("residual, norm", 0)
    context = context_of(model, images(128, 1))
    kept = {g.name: torch.arange(g.size * 2 // 3) for g in context.structure.groups[:1]}
    missed = []
    for widest in (2, 50, 6000):
        monkeypatch.setattr(reconstruct, "WIDEST_SOLVE", widest)
        missed.append(misfit(Factor().make(context, kept), model, images(200, 7)))
    assert missed[2] < missed[1] < missed[0]
