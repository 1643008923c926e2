"""Copies of networks, of those too that hold on to tensors of an earlier pass."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from torch import Tensor, nn

from fcompress.errors import UnsupportedNetworkError, code_of_users, said_by

Module = TypeVar("Module", bound=nn.Module)
# Containers inside containers that are searched for tensors.
_DEEPEST = 4


def deep_copy(model: Module, memo: Mapping[int, Any] | None = None) -> Module:
    """`copy.deepcopy` of a network, without the history of tensors that it keeps as attributes.

    A network may keep a feature map of its last pass, a penalty, or the weight that an old-style
    normalisation computed. Such tensors are results of a computation, which torch refuses to
    copy; the copy gets their values.

    Args:
        model: Any network; left as it is.
        memo: What takes the place of objects, by identity, as for `copy.deepcopy`.

    Raises:
        UnsupportedNetworkError: Something in it cannot be copied.

    Example:
        >>> import torch
        >>> model = nn.Linear(2, 1)
        >>> model.last = model(torch.ones(1, 2))  # copy.deepcopy(model) fails now
        >>> copied = deep_copy(model)
        >>> copied.last.requires_grad, torch.equal(copied.last, model.last)
        (False, True)
    """
    known = dict(memo or {})
    for module in model.modules():
        for tensor in _results(vars(module), _DEEPEST):
            known.setdefault(id(tensor), tensor.detach().clone())
    kind = type(model).__name__

    def failed(error: BaseException) -> UnsupportedNetworkError:
        return UnsupportedNetworkError(
            f"the network {kind} cannot be copied: {said_by(error)}; keep what cannot be copied "
            "(locks, open files, generators) out of its attributes"
        )

    with code_of_users(failed):
        return copy.deepcopy(model, known)


def _results(value: Any, depth: int) -> Iterator[Tensor]:
    """Tensors in a container, or in containers in it, that come out of a computation."""
    if isinstance(value, Tensor):
        if value.requires_grad and not value.is_leaf:
            yield value
        return
    if isinstance(value, Mapping):
        value = value.values()
    elif not isinstance(value, tuple | list | set):
        return
    if depth:
        for item in list(value):
            yield from _results(item, depth - 1)
