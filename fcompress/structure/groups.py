"""Units, groups, producers and consumers of a network, found by running it on unit ids.

A group is a set of units with the same pattern: cut the same slots (dimensions of parameters
and buffers) and any of the units can go. Every group is proven by experiment (`proof.py`)
before it is used; whatever cannot be used is named together with the reason.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from fcompress.arguments.deprecation import warn
from fcompress.forward.running import quiet_tracing
from fcompress.showing.results import Shown
from fcompress.structure.proof import prove
from fcompress.structure.tracer import Axis, Contraction, Tracer
from fcompress.structure.tracing import trace
from fcompress.structure.unit_ids import is_unit
from fcompress.surgery.preparation import Call, plain_copy, plainly
from fcompress.surgery.units import Group, Slot


@dataclass(frozen=True, repr=False)
class Structure(Shown):
    """All groups of a network and an account of every parameter.

    What `find_groups` returns. Every parameter is in at least one group, proven or not, or in
    `unused`.

    Attributes:
        groups: Proven groups, in order of execution.
        not_pruned: Groups that have to stay whole, each with its reason.
        contractions: Convolutions and linear maps, in order of execution.
        unused: Parameters in no group, with the reason.
        proof: What the experiment measured: "units" excised, and relative to the largest output
            the "error" between excising and zeroing them and the "change" by either.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 3))
        >>> structure = find_groups(model, torch.randn(8, 2))
        >>> hidden = structure.group("0")
        >>> [(slot.tensor, slot.dim, slot.role) for slot in hidden.slots]
        [('0.weight', 0, 'producer'), ('0.bias', 0, 'between'), ('2.weight', 1, 'consumer')]
        >>> structure.proof["units"], structure.proof["error"] < 1e-8
        (2.0, True)
    """

    groups: tuple[Group, ...]
    not_pruned: tuple[Group, ...]
    contractions: tuple[Contraction, ...]
    unused: dict[str, str] = field(default_factory=dict)
    proof: dict[str, float] = field(default_factory=dict)

    def _lines(self) -> list[str]:
        """Said here: what the package `report` says of results stands apart from structures."""
        units = sum(group.size for group in self.groups)
        said = f"{units:,} units in {len(self.groups):,} groups can be excised one by one"
        rest = f"{len(self.not_pruned):,} groups and {len(self.unused):,} parameters have to stay"
        return [f"Structure: {said}", f"  {rest}, of {len(self.contractions):,} layers"]

    def _rows(self) -> list[Mapping[str, Any]]:
        """Every group."""
        return [
            {"group": group.name, "units": group.size, "reason": group.reason}
            for group in (*self.groups, *self.not_pruned)
        ]

    def group(self, name: str) -> Group:
        """The proven group of that name.

        Raises:
            StopIteration: There is none.
        """
        return next(g for g in self.groups if g.name == name)

    def skipped(self) -> list[dict[str, str]]:
        """Everything that is not pruned, for reports: `[{name, reason}]`."""
        found = [{"name": g.name, "reason": g.reason or ""} for g in self.not_pruned]
        return found + [{"name": n, "reason": r} for n, r in self.unused.items()]

    @property
    def left_alone(self) -> tuple[Group, ...]:
        """The old name of `not_pruned`."""
        warn("the attribute left_alone of a Structure", "not_pruned")
        return self.not_pruned


def find_groups(
    model: nn.Module,
    example: Any,
    *,
    seed: int = 0,
    call: Call | None = None,
    also: Sequence[Any] = (),
) -> Structure:
    """Find the groups of a network and prove them.

    The network is run once on unit ids, which gives the candidates, and a few times more to prove
    them by experiment (README.md beside this file; the dependency graph that others derive from
    rules about modules, as Fang et al. 2023, "DepGraph", is here the record of an execution).

    Args:
        model: Any network; it is copied, never changed.
        example: A real input batch, a tensor [N, ...] or a tuple of positional inputs; floating
            point ones are converted to the type in which the network runs. Two to four examples
            are enough.
        seed: Chooses the units that the experiment excises.
        call: How the network is run: `call(module, *inputs)` gives its outputs, `module` being
            the network or a copy of it on any device and in any type. It can unpack several
            inputs out of one tensor, pass keywords, and return only those outputs that count;
            units of other outputs need not stay. None for `module(*inputs)`, all outputs.
        also: Further batches, on which the network executes other operators
            (`paths.different_ways`): groups hold, and are proven, on all of them.

    Returns:
        The proven groups, and what is not pruned with reasons.

    Raises:
        UnsupportedNetworkError: The network does not run on the example, or what it returns holds
            no floating point numbers.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> layers = nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 6 * 6, 3)
        >>> structure = find_groups(nn.Sequential(*layers), torch.randn(2, 1, 8, 8))
        >>> [(group.name, group.size) for group in structure.groups]
        [('0', 4)]
        >>> structure.skipped()
        [{'name': '3', 'reason': 'output layer'}]

        Two inputs, here as the halves of one tensor, and an output that does not count:

        >>> class Two(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.a, self.b, self.c = nn.Linear(2, 4), nn.Linear(2, 4), nn.Linear(4, 3)
        ...
        ...     def forward(self, x, y):
        ...         hidden = torch.relu(self.a(x) + self.b(y))
        ...         return self.c(hidden), hidden
        >>> halves = lambda module, packed: module(*packed.chunk(2, 1))[0]
        >>> structure = find_groups(Two(), torch.randn(3, 4), call=halves)
        >>> [slot.tensor for slot in structure.group("a").producers]
        ['a.weight', 'b.weight']
    """
    model, call = plain_copy(model), call or plainly
    with quiet_tracing():
        tracer = trace(model, example, call=call, also=also)
        groups, unused = _assemble(model, tracer)
        candidates = [g for g in groups if g.reason is None]
        proven, failed, measured = prove(model, candidates, example, seed=seed, call=call)
        for other in also:
            agreed, more, again = prove(model, proven, other, seed=seed, call=call)
            through = {g.name: g.zero_through for g in proven}
            proven = [replace(g, zero_through=g.zero_through and through[g.name]) for g in agreed]
            failed |= {name: f"on other examples: {why}" for name, why in more.items()}
            if again["units"]:
                measured["error"] = max(measured["error"], again["error"])
                measured["change"] = min(measured["change"], again["change"])
            measured["units"] = again["units"]
    order = {g.name: i for i, g in enumerate(groups)}
    left = [g for g in groups if g.reason is not None]
    left += [replace(g, reason=failed[g.name]) for g in candidates if g.name in failed]
    return Structure(
        groups=tuple(sorted(proven, key=lambda g: order[g.name])),
        not_pruned=tuple(sorted(left, key=lambda g: order[g.name])),
        contractions=tuple(tracer.contractions),
        unused=unused,
        proof=measured,
    )


def _assemble(model: nn.Module, tracer: Tracer) -> tuple[list[Group], dict[str, str]]:
    """Units with the same pattern become one group; parameters in none get a reason."""
    reasons = _by_unit(tracer, tracer.reasons)
    bundles = _by_unit(tracer, tracer.bundles)
    axes = _distinct(tracer)
    pattern: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for number, axis in enumerate(axes):
        roots = tracer.units.roots(axis.ids)
        found, counts = roots[is_unit(roots)].unique(return_counts=True)
        for root, count in zip(found.tolist(), counts.tolist(), strict=True):
            pattern[root].append((number, count))
    members: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    for root, places in pattern.items():
        members[(tuple(places), tuple(reasons.get(root, ())))].append(root)
    groups = []
    taken: dict[str, int] = defaultdict(int)
    for (places, why), together in members.items():
        slots = _slots(tracer, [axes[n] for n, _ in places], together)
        if not why and all(s.role == "between" for s in slots):
            continue  # constants of the network, such as the mean of its inputs
        reason = "; ".join(why) or _lack(slots, len(together), bundles.get(together[0], ()))
        name = _name(slots)
        taken[name] += 1
        if taken[name] > 1:
            name = f"{name}#{taken[name]}"
        groups.append(Group(name, len(together), slots, reason))
    in_groups = {slot.tensor for group in groups for slot in group.slots}
    unused = {}
    for name, _ in model.named_parameters():
        if name not in in_groups:
            reader = tracer.parameters.readers.get(name)
            why = "not used in the forward pass"
            if name in tracer.parameters.touched:
                why = "belongs to no unit"
            elif reader is not None:
                why = f"read by {reader}, where it cannot be told which of it belongs to which unit"
            unused[name] = tracer.parameters.aside.get(name, why)
    return groups, unused


def _by_unit(tracer: Tracer, notes: Iterable[tuple[Tensor, str]]) -> dict[int, list[str]]:
    """Notes about unit ids, without repetition, for each unit."""
    found: dict[int, list[str]] = defaultdict(list)
    for ids, note in notes:
        for root in tracer.units.roots(ids).unique().tolist():
            if note not in found[root]:
                found[root].append(note)
    return found


def _distinct(tracer: Tracer) -> list[Axis]:
    """Axes with the views of one (tensor, dim) laid over each other."""
    merged: dict[tuple[str, int], Axis] = {}
    for axis in tracer.axes:
        key = (axis.tensor, axis.dim)
        if key in merged:
            old = merged[key]
            merged[key] = replace(old, ids=torch.where(is_unit(old.ids), old.ids, axis.ids))
        else:
            merged[key] = axis
    return list(merged.values())


def _slots(tracer: Tracer, axes: list[Axis], roots: list[int]) -> tuple[Slot, ...]:
    """Where the units stand; they are numbered by where they first appear."""
    first = tracer.units.roots(axes[0].ids)
    number: dict[int, int] = {}
    for root in first[torch.isin(first, torch.tensor(roots))].tolist():
        number.setdefault(root, len(number))
    table = torch.full((int(max(roots)) + 1,), -1, dtype=torch.int64)
    for root, unit in number.items():
        table[root] = unit
    slots = []
    for axis in axes:
        root = tracer.units.roots(axis.ids)
        units = torch.where(root < len(table), table[root.clamp(max=len(table) - 1)], -1)
        slots.append(Slot(axis.tensor, axis.dim, units, axis.role))
    return tuple(slots)


def _name(slots: tuple[Slot, ...]) -> str:
    """The first layer that writes the units, or who they meet if no layer does."""
    named = next((s for s in slots if s.role == "producer"), slots[0])
    layer = named.tensor.rpartition(".")[0] or named.tensor
    return f"inputs of {layer}" if named.role == "consumer" else layer


def _lack(slots: tuple[Slot, ...], size: int, bundles: Sequence[str]) -> str | None:
    """What keeps units that nothing forbids from going; None for a group to be proven."""
    roles = {s.role for s in slots}
    if "consumer" not in roles:
        return "no layer reads it that could do without"
    if "producer" not in roles:
        return "no layer writes it"
    if size == 1:
        if bundles:
            return f"its units can only go all together, because of {' and '.join(bundles)}"
        return "a single unit"
    return None
