"""What a plain value out of a file must look like, said in one place and checked before its use.

A `Kind` says what is expected in words and how to tell; kinds of tables and lists hold those of
their parts. `problem` finds the first part that is otherwise.

    >>> kind = table({"seed": whole(0), "mean": listed(number(above=0))})
    >>> problem({"seed": "x", "mean": [1.0]}, kind, "data")
    "data.seed = 'x'; expected a whole number from 0 to 9223372036854775807"
    >>> problem({"seed": 1, "mean": [1.0]}, kind, "data") is None
    True

Nothing here needs torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fcompress.arguments.numbers import LARGEST
from fcompress.errors import shown

_LONGEST_TEXT = 10_000
_MISSING = object()


def _nothing(value: Any) -> Iterator[tuple[str, Any, Kind]]:
    return iter(())


@dataclass(frozen=True)
class Kind:
    """What a value must be.

    Attributes:
        said: In words.
        fits: Whether it is, its parts apart.
        parts: Where each part stands, the part and what that must be.
    """

    said: str
    fits: Callable[[Any], bool]
    parts: Callable[[Any], Iterator[tuple[str, Any, Kind]]] = _nothing


def problem(value: Any, kind: Kind, where: str) -> str | None:
    """What is wrong with a value, in words; None if it is of the kind.

    Args:
        value: As it was read.
        kind: What it must be.
        where: What to call it.
    """
    if value is _MISSING:
        return f"{where} is missing; expected {kind.said}"
    if not kind.fits(value):
        return f"{where} = {shown(value)}; expected {kind.said}"
    found = (problem(part, own, f"{where}{place}") for place, part, own in kind.parts(value))
    return next((one for one in found if one is not None), None)


def whole(least: int = 0, most: int = LARGEST) -> Kind:
    """A whole number, from and to."""
    return Kind(
        f"a whole number from {least} to {most}",
        lambda value: type(value) is int and least <= value <= most,
    )


def number(
    least: float = -math.inf,
    most: float = math.inf,
    *,
    above: float | None = None,
    below: float | None = None,
) -> Kind:
    """A finite number, from and to; `above` and `below`: not these themselves."""
    bounds = [f"above {above:g}"] if above is not None else []
    bounds += [f"below {below:g}"] if below is not None else []
    bounds += [f"from {least:g}"] if least > -math.inf else []
    bounds += [f"to {most:g}"] if most < math.inf else []

    def fits(value: Any) -> bool:
        # A whole number too large for a float is not finite as one.
        if type(value) not in (int, float) or not -1e308 <= value <= 1e308:
            return False
        inside = (above is None or value > above) and (below is None or value < below)
        return inside and least <= value <= most

    return Kind(" ".join(["a finite number", *bounds]), fits)


def share() -> Kind:
    """A number in [0, 1)."""
    return Kind(
        "a number from 0 to below 1", lambda value: type(value) in (int, float) and 0 <= value < 1
    )


def text(longest: int = _LONGEST_TEXT, *, least: int = 0) -> Kind:
    """A text, at most so long."""
    said = "a text" if longest == _LONGEST_TEXT else f"a text of at most {longest:,} characters"
    return Kind(said, lambda value: type(value) is str and least <= len(value) <= longest)


def flag() -> Kind:
    """True or false."""
    return Kind("true or false", lambda value: type(value) is bool)


def one_of(names: Iterable[str]) -> Kind:
    """One of some words."""
    known = tuple(names)
    return Kind(f"one of {', '.join(known)}", lambda value: type(value) is str and value in known)


def optional(kind: Kind) -> Kind:
    """The same, or None."""
    return Kind(
        f"{kind.said}, or nothing",
        lambda value: value is None or kind.fits(value),
        lambda value: iter(()) if value is None else kind.parts(value),
    )


def either(*kinds: Kind) -> Kind:
    """One of several kinds, the first that fits."""
    return Kind(
        ", or ".join(kind.said for kind in kinds),
        lambda value: any(kind.fits(value) for kind in kinds),
        lambda value: next(kind for kind in kinds if kind.fits(value)).parts(value),
    )


def as_one(kind: Kind, said: str) -> Kind:
    """The same kind in other words, for the whole of it and not for its parts."""
    return Kind(said, lambda value: problem(value, kind, "") is None)


def listed(item: Kind, least: int = 0, most: int = 10_000) -> Kind:
    """A list, from and to so long."""
    length = f"{least} or more" if least else f"at most {most:,}"
    return Kind(
        f"a list of {length}, each {item.said}",
        lambda value: type(value) in (list, tuple) and least <= len(value) <= most,
        lambda value: ((f"[{place}]", part, item) for place, part in enumerate(value)),
    )


def named(item: Kind, most: int = 10_000) -> Kind:
    """A table from any names to values of one kind."""
    return Kind(
        f"a table whose values are {item.said}",
        lambda value: isinstance(value, Mapping) and len(value) <= most and _texts(value),
        lambda value: ((f".{name}", part, item) for name, part in value.items()),
    )


def table(
    fields: Mapping[str, Kind], *, optionals: Mapping[str, Kind] | None = None, whole: bool = True
) -> Kind:
    """A table of known names; what other names say is not looked at.

    Args:
        fields: Name -> what stands there.
        optionals: Of names that may be missing.
        whole: Whether `fields` must all be there.
    """

    def parts(value: Any) -> Iterator[tuple[str, Any, Kind]]:
        for name, kind in fields.items():
            if whole or name in value:
                yield f".{name}", value.get(name, _MISSING), kind
        for name, kind in (optionals or {}).items():
            if name in value:
                yield f".{name}", value[name], kind

    return Kind("a table", lambda value: isinstance(value, Mapping) and _texts(value), parts)


def _texts(value: Mapping[Any, Any]) -> bool:
    return all(type(name) is str for name in value)
