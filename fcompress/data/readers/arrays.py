"""A user's own tensors: `file:PATH.npz`, `.npy` or `.pt`, labels optional."""

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fcompress.data.examples import Raw, Request, Stored, sha256_of
from fcompress.data.packing import Packing
from fcompress.data.splits import own_sizes
from fcompress.errors import CheckpointError, DataError
from fcompress.formats.limits import check_memory
from fcompress.formats.torch_zip import is_zip, read_archive

INPUT_KEYS = ("x", "images", "inputs")
LABEL_KEYS = ("y", "labels")
# A packed file may unfold to this many bytes, or to this many times its size.
UNPACKED_BYTES, UNPACKED_TIMES = 2**30, 50
# One output for each class up to the largest label.
MOST_CLASSES = 1_000_000
_SHOWN = 20
_FOREIGN = "tensors saved with torch.save"
_REMEDY = "Save tensors only"


def read_file(request: Request) -> Raw:
    """Load tensors from one file.

    `.npz`: arrays named x, images or inputs, and y or labels. `.npy`: the inputs. `.pt`: the
    inputs, a pair (inputs, labels), or a dict with those names. With `raw=1` and none of x, images
    and inputs, each of the other arrays is an input of the network by its name. [N, H, W] and
    [N, H, W, C] with 1 or 3 channels are understood as images; everything is standardised. With
    `raw=1` values, shape and dtype go to the network as they are.

    Raises:
        DataError: Missing, damaged, of an unknown kind, without inputs, labels that do not fit,
            or values that are not finite.
    """
    path = Path(request.argument)
    if not path.is_file():
        raise DataError(f"file:{request.argument}: there is no such file")
    readers = {".npz": _read_npz, ".npy": _read_npy, ".pt": _read_pt, ".pth": _read_pt}
    if path.suffix not in readers:
        raise DataError(f"{path}: expected a file ending in .npz, .npy or .pt")
    # As it lies there, and as floating point numbers of single precision.
    size = 2.0 * path.stat().st_size
    check_memory(size, f"{path}", "give fewer examples", DataError)
    found_inputs, found_labels = readers[path.suffix](path)
    packing = None
    raw = request.flag("raw", False)
    if isinstance(found_inputs, dict):
        inputs, packing = _several(path, found_inputs, raw)
    else:
        inputs = _inputs(path, found_inputs)
    labels = _labels(path, found_labels)
    if labels is not None and len(labels) != len(inputs):
        raise DataError(f"{path}: {len(inputs)} inputs but {len(labels)} labels")
    digest = sha256_of([inputs, labels])
    values = inputs if raw else _as_images(path, inputs)
    is_image = values.dim() == 4 and not raw
    return Raw(
        examples=Stored(values, padding=4 if is_image else 0, flip=is_image),
        labels=labels,
        classes=None if labels is None else int(labels.max()) + 1,
        sizes=own_sizes(len(inputs), request.roles),
        sha256=digest,
        statistics=([], []) if raw else None,
        packing=packing,
    )


def _several(path: Path, found: dict[str, Any], raw: bool) -> tuple[Tensor, Packing]:
    """Inputs by name, as one tensor [N, bytes]."""
    if not raw or not found:
        names = [ascii(str(key))[1:-1][:40] for key in list(found)[:_SHOWN]]
        raise DataError(
            f"{path} has no inputs: expected {' or '.join(INPUT_KEYS)}, found "
            f"{', '.join(names) or 'nothing'}; add ,raw=1 to hand each of them to the network by "
            "its name"
        )
    inputs = {str(name): _inputs(path, values, least=1) for name, values in found.items()}
    packing = Packing.of(inputs)
    return packing.pack(inputs), packing


def _read_npz(path: Path) -> tuple[Any, Any]:
    try:
        _check_unpacked_size(path)
        with np.load(path, allow_pickle=False) as arrays:
            if not isinstance(arrays, np.lib.npyio.NpzFile):
                raise DataError(f"{path} is not an .npz archive; rename or replace it")
            return _pick(path, arrays)
    except DataError:
        raise
    # The types of what damaged headers, archives and packed values raise have nothing in common.
    except Exception as error:
        raise _damaged(path, error) from error


