"""The types of all numbers on the command line: plain digits, finite, in the range of their use."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import click

from fcompress.arguments.numbers import LARGEST, LEAST, real_text, short, whole_text


class Whole(click.IntRange):
    """A whole number from `least` to `most`."""

    def __init__(self, least: int = 1, most: int = LARGEST) -> None:
        super().__init__(least, most)
        self.least, self.most = least, most

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Read a number in the range."""
        try:
            number = value if type(value) is int else whole_text(str(value))
        except ValueError:
            number = None
        if number is None or not self.least <= number <= self.most:
            self.fail(
                f"{short(value)!r}: expected a whole number from {self.least} to {self.most}.",
                param,
                ctx,
            )
        return int(number)

    def _describe_range(self) -> str:
        """For help: a largest number that nobody comes near would say nothing."""
        return f"x>={self.least}" if self.most >= LARGEST else f"{self.least}<=x<={self.most}"


class Real(click.FloatRange):
    """A finite number from `least` to `most`; without one of them if it is open there."""

    def __init__(
        self,
        least: float | None = None,
        most: float | None = None,
        *,
        min_open: bool = False,
        max_open: bool = False,
    ) -> None:
        super().__init__(least, most, min_open=min_open, max_open=max_open)

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Read a number in the range."""
        try:
            number = float(value) if type(value) in (int, float) else real_text(str(value))
        except ValueError:
            number = math.nan
        # Half of a number next to 0 is 0, and its reciprocal infinite.
        if not self._has(number) or 0 < abs(number) < LEAST:
            self.fail(
                f"{short(value)!r}: expected a number in the range {self._describe_range()}.",
                param,
                ctx,
            )
        return number

    def _has(self, number: float) -> bool:
        low = -math.inf if self.min is None else self.min
        high = math.inf if self.max is None else self.max
        if not math.isfinite(number) or not low <= number <= high:
            return False
        return not (self.min_open and number == low) and not (self.max_open and number == high)

    def _describe_range(self) -> str:
        return "of finite numbers" if self.min is self.max is None else super()._describe_range()


SEED = Whole(0)


class Several(click.ParamType):
    """Numbers with commas between them, or an x where they are sizes.

    Args:
        one: What each of them is; whole numbers are sizes.
        name: An example, for errors.
        counts: How many there may be; empty for any number.
    """

    def __init__(self, one: Whole | Real, name: str, counts: Sequence[int] = ()) -> None:
        self.one, self.name, self.counts = one, name, counts

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Read the numbers."""
        if isinstance(value, tuple):
            return value
        text = str(value).lower()
        parts = (text.replace("x", ",") if isinstance(self.one, Whole) else text).split(",")
        if not (len(parts) in self.counts if self.counts else len(parts) <= 16):
            self.fail(f"{short(value)!r}: expected {self.name}.", param, ctx)
        return tuple(self.one.convert(part, param, ctx) for part in parts)


class Size(Several):
    """A side, or height and width."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Read the size; one number is a square's side."""
        found = super().convert(value, param, ctx)
        return found * 2 if len(found) == 1 else found


class Multiple(click.ParamType):
    """A whole number from 1 on, or "auto"."""

    name = "multiple"
    _number = Whole(1, 2**31 - 1)

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | str:
        """Read it."""
        if value == "auto":
            return "auto"
        try:
            return self._number.convert(value, param, ctx)
        except click.BadParameter:
            self.fail(f'{short(value)} is not a whole number from 1 on, nor "auto".', param, ctx)
