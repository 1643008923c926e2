"""What is known of a network: how it was built, its data, what was done to it, how it is read.

Networks of the registry, and cascades, keep it themselves, in `origin`. For all others it is kept
here, beside the network and not in it, so that they stay the plain modules that they are: they
pickle without fcompress. A copy that the user makes by `copy.deepcopy` is a new network, of which
nothing is known.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass, replace
from importlib import metadata
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from fcompress.models import huggingface
from fcompress.models.base import Remembering
from fcompress.models.external import Architecture


@dataclass(frozen=True)
class Described:
    """What is known of a network that is not of the registry.

    Attributes:
        architecture: How the original network was built.
        data: What identifies its data, plain values, or None.
        history: What was done to it, oldest first.
    """

    architecture: Architecture
    data: dict[str, Any] | None = None
    history: tuple[Any, ...] = ()


# Of answers, that a history holds.
_PARTICULARS = ("within", "cosine", "score", "iou", "threshold", "pad")
_described: WeakKeyDictionary[nn.Module, Described] = WeakKeyDictionary()
_readings: WeakKeyDictionary[nn.Module, dict[str, Any]] = WeakKeyDictionary()


def describe(model: nn.Module, record: Described) -> None:
    """Note what is known of a network."""
    _described[model] = record


def described(model: nn.Module) -> Described | None:
    """What `describe` noted; of a network of transformers how it was built; or None."""
    if model not in _described and (built := huggingface.architecture_args(model)) is not None:
        describe(model, Described(Architecture(f"hf:{built[0]}", built[1])))
    return _described.get(model)


def hand_on(model: nn.Module, copied: nn.Module) -> None:
    """What is known of a network holds for a copy of it, too."""
    record = described(model)
    if record is not None:
        _described[copied] = record
    if model in _readings:
        _readings[copied] = _readings[model]


def note_reading(
    model: nn.Module, output: str | int | None, labels: str | None, **particulars: Any
) -> None:
    """Note how a network's answers are read: which output, which kind, and what belongs to it.

    Args:
        model: The network.
        output: Which of its outputs.
        labels: The kind of answer.
        **particulars: Of the kind: within, cosine, same, pad.
    """
    _readings[model] = {"output": output, "labels": labels, **particulars}


def reading_of(model: nn.Module) -> dict[str, Any] | None:
    """What `note_reading` noted, or else what the last compression in the history was about."""
    noted: dict[str, Any] | None = _readings.get(model)
    if noted is not None:
        return noted
    for entry in reversed(origin_of(model)["history"]):
        if isinstance(entry, dict) and entry.get("action") in ("shrink", "candidate"):
            output, agreement = entry.get("output"), entry.get("agreement")
            agreement = agreement if isinstance(agreement, dict) else {}
            answer = agreement.get("answer")
            found: dict[str, Any] = {
                "output": output if isinstance(output, str | int) else None,
                "labels": None,
            }
            if isinstance(answer, dict) and isinstance(answer.get("kind"), str):
                found["labels"] = answer["kind"]
                found |= {k: answer[k] for k in _PARTICULARS if k in answer}
            elif agreement.get("labels") in ("positions", "sigmoid"):
                # Files of earlier versions: classes and single scores are told by their shape.
                found["labels"] = agreement["labels"]
            return found if any(value is not None for value in found.values()) else None
    return None


def origin_of(model: nn.Module) -> dict[str, Any]:
    """{"data": ..., "history": [...]} of a network; data None where it is not known."""
    record = described(model)
    if record is not None and not isinstance(model, Remembering):
        return {"data": record.data, "history": list(record.history)}
    found = model.origin if isinstance(model, Remembering) else {}
    return {"data": found.get("data"), "history": list(found.get("history", []))}


def set_origin(model: nn.Module, data: dict[str, Any] | None, history: list[Any]) -> None:
    """Note what identifies a network's data and what was done to it."""
    if isinstance(model, Remembering):
        model.origin = {"data": data, "history": history}
        return
    record = described(model) or Described(architecture_of(model))
    describe(model, replace(record, data=data, history=tuple(history)))


def architecture_of(model: nn.Module) -> Architecture:
    """A name for a network that has none: its class, to be named again when it is loaded."""
    kind = type(model)
    return Architecture(f"{kind.__module__}:{kind.__qualname__}")


def versions() -> dict[str, str]:
    """What produced a result."""
    try:
        own = metadata.version("fcompress")
    except metadata.PackageNotFoundError:  # run from a checkout that was never installed
        own = "unknown"
    return {
        "fcompress": own,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
    }
