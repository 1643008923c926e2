"""What a network's answers may depend on that moves too slowly to be seen: a clock, a counter.

For a pass or two the clocks are set ahead, or a number that each pass changes is set to where
counters commonly change something. What is read elsewhere (a file, a network, a clock of a
library in C) is not found so.
"""

from __future__ import annotations

import datetime
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from torch import Tensor, nn

# A minute, an hour and half a year, each with a second more.
AHEAD = (61, 3_661, 15_811_261)
# One before the numbers of passes at which code commonly does something else.
COUNTS = (99, 199, 255, 499, 999, 1_023, 4_095, 9_999, 65_535, 99_999, 999_999)
_CLOCKS = ("time", "monotonic", "perf_counter")
# Names in a module of the user's that are looked through for clocks.
_MOST_NAMES = 10_000


@contextmanager
def clocks_ahead(network: nn.Module, seconds: int) -> Iterator[None]:
    """Let Python's clocks be ahead for the code of a network, and for nobody else.

    What other threads wait for must not be over at once, so `time` itself stays as it is: in the
    modules of the network's classes it gets another one in its place, and so does each of its
    functions, by any name.

    Args:
        network: The network.
        seconds: How far.

    Example:
        >>> before = time.time()
        >>> with clocks_ahead(nn.Linear(2, 1), 3600):
        ...     round(time.time() - before)
        0
    """
    clocks: dict[str, Any] = {}
    for name in _CLOCKS:
        clocks[name] = _ahead(getattr(time, name), seconds)
        clocks[f"{name}_ns"] = _ahead(getattr(time, f"{name}_ns"), seconds * 10**9)
    days = {"datetime": _datetime_ahead(seconds)}
    shifted: dict[int, Any]
    shifted = {id(time): _like(time, clocks), id(datetime): _like(datetime, days)}
    shifted |= {id(getattr(time, name)): other for name, other in clocks.items()}
    shifted[id(datetime.datetime)] = days["datetime"]
    own = {sys.modules.get(type(module).__module__) for module in network.modules()}
    own = {module for module in own if module is not None and not _is_installed(module)}
    changed: list[tuple[Any, str, Any]] = []
    try:
        for module in own:
            for name, value in list(vars(module).items())[:_MOST_NAMES]:
                if id(value) in shifted:
                    changed.append((module, name, value))
                    setattr(module, name, shifted[id(value)])
        yield
    finally:
        for module, name, value in changed:
            setattr(module, name, value)


def _like(module: ModuleType, others: dict[str, Any]) -> ModuleType:
    """A module with everything of another one, but for some names."""
    found = ModuleType(module.__name__)
    vars(found).update(vars(module) | others)
    return found


def _ahead(clock: Callable[[], Any], by: int) -> Callable[[], Any]:
    return lambda: clock() + by


def _datetime_ahead(seconds: int) -> type:
    class Ahead(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> Any:
            return real.now(tz) + datetime.timedelta(seconds=seconds)

        @classmethod
        def utcnow(cls) -> Any:
            return cls.now(datetime.timezone.utc).replace(tzinfo=None)

        @classmethod
        def today(cls) -> Any:
            return cls.now()

    real = datetime.datetime
    return Ahead


def _is_installed(module: Any) -> bool:
    return str(module.__name__).partition(".")[0] in ("torch", "torchvision", "fcompress", "timm")


Counter = tuple[nn.Module, str]


def numbers_of(network: nn.Module) -> dict[Counter, float]:
    """Single numbers that modules keep, as attributes or buffers."""
    found: dict[Counter, float] = {}
    for module in network.modules():
        for name, value in [*vars(module).items(), *module._buffers.items()]:
            if type(value) is int or type(value) is float:
                found[module, name] = value
            elif isinstance(value, Tensor) and value.numel() == 1 and not value.is_inference():
                found[module, name] = float(value)
    return found


@contextmanager
def numbers_set(counters: dict[Counter, float], to: int) -> Iterator[None]:
    """Let numbers of modules be another one; they come back.

    Args:
        counters: Which, and what they are now.
        to: What they are set to.
    """
    before = {}
    for module, name in counters:
        value = getattr(module, name)
        before[module, name] = value.clone() if isinstance(value, Tensor) else value
        _set(module, name, to)
    try:
        yield
    finally:
        for (module, name), value in before.items():
            _set(module, name, value)


def _set(module: nn.Module, name: str, value: Any) -> None:
    held = getattr(module, name)
    if isinstance(held, Tensor):
        held.data.copy_(value) if isinstance(value, Tensor) else held.data.fill_(value)
    else:
        setattr(module, name, type(held)(value))
