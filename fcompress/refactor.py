"""Fold what removed units did into the weights of those that stay: pure least squares.

Tensors in, tensors out; no networks here. All sums and solves are in float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

RIDGES = (1e-6, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
HELD_OUT = 0.2


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


def fit(inputs: Tensor, targets: Tensor, prior: Tensor, *, centred: bool = True) -> Fit:
    """Ridge regression towards a prior, the ridge chosen on held-out rows.

    Minimises ||targets - inputs W^T - b||^2 + ridge ||W - prior||^2. The last fifth of the rows
    (other examples than the rest, if rows are ordered by example) decides how far to trust the
    data; the final solution uses all rows.

    Args:
        inputs: [rows, in].
        targets: [rows, out].
        prior: [out, in]: what the weights are pulled towards.
        centred: Whether a bias is fitted.

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
        w = _solve(gram, cross, w0, ridge * float(gram.diagonal().mean()))
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
