"""What commands have in common: options, tables on stdout and JSON files."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
import torch
from rich.console import Console
from torch import nn

from fcompress.certify.bounds import CONFIDENCE
from fcompress.errors import DataError
from fcompress.formats.atomic import write_atomic

DATA = click.option("--data", metavar="SPEC", help="Other data than MODEL was trained on.")
DEVICE_OPTION = click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="Where to compute.",
)
FILE_COLUMNS = 120  # where the output is not a terminal
_Command = TypeVar("_Command", bound=Callable[..., Any])


def place(network: nn.Module, device: str) -> None:
    """Bring a network to the device that was asked for."""
    if device == "cuda" and not torch.cuda.is_available():
        raise DataError("--device cuda: no CUDA device is available here; use --device cpu")
    if device == "cuda" or (device == "auto" and torch.cuda.is_available()):
        network.to("cuda")


class FloatRange(click.FloatRange):
    """A range of numbers, which "nan" is not."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Read a number in the range."""
        number = float(super().convert(value, param, ctx))
        if math.isnan(number):
            self.fail(f"{value} is not in the range {self._describe_range()}.", param, ctx)
        return number


CONFIDENCE_OPTION = click.option(
    "--confidence",
    type=FloatRange(0, 1, min_open=True, max_open=True),
    default=CONFIDENCE,
    show_default=True,
    help="Of the bound on changed labels.",
)


class Multiple(click.ParamType):
    """A whole number from 1 on, or "auto"."""

    name = "multiple"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | str:
        """Read it."""
        if value == "auto":
            return "auto"
        if not str(value).isascii() or not str(value).isdigit() or int(value) < 1:
            self.fail(f'{value} is not a whole number from 1 on, nor "auto".', param, ctx)
        return int(value)


def existing_folder(
    context: click.Context, parameter: click.Parameter, value: Path | None
) -> Path | None:
    """Refuse a file that cannot be written before minutes of work, not after."""
    if value is not None and not value.absolute().parent.is_dir():
        raise click.BadParameter(f"there is no folder {value.absolute().parent}; create it first")
    return value


def json_option(command: _Command) -> _Command:
    """The option `--json FILE`, as argument `json_file`."""
    return click.option(
        "--json",
        "json_file",
        type=click.Path(dir_okay=False, path_type=Path),
        callback=existing_folder,
        metavar="FILE",
        help="Write the result for machines; - for stdout, instead of text.",
    )(command)


def data_root_option(command: _Command) -> _Command:
    """The option `--data-root DIR`, as argument `data_root`."""
    return click.option(
        "--data-root",
        type=click.Path(path_type=Path),
        metavar="DIR",
        help="Folder in which datasets are looked for first.",
    )(command)


def write_json(path: Path | None, record: Any) -> bool:
    """Write plain values to a file, whole or not at all; a path `-` is stdout.

    Returns:
        Whether stdout is free for text.
    """
    if path is None:
        return True
    text = json.dumps(record, indent=1, allow_nan=False) + "\n"
    if str(path) == "-":
        click.echo(text, nl=False)
        return False
    write_atomic(path, lambda file: file.write(text.encode()))
    return True


def stdout() -> Console:
    """Where results are shown; in a file, lines have room for a table."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=FILE_COLUMNS)
