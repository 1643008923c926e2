"""What a group is: units, and where in a network's tensors each of them stands."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Slot:
    """A dimension of one tensor, and which unit of the group each index belongs to.

    Attributes:
        tensor: Qualified name of a parameter or buffer.
        dim: The dimension that excision cuts.
        units: int64 [size of the dimension]: unit of the group, -1 where it is none of them.
        role: "producer" (rows that write the units), "consumer" (columns that read them) or
            "between" (one value or slice for each unit: biases, norms, scales, buffers).

    Example:
        A flattened map of 2 channels at 3 positions each, read by a linear layer:

        >>> import torch
        >>> columns = Slot("fc.weight", 1, torch.arange(2).repeat_interleave(3), "consumer")
        >>> columns.units
        tensor([0, 0, 0, 1, 1, 1])
    """

    tensor: str
    dim: int
    units: Tensor
    role: str


@dataclass(frozen=True)
class Number:
    """A size that a module keeps as an attribute and that counts the units of a group.

    Attributes:
        module: Qualified name of the module.
        attribute: What it calls the number.
        position: Index where the attribute is a tuple or list; None for a number.
        each: By how much the number falls with each unit that goes.
    """

    module: str
    attribute: str
    position: int | None
    each: int


@dataclass(frozen=True)
class Group:
    """Units that can go one by one, each with everything that belongs to it.

    Attributes:
        name: The first layer that produces the units; "inputs of" a layer where none does.
        size: Number of units.
        slots: Where the units live, in order of execution.
        reason: Why the group is not pruned; None for a group that may be excised.
        zero_through: Whether what lies between producers and consumers maps 0 to 0, so that
            zeroing the producers was also seen to equal zeroing at the consumers.
        numbers: Sizes that excision has to change, found by trial, beyond those that torch's
            modules and modules with heads are known to keep.
    """

    name: str
    size: int
    slots: tuple[Slot, ...]
    reason: str | None = None
    zero_through: bool = False
    numbers: tuple[Number, ...] = ()

    @property
    def producers(self) -> tuple[Slot, ...]:
        """Slots whose rows write the units."""
        return tuple(s for s in self.slots if s.role == "producer")

    @property
    def consumers(self) -> tuple[Slot, ...]:
        """Slots whose columns read the units."""
        return tuple(s for s in self.slots if s.role == "consumer")
