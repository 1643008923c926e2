"""Around a forward pass: devices, clocks, dtypes, and tracing without surprises."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from fcompress.arguments.numbers import DEVICE
from fcompress.errors import FcompressError, UnsupportedNetworkError, code_of_users, said_by


def own_copies(inputs: Any) -> Any:
    """Inputs for one pass, so that a network that works on them in place leaves the caller's."""
    return tree_map(lambda value: value.clone() if isinstance(value, Tensor) else value, inputs)


def tensors_in(values: Any) -> list[Tensor]:
    """All tensors in nested arguments or results."""
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def device_of(name: str | torch.device) -> torch.device:
    """The device that a name stands for: "auto" is a GPU if there is one.

    Raises:
        FcompressError: It is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if DEVICE.fullmatch(str(name)) is None:
        raise FcompressError(f"device {name}: expected auto, cpu, cuda, cuda:1 or mps")
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise FcompressError(f"device {device}: torch finds no GPU here; take device cpu or auto")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise FcompressError(f"device {device}: there are {count}, numbered from cuda:0")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise FcompressError("device mps: torch finds none here; take device cpu or auto")
    return device


@contextmanager
def runs_on(*inputs: Any, described: str = "") -> Iterator[None]:
    """Whatever a network's own code raises becomes the error that it does not run on its inputs.

    Args:
        inputs: What it is given.
        described: In words, where their shapes do not say it.

    Raises:
        UnsupportedNetworkError: Something was raised that is no `FcompressError`, an exit too.
    """
    with code_of_users(lambda error: cannot_run(inputs, error, described)):
        yield


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, shared ones once."""
    return dict(model.named_parameters()) | dict(model.named_buffers())


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


@contextmanager
def step_by_step(model: nn.Module) -> Iterator[None]:
    """Recurrent layers execute the operators of each step, and no fused one that hides them."""
    fused = torch._C._get_mkldnn_enabled()
    recurrent = any(isinstance(module, nn.RNNBase) for module in model.modules())
    torch._C._set_mkldnn_enabled(fused and not recurrent)
    try:
        with torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled and not recurrent):
            yield
    finally:
        torch._C._set_mkldnn_enabled(fused)


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


def cannot_run(
    inputs: tuple[Any, ...], error: BaseException, described: str = ""
) -> UnsupportedNetworkError:
    """The error for a network that does not run on its example."""
    tensors = [t for t in inputs if isinstance(t, Tensor)]
    shapes = [tuple(t.shape) for t in tensors]
    types = ", ".join(sorted({str(t.dtype).removeprefix("torch.") for t in tensors}))
    what = described or f"an example of shape {shapes} ({types})"
    return UnsupportedNetworkError(
        f"the network does not run on {what}: {said_by(error)}; give data of the "
        f"{'names, ' if described else ''}shape and type it expects"
    )
