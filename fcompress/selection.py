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


@dataclass(frozen=True)
class Path:
    """Units of one group, those that stay longest first.

    Attributes:
        order: int64 [C], a permutation of the units.
        price: float64 [C], ascending in the order of removal and so descending here: the level
            of the method's own scale at which `order[k]` goes.
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
        merged = torch.cat([p.price for p in paths.values()]) if paths else torch.zeros(0)
        return cls(dict(paths), merged.double().sort().values)

    def kept(self, level: float) -> dict[str, Tensor]:
        """Kept units of each group, sorted int64.

        Args:
            level: Share of all units (those that can go) that are removed, in [0, 1].
        """
        count = round(level * len(self.prices))
        limit = float(self.prices[count - 1]) if count else -float("inf")
        kept = {}
        for name, path in self.paths.items():
            stays = max(1, int((path.price > limit).sum()))
            kept[name] = path.order[:stays].sort().values
        return kept


def pivoted(covariance: Tensor, output: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Rank-revealing choice of units by pivoted elimination.

    Units are chosen one after the other. Each is the one that, added to those chosen, explains
    most of what is still unexplained of *all* units (greedy column subset selection), not only
    of itself as in QR with column pivoting. Elimination then takes what it explains out of all
    others, so a duplicate is worth nothing once its twin is chosen.

    Args:
        covariance: Symmetric positive semidefinite [C, C], second moment of the units.
        output: Symmetric positive semidefinite [C, C]: how much an error in the units weighs
            (W^T W of their consumers). None weighs the units' own errors, all alike.

    Returns:
        order int64 [C] and unexplained float64 [C]: the share of the total that is unexplained
        when only the units *before* position k are kept (so unexplained[0] is 1).
    """
    residual = covariance.double().clone()
    size = len(residual)
    weigh = output.double() if output is not None else torch.empty(0)
    total = float(residual.trace() if output is None else (weigh * residual).sum())
    tiny = torch.finfo(torch.float64).eps * size * float(residual.diagonal().max().clamp(min=0))
    order = torch.empty(size, dtype=torch.int64)
    unexplained = torch.zeros(size, dtype=torch.float64)
    free = torch.ones(size, dtype=torch.bool)
    left = total
    weighted = residual if output is None else weigh @ residual
    for k in range(size):
        unexplained[k] = max(left, 0.0) / total if total > 0 else 0.0
        own = residual.diagonal()
        alive = free & (own > tiny)
        if not bool(alive.any()):
            # What remains is explained already: constant, dead or redundant units.
            order[k:] = free.nonzero().flatten()
            unexplained[k:] = 0.0
            break
        gain = (residual * weighted).sum(0) / own.clamp(min=tiny)
        gain[~alive] = -1.0
        best = int(gain.argmax())
        order[k] = best
        free[best] = False
        column = residual[:, best] / own[best].sqrt()
        left -= float(gain[best])
        residual.addr_(column, column, alpha=-1)
        if output is not None:
            weighted.addr_(weigh @ column, column, alpha=-1)
    return order, unexplained


def removal_path(order: Tensor, unexplained: Tensor) -> Path:
    """A path priced by what is unexplained once a unit is gone (it and all after it)."""
    return Path(order, unexplained.flip(0).cummax(0).values.flip(0))
