"""What goes wrong for people: one line that says what was wrong, what was expected, what to do.

Everything a user can cause derives from `FcompressError`; the command line prints its
message without a traceback and exits with 1.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_LONGEST = 4000


def first_line(error: Exception) -> str:
    """What an error says first."""
    return (str(error).strip().splitlines() or ["no message"])[0]


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
