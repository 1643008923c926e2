"""Which parameter is this tensor a view of?

Tensors are recognised by their memory. A copy of a parameter keeps the flat index of each of its
elements; what is computed from parameters keeps their names only. Nothing here knows of units:
those are `tracer.py`'s.
"""

from __future__ import annotations

from collections.abc import Iterable, MutableMapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

# Elements of parameters that are followed one by one through what is computed from them.
_SMALL = 2**18


class Line(NamedTuple):
    """The indices of a parameter that one dimension of a view of it runs through.

    Attributes:
        name: Qualified name of the parameter or buffer.
        dim: Its dimension that the view's dimension runs along.
        at: int64 [size of the view's dimension]: its indices along `dim`.
        wraps: Whether other dimensions of it are run through as well (part of a flattened
            parameter), so that an index may come several times.
    """

    name: str
    dim: int
    at: Tensor
    wraps: bool


class ParameterViews:
    """The parameters and buffers of a network, found again in what an operator is given.

    Copies and results are forgotten as soon as their tensors are.

    Args:
        model: The network. Every tensor has memory of its own (`surgery.plain_copy`).

    Attributes:
        tensors: Parameters and buffers by qualified name.
        touched: Names of those that the network used in a way that is understood.
        readers: Names of those that an operator was given, and the first that was.
        aside: Names of those that cannot be cut, and why.
    """

    def __init__(self, model: nn.Module) -> None:
        self.tensors: dict[str, Tensor] = dict(model.named_parameters())
        self.tensors.update(model.named_buffers())
        self.touched: set[str] = set()
        self.readers: dict[str, str] = {}
        self.aside: dict[str, str] = {}
        self._names = {address(t): name for name, t in self.tensors.items() if t.numel()}
        self._buffers = {address(t) for t in model.buffers() if t.numel()}
        self._copies: MutableMapping[Tensor, tuple[str, Tensor]] = WeakTensorKeyDictionary()
        self._computed: MutableMapping[Tensor, frozenset[str]] = WeakTensorKeyDictionary()

    def owner(self, tensor: Any) -> str | None:
        """The parameter or buffer whose memory `tensor` is a view of."""
        return self._names.get(address(tensor)) if isinstance(tensor, Tensor) else None

    def source(self, tensor: Tensor) -> tuple[str, Tensor] | None:
        """The parameter or buffer that `tensor` is a rearrangement of, with flat indices.

        Returns:
            Its name and int64 in the shape of `tensor`; None for anything else.
        """
        if tensor in self._copies:
            return self._copies[tensor]
        name = self.owner(tensor)
        if name is None or not self.tensors[name].is_contiguous():
            return None
        return name, seen_by(torch.arange(self.tensors[name].numel()), tensor)

    def whole_copy(self, tensor: Tensor) -> Tensor | None:
        """A view of a parameter as it is, or the parameter of which `tensor` is a copy."""
        if tensor not in self._copies:
            return tensor if self.owner(tensor) is not None else None
        name, index = self._copies[tensor]
        whole = self.tensors[name]
        same = index.shape == whole.shape and torch.equal(
            index.flatten(), torch.arange(whole.numel())
        )
        return whole if same else None

    def line(self, tensor: Tensor, dim: int) -> Line | None:
        """Where in its parameter the dimension `dim` of a view runs; None if it is no view."""
        name = self.owner(tensor)
        if name is None:
            return None
        whole = self.tensors[name]
        places = torch.arange(tensor.shape[dim])
        flat = (places * tensor.stride(dim)).add(tensor.storage_offset())
        index = torch.stack(torch.unravel_index(flat, whole.shape))
        moving = [d for d in range(whole.dim()) if bool((index[d] != index[d][0]).any())]
        if not moving:
            same = tensor.shape == whole.shape and tensor.stride() == whole.stride()
            moving = [dim if same else _dim_of_stride(whole, tensor.stride(dim))]
        return Line(name, moving[0], index[moving[0]], len(moving) > 1)

    def is_parameter(self, tensor: Any) -> bool:
        """Whether `tensor` is (a rearrangement or a function of) the network's own tensors."""
        return isinstance(tensor, Tensor) and (
            address(tensor) in self._names or tensor in self._copies or tensor in self._computed
        )

    def is_buffer(self, tensor: Any) -> bool:
        """Whether `tensor` is made of buffers alone: data that the network brings along."""
        if not isinstance(tensor, Tensor):
            return False
        names = self.names_in(tensor)
        return bool(names) and all(address(self.tensors[n]) in self._buffers for n in names)

    def is_small(self, tensor: Tensor) -> bool:
        """Whether `tensor` is a small parameter, or part of one, followed element by element."""
        if tensor.numel() > _SMALL or not self.is_parameter(tensor) or self.is_buffer(tensor):
            return False
        return self.source(tensor) is not None

    def names_in(self, tensor: Tensor) -> frozenset[str]:
        """Parameters and buffers that `tensor` is made of."""
        if tensor in self._computed:
            return self._computed[tensor]
        name = self._copies[tensor][0] if tensor in self._copies else self.owner(tensor)
        return frozenset() if name is None else frozenset([name])

    def copy_of(self, tensor: Tensor, name: str, index: Tensor) -> None:
        """`tensor` holds elements `index` (flat) of parameter `name`."""
        self._copies[tensor] = (name, index)

    def computed_from(self, tensor: Tensor, sources: Iterable[Tensor], operator: str) -> None:
        """`tensor` is a function of parameters alone, which excision cannot follow."""
        names: set[str] = set()
        for source in sources:
            names |= self.names_in(source)
        for name in names:
            self.aside.setdefault(name, f"used through {operator}, which excision cannot follow")
        self._computed[tensor] = frozenset(names)

    def set_aside(self, tensors: Iterable[Any], reason: str) -> None:
        """The parameters in `tensors` cannot be cut, with the reason."""
        for tensor in tensors:
            if isinstance(tensor, Tensor):
                for name in self.names_in(tensor):
                    self.aside[name] = reason


def address(tensor: Tensor) -> int:
    """Where the memory of a tensor begins, the same for all views of it."""
    return tensor.untyped_storage().data_ptr()


def seen_by(flat: Tensor, tensor: Tensor) -> Tensor:
    """The part of what belongs to a whole memory, flat, that `tensor` sees of it."""
    return flat.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


def _dim_of_stride(whole: Tensor, stride: int) -> int:
    """The dimension of a contiguous tensor that a (size-one) view dimension runs along.

    Neighbours of a dimension of size one have its stride too, so size one comes first.
    """
    places = [d for d in range(whole.dim()) if whole.stride(d) == stride]
    return min(places, key=lambda d: whole.shape[d], default=0)
