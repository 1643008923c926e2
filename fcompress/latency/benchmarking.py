"""bench(): latency, throughput, memory and bytes of networks and files, side by side."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any

import torch
from torch import Tensor, nn

from fcompress.arguments.numbers import LEAST, MOST_BATCH, MOST_WORKERS, real, whole
from fcompress.errors import FcompressError
from fcompress.forward.predictor import Predictor
from fcompress.forward.running import device_of
from fcompress.forward.timing import Timing, timed
from fcompress.latency.entries import (
    Entry,
    also_compiled,
    check_compiles,
    deferring,
    entry_of,
    ready,
    runs_in,
)
from fcompress.latency.inputs import Inputs, inputs_for
from fcompress.latency.memory import peaks
from fcompress.showing.display import watched
from fcompress.showing.progress import Progress, Report, silent
from fcompress.showing.results import Shown

BATCH = (1, 64)
SECONDS = 2.0
RUNS = 1000  # of a network on each batch, at most


@dataclass(frozen=True)
class Row:
    """One network at one size of batch and one number of threads.

    Attributes:
        file: Its path, or its name.
        runs_in: "torch", "torch.compile", "onnxruntime", "torch.export" or "Python".
        bytes: Of the file, or of all files of a pair.
        batch: Examples of a batch.
        threads: Of torch and onnxruntime.
        average_ms: What a batch takes on average over different ones, in milliseconds
            (`Timing.average`).
        lower_ms: The lower quartile of all runs.
        median_ms: Their median.
        upper_ms: The upper quartile.
        runs: How many there were.
        examples_per_second: By the average.
        ratio: The average as a share of that of the first file.
        memory: Bytes that it adds to a process while it runs, at most; None where that is not
            measured.
        deferred: Of a cascade, the share of the measured examples that its original answered.
    """

    file: str
    runs_in: str
    bytes: int
    batch: int
    threads: int
    average_ms: float
    lower_ms: float
    median_ms: float
    upper_ms: float
    runs: int
    examples_per_second: float
    ratio: float
    memory: int | None
    deferred: float | None


@dataclass(frozen=True, repr=False)
class BenchResult(Shown):
    """What was measured.

    Attributes:
        rows: By number of threads, size of batch, and file.
        inputs: What the networks were given, in words.
        device: Where networks of torch ran; onnxruntime runs on the CPU.
        seconds: About how long each size of batch was measured.
        versions: Of the programs, and the processor.
    """

    rows: tuple[Row, ...]
    inputs: str
    device: str
    seconds: float
    versions: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "rows": [asdict(row) for row in self.rows]}


def bench(
    files: str | os.PathLike[str] | nn.Module | Callable[..., Any] | Sequence[Any],
    data: object | None = None,
    *,
    batch: int | Sequence[int] = BATCH,
    threads: int | Sequence[int] | None = None,
    compiled: bool = False,
    seconds: float = SECONDS,
    memory: bool = True,
    device: str = "cpu",
    seed: int = 0,
    trust_pickle: bool = False,
    progress: Report | bool | None = None,
) -> BenchResult:
    """Measure what networks and files cost when they run, the same examples for all, in turns.

    Args:
        files: One or several of: a file of fcompress, an ONNX file, the JSON of a cascade, a
            program of torch.export, a network in memory, a callable. Ratios are against the first.
        data: Inputs as the networks take them, in any form that `verify` takes; None for what a
            file remembers, or else random numbers. A cascade takes as long as it defers
            examples, so that it needs data.
        batch: Examples of a batch, one or several sizes.
        threads: Of torch and onnxruntime, one or several numbers; None for torch's.
        compiled: Measure networks of torch by torch.compile, too.
        seconds: About how long to measure each size of batch.
        memory: Measure the memory of files, each in a process of its own.
        device: Where networks of torch run: "cpu", "cuda" or "auto".
        seed: Of random inputs.
        trust_pickle: As for `open_program`.
        progress: As for `shrink`.

    Returns:
        A row for each file, size and number of threads.

    Raises:
        FcompressError: A file cannot be opened, or does not run on the data.
        DataError: There is no data where some is needed.
        ValueError: A number is out of its range.

    Example:
        >>> import fcompress, torch
        >>> networks = [fcompress.build("mlp", in_features=8, classes=3, width=w) for w in (1, 8)]
        >>> found = bench(networks, torch.randn(100, 8), batch=64, seconds=0.1)
        >>> [row.runs_in for row in found.rows], found.rows[0].ratio
        (['torch', 'torch'], 1.0)
    """
    entries = [entry_of(one, trust_pickle) for one in _listed(files)]
    sizes = _numbers("batch", batch, MOST_BATCH)
    entries = also_compiled(entries) if compiled else entries
    with watched(progress) as report:
        return measured(
            entries,
            inputs_for(entries, data, sizes, whole("seed", seed)),
            batch=sizes,
            threads=_numbers("threads", threads or torch.get_num_threads(), MOST_WORKERS),
            seconds=real("seconds", seconds, "a number above 0", lambda one: one >= LEAST),
            memory=memory,
            device=device,
            report=report,
        )


def _listed(given: Any) -> list[Any]:
    """One or several, as a list."""
    return list(given) if isinstance(given, list | tuple) else [given]


def _numbers(name: str, given: object, most: int) -> list[int]:
    """One or several whole numbers, each once, in order."""
    found = [whole(name, one, 1, most) for one in _listed(given)]
    if not found:
        raise ValueError(f"{name}={given!r}: expected at least one number")
    return list(dict.fromkeys(found))


def measured(
    entries: Sequence[Entry],
    inputs: Inputs,
    *,
    batch: Sequence[int] = BATCH,
    threads: Sequence[int],
    seconds: float = SECONDS,
    memory: bool = True,
    device: str = "cpu",
    report: Report = silent,
) -> BenchResult:
    """`bench` for what was opened already.

    Args:
        entries: What to measure, at least one.
        inputs: Examples for all of them.
        batch: As for `bench`.
        threads: As for `bench`.
        seconds: As for `bench`.
        memory: As for `bench`.
        device: As for `bench`.
        report: Told of each measurement.
    """
    if not entries:
        raise FcompressError("there is nothing to measure; name at least one file")
    rows: list[Row] = []
    steps = len(threads) * (len(batch) + (len(entries) if memory else 0))
    done = 0

    def step(line: str) -> None:
        nonlocal done
        done += 1
        report(Progress("measuring", done, steps, "measurements", line))

    for count in threads:
        held: list[dict[int, int] | None] = []
        for entry in entries if memory else ():
            step(f"memory of {entry.name}")
            one_each = {size: inputs.batches(size)[0] for size in batch}
            held.append(peaks(entry, one_each, inputs.packing, count, device))
        for size in batch:
            step(f"batches of {size}, {count} {'thread' if count == 1 else 'threads'}")
            with _threads(count):
                rows += _of_size(
                    entries, inputs, size, count, seconds, held or [None] * len(entries), device
                )
    where = device_of(device).type
    return BenchResult(tuple(rows), inputs.what, where, seconds, _versions())


def _of_size(
    entries: Sequence[Entry],
    inputs: Inputs,
    size: int,
    threads: int,
    seconds: float,
    held: Sequence[dict[int, int] | None],
    device: str,
) -> Iterator[Row]:
    """One row for each entry."""
    if any(entry.compiled for entry in entries):
        torch.compiler.reset()  # what was compiled for other sizes counts against a limit
    batches = inputs.batches(size)
    networks = [ready(entry, device) for entry in entries]
    predictors = [Predictor(network, inputs.packing) for network in networks]
    for entry, predictor in zip(entries, predictors, strict=True):
        if entry.compiled:
            check_compiles(entry, predictor, batches[0])
    times = timed(predictors, batches, runs=RUNS, seconds=seconds)
    for entry, predictor, found, peak in zip(entries, predictors, times, held, strict=True):
        yield Row(
            file=entry.name,
            runs_in=runs_in(entry, predictor.network),
            bytes=entry.bytes,
            batch=size,
            threads=threads,
            average_ms=found.average,
            lower_ms=found.lower,
            median_ms=found.median,
            upper_ms=found.upper,
            runs=found.runs,
            examples_per_second=1e3 * size / found.average,
            ratio=found.average / times[0].average,
            memory=None if peak is None else peak[size],
            deferred=_deferred(predictor, batches, found),
        )


def _deferred(predictor: Predictor, batches: Sequence[Tensor], found: Timing) -> float | None:
    """The share of the examples that were measured which the original of a cascade answers."""
    decides = deferring(predictor.network)
    if decides is None:
        return None
    count = n = 0
    with predictor.evaluating():
        for batch in batches[: found.batches]:
            args, kwargs = predictor.unpacked(predictor.network, predictor.place(batch))
            count += int(decides(*args, **kwargs).sum())
            n += len(batch)
    return count / n


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """So many threads for torch, and for sessions of onnxruntime that are begun meanwhile."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _versions() -> dict[str, str]:
    """Of what runs the networks."""
    found = {"torch": str(torch.__version__), "machine": platform.machine()}
    found["cores"] = str(os.cpu_count())
    with suppress(metadata.PackageNotFoundError):
        found["onnxruntime"] = metadata.version("onnxruntime")
    return found
