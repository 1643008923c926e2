"""What commands have in common: options, tables on stdout and JSON files.

Like every file of a command it imports what needs torch only where that is run, so that help need
not wait for it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource
from rich.console import Console

from fcompress.certify.bounds import CONFIDENCE
from fcompress.cli.boundary import DataSpec, Device, InputFile, InputFolder, OutputFile, Real
from fcompress.cli.boundary.files import DEVICES
from fcompress.errors import FcompressError

if TYPE_CHECKING:
    from torch import nn


FILE = InputFile(folders=True)
DATA = click.option(
    "--data",
    type=DataSpec(),
    metavar="SPEC",
    help="Other data than the network was trained on (`fcompress data`).",
)
DEVICE_OPTION = click.option(
    "--device",
    type=Device(),
    metavar=DEVICES,
    default="auto",
    show_default=True,
    help="Where to compute.",
)
FILE_COLUMNS = 120  # where the output is not a terminal
_Command = TypeVar("_Command", bound=Callable[..., Any])
_Options = TypeVar("_Options")


def place(network: nn.Module, device: str) -> None:
    """Bring a network to the device that was asked for."""
    from fcompress.forward.running import device_of

    network.to(device_of(device))


def checked(options: Callable[..., _Options], **values: Any) -> _Options:
    """An object of options that checks itself; what is out of its range becomes one line.

    Args:
        options: `ShrinkOptions` or `AnalyzeOptions`.
        **values: Its fields, as the user gave them.

    Raises:
        FcompressError: One of them is out of its range.
    """
    try:
        return options(**values)
    except ValueError as error:
        raise FcompressError(str(error)) from error


def old_option(old: str, new: str, **attributes: Any) -> Callable[[_Command], _Command]:
    """An option by its old name: it still works, says so on stderr, and is not in the help.

    Args:
        old: How it was called, as in "--wide".
        new: How it is called now; the command's argument has this name.
        **attributes: Of `click.option`, as the new one has them.
    """
    name = new.removeprefix("--").replace("-", "_")
    hidden = f"old_{name}"

    def decorate(command: _Command) -> _Command:
        @wraps(command)
        def run(*args: Any, **kwargs: Any) -> Any:
            value = kwargs.pop(hidden)
            if value is not None:
                context = click.get_current_context()
                if context.get_parameter_source(name) == ParameterSource.COMMANDLINE:
                    raise click.UsageError(f"{old} is called {new} now; give one of them")
                tell(f"{old} is called {new} now; the old name goes with version 1.0")
                kwargs[name] = value
            return command(*args, **kwargs)

        option = click.option(old, hidden, default=None, hidden=True, **attributes)
        return option(run)  # type: ignore[return-value]

    return decorate


def tell(line: str) -> None:
    """What the user should know while a command runs, on stderr."""
    click.echo(line, err=True)


CONFIDENCE_OPTION = click.option(
    "--confidence",
    type=Real(0, 1, min_open=True, max_open=True),
    default=CONFIDENCE,
    show_default=True,
    help="Confidence of the bound on changed labels.",
)
STOCHASTIC_OPTION = click.option(
    "--stochastic",
    is_flag=True,
    help="Take a network that draws random numbers; what it disagrees with itself counts.",
)


def export_targets(
    context: click.Context, parameter: click.Parameter, values: tuple[Path, ...]
) -> tuple[Path, ...]:
    """Refuse exports of no known format before minutes of work."""
    if values:
        from fcompress.exports.exporting import format_of

        for value in values:
            format_of(value)
    return values


def plot_option(drawn: str) -> Callable[[_Command], _Command]:
    """The option `--plot FILE.png`, as argument `plot`.

    Args:
        drawn: What is to be seen, for help.
    """
    return click.option(
        "--plot",
        type=OutputFile("picture"),
        metavar="FILE.png",
        help=f"Draw {drawn}.",
    )


def json_option(command: _Command) -> _Command:
    """The option `--json FILE`, as argument `json_file`."""
    return click.option(
        "--json",
        "json_file",
        type=OutputFile("JSON"),
        metavar="FILE",
        help="Write the result for machines; - for stdout, instead of text.",
    )(command)


def data_root_option(command: _Command) -> _Command:
    """The option `--data-root DIR`, as argument `data_root`."""
    return click.option(
        "--data-root",
        type=InputFolder(),
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
    write_bytes(path, text.encode())
    return True


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all."""
    from fcompress.formats.atomic import write_atomic

    write_atomic(path, lambda file: file.write(content))


def stdout() -> Console:
    """Where results are shown; in a file, lines have room for a table."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=FILE_COLUMNS)
