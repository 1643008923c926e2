"""Run a network on labels: which unit does every element of every activation belong to?

A `Tracer` is active while a network runs once on a real example. Beside each activation it
keeps an integer tensor of the same shape that names, element by element, the unit the element
belongs to. Operators that only move data are executed on the labels as they are, so permutes,
shuffles, windows and flattening need no index arithmetic of our own. Elementwise operators tie
the labels of their operands together. Convolutions and matrix products end one set of units
and begin another. `groups.py` turns what was recorded into groups.

Label 0 (`NONE`) marks constants and padding, which belong to nobody and match everything.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fcompress.models.lrn import LocalResponseNorm
from fcompress.unionfind import UnionFind

NONE = 0


@dataclass(frozen=True)
class Axis:
    """One dimension of one parameter or buffer, with the unit of each of its indices.

    Attributes:
        tensor: Qualified name of the parameter or buffer.
        dim: The dimension that is cut when units go.
        labels: int64 [size of the dimension]; `NONE` where the index belongs to no unit.
        role: "producer" (rows that write units), "consumer" (columns that read them) or
            "between" (one value or slice for each unit: biases, norms, scales, buffers).
    """

    tensor: str
    dim: int
    labels: Tensor
    role: str


@dataclass(frozen=True)
class Contraction:
    """One convolution or linear map with a weight of the network, in order of execution."""

    weight: str
    bias: str | None
    kind: str
    whole: bool


class Tracer(TorchDispatchMode):
    """Carries labels beside activations while the network runs.

    Args:
        model: The network, in eval mode; its parameters and buffers are recognised by storage.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.units = UnionFind()
        self.axes: list[Axis] = []
        self.contractions: list[Contraction] = []
        self.reasons: list[tuple[Tensor, str]] = []
        self.splits: list[Tensor] = []
        self.touched: set[str] = set()
        self.aside: dict[str, str] = {}
        self.not_understood: dict[str, str] = {}
        self._uses: dict[tuple[str, int], list[Tensor]] = {}
        self._labels: dict[int, tuple[weakref.ref[Tensor], Tensor]] = {}
        self._written: dict[int, tuple[Tensor, Tensor]] = {}
        self._element_labels: dict[str, Tensor] = {}
        self._copies: dict[int, tuple[weakref.ref[Tensor], str, Tensor]] = {}
        self._computed: dict[int, tuple[weakref.ref[Tensor], str]] = {}
        self._tensors: dict[str, Tensor] = dict(model.named_parameters())
        self._tensors.update(model.named_buffers())
        self._names: dict[int, str] = {}
        for name, tensor in self._tensors.items():
            if tensor.numel():
                self._names[tensor.untyped_storage().data_ptr()] = name
        self._buffers = {t.untyped_storage().data_ptr() for t in model.buffers() if t.numel()}
        self._paused = False

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
        key = id(tensor)
        if labels is None:
            self._labels.pop(key, None)
            return
        assert labels.shape == tensor.shape, (labels.shape, tensor.shape)
        if _storage(tensor) in self._written:
            _within(self._written[_storage(tensor)][1], tensor).copy_(labels)
            return
        drop = weakref.ref(tensor, lambda _, key=key: self._labels.pop(key, None))  # type: ignore[misc]
        self._labels[key] = (drop, labels)

    def of(self, tensor: Any) -> Tensor | None:
        """Labels of an activation or of a parameter used as one; None for a constant."""
        if not isinstance(tensor, Tensor):
            return None
        written = self._written.get(_storage(tensor))
        if written is not None:
            return _within(written[1], tensor)
        entry = self._labels.get(id(tensor))
        if entry is not None and entry[0]() is tensor and entry[1].shape == tensor.shape:
            return entry[1]
        source = self.source(tensor)
        if source is None:
            return None
        name, index = source
        if name not in self._element_labels:
            self._element_labels[name] = self.units.fresh(self._tensors[name].numel())
        return self._element_labels[name][index]

    def stale(self, tensor: Tensor) -> Tensor | None:
        """Labels of `tensor` from before its shape was changed in place."""
        entry = self._labels.get(id(tensor))
        return entry[1] if entry is not None and entry[0]() is tensor else None

    def source(self, tensor: Tensor) -> tuple[str, Tensor] | None:
        """The parameter or buffer that `tensor` is a rearrangement of, with flat indices."""
        copied = self._copies.get(id(tensor))
        if copied is not None and copied[0]() is tensor:
            return copied[1], copied[2]
        name = self._names.get(_storage(tensor))
        if name is None or not self._tensors[name].is_contiguous():
            return None
        flat = torch.arange(self._tensors[name].numel())
        return name, _within(flat, tensor)

    def is_parameter(self, tensor: Any) -> bool:
        """Whether `tensor` is (a rearrangement or a function of) the network's own tensors."""
        return isinstance(tensor, Tensor) and (
            _storage(tensor) in self._names
            or self._alive(self._copies, tensor)
            or self._alive(self._computed, tensor)
        )

    def is_buffer(self, tensor: Any) -> bool:
        """Whether `tensor` is a buffer: data that the network brings along."""
        return isinstance(tensor, Tensor) and _storage(tensor) in self._buffers

    def _alive(self, table: dict[int, Any], tensor: Tensor) -> bool:
        entry = table.get(id(tensor))
        return entry is not None and entry[0]() is tensor

    def write(self, target: Tensor, labels: Tensor) -> None:
        """Labels written in place into a part of a storage, seen by all that share it."""
        key = _storage(target)
        if key not in self._written:
            storage = target.untyped_storage()
            flat = torch.zeros(storage.nbytes() // target.element_size(), dtype=torch.int64)
            for ref, known in list(self._labels.values()):
                other = ref()
                if other is not None and _storage(other) == key:
                    _within(flat, other).copy_(known)
            # Holding the target keeps its storage, and so its address, alive.
            self._written[key] = (target, flat)
        _within(self._written[key][1], target).copy_(labels)

    # Ties between units ------------------------------------------------------------------

    def tie(self, a: Tensor, b: Tensor) -> None:
        """Units of elements at the same place (after broadcasting) belong together."""
        a, b = compact_pair(a, b)
        different = (a != b) & (a != NONE) & (b != NONE)
        if different.any():
            self.units.union(a[different], b[different])

    def tie_along(self, labels: Tensor, dims: Sequence[int]) -> Tensor:
        """Tie units that differ along `dims`; returns one label for each, dims kept as 1."""
        first = representative(labels, dims)
        self.tie(compact(labels), compact(first))
        return first

    def same_along(self, labels: Tensor, dims: Sequence[int]) -> bool:
        """Whether every element along `dims` belongs to the same unit (or to none)."""
        roots = self.units.roots(compact(labels))
        first = representative(roots, dims)
        return bool(((roots == first) | (roots == NONE)).all())

    # Parameters --------------------------------------------------------------------------

    def record(self, tensor: Tensor, dim: int, labels: Tensor, role: str) -> None:
        """Index i along `dim` of `tensor`, a view of a parameter, belongs to `labels[i]`."""
        name = self._names.get(_storage(tensor))
        if name is None:
            self.refuse(labels, "its weight is computed from other parameters")
            return
        whole = self._tensors[name]
        self.touched.add(name)
        flat = tensor.storage_offset() + torch.arange(tensor.shape[dim]) * tensor.stride(dim)
        index = torch.stack(torch.unravel_index(flat, whole.shape))
        moving = [d for d in range(whole.dim()) if bool((index[d] != index[d][0]).any())]
        if not moving:
            moving = [_dim_of_stride(whole, tensor.stride(dim))]
        at = moving[0]
        full = torch.zeros(whole.shape[at], dtype=torch.int64)
        full[index[at]] = labels
        if len(moving) > 1:
            self.tie(full[index[at]], labels)
        self.axes.append(Axis(name, at, full, role))
        if role != "between":
            self._uses.setdefault((name, at), []).append(full)

    def contraction(self, weight: Tensor, bias: Any, kind: str) -> None:
        """Note a convolution or linear map in order of execution."""
        name = self._names.get(_storage(weight))
        if name is not None:
            whole = weight.numel() == self._tensors[name].numel()
            known = self._names.get(_storage(bias)) if isinstance(bias, Tensor) else None
            self.contractions.append(Contraction(name, known, kind, whole))

    def set_aside(self, tensors: Sequence[Any], reason: str) -> None:
        """Parameters that have no units of their own, with the reason."""
        for tensor in tensors:
            name = self._names.get(_storage(tensor)) if isinstance(tensor, Tensor) else None
            if name is not None:
                self.touched.add(name)
                self.aside[name] = reason

    def finish(self, outputs: Any) -> None:
        """Close the books once the network has run: outputs, shared weights, elementwise axes.

        Args:
            outputs: What the network returned; the units in it are never removed.
        """
        for tensor in tree_leaves(outputs):
            self.refuse(self.of(tensor), "output layer")
        for (name, _), uses in self._uses.items():
            for i, one in enumerate(uses):
                for other in uses[:i]:
                    if ((one != NONE) & (other != NONE)).any():
                        self.refuse(one, f"shared weight: {name} is used more than once")
                        self.refuse(other, f"shared weight: {name} is used more than once")
        self._balance_splits()
        for name, labels in self._element_labels.items():
            self.touched.add(name)
            axis = self._element_axis(name, labels.view(self._tensors[name].shape))
            if axis is not None:
                self.axes.append(axis)
        for name, reason in self.not_understood.items():
            self.touched.add(name)
            for axis in self.axes:
                if axis.tensor == name:
                    self.refuse(axis.labels, reason)

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
        first = self.tie_along(labels, [d for d in range(labels.dim()) if d != dim])
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
                roots = self.units.roots(parts)
                if bool((roots == roots[:, :1]).all()) or bool((roots == roots[:1]).all()):
                    continue
                self.tie(parts, parts[:1])
                changed = True

    # Dispatch ----------------------------------------------------------------------------

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Execute the operator, then say what it does to labels."""
        from fcompress.label_rules import propagate

        kwargs = kwargs or {}
        if self._paused:
            return func(*args, **kwargs)
        out = func(*args, **kwargs)
        propagate(self, func, args, kwargs, out)
        return out

    def copy_of(self, tensor: Tensor, name: str, index: Tensor) -> None:
        """`tensor` holds elements `index` (flat) of parameter `name`."""
        self._copies[id(tensor)] = (weakref.ref(tensor), name, index)

    def computed_from(self, tensor: Tensor, operator: str) -> None:
        """`tensor` is a function of parameters alone, which excision cannot follow."""
        self._computed[id(tensor)] = (weakref.ref(tensor), operator)

    def pass_through(self, model: nn.Module) -> list[Any]:
        """Hooks for modules whose excision equals zeroing though they mix units inside."""
        handles: list[Any] = []

        def enter(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            self._paused = True

        def leave(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
            self._paused = False
            labels = self.of(inputs[0])
            if labels is None:
                return
            self.set(output, labels)
            others = [d for d in range(labels.dim()) if d != 1]
            channel = self.tie_along(labels, others).flatten()
            self.record(module.positions, 0, channel, "between")  # type: ignore[arg-type]

        for module in model.modules():
            if isinstance(module, LocalResponseNorm):
                handles += [
                    module.register_forward_pre_hook(enter),
                    module.register_forward_hook(leave),
                ]
        return handles


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _within(flat: Tensor, tensor: Tensor) -> Tensor:
    """The part of a storage's flat labels that `tensor` sees."""
    return flat.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


def _dim_of_stride(whole: Tensor, stride: int) -> int:
    """The dimension of a contiguous tensor that a (size-one) view dimension runs along."""
    strides = list(whole.stride())
    return strides.index(stride) if stride in strides else 0


def compact(labels: Tensor) -> Tensor:
    """`labels` with every expanded dimension (stride 0) narrowed to size 1."""
    for dim, stride in enumerate(labels.stride()):
        if stride == 0 and labels.shape[dim] > 1:
            labels = labels.narrow(dim, 0, 1)
    return labels


def compact_pair(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Two label tensors broadcast against each other without expanded dimensions."""
    a, b = torch.broadcast_tensors(a, b)
    for dim in range(a.dim()):
        if a.shape[dim] > 1 and a.stride(dim) == 0 and b.stride(dim) == 0:
            a, b = a.narrow(dim, 0, 1), b.narrow(dim, 0, 1)
    return a, b


def representative(labels: Tensor, dims: Sequence[int]) -> Tensor:
    """One label along `dims` (kept with size 1): any that is not `NONE`, if there is one."""
    labels = compact(labels)
    dims = [d for d in dims if labels.shape[d] > 1]
    return labels.amax(dims, keepdim=True) if dims and labels.numel() else labels


def labels_in(labels: Tensor) -> Tensor:
    """The distinct labels of a tensor, without `NONE`."""
    found = compact(labels).unique()
    return found[found != NONE]
