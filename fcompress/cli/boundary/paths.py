"""No output of a command replaces an input of it, another output, or somebody's file.

All of it is checked before any work is done. Two names are of one file if they lead to the same
one through links, symbolic or hard, or would.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click

from fcompress.cli.boundary.files import (
    InputFile,
    InputFolder,
    OutputFile,
    OutputFolder,
    _Text,
)
from fcompress.cli.boundary.recognise import is_earlier
from fcompress.errors import FcompressError
from fcompress.formats.atomic import why_not_writable

_CHECKED = "fcompress.outputs"


@dataclass(frozen=True)
class Place:
    """A file or folder that a command names.

    Attributes:
        option: Which parameter named it, for errors.
        path: As the user wrote it.
        kind: Of an output, what is written; of an input "".
        beside: Of an output: endings of what lies beside it.
        names: Of a folder that is written to: what in it is.
    """

    option: str
    path: Path
    kind: str = ""
    beside: tuple[str, ...] = ()
    names: tuple[str, ...] | None = None

    @property
    def identity(self) -> tuple[object, ...]:
        """The same for all names of one file, whether it exists or not."""
        return _identity(self.path)

    @property
    def end(self) -> Path:
        """Where links lead."""
        return Path(os.path.realpath(self.path))


def check(ctx: click.Context, command: str, force: bool) -> None:
    """Refuse a command whose outputs would replace what they must not.

    Args:
        ctx: With the parameters of the command.
        command: Its name.
        force: Whether the user said that other files may be replaced. Inputs never are.

    Raises:
        click.UsageError: An output is an input or another output, or cannot be written where it
            is said to be.
        FcompressError: An output is there and not plainly an earlier one of this command, or an
            input is no file.
    """
    inputs = list(_inputs(ctx))
    outputs = list(_outputs(ctx))
    for one in inputs:
        _check_input(one)
    for out in outputs:
        if out.names is None:
            _check_writable(out)
    _check_pairs(inputs, outputs)
    for out in outputs:
        if out.names is None and not force:
            _check_replaced(out, command)
    ctx.meta[_CHECKED] = outputs


def check_remembered(spec: str) -> None:
    """Refuse a command whose outputs would replace the data that a network remembers.

    Args:
        spec: Of the data.

    Raises:
        click.UsageError: One of them would.
    """
    from fcompress.cli.boundary.files import DataSpec

    ctx = click.get_current_context(silent=True)
    outputs = [] if ctx is None else ctx.meta.get(_CHECKED, [])
    if outputs:
        named = [Place("the data that the network remembers", p) for p in DataSpec().paths(spec)]
        _check_pairs(named, outputs)


def _values(ctx: click.Context) -> Iterator[tuple[click.Parameter, str]]:
    for parameter in ctx.command.params:
        value = ctx.params.get(parameter.name or "")
        for one in value if isinstance(value, tuple) else (value,):
            if one is not None:
                yield parameter, str(one)


def _named(parameter: click.Parameter) -> str:
    return parameter.opts[0] if parameter.opts[0].startswith("-") else str(parameter.name).upper()


def _inputs(ctx: click.Context) -> Iterator[Place]:
    for parameter, value in _values(ctx):
        kind, name = parameter.type, _named(parameter)
        if isinstance(kind, InputFile):
            yield Place(name, Path(value), "file")
        elif isinstance(kind, InputFolder):
            yield Place(name, Path(value))
        elif isinstance(kind, _Text):
            for path in kind.paths(value):
                yield Place(name, path)


def _outputs(ctx: click.Context) -> Iterator[Place]:
    for parameter, value in _values(ctx):
        kind, name = parameter.type, _named(parameter)
        if isinstance(kind, OutputFile) and value != "-":
            yield Place(name, Path(value), kind.kind, kind.beside)
        elif isinstance(kind, OutputFolder):
            yield Place(name, Path(value), names=kind.names)


def _identity(path: Path) -> tuple[object, ...]:
    end = Path(os.path.realpath(path))
    try:
        found = end.stat()
        return (found.st_dev, found.st_ino)
    except OSError:
        pass
    try:
        folder = end.parent.stat()
        return (folder.st_dev, folder.st_ino, end.name)
    except OSError:
        return (end,)


def _check_input(one: Place) -> None:
    """Devices and pipes have no end or no beginning that could be read again."""
    try:
        mode = one.path.stat().st_mode
    except FileNotFoundError:
        return  # who reads it says what it should have been
    except OSError as error:
        raise FcompressError(f"{one.path}: {error.strerror}; name another file") from error
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise FcompressError(f"{one.path} is a device or a pipe; expected a file")


def _check_writable(out: Place) -> None:
    if out.kind == "export" and out.path.is_dir() and not out.path.suffix:
        return
    folder = out.path.absolute().parent
    if not folder.is_dir():
        raise click.BadParameter(
            f"there is no folder {folder}; create it first", param_hint=f"'{out.option}'"
        )
    reason = why_not_writable(out.path)
    if reason is None and out.beside and out.path.exists() and not out.path.is_file():
        reason = f"it is a device, and {out.beside[0]} could not lie beside it; name a file"
    if reason is not None:
        raise FcompressError(f"cannot write {out.path}: {reason}")
    for ending in out.beside:
        reason = why_not_writable(_beside(out.path, ending))
        if reason is not None:
            raise FcompressError(f"cannot write {_beside(out.path, ending)}: {reason}")


def _beside(path: Path, ending: str) -> Path:
    return path.with_name(path.name + ending)


def _check_pairs(inputs: list[Place], outputs: list[Place]) -> None:
    """No output is an input or within one, and no two are the same."""
    taken = {one.identity: one.option for one in inputs}
    folders = [(one.end, one.option) for one in inputs if one.kind != "file" and one.path.is_dir()]
    folders = [(end, name) for end, name in folders if name != "--data-root"]
    for out in outputs:
        if out.names is not None:
            continue
        every = [out.path, *(_beside(out.path, ending) for ending in out.beside)]
        for path in every:
            if path.exists() and not path.is_file():
                continue  # a device takes whatever comes
            said = f"{out.option} {path}" if path == out.path else f"{path}, beside {out.option},"
            other = taken.get(_identity(path))
            if other is not None:
                raise click.UsageError(
                    f"{said} is the same file as {other}, and would replace it; name another file"
                )
            taken[_identity(path)] = said
            end = Path(os.path.realpath(path))
            for folder, name in folders:
                if folder in end.parents and name != out.option:
                    raise click.UsageError(
                        f"{said} would lie in the data of {name}; name a file elsewhere"
                    )
    for into in (out for out in outputs if out.names is not None):
        files = [one for one in outputs if one.names is None]
        for one in [*files, *(inputs if into.names else [])]:
            _check_inside(into, one)


def _check_inside(folder: Place, one: Place) -> None:
    """What a command writes into a folder of results must not be named for something else."""
    if folder.end not in one.end.parents:
        return
    first = one.end.relative_to(folder.end).parts[0]
    if not folder.names or first in folder.names:
        raise click.UsageError(
            f"{one.option} {one.path} lies where {folder.option} is written; name another file"
        )


def _check_replaced(out: Place, command: str) -> None:
    if not out.path.is_file() or is_earlier(out.path, out.kind, command):
        return
    what = {"JSON": "JSON", "picture": "a picture", "network": "a network", "export": "an export"}
    what["report"] = "a report"
    raise FcompressError(
        f"{out.path} exists and is not plainly {what[out.kind]} that `fcompress {command}` wrote; "
        "name another file, or give --force to replace it"
    )
