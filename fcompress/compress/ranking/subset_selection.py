"""Which units stay: nested choices for every group, and one number that says how many.

A `GroupOrder` ranks the units of one group so that keeping the first k of them is the method's best
choice for every k. A `RemovalOrder` joins the groups of all groups: a level between 0 (nothing
removed) and 1 (as few as possible) gives the kept units of the whole network, and a higher
level always keeps a subset of what a lower one keeps.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

TIE = 1e-9  # relative difference of two scores that rounding explains
BLOCK = 64  # steps between two updates of the matrices
# Of the largest unexplained variance: below, gains are computed anew. They are quadratic in it.
FADED = 2e-2


def pivoted(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Rank-revealing choice of units by pivoted elimination: all units matter alike.

    Args:
        covariance: Symmetric positive semidefinite [C, C], second moment of the units.

    Returns:
        order int64 [C], and unexplained float64 [C]: the share of the total variance that is
        unexplained when only the units before position k are kept (unexplained[0] is 1).
    """
    order, left = _eliminate([_Reader(covariance, None)])
    return order, left / left[0].clamp(min=torch.finfo(left.dtype).tiny)


def weighted(covariances: Sequence[Tensor], importances: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """The same where each reader of the units says how much which direction matters to it.

    Args:
        covariances: One [C, C] for each reader: covariance of the units as it sees them.
        importances: One [C, C] for each reader, symmetric positive semidefinite: an error e [C] in
            what it reads costs e^T M e.

    Returns:
        order int64 [C], and cost float64 [C]: what all readers together pay when only the units
        before position k are kept and the others are guessed from them linearly.
    """
    return _eliminate([_Reader(k, m) for k, m in zip(covariances, importances, strict=True)])


class _Reader:
    """What one reader of a group still misses, while units are chosen one at a time.

    With K the covariance of what is unexplained, M the importance and H = K M K, a unit u explains
    H[u, u] / K[u, u]. Choosing it takes c c^T from K, where c = K[u] / sqrt(K[u, u]), and with
    t = H[u] / sqrt(K[u, u]) = K M c it takes c t^T + t c^T - (c^T M c) c c^T from H: a column of
    each is all that a step needs. What steps take is subtracted from the matrices for a block of
    steps at once (delayed updates, as in blocked Cholesky factorisations), and rows of units that
    are chosen already are left out then.
    """

    def __init__(self, covariance: Tensor, importance: Tensor | None) -> None:
        self.k = covariance.double().clone()
        self.m = None if importance is None else importance.double()
        size = len(self.k)
        self.eps = torch.finfo(torch.float64).eps * size
        self.own = self.k.diagonal().clone()  # variances
        self.tiny = self.eps * max(float(self.own.max()), 0.0)
        self.columns = self.k.new_zeros(BLOCK, size)
        self.taken = self.k.new_zeros(BLOCK, size)
        self.pending = 0
        through = self.k if self.m is None else self.m @ self.k
        self.h: Tensor
        self.gain: Tensor
        self.noise: Tensor
        self.scale: float
        self.total = float(through.diagonal().sum())
        self.first = (self.k * through).sum(0)  # gains before anything was chosen
        self._weigh(through)

    def scores(self) -> Tensor:
        """What each unit would explain of all that is missing: float64 [free units]."""
        worth = (self.gain - self.noise) / self.own
        return torch.where(self.own > self.tiny, worth, 0.0)

    def missing(self, free: Tensor) -> float:
        """The cost of what is unexplained so far."""
        return float(self.own[free].sum()) if self.m is None else max(self.total, 0.0)

    def choose(self, unit: int) -> None:
        """Take one unit, and what it explains out of all the others."""
        if not self.own[unit] > self.tiny:
            return
        columns, taken = self.columns[: self.pending], self.taken[: self.pending]
        root = self.own[unit].sqrt()
        column = (self.k[unit] - columns[:, unit] @ columns) / root
        through = (self.h[unit] - columns[:, unit] @ taken - taken[:, unit] @ columns) / root
        worth = through[unit] / root
        self.gain = (self.gain - 2 * column * through + worth * column.square()).clamp(min=0)
        self.own = (self.own - column.square()).clamp(min=0)
        self.total -= float(worth)
        self.columns[self.pending] = column
        self.taken[self.pending] = through - worth / 2 * column
        self.pending += 1

    def full(self) -> bool:
        """Whether the matrices have to be brought up to date before the next step."""
        return self.pending == BLOCK or float(self.own.max()) < FADED * self.scale

    def update(self, free: Tensor) -> None:
        """Subtract what the steps so far have taken, and leave out what is not free (bool)."""
        columns, taken = self.columns[: self.pending, free], self.taken[: self.pending, free]
        self.k = self.k[free][:, free].addmm_(columns.T, columns, alpha=-1)
        self.m = None if self.m is None else self.m[free][:, free]
        self.own, self.first = self.own[free], self.first[free]
        if float(self.own.max()) < FADED * self.scale:
            self._weigh(self.k if self.m is None else self.m @ self.k)
        else:
            self.h = self.h[free][:, free].addmm_(columns.T, taken, alpha=-1)
            self.h.addmm_(taken.T, columns, alpha=-1)
            self.gain, self.noise = self.gain[free], self.noise[free]
        self.columns, self.taken = self.columns[:, free], self.taken[:, free]
        self.pending = 0

    def _weigh(self, through: Tensor) -> None:
        """Make H = K M K anew from M K: differences from an earlier one lose its small values."""
        self.h = self.k @ through
        self.gain = self.h.diagonal().clone()
        # Gains are differences, so each carries the rounding of its first value along. Without this
        # reserve a unit that is all but explained could win by rounding divided by almost nothing.
        self.noise = self.eps * (self.first * self.gain).clamp(min=0).sqrt()
        self.scale = float(self.own.max())


def _eliminate(readers: Sequence[_Reader]) -> tuple[Tensor, Tensor]:
    """Choose units greedily for all readers together.

    Units are chosen one at a time. Each is the one that, added to those chosen, explains
    most of what is still unexplained of *all* units (greedy column subset selection, in the
    recursive form of Farahat, Ghodsi and Kamel 2011), not only of itself as in QR with column
    pivoting. A duplicate is worth nothing once its twin is chosen.

    Returns:
        order int64 [C] and float64 [C]: what is missing when only the units before k are kept.
    """
    size = len(readers[0].k)
    units = torch.arange(size)  # those that the readers still hold, in order
    free = torch.ones(size, dtype=torch.bool)  # of these
    order = torch.empty(size, dtype=torch.int64)
    missing = torch.zeros(size, dtype=torch.float64)
    for step in range(size):
        if any(reader.full() for reader in readers):
            for reader in readers:
                reader.update(free)
            units, free = units[free], free[free]
        alive = free & torch.stack([r.own > r.tiny for r in readers]).any(0)
        if not bool(alive.any()):
            # What remains is explained already: constant, dead or redundant units.
            order[step:] = units[free]
            break
        missing[step] = sum(r.missing(free) for r in readers)
        score = torch.stack([r.scores() for r in readers]).sum(0)
        score = torch.where(alive, score, -torch.inf)
        # Multiples of one unit explain the same: the largest of them can be divided by best.
        ties = score >= score.max() - TIE * score.max().abs()
        own = torch.stack([r.own for r in readers]).sum(0)
        best = int(torch.where(ties & alive, own, -1.0).argmax())
        order[step] = units[best]
        free[best] = False
        for reader in readers:
            reader.choose(best)
    return order, missing
