"""Which unit does every element of every activation belong to?

A `Tracer` keeps beside each activation of one forward an integer tensor of the same shape that
names, element by element, the unit the element belongs to; beside that, which units belong
together, and which indices of which parameters belong to them. `rules_elementwise.py` and
`rules_mixing.py` say what each operator does to unit ids, `tracing.py` runs a network on them, and
`groups.py` turns what was learned into groups.
"""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from fcompress.forward.outputs import output_tensors
from fcompress.structure.parameters import ParameterViews, address, seen_by
from fcompress.structure.union_find import UnionFind
from fcompress.structure.unit_ids import (
    INPUT,
    compact,
    compact_pair,
    is_unit,
    narrowed,
    nobody,
    representative,
    units_in,
)


@dataclass(frozen=True)
class Axis:
    """One dimension of one parameter or buffer, with the unit of each of its indices.

    Attributes:
        tensor: Qualified name of the parameter or buffer.
        dim: The dimension that is cut when units go.
        ids: int64 [size of the dimension]; `NONE` where the index belongs to no unit.
        role: "producer" (rows that write units), "consumer" (columns that read them) or
            "between" (one value or slice for each unit: biases, norms, scales, buffers).
    """

    tensor: str
    dim: int
    ids: Tensor
    role: str


@dataclass(frozen=True)
class Contraction:
    """One convolution or linear map with a weight of the network, in order of execution.

    Attributes:
        weight: Qualified name of the weight.
        bias: Qualified name of the bias; None if there is none or it is no parameter.
        kind: "conv", "transposed" or "linear".
        whole: Whether the map uses the whole parameter, not a part of it.
    """

    weight: str
    bias: str | None
    kind: str
    whole: bool


