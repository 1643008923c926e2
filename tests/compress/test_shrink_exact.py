"""Units that others make up for exactly: after excision the outputs are the same in float64."""

import copy

import pytest
import torch
from cases.planted import (
    ARCHITECTURES,
    context_of,
    duplicate,
    images,
    misfit,
    network,
    overwrite,
    settle,
)
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import nn

from fcompress.compress.methods import Factor, Prune
from fcompress.compress.ranking.divergence import ablation_effects
from fcompress.compress.refitting import reconstruct
from fcompress.models import build
from fcompress.surgery.excision import excise

EXACT = 1e-7
DIFFERENT = 1e-2


def _planted(name, seed, share=0.5):
    model, x = network(name, seed), images(192, seed + 100)
    kept = duplicate(model, x, seed, share)
    return context_of(model, x), kept


@pytest.mark.parametrize("seed", [0, 2])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_duplicates_are_folded_into_their_twins(name, seed):
    context, kept = _planted(name, seed)
    wide, x = context.original.network, torch.cat(list(context.batches))
    before = copy.deepcopy(wide.state_dict())
    thin = Factor().make(context, kept)
    assert misfit(thin, wide, x) < EXACT
    assert misfit(thin, wide, images(200, 7)) < EXACT
    # The control: without refactoring the same units leave another network.
    bare = excise(wide, context.structure.groups, kept)
    assert misfit(bare, wide, x) > DIFFERENT
    assert [p.shape for p in thin.buffers()] == [p.shape for p in bare.buffers()]
    for key, tensor in wide.state_dict().items():
        assert torch.equal(tensor, before[key])


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_factor_finds_the_copies_by_itself(name):
    context, kept = _planted(name, 0)
    copies = sum(g.size - len(kept[g.name]) for g in context.structure.groups)
    assert Factor().not_pruned(context) == {}
    removal_order = Factor().removal_order(context)
    thin = Factor().make(context, removal_order.kept(copies))
    assert misfit(thin, context.original.network, images(200, 7)) < EXACT
    for group in context.structure.groups:
        _, unexplained = Factor().choose(context, group)
        independent = len(kept[group.name])
        assert bool((unexplained[independent:] < 1e-12 * unexplained[0]).all())


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_single_unit_can_stand_for_its_whole_group(name):
    # Other seeds leave nothing alive in the plain networks.
    context, kept = _planted(name, 3 if "plain" in name else 0, share=1.0)
    assert all(len(units) == 1 for units in kept.values())
    thin = Factor().make(context, kept)
    assert misfit(thin, context.original.network, torch.cat(list(context.batches))) < EXACT


@pytest.mark.parametrize("name", ["flattened", "flattened, norm", "pre-activation"])
def test_layers_too_wide_to_solve_are_folded_channel_by_channel(name, monkeypatch):
    monkeypatch.setattr(reconstruct, "WIDEST_SOLVE", 10)
    context, kept = _planted(name, 0)
    thin = Factor().make(context, kept)
    assert misfit(thin, context.original.network, images(100, 7)) < EXACT


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_single_precision_is_as_exact_as_it_can_be(name):
    model, x = network(name, 0).float(), images(192, 1).float()
    kept = duplicate(model, x, 0)
    thin = Factor().make(context_of(model, x), kept)
    assert misfit(thin, model, x) < 1e-3
    assert all(p.dtype == torch.float32 for p in thin.parameters())


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_factor_and_excision_without_removal_change_nothing(name):
    model, x = network(name, 3), images(40, 3)
    context = context_of(model, x)
    for method in (Factor(), Prune()):
        thin = method.make(context, method.removal_order(context).kept(0))
        assert torch.equal(thin(x.clone()), model(x.clone()))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_dead_units_cost_nothing_by_either_method(name):
    model, x = network(name, 1), images(96, 5)
    groups = context_of(model, x).structure.groups
    kept = {}
    for group in groups:
        overwrite(model, group, 1, None)
        kept[group.name] = torch.tensor([unit for unit in range(group.size) if unit != 1])
    context = context_of(model, x)
    for method in (Factor(), Prune()):
        assert misfit(method.make(context, kept), model, images(50, 6)) < EXACT
        assert misfit(method.make(context, method.removal_order(context).kept(1)), model, x) < EXACT
    for group in groups:
        order, unexplained = Factor().choose(context, group)
        assert float(unexplained[order.tolist().index(1)]) < 1e-12
        assert float(ablation_effects(model, (group,), x)[group.name][1]) == 0


def _removal_order(name):
    """A network of the registry in float64 for the images of this file."""
    sizes = {"in_features": 128} if name == "mlp" else {"in_channels": 2, "image_size": 8}
    model = build(name, width=0.25, classes=4, **sizes).double().eval().requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        settle(model)
    return model


