"""Groups of small networks, known in advance; what `find_groups` must leave as it was."""

import copy

import pytest
import torch
from cases.small_networks import NETWORKS, build, example, wake
from cases.zeroing import unaccounted
from torch import nn

from fcompress.errors import UnsupportedNetworkError
from fcompress.structure.groups import find_groups, plain_copy, quiet_tracing
from fcompress.surgery.preparation import prepare

# Network -> {group: (units, slots)}. The output layer is not pruned in any of them.
GROUPS = {
    "Mlp": {"0": (9, 3), "2": (6, 2)},
    "ConvFlatten": {"conv1": (6, 6), "conv2": (7, 3), "fc1": (9, 3)},
    "PermuteFlatten": {"conv": (5, 3)},
    "Residual": {"stem": (6, 11), "a1": (9, 3), "project": (8, 5), "b1": (7, 3)},
    "PaddedShortcut": {"stem": (4, 6), "b1": (7, 3)},
    "Dense": {
        "stem": (4, 18),
        "layers.0.2": (3, 13),
        "layers.1.2": (3, 8),
        "layers.2.2": (3, 3),
    },
    "Halves": {"conv1": (5, 3), "branch": (6, 3)},
    "Slices": {"conv1": (4, 3), "conv2": (6, 3)},
    "Shuffle": {"conv1": (4, 5), "conv2": (7, 3)},
    "Depthwise": {"conv1": (4, 11), "point": (7, 3)},
    "Grouped": {"conv1": (3, 3), "grouped": (2, 3), "point": (7, 3)},
    "SqueezeExcite": {"conv1": (8, 6), "down": (3, 3), "conv2": (6, 3)},
    "SigmoidNet": {"conv1": (8, 3), "conv2": (6, 3)},
    "MatmulTransformer": {"patches": (8, 11), "attention.qkv": (4, 4), "fc1": (11, 3)},
    "FusedTransformer": {"patches": (8, 11), "attention.qkv": (4, 4), "fc1": (11, 3)},
    "Functional": {"w1": (9, 3), "kernel": (6, 2)},
    "Tokens": {"table": (6, 2), "fc1": (8, 4)},
    "Normalised": {"conv1": (9, 4), "conv2": (7, 4)},
    "Transposed": {"conv1": (6, 3), "up": (4, 3), "grouped": (3, 3), "conv2": (7, 3)},
    "SliceWrites": {"left": (4, 3), "right": (5, 3), "conv2": (7, 3)},
    "Mixer": {"patches": (8, 6), "fc1": (11, 3)},
    "InstanceNorms": {"conv1": (8, 5), "conv2": (7, 5)},
    "SpatialGate": {"conv1": (8, 3), "conv2": (6, 3)},
    "Masked": {"fc1": (9, 4), "fc2": (8, 3)},
    "Gated": {"conv1": (5, 3), "conv2": (3, 4), "conv3": (7, 3)},
}
NOT_PRUNED = {
    # The zeros go on both sides of the shortcut, half and half of however many are needed.
    "PaddedShortcut": {"b2": "excising its units is not the same as zeroing them"},
    "Functional": {"w2": "the forward does not run at another width"},
    "SpatialGate": {"gate": "one value for all units of another layer (aten.mul)"},
    "Masked": {"score": "one value for all units of another layer (aten.mul)"},
}


def structure_of(name: str):
    x = example(name)
    model = prepare(build(name), x)
    return model, x, find_groups(model, x)


def test_every_network_has_an_answer():
    assert set(GROUPS) == set(NETWORKS)


