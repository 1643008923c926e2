import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fcompress.compress.ranking.allocation import GroupOrder, RemovalOrder
from fcompress.compress.ranking.subset_selection import pivoted, weighted


def _rows(seed, rank, units, decades=0.0, rows=200):
    """[rows, units] of the given rank; the units of the first output are independent."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(rows, rank, generator=generator, dtype=torch.float64)
    base *= 10 ** (-decades * torch.rand(rank, generator=generator, dtype=torch.float64))
    mix = torch.randn(rank, units, generator=generator, dtype=torch.float64)
    independent = torch.randperm(units, generator=generator)[:rank]
    mix[:, independent] = torch.eye(rank, dtype=torch.float64)
    return base @ mix, independent


def _moment(rows):
    return rows.T @ rows / len(rows)


def _unexplained(rows, kept):
    """Share of the sum of squares that least squares on the kept columns leaves, by QR."""
    basis, _ = torch.linalg.qr(rows[:, kept] / rows[:, kept].norm(dim=0).clamp(min=1e-300))
    left = rows - basis @ (basis.T @ rows)
    return float((left - basis @ (basis.T @ left)).square().sum() / rows.square().sum())


def test_every_step_takes_the_unit_that_explains_most_of_all_units():
    for seed in range(8):
        rows, _ = _rows(seed, 7, 12)
        rows += 0.1 * _rows(seed + 100, 12, 12)[0]
        order, unexplained = pivoted(_moment(rows))
        assert sorted(order.tolist()) == list(range(12))
        assert unexplained[0] == 1
        for step in range(12):
            head = order[:step].tolist()
            torch.testing.assert_close(
                float(unexplained[step]), _unexplained(rows, head), rtol=1e-9, atol=1e-12
            )
            rest = [unit for unit in range(12) if unit not in head]
            best = min(rest, key=lambda unit: _unexplained(rows, [*head, unit]))
            assert best == order[step]
        assert bool((unexplained.diff() <= 1e-15).all())


def _one_at_a_time(covariances, importances):
    """The same choice as its definition has it: K and what a unit explains, anew in each step."""
    left = [k.clone() for k in covariances]
    free = list(range(len(left[0])))
    order, missing = [], []
    while free:
        missing.append(sum(float((m * k).sum()) for k, m in zip(left, importances, strict=True)))
        worth = sum(
            (k @ m @ k).diagonal() / k.diagonal().clamp(min=1e-300)
            for k, m in zip(left, importances, strict=True)
        )
        best = max(free, key=lambda unit: float(worth[unit]))
        free.remove(best)
        order.append(best)
        left = [k - k[:, best].outer(k[best]) / k[best, best] for k in left]
    return order, torch.tensor(missing, dtype=torch.float64)


@pytest.mark.parametrize("units", [30, 150])
@pytest.mark.parametrize("readers", [1, 2])
@pytest.mark.parametrize("decades", [0, 1])
def test_blocks_of_steps_choose_as_single_steps_do(units, readers, decades):
    """Over several blocks, and over gains that are computed anew as less is left."""
    covariances, importances = [], []
    for seed in range(readers):
        rows, _ = _rows(seed, units, units, decades, rows=3 * units)
        covariances.append(_moment(rows + 0.1 * _rows(seed + 9, units, units, rows=3 * units)[0]))
        importances.append(_moment(_rows(seed + 50, units, units)[0]))
    order, missing = weighted(covariances, importances)
    expected, left = _one_at_a_time(covariances, importances)
    assert order.tolist() == expected
    torch.testing.assert_close(missing, left, rtol=1e-9, atol=1e-12 * float(left[0]))


@settings(deadline=None, derandomize=True, max_examples=60)
@given(
    seed=st.integers(0, 10_000),
    rank=st.integers(1, 8),
    dependent=st.integers(0, 8),
    decades=st.floats(0, 4),
)
def test_exact_rank(seed, rank, dependent, decades):
    rows, _ = _rows(seed, rank, rank + dependent, decades)
    order, unexplained = pivoted(_moment(rows))
    assert _unexplained(rows, order[:rank]) < 1e-20
    assert float(unexplained[rank - 1]) > 0
    assert bool((unexplained[rank:] <= 1e-13).all())


def test_rounding_never_wins_over_a_unit_that_is_needed():
    # Found with gains divided by variances that are nothing but rounding.
    for seed in range(60):
        rows, _ = _rows(seed, 2, 12, decades=4)
        _, unexplained = pivoted(_moment(rows))
        assert bool((unexplained[2:] <= 1e-13).all())


def test_a_duplicate_is_worth_nothing_once_its_twin_is_kept():
    rows, _ = _rows(0, 5, 5)
    doubled = torch.cat([rows, rows.flip(1)], 1)
    order, unexplained = pivoted(_moment(doubled))
    twins = [9 - unit if unit >= 5 else unit for unit in order[:5].tolist()]
    assert sorted(twins) == [0, 1, 2, 3, 4]
    assert float(unexplained[4]) > 1e-3
    assert bool((unexplained[5:] == 0).all())


def test_of_multiples_of_one_unit_the_largest_is_kept():
    rows, _ = _rows(1, 4, 4)
    small = torch.cat([1e-5 * rows, rows, 1e-3 * rows], 1)
    order, _ = pivoted(_moment(small))
    assert sorted(order[:4].tolist()) == [4, 5, 6, 7]


def test_dead_and_constant_units_go_first():
    rows, _ = _rows(2, 6, 6)
    rows[:, [1, 4]] = 0.0
    order, unexplained = pivoted(_moment(rows))
    assert order[4:].tolist() == [1, 4]
    assert bool((unexplained[4:] == 0).all())
    # A covariance of constant units is rounding; there is nothing to explain.
    order, unexplained = pivoted(torch.zeros(3, 3))
    assert sorted(order.tolist()) == [0, 1, 2]
    assert bool((unexplained == 0).all())


def test_scale_and_numbering_do_not_matter():
    rows, _ = _rows(3, 9, 9)
    order, unexplained = pivoted(_moment(rows))
    for scale in (1e-8, 1e8):
        scaled = pivoted(scale * _moment(rows))
        assert scaled[0].tolist() == order.tolist()
        torch.testing.assert_close(scaled[1], unexplained)
    turned = pivoted(_moment(rows.flip(1)))
    assert (8 - turned[0]).tolist() == order.tolist()


def test_single_precision_moments_rank_duplicates_last():
    rows, _ = _rows(4, 8, 8, rows=2000)
    rows = torch.cat([rows, rows], 1).float()
    order, unexplained = pivoted((rows.T @ rows).double())
    assert sorted(unit % 8 for unit in order[:8].tolist()) == list(range(8))
    assert bool((unexplained[8:] < 1e-5).all())


def _removal_order():
    return RemovalOrder.of(
        {
            "a": GroupOrder(torch.tensor([2, 0, 1]), torch.tensor([torch.inf, 4.0, 1.0])),
            "b": GroupOrder(
                torch.tensor([3, 1, 0, 2]), torch.tensor([torch.inf, torch.inf, 3.0, 2.0])
            ),
        }
    )


def test_a_family_removes_one_unit_after_the_other():
    removal_order = _removal_order()
    assert removal_order.prices.tolist() == [1, 2, 3, 4]
    kept = [{n: k.tolist() for n, k in removal_order.kept(i).items()} for i in range(5)]
    assert kept == [
        {"a": [0, 1, 2], "b": [0, 1, 2, 3]},
        {"a": [0, 2], "b": [0, 1, 2, 3]},
        {"a": [0, 2], "b": [0, 1, 3]},
        {"a": [0, 2], "b": [1, 3]},
        {"a": [2], "b": [1, 3]},
    ]


@settings(deadline=None, derandomize=True, max_examples=40)
@given(seed=st.integers(0, 10_000), sizes=st.lists(st.integers(1, 9), min_size=1, max_size=4))
def test_kept_sets_are_nested_and_sorted(seed, sizes):
    generator = torch.Generator().manual_seed(seed)
    total = sum(sizes)
    times = torch.randperm(total, generator=generator).double()
    groups = {}
    for index, price in enumerate(times.split(sizes)):
        price = price.sort(descending=True).values
        price[0] = torch.inf
        groups[str(index)] = GroupOrder(torch.randperm(len(price), generator=generator), price)
    removal_order = RemovalOrder.of(groups)
    assert len(removal_order.prices) == total - len(sizes)
    before = removal_order.kept(0)
    assert [len(k) for k in before.values()] == sizes
    for removed in range(1, len(removal_order.prices) + 1):
        now = removal_order.kept(removed)
        for name, units in now.items():
            assert units.tolist() == sorted(set(units.tolist()))
            assert set(units.tolist()) <= set(before[name].tolist())
        assert sum(map(len, now.values())) == total - removed
        before = now
    assert all(k.tolist() == [int(groups[n].order[0])] for n, k in before.items())
