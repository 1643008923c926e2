"""Arguments that were renamed: the old names keep working for now, with a warning."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

_Function = TypeVar("_Function", bound=Callable[..., Any])


def renamed(**names: str) -> Callable[[_Function], _Function]:
    """Let a function take keyword arguments by their old names too.

    Args:
        **names: New name of each argument, by its old one.
    """

    def decorate(function: _Function) -> _Function:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            for old, new in names.items():
                if old in kwargs:
                    if new in kwargs:
                        raise TypeError(f"{function.__name__}() got both {new!r} and {old!r}")
                    warn(f"the argument {old}= of {function.__name__}", f"{new}=")
                    kwargs[new] = kwargs.pop(old)
            return function(*args, **kwargs)

        return call  # type: ignore[return-value]

    return decorate


def warn(old: str, new: str, *, stacklevel: int = 2) -> None:
    """Say that something is called differently now."""
    warnings.warn(
        f"{old} is called {new} now; the old name goes with version 1.0",
        DeprecationWarning,
        stacklevel=stacklevel + 1,
    )
