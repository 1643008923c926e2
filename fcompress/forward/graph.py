"""The operators of one forward as a list of steps, and the layers found among them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_leaves, tree_unflatten

BATCH_NORMS = frozenset(
    (
        "native_batch_norm cudnn_batch_norm _native_batch_norm_legit "
        "_native_batch_norm_legit_no_training _batch_norm_no_update"
    ).split()
)
RECTIFIERS = frozenset(("relu", "relu_", "hardtanh", "hardtanh_"))


_SIZED = frozenset(("view", "_unsafe_view", "reshape"))


@dataclass(frozen=True)
class Value:
    """A place in a recording that holds an activation."""

    slot: int


@dataclass(frozen=True)
class Named:
    """A parameter or buffer, looked up anew at every run."""

    name: str


@dataclass
class Step:
    """One executed operator.

    Attributes:
        func: The operator.
        leaves: Its flattened arguments; tensors stand as `Value`, `Named` or themselves.
        spec: How to put the arguments together again.
        outs: Slot of each value that was returned, in order, whether it was a tensor or not.
        frees: Slots that nothing needs after this step.
    """

    func: Any
    leaves: list[Any]
    spec: TreeSpec
    outs: list[int]
    frees: list[int] = field(default_factory=list)

    def call(self, values: Mapping[int, Tensor], tensors: Mapping[str, Tensor]) -> Any:
        """Execute the operator on the values of one batch."""
        leaves = [
            values[leaf.slot]
            if isinstance(leaf, Value)
            else tensors[leaf.name]
            if isinstance(leaf, Named)
            else leaf
            for leaf in self.leaves
        ]
        args, kwargs = tree_unflatten(leaves, self.spec)
        if self.func.overloadpacket.__name__ in _SIZED:
            args = _as_many_rows(*args)
        return self.func(*args, **kwargs)

    @property
    def keywords(self) -> dict[str, Any]:
        """Keyword arguments."""
        return dict(tree_unflatten(self.leaves, self.spec)[1])

    def argument(self, position: int) -> Any:
        """Positional argument with tensors as `Value` or `Named`."""
        return tree_unflatten(self.leaves, self.spec)[0][position]


def _as_many_rows(tensor: Tensor, sizes: Any, *rest: Any) -> tuple[Any, ...]:
    """Arguments of a view whose first dimension has as many rows as came this time.

    How many examples a network sends one way or the other depends on the examples.
    """
    listed = isinstance(sizes, list | tuple) and len(sizes) > 0 and -1 not in sizes
    if listed and math.prod(sizes) != tensor.numel():
        return tensor, [-1, *sizes[1:]], *rest
    return tensor, sizes, *rest


@dataclass(frozen=True)
class Norm:
    """Names of a batch norm's running mean and variance, scale and offset; its epsilon."""

    mean: str
    var: str
    scale: str | None
    offset: str | None
    eps: float


@dataclass(frozen=True)
class Layer:
    """A convolution or linear map found in a recording.

    Attributes:
        weight: Name of its weight.
        bias: Name of its bias, if it has one.
        step: Index of its step.
        x: Slot of its input: [N, C, *spatial], or [rows, features] for a linear map.
        out: Slot of its output.
        convolution: (stride, padding, dilation, groups), None for a linear map.
        inputs_first: Whether a linear map stores its weight as [in, out].
        norm: The batch norm that alone reads the output.
        joins: Slot of what is added to the output (after its norm) and is there before it: the
            skip of a residual block.
        rectified: Whether a ReLU, and nothing else, reads the output (after its norm and sum), so
            that it does not matter how far below zero it is.
    """

    weight: str
    bias: str | None
    step: int
    x: int
    out: int
    convolution: tuple[Any, Any, Any, int] | None
    inputs_first: bool
    norm: Norm | None
    joins: int | None
    rectified: bool


