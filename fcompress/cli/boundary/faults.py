"""What went wrong, as one line and an exit code; a bug of fcompress also as a file to report."""

from __future__ import annotations

import os
import platform
import re
import sys
import tempfile
import traceback
from importlib.metadata import version

import click

from fcompress.cli.boundary.terminal import INTERRUPTED, Terminated
from fcompress.errors import FcompressError, first_line

DEBUG = "FCOMPRESS_DEBUG"
# Of RuntimeErrors by which torch says that memory is short.
_NO_MEMORY = re.compile(r"can't allocate memory|out of memory|not enough memory", re.I)


def said(error: BaseException) -> tuple[str, int]:
    """The line for an error, and the exit code.

    Args:
        error: Whatever came out of a command, but for errors of usage, which click says.
    """
    if isinstance(error, FcompressError):
        return str(error), 1
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", INTERRUPTED
    if isinstance(error, Terminated):
        return str(error), error.code
    if isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and _NO_MEMORY.search(str(error))
    ):
        return (
            f"there is not enough memory ({first_line(_as_error(error))[:200]}); take less data, a "
            "smaller network or a smaller batch",
            1,
        )
    if isinstance(error, OSError):
        where = f"{_plain(str(error.filename))}: " if error.filename else ""
        return f"{where}{error.strerror or error}", 1
    return _bug(error), 1


def _as_error(error: BaseException) -> Exception:
    return error if isinstance(error, Exception) else Exception(str(error))


def _plain(text: str) -> str:
    return str(FcompressError(text))


def _bug(error: BaseException) -> str:
    """A line that says that this is not the user's fault, and where the traceback is."""
    said = _plain(f"{type(error).__name__}: {first_line(_as_error(error))[:200]}")
    text = (
        f"fcompress {version('fcompress')}, Python {platform.python_version()}, "
        f"{platform.platform()}\n{sys.argv!r}\n\n"
        + "".join(traceback.format_exception(type(error), error, error.__traceback__))
    )
    try:
        descriptor, path = tempfile.mkstemp(prefix="fcompress-bug-", suffix=".txt")
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
        where = f"the traceback is in {path}; please report it with that file"
    except OSError:
        where = f"{DEBUG}=1 shows the traceback; please report it with that"
    return f"this is a bug of fcompress ({said}); {where} where you got fcompress from"


def show(error: BaseException, debug: bool) -> int:
    """Say an error on stderr; returns the exit code.

    Args:
        error: As for `said`.
        debug: Whether its traceback is wanted.
    """
    if debug or os.environ.get(DEBUG):
        traceback.print_exception(type(error), error, error.__traceback__)
    line, code = said(error)
    click.echo(f"error: {line}", err=True)
    return code
