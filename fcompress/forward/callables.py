"""Whatever can be called, as a network: a program in a file, another framework, a function.

It takes what the networks take that it is compared with: tensors, those of floating point numbers
in single precision. It has no parameters, so nothing can be moved to another device.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


class Called(nn.Module):
    """A callable that is run like a network; not changed, and in no mode.

    Attributes:
        name: What to call it in a message.
        dtype: Type that floating point inputs are brought to; None to leave them.
        device: Device that inputs are brought to; None to leave them.
        output: Name under which a single output is known, where the network that it is compared
            with has several.
        shape: Of one example, where the program says it.
        deferred: Of a cascade, what says which examples its original answers: inputs -> bool [n].
    """

    def __init__(
        self,
        call: Callable[..., Any],
        name: str,
        dtype: torch.dtype | None = torch.float32,
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        # Not a submodule: programs have no modes and no parameters of ours.
        self._call = lambda *args, **kwargs: call(*args, **kwargs)
        self.name = name
        self.dtype = dtype
        self.device = device
        self.output: str | int | None = None
        self.shape: tuple[int, ...] | None = None
        self.deferred: Callable[..., Tensor] | None = None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call it; arrays come back as tensors, a list with one entry as that entry."""
        found = _tensors(
            self._call(
                *(self._placed(value) for value in args),
                **{key: self._placed(value) for key, value in kwargs.items()},
            )
        )
        alone = self.output is not None and isinstance(found, Tensor)
        return {str(self.output): found} if alone else found

    def _placed(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        dtype = self.dtype if value.is_floating_point() and self.dtype is not None else value.dtype
        return value.to(self.device or value.device, dtype)


def as_network(given: object) -> nn.Module:
    """A network to be run, of a network, a program of torch.export or any callable.

    Args:
        given: A network comes back as it is.

    Raises:
        TypeError: It is nothing that can be called.

    Example:
        >>> network = as_network(lambda inputs: [inputs.numpy() * 2])
        >>> network(torch.ones(1, 2))
        tensor([[2., 2.]])
    """
    if isinstance(given, torch.export.ExportedProgram):
        given = given.module()
    # What torch.export gives refuses to be put into a mode.
    if isinstance(given, nn.Module) and "eval" not in vars(given):
        return given
    if not callable(given):
        raise TypeError(
            f"a {type(given).__name__} is no network: expected a torch.nn.Module or a callable; "
            "open a file by fcompress.load, or by fcompress.open_program if it is ONNX or .pt2"
        )
    if isinstance(given, nn.Module):
        own = [*given.parameters(), *given.buffers()]
        dtype = next((t.dtype for t in own if t.is_floating_point()), torch.float32)
        return Called(given, "the program", dtype, own[0].device if own else None)
    return Called(given, str(getattr(given, "__name__", type(given).__name__)))


def _tensors(found: Any) -> Any:
    """Outputs with arrays as tensors."""
    if isinstance(found, Tensor):
        return found
    if isinstance(found, Mapping):
        return {key: _tensors(value) for key, value in found.items()}
    if isinstance(found, tuple | list):
        if len(found) == 1:
            return _tensors(found[0])
        fields = getattr(found, "_fields", None)
        parts = [_tensors(value) for value in found]
        return parts if fields is None else type(found)(*parts)
    if hasattr(found, "__array__"):
        array = np.asarray(found)
        return torch.from_numpy(array if array.flags.writeable else array.copy())
    return found
