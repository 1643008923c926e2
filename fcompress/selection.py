"""Which units stay: nested choices for every group, and one number that says how many.

A `Path` ranks the units of one group so that keeping the first k of them is the method's best
choice for every k. A `Family` joins the paths of all groups: a level between 0 (nothing
removed) and 1 (as thin as possible) gives the kept units of the whole network, and a higher
level always keeps a subset of what a lower one keeps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

TIE = 1e-9  # relative difference of two scores that rounding explains


@dataclass(frozen=True)
class Path:
    """Units of one group, those that stay longest first.

    Attributes:
        order: int64 [C], a permutation of the units.
        price: float64 [C], never ascending: when `order[k]` goes, among the units of all groups;
            infinite for a unit that never goes.
    """

    order: Tensor
    price: Tensor


@dataclass(frozen=True)
class Family:
    """Nested networks: every level keeps, in each group, the head of the group's path.

    Attributes:
        paths: A path for each group by name.
        prices: Sorted float64: the prices at which some unit goes.
    """

    paths: Mapping[str, Path]
    prices: Tensor

    @classmethod
    def of(cls, paths: Mapping[str, Path]) -> Family:
        """Join the paths of all groups by price."""
        merged = torch.cat([torch.zeros(0), *(p.price.double() for p in paths.values())])
        return cls(dict(paths), merged[merged.isfinite()].sort().values)

    def kept(self, removed: int) -> dict[str, Tensor]:
        """Kept units of each group, sorted int64, when the first `removed` units are gone."""
        limit = float(self.prices[removed - 1]) if removed else -float("inf")
        return {
            name: path.order[: int((path.price > limit).sum())].sort().values
            for name, path in self.paths.items()
        }


def pivoted(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Rank-revealing choice of units by pivoted elimination.

    Units are chosen one after the other. Each is the one that, added to those chosen, explains
    most of what is still unexplained of *all* units (greedy column subset selection, in the
    recursive form of Farahat, Ghodsi and Kamel 2011), not only of itself as in QR with column
    pivoting. A duplicate is worth nothing once its twin is chosen.

    Args:
        covariance: Symmetric positive semidefinite [C, C], second moment of the units.

    Returns:
        order int64 [C], and unexplained float64 [C]: the share of the total variance that is
        unexplained when only the units before position k are kept (unexplained[0] is 1).
    """
    k = covariance.double()
    size = len(k)
    own = k.diagonal().clone()
    total = float(own.sum())
    tiny = torch.finfo(torch.float64).eps * size * max(float(own.max()), 0.0)
    gain = k.square().sum(0)
    # Gains are down-dated, so each carries the rounding of its first value along. Without this
    # reserve a unit that is all but explained could win by rounding divided by almost nothing.
    noise = torch.finfo(torch.float64).eps * size * gain
    factor = torch.zeros(size, size, dtype=torch.float64)
    free = torch.ones(size, dtype=torch.bool)
    order = torch.empty(size, dtype=torch.int64)
    unexplained = torch.zeros(size, dtype=torch.float64)
    for step in range(size):
        alive = free & (own > tiny)
        if not bool(alive.any()):
            # What remains is explained already: constant, dead or redundant units.
            order[step:] = free.nonzero().flatten()
            break
        unexplained[step] = float(own[free].sum()) / total
        score = torch.where(alive, (gain - noise) / own, -torch.inf)
        # Multiples of one unit explain the same: the largest of them can be divided by best.
        ties = score >= score.max() - TIE * score.max().abs()
        best = int(torch.where(ties, own, -1.0).argmax())
        order[step] = best
        free[best] = False
        # Cholesky column of the chosen unit, and what it takes out of all the others.
        done = factor[:step]
        column = (k[best] - done[:, best] @ done) / own[best].sqrt()
        taken = k @ column - (done @ column) @ done
        gain = (gain - 2 * column * taken + column.square().sum() * column.square()).clamp(min=0)
        own = (own - column.square()).clamp(min=0)
        factor[step] = column
    return order, unexplained
