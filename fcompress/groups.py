"""Units, groups, producers and consumers of a network, found by running it on labels.

A group is a set of units with the same pattern: cut the same slots (dimensions of parameters
and buffers) and any of the units can go. Every group is proven by experiment (`proof.py`)
before it is used; whatever cannot be used is named together with the reason.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from fcompress.errors import UnsupportedNetworkError
from fcompress.labels import NONE, Axis, Contraction, Tracer
from fcompress.proof import prove

INPUT_REASON = "network input"


@dataclass(frozen=True)
class Slot:
    """A dimension of one tensor, and which unit of the group each index belongs to.

    Attributes:
        tensor: Qualified name of a parameter or buffer.
        dim: The dimension that excision cuts.
        units: int64 [size of the dimension]: unit of the group, -1 where it is none of them.
        role: "producer", "consumer" or "between".
    """

    tensor: str
    dim: int
    units: Tensor
    role: str


@dataclass(frozen=True)
class Group:
    """Units that can go one by one, each with everything that belongs to it.

    Attributes:
        name: The first layer that produces the units.
        size: Number of units.
        slots: Where the units live, in order of execution.
        reason: Why the group is left alone; None for a group that may be excised.
        zero_through: Whether what lies between producers and consumers maps 0 to 0, so that
            zeroing the producers was also seen to equal zeroing at the consumers.
    """

    name: str
    size: int
    slots: tuple[Slot, ...]
    reason: str | None = None
    zero_through: bool = False

    @property
    def producers(self) -> tuple[Slot, ...]:
        """Slots whose rows write the units."""
        return tuple(s for s in self.slots if s.role == "producer")

    @property
    def consumers(self) -> tuple[Slot, ...]:
        """Slots whose columns read the units."""
        return tuple(s for s in self.slots if s.role == "consumer")


@dataclass(frozen=True)
class Structure:
    """All groups of a network and an account of every parameter.

    Attributes:
        groups: Proven groups, in order of execution.
        left_alone: Groups with a reason.
        contractions: Convolutions and linear maps, in order of execution.
        unused: Parameters in no group, with the reason.
        proof: What the experiment measured (units excised, relative error, relative change).
    """

    groups: tuple[Group, ...]
    left_alone: tuple[Group, ...]
    contractions: tuple[Contraction, ...]
    unused: dict[str, str] = field(default_factory=dict)
    proof: dict[str, float] = field(default_factory=dict)

    def group(self, name: str) -> Group:
        """The proven group of that name."""
        return next(g for g in self.groups if g.name == name)

    def skipped(self) -> list[dict[str, str]]:
        """Everything left alone, for reports: `[{name, reason}]`."""
        found = [{"name": g.name, "reason": g.reason or ""} for g in self.left_alone]
        return found + [{"name": n, "reason": r} for n, r in self.unused.items()]


def find_groups(model: nn.Module, example: Any, *, seed: int = 0) -> Structure:
    """Find the groups of a network and prove them.

    Args:
        model: Any network; it is copied, never changed.
        example: A real input batch, a tensor [N, ...] or a tuple of positional inputs. Two to
            four examples are enough.
        seed: Chooses the units that the experiment excises.

    Returns:
        The proven groups, and what was left alone with reasons.

    Raises:
        UnsupportedNetworkError: The network does not run on the example.
    """
    model = plain_copy(model)
    with quiet_tracing():
        tracer = trace(model, example)
        groups, unused = _assemble(model, tracer)
        candidates = [g for g in groups if g.reason is None]
        proven, failed, measured = prove(model, candidates, example, seed=seed)
    order = {g.name: i for i, g in enumerate(groups)}
    left = [g for g in groups if g.reason is not None and g.reason != INPUT_REASON]
    left += [replace(g, reason=failed[g.name]) for g in candidates if g.name in failed]
    return Structure(
        groups=tuple(
            replace(g, zero_through=proven[g.name]) for g in candidates if g.name in proven
        ),
        left_alone=tuple(sorted(left, key=lambda g: order[g.name])),
        contractions=tuple(tracer.contractions),
        unused=unused,
        proof=measured,
    )


def plain_copy(model: nn.Module) -> nn.Module:
    """A copy on the CPU, in eval mode, with every parameter contiguous."""
    model = copy.deepcopy(model).cpu().eval()
    for tensor in [*model.parameters(), *model.buffers()]:
        tensor.data = tensor.data.contiguous()
    return model


@contextmanager
def quiet_tracing() -> Iterator[None]:
    """No gradients and no fused attention fast path, which hides what it computes."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def trace(model: nn.Module, example: Any) -> Tracer:
    """Run `model` (eval mode, CPU) once on labels."""
    inputs = as_inputs(example, next(iter(model.parameters()), torch.empty(0)).dtype)
    tracer = Tracer(model)
    source = tracer.fresh(1, INPUT_REASON)
    for tensor in inputs:
        if isinstance(tensor, Tensor):
            tracer.set(tensor, source.expand(tensor.shape))
    handles = tracer.pass_through(model)
    try:
        with tracer:
            outputs = model(*inputs)
        tracer.finish(outputs)
    except Exception as error:
        raise UnsupportedNetworkError(
            f"the network does not run on an example of shape "
            f"{[tuple(t.shape) for t in inputs if isinstance(t, Tensor)]}: "
            f"{type(error).__name__}: {_first_line(error)}; give data of the shape it expects"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    return tracer


def as_inputs(example: Any, dtype: torch.dtype) -> tuple[Any, ...]:
    """Positional inputs with floating point tensors in `dtype`, on the CPU."""
    items = example if isinstance(example, tuple) else (example,)
    return tuple(
        t.detach().cpu().to(dtype) if isinstance(t, Tensor) and t.is_floating_point() else t
        for t in items
    )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else "no message"


def _assemble(model: nn.Module, tracer: Tracer) -> tuple[list[Group], dict[str, str]]:
    """Units with the same pattern become one group."""
    reasons: dict[int, list[str]] = defaultdict(list)
    for labels, reason in tracer.reasons:
        for root in tracer.units.roots(labels).unique().tolist():
            if reason not in reasons[root]:
                reasons[root].append(reason)
    axes = _distinct(tracer)
    pattern: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for number, axis in enumerate(axes):
        found, counts = tracer.units.roots(axis.labels).unique(return_counts=True)
        for root, count in zip(found.tolist(), counts.tolist(), strict=True):
            if root != NONE:
                pattern[root].append((number, count))
    members: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    for root, places in pattern.items():
        members[(tuple(places), tuple(reasons.get(root, ())))].append(root)
    groups = []
    taken: dict[str, int] = defaultdict(int)
    for (places, why), roots in members.items():
        group = _group(tracer, [axes[n] for n, _ in places], roots, why)
        taken[group.name] += 1
        if taken[group.name] > 1:
            group = replace(group, name=f"{group.name}#{taken[group.name]}")
        groups.append(group)
    unused = dict(tracer.aside)
    in_groups = {slot.tensor for group in groups for slot in group.slots}
    for name, _ in model.named_parameters():
        if name not in in_groups and name not in unused:
            unused[name] = (
                "belongs to no unit" if name in tracer.touched else "not used in the forward pass"
            )
    return groups, unused


def _distinct(tracer: Tracer) -> list[Axis]:
    """Axes with the views of one (tensor, dim) laid over each other."""
    merged: dict[tuple[str, int], Axis] = {}
    for axis in tracer.axes:
        key = (axis.tensor, axis.dim)
        if key in merged:
            old = merged[key]
            merged[key] = replace(
                old, labels=torch.where(old.labels != NONE, old.labels, axis.labels)
            )
        else:
            merged[key] = axis
    return list(merged.values())


def _group(tracer: Tracer, axes: list[Axis], roots: list[int], why: tuple[str, ...]) -> Group:
    """One group; its units are numbered by where they first appear."""
    first = tracer.units.roots(axes[0].labels)
    inside = torch.isin(first, torch.tensor(roots))
    number: dict[int, int] = {}
    for root in first[inside].tolist():
        number.setdefault(root, len(number))
    table = torch.full((int(max(roots)) + 1,), -1, dtype=torch.int64)
    for root, unit in number.items():
        table[root] = unit
    slots = []
    for axis in axes:
        root = tracer.units.roots(axis.labels)
        units = torch.where(root < len(table), table[root.clamp(max=len(table) - 1)], -1)
        slots.append(Slot(axis.tensor, axis.dim, units, axis.role))
    named = next((s for s in slots if s.role == "producer"), slots[0])
    reason = "; ".join(why) or None
    if reason is None and not any(s.role == "consumer" for s in slots):
        reason = "no layer reads it that could do without"
    if reason is None and not any(s.role == "producer" for s in slots):
        reason = "no layer writes it"
    if reason is None and len(roots) == 1:
        reason = "a single unit"
    return Group(named.tensor.rpartition(".")[0] or named.tensor, len(roots), tuple(slots), reason)
