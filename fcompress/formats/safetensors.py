"""Files in the safetensors format, read without trusting them and written the same each time.

The layout (https://huggingface.co/docs/safetensors): the length of a header as 8 bytes, little
endian; the header, a JSON object from each tensor's name to its dtype, shape and place, with texts
under `__metadata__`; then the values of all tensors, one after the other. The library `safetensors`
reads it, and checks that the values of all tensors lie side by side and fill the file.
"""

import json
import math
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fcompress.errors import CheckpointError, first_line
from fcompress.formats.limits import check_file, is_regular

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3": torch.float8_e4m3fn,
    "C64": torch.complex64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
METADATA = "__metadata__"
# Headers of networks with thousands of tensors take a few hundred kilobytes.
LONGEST_HEADER = 2**24
_ALIGNMENT = 8
_MOST_DIMENSIONS = 64


def is_safetensors(path: str | os.PathLike[str]) -> bool:
    """Whether a file begins as this format does; False where it cannot be read."""
    if not is_regular(path):
        return False
    try:
        with Path(path).open("rb") as file:
            start = file.read(9)
    except OSError:
        return False
    # An archive of torch begins with PK and a pickle with a byte of its own, so neither leaves a
    # length with zeros in its upper half.
    return len(start) == 9 and start[4:8] == bytes(4) and start[8:] == b"{"


def write_safetensors(
    file: BinaryIO, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> None:
    """Write tensors and texts, the same bytes for the same content.

    Args:
        file: Open for writing.
        tensors: Each tensor by name, dense; tensors that share memory are written twice.
        metadata: Texts, by name.

    Raises:
        CheckpointError: A tensor is of a dtype that the format lacks, or the header grows too long.
    """
    # Not by the library: the order in which it writes the metadata changes from run to run.
    header: dict[str, Any] = {METADATA: dict(metadata)} if metadata else {}
    start = 0
    for name, tensor in tensors.items():
        if tensor.dtype not in _NAMES or tensor.layout is not torch.strided or name == METADATA:
            raise CheckpointError(
                f"the tensor {name!r} ({tensor.dtype}) cannot be written as safetensors; "
                "save the network as .pt"
            )
        end = start + tensor.nbytes
        header[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
        start = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    if len(text) > LONGEST_HEADER:
        raise CheckpointError(
            f"names and metadata take {len(text):,} bytes, more than {LONGEST_HEADER:,}; "
            "save the network as .pt"
        )
    file.write(struct.pack("<Q", len(text)) + text)
    for tensor in tensors.values():
        file.write(_bytes_of(tensor.detach().cpu().contiguous()))


def read_safetensors(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read tensors and texts.

    Args:
        path: The file.

    Returns:
        Each tensor by name, on the CPU, each in memory of its own; and the texts by name.

    Raises:
        CheckpointError: The file is missing, damaged or of another format. Tensors take no more
            memory than the file is long.
    """
    check_file(path)
    try:
        names = _names_in_header(path)
        with safe_open(path, framework="pt") as file:
            tensors = {name: _own(name, file.get_tensor(name)) for name in names}
            return tensors, file.metadata() or {}
    except FileNotFoundError:
        raise CheckpointError(f"{path}: there is no such file") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (_Damaged, SafetensorError, RuntimeError, OverflowError, TypeError) as error:
        raise CheckpointError(
            f"{path}: is not a safetensors file, or damaged ({first_line(error)}); "
            "copy or save it again"
        ) from error


class _Damaged(Exception):
    """What is wrong with a file, in a few words."""


def _names_in_header(path: str | os.PathLike[str]) -> list[str]:
    """The tensors in the order of the header, after the checks that the library does not make.

    It takes the last of two tensors of one name, overlooks what else an entry says, and reads
    headers of 100 MB and shapes and dtypes that torch or this package has no use for.
    """
    with Path(path).open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= min(size - 8, LONGEST_HEADER):
            raise _Damaged("its header does not fit in it")
        text = file.read(length)
    try:
        header = json.loads(text.decode(), object_pairs_hook=_without_doubles)
    # A nest too deep and a number too long are a RecursionError and a ValueError.
    except (ValueError, RecursionError) as error:
        raise _Damaged("its header is not JSON") from error
    if not isinstance(header, dict):
        raise _Damaged("its header is not an object")
    header.pop(METADATA, None)
    for name, said in header.items():
        if not _is_entry(said):
            raise _Damaged(f"the entry of {name!r} is not a dtype, a shape and a place")
    return list(header)


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name occurs twice")
    return found


def _is_entry(said: Any) -> bool:
    if not isinstance(said, dict) or said.keys() != {"dtype", "shape", "data_offsets"}:
        return False
    shape, kind = said["shape"], said["dtype"]
    if not isinstance(shape, list) or len(shape) > _MOST_DIMENSIONS:
        return False
    return isinstance(kind, str) and kind in DTYPES


def _own(name: str, tensor: Tensor) -> Tensor:
    """The tensor in memory of its own; what the library gives is a view of the file."""
    if math.prod(max(size, 1) for size in tensor.shape) >= 2**63:  # possible where one size is 0
        raise _Damaged(f"{name!r} has a shape that no tensor can have")
    if tensor.dtype is torch.bool and bool((tensor.view(torch.uint8) > 1).any()):
        raise _Damaged(f"{name!r} holds something other than true and false")
    return tensor.clone()


def _bytes_of(tensor: Tensor) -> memoryview:
    """The memory of a contiguous tensor on the CPU."""
    return tensor.flatten().view(torch.uint8).numpy().data
