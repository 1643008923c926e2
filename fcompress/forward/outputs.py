"""All that a network returns, as named tensors, however it is nested.

`torch.utils._pytree` takes a data class, or an object with attributes, for one opaque leaf. Here
they are opened, so that no output is overlooked.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

SINGLE = "output"  # what the only output of a network is called
# State that a network hands to itself, to go on from, is no answer: keys and values of attention.
_STATE = ("past_key_values",)
# Deeper nests are the work of an enemy.
_DEEPEST = 16


def output_tensors(output: Any) -> dict[str, Tensor]:
    """Every tensor in what a network returned, in order, by where it stands.

    Args:
        output: A tensor, or tensors in mappings, sequences, named tuples, data classes and objects
            with attributes, nested; anything else in it is passed over, and so is what is handed
            over to go on from (`past_key_values`, caches).

    Returns:
        Tensors by path as in `hidden_states.2`; a tensor by itself is called `output`. Items of
        named tuples go by their names.

    Example:
        >>> found = output_tensors({"logits": torch.zeros(2, 3), "states": [torch.zeros(2), None]})
        >>> list(found)
        ['logits', 'states.0']
    """
    if isinstance(output, Tensor):
        return {SINGLE: output}
    found: dict[str, Tensor] = {}
    for path, tensor in _leaves(output, (), frozenset()):
        name = ".".join(path)
        while name in found:  # keys 0 and "0" of one mapping
            name += "'"
        found[name] = tensor
    return found


def _leaves(
    output: Any, path: tuple[str, ...], above: frozenset[int]
) -> Iterator[tuple[tuple[str, ...], Tensor]]:
    if isinstance(output, Tensor):
        yield path, output
    elif id(output) not in above and len(path) < _DEEPEST:
        for name, value in _items(output):
            if name not in _STATE:
                yield from _leaves(value, (*path, name), above | {id(output)})


def _items(output: Any) -> list[tuple[str, Any]]:
    """What stands directly in an output, by name."""
    if isinstance(output, Mapping):
        return [(str(key), value) for key, value in output.items()]
    if isinstance(output, tuple | list):
        names = getattr(output, "_fields", None) or map(str, range(len(output)))
        return list(zip(names, output, strict=True))
    opaque = isinstance(output, nn.Module | type | torch.dtype | torch.device)
    if opaque or type(output).__name__.endswith("Cache"):
        return []
    slots = [s for s in getattr(type(output), "__slots__", ()) if hasattr(output, s)]
    named = [(s, getattr(output, s)) for s in slots if isinstance(s, str)]
    return [*named, *getattr(output, "__dict__", {}).items()]


def is_scores(tensor: Tensor, examples: int) -> bool:
    """Whether a tensor is of the shape of class scores: floats [n, at least 2]."""
    return (
        tensor.is_floating_point()
        and tensor.dim() == 2
        and len(tensor) == examples
        and tensor.shape[1] >= 2
    )
