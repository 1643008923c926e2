"""Positions turned into queries and keys: tables computed in the forward, and grouped queries."""

import math

import pytest
import torch
from torch import nn

from fcompress.structure.groups import find_groups
from fcompress.surgery.excision import excise

WIDTH, EACH, WORDS = 24, 6, 11


def halves(x, cos, sin):
    """As in Llama of transformers: the first half of a head is turned with the second."""
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat((-b, a), -1) * sin


def neighbours(x, cos, sin):
    """As in RoFormer: neighbouring columns of a head are turned together."""
    turned = torch.stack((-x[..., 1::2], x[..., ::2]), -1).flatten(-2)
    cos, sin = (t[..., : EACH // 2].repeat_interleave(2, -1) for t in (cos, sin))
    return x * cos + turned * sin


def complex_numbers(x, cos, sin):
    """As in the first Llama: neighbouring columns are a complex number."""
    table = torch.complex(cos, sin)[..., : EACH // 2]
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * table).flatten(-2)


class Attention(nn.Module):
    """Causal attention with rotary positions; `queries` heads read `keys` keys and values."""

    def __init__(self, turn, queries=4, keys=2, *, learned=False, product=False, fused=False):
        super().__init__()
        self.turn, self.product, self.fused = turn, product, fused
        self.repeats = queries // keys
        self.q, self.out = nn.Linear(WIDTH, queries * EACH), nn.Linear(queries * EACH, WIDTH)
        self.k, self.v = nn.Linear(WIDTH, keys * EACH), nn.Linear(WIDTH, keys * EACH)
        rates = 10000 ** (-torch.arange(0, EACH, 2) / EACH)
        if learned:
            self.rates = nn.Parameter(rates)
        else:
            self.register_buffer("rates", rates, persistent=False)

    def forward(self, x):
        at = torch.arange(x.shape[1]).float()
        if self.product:  # as transformers wrote it for long
            angles = (self.rates[None, :, None] @ at[None, None]).mT
        else:
            angles = torch.outer(at, self.rates)
        angles = torch.cat((angles, angles), -1)
        q, k, v = (f(x).unflatten(-1, (-1, EACH)).transpose(1, 2) for f in (self.q, self.k, self.v))
        q, k = (self.turn(x, angles.cos(), angles.sin()) for x in (q, k))
        k, v = (x.repeat_interleave(self.repeats, 1) for x in (k, v))
        if self.fused:
            mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            later = torch.full((x.shape[1],) * 2, -math.inf).triu(1)
            mixed = (q @ k.mT / math.sqrt(EACH) + later).softmax(-1) @ v
        return self.out(mixed.transpose(1, 2).flatten(2))


class Language(nn.Module):
    """One layer of attention between a table of words and a head."""

    def __init__(self, *settings, **named):
        super().__init__()
        self.table = nn.Embedding(WORDS, WIDTH)
        self.attention, self.head = Attention(*settings, **named), nn.Linear(WIDTH, 5)

    def forward(self, words):
        x = self.table(words)
        return self.head((x + self.attention(x)).mean(1))


def language(*settings, **named):
    torch.manual_seed(0)
    return Language(*settings, **named).eval()


def words(count):
    return torch.randint(WORDS, (count, 7), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("product", [False, True])
@pytest.mark.parametrize("turn", [halves, neighbours, complex_numbers])
def test_heads_with_rotary_positions_are_units(turn, product, fused):
    model = language(turn, product=product, fused=fused)
    structure = find_groups(model, words(4))
    assert structure.group("attention.q").size == 2
    thin = excise(model, structure.groups, {"attention.q": torch.tensor([1])})
    attention = thin.attention
    assert attention.q.out_features == attention.out.in_features == 2 * EACH
    assert attention.k.out_features == attention.v.out_features == EACH
    with torch.no_grad():  # the second group of queries, all else silent
        model.attention.out.weight[:, : 2 * EACH] = 0
        torch.testing.assert_close(thin(words(6)), model(words(6)))


@pytest.mark.parametrize(("queries", "keys", "units"), [(4, 4, 4), (6, 3, 3), (6, 2, 2), (4, 1, 1)])
def test_keys_and_values_go_with_all_the_queries_that_read_them(queries, keys, units):
    structure = find_groups(language(halves, queries, keys), words(4))
    group = next(g for g in (*structure.groups, *structure.not_pruned) if g.name == "attention.q")
    assert group.size == units
    assert (group.reason is None) == (units > 1)
    cut = {s.tensor: [int((s.units == u).sum()) for u in range(units)] for s in group.slots}
    assert cut["attention.q.weight"] == [queries // keys * EACH] * units
    assert cut["attention.k.weight"] == cut["attention.v.weight"] == [EACH] * units


def test_rates_that_were_learned_are_not_followed():
    structure = find_groups(language(halves, learned=True), words(4))
    assert "attention.q" not in {g.name for g in structure.groups}
    reasons = {g.name: g.reason for g in structure.not_pruned}
    assert "computed from parameters" in reasons["attention.q"]


class Scaled(nn.Module):
    """Channels scaled by a table that the forward computes of two buffers."""

    def __init__(self, shape):
        super().__init__()
        self.first, self.second = nn.Linear(9, 6), nn.Linear(6, 3)
        self.register_buffer("spread", torch.rand(shape))
        self.register_buffer("floor", torch.rand(shape))

    def forward(self, x):
        return self.second(self.first(x.flatten(1)) * (self.spread + self.floor).sqrt())


@pytest.mark.parametrize(("shape", "free"), [((1, 6), False), ((1, 1), True)])
def test_a_computed_table_with_an_entry_for_each_unit_holds_them(shape, free):
    structure = find_groups(Scaled(shape).eval(), torch.randn(4, 3, 3))
    assert [g.name for g in structure.groups] == (["first"] if free else [])
    if not free:
        reasons = {g.name: g.reason for g in structure.not_pruned}
        assert "a table computed from buffers" in reasons["first"]