@pytest.mark.parametrize("name", NETWORKS)
def test_groups_are_those_known(name):
    model, _, structure = structure_of(name)
    assert {g.name: (g.size, len(g.slots)) for g in structure.groups} == GROUPS[name]
    left = {g.name: g.reason for g in structure.not_pruned}
    assert list(left.values())[-1] == "output layer"
    others = dict(list(left.items())[:-1])
    expected = NOT_PRUNED.get(name, {})
    assert set(others) == set(expected)
    assert all(others[n].startswith(reason) for n, reason in expected.items())
    assert not unaccounted(model, structure)
    assert set(structure.unused) <= {n for n, _ in model.named_parameters()}
    assert {s["name"] for s in structure.skipped()} == {*left, *structure.unused}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_group_is_proven(name):
    _, _, structure = structure_of(name)
    assert structure.proof["units"] == sum(max(1, g.size // 2) for g in structure.groups)
    assert structure.proof["error"] < 1e-12
    assert structure.proof["change"] > 1e-3
    for group in structure.groups:
        assert group.reason is None
        assert group.producers
        assert group.consumers
        for slot in group.slots:
            found = slot.units[slot.units >= 0].unique()
            assert found.tolist() == list(range(group.size))


@pytest.mark.parametrize(
    ("name", "blocked"),
    [
        ("Mlp", set()),
        ("SigmoidNet", {"conv1"}),
        # The biases of the token mixing reach every channel.
        ("Mixer", {"patches"}),
        # A gate of a half, but of something that is zero.
        ("SqueezeExcite", set()),
    ],
)
def test_zero_passes_only_what_maps_it_to_zero(name, blocked):
    _, _, structure = structure_of(name)
    assert {g.name for g in structure.groups if not g.zero_through} == blocked


def test_columns_of_a_flattened_permutation_belong_to_their_channel():
    _, _, structure = structure_of("PermuteFlatten")
    (columns,) = structure.group("conv").consumers
    channel = torch.arange(5).view(1, 5, 1, 1).expand(1, 5, 6, 4).permute(0, 2, 1, 3)
    assert torch.equal(columns.units, channel.reshape(-1))


def test_a_channel_shuffle_moves_the_units():
    _, _, structure = structure_of("Shuffle")
    (columns,) = (s for s in structure.group("conv1").consumers if s.tensor == "conv2.weight")
    # One unit is a channel of each of the 3 parts that the code cuts 12 channels into.
    before = torch.arange(12) % 4
    assert torch.equal(columns.units, before.view(3, 4).t().reshape(-1))


def test_a_head_is_its_queries_keys_and_values():
    _, _, structure = structure_of("MatmulTransformer")
    group = structure.group("attention.qkv")
    rows = next(s for s in group.producers if s.tensor == "attention.qkv.weight")
    head = torch.arange(4).view(1, 4, 1).expand(3, 4, 3).reshape(-1)
    assert torch.equal(rows.units, head)
    assert torch.equal(group.consumers[0].units, head[:12])
    assert {s.tensor for s in group.slots} >= {"attention.bias", "attention.qkv.bias"}


def test_contractions_come_in_order_of_execution():
    _, _, structure = structure_of("Residual")
    assert [c.weight for c in structure.contractions] == [
        f"{n}.weight" for n in ("stem", "a1", "a2", "project", "b1", "b2", "head.2")
    ]
    assert {c.kind for c in structure.contractions} == {"conv", "linear"}
    assert all(
        c.whole and c.bias == c.weight.replace("weight", "bias") for c in structure.contractions
    )


def test_token_mixing_is_named():
    _, _, structure = structure_of("Mixer")
    assert structure.unused == {
        f"mix{i}.{kind}": "mixes positions, not units"
        for i in (1, 2)
        for kind in ("weight", "bias")
    }


@pytest.mark.parametrize("training", [True, False])
def test_the_callers_things_stay_as_they_were(training):
    model = build("FusedTransformer").float().train(training)
    model.fc1.eval()
    model.fc2.weight.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    modes = [m.training for m in model.modules()]
    grads = [p.requires_grad for p in model.parameters()]
    x = example("FusedTransformer").float()
    kept = x.clone()
    fast = torch.backends.mha.get_fastpath_enabled()
    state = torch.get_rng_state()
    structure = find_groups(model, x)
    assert structure.groups
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.backends.mha.get_fastpath_enabled() == fast
    assert torch.is_grad_enabled()
    assert torch.get_default_dtype() == torch.float32
    assert torch.equal(x, kept)
    assert [m.training for m in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == grads
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[key], before[key]) for key in before)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_quiet_tracing_restores_after_an_error():
    torch.backends.mha.set_fastpath_enabled(True)
    with pytest.raises(KeyError), quiet_tracing():
        assert not torch.backends.mha.get_fastpath_enabled()
        raise KeyError
    assert torch.backends.mha.get_fastpath_enabled()


def test_the_same_seed_gives_the_same_answer():
    one, two = (structure_of("Residual")[2] for _ in range(2))
    assert one.proof == two.proof
    assert [g.name for g in one.groups] == [g.name for g in two.groups]


def test_a_network_in_single_precision_and_several_inputs():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(3, 6)
            self.c = nn.Linear(6, 5)

        def forward(self, x, y, scale):
            return {"scores": self.c(torch.relu(self.a(x) + self.b(y)) * scale), "n": len(x)}

    torch.manual_seed(0)
    structure = find_groups(Two(), (torch.randn(3, 4), torch.randn(3, 3), 2.0))
    assert {g.name: g.size for g in structure.groups} == {"a": 6}
    assert {s.tensor for s in structure.group("a").producers} == {"a.weight", "b.weight"}


def test_random_forwards_are_proven():
    class Noisy(nn.Sequential):
        def forward(self, x):
            return super().forward(x + torch.rand_like(x))

    model = Noisy(*build("Mlp").children())
    assert len(find_groups(model, example("Mlp")).groups) == 2


def test_a_network_that_does_not_run_says_so():
    with pytest.raises(
        UnsupportedNetworkError, match=r"does not run .*\(2, 8\).*give data"
    ) as info:
        find_groups(build("Mlp"), torch.randn(2, 8))
    assert "\n" not in str(info.value)

    class Labels(nn.Sequential):
        def forward(self, x):
            return super().forward(x).argmax(1)

    with pytest.raises(UnsupportedNetworkError, match="returns no floating point numbers"):
        find_groups(Labels(*build("Mlp").children()), example("Mlp"))


def test_parameters_in_shared_or_strided_memory():
    model = build("Mlp")
    flat = torch.cat([p.detach().flatten() for p in model.parameters()])
    at = 0
    for p in model.parameters():
        p.data = flat[at : at + p.numel()].view(p.shape)
        at += p.numel()
    model[4].weight.data = model[4].weight.data.t().contiguous().t()
    structure = find_groups(model, example("Mlp"))
    assert {g.name: g.size for g in structure.groups} == {"0": 9, "2": 6}
    copied = plain_copy(model)
    assert all(p.is_contiguous() for p in copied.parameters())


def test_frozen_batch_norm_buffers_are_cut():
    """Buffers used elementwise belong to units as parameters do."""

    class Frozen(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 6, 3), nn.Linear(6, 5)
            self.register_buffer("scale", torch.rand(6))

        def forward(self, x):
            x = self.conv(x) * self.scale.reshape(1, -1, 1, 1)
            return self.fc(torch.relu(x).mean((2, 3)))

    model = Frozen()
    wake(model)
    group = find_groups(model, torch.randn(2, 3, 6, 6)).group("conv")
    assert ("scale", 0, "between") in {(s.tensor, s.dim, s.role) for s in group.slots}
