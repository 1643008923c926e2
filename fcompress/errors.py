"""What goes wrong for people: one line that says what was wrong, what was expected, what to do.

Everything a user can cause derives from `FcompressError`; the command line prints its
message without a traceback and exits with 1.
"""

from __future__ import annotations

import difflib
import re
import reprlib
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

_LONGEST = 4000
_FRAME = re.compile(r'^  File "(.+)", line (\d{1,9}), in (.+)$', re.MULTILINE)
# Code that is nobody's own: of packages, of Python, of this one.
_INSTALLED = tuple({*sysconfig.get_paths().values(), str(Path(__file__).parent)})


def first_line(error: BaseException) -> str:
    """What an error says first; never raises, whatever the error is."""
    try:
        said = str(error)
    except Exception:  # a __str__ of anybody's
        said = ""
    return (said.strip().splitlines() or ["no message"])[0]


def said_by(error: BaseException) -> str:
    """What code of the user's raised and where: "net.py, line 9, in forward: ValueError: no".

    Example:
        >>> said_by(ValueError("no"))
        'ValueError: no'
    """
    frames = traceback.extract_tb(error.__traceback__)
    found = [(f.filename, f.lineno, f.name) for f in frames]
    what = f"{type(error).__name__}: {first_line(error)}"
    quoted = _quoted(error)
    if quoted is not None:
        found, what = quoted
    own = [place for place in found if not place[0].startswith(("<", *_INSTALLED))]
    places = [f"{Path(file).name}, line {line}, in {name}: " for file, line, name in own[-1:]]
    return f"{''.join(places)}{what}"


def _quoted(error: BaseException) -> tuple[list[tuple[str, int | None, str]], str] | None:
    """The traceback in a message, of a process that loads data, and what that says was raised."""
    try:
        _, found, text = str(error).partition("Original Traceback (most recent call last):\n")
    except Exception:  # a __str__ of anybody's
        return None
    places = list(_FRAME.finditer(text))
    if not found or not places:
        return None
    # Behind the last frame: the line of code, then what was raised.
    said = [line for line in text[places[-1].end() :].splitlines() if line[:1].strip()]
    if not said:
        return None
    return [(f[1], int(f[2]), f[3]) for f in places], said[0].strip()


class FcompressError(Exception):
    """A mistake or a lack that the user can act on; the message says how.

    Args:
        message: One line. It may quote names out of files of others, so what steers a terminal is
            escaped, and the middle of a very long one is left out.
    """

    def __init__(self, message: str) -> None:
        plain = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in message)
        if len(plain) > _LONGEST:
            plain = f"{plain[: _LONGEST // 2]} ... {plain[-_LONGEST // 2 :]}"
        super().__init__(plain)


def shown(value: object) -> str:
    """A value as a message shows it: short, and whatever its type makes of that.

    Example:
        >>> shown([1, "two"]), shown(10**5000)
        ("[1, 'two']", 'an int too long to show')
    """
    try:
        return reprlib.repr(value)
    except Exception:  # numbers of thousands of digits, types of anybody's
        return f"an {type(value).__name__} too long to show"


class DataError(FcompressError):
    """A dataset is missing, damaged, or of the wrong shape."""


class CheckpointError(FcompressError):
    """A file is not a network that fcompress can load."""


class ArchitectureError(FcompressError):
    """A network cannot be built from the name and the arguments that the user gave."""


class TrainingError(FcompressError):
    """Training cannot go on, for example because the loss is no longer finite."""


class UnsupportedNetworkError(FcompressError):
    """The network cannot be traced, or nothing in it can be excised."""


class ToleranceError(FcompressError):
    """No network at the tolerance can be certified with the data at hand."""


class ResultWarning(UserWarning):
    """A result that holds, but says less than the user may think."""


def suggest(name: str, known: Iterable[str]) -> str:
    """The wrong name, the closest right one, and all right ones, to end an error with."""
    names = list(known)
    close = difflib.get_close_matches(str(name), names, 1)
    hint = f"; did you mean {close[0]!r}?" if close else ";"
    return f"{name!r}{hint} there are: {', '.join(names)}"


@contextmanager
def code_of_users(fail: Callable[[BaseException], FcompressError]) -> Iterator[None]:
    """Whatever code of the user's raises becomes one error of ours, and never an exit code.

    Put it around each place where such code runs: its import, the call that builds a network, a
    forward, a copy.

    Args:
        fail: Makes the error out of what was raised; `said_by` has the words.

    Raises:
        FcompressError: Something was raised (`SystemExit` too) that is no `FcompressError`, or
            stdout was closed. Ctrl-C goes on as it is.

    Example:
        >>> with code_of_users(lambda error: FcompressError(f"fails: {said_by(error)}")):
        ...     sys.exit(3)
        Traceback (most recent call last):
            ...
        fcompress.errors.FcompressError: fails: SystemExit: 3
    """
    closed = _is_closed()
    try:
        yield
    except FcompressError:
        raise
    except BaseException as error:
        # Ctrl-C says nothing; what the code raises by itself is of another type or has words.
        if type(error) is KeyboardInterrupt and not error.args:
            raise
        raise fail(error) from error
    if _is_closed() and not closed:
        raise fail(ValueError("it closed stdout, which is not its own; let it be"))


def _is_closed() -> bool:
    return bool(getattr(sys.stdout, "closed", False))
