"""Excising units equals zeroing them at their consumers, and local response normalisation."""

import copy

import pytest
import torch
from cases.small_networks import NETWORKS, build, conv, example, head
from cases.zeroing import assert_exact, subsets, without
from torch import nn
from torch.nn import functional as F

from fcompress.errors import UnsupportedNetworkError
from fcompress.nn.local_response_norm import LocalResponseNorm
from fcompress.structure.groups import find_groups
from fcompress.surgery.excision import excise, kept_indices
from fcompress.surgery.preparation import prepare


@pytest.mark.parametrize("name", NETWORKS)
def test_excising_equals_zeroing_for_any_units(name):
    x = example(name)
    model = prepare(build(name), x)
    structure = find_groups(model, x)
    assert structure.groups
    through = any(isinstance(m, LocalResponseNorm) for m in model.modules())
    for number, group in enumerate(structure.groups):
        removals = subsets(group, 5, seed=number)
        assert assert_exact(model, group, removals, x, through_norm=through) > 1e-6


@pytest.mark.parametrize("name", NETWORKS)
def test_excising_several_groups_at_once_equals_one_after_the_other(name):
    x = example(name)
    model = prepare(build(name), x)
    groups = find_groups(model, x).groups
    kept = {}
    for number, group in enumerate(groups):
        kept |= without(group, subsets(group, 1, seed=number)[0])
    together = excise(model, groups, kept)
    one_by_one = model
    for group in groups:
        name = group.name
        # Widths changed, places did not: groups are found again by their name.
        now = next(g for g in find_groups(one_by_one, x).groups if g.name == name)
        one_by_one = excise(one_by_one, [now], {name: kept[name]})
    assert together.state_dict().keys() == model.state_dict().keys()
    for key, tensor in together.state_dict().items():
        assert torch.equal(tensor, one_by_one.state_dict()[key])


def test_the_compressed_network_is_a_network_of_its_own():
    model, x = build("Residual"), example("Residual")
    model.a1.weight.requires_grad_(False)
    group = find_groups(model, x).group("a1")
    before = copy.deepcopy(model.state_dict())
    thin = excise(model, [group], {"a1": torch.tensor([0, 4, 7])})
    assert (thin.a1.out_channels, thin.a2.in_channels) == (3, 3)
    assert not thin.a1.weight.requires_grad
    assert thin.a2.weight.requires_grad
    with torch.no_grad():
        for tensor in [*thin.parameters(), *thin.buffers()]:
            tensor.fill_(1)
    assert all(torch.equal(model.state_dict()[k], before[k]) for k in before)


def test_sharing_is_for_copies_that_are_thrown_away():
    model, x = build("Residual"), example("Residual")
    group = find_groups(model, x).group("a1")
    kept = {"a1": torch.arange(3)}
    shared, owned = (excise(model, [group], kept, share=s) for s in (True, False))
    assert shared.stem.weight is model.stem.weight
    assert owned.stem.weight is not model.stem.weight
    assert torch.equal(shared(x), owned(x))


def test_keeping_everything_changes_nothing():
    model, x = build("Dense"), example("Dense")
    groups = find_groups(model, x).groups
    same = excise(model, groups, {g.name: torch.arange(g.size) for g in groups})
    assert torch.equal(same(x), model(x))
    assert torch.equal(excise(model, groups, {})(x), model(x))


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        ([], "at least one"),
        ([1, 1], "sorted, different"),
        ([2, 1], "sorted, different"),
        ([-1, 2], "within 0 to 8"),
        ([0, 9], "within 0 to 8"),
    ],
)
def test_units_that_are_no_units(kept, message):
    model, x = build("Mlp"), example("Mlp")
    groups = find_groups(model, x).groups
    with pytest.raises(ValueError, match=message):
        excise(model, groups, {"0": torch.tensor(kept, dtype=torch.int64)})


def test_groups_that_are_no_groups():
    model, x = build("Mlp"), example("Mlp")
    with pytest.raises(ValueError, match="no group is called 'fc'"):
        excise(model, find_groups(model, x).groups, {"fc": torch.arange(2)})


