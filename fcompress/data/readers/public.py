"""Readers of the public datasets: digits, Fashion-MNIST, CIFAR-10."""

import gzip
import io
import math
import os
import zipfile
import zlib
from importlib import resources
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor
from torchvision.datasets.utils import check_integrity

from fcompress.data.examples import Examples, Raw, Request, Rescaled, Stored, sha256_of
from fcompress.data.preprocess import Preprocess
from fcompress.data.splits import official_sizes
from fcompress.errors import DataError

DEBIAN_FASHION = Path("/usr/share/datasets/fashion-mnist")
FASHION_CLASSES = tuple(torchvision.datasets.FashionMNIST.classes)
IDX_UBYTE = 8
LARGEST_SIDE = 299  # what the largest networks of the registry take
# Images and labels of this kind pack to a half or a tenth; zeros alone to a thousandth.
MOST_UNPACKED = 100


def cache_folder() -> Path:
    """Where downloads go: `$XDG_CACHE_HOME/fcompress`, usually `~/.cache/fcompress`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fcompress"


def read_digits(request: Request) -> Raw:
    """Load the embedded UCI optical digits: 1,797 images of 8x8, 797 of them for training."""
    content = resources.files("fcompress").joinpath("assets/digits.npz")
    try:
        with content.open("rb") as file, np.load(io.BytesIO(file.read())) as arrays:
            images, labels = (torch.from_numpy(arrays[key]) for key in ("images", "labels"))
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{content} is damaged ({error}); install fcompress again") from error
    labels = labels.long()
    return Raw(
        # Mirrored digits are no digits, and an 8x8 image cannot move by 4 pixels.
        examples=Stored(images[:, None], padding=1),
        labels=labels,
        classes=10,
        class_names=tuple("0123456789"),
        sizes={"train": 797, "calibration": 300, "search": 200, "certification": 300, "test": 200},
        sha256=sha256_of([images, labels]),
    )


def fashion_folders(root: Path | None) -> list[Path]:
    """Where Fashion-MNIST's four files may lie, in the order in which they are looked for."""
    roots = [] if root is None else [root / "FashionMNIST" / "raw", root]
    return [*roots, DEBIAN_FASHION, cache_folder() / "FashionMNIST" / "raw"]


def read_fashion(request: Request) -> Raw:
    """Load Fashion-MNIST from its idx files (plain or gzip); `size=14` shrinks its images.

    Raises:
        DataError: Not found anywhere, or a file is damaged.
    """
    folder = _find_fashion(request.root)
    if folder is None and request.download:
        root = request.root or cache_folder()
        _download("fashion-mnist", root)
        folder = _find_fashion(root)
    if folder is None:
        places = ", ".join(map(str, fashion_folders(request.root)))
        raise DataError(
            f"fashion-mnist is not here: looked for train-images-idx3-ubyte(.gz) in {places}; "
            "pass its folder by --data-root, install the Debian package dataset-fashion-mnist, "
            "or fetch it with --download"
        )
    side = request.number("size", 0, least=1)
    if side > LARGEST_SIDE:
        raise DataError(f"option size={side}: expected at most {LARGEST_SIDE}")
    parts = [
        (
            _read_idx(folder, f"{part}-images-idx3-ubyte"),
            _read_idx(folder, f"{part}-labels-idx1-ubyte"),
        )
        for part in ("train", "t10k")
    ]
    for images, labels in parts:
        if (
            images.dim() != 3
            or labels.shape != images.shape[:1]
            or images.shape[1:] != parts[0][0].shape[1:]
            or int(labels.max()) >= len(FASHION_CLASSES)
        ):
            raise DataError(
                f"{folder}: {tuple(images.shape)} images and {tuple(labels.shape)} labels do not "
                f"belong together, or labels are not below {len(FASHION_CLASSES)}; replace the "
                "four files"
            )
    images, labels = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    labels = labels.long()
    pool, official_test = (len(labels) for _, labels in parts)
    return Raw(
        examples=_of_side(images[:, None], side or images.shape[-1]),
        labels=labels,
        classes=len(FASHION_CLASSES),
        class_names=FASHION_CLASSES,
        sizes=official_sizes(pool, request.flag("holdout", True)),
        official_test=official_test,
        sha256=sha256_of([images, labels]),
    )


def _of_side(images: Tensor, side: int) -> Examples:
    """Images [N, 1, H, W], uint8, brought to side x side.

    Smaller: each pixel the mean of what it covers; augmentation moves them by as large a part of
    their side as it moves the originals. Larger: bilinear, when they are taken.
    """
    whole = images.shape[-1]
    if side > whole:
        scaling = Preprocess("option size")
        return Rescaled(Stored(images, padding=4, flip=True), (side, side), 1, scaling)
    if tuple(images.shape[-2:]) != (side, side):
        parts = [F.adaptive_avg_pool2d(p.float(), side).round().byte() for p in images.split(4096)]
        images = torch.cat(parts)
    return Stored(images, padding=max(1, round(4 * side / whole)), flip=True)