@pytest.mark.parametrize("name", ["mlp", "resnet20", "resnet56"])
def test_duplicates_in_networks_of_the_registry(name):
    model, x = _removal_order(name), images(64, 0)
    kept = duplicate(model, x, 0)
    context = context_of(model, x)
    assert misfit(Factor().make(context, kept), model, x) < EXACT
    assert misfit(Prune().make(context, kept), model, x) > DIFFERENT


def test_dead_units_before_a_local_response_normalisation():
    # Removing a channel must not bring its neighbours closer together.
    model, x = _removal_order("alexnet"), images(32, 0)
    kept = {}
    for group in context_of(model, x).structure.groups:
        overwrite(model, group, 2, None)
        kept[group.name] = torch.tensor([unit for unit in range(group.size) if unit != 2])
    context = context_of(model, x)
    assert len(kept) == 4
    for method in (Factor(), Prune()):
        assert misfit(method.make(context, kept), model, images(32, 1)) < EXACT


def test_batch_norms_follow_whatever_data_they_were_trained_on():
    # Running statistics far from those of the calibration data, and one channel that is constant
    # before its norm: nothing to estimate a variance from.
    for scale in (1e-3, 1.0, 1e3):
        model, x = network("residual, norm", 0), images(96, 1)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.mul_(scale)
                module.running_var.mul_(scale**2)
        model.a.weight[3] = 0
        model.c.weight[3] = 0
        kept = duplicate(model, x, 0)
        context = context_of(model, x)
        assert misfit(Factor().make(context, kept), model, images(100, 2)) < EXACT


def test_norms_whose_statistics_are_right_keep_them():
    context, kept = _planted("residual, norm", 0)
    thin = Factor().make(context, {n: k for n, k in kept.items() if n == "a"})
    assert torch.equal(thin.n0.running_mean, context.original.network.n0.running_mean)
    for module, wide in zip(thin.modules(), context.original.network.modules(), strict=True):
        if isinstance(module, nn.BatchNorm2d) and module.num_features == wide.num_features:
            torch.testing.assert_close(module.running_mean, wide.running_mean)
            torch.testing.assert_close(module.running_var, wide.running_var)


class Straight(nn.Module):
    """No nonlinearity before the consumers, so that any combination of units survives."""

    def __init__(self, norm, padding, flat):
        super().__init__()
        self.conv = nn.Conv2d(2, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8) if norm else nn.Identity()
        self.pool = nn.AvgPool2d(2)
        self.next = nn.Conv2d(8, 6, 3, stride=2, padding=padding, bias=False)
        size = 6 * ((4 + 2 * padding - 3) // 2 + 1) ** 2
        self.wide = nn.Linear(size if flat else 6, 9)
        self.flat, self.head = flat, nn.Linear(9, 4)

    def forward(self, x):
        x = self.next(self.pool(self.norm(self.conv(x))))
        x = self.wide(x.flatten(1) if self.flat else x.mean((2, 3)))
        return self.head(x)


def _combine(producer, generator, *, offset):
    """Rows 5 and later become combinations of the first five, plus a constant."""
    weight, bias = producer.weight, producer.bias
    mix = torch.randn(len(weight) - 5, 5, generator=generator, dtype=torch.float64)
    weight[5:] = (mix @ weight[:5].flatten(1)).view(-1, *weight.shape[1:])
    bias[5:] = mix @ bias[:5] + offset


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize(("padding", "offset"), [(0, 0.0), (1, 0.0), (0, 3.0)])
def test_linear_and_affine_combinations_are_folded(padding, offset, flat):
    torch.manual_seed(0)
    model = Straight(False, padding, flat).double().eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(1)
    _combine(model.conv, generator, offset=offset)
    _combine(model.wide, generator, offset=offset)
    x = images(128, 0)
    context = context_of(model, x)
    kept = {"conv": torch.arange(5), "wide": torch.arange(5)}
    assert set(kept) <= {g.name for g in context.structure.groups}
    assert misfit(Factor().make(context, kept), model, images(100, 2)) < EXACT
    assert misfit(excise(model, context.structure.groups, kept), model, x) > DIFFERENT
    for name in kept:
        _, unexplained = Factor().choose(context, context.structure.group(name))
        assert bool((unexplained[5:] < 1e-10).all())


def test_a_constant_that_meets_zero_padding_is_no_constant():
    # At the border of the padded map a shifted combination is none; nothing can be exact there.
    torch.manual_seed(0)
    model = Straight(False, 1, True).double().eval().requires_grad_(False)
    _combine(model.conv, torch.Generator().manual_seed(1), offset=3.0)
    context = context_of(model, images(128, 0))
    thin = Factor().make(context, {"conv": torch.arange(5)})
    bare = excise(model, context.structure.groups, {"conv": torch.arange(5)})
    fresh = images(100, 2)
    assert EXACT < misfit(thin, model, fresh) < misfit(bare, model, fresh) / 2


def test_combinations_survive_a_norm_and_a_relu_that_lets_everything_through():
    torch.manual_seed(0)
    conv, norm, head = nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 4)
    model = nn.Sequential(conv, norm, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)
    model.double().eval().requires_grad_(False)
    settle(model)
    _combine(conv, torch.Generator().manual_seed(1), offset=0.0)
    norm.bias += 50
    x = images(64, 0)
    context = context_of(model, x)
    kept = {"0": torch.arange(5)}
    assert misfit(Factor().make(context, kept), model, images(64, 1)) < EXACT


