"""Rows of inputs and of outputs, whatever containers they lie in."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, MutableMapping
from typing import Any

from torch import Tensor

from fcompress.errors import UnsupportedNetworkError


def rows_of(value: Any, rows: Tensor, n: int) -> Any:
    """Some rows of every tensor that has one for each of `n` examples; all else as it is.

    Args:
        value: A tensor, or containers of tensors and other values.
        rows: Numbers of the rows, int64 [m].
        n: Examples in all.

    Example:
        >>> import torch
        >>> rows_of({"x": torch.arange(4), "name": "a"}, torch.tensor([1, 3]), 4)
        {'x': tensor([1, 3]), 'name': 'a'}
    """
    if isinstance(value, Tensor):
        return value[rows.to(value.device)] if value.dim() and len(value) == n else value
    return _rebuilt(value, {key: rows_of(part, rows, n) for key, part in _parts(value).items()})


def merged(first: Any, second: Any, rows: Tensor, n: int) -> Any:
    """Outputs for `n` examples, of which some rows are replaced by those of another network.

    Args:
        first: Outputs for all examples; not changed.
        second: Outputs of the same form for the examples `rows`.
        rows: Their numbers, int64 [m].
        n: Examples in all.

    Raises:
        UnsupportedNetworkError: A tensor among the outputs has no row for each example, or the
            two networks' outputs are of different forms.

    Example:
        >>> import torch
        >>> merged(torch.zeros(3), torch.ones(1), torch.tensor([1]), 3)
        tensor([0., 1., 0.])
    """
    if isinstance(first, Tensor):
        each = isinstance(second, Tensor) and first.dim() and second.dim()
        if not each or len(first) != n or second.shape != (len(rows), *first.shape[1:]):
            other = list(second.shape) if isinstance(second, Tensor) else type(second).__name__
            raise UnsupportedNetworkError(
                f"the outputs of a cascade are merged row by row, and one of shape "
                f"{list(first.shape)} for {n} examples does not go with {other} for {len(rows)}; "
                "let both networks return a row for each example in each output"
            )
        return first.index_copy(0, rows.to(first.device), second.to(first))
    ours, theirs = _parts(first), _parts(second)
    if ours.keys() != theirs.keys():
        raise UnsupportedNetworkError(
            f"the two networks of a cascade return {type(first).__name__} and "
            f"{type(second).__name__} with different parts; they have to return the same"
        )
    return _rebuilt(first, {key: merged(ours[key], theirs[key], rows, n) for key in ours})


def _parts(value: Any) -> dict[Any, Any]:
    """What a container holds, by key, name or number; nothing for any other value."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, tuple | list):
        return dict(enumerate(value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dict(vars(value))
    return {}


def _rebuilt(value: Any, parts: dict[Any, Any]) -> Any:
    """A container like another one, with other parts; any other value as it is."""
    if isinstance(value, MutableMapping):
        found = copy.copy(value)
        for key, part in parts.items():
            found[key] = part
        return found
    if isinstance(value, tuple | list):
        items = list(parts.values())
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if not parts:
        return value
    filled: Any = copy.copy(value)  # a data class
    vars(filled).update(parts)
    return filled
