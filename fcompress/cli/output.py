"""What commands have in common: options, tables on stdout and JSON files."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.console import Console

from fcompress.files import write_atomic

FILE_COLUMNS = 120  # where the output is not a terminal
_Command = TypeVar("_Command", bound=Callable[..., Any])


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
