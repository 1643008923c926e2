"""Costs of groups as far as refitting does not make up for them."""

import pytest
import torch
from cases.planted import context_of, duplicate, images, network

from fcompress.compress.methods import Factor, Hybrid
from fcompress.compress.ranking.compensation import SHARE, compensated_costs


def _orders(context):
    return {g.name: Factor().choose(context, g)[0] for g in context.structure.groups}


def _scaled(context, orders, costs, inputs):
    groups, targets = context.structure.groups, context.targets
    return compensated_costs(
        context.original, groups, orders, costs, targets, context.batches, inputs
    )


@pytest.mark.parametrize("name", ["residual, norm", "depthwise and grouped", "concatenation"])
def test_a_cost_becomes_what_the_refitted_network_diverges_by(name):
    model, fresh = network(name, 0), images(64, 3)
    context = context_of(model, images(192, 100))
    before = {n: t.clone() for n, t in model.state_dict().items()}
    orders = _orders(context)
    costs = {n: 100.0 * torch.linspace(1, 0.1, len(o)).double() for n, o in orders.items()}
    found = _scaled(context, orders, costs, fresh)
    wide = model(fresh.clone()).log_softmax(1)
    for group in context.structure.groups:
        size = round(SHARE * group.size)
        kept = {group.name: orders[group.name][:size].sort().values}
        thin = Factor().make(context, kept)(fresh.clone()).log_softmax(1)
        diverges = float((wide.exp() * (wide - thin)).sum(1).mean())
        factor = min(max(diverges / float(costs[group.name][size]), 0.01), 1.0)
        torch.testing.assert_close(found[group.name], factor * costs[group.name])
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


def test_costs_that_are_nothing_or_no_numbers_stay():
    context = context_of(network("plain, norm", 0), images(128, 100))
    orders = _orders(context)
    for value in (0.0, torch.inf):
        costs = {n: torch.full((len(o),), value).double() for n, o in orders.items()}
        found = _scaled(context, orders, costs, images(64, 3))
        assert all(torch.equal(found[n], costs[n]) for n in costs)


def test_copies_still_go_first_and_few_examples_are_enough():
    model, x = network("residual, norm", 0), images(640, 100)
    kept = duplicate(model, x, 0, 0.5)
    for count in (640, 64):  # of 64 examples none are left to refit on
        context = context_of(model, x[:count])
        order = Hybrid().removal_order(context)
        copies = sum(g.size - len(kept[g.name]) for g in context.structure.groups)
        left = order.kept(copies)
        assert {n: len(k) for n, k in left.items()} == {n: len(k) for n, k in kept.items()}
