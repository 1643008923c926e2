from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fcompress.compress.ranking.allocation import Load, layer_loads, merge
from fcompress.forward import cost
from fcompress.structure.groups import find_groups
from fcompress.surgery.excision import excise


def _chain(widths):
    """Loads of a chain of linear layers with groups g0, g1, ... between them."""
    loads = []
    for index, (before, after) in enumerate(pairwise(widths)):
        inputs = {} if index == 0 else {f"g{index - 1}": 1.0}
        outputs = {} if index == len(widths) - 2 else {f"g{index}": 1.0}
        loads.append(Load(before * after, inputs, outputs))
    return loads


def _orders(*sizes):
    return {f"g{i}": torch.arange(size) for i, size in enumerate(sizes)}


def _removed(removal_order):
    """Which group loses a unit at each step."""
    names = []
    for removed in range(1, len(removal_order.prices) + 1):
        before, after = removal_order.kept(removed - 1), removal_order.kept(removed)
        names += [n for n in before if len(before[n]) != len(after[n])]
    return names


def test_each_group_goes_in_its_own_order_and_keeps_one_unit():
    orders = {"g0": torch.tensor([2, 0, 3, 1]), "g1": torch.tensor([1, 2, 0])}
    costs = {"g0": torch.tensor([4.0, 3.0, 2.0, 1.0]), "g1": torch.tensor([3.0, 2.0, 1.0])}
    removal_order = merge(orders, costs, _chain([10, 4, 3, 2]))
    assert len(removal_order.prices) == 5
    for name, order in orders.items():
        prices = removal_order.groups[name].price
        assert removal_order.groups[name].order.tolist() == order.tolist()
        assert prices[0] == torch.inf
        assert bool((prices.diff() < 0).all())
    last = removal_order.kept(5)
    assert {n: k.tolist() for n, k in last.items()} == {"g0": [2], "g1": [1]}


def test_units_that_cost_nothing_go_before_all_others():
    costs = {"g0": torch.tensor([5.0, 4.0, 0.0, 0.0]), "g1": torch.tensor([9.0, 0.0, 0.0, 0.0])}
    removal_order = merge(_orders(4, 4), costs, _chain([100, 4, 4, 2]))
    names = _removed(removal_order)
    assert sorted(names[:5]) == ["g0", "g0", "g1", "g1", "g1"]
    assert names[5] == "g0"


def test_with_equal_costs_the_unit_that_saves_most_goes_first():
    costs = {name: torch.tensor([3.0, 2.0, 1.0]) for name in ("g0", "g1")}
    # A unit of g0 saves 1000 + 3 multiply-adds, one of g1 only 3 + 2.
    assert _removed(merge(_orders(3, 3), costs, _chain([1000, 3, 3, 2])))[:2] == ["g0", "g0"]
    assert _removed(merge(_orders(3, 3), costs, _chain([2, 3, 3, 1000])))[:2] == ["g1", "g1"]


def test_savings_are_what_excision_really_saves():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(6, 8, 3, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(72, 5),
        nn.ReLU(),
        nn.Linear(5, 4),
    ).double()
    x = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    structure = find_groups(model, x)
    loads = layer_loads(model, structure.groups, x)
    wide = cost.count(model, x)
    assert [load.cost for load in loads] == [layer.macs for layer in wide.layers.values()]
    for group in structure.groups:
        thin = excise(model, structure.groups, {group.name: torch.arange(group.size - 1)})
        saved = wide.macs - cost.count(thin, x).macs
        shares = [
            load.inputs.get(group.name, 0) + load.outputs.get(group.name, 0) for load in loads
        ]
        counted = sum(load.cost * s for load, s in zip(loads, shares, strict=True)) / group.size
        assert counted == pytest.approx(saved)


def test_parameters_and_time_can_be_saved_instead():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5))
    x = torch.randn(4, 3, 8, 8)
    structure = find_groups(model, x)
    first, last = layer_loads(model, structure.groups, x, "params")
    assert (first.cost, last.cost) == (3 * 8 * 9, 8 * 36 * 5)
    assert first.outputs == last.inputs == {structure.groups[0].name: 1.0}
    assert all(load.cost > 0 for load in layer_loads(model, structure.groups, x, "latency"))


