"""Which weights a certificate is about: a hash of tensors, and a mark on it where they changed.

The hash is the sha256 over every parameter and buffer that a file of the network holds, sorted by
name: its name, dtype and shape as text, and its values as they lie in memory. Where a network
lies, how its tensors are strided and in which mode it is make no difference; another precision
does. How many batches a batch normalisation has seen is left out: no output depends on it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fcompress.models.base import Network

CHANGED = "the weights were changed after it"
REWRITTEN = "the program was changed after it was exported"
_COUNTER = "num_batches_tracked"


def every_tensor(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers, a shared one by each of its names, also what no state dict has."""
    found = dict(model.named_parameters(remove_duplicate=False))
    return found | dict(model.named_buffers(remove_duplicate=False))


def saved_tensors(model: nn.Module) -> dict[str, Tensor]:
    """What a file of the network holds: its state dict, or all that there is if it is not ours."""
    return dict(model.state_dict()) if isinstance(model, Network) else every_tensor(model)


def fingerprint(tensors: nn.Module | Mapping[str, Tensor]) -> str:
    """The hash of a network's tensors, one at a time.

    Args:
        tensors: A network, or its tensors by name, as a file holds them.

    Returns:
        64 hexadecimal digits.

    Example:
        >>> layer = nn.Linear(3, 2)
        >>> before = fingerprint(layer)
        >>> layer.weight.data = layer.weight.data.t().contiguous().t()
        >>> fingerprint(layer.eval()) == before
        True
        >>> layer.bias.data[0] += 1
        >>> fingerprint(layer) == before
        False
    """
    found = saved_tensors(tensors) if isinstance(tensors, nn.Module) else tensors
    digest = hashlib.sha256()
    for name in sorted(found):
        tensor = found[name].detach()
        if name.rpartition(".")[2] == _COUNTER and not tensor.is_floating_point():
            continue
        kind = str(tensor.dtype).removeprefix("torch.")
        # Lengths keep a name that looks like a description from standing for one.
        digest.update(f"{len(name)} {name} {kind} {list(tensor.shape)} ".encode())
        digest.update(memoryview(_bytes_of(tensor)))
    return digest.hexdigest()


def _bytes_of(tensor: Tensor) -> Any:
    """The values in the order of the indices, as an array of bytes."""
    if tensor.is_quantized:
        tensor = tensor.dequantize()
    if tensor.layout is not torch.strided:
        tensor = tensor.to_dense()
    tensor = tensor.resolve_conj().resolve_neg().cpu().contiguous()
    return tensor.reshape(-1).view(torch.uint8).numpy()


def judged(history: Sequence[Any], tensors: nn.Module | Mapping[str, Tensor]) -> list[Any]:
    """The history, its certificate marked `void` where it is about other weights than these.

    Only the last compression is looked at: those before it are about networks that are gone. One
    without a hash, of a version that wrote none, stays as it is.

    Args:
        history: What was done to a network, oldest first.
        tensors: As for `fingerprint`.

    Returns:
        A new list; entries are not changed.
    """
    found = list(history)
    last = last_shrink(found)
    if last is None:
        return found
    entry = dict(found[last])
    certified = certified_weights(entry)
    if certified is not None:
        entry.pop("void", None)
        if fingerprint(tensors) != certified:
            entry["void"] = CHANGED
        found[last] = entry
    return found


def last_shrink(history: Sequence[Any]) -> int | None:
    """Number of the last compression in a history."""
    for number in range(len(history) - 1, -1, -1):
        if isinstance(history[number], dict) and history[number].get("action") == "shrink":
            return number
    return None


def certified_weights(entry: Mapping[str, Any], which: str = "compressed") -> str | None:
    """The hash of the `compressed` or the `original` network in an entry; None if it has none."""
    certificate = entry.get("certificate")
    found = certificate.get(which) if isinstance(certificate, dict) else None
    return found if isinstance(found, str) else None
