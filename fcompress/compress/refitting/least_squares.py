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
    """An affine map fitted to rows.

    Attributes:
        weight: float64 [out, in].
        bias: float64 [out]: what has to be added so that the means agree.
        ridge: The chosen ridge, relative to the mean variance of an input; infinite where the
            prior was best left as it was.
    """

    weight: Tensor
    bias: Tensor
    ridge: float


@dataclass(frozen=True)
class Rectifier:
    """Where the outputs of a layer do not matter, because a ReLU follows.

    Attributes:
        off: bool [rows, out]: where the wanted output is switched off.
        bound: [rows, out] or [out]: where the fitted output would be switched off.
        above: bool [out]: whether that is above the bound (behind a negative scale), not below.
    """

    off: Tensor
    bound: Tensor
    above: Tensor

    def part(self, outputs: slice) -> Rectifier:
        """The same for some of the outputs."""
        return Rectifier(self.off[:, outputs], self.bound[..., outputs], self.above[outputs])

    def spare(self, fitted: Tensor, wanted: Tensor) -> Tensor:
        """What to ask for: nothing more where both are switched off."""
        inside = torch.where(
            self.above, torch.maximum(fitted, self.bound), torch.minimum(fitted, self.bound)
        )
        return torch.where(self.off, inside, wanted)


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
    mean_x = x.mean(0, dtype=torch.float64) if centred else x.new_zeros(x.shape[1]).double()
    mean_z = z.mean(0, dtype=torch.float64) if centred else z.new_zeros(z.shape[1]).double()
    x, z = x - mean_x.to(x.dtype), z - mean_z.to(z.dtype)
    cut = len(x) - round(HELD_OUT * len(x))
    fit_part = (_product(x[:cut], x[:cut]), _product(z[:cut], x[:cut]))
    held = (_product(x[cut:], x[cut:]), _product(z[cut:], x[cut:]))
    scale = float(fit_part[0].diagonal().mean())
    if not 0 < scale < float("inf"):
        return Fit(w0, mean_z - w0 @ mean_x, float("inf"))
    floor = torch.finfo(x.dtype).eps * x.shape[1]
    best, ridge = _error(w0, *held), float("inf")
    for candidate in (floor, *(r for r in RIDGES if r > floor)):
        error = _error(_solve(*fit_part, w0, candidate * scale), *held)
        if error < best:
            best, ridge = error, candidate
    gram, cross = fit_part[0] + held[0], fit_part[1] + held[1]
    w = w0
    if ridge != float("inf"):
        loading = ridge * float(gram.diagonal().mean())
        w = _solve(gram, cross, w0, loading)
        for _ in range(ROUNDS if rectifier is not None else 0):
            assert rectifier is not None
            wanted = rectifier.spare(x @ w.T.to(x.dtype) + mean_z.to(x.dtype), targets)
            if centred:
                mean_z = wanted.mean(0, dtype=torch.float64)
            w = _solve(gram, _product(wanted - mean_z.to(x.dtype), x), w0, loading)
    return Fit(w, mean_z - w @ mean_x, ridge)


def _product(a: Tensor, b: Tensor) -> Tensor:
    return (a.T @ b).double()


def _solve(gram: Tensor, cross: Tensor, prior: Tensor, ridge: float) -> Tensor:
    """Prior + (cross - prior gram) (gram + ridge I)^-1, growing the ridge until it factors."""
    while True:
        loaded = gram.clone()
        loaded.diagonal().add_(ridge)
        factor, info = torch.linalg.cholesky_ex(loaded)
        if int(info) == 0:
            return prior + torch.cholesky_solve((cross - prior @ gram).T, factor).T
        ridge *= 10


def _error(w: Tensor, gram: Tensor, cross: Tensor) -> float:
    """Squared error over rows, up to the constant sum of squared targets."""
    return float(((w @ gram) * w).sum() - 2 * (w * cross).sum())