def test_kept_indices_of_a_flattened_convolution():
    model, x = build("PermuteFlatten"), example("PermuteFlatten")
    groups = find_groups(model, x).groups
    tensors = dict(model.named_parameters())
    index = kept_indices(tensors, groups, {"conv": torch.tensor([1, 3])})
    assert index[("conv.weight", 0)].tolist() == [1, 3]
    columns = index[("fc.weight", 1)]
    assert columns.tolist() == [c for c in range(5 * 6 * 4) if (c // 4) % 5 in (1, 3)]


@pytest.mark.parametrize("attribute", ["num_heads", "n_heads", "num_attention_heads"])
def test_modules_learn_how_many_heads_are_left(attribute):
    class Counted(nn.Module):
        """Attention that counts its heads in an attribute."""

        def __init__(self):
            super().__init__()
            setattr(self, attribute, 4)
            self.depth = 4
            self.q, self.k, self.v = (nn.Linear(5, 12) for _ in range(3))
            self.out = nn.Linear(12, 6)

        def forward(self, x):
            heads = getattr(self, attribute)
            q, k, v = (
                m(x).view(len(x), -1, heads, 3).transpose(1, 2) for m in (self.q, self.k, self.v)
            )
            y = F.scaled_dot_product_attention(q, k, v)
            return self.out(y.transpose(1, 2).flatten(2))

    torch.manual_seed(0)
    model = nn.Sequential(Counted(), nn.ReLU(), nn.Linear(6, 4)).double().eval()
    model.num_heads = 7
    x = torch.randn(2, 5, 5, dtype=torch.float64)
    groups = find_groups(model, x).groups
    assert {g.name: g.size for g in groups} == {"0.q": 4, "0.out": 6}
    assert assert_exact(model, groups[0], subsets(groups[0], 4), x) > 1e-6
    thin = excise(model, groups, {"0.q": torch.tensor([2]), "0.out": torch.arange(3)})
    assert (getattr(thin[0], attribute), thin[0].depth, thin.num_heads) == (1, 4, 7)
    assert getattr(model[0], attribute) == 4


# Local response normalisation ----------------------------------------------------------------


def test_prepare_gives_the_same_outputs_and_keeps_settings():
    model, x = build("Normalised").train(), example("Normalised")
    prepared = prepare(model, x)
    norms = [m for m in prepared.modules() if isinstance(m, LocalResponseNorm)]
    assert [(m.size, m.alpha, m.beta, m.k) for m in norms] == [
        (4, 0.7, 0.6, 1.5),
        (5, 0.4, 0.75, 1.0),
    ]
    assert [len(m.positions) for m in norms] == [9, 7]
    assert not any(isinstance(m, nn.LocalResponseNorm) for m in prepared.modules())
    assert torch.allclose(prepared(x), model(x), rtol=1e-12, atol=0)
    assert prepared.training
    assert model.training
    assert type(model.norm1) is nn.LocalResponseNorm
    assert all(m.training for m in prepared.modules())


def test_without_preparation_units_that_are_normalised_stay():
    model, x = build("Normalised"), example("Normalised")
    left = {g.name: g.reason for g in find_groups(model, x).not_pruned}
    assert {"conv1", "conv2"} <= set(left)
    assert "pools over units" in left["conv1"]


def test_prepare_copies_networks_without_normalisation():
    model = build("Mlp")
    # The example is not needed, so it is not run either.
    prepared = prepare(model, torch.zeros(1, 99))
    assert prepared is not model
    assert torch.equal(prepared(example("Mlp")), model(example("Mlp")))
    assert prepared[0].weight is not model[0].weight


class Normal(nn.Module):
    """One normalisation module used twice."""

    def __init__(self, second: int):
        super().__init__()
        self.conv1, self.conv2, self.head = conv(3, 6), conv(6, second), head(second)
        self.norm = nn.LocalResponseNorm(3, alpha=0.8)
        self.others = [self.norm]

    def forward(self, x):
        return self.head(self.others[0](self.conv2(self.norm(self.conv1(x).relu())).relu()))


def test_a_normalisation_used_twice():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    same, different = (Normal(n).double().eval() for n in (6, 7))
    prepared = prepare(same, x)
    assert prepared.others[0] is prepared.norm
    assert isinstance(prepared.norm, LocalResponseNorm)
    (group,) = find_groups(prepared, x).groups
    assert {s.tensor for s in group.producers} == {"conv1.weight", "conv2.weight"}
    # No positions fit two widths.
    assert type(prepare(different, x).norm) is nn.LocalResponseNorm


def test_prepare_says_what_it_could_not_run():
    with pytest.raises(UnsupportedNetworkError, match="does not run on an example"):
        prepare(build("Normalised"), torch.zeros(2, 4, 8, 8))


def test_an_excised_normalisation_remembers_positions():
    x = example("Normalised")
    model = prepare(build("Normalised"), x)
    groups = find_groups(model, x).groups
    thin = excise(model, groups, {"conv1": torch.tensor([0, 3, 8])})
    assert thin.norm1.positions.tolist() == [0, 3, 8]
    assert thin.norm2.positions.tolist() == list(range(7))
