"""The correlations of a layer's units as a small grey picture, whatever the number of units."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

SIDE = 40  # cells on a side; of more units, neighbours share a cell


@dataclass(frozen=True)
class CorrelationPicture:
    """Mean |Pearson r| of the units in each cell of a square.

    Attributes:
        side: Cells on a side.
        units: Units that were compared.
        cells: side * side bytes, row by row: 0 for |r| = 0 and 255 for 1.
    """

    side: int
    units: int
    cells: bytes


def correlation_picture(
    covariance: Tensor, order: Tensor | None = None
) -> CorrelationPicture | None:
    """Draw a correlation matrix with at most `SIDE` cells on a side.

    Args:
        covariance: Symmetric [units, units], any scale.
        order: int64 [units], in which units lie; None for the order of the first principal
            direction of |r|, which brings units that vary together side by side.

    Returns:
        The picture; None for fewer than two units, or of values that are not finite.

    Example:
        >>> picture = correlation_picture(torch.tensor([[1.0, -1.0], [-1.0, 1.0]]))
        >>> picture.side, list(picture.cells)
        (2, [255, 255, 255, 255])
    """
    units = len(covariance)
    if units < 2 or not bool(covariance.isfinite().all()):
        return None
    covariance = covariance.double().cpu()
    deviation = covariance.diagonal().clamp(min=0).sqrt()
    inverse = torch.where(deviation > 0, 1 / deviation, 0.0)
    r = (covariance * inverse * inverse[:, None]).abs().clamp(max=1.0)
    if order is None:
        direction = torch.ones(units, dtype=torch.float64)
        for _ in range(10):  # power iteration: an order for the eye needs no digits
            direction = r @ direction
            direction /= direction.norm().clamp(min=torch.finfo(torch.float64).tiny)
        order = direction.argsort(descending=True, stable=True)
    r = r[order][:, order]
    side = min(units, SIDE)
    cell = torch.arange(units) * side // units
    share = torch.zeros(side, units, dtype=torch.float64)
    share[cell, torch.arange(units)] = 1.0
    share /= share.sum(1, keepdim=True)
    means = share @ r @ share.T
    cells = bytes((255 * means).round().to(torch.uint8).flatten().tolist())
    return CorrelationPicture(side, units, cells)
