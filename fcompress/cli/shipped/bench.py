"""`fcompress bench`: latency, throughput, memory and bytes of files, side by side."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fcompress.arguments.numbers import MOST_BATCH, MOST_SECONDS, MOST_WORKERS
from fcompress.cli.boundary import Command, Real, Several, Whole
from fcompress.cli.network_options import NetworkOptions, network_options
from fcompress.cli.output import (
    DATA,
    DEVICE_OPTION,
    FILE,
    data_root_option,
    json_option,
    stdout,
    tell,
    write_json,
)
from fcompress.report.screens import bench_screen, show

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from fcompress.latency.entries import Entry
    from fcompress.latency.inputs import Inputs

BATCH, SECONDS = (1, 64), 2.0  # as `latency.benchmarking` has them, without torch


@click.command("bench", cls=Command)
@click.argument("files", type=FILE, nargs=-1, required=True, metavar="FILE...")
@click.option(
    "--batch",
    type=Several(Whole(1, MOST_BATCH), "1,64"),
    default=",".join(map(str, BATCH)),
    show_default=True,
    metavar="N,N",
    help="Examples of a batch, one or several sizes.",
)
@click.option(
    "--threads",
    type=Several(Whole(1, MOST_WORKERS), "1,2"),
    metavar="N,N",
    help="Threads of torch and onnxruntime, one or several numbers.  [default: torch's]",
)
@click.option("--compile", "compiled", is_flag=True, help="Measure torch.compile, too.")
@click.option(
    "--seconds",
    type=Real(0, MOST_SECONDS, min_open=True),
    default=SECONDS,
    show_default=True,
    help="About how long to measure each size of batch.",
)
@click.option("--no-memory", is_flag=True, help="Measure no memory, for which files run alone.")
@click.option("--seed", type=Whole(0), default=0, show_default=True, help="Of random inputs.")
@json_option
@DATA
@data_root_option
@network_options
@DEVICE_OPTION
def bench_command(
    files: tuple[Path, ...],
    batch: tuple[int, ...],
    threads: tuple[int, ...] | None,
    compiled: bool,
    seconds: float,
    no_memory: bool,
    seed: int,
    json_file: Path | None,
    data: str | None,
    data_root: Path | None,
    how: NetworkOptions,
    device: str,
) -> None:
    r"""Measure what files cost when they run: time, throughput, memory and bytes.

    Each FILE is a file of fcompress (a cascade, too), ONNX (also quantised), the JSON of a cascade,
    or with --trust-pickle a .pt2 program. All get the same examples in turns: those that a file
    remembers, those of --data, or else random ones. Ratios are against the first file.

    \b
    Example:
      fcompress bench model.pt small.pt small.onnx --batch 1,64 --threads 1
    """
    import torch

    from fcompress.cli.opening import open_shipped
    from fcompress.latency.benchmarking import measured
    from fcompress.latency.entries import also_compiled, file_entry

    entries = [file_entry(path, partial(open_shipped, path, how)) for path in files]
    inputs = _inputs(entries, batch, seed, data, data_root, how)
    result = measured(
        also_compiled(entries) if compiled else entries,
        inputs,
        batch=list(dict.fromkeys(batch)),
        threads=list(dict.fromkeys(threads or [torch.get_num_threads()])),
        seconds=seconds,
        memory=not no_memory,
        device=device,
        report=lambda event: tell(str(event)),
    )
    if not write_json(json_file, result.to_dict()):
        return
    show(stdout(), bench_screen(result))


def _inputs(
    entries: Sequence[Entry],
    batch: Sequence[int],
    seed: int,
    data: str | None,
    root: Path | None,
    how: NetworkOptions,
) -> Inputs:
    """Examples of the data that was named or is remembered, or else random ones.

    Raises:
        DataError: Data that was named is no good, or there is none for a cascade.
    """
    from fcompress.cli.opening import open_data
    from fcompress.errors import DataError
    from fcompress.forward.callables import Called
    from fcompress.latency.inputs import made, of_splits
    from fcompress.models.provenance import origin_of

    networks = [entry.open() for entry in entries]

    def place(network: nn.Module) -> tuple[bool, bool]:
        # What remembers its data comes first, of these networks, which know more than programs.
        return origin_of(network)["data"] is None, isinstance(network, Called)

    known = sorted(networks, key=place)
    first = entries[networks.index(known[0])]
    try:
        splits = open_data(known, Path(first.name), how, data, root, "all", say=tell)
    except DataError as error:
        if data is not None:
            raise
        return made(known, batch, seed, str(error).partition("; name some by")[0])
    return of_splits(splits, batch)
