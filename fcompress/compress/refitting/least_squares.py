"""Fold what removed units did into the weights of those that stay: pure least squares.

Tensors in, tensors out; no networks here. All sums and solves are in float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

RIDGES = (1e-6, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
HELD_OUT = 0.2
ROUNDS = 3  # of solutions that a ReLU leaves more freedom; more were measured to add nothing


@dataclass(frozen=True)
class Fit:
    """An affine map fitted to rows, or one for each of several sets of rows ([sets] in front).

    Attributes:
        weight: float64 [out, in].
        bias: float64 [out]: what has to be added so that the means agree.
        ridge: float64, of no dimension: the chosen ridge, relative to the mean variance of an
            input; infinite where the prior was best left as it was.
    """

    weight: Tensor
    bias: Tensor
    ridge: Tensor


@dataclass(frozen=True)
class Rectifier:
    """Where the outputs of a layer do not matter, because a ReLU follows.

    Attributes:
        off: bool [rows, out], or [sets, rows, out]: where the wanted output is switched off.
        bound: Of the same shape, or with one row: where the fitted output would be switched off.
        above: bool, with one row: whether that is above the bound (behind a negative scale), not
            below.
    """

    off: Tensor
    bound: Tensor
    above: Tensor

    def sets(self, count: int) -> Rectifier:
        """The outputs dealt out to so many sets, in order: [rows, out] to [sets, rows, out]."""
        return Rectifier(*(in_sets(t, count) for t in (self.off, self.bound, self.above)))

    def spare(self, fitted: Tensor, wanted: Tensor) -> Tensor:
        """What to ask for: nothing more where both are switched off."""
        inside = torch.where(
            self.above, torch.maximum(fitted, self.bound), torch.minimum(fitted, self.bound)
        )
        return torch.where(self.off, inside, wanted)


def in_sets(rows: Tensor, count: int) -> Tensor:
    """Columns dealt out to so many sets, in order: [rows, columns, ...] to [sets, rows, ...]."""
    return rows.unflatten(1, (count, -1)).transpose(0, 1)


def fit(
    inputs: Tensor,
    targets: Tensor,
    prior: Tensor,
    *,
    centred: bool = True,
    rectifier: Rectifier | None = None,
) -> Fit:
    """Ridge regression towards a prior, the ridge chosen on held-out rows.

    Minimises ||targets - inputs W^T - b||^2 + ridge ||W - prior||^2. The last fifth of the rows
    (other examples than the rest, if rows are ordered by example) decides how far to trust the
    data; the final solution uses all rows. Where a ReLU follows, a few more solutions ask only for
    what it lets through (asymmetric reconstruction as in Zhang et al. 2015, "Accelerating Very Deep
    Convolutional Networks for Classification and Detection", here by majorisation: each solution
    makes the error after the ReLU no larger, up to the ridge).

    Several sets of rows, as the channels of a depthwise convolution have, are solved side by side,
    each with a ridge of its own; all shapes then begin with their number.

    Args:
        inputs: [rows, in].
        targets: [rows, out].
        prior: [out, in]: what the weights are pulled towards.
        centred: Whether a bias is fitted.
        rectifier: Where the targets do not matter.

    Returns:
        Weights, bias and the ridge that was chosen.
    """
    x, z, w0 = inputs, targets, prior.double()
    mean_x, mean_z = (
        t.mean(-2, keepdim=True, dtype=torch.float64)
        if centred
        else t.new_zeros(*t.shape[:-2], 1, t.shape[-1]).double()
        for t in (x, z)
    )
    x, z = x - mean_x.to(x.dtype), z - mean_z.to(z.dtype)
    cut = x.shape[-2] - round(HELD_OUT * x.shape[-2])
    fitted = _Sums.of(x[..., :cut, :], z[..., :cut, :])
    held = _Sums.of(x[..., cut:, :], z[..., cut:, :])
    usable = (fitted.scale > 0) & fitted.finite & held.finite
    if not bool(usable.all()):
        fitted, held = fitted.only(usable, w0), held.only(usable, w0)
    floor = torch.finfo(x.dtype).eps * x.shape[-1]
    best, ridge = held.error(w0), torch.full_like(fitted.scale, torch.inf)
    for candidate in (floor, *(r for r in RIDGES if r > floor)):
        error = held.error(_solve(fitted, w0, candidate * fitted.scale))
        ridge = torch.where((error < best) & usable, candidate, ridge)
        best = torch.minimum(error, best)
    w, trusted = w0, ridge.isfinite()
    if bool(trusted.any()):
        both = _Sums(fitted.gram + held.gram, fitted.cross + held.cross)
        loading = torch.where(trusted, ridge, 1.0) * both.scale
        every = trusted[..., None, None]
        w = torch.where(every, _solve(both, w0, loading), w0)
        for _ in range(ROUNDS if rectifier is not None else 0):
            assert rectifier is not None
            wanted = rectifier.spare(x @ w.mT.to(x.dtype) + mean_z.to(x.dtype), targets)
            if centred:
                moved = wanted.mean(-2, keepdim=True, dtype=torch.float64)
                mean_z = torch.where(every, moved, mean_z)
            both = _Sums(both.gram, _product(wanted - mean_z.to(x.dtype), x))
            w = torch.where(every, _solve(both, w0, loading), w0)
    return Fit(w, (mean_z - mean_x @ w.mT).squeeze(-2), ridge)


@dataclass(frozen=True)
class _Sums:
    """What a solution needs of its rows: float64 [..., in, in] and [..., out, in]."""

    gram: Tensor
    cross: Tensor

    @classmethod
    def of(cls, x: Tensor, z: Tensor) -> _Sums:
        return cls(_product(x, x), _product(z, x))

    @property
    def scale(self) -> Tensor:
        """Sum of squares of an input, on average."""
        return self.gram.diagonal(dim1=-2, dim2=-1).mean(-1)

    @property
    def finite(self) -> Tensor:
        """Whether all sums of a set are finite."""
        return self.gram.isfinite().all(-1).all(-1) & self.cross.isfinite().all(-1).all(-1)

    def only(self, usable: Tensor, prior: Tensor) -> _Sums:
        """The same with sets that can be solved and have the prior as solution for the others."""
        every = usable[..., None, None]
        identity = torch.eye(self.gram.shape[-1], dtype=torch.float64, device=prior.device)
        return _Sums(torch.where(every, self.gram, identity), torch.where(every, self.cross, prior))

    def error(self, w: Tensor) -> Tensor:
        """Squared error over rows, up to the constant sum of squared targets."""
        return ((w @ self.gram) * w).sum((-2, -1)) - 2 * (w * self.cross).sum((-2, -1))


def _product(a: Tensor, b: Tensor) -> Tensor:
    return (a.mT @ b).double()


def _solve(sums: _Sums, prior: Tensor, ridge: Tensor) -> Tensor:
    """Prior + (cross - prior gram) (gram + ridge I)^-1, growing each ridge until it factors."""
    while True:
        loaded = sums.gram.clone()
        loaded.diagonal(dim1=-2, dim2=-1).add_(ridge[..., None])
        factor, info = torch.linalg.cholesky_ex(loaded)
        if not bool(info.any()):
            left = sums.cross - prior @ sums.gram
            return prior + torch.cholesky_solve(left.mT, factor).mT
        ridge = torch.where(info > 0, 10 * ridge, ridge)