def _check_unpacked_size(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(entry.file_size for entry in archive.infolist())
    size = path.stat().st_size
    if unpacked > max(UNPACKED_BYTES, UNPACKED_TIMES * size):
        raise DataError(
            f"{path} of {size:,} bytes unfolds to {unpacked:,}; if that is right, save it unpacked "
            "(numpy.savez)"
        )
    check_memory(2.0 * unpacked, f"{path}", "give fewer examples", DataError)


def _read_npy(path: Path) -> tuple[Any, Any]:
    try:
        return np.load(path, allow_pickle=False), None
    except Exception as error:  # as above
        raise _damaged(path, error) from error


def _read_pt(path: Path) -> tuple[Any, Any]:
    try:
        if is_zip(path):
            content = read_archive(path, expected=_FOREIGN, remedy=_REMEDY)
        else:  # as torch.save wrote it before 1.6
            content = torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError as error:
        raise DataError(str(error)) from error
    except pickle.UnpicklingError as error:
        raise DataError(
            f"{path} is damaged, or holds more than tensors and would run code when opened; save "
            "tensors only"
        ) from error
    except Exception as error:  # as above
        raise _damaged(path, error) from error
    if isinstance(content, Mapping):
        return _pick(path, content)
    if isinstance(content, tuple | list) and len(content) == 2:
        return content[0], content[1]
    return content, None


def _damaged(path: Path, error: Exception) -> DataError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return DataError(f"{path} is truncated, damaged or not of its kind ({reason}); replace it")


def _pick(path: Path, content: Mapping[Any, Any]) -> tuple[Any, Any]:
    inputs, labels = (
        next((content[key] for key in keys if key in content), None)
        for keys in (INPUT_KEYS, LABEL_KEYS)
    )
    if inputs is None:
        return {key: content[key] for key in content if key not in LABEL_KEYS}, labels
    return inputs, labels


def _inputs(path: Path, found: Any, least: int = 2) -> Tensor:
    values = _tensor(path, found, "inputs")
    if values.dim() < least or not values.numel():
        raise DataError(
            f"{path}: inputs of shape {list(values.shape)}; expected [N, ...], one row an example"
        )
    if values.dtype == torch.float64:
        values = values.float()
    if values.is_floating_point():
        bad = int((~torch.isfinite(values)).sum())
        if bad:
            raise DataError(f"{path}: {bad:,} of the inputs' values are not finite")
    return values


def _labels(path: Path, found: Any) -> Tensor | None:
    if found is None:
        return None
    labels = _tensor(path, found, "labels")
    if labels.dim() == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.dim() != 1 or labels.is_floating_point() or labels.dtype == torch.bool:
        raise DataError(
            f"{path}: labels of shape {list(labels.shape)} and type {labels.dtype}; expected [N] "
            "whole numbers, one class index an example"
        )
    labels = labels.long()
    if len(labels) and int(labels.min()) < 0:
        raise DataError(f"{path}: labels below 0; expected class indices 0, 1, ...")
    if len(labels) and int(labels.max()) >= MOST_CLASSES:
        raise DataError(
            f"{path}: a label of {int(labels.max()):,}; expected class indices 0, 1, ... below "
            f"{MOST_CLASSES:,}"
        )
    return labels


def _tensor(path: Path, found: Any, what: str) -> Tensor:
    if isinstance(found, Tensor) and _is_dense(found):
        return _signed(path, found.detach(), what)
    if isinstance(found, np.ndarray) and found.dtype.kind in "biuf" and found.dtype.itemsize <= 8:
        native = found.astype(found.dtype.newbyteorder("="), copy=False)
        return _signed(path, torch.from_numpy(native), what)
    raise DataError(f"{path}: {what} are {type(found).__name__}; expected an array of numbers")


def _signed(path: Path, values: Tensor, what: str) -> Tensor:
    """Whole numbers without a sign, of which torch knows little, as int64."""
    if values.dtype not in (torch.uint16, torch.uint32, torch.uint64):
        return values
    if (
        values.dtype == torch.uint64
        and values.numel()
        and bool((values.view(torch.int64) < 0).any())
    ):
        raise DataError(f"{path}: {what} above 2^63 - 1, the largest whole number that can be used")
    return values.long()


def _is_dense(tensor: Tensor) -> bool:
    """Whether each value of a tensor of plain numbers lies in memory, and not one for many."""
    return (
        tensor.layout is torch.strided
        and tensor.device.type == "cpu"
        and not tensor.is_quantized
        and not tensor.is_complex()
        and tensor.untyped_storage().nbytes() >= tensor.numel() * tensor.element_size()
    )


def _as_images(path: Path, values: Tensor) -> Tensor:
    """Give images their channel axis: [N, H, W] -> [N, 1, H, W], [N, H, W, C] -> [N, C, H, W]."""
    if values.dim() == 3:
        return values[:, None]
    if values.dim() == 4 and values.shape[-1] in (1, 3) and values.shape[1] not in (1, 3):
        return values.permute(0, 3, 1, 2).contiguous()
    if values.dim() > 4:
        raise DataError(
            f"{path}: inputs of shape {list(values.shape)}; expected vectors [N, D] or images, or "
            "add ,raw=1 to hand them to the network as they are"
        )
    return values
