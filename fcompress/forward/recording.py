"""One forward as a list of operators that can be run again, step by step, over many batches.

Refitting needs the inputs of one layer over all calibration data after the layers before it
have changed. Running whole networks for every layer would cost a sweep each; a recording is
advanced over all batches to the next layer instead, so a whole pass from input to output costs
one sweep, with only the live activations of the frontier in memory.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves

from fcompress.forward.graph import (
    Layer,
    Map,
    Named,
    Step,
    Value,
    find_layers,
    find_maps,
    run,
)
from fcompress.forward.predictor import Predictor, as_predictor
from fcompress.forward.running import quiet_tracing, step_by_step, tensors_of


@dataclass(frozen=True)
class Recording:
    """The steps of one forward for one batch size.

    Attributes:
        steps: Operators in order.
        inputs: Slots of the inputs.
        outputs: Slots of the output tensors.
        layers: Convolutions and linear maps in order whose weight is a whole parameter, and whose
            weight and bias nothing else uses.
        maps: All convolutions and products with a parameter, in order, layers or not.
    """

    steps: list[Step]
    inputs: list[int]
    outputs: list[int]
    layers: list[Layer]
    maps: list[Map]

    def layer(self, weight: str) -> Layer:
        """The layer with that weight."""
        return next(layer for layer in self.layers if layer.weight == weight)


class _Recorder(TorchDispatchMode):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.steps: list[Step] = []
        self._tensors = tensors_of(model)
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
        for result in tree_leaves(out):
            if not isinstance(result, Tensor):
                # What an operator leaves out here it may return elsewhere, under gradients.
                self._count += 1
                outs.append(self._count)
                continue
            outs.append(self.slot(result, new=True))
            name = self._storages.get(result.untyped_storage().data_ptr())
            if name is not None and result.numel() == self._tensors[name].numel():
                self.aliases[outs[-1]] = name
        self.steps.append(Step(func, references, spec, outs))
        return out


def record(model: nn.Module | Predictor, inputs: Tensor) -> Recording:
    """Record the operators of one forward.

    Args:
        model: A network on the device of `inputs`, run in eval mode.
        inputs: One batch [N, ...]. The recording holds for batches of this size only.

    Returns:
        The steps; parameters are looked up by name whenever it is run.
    """
    predictor = as_predictor(model)
    model = predictor.network
    training = [m for m in model.modules() if m.training]
    model.eval()
    recorder = _Recorder(model)
    inputs = inputs.clone()
    try:
        with quiet_tracing(), step_by_step(model):
            first = recorder.slot(inputs, new=True)
            with recorder:
                outputs = predictor(inputs)
            slots = [recorder.slot(t) for t in tree_leaves(outputs) if isinstance(t, Tensor)]
    finally:
        for module in training:
            module.training = True
    steps = recorder.steps
    layers = find_layers(steps, recorder.aliases)
    _note_last_uses(steps, {first, *slots})
    for layer in layers:
        if layer.out in steps[layer.step].frees:  # nothing reads it, but whoever asks for it may
            steps[layer.step].frees.remove(layer.out)
    return Recording(steps, [first], slots, layers, find_maps(steps, recorder.aliases))


def _note_last_uses(steps: list[Step], keep: set[int]) -> None:
    last: dict[int, int] = {}
    for index, step in enumerate(steps):
        for slot in [*step.outs, *(leaf.slot for leaf in step.leaves if isinstance(leaf, Value))]:
            last[slot] = index
    for slot, index in last.items():
        if slot not in keep:
            steps[index].frees.append(slot)


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


def frontier_bytes(
    model: nn.Module | Predictor, example: Tensor, known: dict[int, Recording] | None = None
) -> int:
    """The most bytes of activations that have to be kept at once to go on with a forward.

    What is the same for all examples (parameters, their transposes, what is computed from them or
    made by the network itself) is not counted: it does not grow with them.

    Args:
        model: A network in eval mode.
        example: Inputs [1, ...], on its device.
        known: As for `recordings_for`.
    """
    recording = recordings_for(model, [example], known)[len(example)]
    tensors = as_predictor(model).tensors()
    values = {recording.inputs[0]: example.clone()}
    reached = set(values)
    most = 0
    with torch.no_grad():
        for step in recording.steps:
            run([step], values, tensors)
            if any(isinstance(leaf, Value) and leaf.slot in reached for leaf in step.leaves):
                reached.update(step.outs)
            storages = {
                v.untyped_storage().data_ptr(): v.untyped_storage()
                for slot, v in values.items()
                if slot in reached
            }
            most = max(most, sum(storage.nbytes() for storage in storages.values()))
    return most


def recordings_for(
    model: nn.Module | Predictor,
    batches: Sequence[Tensor],
    known: dict[int, Recording] | None = None,
) -> dict[int, Recording]:
    """A recording for each batch size among `batches`.

    Args:
        model: The network, in eval mode.
        batches: Inputs [N, ...].
        known: Recordings of it that exist already, by batch size; what is missing is added, so
            that a network is recorded once for each size whoever asks.
    """
    found = {} if known is None else known
    for batch in batches:
        if len(batch) not in found:
            found[len(batch)] = record(model, batch)
    return found


def copies(values: Mapping[int, Tensor]) -> dict[int, Tensor]:
    """Copies that share memory with each other exactly where the originals do."""
    storages: dict[int, torch.UntypedStorage] = {}
    copies = {}
    for slot, value in values.items():
        storage = value.untyped_storage()
        if storage.data_ptr() not in storages:
            storages[storage.data_ptr()] = storage.clone()
        memory = storages[storage.data_ptr()]
        copies[slot] = value.new_empty(0).set_(
            memory, value.storage_offset(), value.shape, value.stride()
        )
    return copies


def to_end(
    recording: Recording, start: int, values: dict[int, Tensor], tensors: Mapping[str, Tensor]
) -> Tensor:
    """Run a recording from a step to its end: the outputs."""
    run(recording.steps[start:], values, tensors)
    return values[recording.outputs[0]]
