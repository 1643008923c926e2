"""Streaming counts, means and second moments of units; memory never grows with the examples."""

import torch
from torch import Tensor

# Values converted to float64 at a time, so that a batch of large feature maps is not doubled.
CHUNK_VALUES = 2**22


def unit_rows(values: Tensor, axis: int) -> Tensor:
    """Lay out a layer's output with units as columns; positions become rows like examples.

    Args:
        values: [n, ...], the output of a layer for n examples.
        axis: Dimension of the units, the batch not counted.

    Returns:
        [rows, units], where rows is n times the number of positions.
    """
    return values.movedim(axis + 1, -1).reshape(-1, values.shape[axis + 1])


class Moments:
    """Count, mean, scatter and largest magnitude of `size` units over any number of rows.

    Batches are merged by Chan, Golub and LeVeque's update in float64: each batch is centred on
    its own mean before it is squared, so units whose mean is large against their deviation lose
    no digits, and how the rows were cut into batches changes the result by rounding only.

    Args:
        size: Units (columns).
        device: Where rows come from and sums are kept.
    """

    def __init__(self, size: int, device: torch.device | str = "cpu") -> None:
        self.count = 0
        self._mean = torch.zeros(size, dtype=torch.float64, device=device)
        self._scatter = torch.zeros(size, size, dtype=torch.float64, device=device)
        self._largest = torch.zeros(size, dtype=torch.float64, device=device)

    def update(self, rows: Tensor) -> None:
        """Add rows [n, size] of any floating point dtype."""
        if rows.dim() != 2 or rows.shape[1] != len(self._mean):
            raise ValueError(f"rows are {list(rows.shape)}, expected [n, {len(self._mean)}]")
        for chunk in rows.split(max(1, CHUNK_VALUES // rows.shape[1])):
            self._merge(chunk.double())

    def _merge(self, rows: Tensor) -> None:
        added = len(rows)
        if not added:
            return
        total = self.count + added
        mean = rows.mean(0)
        centred = rows - mean
        step = mean - self._mean
        self._scatter.addmm_(centred.T, centred)
        self._scatter.addr_(step, step, alpha=self.count * added / total)
        self._mean.add_(step, alpha=added / total)
        self._largest = torch.maximum(self._largest, rows.abs().amax(0))
        self.count = total

    @property
    def mean(self) -> Tensor:
        """[size], float64."""
        return self._mean.clone()

    @property
    def largest(self) -> Tensor:
        """[size], float64: largest magnitude of each unit; exactly 0 for a dead one."""
        return self._largest.clone()

    def covariance(self) -> Tensor:
        """[size, size], float64: centred second moment, divided by the number of rows."""
        return self._scatter / self._counted()

    def second_moment(self) -> Tensor:
        """[size, size], float64: uncentred second moment E[x x^T]."""
        return self._scatter / self._counted() + torch.outer(self._mean, self._mean)

    def _counted(self) -> int:
        if not self.count:
            raise ValueError("moments of no rows; call update first")
        return self.count
