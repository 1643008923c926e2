"""Ranges of numbers, the same for the command line, data specs, recipes and Python.

Nothing here needs torch.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable
from typing import Any

from fcompress.errors import FcompressError

# What a random generator, a slice and a size of a tensor take.
LARGEST = 2**63 - 1
# Far beyond every use, and small enough that a step or a unit for each is no accident of memory.
MOST_EPOCHS = 10**6
MOST_STEPS = 10**5
MOST_BATCH = 2**31 - 1
MOST_UNITS = 10**7
MOST_LAYERS = 10**4
MOST_SIDE = 2**20
MOST_WORKERS = 2**12
MOST_SECONDS = 1e9
MOST_WIDTH = 1e4
# A number above 0 has this size at least: half of it is not 0, nor does its reciprocal overflow.
LEAST = 1e-300
_DIGITS = re.compile(r"[+-]?[0-9]{1,40}")
_REAL = re.compile(r"[+-]?([0-9]{1,400}\.?[0-9]{0,400}|\.[0-9]{1,400})([eE][+-]?[0-9]{1,6})?")
_SHOWN = 60
DEVICE = re.compile(r"auto|cpu|mps|cuda(:[0-9]{1,3})?")  # names of where to compute


class OutOfRange(FcompressError, ValueError):
    """A number that its use cannot take."""


class WrongType(FcompressError, TypeError):
    """An argument of a type that its use cannot take."""


def whole(name: str, value: Any, least: int = 0, most: int = LARGEST) -> int:
    """A whole number in its range, as Python's own type.

    Args:
        name: What it is, for the error.
        value: An `int`, or what stands for one, such as an integer of numpy or a tensor's element.
        least: The smallest that is taken.
        most: The largest.

    Raises:
        OutOfRange: It is none, or outside.

    Example:
        >>> whole("seed", 3)
        3
        >>> whole("seed", 2**63)
        Traceback (most recent call last):
        ...
        fcompress.arguments.numbers.OutOfRange: seed=9223372036854775808: expected a whole number \
from 0 to 9223372036854775807
    """
    try:
        found = None if isinstance(value, bool) else int(operator.index(value))
    except TypeError:
        found = None
    if found is None or not least <= found <= most:
        raise OutOfRange(f"{name}={short(value)}: expected a whole number {between(least, most)}")
    return found


def real(name: str, value: Any, expected: str, fits: Callable[[float], bool]) -> float:
    """A finite number in its range, as Python's own type.

    Args:
        name: What it is, for the error.
        value: A number, or what stands for one, such as one of numpy or a tensor's element.
        expected: The range in words.
        fits: Whether a finite number is in it.

    Raises:
        OutOfRange: It is none, or outside.

    Example:
        >>> real("tol", 0.5, "a share in [0, 1)", lambda share: 0 <= share < 1)
        0.5
        >>> real("tol", "5%", "a share in [0, 1)", lambda share: 0 <= share < 1)
        Traceback (most recent call last):
        ...
        fcompress.arguments.numbers.OutOfRange: tol=5%: expected a share in [0, 1)
    """
    try:
        # Texts, and yes and no, stand for no number here.
        said = isinstance(value, str | bytes) or type(value).__name__ in ("bool", "bool_")
        found = math.nan if said else float(value)
    except (TypeError, ValueError, ArithmeticError, RuntimeError):
        found = math.nan
    if not (math.isfinite(found) and fits(found)):
        raise OutOfRange(f"{name}={short(value)}: expected {expected}")
    return found


def whole_text(text: str) -> int:
    """The whole number that a text says in plain digits.

    Raises:
        ValueError: It says none, or one of more than 40 digits.

    Example:
        >>> whole_text("12")
        12
    """
    if _DIGITS.fullmatch(text) is None:
        raise ValueError(f"{short(text)} is not a whole number")
    return int(text)


def real_text(text: str) -> float:
    """The finite number that a text says in plain digits.

    Raises:
        ValueError: It says none, or one that is not finite.

    Example:
        >>> real_text("1e-3")
        0.001
    """
    number = float(text) if _REAL.fullmatch(text) else math.nan
    if not math.isfinite(number):
        raise ValueError(f"{short(text)} is not a number")
    return number


def between(least: int, most: int) -> str:
    """A range in words."""
    return f"from {least} to {most}" if most != math.inf else f"of at least {least}"


def short(value: Any) -> str:
    """A value for an error; Python writes no integers of thousands of digits."""
    try:
        text = str(value)
    except ValueError:
        return "a number of thousands of digits"
    except Exception:  # types of anybody's
        return f"a {type(value).__name__}"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}... ({len(text):,} characters)"
