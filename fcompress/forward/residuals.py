"""Residual sums in a recording: what is added to a stream, and which operators do nothing else.

`a + f(a)` returns `a` without the operators of f. They can go if nobody but the sum needs what
they compute. All of that is read off the operators of one forward, whatever modules are called.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch.utils._pytree import tree_leaves, tree_unflatten

from fcompress.forward.graph import Named, Step, Value
from fcompress.forward.recording import Recording

ADDS = ("add", "add_")
NOBODY = -1  # reads what the network returns


@dataclass(frozen=True)
class Residual:
    """A sum of a stream and of what a branch computes from it.

    Attributes:
        step: Index of the sum.
        skip: Slot of the stream.
        branch: Slot of what is added to it.
        last: Index of the step that computes the latter.
        inside: Steps whose results nothing but the sum needs.
        sources: For each of them, the steps whose results it reads.
        reason: Why the branch cannot go; None if it can.
    """

    step: int
    skip: int
    branch: int
    last: int
    inside: frozenset[int]
    sources: Mapping[int, frozenset[int]]
    reason: str | None = None


@dataclass
class _Flow:
    """Values of a forward, one for each time that a slot was written."""

    steps: list[Step]
    reads: list[set[int]] = field(default_factory=list)
    writes: list[set[int]] = field(default_factory=list)
    operands: list[dict[int, int]] = field(default_factory=list)  # slot -> value, at each step
    maker: dict[int, int] = field(default_factory=dict)
    readers: dict[int, set[int]] = field(default_factory=dict)
    current: dict[int, int] = field(default_factory=dict)  # slot -> value, in the end
    views: dict[int, int] = field(default_factory=dict)  # slot -> slot whose memory it shows
    count: int = 0

    def value(self, slot: int) -> int:
        if slot not in self.current:
            self._renew(slot, None)
        return self.current[slot]

    def _renew(self, slot: int, step: int | None) -> None:
        self.count += 1
        self.current[slot] = self.count
        if step is not None:
            self.maker[self.count] = step
            self.writes[step].add(self.count)

    def follow(self) -> None:
        for index, step in enumerate(self.steps):
            slots = {leaf.slot for leaf in step.leaves if isinstance(leaf, Value)}
            seen = {slot: self.value(slot) for slot in slots}
            self.operands.append(seen)
            self.reads.append(set(seen.values()))
            self.writes.append(set())
            for value in seen.values():
                self.readers.setdefault(value, set()).add(index)
            written, shown = _written(step), _shown(step)
            for out in step.outs:
                if out not in written:
                    self._renew(out, index)
                    if shown is not None:
                        self.views[out] = self.views.get(shown, shown)
            memories = {self.views.get(slot, slot) for slot in written}
            for slot in list(self.current):
                # Whatever shows memory that was written into is another value now.
                if self.views.get(slot, slot) in memories:
                    self._renew(slot, index)

    def before(self, value: int) -> set[int]:
        """All values that one was computed from, itself among them."""
        found, left = {value}, [value]
        while left:
            maker = self.maker.get(left.pop())
            new = self.reads[maker] - found if maker is not None else set()
            found |= new
            left += new
        return found

    def stream(self, value: int) -> set[int]:
        """A value, and what was added up or shown differently to make it."""
        found, left = {value}, [value]
        while left:
            maker = self.maker.get(left.pop())
            if maker is None:
                continue
            step = self.steps[maker]
            if step.func.overloadpacket.__name__ in ADDS or _shown(step) is not None:
                new = self.reads[maker] - found
                found |= new
                left += new
        return found


def find_residuals(recording: Recording) -> list[Residual]:
    """The residual sums of a network, in order.

    Args:
        recording: One of its forwards.

    Returns:
        Sums of which one summand was computed from the other, or from what that was added up of.
        Both summands may be of different shapes.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from fcompress.forward.recording import record
        >>> class Block(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.f = nn.Linear(3, 3)
        ...
        ...     def forward(self, x):
        ...         return x + self.f(x)
        >>> (found,) = find_residuals(record(Block().eval(), torch.zeros(2, 3)))
        >>> sorted(found.inside), found.step  # a copy of x, transposed weight and product, sum
        ([1, 2], 3)
    """
    flow = _Flow(recording.steps)
    for slot in recording.inputs:
        flow.value(slot)
    flow.follow()
    for slot in recording.outputs:
        if slot in flow.current:
            flow.readers.setdefault(flow.current[slot], set()).add(NOBODY)
    found = []
    for index, step in enumerate(recording.steps):
        if step.func.overloadpacket.__name__ not in ADDS or "alpha" in step.keywords:
            continue
        both = [step.argument(position) for position in range(2)]
        if not all(isinstance(one, Value) for one in both):
            continue
        for skip, branch in (both, both[::-1]):
            residual = _residual(flow, index, skip.slot, branch.slot)
            if residual is not None:
                found.append(residual)
                break
    return found


def _residual(flow: _Flow, index: int, skip: int, branch: int) -> Residual | None:
    """The sum at a step as stream and branch; None if it is not one of those."""
    stream, added = flow.operands[index][skip], flow.operands[index][branch]
    last = flow.maker.get(added)
    if last is None or stream == added:
        return None
    if not flow.before(added) & flow.stream(stream):
        return None
    others = flow.readers[added] - {index}
    inside = frozenset() if others else frozenset(_inside(flow, index, added))
    reason = None
    if others:
        where = "is an output of the network" if NOBODY in others else "is read elsewhere, too"
        reason = f"what it adds {where}"
    elif not any(isinstance(leaf, Named) for i in inside for leaf in flow.steps[i].leaves):
        return None  # nothing but sums and means: there is nothing to save
    sources = {
        i: frozenset(flow.maker[v] for v in flow.reads[i] if v in flow.maker) & inside
        for i in inside
    }
    return Residual(index, skip, branch, last, inside, sources, reason)


def _inside(flow: _Flow, total: int, added: int) -> Iterator[int]:
    """Steps whose results nobody but the sum needs, last one first."""
    inside: set[int] = set()
    for index in range(total - 1, -1, -1):
        read = {r for value in flow.writes[index] for r in flow.readers.get(value, ())}
        mine = flow.writes[index] == {added} or (
            added in flow.writes[index] and read - {total} <= inside
        )
        if mine or (read and read <= inside):
            inside.add(index)
            yield index


def _written(step: Step) -> set[int]:
    """Slots that a step writes into."""
    return {
        leaf.slot
        for argument, given in _given(step)
        if argument.alias_info is not None and argument.alias_info.is_write
        for leaf in tree_leaves(given)
        if isinstance(leaf, Value)
    }


def _shown(step: Step) -> int | None:
    """The slot whose memory the result of a step shows, if it is a view."""
    returned = [r.alias_info for r in step.func._schema.returns]
    if not returned or returned[0] is None or returned[0].is_write:
        return None
    for argument, given in _given(step):
        info = argument.alias_info
        if info is not None and info.before_set & returned[0].before_set:
            return given.slot if isinstance(given, Value) else None
    return None


def _given(step: Step) -> Iterator[tuple[Any, Any]]:
    """Arguments of the operator with what each was given."""
    args, kwargs = tree_unflatten(step.leaves, step.spec)
    arguments = step.func._schema.arguments
    yield from zip(arguments, args, strict=False)
    yield from ((a, kwargs[a.name]) for a in arguments if a.name in kwargs)
