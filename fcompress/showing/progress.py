"""Where a long piece of work is: the one event that every public function reports."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from fcompress.arguments.deprecation import warn
from fcompress.arguments.numbers import WrongType, short


@dataclass(frozen=True)
class Progress:
    """What is being done, and how far.

    Attributes:
        stage: What is being done, in a few words.
        done: How much of it is finished.
        of: How much there is; None where nobody knows.
        unit: What is counted: "examples", "steps", "candidates", "trials".
        line: Something that is worth keeping in a log; empty for a mere step forward.
        number: Which stage of `stages` it is, from 1; 0 where nobody counts them.
        stages: How many there are.
        at_most: Whether `of` is the largest number that there may be.
        best: The best that was found so far, in words.
    """

    stage: str
    done: int = 0
    of: int | None = None
    unit: str = ""
    line: str = ""
    number: int = 0
    stages: int = 0
    at_most: bool = False
    best: str = ""

    def __str__(self) -> str:
        if self.line:
            return self.line
        total = "" if self.of is None else f" of {self.of:,}"
        return f"{self.stage}: {self.done:,}{total} {self.unit}" if self.unit else self.stage


Report = Callable[[Progress], object]


WARNING = "warning: "  # what a line begins with that the result says again


def numbered(report: Report, stages: Sequence[str]) -> Report:
    """Tell somebody with each event which stage it is of.

    Args:
        report: Who is told.
        stages: Their names in order. An event of another name is of the stage that runs.
    """
    at = 1

    def told(event: Progress) -> None:
        nonlocal at
        if event.stage in stages:
            at = stages.index(event.stage) + 1
        stage = event.stage if event.unit else stages[at - 1]  # of a mere line that it is part of
        report(replace(event, stage=stage, number=at, stages=len(stages)))

    return told


def silent(event: Progress) -> None:
    """Report to nobody."""


def reporter(progress: object) -> Report:
    """Who is told: `progress`, or nobody where it is None.

    Raises:
        WrongType: It cannot be called.
    """
    if progress is None:
        return silent
    if not callable(progress):
        raise WrongType(
            f"progress={short(progress)}: expected a function of one Progress, True, False or None"
        )
    return progress


def takes(report: Callable[..., object], number: int) -> bool:
    """Whether a callback needs so many arguments, as some did in earlier versions; warns if so."""
    report = reporter(report)
    try:
        parameters = inspect.signature(report).parameters.values()
    except (TypeError, ValueError):  # a builtin: it takes what it is given
        return False
    needed = [p for p in parameters if p.default is p.empty and p.kind < p.VAR_POSITIONAL]
    if len(needed) != number:
        return False
    warn(f"a progress callback of {number} arguments", "one of a single Progress", stacklevel=3)
    return True
