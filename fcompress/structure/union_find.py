"""Disjoint sets of integer ids, merged in bulk."""

import torch
from torch import Tensor


class UnionFind:
    """Sets of ids 0, 1, 2, ...

    Parents are kept flat: every id points straight at the smallest id of its set.

    Args:
        count: Ids to begin with, each its own set.

    Attributes:
        count: Number of ids so far.
    """

    def __init__(self, count: int = 1) -> None:
        self._parent = torch.arange(max(count, 1024))
        self.count = count

    def fresh(self, count: int) -> Tensor:
        """`count` new ids, each its own set: int64 [count]."""
        start, self.count = self.count, self.count + count
        if self.count > len(self._parent):
            grown = torch.zeros(2 * self.count, dtype=torch.int64)
            grown[:start] = self._parent[:start]
            self._parent = grown
        new = torch.arange(start, self.count)
        self._parent[start : self.count] = new
        return new

    def roots(self, ids: Tensor) -> Tensor:
        """The set of each id, named by its smallest member; same shape as `ids`."""
        return self._parent[ids]

    def union(self, a: Tensor, b: Tensor) -> bool:
        """Merge the sets of `a[i]` and `b[i]` for every i.

        Args:
            a: int64, any shape.
            b: int64, the same shape.

        Returns:
            Whether any sets were merged.
        """
        a, b = a.flatten(), b.flatten()
        merged = False
        while True:
            a, b = self._parent[a], self._parent[b]
            differs = a != b
            if not differs.any():
                return merged
            merged = True
            a, b = a[differs], b[differs]
            # A root may be asked to join several sets: it takes the smallest, and the pairs that
            # lost come again in the next round.
            self._parent.scatter_reduce_(0, torch.maximum(a, b), torch.minimum(a, b), "amin")
            self._flatten()

    def _flatten(self) -> None:
        parent = self._parent[: self.count]
        while True:
            shorter = parent[parent]
            if torch.equal(shorter, parent):
                break
            parent = shorter
        self._parent[: self.count] = parent
