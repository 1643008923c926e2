"""What proven groups reach: heads of attention, sizes found by trial, caches, computed weights."""

import copy
import math
import pickle

import pytest
import torch
from cases.small_networks import wake
from torch import nn
from torch.nn import functional as F
from torchvision.models.swin_transformer import ShiftedWindowAttention, ShiftedWindowAttentionV2

import fcompress
from fcompress.forward.running import quiet_tracing
from fcompress.nn.attention import MultiheadAttention
from fcompress.structure.groups import find_groups
from fcompress.surgery.adapting import adapt
from fcompress.surgery.excision import excise
from fcompress.surgery.preparation import prepare


def seeded(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def made(kind, *args, **settings) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = kind(*args, **settings)
        wake(model)
    return model.double().eval()


def half_of(structure: fcompress.Structure) -> dict[str, torch.Tensor]:
    return {g.name: torch.arange(g.size)[g.size // 2 :] for g in structure.groups}


# Attention ---------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("weights", [True, False])
@pytest.mark.parametrize("cross", [True, False])
def test_attention_of_torch_is_the_same_by_its_weights(batch_first, weights, cross):
    ours = made(nn.MultiheadAttention, 8, 2, batch_first=batch_first)
    own = copy.deepcopy(ours)
    adapt(own)
    assert type(own) is MultiheadAttention
    x = seeded(1, 3, 5, 8)
    y = seeded(2, *((3, 7, 8) if batch_first else (7, 5, 8))) if cross else x
    mask = torch.zeros(x.shape[1 if batch_first else 0], y.shape[1 if batch_first else 0])
    mask = mask.double().index_fill(1, torch.tensor([1]), -math.inf)
    padding = torch.zeros(*(y.shape[:2] if batch_first else (y.shape[1], y.shape[0])))
    padding = padding.double().index_fill(1, torch.tensor([2]), -math.inf)
    for masks in ({}, {"attn_mask": mask}, {"attn_mask": mask, "key_padding_mask": padding}):
        with quiet_tracing():
            expected = ours(x, y, y, need_weights=weights, **masks)
            got = own(x, y, y, need_weights=weights, **masks)
        torch.testing.assert_close(got[0], expected[0])
        assert (got[1] is None) == (expected[1] is None)
        if weights:
            torch.testing.assert_close(got[1], expected[1])


def test_attention_of_one_example_and_of_other_widths_is_the_same():
    for settings in ({}, {"kdim": 6, "vdim": 5}, {"bias": False}):
        theirs = made(nn.MultiheadAttention, 8, 4, **settings)
        own = copy.deepcopy(theirs)
        adapt(own)
        keys = seeded(2, 7, settings.get("kdim", 8))
        values = seeded(3, 7, settings.get("vdim", 8))
        with quiet_tracing():
            expected = theirs(seeded(1, 5, 8), keys, values, average_attn_weights=False)
            got = own(seeded(1, 5, 8), keys, values, average_attn_weights=False)
        torch.testing.assert_close(got, expected)


def test_attention_with_keys_of_its_own_stays_as_it_is():
    theirs = made(nn.MultiheadAttention, 8, 2, add_bias_kv=True)
    adapt(theirs)
    assert type(theirs) is nn.MultiheadAttention


@pytest.mark.parametrize("kind", [ShiftedWindowAttention, ShiftedWindowAttentionV2])
@pytest.mark.parametrize(("shift", "size"), [((0, 0), (8, 8)), ((2, 2), (8, 12)), ((2, 2), (7, 4))])
def test_windows_of_torchvision_are_the_same_by_their_weights(kind, shift, size):
    theirs = made(kind, 12, [4, 4], list(shift), 3)
    own = copy.deepcopy(theirs)
    adapt(own)
    assert isinstance(own, kind) and type(own) is not kind
    with torch.no_grad():
        torch.testing.assert_close(own(seeded(1, 2, *size, 12)), theirs(seeded(1, 2, *size, 12)))


class Encoder(nn.Module):
    """Two encoder layers of torch behind an embedding, and a head."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(5, 8)
        layer = nn.TransformerEncoderLayer(8, 4, 16, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.layers(self.first(x)).mean(1))


def test_heads_of_torchs_encoder_can_go():
    model, x = made(Encoder), seeded(1, 2, 6, 5)
    wide = prepare(model, x)
    structure = find_groups(wide, x)
    heads = [g for g in structure.groups if "self_attn" in g.name]
    assert [g.size for g in heads] == [4, 4] and structure.proof["error"] < 1e-10
    thin = excise(wide, structure.groups, half_of(structure))
    assert [layer.self_attn.num_heads for layer in thin.layers.layers] == [2, 2]
    # With the fused kernels of torch on, they must not be handed half the heads.
    silenced = copy.deepcopy(wide)
    for layer in silenced.layers.layers:
        layer.self_attn.out_proj.weight.data[:, :4] = 0
        layer.linear2.weight.data[:, :8] = 0
    torch.testing.assert_close(thin(x), silenced(x))
    assert not torch.allclose(thin(x), wide(x))


class Shaped(nn.Module):
    """Attention as most write it: the width of the heads is that of the input."""

    def __init__(self):
        super().__init__()
        self.num_heads = 4
        self.qkv = nn.Linear(8, 24)
        self.proj = nn.Linear(8, 8)

    def forward(self, x, *, scale: float = 0.5) -> torch.Tensor:
        B, N, C = x.shape
        qkv = self.qkv(x).reshape(B, N, 3, self.num_heads, C // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        scores = (q @ k.transpose(-2, -1) * scale).softmax(-1)
        return self.proj((scores @ v).transpose(1, 2).reshape(B, N, C))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(5, 8)
        self.attention = Shaped()

    def forward(self, x):
        x = self.embed(x)
        return (x + self.attention(x)).mean(1)


def test_the_size_of_a_head_is_not_taken_for_the_number_of_heads():
    attention = made(ShiftedWindowAttentionV2, 16, [2, 2], [0, 0], 4)
    ends = made(nn.Linear, 5, 16), made(nn.Linear, 16, 3)
    model = nn.Sequential(ends[0], attention, ends[1])
    x = seeded(1, 2, 4, 4, 5)
    wide = prepare(model, x)
    group = find_groups(wide, x).group("1.qkv")
    thin = excise(wide, [group], {"1.qkv": torch.tensor([0, 2, 3])})
    assert (thin[1].num_heads, thin[1].head_dim) == (3, 4)


def test_reshapes_infer_the_width():
    model, x = made(Block), seeded(1, 2, 6, 5)
    wide = prepare(model, x)
    assert torch.equal(wide(x), model(x))
    assert isinstance(wide.attention, Shaped) and type(wide.attention) is not Shaped
    assert type(model.attention) is Shaped
    reasons = {g.name: g.reason for g in find_groups(model, x).not_pruned}
    assert "another width" in reasons["attention.qkv"]
    structure = find_groups(wide, x)
    assert structure.group("attention.qkv").size == 4
    thin = excise(wide, structure.groups, {"attention.qkv": torch.tensor([1, 3])})
    assert thin.attention.num_heads == 2 and thin.attention.proj.in_features == 4
    again = pickle.loads(pickle.dumps(thin))
    torch.testing.assert_close(again(x), thin(x))


# Sizes by trial, caches, computed weights --------------------------------------------------


class Split(nn.Module):
    """Cuts at a width that it keeps; caches what it makes of a parameter."""

    def __init__(self):
        super().__init__()
        self.part = 6
        self.cache: dict[str, torch.Tensor] = {}
        self.a = nn.Conv2d(3, 12, 1)
        self.scale = nn.Parameter(torch.ones(6))
        self.b = nn.Conv2d(6, 4, 1)

    def forward(self, x):
        if "scale" not in self.cache or self.training:
            self.cache["scale"] = self.scale.exp().view(1, -1, 1, 1)
        one, two = self.a(x).relu().split(self.part, 1)
        return self.b(one * two * self.cache["scale"]).mean((2, 3))


def test_a_size_that_the_code_keeps_is_found_by_trial():
    model, x = made(Split), seeded(1, 2, 3, 4, 4)
    with torch.no_grad():
        model(x)  # fills the cache
    structure = find_groups(prepare(model, x), x)
    (group,) = structure.groups
    assert group.size == 6 and structure.proof["error"] < 1e-10
    assert [(n.module, n.attribute, n.each) for n in group.numbers] == [("", "part", 1)]
    thin = excise(model, structure.groups, {group.name: torch.tensor([0, 2, 5])})
    assert thin.part == 3 and model.part == 6
    with torch.no_grad():
        silenced = copy.deepcopy(model)
        silenced.b.weight.data[:, [1, 3, 4]] = 0
        torch.testing.assert_close(thin(x), silenced(x))


class Standardised(nn.Conv2d):
    """Weight standardisation with a gain, as networks without normalisation have it."""

    def __init__(self, *args, **settings):
        super().__init__(*args, **settings)
        self.gain = nn.Parameter(torch.ones(self.out_channels, 1, 1, 1))

    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        weight = weight * self.gain
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


def test_computed_weights_become_plain_ones():
    layers = (Standardised(3, 8, 3, padding=1), nn.ReLU(), Standardised(8, 4, 3, stride=2))
    model, x = made(nn.Sequential, *layers), seeded(1, 2, 3, 8, 8)
    assert not find_groups(model, x).groups
    wide = prepare(model, x)
    assert torch.equal(wide(x), model(x)) and type(wide[0]) is nn.Conv2d
    assert [g.size for g in find_groups(wide, x).groups] == [8]
    # Where all parameters of it are given, they are what the network goes on with.
    kept = copy.deepcopy(model)
    adapt(kept, set(kept.state_dict()))
    assert type(kept[0]) is Standardised


class Lookup(nn.Module):
    """A bias table of heads, looked up by products with constants; biases put end to end."""

    def __init__(self):
        super().__init__()
        self.num_heads = 2
        self.query = nn.Linear(8, 8, bias=False)
        self.query_bias = nn.Parameter(torch.zeros(8))
        self.both = nn.Linear(8, 16, bias=False)
        self.value_bias = nn.Parameter(torch.zeros(8))
        self.register_buffer("key_bias", torch.zeros(8))
        self.table = nn.Parameter(torch.zeros(2, 3))
        self.register_buffer("places", torch.eye(3)[torch.arange(36) % 3])
        self.out = nn.Linear(8, 3)

    def forward(self, x):
        q = F.linear(x, self.query.weight, self.query_bias)
        kv = F.linear(x, self.both.weight, torch.cat((self.key_bias, self.value_bias)))
        q, k, v = (
            t.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for t in (q, *kv.unflatten(-1, (2, -1)).unbind(2))
        )
        bias = torch.einsum("hw,iw->hi", self.table, self.places).view(self.num_heads, 6, 6)
        weights = (q @ k.transpose(-2, -1) + bias).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).flatten(2)).mean(1)


def test_biases_made_of_several_parameters_and_constants():
    model, x = made(Lookup), seeded(1, 2, 6, 8)
    structure = find_groups(model, x)
    assert [g.size for g in structure.groups] == [2] and structure.proof["error"] < 1e-10
    (group,) = structure.groups
    assert {"query_bias", "value_bias", "table"} <= {s.tensor for s in group.slots}


# The measurement ---------------------------------------------------------------------------


def test_coverage_accounts_for_every_parameter():
    model, x = made(Encoder), seeded(1, 2, 6, 5)
    before = copy.deepcopy(model.state_dict())
    state = torch.random.get_rng_state()
    result = fcompress.coverage(model, x, removed=0.5)
    assert result.reachable + sum(result.left.values()) == result.params
    assert result.params == sum(p.numel() for p in model.parameters())
    # Per layer: rows of 4 heads (q, k, v) with biases and columns of the output projection, and
    # the hidden units with their bias.
    per_layer = (24 * 8 + 24 + 8 * 8) + (16 * 8 + 16 + 8 * 16)
    assert (result.groups, result.units) == (4, 40) and result.reachable == 2 * per_layer
    assert result.thin_params == result.params - per_layer
    assert result.error is None and result.change > 0
    assert any("layer normalisation mixes" in reason for reason in result.left)
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_coverage_of_nothing():
    result = fcompress.coverage(made(nn.Linear, 4, 3), seeded(1, 2, 4))
    assert (result.reachable, result.groups, result.thin_params) == (0, 0, 15)
    assert result.left == {"output layer": 15} and result.change == 0
    with pytest.raises(ValueError, match="between 0 and 1"):
        fcompress.coverage(made(nn.Linear, 4, 3), seeded(1, 2, 4), removed=1.0)
