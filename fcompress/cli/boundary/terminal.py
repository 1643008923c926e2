"""Streams and signals: a closed or full stdout, letters that it lacks, Ctrl-C and SIGTERM."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from fcompress.errors import FcompressError
from fcompress.formats.atomic import remove_unfinished

INTERRUPTED = 130  # 128 + SIGINT, as shells have it
_IMPORTING = ("<frozen importlib._bootstrap>", "<frozen importlib._bootstrap_external>")


class Terminated(BaseException):
    """The system, or a user, ended the process by a signal.

    Args:
        number: Of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"ended by {signal.Signals(number).name}")
        self.code = 128 + number


@contextmanager
def signals() -> Iterator[None]:
    """SIGTERM and a lost terminal unwind the process as an interrupt does.

    What is half written is removed then. An interrupt in the middle of an import ends the process
    at once: libraries in C turn it into errors of their own. A signal that is ignored stays so.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: dict[int, Any] = {}
    at_once = getattr(signal.getsignal(signal.SIGINT), "__name__", "") == "stop_at_once"
    if at_once:
        before[signal.SIGINT] = signal.signal(signal.SIGINT, _interrupt)
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:
            before[number] = signal.signal(number, _terminate)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(number: int, frame: FrameType | None) -> None:
    if _imports(frame):
        _end("interrupted", INTERRUPTED)
    raise KeyboardInterrupt


def _terminate(number: int, frame: FrameType | None) -> None:
    if _imports(frame):
        _end(f"ended by {signal.Signals(number).name}", 128 + number)
    raise Terminated(number)


def _imports(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename in _IMPORTING:
            return True
        frame = frame.f_back
    return False


def _end(message: str, code: int) -> None:
    remove_unfinished()
    os.write(2, f"error: {message}\n".encode())
    os._exit(code)


def open_streams() -> None:
    """Make stdout and stderr usable: open, and able to write every letter in some way.

    A descriptor that is closed is opened on nothing: the next file to be opened would get its
    number, and what libraries print there would land in it.

    Raises:
        FcompressError: Stdout is closed, so that no result could be shown.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    closed = sys.stdout is None
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: PTH123, SIM115
        with suppress(AttributeError, ValueError, OSError):
            getattr(sys, name).reconfigure(errors="backslashreplace")
    if closed:
        raise FcompressError("stdout is closed, where results are shown; send it to a file")


def flush() -> str | None:
    """Bring all that was printed to stdout; returns why that failed, "" where nobody listens.

    Then stdout leads nowhere, so that Python does not try again when it ends.
    """
    try:
        sys.stdout.flush()
        return None
    except BrokenPipeError:
        reason = ""
    except (OSError, ValueError) as error:
        reason = f"cannot write to stdout: {getattr(error, 'strerror', None) or error}"
    lose_stdout()
    return reason


def lose_stdout() -> None:
    """What is left of the output goes nowhere."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
