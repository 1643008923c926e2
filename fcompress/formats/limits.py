"""What may be taken in: regular files, and no more bytes than there is memory for.

Looked at before anything is read or made, since a process that takes too much is killed without a
word. Nothing here needs torch.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from fcompress.errors import CheckpointError, FcompressError, shown

# Of what is free: other processes take some, and what is made of the bytes takes more.
SHARE = 0.8
# Where the system does not say how much memory is free.
UNKNOWN = 4 * 2**30
_CGROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    (
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
    ),
)


def available() -> int:
    """Bytes of memory that this process can still take: the least of what limits it.

    Example:
        >>> available() > 0
        True
    """
    found = [_of_system(), _of_process()]
    for limit, used in _CGROUPS:
        most, now = _number(limit), _number(used)
        if most is not None and now is not None:
            found.append(most - now)
    known = [number for number in found if number is not None]
    return max(1, min(known, default=UNKNOWN))


def check_memory(
    needed: float, what: str, remedy: str, error: type[FcompressError] = FcompressError
) -> None:
    """Refuse what does not fit in memory.

    Args:
        needed: Bytes.
        what: What they are for, in words, the subject of a sentence.
        remedy: What to do.
        error: What to raise.

    Raises:
        FcompressError: It takes more than `SHARE` of what is free; says both numbers.

    Example:
        >>> check_memory(10**18, "a thousand million images", "take fewer")
        Traceback (most recent call last):
            ...
        fcompress.errors.FcompressError: a thousand million images takes ...; take fewer
    """
    most = int(SHARE * available())
    if needed > most:
        size = "more bytes than can be counted" if needed >= 2**63 else f"{int(needed):,} bytes"
        raise error(f"{what} takes {size} of memory, and {most:,} can be used; {remedy}")


def as_path(path: object) -> Path:
    """A path as the user gave it.

    Raises:
        CheckpointError: It is none.

    Example:
        >>> as_path(3)
        Traceback (most recent call last):
            ...
        fcompress.errors.CheckpointError: 3 is no path of a file; expected a text or a pathlib.Path
    """
    if not isinstance(path, str | os.PathLike) or not isinstance(os.fspath(path), str):
        raise CheckpointError(
            f"{shown(path)} is no path of a file; expected a text or a pathlib.Path"
        )
    return Path(path)


def is_regular(path: str | os.PathLike[str]) -> bool:
    """Whether a path is a file with an end: no device, pipe or folder.

    Example:
        >>> is_regular(os.devnull)
        False
    """
    try:
        return stat.S_ISREG(Path(path).stat().st_mode)
    except (OSError, ValueError):
        return False


def check_file(path: str | os.PathLike[str]) -> None:
    """See that a file can be read into memory, before it is opened: a pipe would wait for ever.

    Raises:
        CheckpointError: It is missing, no regular file, or larger than the memory.
    """
    try:
        found = Path(path).stat()
    except FileNotFoundError:
        raise CheckpointError(f"{path}: there is no such file") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(f"{path}: cannot be read: {reason}") from error
    if not stat.S_ISREG(found.st_mode):
        if stat.S_ISDIR(found.st_mode):
            raise CheckpointError(f"{path}: cannot be read: Is a directory")
        raise CheckpointError(f"{path}: is a device or a pipe; expected a file")
    check_memory(found.st_size, f"{path}", "take a smaller file", CheckpointError)


def _number(path: str) -> int | None:
    """What a file of the system says; None where it says nothing or "max"."""
    try:
        text = Path(path).read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return None
    return int(text) if text.isdecimal() else None


def _of_system() -> int | None:
    """What is free, as Linux has it, or else half of what there is."""
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return 1024 * int(line.split()[1])
    except (OSError, ValueError, IndexError):
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    except (AttributeError, ValueError, OSError):
        return None


def _of_process() -> int | None:
    """What `ulimit -v` leaves, where it is set."""
    try:
        import resource  # not on Windows

        most = resource.getrlimit(resource.RLIMIT_AS)[0]
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    except (ImportError, OSError, ValueError, IndexError):
        return None
    return None if most == resource.RLIM_INFINITY else most - pages * resource.getpagesize()
