"""One forward as a list of operators that can be run again, step by step, over many batches.

Refactoring needs the inputs of one layer over all calibration data after the layers before it
have changed. Running whole networks for every layer would cost a sweep each; a recording is
advanced over all batches to the next layer instead, so a whole pass from input to output costs
one sweep, with only the live activations of the frontier in memory.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_unflatten

from fcompress.groups import quiet_tracing

BATCH_NORMS = frozenset(
    (
        "native_batch_norm cudnn_batch_norm _native_batch_norm_legit "
        "_native_batch_norm_legit_no_training _batch_norm_no_update"
    ).split()
)
RECTIFIERS = frozenset(("relu", "relu_", "hardtanh", "hardtanh_"))


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
        outs: Slot of each returned tensor, in order.
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
        return self.func(*args, **kwargs)

    @property
    def keywords(self) -> dict[str, Any]:
        """Keyword arguments."""
        return dict(tree_unflatten(self.leaves, self.spec)[1])

    def argument(self, position: int) -> Any:
        """Positional argument with tensors as `Value` or `Named`."""
        return tree_unflatten(self.leaves, self.spec)[0][position]


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


@dataclass(frozen=True)
class Recording:
    """The steps of one forward for one batch size.

    Attributes:
        steps: Operators in order.
        inputs: Slots of the inputs.
        outputs: Slots of the output tensors.
        layers: Convolutions and linear maps in order whose weight is a whole parameter, and whose
            weight and bias nothing else uses.
    """

    steps: list[Step]
    inputs: list[int]
    outputs: list[int]
    layers: list[Layer]

    def layer(self, weight: str) -> Layer:
        """The layer with that weight."""
        return next(layer for layer in self.layers if layer.weight == weight)


class _Recorder(TorchDispatchMode):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.steps: list[Step] = []
        self._tensors = dict(model.named_parameters()) | dict(model.named_buffers())
        self._names = {id(t): name for name, t in self._tensors.items()}
        self._slots: dict[int, tuple[weakref.ref[Tensor], int]] = {}
        self._count = 0
        self.aliases: dict[int, str] = {}
        self._storages = {
            t.untyped_storage().data_ptr(): n for n, t in self._tensors.items() if t.numel()
        }

    def slot(self, tensor: Tensor, *, new: bool = False) -> int:
        entry = self._slots.get(id(tensor))
        if entry is not None and entry[0]() is tensor:
            return entry[1]
        if not new:
            return -1
        self._count += 1
        self._slots[id(tensor)] = (weakref.ref(tensor), self._count)
        return self._count

    def reference(self, leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        if id(leaf) in self._names:
            return Named(self._names[id(leaf)])
        slot = self.slot(leaf)
        return Value(slot) if slot >= 0 else leaf

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        leaves, spec = tree_flatten((args, kwargs or {}))
        references = [self.reference(leaf) for leaf in leaves]
        out = func(*args, **(kwargs or {}))
        outs = []
        for result in (r for r in tree_leaves(out) if isinstance(r, Tensor)):
            outs.append(self.slot(result, new=True))
            name = self._storages.get(result.untyped_storage().data_ptr())
            if name is not None and result.numel() == self._tensors[name].numel():
                self.aliases[outs[-1]] = name
        self.steps.append(Step(func, references, spec, outs))
        return out


def record(model: nn.Module, inputs: Tensor) -> Recording:
    """Record the operators of one forward.

    Args:
        model: A network on the device of `inputs`, run in eval mode.
        inputs: One batch [N, ...]. The recording holds for batches of this size only.

    Returns:
        The steps; parameters are looked up by name whenever it is run.
    """
    training = [m for m in model.modules() if m.training]
    model.eval()
    recorder = _Recorder(model)
    inputs = inputs.clone()
    try:
        with quiet_tracing():
            first = recorder.slot(inputs, new=True)
            with recorder:
                outputs = model(inputs)
            slots = [recorder.slot(t) for t in tree_leaves(outputs) if isinstance(t, Tensor)]
    finally:
        for module in training:
            module.training = True
    steps = recorder.steps
    layers = _find_layers(steps, recorder.aliases)
    _note_last_uses(steps, {first, *slots})
    for layer in layers:
        if layer.out in steps[layer.step].frees:  # nothing reads it, but whoever asks for it may
            steps[layer.step].frees.remove(layer.out)
    return Recording(steps, [first], slots, layers)


def _note_last_uses(steps: list[Step], keep: set[int]) -> None:
    last: dict[int, int] = {}
    for index, step in enumerate(steps):
        for slot in [*step.outs, *(leaf.slot for leaf in step.leaves if isinstance(leaf, Value))]:
            last[slot] = index
    for slot, index in last.items():
        if slot not in keep:
            steps[index].frees.append(slot)


def _find_layers(steps: list[Step], aliases: Mapping[int, str]) -> list[Layer]:
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


class Replay:
    """A network's recordings advanced over several batches together.

    Args:
        recordings: A recording for each batch size that occurs.
        tensors: Parameters and buffers by name; changes are seen by all later steps.
        batches: Inputs [N, ...]; each needs a recording of its size.
    """

    def __init__(
        self,
        recordings: Mapping[int, Recording],
        tensors: Mapping[str, Tensor],
        batches: Sequence[Tensor],
    ) -> None:
        self.tensors = tensors
        self._recordings = [recordings[len(batch)] for batch in batches]
        self._values: list[dict[int, Tensor]] = [
            {recording.inputs[0]: batch.clone()}
            for recording, batch in zip(self._recordings, batches, strict=True)
        ]
        self._at = 0

    def advance(self, step: int) -> None:
        """Run every batch up to, not including, step number `step`."""
        with torch.no_grad():
            for recording, values in zip(self._recordings, self._values, strict=True):
                run(recording.steps[self._at : step], values, self.tensors)
        self._at = max(self._at, step)

    def layer(self, index: int) -> list[Layer]:
        """Layer number `index` in each batch's recording."""
        return [recording.layers[index] for recording in self._recordings]

    @property
    def layer_list(self) -> list[Layer]:
        """The layers in order, as recorded for the first batch."""
        return self._recordings[0].layers

    def inputs(self, index: int) -> list[Tensor]:
        """Inputs of layer number `index`, batch by batch; the frontier stands before it."""
        layers = self.layer(index)
        self.advance(layers[0].step)
        return [v[layer.x] for v, layer in zip(self._values, layers, strict=True)]

    def joined(self, index: int) -> list[Tensor]:
        """What will be added to the output of layer number `index`, batch by batch."""
        layers = self.layer(index)
        return [
            v[layer.joins]
            for v, layer in zip(self._values, layers, strict=True)
            if layer.joins is not None
        ]

    def finish(self) -> list[Tensor]:
        """Run to the end; the first output of every batch."""
        self.advance(len(self._recordings[0].steps))
        return [v[r.outputs[0]] for v, r in zip(self._values, self._recordings, strict=True)]


def frontier_bytes(model: nn.Module, example: Tensor) -> int:
    """The most bytes of activations that have to be kept at once to go on with a forward.

    Args:
        model: A network in eval mode.
        example: Inputs [1, ...], on its device.
    """
    recording = record(model, example)
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    values = {recording.inputs[0]: example.clone()}
    most = 0
    with torch.no_grad():
        for step in recording.steps:
            run([step], values, tensors)
            storages = {
                v.untyped_storage().data_ptr(): v.untyped_storage() for v in values.values()
            }
            most = max(most, sum(storage.nbytes() for storage in storages.values()))
    return most


def run(steps: Sequence[Step], values: dict[int, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Execute steps on the values of one batch, dropping what nothing needs any more."""
    for step in steps:
        results = step.call(values, tensors)
        made = [r for r in tree_leaves(results) if isinstance(r, Tensor)]
        values.update(zip(step.outs, made, strict=True))
        for slot in step.frees:
            values.pop(slot, None)


def recordings_for(model: nn.Module, batches: Sequence[Tensor]) -> dict[int, Recording]:
    """A recording for each batch size among `batches`."""
    found: dict[int, Recording] = {}
    for batch in batches:
        if len(batch) not in found:
            found[len(batch)] = record(model, batch)
    return found