class Tracer:
    """Unit ids of the activations, ties between units, and places of units in parameters.

    The ids of an activation are forgotten as soon as the activation is.

    Args:
        model: The network; its parameters and buffers are recognised by their memory.

    Attributes:
        parameters: The parameters and buffers, and which tensors are views of them.
        units: All unit ids, merged where units belong together.
        axes: Where units stand in parameters and buffers, in order of execution.
        contractions: Convolutions and linear maps, in order of execution.
        reasons: Ids of units that are not pruned, and why.
        bundles: Ids of units that an operator ties into bundles, and which operator.
        splits: int64 [parts, units in each]: units that the code cuts into equal parts.
        place: The module that is running, its class and its name; empty outside of all.
    """

    def __init__(self, model: nn.Module) -> None:
        self.parameters = ParameterViews(model)
        self.units = UnionFind(INPUT + 1)
        self.axes: list[Axis] = []
        self.contractions: list[Contraction] = []
        self.reasons: list[tuple[Tensor, str]] = []
        self.bundles: list[tuple[Tensor, str]] = []
        self.splits: list[Tensor] = []
        self.place = ""
        self._mixing: list[tuple[Tensor, Sequence[int], str]] = []
        self._meetings: list[tuple[str, Tensor, Tensor]] = []
        self._not_understood: dict[str, str] = {}
        self._uses: dict[tuple[str, int], list[tuple[str, Tensor]]] = {}
        self._ids: MutableMapping[Tensor, Tensor] = WeakTensorKeyDictionary()
        self._written: dict[int, tuple[Tensor, Tensor]] = {}
        self._element_ids: dict[str, Tensor] = {}

    def placed(self, operator: str) -> str:
        """An operator, and the module that is running."""
        return f"{operator} in {self.place}" if self.place else operator

    # Unit ids of tensors ---------------------------------------------------------------

    def fresh(self, count: int, reason: str | None = None) -> Tensor:
        """`count` new ids; with `reason`, units that are not pruned because of it."""
        ids = self.units.fresh(count)
        if reason:
            self.refuse(ids, reason)
        return ids

    def refuse(self, ids: Tensor | None, reason: str) -> None:
        """Never prune the units in `ids`, and remember why."""
        if ids is not None:
            self.reasons.append((units_in(ids), reason))

    def set(self, tensor: Tensor, ids: Tensor | None) -> None:
        """Give `tensor` its ids (same shape), or forget them."""
        if ids is None:
            self._ids.pop(tensor, None)
            return
        assert ids.shape == tensor.shape, (ids.shape, tensor.shape)
        if address(tensor) in self._written:
            seen_by(self._written[address(tensor)][1], tensor).copy_(ids)
        else:
            self._ids[tensor] = narrowed(ids).expand(ids.shape)

    def of(self, tensor: Any) -> Tensor | None:
        """Ids of an activation or of a parameter used as one; None for a constant."""
        if not isinstance(tensor, Tensor):
            return None
        written = self._written.get(address(tensor))
        if written is not None:
            return seen_by(written[1], tensor)
        ids = self._ids.get(tensor)
        if ids is not None and ids.shape == tensor.shape:
            return ids
        source = self.parameters.source(tensor)
        if source is None:
            return None
        name, index = source
        return self._elements(name)[index]

    def known(self, tensor: Tensor) -> Tensor:
        """Ids of a tensor (same shape), `NONE` for a constant."""
        ids = self.of(tensor)
        return nobody(tensor.shape) if ids is None else ids

    def stale(self, tensor: Tensor) -> Tensor | None:
        """Ids of `tensor` from before its shape was changed in place."""
        return self._ids.get(tensor)

    def write(self, target: Tensor, ids: Tensor) -> None:
        """Ids written in place into a part of a storage, seen by all that share it."""
        key = address(target)
        if key not in self._written:
            storage = target.untyped_storage()
            flat = torch.zeros(storage.nbytes() // target.element_size(), dtype=torch.int64)
            for other, known in list(self._ids.items()):
                if address(other) == key and known.shape == other.shape:
                    seen_by(flat, other).copy_(known)
            # Holding the target keeps its storage, and so its address, alive.
            self._written[key] = (target, flat)
        seen_by(self._written[key][1], target).copy_(ids)

    # Ties between units ------------------------------------------------------------------

    def tie(self, a: Tensor, b: Tensor) -> bool:
        """Units of elements at the same place (after broadcasting) belong together.

        Returns:
            Whether that was news.
        """
        a, b = compact_pair(a, b)
        different = (a != b) & is_unit(a) & is_unit(b)
        return bool(different.any()) and self.units.union(a[different], b[different])

    def tie_along(self, ids: Tensor, dims: Sequence[int], operator: str) -> Tensor:
        """Tie units that differ along `dims`; returns one id for each, dims kept as 1.

        Args:
            ids: Ids of an activation.
            dims: Dimensions over which `operator` mixes or shares.
            operator: Its name, in case that the units it ties cannot be told apart any more.
        """
        first = representative(ids, dims)
        if not self.same_along(ids, dims):
            self.tie(compact(ids), compact(first))
            self.bundles.append((units_in(first), self.placed(operator)))
        return first

    def mixes(self, ids: Tensor, dims: Sequence[int], reason: str) -> None:
        """An operator mixes what stands along `dims`; if that is several units, a reason.

        What is one unit is only known in the end: a head becomes one by its dot products.
        """
        self._mixing.append((narrowed(ids), dims, reason))

    def same_along(self, ids: Tensor, dims: Sequence[int]) -> bool:
        """Whether every element along `dims` belongs to the same unit (or to none)."""
        roots = self.units.roots(compact(ids))
        first = representative(roots, dims)
        return bool(((roots == first) | ~is_unit(roots)).all())

    # Parameters --------------------------------------------------------------------------

    def assign(self, tensor: Tensor, dim: int, ids: Tensor, role: str) -> None:
        """Index i along `dim` of `tensor`, a view of a parameter, belongs to `ids[i]`."""
        line = self.parameters.line(tensor, dim)
        if line is None:
            self.refuse(ids, "its weight is computed from other parameters")
            for source in self.parameters.names_in(tensor):
                self.parameters.aside.setdefault(source, "a weight is computed from it")
            return
        name, dim, at, wraps = line
        full = torch.zeros(self.parameters.tensors[name].shape[dim], dtype=torch.int64)
        full[at] = ids
        if wraps:
            self.tie(full[at], ids)
        self.belongs(name, dim, full, role)

    def belongs(self, name: str, dim: int, ids: Tensor, role: str) -> None:
        """Index i along `dim` of a whole parameter belongs to `ids[i]`."""
        self.parameters.touched.add(name)
        self.axes.append(Axis(name, dim, ids, role))
        self._uses.setdefault((name, dim), []).append((role, ids))

    def rows(self, name: str) -> Tensor | None:
        """The units that the rows of a parameter write; None if it was never used as a weight."""
        uses = self._uses.get((name, 0))
        return uses[0][1] if uses else None

    def meets(self, ids: Tensor, parameter: Tensor, operator: str) -> None:
        """A parameter met elementwise: each of its elements belongs to the unit that it meets.

        Args:
            ids: Of the activation.
            parameter: The parameter, a rearrangement or a function of some; both broadcast.
            operator: What brings them together.
        """
        source = self.parameters.source(parameter)
        if source is None and self.parameters.is_buffer(parameter):
            # A table, such as of rotary positions, is the same without some units if none of
            # them has a part of it for its own. A head becomes one unit by its scores only.
            ids = ids.expand(torch.broadcast_shapes(ids.shape, parameter.shape))
            first = ids.dim() - parameter.dim()
            dims = [first + dim for dim, size in enumerate(parameter.shape) if size > 1]
            self.mixes(ids, dims, f"{operator} with a table computed from buffers")
            return
        if source is None:
            self.refuse(ids, f"{operator} with a value computed from parameters")
            return
        a, b = torch.broadcast_tensors(*compact_pair(ids, source[1]))
        pairs = (b * self.units.count + a)[is_unit(a)].unique()
        element, unit = pairs // self.units.count, pairs % self.units.count
        self._meetings.append((source[0], element, unit))

    def contraction(self, weight: Tensor, bias: Any, kind: str) -> None:
        """Note a convolution or linear map in order of execution."""
        name = self.parameters.owner(weight)
        if name is not None:
            whole = weight.numel() == self.parameters.tensors[name].numel()
            self.contractions.append(Contraction(name, self.parameters.owner(bias), kind, whole))

    def not_understood(self, tensor: Tensor, reason: str) -> None:
        """Never prune the units that live in the parameters that `tensor` is made of."""
        for name in self.parameters.names_in(tensor):
            self._not_understood[name] = reason

    # Closing the books -------------------------------------------------------------------

    def returned(self, outputs: Any) -> None:
        """A run has ended; the units in what it returned are never removed."""
        for tensor in output_tensors(outputs).values():
            self.refuse(self.of(tensor), "output layer")

    def finish(self) -> None:
        """Draw the conclusions that need all runs: shared weights, splits."""
        for (name, _), uses in self._uses.items():
            roles = {role for role, _ in uses}
            for _, ids in uses[1:]:
                self.tie(uses[0][1], ids)  # of all uses the same rows or columns go
            if {"producer", "consumer"} <= roles:
                for _, ids in uses:
                    self.refuse(ids, f"shared weight: {name} writes units and reads them elsewhere")
        self._balance_splits()
        for name, element, unit in self._meetings:
            self._belong(name, element, self.units.roots(unit))
        self._balance_splits()
        for ids, dims, reason in self._mixing:
            if not self.same_along(ids, dims):
                self.refuse(ids, reason)
        for name, ids in self._element_ids.items():
            self.parameters.touched.add(name)
            axis = self._element_axis(name, ids.view(self.parameters.tensors[name].shape))
            if axis is not None:
                self.axes.append(axis)
        for name, reason in self._not_understood.items():
            self.parameters.aside.setdefault(name, reason)
            for axis in self.axes:
                if axis.tensor == name:
                    self.refuse(axis.ids, reason)

    def _belong(self, name: str, element: Tensor, unit: Tensor) -> None:
        """Elements of a parameter (flat indices) met units: theirs they are, or nobody's."""
        number = len(unit.unique())
        width = int(unit.max()) + 1 if number else 1
        met = (element * width + unit).unique() // width
        often = torch.unique_consecutive(met, return_counts=True)[1]
        meets_all = number > 1 and bool((often == number).any())
        if meets_all or self.parameters.tensors[name].numel() == 1:
            self.parameters.touched.add(name)
            self.parameters.aside.setdefault(name, "one value for all units")
        else:
            self.tie(self._elements(name)[element], unit)

    def _elements(self, name: str) -> Tensor:
        """An id for each element of a parameter or buffer, flat."""
        if name not in self._element_ids:
            self._element_ids[name] = self.units.fresh(self.parameters.tensors[name].numel())
        return self._element_ids[name]

    def _element_axis(self, name: str, ids: Tensor) -> Axis | None:
        """The dimension of an elementwise parameter along which its units lie."""
        if ids.dim() == 0:
            return None
        roots = self.units.roots(ids)
        sizes = []
        for dim in range(ids.dim()):
            others = [d for d in range(ids.dim()) if d != dim]
            first = representative(roots, others)
            changes = int((roots != first).sum())
            sizes.append((changes, -len(first.unique()), dim))
        dim = min(sizes)[2]
        others = [d for d in range(ids.dim()) if d != dim]
        first = self.tie_along(ids, others, f"parameter {name}")
        return Axis(name, dim, first.flatten().clone(), "between")

    def _balance_splits(self) -> None:
        """Where the code cuts units into equal parts, remove the same number from each part.

        A part that is one single unit (a head) may go as a whole; otherwise the units at the
        same position of all parts belong together.
        """
        changed = True
        while changed:
            changed = False
            for parts in self.splits:
                if not self.same_along(parts, [1]):
                    changed = self.tie(parts, representative(parts, [0])) or changed