def find_layers(steps: list[Step], aliases: Mapping[int, str]) -> list[Layer]:
    """Convolutions and linear maps among the steps of one forward, in order.

    Args:
        steps: What was recorded.
        aliases: Slot -> name of the parameter or buffer that it is a whole view of.
    """
    readers: dict[int, list[Step]] = {}
    made: dict[int, int] = {}
    for index, step in enumerate(steps):
        for leaf in step.leaves:
            if isinstance(leaf, Value):
                readers.setdefault(leaf.slot, []).append(step)
        for slot in step.outs:
            made.setdefault(slot, index)

    uses = Counter(leaf.name for step in steps for leaf in step.leaves if isinstance(leaf, Named))

    def parameter(reference: Any) -> str | None:
        if isinstance(reference, Named):
            return reference.name
        return aliases.get(reference.slot) if isinstance(reference, Value) else None

    def own(reference: Any) -> str | None:
        name = parameter(reference)
        return name if name and uses[name] == 1 else None

    layers = []
    for index, step in enumerate(steps):
        name = step.func.overloadpacket.__name__
        if name == "convolution":
            x, w, b = (step.argument(i) for i in range(3))
            if step.argument(6):
                continue
            convolution = (*(step.argument(i) for i in (3, 4, 5)), step.argument(8))
        elif name == "addmm":
            b, x, w = (step.argument(i) for i in range(3))
            convolution = None
        elif name == "mm":
            (x, w), b, convolution = (step.argument(i) for i in range(2)), None, None
        else:
            continue
        weight, bias = own(w), own(b)
        if weight is None or not isinstance(x, Value) or x.slot in aliases:
            continue
        if b is not None and bias is None:
            continue
        out = step.outs[0]
        norm, normed = _norm_after(out, readers, own)
        other = _added_to(normed, readers)
        joins = other if other is not None and made.get(other, 0) < index else None
        layers.append(
            Layer(
                weight=weight,
                bias=bias,
                step=index,
                x=x.slot,
                out=out,
                convolution=convolution,
                # A linear layer hands its weight over transposed, `x @ w` the parameter itself.
                inputs_first=convolution is None and isinstance(w, Named),
                norm=norm,
                joins=joins,
                rectified=_rectified(normed, joins is not None, readers),
            )
        )
    return layers


@dataclass(frozen=True)
class Map:
    """A convolution, of either direction, or a product with a parameter.

    Attributes:
        weight: Name of the parameter.
        step: Index of the step.
        places: Slot of the tensor at each of whose positions the whole weight is used once: the
            output, or the input of a transposed convolution.
        rows: Whether that is [rows, features] and not [N, C, *spatial].
    """

    weight: str
    step: int
    places: int
    rows: bool


def find_maps(steps: Sequence[Step], aliases: Mapping[int, str]) -> list[Map]:
    """Everything in a forward that multiplies with a parameter, used once or often.

    Args:
        steps: What was recorded.
        aliases: Slot -> name of the parameter or buffer that it is a whole view of.
    """
    found = []
    for index, step in enumerate(steps):
        name = step.func.overloadpacket.__name__
        if name not in ("convolution", "addmm", "mm"):
            continue
        x, w = (step.argument(i) for i in ((1, 2) if name == "addmm" else (0, 1)))
        weight = w.name if isinstance(w, Named) else None
        if isinstance(w, Value):
            weight = aliases.get(w.slot)
        if weight is None or not isinstance(x, Value):
            continue
        transposed = name == "convolution" and bool(step.argument(6))
        places = x.slot if transposed else step.outs[0]
        found.append(Map(weight, index, places, name != "convolution"))
    return found


def _norm_after(
    out: int, readers: Mapping[int, list[Step]], parameter: Callable[[Any], str | None]
) -> tuple[Norm | None, int]:
    """The batch norm that alone reads a slot, and the slot that holds the value after it."""
    reading = readers.get(out, [])
    if len(reading) == 1 and reading[0].func.overloadpacket.__name__ in BATCH_NORMS:
        scale, offset, mean, var = (parameter(reading[0].argument(i)) for i in (1, 2, 3, 4))
        if mean and var:
            eps = reading[0].argument(-1)
            return Norm(mean, var, scale, offset, float(eps)), reading[0].outs[0]
    return None, out


def _rectified(slot: int, joined: bool, readers: Mapping[int, list[Step]]) -> bool:
    """Whether a slot, or the sum that it goes into if it is joined, is read by a ReLU alone."""
    reading = readers.get(slot, [])
    if joined:
        total = reading[0].outs[0]
        # A sum in place is the same slot, read again further on.
        reading = reading[1:] if total == slot else readers.get(total, [])
    if not reading or reading[0].func.overloadpacket.__name__ not in RECTIFIERS:
        return False
    name = reading[0].func.overloadpacket.__name__
    bounded = name.startswith("hardtanh") and reading[0].argument(1) != 0
    # After a ReLU in place, further readers of the slot read what it left.
    return not bounded and (name.endswith("_") or len(reading) == 1)


def _added_to(slot: int, readers: Mapping[int, list[Step]]) -> int | None:
    """The slot that is added to `slot`, where nothing else reads it before."""
    reading = readers.get(slot, [])
    if not reading:
        return None
    name = reading[0].func.overloadpacket.__name__
    # After an addition in place, further readers of the slot read the sum.
    if name not in ("add", "add_") or (name == "add" and len(reading) > 1):
        return None
    operands = [reading[0].argument(i) for i in range(2)]
    others = [o.slot for o in operands if isinstance(o, Value) and o.slot != slot]
    return others[0] if len(others) == 1 and "alpha" not in reading[0].keywords else None


def run(steps: Sequence[Step], values: dict[int, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Execute steps on the values of one batch, dropping what nothing needs any more."""
    for step in steps:
        results = step.call(values, tensors)
        made = zip(step.outs, tree_leaves(results), strict=True)
        values.update((slot, found) for slot, found in made if isinstance(found, Tensor))
        for slot in step.frees:
            values.pop(slot, None)
