"""The paper's three constructions as oracles for both methods: what must go, what must stay."""

from functools import cache

import pytest
import torch
from cases.constructions import conv_constructions, hidden_activations, mlp_constructions

from fcompress.compress.methods import METHODS, Context, Factor
from fcompress.compress.pipeline import shrink
from fcompress.data.roles import batches_of
from fcompress.errors import ToleranceError
from fcompress.forward import cost
from fcompress.forward.predictor import Predictor
from fcompress.structure.groups import find_groups

# Seeds for which every unit of N is active for a good part of the data, so that all of them count.
MAKERS = {
    "depth 1": lambda: mlp_constructions(1, seed=33, train_steps=0, base=128),
    "depth 2": lambda: mlp_constructions(2, seed=54, train_steps=0, base=128),
    "depth 3": lambda: mlp_constructions(3, seed=40, train_steps=0, base=128),
    "depth 5": lambda: mlp_constructions(5, seed=2),
    "conv": lambda: conv_constructions(seed=34, train_steps=0, base=64),
}


@cache
def _made(name):
    return MAKERS[name]()


@pytest.fixture(params=MAKERS)
def made(request):
    return _made(request.param)


def _context(model, x):
    macs = cost.count(model, x[:1]).macs
    return Context(Predictor(model), find_groups(model, x[:4]), batches_of(x), 0, macs)


def _halved(made, letter, method):
    """The wide network with half of its hidden units removed by a method, and what is kept."""
    context = _context(made.wide()[letter], made.data)
    removal_order = METHODS[method].removal_order(context)
    kept = removal_order.kept(sum(g.size for g in context.structure.groups) // 2)
    return METHODS[method].make(context, kept), kept


def _compare(made, thin):
    """Largest difference of the logits, relative to the largest logit; agreement."""
    with torch.no_grad():
        wanted, got = made.narrow(made.data), thin(made.data)
    same = (wanted.argmax(1) == got.argmax(1)).double().mean()
    return float((wanted - got).abs().max() / wanted.abs().max()), float(same)


def _free(made, letter):
    """For each group how many units cost `factor` nothing."""
    model = made.narrow if letter == "N" else made.wide()[letter]
    context = _context(model, made.data)
    chosen = [Factor().choose(context, group)[1] for group in context.structure.groups]
    return [int((cost / cost.max() < 1e-10).sum()) for cost in chosen]


@pytest.mark.parametrize(
    ("letter", "method"), [("a", "prune"), ("b", "prune"), ("a", "factor"), ("c", "factor")]
)
def test_half_of_the_units_go_and_nothing_changes(made, letter, method):
    thin, _ = _halved(made, letter, method)
    error, same = _compare(made, thin)
    assert error < 1e-8
    assert same == 1
    narrow = cost.count(made.narrow, made.data)
    assert cost.count(thin, made.data).macs <= 1.1 * narrow.macs


@pytest.mark.parametrize(("letter", "method"), [("b", "factor"), ("c", "prune")])
def test_half_of_the_units_cannot_go_the_wrong_way(made, letter, method):
    thin, _ = _halved(made, letter, method)
    error, same = _compare(made, thin)
    assert error > 0.02
    if letter == "c":
        assert same < 0.8


def test_redundant_is_what_was_redundant_in_the_narrow_network_and_every_copy(made):
    widths = [h.shape[1] for h in hidden_activations(made.narrow, made.data)]
    narrow = _free(made, "N")
    for letter in "ac":
        assert _free(made, letter) == [n + w for n, w in zip(narrow, widths, strict=True)]
    # The orthogonal units of b are explained by nothing, though nothing reads them.
    assert _free(made, "b") == narrow


def _shrunk(made, letter, method):
    return shrink(made.wide()[letter], [made.data], tol=0.05, method=method)


def _units(result):
    """Hidden units before and after."""
    hidden = result.layers[:-1]
    return sum(h.units_before for h in hidden), sum(h.units_after for h in hidden)


@pytest.mark.parametrize(
    ("letter", "method"), [("a", "prune"), ("b", "prune"), ("a", "factor"), ("c", "factor")]
)
def test_shrink_finds_the_half_that_is_free(made, letter, method):
    result = _shrunk(made, letter, method)
    before, after = _units(result)
    assert after <= before / 2
    assert result.certified
    assert result.agreement.upper_bound <= 0.05
    assert all(c["changed"] == 0 for c in result.candidates if c["removed"] <= before / 2)


@pytest.mark.parametrize(("letter", "method"), [("b", "factor"), ("c", "prune")])
def test_shrink_removes_next_to_nothing_the_wrong_way(made, letter, method):
    try:
        before, after = _units(_shrunk(made, letter, method))
    except ToleranceError:
        return
    # What N itself can do without may go in W as well, but none of what doubling added.
    assert before - after <= before / 5


@pytest.mark.parametrize("name", ["depth 1", "depth 2", "conv"])
def test_prune_refuses_what_factor_halves_exactly(name):
    made = _made(name)
    with pytest.raises(ToleranceError, match="no thinner network could be certified"):
        _shrunk(made, "c", "prune")
    context = _context(made.c, made.data)
    halves = {g.name: torch.arange(g.size // 2) for g in context.structure.groups}
    assert _compare(made, Factor().make(context, halves))[0] < 1e-8
    # Folding is what does it: the same units, excised by `prune`, leave another network.
    assert _compare(made, METHODS["prune"].make(context, halves))[0] > 1
