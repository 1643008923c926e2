"""Tensors of unit ids: one for each element of an activation, with little memory.

Most activations have the same unit at every example and position, so tensors of ids are kept
expanded: a dimension along which nothing changes has stride 0.

Two ids are no units: `NONE` marks constants and padding, `INPUT` the network's input and what
is computed from it alone. Excision never changes either, so they match everything.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

NONE = 0
INPUT = 1


def nobody(shape: Sequence[int]) -> Tensor:
    """Ids of a constant."""
    return torch.zeros((), dtype=torch.int64).expand(shape)


def is_unit(ids: Tensor) -> Tensor:
    """Where the ids are those of units."""
    return ids > INPUT


def compact(ids: Tensor) -> Tensor:
    """`ids` with every expanded dimension (stride 0) narrowed to size 1."""
    for dim, stride in enumerate(ids.stride()):
        if stride == 0 and ids.shape[dim] > 1:
            ids = ids.narrow(dim, 0, 1)
    return ids


def narrowed(ids: Tensor) -> Tensor:
    """`ids` with every dimension along which they are all the same narrowed to size 1."""
    ids = compact(ids)
    for dim, size in enumerate(ids.shape):
        if size > 1 and bool((ids == ids.narrow(dim, 0, 1)).all()):
            ids = ids.narrow(dim, 0, 1)
    # A copy, so that a small part does not keep the whole in memory.
    return ids.clone()


def compact_pair(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Two tensors of ids broadcast against each other without expanded dimensions."""
    a, b = torch.broadcast_tensors(a, b)
    for dim in range(a.dim()):
        if a.shape[dim] > 1 and a.stride(dim) == 0 and b.stride(dim) == 0:
            a, b = a.narrow(dim, 0, 1), b.narrow(dim, 0, 1)
    return a, b


def representative(ids: Tensor, dims: Sequence[int]) -> Tensor:
    """One id along `dims` (kept with size 1): that of a unit, if there is one."""
    ids = compact(ids)
    dims = [d for d in dims if ids.shape[d] > 1]
    return ids.amax(dims, keepdim=True) if dims and ids.numel() else ids


def units_in(ids: Tensor) -> Tensor:
    """The distinct units in a tensor."""
    found = compact(ids).unique()
    return found[is_unit(found)]