def _find_fashion(root: Path | None) -> Path | None:
    name = "train-images-idx3-ubyte"
    for folder in fashion_folders(root):
        if (folder / name).is_file() or (folder / f"{name}.gz").is_file():
            return folder
    return None


def _read_idx(folder: Path, name: str) -> Tensor:
    """Read one idx file of unsigned bytes: magic 0 0 8 rank, big-endian sizes, the bytes."""
    path = folder / name
    if not path.is_file():
        path = folder / f"{name}.gz"
    try:
        content = _unpacked(path) if path.suffix == ".gz" else path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing, though other files of the set are there") from error
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} is truncated or damaged ({error}); replace it") from error
    rank = content[3] if len(content) > 3 else 0
    start = 4 + 4 * rank
    if content[:3] != bytes([0, 0, IDX_UBYTE]) or not rank or len(content) < start:
        raise DataError(f"{path} is not an idx file of bytes; replace it")
    shape = [int(n) for n in np.frombuffer(content, ">u4", rank, 4)]
    if len(content) - start != math.prod(shape) or 0 in shape:
        raise DataError(
            f"{path} is truncated or damaged: {len(content) - start:,} bytes of values, expected "
            f"{math.prod(shape):,}; replace it"
        )
    return torch.from_numpy(np.frombuffer(content, np.uint8, -1, start).copy()).view(shape)


def _unpacked(path: Path) -> bytes:
    """The content of a gzip file, unless it unfolds to far more than data does."""
    most = MOST_UNPACKED * path.stat().st_size
    with gzip.open(path) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise DataError(
            f"{path} unfolds to more than {MOST_UNPACKED} times its size, as no such data does; "
            "replace it"
        )
    return content


def read_cifar10(request: Request) -> Raw:
    """Load CIFAR-10 in torchvision's layout; `crop=28` sees 28x28 windows as the paper does.

    Raises:
        DataError: Not found, or a file is damaged.
    """
    dataset = torchvision.datasets.CIFAR10
    roots = [request.root] if request.root else []
    roots.append(cache_folder())
    root = next((r for r in roots if (r / dataset.base_folder).is_dir()), None)
    if root is None and request.download:
        root = roots[0]
        _download("cifar10", root)
    if root is None:
        places = ", ".join(str(r / dataset.base_folder) for r in roots)
        raise DataError(
            f"cifar10 is not here: looked for {places}; pass the folder that holds "
            f"{dataset.base_folder} by --data-root, or fetch it with --download"
        )
    # Checked before torchvision opens them: its files are pickles.
    meta = (dataset.meta["filename"], dataset.meta["md5"])
    for name, md5 in [*dataset.train_list, *dataset.test_list, meta]:
        path = root / dataset.base_folder / name
        if not path.is_file():
            raise DataError(f"{path} is missing; unpack cifar-10-python.tar.gz again")
        if not check_integrity(str(path), md5):
            raise DataError(f"{path} is truncated or damaged (wrong MD5 sum); replace it")
    train, test = (dataset(str(root), train=part) for part in (True, False))
    images = torch.from_numpy(np.concatenate([train.data, test.data])).permute(0, 3, 1, 2)
    labels = torch.tensor(train.targets + test.targets)
    crop = request.number("crop", 0, least=1)
    if crop > images.shape[-1]:
        raise DataError(f"option crop={crop}: CIFAR-10's images have 32 pixels a side")
    window = {"crop": (crop, crop)} if crop else {"padding": 4}
    return Raw(
        examples=Stored(images.contiguous(), flip=True, **window),
        labels=labels,
        classes=10,
        class_names=tuple(train.classes),
        sizes=official_sizes(len(train.targets), request.flag("holdout", True)),
        official_test=len(test.targets),
        sha256=sha256_of([images, labels]),
    )


def _download(name: str, root: Path) -> None:
    dataset = {
        "fashion-mnist": torchvision.datasets.FashionMNIST,
        "cifar10": torchvision.datasets.CIFAR10,
    }[name]
    try:
        root.mkdir(parents=True, exist_ok=True)
        dataset(str(root), download=True)
    # URLError is an OSError; torchvision reports a bad or partial file as RuntimeError.
    except (OSError, RuntimeError) as error:
        raise DataError(f"{name} could not be downloaded to {root}: {error}") from error
