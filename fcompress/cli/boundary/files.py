"""What a parameter of a command is: a file that it reads, one that it writes, or a name of one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from fcompress.arguments.numbers import DEVICE

DEVICES = "auto|cpu|cuda|cuda:N|mps"


class InputFile(click.Path):
    """A file that is read, or where it holds a network, the folder of one.

    Args:
        folders: Whether a folder with config.json is taken.
    """

    def __init__(self, folders: bool = False) -> None:
        super().__init__(dir_okay=folders, path_type=Path)
        self.folders = folders

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """A path; of folders only those of networks."""
        path: Any = super().convert(value, param, ctx)
        if self.folders and path.is_dir() and not (path / "config.json").is_file():
            self.fail(f"File {str(path)!r} is a directory.", param, ctx)
        return path


class InputFolder(click.Path):
    """A folder that is read."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)


class OutputFile(click.Path):
    """A file that is written.

    Args:
        kind: What is written, a key of `recognise.KINDS`.
        beside: Endings of what lies beside it, for which it must be a file and no device.
    """

    def __init__(self, kind: str, beside: tuple[str, ...] = ()) -> None:
        # An export may be a folder, which is checked when it is written.
        super().__init__(dir_okay=kind == "export", path_type=Path)
        self.kind, self.beside = kind, beside


class OutputFolder(click.Path):
    """A folder whose files are written, and the names in it that are.

    Args:
        names: Files and folders in it that the command writes; empty for any.
    """

    def __init__(self, names: tuple[str, ...] = ()) -> None:
        super().__init__(file_okay=False, path_type=Path)
        self.names = names


class _Text(click.ParamType):
    """A text that may name a file or folder to be read."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """As it is."""
        return str(value)

    def paths(self, text: str) -> Iterator[Path]:
        """What it names."""
        raise NotImplementedError


class DataSpec(_Text):
    """A spec of data: `file:PATH`, `folder:PATH`, `text:PATH`, or the name of a dataset."""

    def paths(self, text: str) -> Iterator[Path]:
        """The file or folder of the user's own data."""
        kind, colon, _ = text.strip().partition(":")
        if colon and kind in ("file", "folder", "text"):
            from fcompress.data.specs import parse, user_path

            yield Path(user_path(parse(text)[1]))


class Device(click.ParamType):
    """Where to compute; whether it is there is seen when it is used."""

    name = "device"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The name, if it is one."""
        if DEVICE.fullmatch(str(value)) is None:
            self.fail(f"{value!r}: expected {DEVICES}", param, ctx)
        return str(value)


class PythonCode(_Text):
    """`FILE.py:FUNCTION`, `pickle:FILE`, or names of modules and of registered builders."""

    def paths(self, text: str) -> Iterator[Path]:
        """The file."""
        kind, _, rest = text.partition(":")
        place = rest if kind == "pickle" else text.rpartition(":")[0]
        if kind == "pickle" or place.endswith(".py"):
            yield Path(place)


class RecipeName(_Text):
    """A recipe of the project, or a file."""

    def paths(self, text: str) -> Iterator[Path]:
        """The file."""
        if text.endswith(".toml"):
            yield Path(text)
