"""The one display of long work: a bar with honest times on a terminal, plain lines elsewhere.

`watched` is what every public function and every command puts around its work.
"""

from __future__ import annotations

import builtins
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console, RenderableType
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bars
from rich.text import Text

from fcompress.showing.progress import WARNING, Progress, Report, reporter

if TYPE_CHECKING:
    from rich.progress import Task

PATIENCE = 2.0  # seconds of work for which nothing is shown


@contextmanager
def watched(progress: object) -> Iterator[Report]:
    """Whom long work tells where it is.

    Args:
        progress: A function of one `Progress`; True for the display, False for nothing, None for
            the display where somebody types Python and waits.

    Raises:
        WrongType: It is nothing of these.
    """
    if progress is None:
        progress = _interactive()
    if progress is True:
        with display() as report:
            yield report
    else:
        yield reporter(None if progress is False else progress)


@contextmanager
def display(*, log: bool = False, console: Console | None = None) -> Iterator[Report]:
    """Show work on stderr: a bar on a terminal and in a notebook, lines with times elsewhere.

    Lines of a terminal go when the work is done, unless they are a log.

    Args:
        log: Whether the lines of events stay on a terminal, too.
        console: Where; None for stderr.
    """
    console = Console(stderr=True, highlight=False) if console is None else console
    began = time.monotonic()
    if not (console.is_terminal or console.is_jupyter):
        yield lambda event: _line(console, event, time.monotonic() - began)
        return
    bars = _Bars(console)
    lock, over = threading.Lock(), threading.Event()

    def start() -> None:
        with lock:
            if not over.is_set():
                bars.start()

    def report(event: Progress) -> None:
        bars.tell(event)
        if log and event.line:
            console.print(Text(event.line), soft_wrap=True)

    timer = threading.Timer(PATIENCE, start)
    timer.daemon = True
    timer.start()
    try:
        yield report
    finally:
        timer.cancel()
        with lock:
            over.set()
            bars.stop()


def _line(console: Console, event: Progress, seconds: float) -> None:
    """A line of a log, with the time since the work began."""
    if event.line and not event.line.startswith(WARNING):
        console.print(Text(f"{clock(seconds)} {event.line}"), soft_wrap=True)


def clock(seconds: float) -> str:
    """Minutes and seconds, with hours where there are some: 0:07, 12:30, 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def pace(first: tuple[float, int], last: tuple[float, int]) -> float | None:
    """Seconds that one takes, from two moments with what was done by then; None if that is one."""
    more = last[1] - first[1]
    return (last[0] - first[0]) / more if more > 0 else None


def time_left(done: int, of: int, each: float, waited: float) -> float:
    """Seconds that the rest takes: what is to come times what one costs, less what went by."""
    return max((of - done) * each - waited, 0.0)


class _Bars(Bars):
    """One bar for the stage that runs, and under it what was found last."""

    def __init__(self, console: Console) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(bar_width=16), _Numbers("", None))
        self._began = time.monotonic()
        self._first = (self._began, 0)
        self._stage = self._said = ""  # rich asks for what to show at once
        super().__init__(*columns, console=console, transient=True)
        self._task = self.add_task("beginning", total=None, unit="", at_most=False)

    def tell(self, event: Progress) -> None:
        """Show an event."""
        number = f"{event.number}/{event.stages} " if event.stages else ""
        name, now = event.stage, time.monotonic()
        if name != self._stage:
            self.remove_task(self._task)
            self._task = self.add_task(name, total=None, unit="", at_most=False)
            self._stage, self._first = name, (now, event.done)
        if event.unit:
            self.update(
                self._task,
                total=event.of,
                completed=event.done,
                unit=event.unit,
                at_most=event.at_most,
                pace=pace(self._first, (now, event.done)),
                since=now,
            )
        short = name if len(name) <= 30 else f"{name[:27]}..."
        self.update(self._task, description=number + short)
        best = f" (best so far: {event.best})" if event.best else ""
        if event.line and not event.line.startswith(WARNING):
            self._said = f"{event.line}{best}"

    def get_renderables(self) -> Iterable[RenderableType]:
        """The bar, the time since the work began, and the last line."""
        yield self.make_tasks_table(self.tasks)
        elapsed = clock(time.monotonic() - self._began)
        yield Text(f"{elapsed} {self._said}", style="dim", overflow="ellipsis", no_wrap=True)


class _Numbers(TextColumn):
    """How much of a stage is done, how fast it goes and how long the rest takes."""

    def __init__(self, text: str, style: str | None) -> None:
        super().__init__(text, style=style or "none")

    def render(self, task: Task) -> Text:
        """As "9 of 24 candidates, 1.5/s, 0:10 left"; of a stage that counts nothing the time."""
        done = int(task.completed)
        unit = str(task.fields.get("unit", ""))
        if not unit:
            return Text(clock(task.elapsed or 0.0))
        most = "at most " if task.fields.get("at_most") else ""
        of = "" if task.total is None else f" of {most}{int(task.total):,}"
        said = f"{done:,}{of} {unit}"
        each = task.fields.get("pace")
        if each is None:  # the first one is done, and when it began is not known
            return Text(said)
        said += f", {each:.2g} s each" if each >= 1 else f", {1 / max(each, 1e-9):.3g}/s"
        if task.total is None:
            return Text(said)
        waited = time.monotonic() - task.fields["since"]
        left = time_left(done, int(task.total), each, waited)
        return Text(f"{said}, {most}{clock(left)} left")


def _interactive() -> bool:
    """Whether somebody types Python here, or runs a notebook."""
    return hasattr(sys, "ps1") or hasattr(builtins, "__IPYTHON__")
