"""Blocks and the units in them compete in one order of removal."""

import torch

from fcompress.compress.ranking.allocation import BlockCost, Load, merge

ORDERS = {"inner": torch.arange(4), "other": torch.arange(4)}


def costs(each):
    """Each unit costs the same."""
    return (each * torch.arange(4, 0, -1)).double()


def loads():
    return [
        Load(400.0, {}, {"inner": 1.0}, "a"),
        Load(400.0, {"inner": 1.0}, {}, "b"),
        Load(400.0, {}, {"other": 1.0}, "c"),
    ]


def block(cost, **more):
    return BlockCost(
        "block x", frozenset("ab"), frozenset(["inner"]), more.get("blocks", frozenset()), cost
    )


def test_a_cheap_block_goes_first_and_takes_its_units_along():
    order = merge(ORDERS, {"inner": costs(1), "other": costs(1)}, loads(), [block(0.5)])
    kept = order.kept(1)
    assert len(kept["block x"]) == len(kept["inner"]) == 0
    assert len(kept["other"]) == 4
    assert len(order.kept(0)["block x"]) == 1
    # Four units and the block went together; the other group still keeps one.
    assert len(order.prices) == 4 + 1 + 3
    assert len(order.kept(len(order.prices))["other"]) == 1


def test_a_dear_block_goes_last():
    order = merge(ORDERS, {"inner": costs(0.1), "other": costs(0.1)}, loads(), [block(1e6)])
    kept = order.kept(5)
    assert len(kept["block x"]) == 1
    kept = order.kept(len(order.prices))
    assert len(kept["block x"]) == len(kept["inner"]) == 0


def test_what_units_cost_already_is_not_lost_once_more():
    # A unit saves 200: the first one costs 2, the next one 6. The block costs 19 and saves 800, or
    # 600 after the first unit: then 17 for 600 is less than 6 for 200, and 19 for 600 would not be.
    units = {"inner": torch.tensor([38.0, 38.0, 8.0, 2.0]).double(), "other": costs(100)}
    order = merge(ORDERS, units, loads(), [block(19.0)])
    assert [len(order.kept(1)[name]) for name in ("block x", "inner")] == [1, 3]
    assert [len(order.kept(2)[name]) for name in ("block x", "inner")] == [0, 0]
    dearer = merge(ORDERS, units, loads(), [block(21.0)])
    assert [len(dearer.kept(2)[name]) for name in ("block x", "inner")] == [1, 2]


def test_blocks_inside_go_along():
    inside = block(0.0, blocks=frozenset(["block y"]))
    order = merge(ORDERS, {"inner": costs(1), "other": costs(1)}, loads(), [inside])
    assert len(order.kept(1)["block y"]) == 0
    assert len(order.kept(0)["block y"]) == 1


def test_rounding_keeps_dropped_blocks_dropped():
    order = merge(ORDERS, {"inner": costs(1), "other": costs(1)}, loads(), [block(0.0)])
    assert len(order.kept(1, 8)["block x"]) == 0
    assert len(order.kept(0, 8)["block x"]) == 1


def test_without_blocks_nothing_changes():
    some = {"inner": costs(2), "other": costs(1)}
    plain, empty = merge(ORDERS, some, loads()), merge(ORDERS, some, loads(), [])
    assert torch.equal(plain.prices, empty.prices)
    assert set(plain.groups) == {"inner", "other"}
