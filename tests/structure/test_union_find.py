"""Disjoint sets against a plain implementation."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fcompress.structure.union_find import UnionFind

IDS = 40
PAIRS = st.lists(st.tuples(st.integers(1, IDS), st.integers(1, IDS)), max_size=30)


def components(batches: list[list[tuple[int, int]]]) -> list[int]:
    """The smallest id of the set of each id, one pair at a time."""
    smallest = list(range(IDS + 1))
    for a, b in (pair for batch in batches for pair in batch):
        old, new = sorted((smallest[a], smallest[b]), reverse=True)
        smallest = [new if i == old else i for i in smallest]
    return smallest


@settings(deadline=None, max_examples=60, derandomize=True)
@given(st.lists(PAIRS, max_size=4))
def test_sets_are_those_of_a_plain_implementation(batches):
    units = UnionFind()
    assert units.fresh(IDS).tolist() == list(range(1, IDS + 1))
    for number, batch in enumerate(batches):
        before = components(batches[:number])
        pairs = torch.tensor(batch, dtype=torch.int64).view(-1, 2)
        news = units.union(pairs[:, 0], pairs[:, 1])
        assert news == (components(batches[: number + 1]) != before)
    assert units.roots(torch.arange(IDS + 1)).tolist() == components(batches)


def test_ids_stay_what_they_are_when_more_come():
    units = UnionFind()
    first = units.fresh(3)
    units.union(first[:1], first[2:])
    many = units.fresh(5000)
    units.union(many[-1:], first[1:2])
    assert units.roots(first).tolist() == [1, 2, 1]
    assert units.roots(many).tolist() == [*range(4, 5003), 2]
    assert units.count == 5004
    assert units.roots(torch.zeros(2, 2, dtype=torch.int64)).tolist() == [[0, 0], [0, 0]]


def test_long_chains_collapse():
    units = UnionFind()
    ids = units.fresh(1000)
    units.union(ids[1:], ids[:-1])
    assert units.roots(ids).unique().tolist() == [1]
