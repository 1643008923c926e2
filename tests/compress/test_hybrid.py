"""Hybrid: ranking by what labels notice, measured costs, rounding, objectives."""

import math

import pytest
import torch
from cases.planted import ARCHITECTURES, context_of, duplicate, images, misfit, network
from cases.trained import examples, trained
from torch import nn
from torch.nn import functional as F

from fcompress.compress.methods import Hybrid, readings_of
from fcompress.compress.pipeline import shrink
from fcompress.compress.ranking.allocation import GroupOrder, RemovalOrder
from fcompress.compress.ranking.divergence import dense, folded, rescaled, undense
from fcompress.compress.ranking.fisher import SMOOTHING, output_fisher
from fcompress.compress.ranking.subset_selection import pivoted, weighted


@pytest.fixture(scope="module")
def wide():
    return trained()


def _spread(size, seed):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(3 * size, size, generator=generator, dtype=torch.float64)
    mix = torch.randn(size, size, generator=generator, dtype=torch.float64)
    rows = rows @ mix
    return rows.T @ rows / len(rows)


def _left(covariances, importances, kept):
    """What readers pay when all units are guessed from the kept ones, by plain algebra."""
    total = 0.0
    for k, m in zip(covariances, importances, strict=True):
        guess = k[:, kept] @ torch.linalg.pinv(k[kept][:, kept]) @ k[kept]
        total += float(((k - guess) * m).sum())
    return total


@pytest.mark.parametrize("readers", [1, 3])
def test_weighted_costs_are_what_the_readers_pay(readers):
    covariances = [_spread(9, seed) for seed in range(readers)]
    importances = [_spread(9, 10 + seed) for seed in range(readers)]
    order, cost = weighted(covariances, importances)
    assert sorted(order.tolist()) == list(range(9))
    for k in range(1, 9):
        assert float(cost[k]) == pytest.approx(
            _left(covariances, importances, order[:k]), rel=1e-6, abs=1e-9 * float(cost[0])
        )
    # Each choice is the best single one.
    for k in range(3):
        best = min(
            _left(covariances, importances, torch.cat([order[:k], torch.tensor([unit])]))
            for unit in order[k:].tolist()
        )
        assert _left(covariances, importances, order[: k + 1]) == pytest.approx(best)


def test_without_importance_all_units_matter_alike():
    covariance = _spread(12, 3)
    order, share = pivoted(covariance)
    other, cost = weighted([covariance], [torch.eye(12, dtype=torch.float64)])
    assert torch.equal(order, other)
    assert torch.allclose(share, cost / cost[0])


def test_units_that_nobody_listens_to_go_first():
    covariance = torch.eye(6, dtype=torch.float64) * 100
    heard = torch.diag(torch.tensor([1.0, 0.0, 5.0, 0.0, 2.0, 3.0], dtype=torch.float64))
    order, cost = weighted([covariance], [heard])
    assert order[:4].tolist() == [2, 5, 4, 0]
    assert cost.tolist() == pytest.approx([1100, 600, 300, 100, 0, 0])


def test_the_fisher_of_logits_is_the_covariance_of_a_label():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3)).eval()
    x = torch.randn(20000, 4)
    found = output_fisher(model, list(x.split(500)), seed=1)["0.weight"]
    p = model(x).detach().double().softmax(1)
    exact = torch.diag(p.mean(0)) - p.T @ p / len(p)
    exact = exact + SMOOTHING * exact.diagonal().mean() * torch.eye(3, dtype=torch.float64)
    assert torch.allclose(found, exact, atol=0.01)
    assert all(p.grad is None for p in model.parameters())


def test_the_fisher_predicts_how_far_probabilities_move(wide):
    """Small shifts of a hidden layer's outputs against e^T G e / 2."""
    x, _ = examples(4000, seed=3)
    layer = next(m for m in wide.modules() if isinstance(m, nn.Linear))
    name = next(n for n, p in wide.named_parameters() if p is layer.weight)
    fisher = output_fisher(wide, list(x.split(500)), seed=0)[name]
    smoothed = SMOOTHING / (1 + SMOOTHING) * fisher.diagonal().mean()
    fisher = fisher - smoothed * torch.eye(len(fisher), dtype=torch.float64)
    generator = torch.Generator().manual_seed(5)
    for _ in range(4):
        shift = 1e-2 * torch.randn(len(fisher), generator=generator)
        with torch.no_grad():
            still = wide(x).double().log_softmax(1)
            handle = layer.register_forward_hook(lambda m, i, out, s=shift: out + s)
            moved = wide(x).double().log_softmax(1)
            handle.remove()
        measured = float(F.kl_div(moved, still, log_target=True, reduction="batchmean"))
        predicted = float(shift.double() @ fisher @ shift.double()) / 2
        assert 0.5 < measured / predicted < 2


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_hybrid_removes_copies_first_and_loses_nothing(name):
    model, x = network(name, 0), images(192, 100)
    kept = duplicate(model, x, 0, 0.5)
    context = context_of(model, x)
    copies = sum(g.size - len(kept[g.name]) for g in context.structure.groups)
    thin = Hybrid().make(context, Hybrid().removal_order(context).kept(copies))
    assert misfit(thin, context.original.network, images(200, 7)) < 1e-7


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_folding_copies_into_their_twins_changes_nothing(name):
    model, x = network(name, 0), images(192, 100)
    kept = duplicate(model, x, 0, 0.5)
    context = context_of(model, x)
    tensors = {name: tensor.detach() for name, tensor in context.original.tensors().items()}
    fresh = images(50, 7)
    with torch.no_grad():
        expected = context.original.network(fresh)
        for group in context.structure.groups:
            changed = dict(tensors)
            for reading in readings_of(context, group):
                changed |= folded(reading, kept[group.name], changed)
            outputs = torch.func.functional_call(context.original.network, changed, (fresh,))
            # The fold carries a small ridge.
            assert float((outputs - expected).norm() / expected.norm()) < 2e-2
            bare = {n: t.clone() for n, t in tensors.items()}
            for slot in group.consumers:
                gone = torch.ones(group.size, dtype=torch.bool)
                gone[kept[group.name]] = False
                columns = (gone[slot.units.clamp(min=0)] & (slot.units >= 0)).nonzero().flatten()
                bare[slot.tensor].index_fill_(slot.dim, columns, 0.0)
            zeroed = torch.func.functional_call(context.original.network, bare, (fresh,))
            assert float((zeroed - expected).norm()) > 5 * float((outputs - expected).norm())


