"""Several inputs as one tensor: what a network takes besides a single tensor, and back.

Everything in this package handles examples as one tensor [n, ...]. A batch of several tensors, by
name or by position, becomes one tensor of bytes [n, bytes], which copies, slices and hashes like
any other and loses nothing; just before the network runs it becomes what it was.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from fcompress.errors import DataError


@dataclass(frozen=True)
class Packing:
    """How the inputs of a network lie in one tensor.

    Attributes:
        names: Keywords of the inputs; None where they go by position.
        shapes: Of one example of each input.
        dtypes: Of each input.
    """

    names: tuple[str, ...] | None
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[torch.dtype, ...]

    @classmethod
    def of(cls, inputs: Mapping[Any, Any]) -> Packing:
        """The packing of a batch: tensors by keyword, or by position, numbered from 0.

        Raises:
            DataError: Something in it is no tensor, or they hold different numbers of examples.
        """
        tensors = list(inputs.values())
        for name, tensor in inputs.items():
            if not isinstance(tensor, Tensor) or not tensor.dim():
                raise DataError(
                    f"input {name!r} of a batch is a {type(tensor).__name__}; expected a tensor "
                    "[examples, ...]; leave out what the network does not need"
                )
        if len({len(t) for t in tensors}) != 1:
            sizes = ", ".join(str(len(t)) for t in tensors) or "none"
            raise DataError(f"a batch whose inputs hold {sizes} examples; expected the same number")
        return cls(
            names=None if 0 in inputs else tuple(map(str, inputs)),
            shapes=tuple(tuple(t.shape[1:]) for t in tensors),
            dtypes=tuple(t.dtype for t in tensors),
        )

    def __str__(self) -> str:
        names = self.names or tuple(str(number) for number in range(len(self.shapes)))
        return ", ".join(
            f"{name} {list(shape)} {str(dtype).removeprefix('torch.')}"
            for name, shape, dtype in zip(names, self.shapes, self.dtypes, strict=True)
        )

    @property
    def _sizes(self) -> list[int]:
        """Bytes of one example of each input."""
        return [prod(s) * d.itemsize for s, d in zip(self.shapes, self.dtypes, strict=True)]

    def pack(self, inputs: Mapping[Any, Any]) -> Tensor:
        """A batch as bytes: uint8 [n, bytes].

        Raises:
            DataError: It is made otherwise than this packing, or a value is not finite.
        """
        found = Packing.of(inputs)
        if found != self:
            raise DataError(f"examples of different shapes: {self} and {found}; expected one shape")
        tensors = list(inputs.values())
        if any(t.is_floating_point() and not bool(t.isfinite().all()) for t in tensors):
            raise DataError(f"values that are not finite in a batch of {self}; repair the data")
        rows = [t.detach().reshape(len(t), -1).contiguous().view(torch.uint8) for t in tensors]
        return torch.cat(rows, 1)

    def unpack(
        self, packed: Tensor, dtype: torch.dtype | None
    ) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
        """Positional and keyword inputs of the network.

        Args:
            packed: uint8 [n, bytes].
            dtype: For floating point inputs; None for their own.
        """
        tensors = []
        rows = packed.split(self._sizes, 1)
        for part, shape, own in zip(rows, self.shapes, self.dtypes, strict=True):
            # A copy: bytes of another type must begin where such a type may.
            values = part.clone(memory_format=torch.contiguous_format).view(own)
            values = values.view(len(packed), *shape)
            if own.is_floating_point and dtype is not None:
                values = values.to(dtype)
            tensors.append(values)
        if self.names is None:
            return tuple(tensors), {}
        return (), dict(zip(self.names, tensors, strict=True))
