"""Take blocks out of a network: their layers, their parameters and their multiply-adds."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from fcompress.errors import CheckpointError
from fcompress.forward.copying import deep_copy
from fcompress.forward.running import tensors_of
from fcompress.models.provenance import hand_on
from fcompress.nn.skipped import Remainder, Skipped
from fcompress.surgery.units import Group, Slot

# What a file says of each layer that is skipped: [returns], or [returns, dim] of a remainder.
Record = dict[str, list[int]]
_MOST_RETURNED = 64


@dataclass(frozen=True)
class Block:
    """The branch of a residual sum, which returns its stream alone once the branch is gone.

    Attributes:
        name: The module that holds its layers, or the largest of them.
        layers: Modules that go, in order, with what each returns (as for `nn.Skipped`).
        end: The last one of them, which leaves a remainder: a scale and a shift per channel.
        channels: Of the remainder.
        dim: The dimension of its output along which they lie.
        like: A tensor of `end` and its dimension whose indices are those channels.
        tensors: Names of the parameters and buffers that go.
    """

    name: str
    layers: Mapping[str, int]
    end: str
    channels: int
    dim: int
    like: tuple[str, int]
    tensors: frozenset[str]

    def holds(self, other: Block) -> bool:
        """Whether another block lies inside of this one."""
        return other.tensors < self.tensors


@dataclass(frozen=True)
class Left:
    """What is left of a block: what it adds is about `scale * x + shift`, per channel."""

    scale: Tensor
    shift: Tensor


def drop(
    network: nn.Module, blocks: Sequence[Block], left: Mapping[str, Left] | None = None
) -> nn.Module:
    """A copy of a network without some blocks, that shares all other tensors with it.

    Args:
        network: The network; left as it is.
        blocks: Its blocks that go.
        left: By the name of a block what is left of it; nothing where it is not named.

    Example:
        >>> layers = {"1.0": 0, "1.2": 0}
        >>> block = Block("1", layers, "1.2", 3, 1, ("1.2.bias", 0), frozenset(("1.0.weight",)))
        >>> inner = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> drop(nn.Sequential(nn.Linear(4, 3), inner), [block])[1]
        Sequential(
          (0): Skipped()
          (1): ReLU()
          (2): Remainder(3, dim=1)
        )
    """
    copied = deep_copy(network, {id(t): t for t in tensors_of(network).values()})
    left = left or {}
    # Of two blocks, one in the other, the outer one has the last word.
    for block in sorted(blocks, key=lambda b: len(b.tensors)):
        tensor = tensors_of(network)[block.like[0]]
        for path, returns in block.layers.items():
            own = [returns, block.dim] if path == block.end else [returns]
            _put(copied, path, own, block.channels)
        remainder = copied.get_submodule(block.end)
        assert isinstance(remainder, Remainder)
        remainder.to(tensor.device, tensor.dtype)
        if block.name in left:
            with torch.no_grad():
                remainder.scale.copy_(left[block.name].scale)
                remainder.shift.copy_(left[block.name].shift)
    hand_on(network, copied)
    return copied


def without(groups: Sequence[Group], blocks: Sequence[Block]) -> tuple[Group, ...]:
    """The groups of a network that some blocks were dropped from.

    Args:
        groups: Its groups with all blocks in place.
        blocks: The blocks.

    Returns:
        Groups that are still written and read, with the remainders in the place of the layers.
    """
    if not blocks:
        return tuple(groups)
    gone = frozenset().union(*(block.tensors for block in blocks))
    paths = [path for block in blocks for path in block.layers]
    found = []
    for group in groups:
        slots = [s for s in group.slots if s.tensor not in gone]
        slots += _of_remainders(group, blocks)
        numbers = tuple(n for n in group.numbers if not _within(n.module, paths))
        thin = replace(group, slots=tuple(slots), numbers=numbers)
        if thin.producers and thin.consumers:
            found.append(thin)
    return tuple(found)


def _of_remainders(group: Group, blocks: Sequence[Block]) -> Iterator[Slot]:
    for block in blocks:
        if any(other.holds(block) for other in blocks):
            continue
        for slot in group.slots:
            if (slot.tensor, slot.dim) == block.like:
                for key in ("scale", "shift"):
                    yield Slot(f"{block.end}.{key}", 0, slot.units, "between")


def _within(path: str, outer: Collection[str]) -> bool:
    return any(path == one or path.startswith(f"{one}.") for one in outer)


def skipped_in(network: nn.Module) -> Record:
    """The layers that are skipped in a network, as a file says it.

    Example:
        >>> skipped_in(nn.Sequential(nn.Linear(2, 2), Skipped(), Remainder(2, 1)))
        {'1': [0], '2': [0, 1]}
    """
    return {
        path: [module.returns, module.dim] if isinstance(module, Remainder) else [module.returns]
        for path, module in network.named_modules()
        if isinstance(module, Skipped)
    }


def skip_again(network: nn.Module, record: Record, state: Mapping[str, Tensor]) -> None:
    """Take the layers that a file says are skipped out of a fresh network, in place.

    Args:
        network: The network, whole.
        record: What `skipped_in` gave.
        state: The tensors of the file; remainders get their sizes from it, not their values.

    Raises:
        CheckpointError: It names a layer that is not there, or something else than layers.
    """
    modules = dict(network.named_modules())
    for path, own in record.items():
        wrong = (
            not path
            or path not in modules
            or not 1 <= len(own) <= 2
            or not all(type(n) is int and 0 <= n < _MOST_RETURNED for n in own)
        )
        if wrong:
            raise CheckpointError(
                f"skipped: {path!r} is {own!r}, which is no layer of the architecture; "
                "the file is damaged"
            )
        scale = state.get(f"{path}.scale")
        _put(network, path, own, 0 if scale is None else scale.numel())


def _put(network: nn.Module, path: str, own: list[int], channels: int) -> None:
    old = network.get_submodule(path)
    first = bool(getattr(old, "batch_first", True))
    new = (
        Remainder(channels, own[1], own[0], batch_first=first)
        if len(own) > 1
        else Skipped(own[0], batch_first=first)
    )
    network.set_submodule(path, new.train(old.training))
