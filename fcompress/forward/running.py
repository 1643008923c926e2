"""How a network is run: in eval mode, on its device, on whatever it takes, for its scores only."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fcompress.data.packing import Packing
from fcompress.errors import TrainingError, UnsupportedNetworkError, first_line
from fcompress.forward.scoring import Scoring, forget_reading, is_read, read_as, scoring_of


def device_of(name: str) -> torch.device:
    """The device that a name of `DEVICES` stands for.

    Raises:
        TrainingError: It is not there.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise TrainingError("device cuda: torch finds no GPU here; take device cpu or auto")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def now(device: torch.device) -> float:
    """Seconds on a clock, once the device has done all it was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


@contextmanager
def quiet_tracing() -> Iterator[None]:
    """No gradients, and no fused attention fast path, which hides what it computes.

    The random state of the CPU is as before afterwards, whatever ran in between.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def as_inputs(example: Any, dtype: torch.dtype) -> tuple[Any, ...]:
    """Positional inputs with floating point tensors in `dtype`, on the CPU."""
    items = example if isinstance(example, tuple) else (example,)
    return tuple(_placed(item, dtype) if isinstance(item, Tensor) else item for item in items)


def _placed(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    tensor = tensor.detach().cpu()
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def dtype_of(model: nn.Module) -> torch.dtype:
    """The floating point type that a network computes in."""
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)


def cannot_run(inputs: tuple[Any, ...], error: Exception) -> UnsupportedNetworkError:
    """The error for a network that does not run on its example."""
    tensors = [t for t in inputs if isinstance(t, Tensor)]
    shapes = [tuple(t.shape) for t in tensors]
    types = ", ".join(sorted({str(t.dtype).removeprefix("torch.") for t in tensors}))
    return UnsupportedNetworkError(
        f"the network does not run on an example of shape {shapes} ({types}): "
        f"{type(error).__name__}: {first_line(error)}; give data of the shape and type it expects"
    )


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode without gradients; afterwards each module's mode and the random state return.

    Args:
        model: Modes are restored module by module, so that a partly frozen network stays so.
    """
    modes = [(module, module.training) for module in model.modules()]
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    model.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=list(devices)):
            yield
    finally:
        for module, training in modes:
            module.training = training


def placed(model: nn.Module, inputs: Tensor) -> Tensor:
    """Bring a batch to the device of the network, floating point inputs also to its dtype."""
    parameter = next(model.parameters(), None)
    if parameter is None:
        return inputs
    if inputs.is_floating_point() and parameter.is_floating_point():
        return inputs.to(parameter.device, parameter.dtype)
    return inputs.to(parameter.device)


def class_scores(model: nn.Module, inputs: Tensor) -> Tensor:
    """Run a classifier.

    Args:
        model: The network, on the device and in the dtype of `inputs`. Where among its outputs
            the scores are is what it carries (`scoring.scoring_of`).
        inputs: [n, ...], as the network takes them.

    Returns:
        [n, classes], or what else `Scoring.scores` allows.

    Raises:
        UnsupportedNetworkError: The network gives anything but scores of its kind of labels.
    """
    return scoring_of(model).scores(model(inputs), type(model).__name__, len(inputs))


@dataclass(frozen=True)
class _Unpack:
    """Hands a network its several inputs; one tensor comes in (`data/packing.py`)."""

    packing: Packing

    def __call__(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        kinds = (p.dtype for p in module.parameters() if p.is_floating_point())
        return self.packing.unpack(args[0], next(kinds, None))


@dataclass(frozen=True)
class _Choose:
    """Lets a network return its scores only."""

    scoring: Scoring

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        return self.scoring.chosen(output)


@contextmanager
def connected(model: nn.Module, packing: Packing | None, scoring: Scoring) -> Iterator[None]:
    """Let a network take one tensor and return its scores only, whatever it takes and returns.

    A copy that is made meanwhile stays connected until `disconnect`. A network that is connected
    already stays as it is.

    Args:
        model: The network.
        packing: How several inputs lie in one tensor; None for a network that takes one tensor.
        scoring: How its labels are read.
    """
    if any(isinstance(hook, _Choose) for hook in model._forward_hooks.values()):
        yield
        return
    if packing is not None:
        model.register_forward_pre_hook(_Unpack(packing), with_kwargs=True)
    # Before all other hooks, so that they see what the network returns from now on.
    before = scoring_of(model) if is_read(model) else None
    model.register_forward_hook(_Choose(scoring), prepend=True)
    read_as(model, Scoring(None, scoring.labels))
    try:
        yield
    finally:
        _remove(model)
        if before is None:
            forget_reading(model)
        else:
            read_as(model, before)


def disconnect(model: nn.Module) -> None:
    """Let a copy of a connected network take and return what the original does.

    It still carries how its labels are read.
    """
    choose = _remove(model)
    if choose is not None and choose.scoring == Scoring():
        forget_reading(model)
    elif choose is not None:
        read_as(model, choose.scoring)


def _remove(model: nn.Module) -> _Choose | None:
    """Take the hooks of `connected` off a network."""
    found = None
    for key, hook in list(model._forward_pre_hooks.items()):
        if isinstance(hook, _Unpack):
            del model._forward_pre_hooks[key]
            model._forward_pre_hooks_with_kwargs.pop(key, None)
    for key, after in list(model._forward_hooks.items()):
        if isinstance(after, _Choose):
            del model._forward_hooks[key]
            found = after
    return found
