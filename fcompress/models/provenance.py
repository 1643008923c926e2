"""What a network remembers of itself: how it was built, its data, what was done to it."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch
from torch import nn

from fcompress.models.base import Network
from fcompress.models.external import Architecture

_RECORD = "_fcompress_described"


@dataclass(frozen=True)
class Described:
    """What a network that is not of the registry carries along.

    Attributes:
        architecture: How the wide network was built.
        data: What identifies its data, plain values, or None.
        history: What was done to it, oldest first.
    """

    architecture: Architecture
    data: dict[str, Any] | None = None
    history: tuple[Any, ...] = ()


def describe(model: nn.Module, record: Described) -> None:
    """Let a network carry its record; copies of it carry it too."""
    model.__dict__[_RECORD] = record


def described(model: nn.Module) -> Described | None:
    """The record that `describe` gave a network, or None."""
    return model.__dict__.get(_RECORD)


def origin_of(model: nn.Module) -> dict[str, Any]:
    """{"data": ..., "history": [...]} that a network carries; data None where it does not."""
    record = described(model)
    if record is not None:
        return {"data": record.data, "history": list(record.history)}
    found = model.origin if isinstance(model, Network) else {}
    return {"data": found.get("data"), "history": list(found.get("history", []))}


def set_origin(model: nn.Module, data: dict[str, Any] | None, history: list[Any]) -> None:
    """Let a network carry what identifies its data and what was done to it."""
    if isinstance(model, Network):
        model.origin = {"data": data, "history": history}
        return
    record = described(model)
    architecture = architecture_of(model) if record is None else record.architecture
    describe(model, Described(architecture, data, tuple(history)))


def versions() -> dict[str, str]:
    """What produced a result."""
    return {
        "fcompress": version("fcompress"),
        "torch": str(torch.__version__),
        "python": platform.python_version(),
    }


def architecture_of(model: nn.Module) -> Architecture:
    """A name for a network that carries none: its class, to be named again when it is loaded."""
    kind = type(model)
    return Architecture(f"{kind.__module__}:{kind.__qualname__}")
