"""Files of tensors and plain values that are safe to open: `torch.save`, with checks around it.

Such a file is an uncompressed zip archive of one pickle and the memory of each tensor. A pickle
can run any code when it is opened, so only `weights_only=True` is ever used on it, and before
that the archive itself is checked: whole, not packed, every checksum right.
"""

import os
import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import torch

from fcompress.errors import CheckpointError
from fcompress.formats.atomic import write_atomic


def write_archive(path: str | os.PathLike[str], content: Any) -> None:
    """Write `content` to a file, whole or not at all.

    Args:
        path: The file; one that is there is replaced once the new one is complete.
        content: Dicts, lists and tuples of tensors and plain values.

    Raises:
        FcompressError: The file cannot be written.
    """
    write_atomic(path, lambda file: _serialise(content, file))


EXPECTED = "a network saved with fcompress.save"


def read_archive(
    path: str | os.PathLike[str],
    *,
    expected: str = EXPECTED,
    remedy: str = "Load only networks saved with fcompress.save",
) -> Any:
    """Read a file; tensors come to the CPU.

    Args:
        path: A file written by `write_archive` or `torch.save`.
        expected: What it should be, for errors.
        remedy: What to do about a file that would run code, a sentence without its end.

    Raises:
        CheckpointError: The file is missing, damaged, something else, or holds more than tensors
            and plain values. No code in it is ever run, and its tensors take no more memory than
            the file is long.
    """
    try:
        with Path(path).open("rb") as file:
            _check(path, file, expected)
            file.seek(0)
            return _unpickle(path, file, expected, remedy)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: there is no such file") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error


def is_zip(path: str | os.PathLike[str]) -> bool:
    """Whether a file is a zip archive, or a damaged one."""
    if not Path(path).is_file():
        return False  # the end of an endless device is never found
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:  # of some ends of archives
        return True


def _serialise(content: dict[str, Any], file: BinaryIO) -> None:
    # Checksums are how a damaged file is noticed, so they do not follow the user's setting.
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(True)
    try:
        torch.save(content, file)
    finally:
        torch.serialization.set_crc32_options(before)


def _check(path: str | os.PathLike[str], file: BinaryIO, expected: str) -> None:
    """See that the file is a whole, unpacked zip archive before anything is read into tensors.

    Entries must be stored as they are and fit in the file, so that nothing can unfold to more
    than the file's size, and each must match its checksum.
    """
    start = file.read(4)
    size = os.fstat(file.fileno()).st_size
    if start != b"PK\x03\x04":
        what = "is empty" if not start else "is not a file written by fcompress"
        raise CheckpointError(f"{path}: {what}; expected {expected}")
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            names = {entry.filename for entry in entries}
            if (
                len(names) != len(entries)
                or any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
                or sum(entry.file_size for entry in entries) > size
                or not any(name.endswith("/data.pkl") for name in names)
            ):
                raise CheckpointError(
                    f"{path}: is a zip archive, but not one written by fcompress; "
                    f"expected {expected}"
                )
            damaged = archive.testzip()
    except (zipfile.BadZipFile, EOFError, ValueError, NotImplementedError, RuntimeError) as error:
        raise CheckpointError(
            f"{path}: the file is truncated or damaged ({error}); copy or save it again"
        ) from error
    if damaged is not None:
        raise CheckpointError(
            f"{path}: the file is damaged (checksum of {damaged}); copy or save it again"
        )


def _unpickle(path: str | os.PathLike[str], file: BinaryIO, expected: str, remedy: str) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about protocols; what matters is an error
            return torch.load(file, map_location="cpu", weights_only=True, mmap=False)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: holds more than tensors and plain values, which could run code when opened; "
            f"it was not opened. {remedy}"
        ) from error
    # What a hostile archive makes torch raise has no common type.
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"{path}: cannot be read, perhaps damaged ({reason}); expected {expected}"
        ) from error