def test_several_consumers_and_producers_count_together():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.left = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)
            self.right, self.head = nn.Conv2d(4, 6, 1), nn.Linear(10, 2)

        def forward(self, x):
            x = self.stem(x)
            x = x + self.left(x.relu())
            merged = torch.cat([x, self.right(x.relu())], 1).relu()
            return self.head(merged.mean((2, 3)))

    model = Residual()
    x = torch.randn(2, 3, 5, 5)
    structure = find_groups(model, x)
    stem, left, right, head = layer_loads(model, structure.groups, x)
    stream, branch = (group.name for group in structure.groups)
    assert (stem.inputs, stem.outputs) == ({}, {stream: 1.0})
    assert (left.inputs, left.outputs) == ({stream: 1.0}, {stream: 1.0})
    assert (right.inputs, right.outputs) == ({stream: 1.0}, {branch: 1.0})
    assert (head.inputs, head.outputs) == ({stream: 0.4, branch: 0.6}, {})


def _cost(generator, size):
    """What keeping only the first k units costs: falling to 0, in jumps."""
    steps = torch.rand(size, generator=generator, dtype=torch.float64)
    steps[torch.rand(size, generator=generator) < 0.3] = 0.0
    return steps.flip(0).cumsum(0).flip(0)


@settings(deadline=None, derandomize=True, max_examples=40)
@given(seed=st.integers(0, 10_000), sizes=st.lists(st.integers(1, 7), min_size=1, max_size=4))
def test_the_next_unit_is_always_the_cheapest_for_what_it_saves(seed, sizes):
    generator = torch.Generator().manual_seed(seed)
    loads = _chain([5, *sizes, 3])
    costs = {f"g{i}": _cost(generator, size) for i, size in enumerate(sizes)}
    removal_order = merge(_orders(*sizes), costs, loads)
    assert len(removal_order.prices) == sum(sizes) - len(sizes)
    marginal = {}
    for name, cost_of in costs.items():
        losses = -np.diff(np.append(cost_of.numpy(), 0.0))
        # Losing a unit costs at least what those that go before it do.
        marginal[name] = np.array([losses[k:].max() for k in range(len(losses))])
    for removed, name in enumerate(_removed(removal_order)):
        kept = {n: len(k) for n, k in removal_order.kept(removed).items()}
        widths = [5, *kept.values(), 3]
        ratios = {}
        for index, group in enumerate(costs):
            if kept[group] > 1:
                saved = widths[index] + widths[index + 2]
                ratios[group] = marginal[group][kept[group] - 1] / saved
        assert ratios[name] <= min(ratios.values()) + 1e-12


@pytest.mark.parametrize("dear", ["g0", "g1"])
def test_units_that_must_not_go_go_last(dear):
    # The effect of a unit whose ablation gives no numbers at all is infinite.
    other = "g1" if dear == "g0" else "g0"
    costs = {
        dear: torch.tensor([torch.inf, torch.inf, torch.inf, 1.0]),
        other: torch.tensor([9.0, 8.0, 7.0, 6.0]),
    }
    names = _removed(merge(_orders(4, 4), costs, _chain([100, 4, 4, 2])))
    assert sorted(names[:4]) == sorted([dear, other, other, other])
    assert names[4:] == [dear, dear]


def test_no_group_gives_a_family_of_one():
    removal_order = merge({}, {}, _chain([4, 2]))
    assert len(removal_order.prices) == 0
    assert removal_order.kept(0) == {}


def test_large_networks_go_in_steps_but_every_unit_goes():
    size = 3000
    costs = {name: torch.arange(size, 0, -1).double() ** 6 for name in ("g0", "g1")}
    removal_order = merge(_orders(size, size), costs, _chain([size] * 4))
    assert len(removal_order.prices) == 2 * size - 2
    assert len(removal_order.prices.unique()) == 2 * size - 2
    half = removal_order.kept(size)
    assert abs(len(half["g0"]) - len(half["g1"])) <= 4
