"""Which unit does every element of every activation belong to?

A `Tracer` keeps beside each activation of one forward an integer tensor of the same shape that
names, element by element, the unit the element belongs to; beside that, which units belong
together, and which indices of which parameters belong to them. `label_moves.py` and
`label_mixes.py` say what each operator does to labels, `tracing.py` runs a network on them, and
`groups.py` turns what was learned into groups.
"""

from __future__ import annotations

from collections.abc import Iterable, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from fcompress.structure.union_find import UnionFind
from fcompress.structure.unit_ids import (
    INPUT,
    compact,
    compact_pair,
    is_unit,
    labels_in,
    narrowed,
    nobody,
    representative,
)

# Elements of parameters that are followed one by one through what is computed from them.
_SMALL = 2**18


@dataclass(frozen=True)
class Axis:
    """One dimension of one parameter or buffer, with the unit of each of its indices.

    Attributes:
        tensor: Qualified name of the parameter or buffer.
        dim: The dimension that is cut when units go.
        labels: int64 [size of the dimension]; no label of a unit where the index belongs to none.
        role: "producer" (rows that write units), "consumer" (columns that read them) or
            "between" (one value or slice for each unit: biases, norms, scales, buffers).
    """

    tensor: str
    dim: int
    labels: Tensor
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
    """Labels of the activations, ties between units, and places of units in parameters.

    Labels and indices of an activation are forgotten as soon as the activation is.

    Args:
        model: The network; its parameters and buffers are recognised by their memory.

    Attributes:
        units: The labels, merged where units belong together.
        axes: Where units stand in parameters and buffers, in order of execution.
        contractions: Convolutions and linear maps, in order of execution.
        reasons: Labels of units that are left alone, and why.
        bundles: Labels of units that an operator ties into bundles, and which operator.
        splits: int64 [parts, units in each]: units that the code cuts into equal parts.
        touched: Parameters and buffers that the network used in a way that is understood.
        aside: Parameters without units of their own, and why.
    """

    def __init__(self, model: nn.Module) -> None:
        self.units = UnionFind(INPUT + 1)
        self.axes: list[Axis] = []
        self.contractions: list[Contraction] = []
        self.reasons: list[tuple[Tensor, str]] = []
        self.bundles: list[tuple[Tensor, str]] = []
        self.splits: list[Tensor] = []
        self.touched: set[str] = set()
        self.aside: dict[str, str] = {}
        self._mixing: list[tuple[Tensor, Sequence[int], str]] = []
        self._meetings: list[tuple[str, Tensor, Tensor]] = []
        self._not_understood: dict[str, str] = {}
        self._uses: dict[tuple[str, int, bool], list[Tensor]] = {}
        self._labels: MutableMapping[Tensor, Tensor] = WeakTensorKeyDictionary()
        self._written: dict[int, tuple[Tensor, Tensor]] = {}
        self._element_labels: dict[str, Tensor] = {}
        self._copies: MutableMapping[Tensor, tuple[str, Tensor]] = WeakTensorKeyDictionary()
        self._computed: MutableMapping[Tensor, frozenset[str]] = WeakTensorKeyDictionary()
        self._tensors: dict[str, Tensor] = dict(model.named_parameters())
        self._tensors.update(model.named_buffers())
        self._names = {_storage(t): name for name, t in self._tensors.items() if t.numel()}
        self._buffers = {_storage(t) for t in model.buffers() if t.numel()}

    # Labels of tensors -------------------------------------------------------------------

    def fresh(self, count: int, reason: str | None = None) -> Tensor:
        """`count` new labels; with `reason`, units that are left alone because of it."""
        labels = self.units.fresh(count)
        if reason:
            self.refuse(labels, reason)
        return labels

    def refuse(self, labels: Tensor | None, reason: str) -> None:
        """Leave the units in `labels` alone, and remember why."""
        if labels is not None:
            self.reasons.append((labels_in(labels), reason))

    def set(self, tensor: Tensor, labels: Tensor | None) -> None:
        """Give `tensor` its labels (same shape), or forget them."""
        if labels is None:
            self._labels.pop(tensor, None)
            return
        assert labels.shape == tensor.shape, (labels.shape, tensor.shape)
        if _storage(tensor) in self._written:
            _within(self._written[_storage(tensor)][1], tensor).copy_(labels)
        else:
            self._labels[tensor] = narrowed(labels).expand(labels.shape)

    def of(self, tensor: Any) -> Tensor | None:
        """Labels of an activation or of a parameter used as one; None for a constant."""
        if not isinstance(tensor, Tensor):
            return None
        written = self._written.get(_storage(tensor))
        if written is not None:
            return _within(written[1], tensor)
        labels = self._labels.get(tensor)
        if labels is not None and labels.shape == tensor.shape:
            return labels
        source = self.source(tensor)
        if source is None:
            return None
        name, index = source
        return self._elements(name)[index]

    def known(self, tensor: Tensor) -> Tensor:
        """Labels of a tensor (same shape), `NONE` for a constant."""
        labels = self.of(tensor)
        return nobody(tensor.shape) if labels is None else labels

    def stale(self, tensor: Tensor) -> Tensor | None:
        """Labels of `tensor` from before its shape was changed in place."""
        return self._labels.get(tensor)

    def write(self, target: Tensor, labels: Tensor) -> None:
        """Labels written in place into a part of a storage, seen by all that share it."""
        key = _storage(target)
        if key not in self._written:
            storage = target.untyped_storage()
            flat = torch.zeros(storage.nbytes() // target.element_size(), dtype=torch.int64)
            for other, known in list(self._labels.items()):
                if _storage(other) == key and known.shape == other.shape:
                    _within(flat, other).copy_(known)
            # Holding the target keeps its storage, and so its address, alive.
            self._written[key] = (target, flat)
        _within(self._written[key][1], target).copy_(labels)

    # Ties between units ------------------------------------------------------------------

    def tie(self, a: Tensor, b: Tensor) -> bool:
        """Units of elements at the same place (after broadcasting) belong together.

        Returns:
            Whether that was news.
        """
        a, b = compact_pair(a, b)
        different = (a != b) & is_unit(a) & is_unit(b)
        return bool(different.any()) and self.units.union(a[different], b[different])

    def tie_along(self, labels: Tensor, dims: Sequence[int], operator: str) -> Tensor:
        """Tie units that differ along `dims`; returns one label for each, dims kept as 1.

        Args:
            labels: Labels of an activation.
            dims: Dimensions over which `operator` mixes or shares.
            operator: Its name, in case that the units it ties cannot be told apart any more.
        """
        first = representative(labels, dims)
        if not self.same_along(labels, dims):
            self.tie(compact(labels), compact(first))
            self.bundles.append((labels_in(first), operator))
        return first

    def mixes(self, labels: Tensor, dims: Sequence[int], reason: str) -> None:
        """An operator mixes what stands along `dims`; if that is several units, a reason.

        What is one unit is only known in the end: a head becomes one by its dot products.
        """
        self._mixing.append((narrowed(labels), dims, reason))

    def same_along(self, labels: Tensor, dims: Sequence[int]) -> bool:
        """Whether every element along `dims` belongs to the same unit (or to none)."""
        roots = self.units.roots(compact(labels))
        first = representative(roots, dims)
        return bool(((roots == first) | ~is_unit(roots)).all())

    # Parameters --------------------------------------------------------------------------

    def owner(self, tensor: Any) -> str | None:
        """The parameter or buffer whose memory `tensor` is a view of."""
        return self._names.get(_storage(tensor)) if isinstance(tensor, Tensor) else None

    def source(self, tensor: Tensor) -> tuple[str, Tensor] | None:
        """The parameter or buffer that `tensor` is a rearrangement of, with flat indices."""
        if tensor in self._copies:
            return self._copies[tensor]
        name = self.owner(tensor)
        if name is None or not self._tensors[name].is_contiguous():
            return None
        return name, _within(torch.arange(self._tensors[name].numel()), tensor)

    def whole_copy(self, tensor: Tensor) -> Tensor | None:
        """A view of a parameter as it is, or the parameter of which `tensor` is a copy."""
        if tensor not in self._copies:
            return tensor if self.owner(tensor) is not None else None
        name, index = self._copies[tensor]
        whole = self._tensors[name]
        same = index.shape == whole.shape and torch.equal(
            index.flatten(), torch.arange(whole.numel())
        )
        return whole if same else None

    def is_parameter(self, tensor: Any) -> bool:
        """Whether `tensor` is (a rearrangement or a function of) the network's own tensors."""
        return isinstance(tensor, Tensor) and (
            _storage(tensor) in self._names or tensor in self._copies or tensor in self._computed
        )

    def is_buffer(self, tensor: Any) -> bool:
        """Whether `tensor` is made of buffers alone: data that the network brings along."""
        if not isinstance(tensor, Tensor):
            return False
        names = self._names_in(tensor)
        return bool(names) and all(_storage(self._tensors[n]) in self._buffers for n in names)

    def is_small(self, tensor: Tensor) -> bool:
        """Whether `tensor` is a small parameter, or part of one, that is labelled by element."""
        if tensor.numel() > _SMALL or not self.is_parameter(tensor) or self.is_buffer(tensor):
            return False
        return self.source(tensor) is not None

    def copy_of(self, tensor: Tensor, name: str, index: Tensor) -> None:
        """`tensor` holds elements `index` (flat) of parameter `name`."""
        self._copies[tensor] = (name, index)

    def computed_from(self, tensor: Tensor, sources: Iterable[Tensor], operator: str) -> None:
        """`tensor` is a function of parameters alone, which excision cannot follow."""
        names: set[str] = set()
        for source in sources:
            names |= self._names_in(source)
        for name in names:
            self.aside.setdefault(name, f"used through {operator}, which excision cannot follow")
        self._computed[tensor] = frozenset(names)

    def _names_in(self, tensor: Tensor) -> frozenset[str]:
        """Parameters and buffers that `tensor` is made of."""
        if tensor in self._computed:
            return self._computed[tensor]
        name = self._copies[tensor][0] if tensor in self._copies else self.owner(tensor)
        return frozenset() if name is None else frozenset([name])

    def record(self, tensor: Tensor, dim: int, labels: Tensor, role: str) -> None:
        """Index i along `dim` of `tensor`, a view of a parameter, belongs to `labels[i]`."""
        name = self.owner(tensor)
        if name is None:
            reason = "its weight is computed from other parameters"
            self.refuse(labels, reason)
            for source in self._names_in(tensor):
                self.aside.setdefault(source, "a weight is computed from it")
            return
        whole = self._tensors[name]
        self.touched.add(name)
        places = torch.arange(tensor.shape[dim])
        flat = (places * tensor.stride(dim)).add(tensor.storage_offset())
        index = torch.stack(torch.unravel_index(flat, whole.shape))
        moving = [d for d in range(whole.dim()) if bool((index[d] != index[d][0]).any())]
        if not moving:
            same = tensor.shape == whole.shape and tensor.stride() == whole.stride()
            moving = [dim if same else _dim_of_stride(whole, tensor.stride(dim))]
        at = moving[0]
        full = torch.zeros(whole.shape[at], dtype=torch.int64)
        full[index[at]] = labels
        if len(moving) > 1:
            self.tie(full[index[at]], labels)
        self.axes.append(Axis(name, at, full, role))
        uses = self._uses.setdefault((name, at, role == "between"), [])
        if role == "between" and uses:
            self.tie(uses[0], full)
        uses.append(full)

    def meets(self, labels: Tensor, parameter: Tensor, operator: str) -> None:
        """A parameter met elementwise: each of its elements belongs to the unit that it meets.

        Args:
            labels: Of the activation.
            parameter: The parameter, a rearrangement or a function of some; both broadcast.
            operator: What brings them together.
        """
        source = self.source(parameter)
        if source is None:
            self.refuse(labels, f"{operator} with a value computed from parameters")
            return
        a, b = torch.broadcast_tensors(*compact_pair(labels, source[1]))
        pairs = (b * self.units.count + a)[is_unit(a)].unique()
        element, unit = pairs // self.units.count, pairs % self.units.count
        self._meetings.append((source[0], element, unit))

    def contraction(self, weight: Tensor, bias: Any, kind: str) -> None:
        """Note a convolution or linear map in order of execution."""
        name = self.owner(weight)
        if name is not None:
            whole = weight.numel() == self._tensors[name].numel()
            self.contractions.append(Contraction(name, self.owner(bias), kind, whole))

    def set_aside(self, tensors: Iterable[Any], reason: str) -> None:
        """Parameters that have no units of their own, with the reason."""
        for tensor in tensors:
            if isinstance(tensor, Tensor):
                for name in self._names_in(tensor):
                    self.aside[name] = reason

    def not_understood(self, tensor: Tensor, reason: str) -> None:
        """Leave alone whatever units live in the parameters that `tensor` is made of."""
        for name in self._names_in(tensor):
            self._not_understood[name] = reason

    # Closing the books -------------------------------------------------------------------

    def finish(self, outputs: Any) -> None:
        """Draw the conclusions that need the whole run: outputs, shared weights, splits.

        Args:
            outputs: What the network returned; the units in it are never removed.
        """
        for tensor in tree_leaves(outputs):
            self.refuse(self.of(tensor), "output layer")
        for (name, _, between), uses in self._uses.items():
            for i, one in enumerate(uses):
                for other in uses[: 0 if between else i]:
                    if (is_unit(one) & is_unit(other)).any():
                        self.refuse(one, f"shared weight: {name} is used more than once")
                        self.refuse(other, f"shared weight: {name} is used more than once")
        self._balance_splits()
        for name, element, unit in self._meetings:
            self._belong(name, element, self.units.roots(unit))
        self._balance_splits()
        for labels, dims, reason in self._mixing:
            if not self.same_along(labels, dims):
                self.refuse(labels, reason)
        for name, labels in self._element_labels.items():
            self.touched.add(name)
            axis = self._element_axis(name, labels.view(self._tensors[name].shape))
            if axis is not None:
                self.axes.append(axis)
        for name, reason in self._not_understood.items():
            self.aside.setdefault(name, reason)
            for axis in self.axes:
                if axis.tensor == name:
                    self.refuse(axis.labels, reason)

    def _belong(self, name: str, element: Tensor, unit: Tensor) -> None:
        """Elements of a parameter (flat indices) met units: theirs they are, or nobody's."""
        number = len(unit.unique())
        width = int(unit.max()) + 1 if number else 1
        met = (element * width + unit).unique() // width
        often = torch.unique_consecutive(met, return_counts=True)[1]
        if self._tensors[name].numel() == 1 or (number > 1 and bool((often == number).any())):
            self.touched.add(name)
            self.aside.setdefault(name, "one value for all units")
        else:
            self.tie(self._elements(name)[element], unit)

    def _elements(self, name: str) -> Tensor:
        """A label for each element of a parameter or buffer, flat."""
        if name not in self._element_labels:
            self._element_labels[name] = self.units.fresh(self._tensors[name].numel())
        return self._element_labels[name]

    def _element_axis(self, name: str, labels: Tensor) -> Axis | None:
        """The dimension of an elementwise parameter along which its units lie."""
        if labels.dim() == 0:
            return None
        roots = self.units.roots(labels)
        sizes = []
        for dim in range(labels.dim()):
            others = [d for d in range(labels.dim()) if d != dim]
            first = representative(roots, others)
            changes = int((roots != first).sum())
            sizes.append((changes, -len(first.unique()), dim))
        dim = min(sizes)[2]
        others = [d for d in range(labels.dim()) if d != dim]
        first = self.tie_along(labels, others, f"parameter {name}")
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


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _within(flat: Tensor, tensor: Tensor) -> Tensor:
    """The part of a storage's flat labels that `tensor` sees."""
    return flat.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


def _dim_of_stride(whole: Tensor, stride: int) -> int:
    """The dimension of a contiguous tensor that a (size-one) view dimension runs along.

    Neighbours of a dimension of size one have its stride too, so size one comes first.
    """
    places = [d for d in range(whole.dim()) if whole.stride(d) == stride]
    return min(places, key=lambda d: whole.shape[d], default=0)
