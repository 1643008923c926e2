"""Images in folders: a user's own (`folder:PATH`) and ImageNet."""

import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS

from fcompress.data.examples import (
    OnDisk,
    Raw,
    Request,
    Stored,
    check_batch,
    decode,
    opened,
    rows_at_once,
)
from fcompress.data.splits import official_sizes, own_sizes
from fcompress.errors import DataError
from fcompress.formats.limits import available
from fcompress.formats.places import real_path

# Folders whose pixels fit in this many bytes are decoded once, into memory.
IN_MEMORY = 2**30
# Folders whose files are larger than this are identified by names and sizes instead of content.
HASHED_CONTENT = 2**31
INSPECTED = 64
_BLOCK = 2**20
SPLIT_FOLDERS = {"train", "training", "test", "testing", "val", "valid", "validation"}
# Per-channel statistics of ImageNet's training set, as torchvision's networks use them.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
IMAGENET_MARGIN = 256 / 224


def read_folder(request: Request) -> Raw:
    """Load a user's images: one folder a class, or a flat folder without labels.

    Options: `size` (side of the square images; default: the common size of the images),
    `channels` (1 or 3; default: 3 if any image has colour), `labels=0` (ignore class folders).

    Raises:
        DataError: No images, ambiguous layout, images of different sizes and no `size`, or a
            damaged file.
    """
    folder = Path(request.argument)
    if not folder.is_dir():
        raise DataError(f"folder:{request.argument}: there is no such folder")
    files = list(_images(folder))
    if not files:
        endings = " ".join(IMG_EXTENSIONS)
        raise DataError(f"folder:{request.argument}: no images in it ({endings})")
    names = tuple(name for name, _ in files)
    labels, class_names = _labels(folder, names, request.flag("labels", True))
    size, channels = _shape(folder, names, request)
    pixels = channels * size[0] * size[1]
    check_batch((channels, *size))
    images = OnDisk(folder, names, size, channels, preprocess=request.preprocess)
    digest, identified_by = _identity(folder, files)
    fits = len(names) * pixels <= min(IN_MEMORY, available() // 4)
    return Raw(
        examples=_stored(images) if fits else images,
        labels=labels,
        classes=len(class_names) or None,
        class_names=class_names,
        sizes=own_sizes(len(names), request.roles),
        sha256=digest,
        identified_by=identified_by,
    )


def read_imagenet(request: Request) -> Raw:
    """List ImageNet in torchvision's layout, ROOT/train/CLASS/* and ROOT/val/CLASS/*.

    The images stay on disk. Options: `size` (224; 299 for Inception-v3), `holdout`.

    Raises:
        DataError: No root given, or the two folders are not there or do not match.
    """
    root = request.root
    if root is None:
        raise DataError(
            "imagenet cannot be found without --data-root: pass the folder that holds train/ and "
            "val/ with one folder a class, as torchvision.datasets.ImageNet unpacks it"
        )
    parts = []
    for part in ("train", "val"):
        if not (root / part).is_dir():
            raise DataError(
                f"imagenet is not here: looked for {root / part}; --data-root must hold train/ "
                "and val/ with one folder a class, as torchvision.datasets.ImageNet unpacks it"
            )
        parts.append([(f"{part}/{name}", size) for name, size in _images(root / part)])
    class_names = sorted({name.split("/")[1] for name, _ in parts[0]})
    index = {name: label for label, name in enumerate(class_names)}
    files = parts[0] + parts[1]
    unknown = sorted({name.split("/")[1] for name, _ in parts[1]} - set(class_names))
    if unknown or not parts[0] or not parts[1]:
        raise DataError(
            f"imagenet in {root}: train/ has {len(parts[0])} images in {len(class_names)} classes, "
            f"val/ has {len(parts[1])}, {len(unknown)} of its classes unknown"
            f"{f' (such as {unknown[0]})' if unknown else ''}; unpack it again"
        )
    side = request.number("size", (request.shape or (3, 224, 224))[-1], least=1)
    names = tuple(name for name, _ in files)
    statistics = tuple(
        [255 * value for value in values] for values in (IMAGENET_MEAN, IMAGENET_STD)
    )
    return Raw(
        examples=OnDisk(root, names, (side, side), 3, IMAGENET_MARGIN),
        labels=torch.tensor([index[name.split("/")[1]] for name in names]),
        classes=len(class_names),
        class_names=tuple(class_names),
        sizes=official_sizes(len(parts[0]), request.flag("holdout", True)),
        official_test=len(parts[1]),
        sha256=_list_hash(files),
        identified_by="file list",
        statistics=(statistics[0], statistics[1]),
    )


def _images(folder: Path) -> Iterator[tuple[str, int]]:
    """Yield (relative name with slashes, bytes) of every image below a folder, sorted."""
    seen = set()

    def unreadable(error: OSError) -> NoReturn:
        raise DataError(
            f"{error.filename} cannot be read: {error.strerror}; its images would be left out: "
            "allow it, or move it elsewhere"
        ) from error

    for place, folders, files in os.walk(folder, onerror=unreadable, followlinks=True):
        # Links may lead in circles.
        at = real_path(place)
        if at in seen:
            folders.clear()
            continue
        seen.add(at)
        folders.sort()
        for file in sorted(files):
            if file.lower().endswith(IMG_EXTENSIONS) and not file.startswith("."):
                path = Path(place) / file
                try:
                    status = path.stat()
                except OSError as error:
                    raise DataError(f"{path} cannot be read: {error.strerror}") from error
                if not stat.S_ISREG(status.st_mode):
                    raise DataError(f"{path} is no file; remove it")
                yield path.relative_to(folder).as_posix(), status.st_size


def _labels(
    folder: Path, names: tuple[str, ...], wanted: bool
) -> tuple[Tensor | None, tuple[str, ...]]:
    classes = sorted({name.split("/")[0] for name in names if "/" in name})
    if not wanted or not classes:
        return None, ()
    if any("/" not in name for name in names):
        raise DataError(
            f"folder:{folder} holds images both beside and inside its folders; keep one folder a "
            "class, or add ,labels=0 to use all of them without labels"
        )
    if set(map(str.lower, classes)) <= SPLIT_FOLDERS:
        raise DataError(
            f"folder:{folder} holds {', '.join(classes)}, which are no classes; give one of them, "
            f"as in folder:{folder / classes[0]}, or add ,labels=0"
        )
    if len(classes) == 1:
        return None, ()  # one class says nothing: a folder of images in a folder
    index = {name: label for label, name in enumerate(classes)}
    return torch.tensor([index[name.split("/")[0]] for name in names]), tuple(classes)


def _shape(folder: Path, names: tuple[str, ...], request: Request) -> tuple[tuple[int, int], int]:
    """Find the height and width, and the number of channels, that images are brought to."""
    sizes, colours = set(), set()
    for i in range(0, len(names), max(1, len(names) // INSPECTED)):
        path = folder / names[i]
        try:
            with opened(path) as image:
                sizes.add((image.height, image.width))
                colours.add(image.mode not in ("1", "L", "LA"))
        except Exception:
            decode(path, 3)  # says what is wrong with it
            raise
    if request.shape is not None:
        if len(request.shape) != 3 or request.shape[0] not in (1, 3):
            raise DataError(
                f"folder:{folder} holds images, but the network expects inputs of shape "
                f"{list(request.shape)}"
            )
        size, channels = (request.shape[1], request.shape[2]), request.shape[0]
    else:
        size, channels = min(sizes), 3 if any(colours) else 1
    wanted = request.preprocess
    if wanted is not None and wanted.channels is not None:
        channels = wanted.channels
    if wanted is not None and wanted.size is not None:
        size = wanted.size
    side = request.number("size", 0, least=1)
    known = request.shape is not None or (wanted is not None and wanted.size is not None)
    if side:
        size = (side, side)
    elif len(sizes) > 1 and not known:
        raise DataError(
            f"folder:{folder}: the images differ in size; say which to bring them to, as in "
            f"folder:{folder},size=64"
        )
    channels = request.number("channels", channels, least=1)
    if channels not in (1, 3):
        raise DataError(f"option channels={channels}: expected 1 (grey) or 3 (RGB)")
    return size, channels


def _stored(images: OnDisk) -> Stored:
    values = torch.empty(len(images), *images.shape, dtype=torch.uint8)
    for rows in torch.arange(len(images)).split(rows_at_once(images)):
        values[rows[0] : rows[-1] + 1] = images.take(rows)
    return Stored(values, padding=4, flip=True)


def _identity(folder: Path, files: list[tuple[str, int]]) -> tuple[str, str]:
    if sum(size for _, size in files) > HASHED_CONTENT:
        return _list_hash(files), "file list"
    digest = hashlib.sha256()
    for name, _ in files:
        content = _content_hash(folder / name)
        digest.update(os.fsencode(f"{name}\0{content}\n"))
    return digest.hexdigest(), "content"


def _content_hash(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _list_hash(files: list[tuple[str, int]]) -> str:
    digest = hashlib.sha256()
    for name, size in files:
        digest.update(os.fsencode(f"{name}\0{size}\n"))
    return digest.hexdigest()