def test_constant_units_go_into_the_bias():
    for head in (nn.Linear(8, 4), nn.Linear(8, 4, bias=False)):
        model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), head).double().eval()
        model.requires_grad_(False)
        model[0].weight[4:] = 0
        model[0].bias[4:] = torch.tensor([0.3, -0.2, 2.0, 0.7])
        x = torch.randn(100, 5, dtype=torch.float64)
        context = context_of(model, x)
        thin = Factor().make(context, {"0": torch.arange(4)})
        assert misfit(thin, model, x) < EXACT
        assert thin[2].bias is not None
        assert (model[2].bias is None) == (head.bias is None)


@pytest.mark.parametrize("name", ["plain", "residual, norm", "flattened", "concatenation"])
def test_the_result_does_not_depend_on_the_batches(name):
    model, x = network(name, 4), images(96, 4)
    context = context_of(model, x)
    kept = {g.name: torch.arange(g.size // 2) for g in context.structure.groups}
    thin = Factor().make(context, kept)
    for size in (96, 17):
        other = copy.copy(context)
        object.__setattr__(other, "batches", x.split(size))
        other.__dict__.pop("targets", None)
        assert misfit(Factor().make(other, kept), thin, x) < EXACT


@st.composite
def networks(draw):
    """A small random chain with blocks of every kind, as a list of settings."""
    blocks = draw(
        st.lists(
            st.fixed_dictionaries(
                {
                    "kind": st.sampled_from(["plain", "residual", "branches", "depthwise"]),
                    "width": st.integers(4, 9),
                    "kernel": st.sampled_from([1, 3]),
                    "stride": st.sampled_from([1, 1, 2]),
                    "norm": st.booleans(),
                    "act": st.sampled_from([nn.LeakyReLU, nn.ELU, nn.Tanh, nn.SiLU]),
                    "pool": st.booleans(),
                }
            ),
            min_size=1,
            max_size=3,
        )
    )
    return blocks, draw(st.booleans()), draw(st.integers(0, 99))


class Block(nn.Module):
    def __init__(self, inputs, kind, width, kernel, stride, norm, act, pool):
        super().__init__()
        pad = kernel // 2

        def unit(before, after, step=1, groups=1):
            conv = nn.Conv2d(before, after, kernel, step, pad, groups=groups, bias=not norm)
            return nn.Sequential(conv, nn.BatchNorm2d(after) if norm else nn.Identity(), act())

        self.kind, self.first = kind, unit(inputs, width, stride)
        self.second = unit(width, width, groups=width if kind == "depthwise" else 1)
        self.pool = nn.AvgPool2d(2, ceil_mode=True) if pool else nn.Identity()
        self.outputs = 2 * width if kind == "branches" else width

    def forward(self, x):
        x = self.first(x)
        if self.kind == "residual":
            x = x + self.second(x)
        elif self.kind == "branches":
            x = torch.cat([x, self.second(x)], 1)
        elif self.kind == "depthwise":
            x = self.second(x)
        return self.pool(x)


def _built(blocks, flat, seed):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers, width = [], 2
        for settings_of in blocks:
            layers.append(Block(width, **settings_of))
            width = layers[-1].outputs
        body = nn.Sequential(*layers, nn.Identity() if flat else nn.AdaptiveAvgPool2d(1))
        body = nn.Sequential(body, nn.Flatten())
        size = body.eval()(torch.randn(1, 2, 8, 8)).shape[1]
        model = nn.Sequential(body, nn.Linear(size, 7), nn.Tanh(), nn.Linear(7, 3))
        model = model.double().eval().requires_grad_(False)
        settle(model)
    return model


@settings(deadline=None, derandomize=True, max_examples=15, phases=[Phase.generate])
@given(networks())
def test_planted_duplicates_in_random_networks(drawn):
    blocks, flat, seed = drawn
    model = _built(blocks, flat, seed)
    # More examples than the widest layer has inputs, or nothing could be exact on unseen ones.
    x = images(max(128, 4 * model[1].in_features), seed)
    kept = duplicate(model, x, seed)
    context = context_of(model, x)
    usable = {n: k for n, k in kept.items() if n not in Factor().not_pruned(context)}
    thin = Factor().make(context, usable)
    assert misfit(thin, model, x) < EXACT
    assert misfit(thin, model, images(50, seed + 1)) < 1e-5
    copies = sum(context.structure.group(n).size - len(k) for n, k in usable.items())
    found = Factor().make(context, Factor().removal_order(context).kept(copies))
    assert misfit(found, model, x) < EXACT
