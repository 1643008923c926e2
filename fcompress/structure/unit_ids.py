"""Tensors of labels: one for each element of an activation, with little memory.

Most activations have the same unit at every example and position, so label tensors are kept
expanded: a dimension along which nothing changes has stride 0.

Two labels are no units: `NONE` marks constants and padding, `INPUT` the network's input and what
is computed from it alone. Excision never changes either, so they match everything.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

NONE = 0
INPUT = 1


def nobody(shape: Sequence[int]) -> Tensor:
    """Labels of a constant."""
    return torch.zeros((), dtype=torch.int64).expand(shape)


def is_unit(labels: Tensor) -> Tensor:
    """Where the labels are those of units."""
    return labels > INPUT


def compact(labels: Tensor) -> Tensor:
    """`labels` with every expanded dimension (stride 0) narrowed to size 1."""
    for dim, stride in enumerate(labels.stride()):
        if stride == 0 and labels.shape[dim] > 1:
            labels = labels.narrow(dim, 0, 1)
    return labels


def narrowed(labels: Tensor) -> Tensor:
    """`labels` with every dimension along which they are all the same narrowed to size 1."""
    labels = compact(labels)
    for dim, size in enumerate(labels.shape):
        if size > 1 and bool((labels == labels.narrow(dim, 0, 1)).all()):
            labels = labels.narrow(dim, 0, 1)
    # A copy, so that a small part does not keep the whole in memory.
    return labels.clone()


def compact_pair(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Two label tensors broadcast against each other without expanded dimensions."""
    a, b = torch.broadcast_tensors(a, b)
    for dim in range(a.dim()):
        if a.shape[dim] > 1 and a.stride(dim) == 0 and b.stride(dim) == 0:
            a, b = a.narrow(dim, 0, 1), b.narrow(dim, 0, 1)
    return a, b


def representative(labels: Tensor, dims: Sequence[int]) -> Tensor:
    """One label along `dims` (kept with size 1): that of a unit, if there is one."""
    labels = compact(labels)
    dims = [d for d in dims if labels.shape[d] > 1]
    return labels.amax(dims, keepdim=True) if dims and labels.numel() else labels


def labels_in(labels: Tensor) -> Tensor:
    """The distinct units in a tensor."""
    found = compact(labels).unique()
    return found[is_unit(found)]
