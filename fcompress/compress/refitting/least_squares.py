"""Fold what removed units did into the weights of those that stay: pure least squares.

Tensors in, tensors out; no networks here. All sums and solves are in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

RIDGES = (1e-6, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
HELD_OUT = 0.2
COLUMNS = 1024  # in double precision at once, where there are more of them than rows
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

    def rows(self, chosen: Tensor) -> Rectifier:
        """Some rows of [sets, rows, out], by a mask or by their numbers."""
        return Rectifier(self.off[:, chosen], self.bound[:, chosen], self.above)

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
    problem = (_ByRows if x.shape[-2] < x.shape[-1] else _ByInputs)(x, z, w0, cut)
    floor = torch.finfo(x.dtype).eps * x.shape[-1]
    best, ridge = problem.error(None), torch.full_like(problem.scale, torch.inf)
    for candidate in (floor, *(r for r in RIDGES if r > floor)):
        error = problem.error(candidate)
        ridge = torch.where((error < best) & problem.usable, candidate, ridge)
        best = torch.minimum(error, best)
    w, trusted = w0, ridge.isfinite()
    if bool(trusted.any()):
        every = trusted[..., None, None]
        solution = problem.solver(torch.where(trusted, ridge, 1.0))
        w = torch.where(every, solution(z), w0)
        for _ in range(ROUNDS if rectifier is not None else 0):
            assert rectifier is not None
            wanted = rectifier.spare(x @ w.mT.to(x.dtype) + mean_z.to(x.dtype), targets)
            if centred:
                moved = wanted.mean(-2, keepdim=True, dtype=torch.float64)
                mean_z = torch.where(every, moved, mean_z)
            w = torch.where(every, solution(wanted - mean_z.to(x.dtype)), w0)
    return Fit(w, (mean_z - mean_x @ w.mT).squeeze(-2), ridge)


class _ByInputs:
    """The solutions for centred rows by the normal equations: [in, in] numbers.

    W0 + (Z^T X - W0 X^T X) (X^T X + ridge)^-1, ridges relative to the mean square of an input.

    Attributes:
        scale: float64 [...]: sum of squares of an input, on average, over the rows to fit.
        usable: bool [...]: whether a set can be solved at all.
    """

    def __init__(self, x: Tensor, z: Tensor, prior: Tensor, cut: int) -> None:
        self._x, self._prior = x, prior
        fitted, held = x[..., :cut, :], x[..., cut:, :]
        grams = [_product(part, part) for part in (fitted, held)]
        crosses = [_product(z[..., :cut, :], fitted), _product(z[..., cut:, :], held)]
        self.scale = _mean_square(grams[0])
        self.usable = (self.scale > 0) & _finite(*grams, *crosses)
        if not bool(self.usable.all()):
            grams = [_or_identity(self.usable, gram) for gram in grams]
            every = self.usable[..., None, None]
            crosses = [torch.where(every, cross, prior) for cross in crosses]
            self.scale = _mean_square(grams[0])
        (self._gram, self._held), (self._cross, self._held_cross) = grams, crosses

    def error(self, ridge: float | None) -> Tensor:
        """Squared error over the held-out rows, up to a constant; None for that of the prior."""
        w = self._prior
        if ridge is not None:
            left = self._cross - w @ self._gram
            w = w + torch.cholesky_solve(left.mT, _factor(self._gram, ridge * self.scale)).mT
        return ((w @ self._held) * w).sum((-2, -1)) - 2 * (w * self._held_cross).sum((-2, -1))

    def solver(self, ridge: Tensor) -> Callable[[Tensor], Tensor]:
        """What gives the solution of all rows for any targets, the matrix factored once."""
        gram = self._gram + self._held
        factor = _factor(gram, ridge * _mean_square(gram))
        known = self._prior @ gram

        def solution(z: Tensor) -> Tensor:
            left = _product(z, self._x) - known
            return self._prior + torch.cholesky_solve(left.mT, factor).mT

        return solution


class _ByRows:
    """The same solutions where rows are fewer than inputs: [rows, rows] numbers.

    W0 + E^T (X X^T + ridge)^-1 X with E = Z - X W0^T, what the prior misses.
    """

    def __init__(self, x: Tensor, z: Tensor, prior: Tensor, cut: int) -> None:
        self._x, self._prior, self._cut = x, prior, cut
        self._guess = (x @ prior.mT.to(x.dtype)).double()
        missed, gram = z.double() - self._guess, _product(x.mT, x.mT)
        self.scale = self._mean_square(gram[..., :cut, :cut])
        self.usable = (self.scale > 0) & _finite(gram, missed)
        if not bool(self.usable.all()):
            gram = _or_identity(self.usable, gram)
            missed = torch.where(self.usable[..., None, None], missed, 0.0)
            self.scale = self._mean_square(gram[..., :cut, :cut])
        self._gram, self._missed = gram, missed

    def _mean_square(self, gram: Tensor) -> Tensor:
        return _mean_square(gram) * (gram.shape[-1] / self._x.shape[-1])

    def error(self, ridge: float | None) -> Tensor:
        cut, left = self._cut, self._missed[..., self._cut :, :]
        if ridge is not None:
            factor = _factor(self._gram[..., :cut, :cut], ridge * self.scale)
            weights = torch.cholesky_solve(self._missed[..., :cut, :], factor)
            left = left - self._gram[..., cut:, :cut] @ weights
        return left.square().sum((-2, -1))

    def solver(self, ridge: Tensor) -> Callable[[Tensor], Tensor]:
        factor = _factor(self._gram, ridge * self._mean_square(self._gram))

        def solution(z: Tensor) -> Tensor:
            missed = torch.where(self.usable[..., None, None], z.double() - self._guess, 0.0)
            weights = torch.cholesky_solve(missed, factor).mT
            parts = self._x.split(COLUMNS, -1)
            return self._prior + torch.cat([weights @ part.double() for part in parts], -1)

        return solution


def _product(a: Tensor, b: Tensor) -> Tensor:
    return (a.mT @ b).double()


def _mean_square(gram: Tensor) -> Tensor:
    return gram.diagonal(dim1=-2, dim2=-1).mean(-1)


def _finite(*sums: Tensor) -> Tensor:
    """Whether all sums of a set are finite."""
    return torch.stack([s.isfinite().all(-1).all(-1) for s in sums]).all(0)


def _or_identity(usable: Tensor, gram: Tensor) -> Tensor:
    """A matrix that can be factored in place of those that cannot."""
    identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    return torch.where(usable[..., None, None], gram, identity)


def _factor(gram: Tensor, ridge: Tensor) -> Tensor:
    """Cholesky factor of gram + ridge, growing each ridge until it factors."""
    while True:
        loaded = gram.clone()
        loaded.diagonal(dim1=-2, dim2=-1).add_(ridge[..., None])
        factor, info = torch.linalg.cholesky_ex(loaded)
        if not bool(info.any()):
            return factor
        ridge = torch.where(info > 0, 10 * ridge, ridge)
