"""Disjoint sets of integer labels, merged in bulk."""

import torch
from torch import Tensor


class UnionFind:
    """Sets of labels 0, 1, 2, ...; label 0 stays alone.

    Parents are kept flat: every label points straight at the smallest label of its set.
    """

    def __init__(self) -> None:
        self._parent = torch.zeros(1024, dtype=torch.int64)
        self._count = 1

    def fresh(self, count: int) -> Tensor:
        """`count` new labels, each its own set: int64 [count]."""
        start, self._count = self._count, self._count + count
        if self._count > len(self._parent):
            grown = torch.arange(2 * self._count)
            grown[:start] = self._parent[:start]
            self._parent = grown
        new = torch.arange(start, self._count)
        self._parent[new] = new
        return new.clone()

    def roots(self, labels: Tensor) -> Tensor:
        """The set of each label, named by its smallest member; same shape as `labels`."""
        return self._parent[labels]

    def union(self, a: Tensor, b: Tensor) -> None:
        """Merge the sets of `a[i]` and `b[i]` for every i."""
        pairs = torch.stack([a.flatten(), b.flatten()]).unique(dim=1)
        while True:
            roots = self._parent[pairs]
            low, high = roots.amin(0), roots.amax(0)
            differs = low != high
            if not differs.any():
                return
            low, high = low[differs], high[differs]
            # A root may be asked to join several sets: it takes the smallest, the rest follow
            # in the next round.
            self._parent.scatter_reduce_(0, high, low, "amin")
            parent = self._parent[: self._count]
            while True:
                shorter = parent[parent]
                if torch.equal(shorter, parent):
                    break
                parent = shorter
            self._parent[: self._count] = parent
