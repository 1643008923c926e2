"""Which operators of a forward matter to where its units stand.

A network may compute on the way what it does not return: a loss, statistics for a log. What such
operators do to units is nobody's business, unless a layer reads it: that layer has to run at
other widths too, even if nobody asks for its outputs.
"""

from __future__ import annotations

import weakref
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fcompress.forward.outputs import output_tensors
from fcompress.forward.running import tensors_of
from fcompress.surgery.preparation import Call


class Executed(NamedTuple):
    """One operator of a forward.

    Attributes:
        func: The operator.
        live: Whether an output, or an operator that has parameters, depends on it.
    """

    func: Any
    live: bool


def executed(model: nn.Module, inputs: tuple[Any, ...], call: Call) -> list[Executed]:
    """Run a network and say of each of its operators whether anything that counts depends on it.

    Tensors that share memory count as one, whose value is that of all that was written into it.

    Args:
        model: The network, on the device of its inputs; run within `running.quiet_tracing`.
        inputs: What it takes.
        call: Runs it.

    Example:
        >>> import torch
        >>> def also_measures(module, x):
        ...     hidden = module(x)
        ...     hidden.square().mean()
        ...     return hidden
        >>> with torch.no_grad():
        ...     steps = executed(nn.Linear(2, 3), (torch.ones(1, 2),), also_measures)
        >>> [(step.func.overloadpacket.__name__, step.live) for step in steps]
        [('t', True), ('addmm', True), ('pow', False), ('mean', False)]
    """
    watch = _Memories()
    with watch:
        outputs = call(model, *inputs)
    needed = {watch.memory(tensor) for tensor in output_tensors(outputs).values()}
    parameters = {watch.memory(tensor) for tensor in tensors_of(model).values()}
    for _, read, written in watch.steps:
        if read and read <= parameters:
            parameters |= written  # a function of parameters alone
    found = []
    for func, read, written in reversed(watch.steps):
        live = bool(written & needed or read & parameters)
        if live:
            needed |= read
        found.append(Executed(func, live))
    return found[::-1]


class _Memories(TorchDispatchMode):
    """Notes which memories every operator reads and writes."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[tuple[Any, set[int], set[int]]] = []
        self._known: dict[int, tuple[weakref.ref[Tensor], int]] = {}
        self._count = 0

    def memory(self, tensor: Tensor, beside: tuple[Tensor, ...] = ()) -> int:
        """Number of a tensor's memory; that of a tensor in `beside` if they share it."""
        entry = self._known.get(id(tensor))
        if entry is not None and entry[0]() is tensor:
            return entry[1]
        for other in beside:
            if other.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr():
                number = self.memory(other)
                break
        else:
            self._count += 1
            number = self._count
        self._known[id(tensor)] = (weakref.ref(tensor), number)
        return number

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        given = tuple(x for x in tree_leaves((args, kwargs or {})) if isinstance(x, Tensor))
        read = {self.memory(tensor) for tensor in given}
        out = func(*args, **(kwargs or {}))
        made = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
        written = {self.memory(tensor, given) for tensor in made}
        if func._schema.is_mutable:
            written |= read
        self.steps.append((func, read, written))
        return out
