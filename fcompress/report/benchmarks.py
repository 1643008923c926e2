"""What was measured side by side, in words and rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

# For annotations only: the command line shows its help without torch.
if TYPE_CHECKING:
    from fcompress.latency.benchmarking import BenchResult, Row


def bench_tables(
    result: BenchResult,
) -> Iterator[tuple[str, tuple[str, ...], list[tuple[str, ...]]]]:
    """Title, headings and rows for each number of threads and size of batch."""
    for threads in dict.fromkeys(row.threads for row in result.rows):
        for batch in dict.fromkeys(row.batch for row in result.rows):
            rows = [r for r in result.rows if (r.threads, r.batch) == (threads, batch)]
            title = (
                f"{'one example' if batch == 1 else f'batches of {batch:,}'}, "
                f"{'one thread' if threads == 1 else f'{threads:,} threads'}"
            )
            headings = ["file", "runs in", "average", "quartiles, ms", "of first", "examples/s"]
            headings += ["memory MB", "bytes"]
            cascade = any(row.deferred is not None for row in rows)
            headings += ["deferred"] if cascade else []
            yield title, tuple(headings), [_cells(row, cascade) for row in rows]


def _cells(row: Row, cascade: bool) -> tuple[str, ...]:
    quartiles = " ".join(map(_ms, (row.lower_ms, row.median_ms, row.upper_ms)))
    cells = [row.file, row.runs_in, _ms(row.average_ms), quartiles]
    cells += [f"{row.ratio:.1%}", f"{row.examples_per_second:,.0f}"]
    cells += ["-" if row.memory is None else f"{row.memory / 1e6:,.1f}", f"{row.bytes:,}"]
    if cascade:
        cells.append("-" if row.deferred is None else f"{row.deferred:.1%}")
    return tuple(cells)


def _ms(time: float) -> str:
    """With three digits that count."""
    return f"{time:,.0f}" if time >= 1000 else f"{time:#.3g}".rstrip(".")


def bench_lines(result: BenchResult) -> Iterator[str]:
    """What the numbers are about."""
    yield f"Inputs: {result.inputs}, the same for all, which took turns."
    yield (
        "Average: the mean over different batches of the median of each one's runs, in ms. Memory: "
        "what a file adds at most to a process in which the libraries are loaded."
    )
    yield from _doubts(result.rows)
    versions = result.versions
    runtime = f", onnxruntime {versions['onnxruntime']}" if "onnxruntime" in versions else ""
    yield (
        f"Measured with torch {versions['torch']}{runtime} on {versions['machine']} with "
        f"{versions['cores']} cores; networks of torch on {result.device}, ONNX on the CPU."
    )


def _doubts(rows: Sequence[Row]) -> Iterator[str]:
    """Whose spread is so wide that something else ran meanwhile."""
    wide = [row for row in rows if row.deferred is None and row.upper_ms > 1.5 * row.lower_ms]
    if wide:
        names = ", ".join(dict.fromkeys(row.file for row in wide))
        yield (
            f"Warning: the quartiles of {names} lie far apart, so something else ran meanwhile; "
            "measure on a machine that does nothing else, or for longer (--seconds)."
        )
