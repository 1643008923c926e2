"""Modules that keep their width as a number, in a forward that looks at values of its input."""

import math

import pytest
import torch
from torch import nn

import fcompress
from fcompress.structure.groups import find_groups
from fcompress.surgery.excision import excise

WIDTH, HEADS, WORDS = 24, 4, 11


class Attention(nn.Module):
    """As in GPT-2: one product for queries, keys and values, split at a width that is kept."""

    def __init__(self):
        super().__init__()
        self.split_size, self.head_dim = WIDTH, WIDTH // HEADS
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        parts = self.qkv(x).split(self.split_size, dim=2)
        shape = (*x.shape[:2], -1, self.head_dim)
        q, k, v = (part.view(shape).transpose(1, 2) for part in parts)
        scores = (q @ k.mT / math.sqrt(self.head_dim)).softmax(-1)
        return self.out((scores @ v).transpose(1, 2).flatten(2))


class Widened(nn.Module):
    """A linear layer that says its outputs' width in a view, as transformers' Conv1D."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.nf = outputs
        self.weight = nn.Parameter(torch.randn(inputs, outputs) / 5)
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x):
        rows = torch.addmm(self.bias, x.view(-1, x.shape[-1]), self.weight)
        return rows.view(*x.shape[:-1], self.nf)


class Language(nn.Module):
    """Two blocks and a head that reads the last word."""

    def __init__(self, *, written=False):
        super().__init__()
        self.table = nn.Embedding(WORDS, WIDTH)
        self.attention = nn.ModuleList(Attention() for _ in range(2))
        self.up = nn.ModuleList(Widened(WIDTH, 30) for _ in range(2))
        self.down = nn.ModuleList(nn.Linear(30, WIDTH) for _ in range(2))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 5)
        self.written = written

    def forward(self, words):
        if words.max() >= WORDS:
            raise ValueError("no such word")
        x = self.table(words)
        for attention, up, down in zip(self.attention, self.up, self.down, strict=True):
            x = x + attention(self.norm(x))
            hidden = torch.relu(up(self.norm(x)))
            x = x + down(hidden.view(len(x), -1, 30) if self.written else hidden)
        return self.head(self.norm(x)[:, -1])


def words(count, seed=0):
    return torch.randint(WORDS, (count, 7), generator=torch.Generator().manual_seed(seed))


def language(**settings):
    torch.manual_seed(0)
    return Language(**settings).eval()


GROUPS = {"attention.0.qkv": HEADS, "up.0": 30, "attention.1.qkv": HEADS, "up.1": 30}


def test_numbers_are_tried_by_running_where_shapes_alone_do_not_run():
    model = language()
    structure = find_groups(model, words(4))
    assert {g.name: g.size for g in structure.groups} == GROUPS
    lowered = {n.attribute for g in structure.groups for n in g.numbers}
    assert lowered == {"split_size", "nf"}
    kept = {"attention.1.qkv": torch.arange(3), "up.0": torch.arange(5)}
    thin = excise(model, structure.groups, kept)
    assert (thin.attention[1].split_size, thin.up[0].nf) == (18, 5)
    assert thin(words(3)).shape == (3, 5)


def test_a_width_that_the_code_spells_out_keeps_its_units():
    structure = find_groups(language(written=True), words(4))
    assert {g.name for g in structure.groups} == {"attention.0.qkv", "attention.1.qkv"}
    reasons = {g.name: g.reason for g in structure.not_pruned}
    assert reasons["up.0"].startswith("the forward does not run at another width")


def test_it_is_shrunk_saved_and_opened_again(tmp_path):
    model = language()
    parts = list(words(400).split(100))
    result = fcompress.shrink(model, parts, tol=0.3, method="prune")
    assert result.params["after"] < result.params["before"]
    fcompress.save(result.model, tmp_path / "thin.pt")
    again = fcompress.load(tmp_path / "thin.pt", arch=Language)
    torch.testing.assert_close(again(words(9)), result.model(words(9)))


@pytest.mark.parametrize("kind", ["GPT2LMHeadModel", "GPT2ForSequenceClassification"])
def test_gpt2_of_transformers(kind):
    transformers = pytest.importorskip("transformers")
    settings = {"vocab_size": 50, "n_positions": 16, "n_embd": WIDTH, "n_head": HEADS}
    ends = {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}
    config = transformers.GPT2Config(n_layer=2, **settings, **ends)
    torch.manual_seed(0)
    model = getattr(transformers, kind)(config).eval()
    call = lambda network, ids: network(input_ids=ids).logits  # noqa: E731
    structure = find_groups(model, torch.randint(2, 50, (3, 6)), call=call)
    blocks = [f"transformer.h.{i}" for i in range(2)]
    heads = {f"{block}.attn.c_attn": HEADS for block in blocks}
    inside = {f"{block}.mlp.c_fc": 4 * WIDTH for block in blocks}
    assert {g.name: g.size for g in structure.groups} == heads | inside
