"""Results as the terminal shows them: the verdict, then tables, each word in one piece."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from fcompress.forward.answers.asked import noun_of
from fcompress.report.benchmarks import bench_lines, bench_tables
from fcompress.report.labels import headings, label_lines, label_rows, rounded_up
from fcompress.report.measured import analysis_screen, gain_screen
from fcompress.report.text import agreement_sentence, change_rows, verdict

# For annotations only: the command line shows its help without torch.
if TYPE_CHECKING:
    from fcompress.certify.agreement import AgreementResult
    from fcompress.compress.result import LayerChange, ShrinkResult
    from fcompress.latency.benchmarking import BenchResult

COLUMNS = 80  # of a summary
NAMED = 36  # characters of a layer's name where others need room
Screen = Iterable[RenderableType]


def show(console: Console, screen: Screen, *, wrap: bool | None = None) -> None:
    """Print words and tables; no word is broken.

    Args:
        console: Where.
        screen: Lines as text, and tables.
        wrap: Whether long lines are broken between words; None: in a terminal they are. In a file
            each stays whole.
    """
    wrap = console.is_terminal if wrap is None else wrap
    for part in screen:
        if not isinstance(part, str | Text):
            console.print(part)
            continue
        style = part.style if isinstance(part, Text) else ""
        lines = [str(part)]
        if wrap:  # rich would cut a word that is longer than the line
            lines = textwrap.wrap(
                str(part), console.width, break_long_words=False, break_on_hyphens=False
            )
        for line in lines:
            console.print(Text(line, style=style), soft_wrap=True)


def as_text(result: Any, rows: Sequence[Mapping[str, Any]]) -> str:
    """A result in words and tables of 80 columns.

    Args:
        result: Any of the package's results.
        rows: Its parts, for one that has no tables of its own.
    """
    file = io.StringIO()
    console = Console(file=file, width=COLUMNS, highlight=False, color_system=None)
    kind = type(result).__name__
    if kind == "ShrinkResult":
        screen: Screen = shrink_screen(result, full=True)
    elif kind == "AnalyzeResult":
        screen = analysis_screen(result, console)
    elif kind == "GainResult":
        screen = gain_screen(result)
    elif kind == "BenchResult":
        screen = bench_screen(result)
    elif kind == "AgreementResult":
        screen = [agreement_sentence(result, "examples"), *label_screen(result)]
    else:
        screen = [*repr(result).splitlines(), *_plain_table(rows)]
    show(console, screen, wrap=True)
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines())


def shrink_screen(result: ShrinkResult, *, full: bool = False) -> Iterator[RenderableType]:
    """A compression: verdict, what was gained, layers that changed, how it is known.

    Args:
        result: The compression.
        full: Whether to list the layers that did not change, too.
    """
    yield headline(result)
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("")
    for heading in ("before", "after", "kept"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in change_rows(result):
        table.add_row(*row)
    yield table
    for line in verdict(result):
        yield Text(line, style="yellow" if line.startswith("Warning: ") else "")
    yield from _layers(result.layers, full=full)
    yield from label_screen(result.agreement)


def headline(result: ShrinkResult) -> Text:
    """The verdict in one line, coloured where the terminal has colours."""
    agreement, tolerance = result.agreement, result.tolerance
    bound, noun = rounded_up(agreement.upper_bound), noun_of(agreement.labels)
    said = f"at most {bound} of {noun} change, with {agreement.confidence:.0%} confidence"
    if tolerance is None:
        return Text(f"SIZE REACHED: {said}", style="bold yellow")
    word, style = ("PASS", "bold green") if result.certified else ("FAIL", "bold red")
    return Text(f"{word} within {100 * tolerance:g}%: {said}", style=style)


def _layers(layers: Iterable[LayerChange], *, full: bool) -> Iterator[RenderableType]:
    """Units of each layer: those that changed first, the others on request."""
    changed = [layer for layer in layers if layer.units_after != layer.units_before]
    same = [layer for layer in layers if layer.units_after == layer.units_before]
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("layer", no_wrap=True)
    table.add_column("units before", justify="right")
    table.add_column("after", justify="right")
    reasons = full and any(layer.reason for layer in same)
    if reasons:
        table.add_column("not pruned because")
    for layer in [*changed, *same] if full else changed:
        name = layer.name if len(layer.name) <= NAMED else f"...{layer.name[3 - NAMED :]}"
        cells = [name, f"{layer.units_before:,}", f"{layer.units_after:,}"]
        table.add_row(*cells, *([layer.reason or ""] if reasons else []))
    if table.row_count:
        yield table
    if same and not full:
        whole = "1 layer keeps all its units" if len(same) == 1 else ""
        yield f"{whole or f'{len(same):,} layers keep all their units'}; --full lists them."


def bench_screen(result: BenchResult) -> Iterator[RenderableType]:
    """What networks and files cost when they run."""
    for title, columns, rows in bench_tables(result):
        table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left")
        for number, heading in enumerate(columns):
            justify: Any = "right" if number > 1 else "left"
            table.add_column(heading, justify=justify, no_wrap=number > 0, overflow="fold")
        for row in rows:
            table.add_row(*row)
        yield table
    yield from bench_lines(result)


def label_screen(result: AgreementResult) -> Iterator[RenderableType]:
    """How each of the original's labels fares, on one screen however many there are."""
    found = result.by_label
    if found is None:
        return
    table = Table(box=box.SIMPLE_HEAD)
    for number, heading in enumerate(headings(found)):
        table.add_column(heading, justify="right" if number else "left", no_wrap=not number)
    for row in label_rows(found):
        table.add_row(*row)
    yield table
    yield from label_lines(found)


def _plain_table(rows: Sequence[Mapping[str, Any]]) -> Iterator[RenderableType]:
    """Rows as they are."""
    if not rows:
        return
    table = Table(box=box.SIMPLE_HEAD)
    if len(rows) == 1:  # many values of one thing have no room beside each other
        table.add_column("")
        table.add_column("")
        rows = [{"name": key.replace("_", " "), "value": v} for key, v in rows[0].items()]
    else:
        for key in rows[0]:
            table.add_column(str(key).replace("_", " "))
    for row in rows:
        table.add_row(*("" if v is None else _cell(v) for v in row.values()))
    yield table


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
