"""Files that are either written whole or not at all, and folders that one run works in."""

import contextlib
import io
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

from fcompress.errors import FcompressError
from fcompress.formats.places import real_path

LOCK = ".fcompress.lock"
# Windows translates the ends of lines in what is not opened as binary.
_BINARY = getattr(os, "O_BINARY", 0)


def write_atomic(
    path: str | os.PathLike[str],
    write: Callable[[BinaryIO], object],
    check: Callable[[Path], object] | None = None,
) -> None:
    """Write a file so that every other process sees the old content or the whole new one.

    The content goes to a temporary file in the same folder, is flushed to the disk and then
    takes the name of `path` in one step. If anything fails before that step (an exception in
    `write`, a full disk, an interrupt), the temporary file is removed and a file that was there
    stays as it was. A symbolic link stays a link; what it points to is replaced. A device or a
    pipe (`/dev/stdout`) has no old content to protect and is written directly.

    Args:
        path: Where the file shall be; its folder must exist.
        write: Called once with a binary file, open for writing.
        check: Called with the temporary file, complete and closed; if it raises, nothing is kept.

    Raises:
        FcompressError: The folder is missing, the system refuses to write there, or a device is
            to be checked, which cannot be read back.
    """
    target = real_path(path)
    try:
        mode = _mode(target)
        reason = why_not_writable(target)
        if reason is not None:
            raise FcompressError(f"cannot write {path}: {reason}")
        if mode is not None and not stat.S_ISREG(mode):
            if check is not None:
                raise FcompressError(
                    f"cannot write {path}: what is written is read back and checked, which only a "
                    "file allows; name one"
                )
            _fill(os.open(target, os.O_WRONLY | _BINARY), write)
            return
        _replace(target, None if mode is None else stat.S_IMODE(mode), write, check)
    except OSError as error:
        reason = error.strerror or str(error) or type(error).__name__
        raise FcompressError(f"cannot write {path}: {reason}") from error


def why_not_writable(path: str | os.PathLike[str]) -> str | None:
    """Why a file cannot be written, as far as that is known before; None if it can.

    A file that nobody may write to is not replaced either, though its folder would allow that.

    Args:
        path: The file, which need not exist.
    """
    target = real_path(path)
    try:
        mode = _mode(target)
    except OSError as error:
        return f"{error.strerror}; name another file"
    if mode is not None and stat.S_ISDIR(mode):
        return "it is a folder; name a file in it"
    if mode is not None and not (mode & 0o222 and os.access(target, os.W_OK)):
        return "it is read-only; make it writable, or name another file"
    if mode is not None and not stat.S_ISREG(mode):
        return None
    if not target.parent.is_dir():
        return f"there is no folder {target.parent}; create it first"
    if not os.access(target.parent, os.W_OK | os.X_OK):
        return f"nothing can be written to the folder {target.parent}; name another"
    return None


# Of this process: what a signal that ends it at once has to remove.
_unfinished: set[Path] = set()


def remove_unfinished() -> None:
    """Remove the temporary files of what is being written, for a process that ends at once."""
    for path in list(_unfinished):
        with contextlib.suppress(OSError):
            path.unlink()


def make_folder(folder: Path) -> None:
    """Make a folder, with those above it, where there is none.

    Raises:
        FcompressError: It cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise FcompressError(
            f"cannot make the folder {folder}: there is something else of that name; name another"
        ) from error
    except OSError as error:
        raise FcompressError(f"cannot make the folder {folder}: {error.strerror}") from error


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep other processes out of a folder that do the same; ends with the process at the latest.

    Where the file system knows no locks, nobody is kept out.

    Raises:
        FcompressError: Another process holds it.
    """
    lock = FileLock(folder / LOCK, blocking=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise FcompressError(
            f"another run works in {folder}; wait for it, or choose another folder"
        ) from error
    except (OSError, NotImplementedError):
        pass
    try:
        yield
    finally:
        # Before it is free: whoever comes now finds no file that somebody still holds.
        with contextlib.suppress(OSError):
            (folder / LOCK).unlink()
        lock.release()


def _mode(path: Path) -> int | None:
    try:
        return path.stat().st_mode
    except FileNotFoundError:
        return None


def _replace(
    target: Path,
    permissions: int | None,
    write: Callable[[BinaryIO], object],
    check: Callable[[Path], object] | None,
) -> None:
    temporary = target.parent / f".fcompress-{secrets.token_hex(8)}.tmp"
    _unfinished.add(temporary)
    try:
        # Not tempfile: its files are readable by their owner only, and that would stay so.
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | _BINARY, 0o666)
        _fill(descriptor, write)
        if check is not None:
            check(temporary)
        if permissions is not None:
            temporary.chmod(permissions)
        temporary.replace(target)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    finally:
        _unfinished.discard(temporary)
    _flush_folder(target.parent)


class _Raw(io.FileIO):
    """A file that remembers why the system refused to write."""

    refusal: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self.refusal = error
            raise


def _fill(descriptor: int, write: Callable[[BinaryIO], object]) -> None:
    """Write to an open descriptor, through to the disk, and close it."""
    raw = _Raw(descriptor, "wb")
    try:
        with io.BufferedWriter(raw) as file:
            write(file)
            file.flush()
            if stat.S_ISREG(os.fstat(descriptor).st_mode):
                os.fsync(descriptor)
    except Exception:
        # torch.save turns a full disk into an error of its own, about positions in the file.
        if raw.refusal is not None:
            raise raw.refusal from None
        raise


def _flush_folder(folder: Path) -> None:
    """Make the new name itself last through a power cut, where the system can do that."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