def test_dense_weights_of_grouped_convolutions_and_back():
    layer = nn.Conv2d(6, 4, 3, groups=2, bias=False)
    convolution = ([1, 1], [0, 0], [1, 1], 2)
    whole = dense(convolution, False, layer.weight.detach())
    assert whole.shape == (4, 6, 9)
    assert bool((whole[:2, 3:] == 0).all()) and bool((whole[2:, :3] == 0).all())
    x = torch.randn(5, 6, 3, 3)
    out = torch.einsum("nit,oit->no", x.flatten(2).double(), whole)
    assert torch.allclose(out, layer(x).flatten(1).double(), atol=1e-5)
    assert torch.equal(undense(convolution, False, whole, layer.weight), layer.weight)
    linear = torch.randn(3, 5)
    assert torch.equal(undense(None, True, dense(None, True, linear), linear), linear)


def test_curves_go_through_the_measured_points():
    predicted = torch.tensor([8.0, 4.0, 2.0, 1.0, 0.5, 0.25], dtype=torch.float64)
    found = rescaled(predicted, {1: 40.0, 4: 0.05})
    assert float(found[1]) == pytest.approx(40) and float(found[4]) == pytest.approx(0.05)
    assert float(found[0]) == pytest.approx(80) and float(found[5]) == pytest.approx(0.025)
    assert 0.05 < float(found[2]) < 40
    # Rounding in what costs nothing does not blow up its neighbours.
    nothing = rescaled(torch.tensor([1.0, 0.5, 1e-17, 0.0]).double(), {1: 0.5, 2: 1e-8})
    assert float(nothing[2]) < 1e-9 and float(nothing[1]) == pytest.approx(0.5)
    broken = rescaled(predicted, {1: math.inf, 2: 1.0})
    assert bool(broken.isfinite().all())


def test_families_round_up_to_multiples():
    path = GroupOrder(
        torch.arange(10), torch.tensor([math.inf, *range(9, 0, -1)], dtype=torch.float64)
    )
    removal_order = RemovalOrder.of({"a": path})
    assert [len(removal_order.kept(r)["a"]) for r in (0, 1, 5, 9)] == [10, 9, 5, 1]
    assert [len(removal_order.kept(r, 4)["a"]) for r in (0, 1, 5, 9)] == [10, 10, 8, 4]


def test_counts_are_multiples_where_asked(wide):
    x, y = examples()
    result = shrink(wide, [(x, y)], tol=0.1, round_to=4)
    assert result.round_to == 4 and result.certified
    hidden = [layer for layer in result.layers if layer.units_after < layer.units_before]
    assert hidden and all(layer.units_after % 4 == 0 for layer in hidden)
    auto = shrink(wide, [(x, y)], tol=0.1, round_to="auto")
    assert auto.round_to in (1, 2, 4, 8, 16) and auto.certified


@pytest.mark.parametrize("objective", ["params", "latency"])
def test_objectives(wide, objective):
    x, y = examples()
    result = shrink(wide, [(x, y)], tol=0.1, objective=objective)
    assert result.certified and result.objective == objective
    assert result.params["after"] < result.params["before"]


@pytest.mark.slow
def test_polished_networks_are_thinner_and_certified(wide):
    x, y = examples()
    plain = shrink(wide, [(x, y)], tol=0.05)
    result = shrink(wide, [(x, y)], tol=0.05, distill=True)
    assert result.certified and plain.distill is None
    assert result.macs["after"] <= plain.macs["after"]
    assert any(c["polished"] for c in result.candidates)
    sized = shrink(wide, [(x, y)], ratio=0.3, distill=True)
    assert sized.distill is not None and sized.distill["steps"] > 0


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        ({"objective": "beauty"}, "objective"),
        ({"round_to": 0}, "round_to"),
        ({"round_to": "four"}, "round_to"),
        ({"distill_seconds": 0}, "distill_seconds"),
        ({"distill_effort": 0}, r"distill_effort=0: .* leave distill out"),
        ({"distill_effort": math.nan}, "distill_effort"),
        ({"distill_data": [1]}, "distill_data has no effect"),
        ({"distill_seconds": math.inf}, "distill_seconds"),
    ],
)
def test_choices_out_of_range(wide, choice, words):
    x, y = examples()
    with pytest.raises(ValueError, match=words):
        shrink(wide, [(x, y)], **choice)
