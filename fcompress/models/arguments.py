"""Arguments of network families: defaults, checks and errors that say what was expected."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from fcompress.errors import FcompressError, suggest
from fcompress.models.init import check_init

# Far above any network in use; a damaged file must not make us build for hours.
_LARGEST = 2**31 - 1
_DEEPEST = 1000


@dataclass(frozen=True)
class Argument:
    """One argument of a family.

    Attributes:
        default: Its value when it is not given.
        check: Takes what the user gave and returns it as a plain value; raises ValueError saying
            what it "must be".
        meaning: What it does, in a few words.
    """

    default: Any
    check: Callable[[Any], Any]
    meaning: str


def resolve(
    family: str, arguments: Mapping[str, Argument], given: Mapping[str, Any]
) -> dict[str, Any]:
    """Check the given arguments and add the defaults of the others.

    Args:
        family: Name of the family, for the errors.
        arguments: All arguments of the family.
        given: What the user gave.

    Returns:
        A plain value for every argument.

    Raises:
        FcompressError: An argument is unknown or its value is not allowed.
    """
    for name in given:
        if name not in arguments:
            raise FcompressError(f"{family} has no argument {suggest(name, arguments)}")
    resolved = {}
    for name, argument in arguments.items():
        value = given.get(name, argument.default)
        try:
            resolved[name] = argument.check(value)
        except ValueError as error:
            raise FcompressError(f"{family}: {name} must be {error}, not {value!r}") from None
    return resolved


def whole(minimum: int = 1, maximum: int = _LARGEST) -> Callable[[Any], int]:
    """A check for whole numbers from `minimum` to `maximum`."""

    def check(value: Any) -> int:
        if _is_whole(value) and minimum <= value <= maximum:
            return int(value)
        raise ValueError(f"a whole number from {minimum} to {maximum}")

    return check


def optional(check: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The same check, but None passes."""
    return lambda value: None if value is None else check(value)


def image_size(minimum: int) -> Callable[[Any], int | list[int]]:
    """A check for the side of square images, or (height, width), each at least `minimum`."""

    def check(value: Any) -> int | list[int]:
        sides = list(value) if isinstance(value, (list, tuple)) else [value, value]
        if len(sides) != 2 or not all(
            _is_whole(side) and minimum <= side <= _LARGEST for side in sides
        ):
            raise ValueError(
                f"a side of at least {minimum} pixels, or (height, width); "
                "enlarge smaller images or take another family"
            )
        height, width = int(sides[0]), int(sides[1])
        return height if height == width else [height, width]

    return check


def _is_whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _check_width(value: Any) -> float:
    if _is_number(value) and value > 0:
        return float(value)
    raise ValueError("a number above 0")


def _check_share(value: Any) -> float:
    if _is_number(value) and 0 <= value < 1:
        return float(value)
    raise ValueError("a number from 0 to below 1")


def _check_switch(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    raise ValueError("True or False")


def width() -> Argument:
    """The width factor."""
    return Argument(1.0, _check_width, "width factor: every layer has so many times its 1x units")


def init(default: str) -> Argument:
    """The initializer of the weights; biases start at zero."""
    return Argument(default, check_init, "initializer of the weights")


def dropout() -> Argument:
    """The share of units that training drops."""
    return Argument(0.0, _check_share, "share of the last hidden units that training drops")


def switch(default: bool, meaning: str) -> Argument:
    """True or False."""
    return Argument(default, _check_switch, meaning)


def choice(default: str, names: tuple[str, ...], meaning: str) -> Argument:
    """One of several names."""

    def check(value: Any) -> str:
        if value in names:
            return str(value)
        raise ValueError(f"one of {', '.join(names)}")

    return Argument(default, check, meaning)


def hidden(default: int) -> Argument:
    """Units of a hidden layer at 1x."""
    return Argument(default, whole(), "units of each hidden layer at 1x")


def depth(default: int) -> Argument:
    """Number of hidden layers."""
    return Argument(default, whole(maximum=_DEEPEST), "number of hidden layers")


def images(channels: int, size: int, smallest: int, classes: int) -> dict[str, Argument]:
    """The arguments of a family that labels images."""
    return {
        "in_channels": Argument(channels, whole(), "channels of an image"),
        "image_size": Argument(size, image_size(smallest), "side of an image, or (height, width)"),
        "classes": Argument(classes, whole(), "number of labels"),
    }


def scaled(units: int, factor: float) -> int:
    """`units` times the width factor, rounded, at least one.

    Raises:
        OverflowError: That is more than a layer can have.
    """
    rounded = max(1, math.floor(units * factor + 0.5))
    if rounded > _LARGEST:
        raise OverflowError(f"more than {_LARGEST} units in a layer")
    return rounded
