"""Where examples lie, in memory or on disk, and how a batch of them is taken out."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from fcompress.arguments.numbers import LARGEST, MOST_SIDE, short, whole, whole_text
from fcompress.data.packing import Packing
from fcompress.data.preprocess import Preprocess
from fcompress.errors import DataError
from fcompress.formats.limits import check_memory

DECODING_THREADS = 8
# Option of a spec -> largest number, where it is not that of all numbers.
_MOST = {"size": MOST_SIDE, "crop": MOST_SIDE, "n": 2**40, "train": 2**40, "length": 2**20}
# A file of a few bytes can say that it holds any number of pixels.
MOST_PIXELS = 2**26
# Bytes of examples that pass through memory together as statistics are taken.
AT_ONCE = 2**27
# Examples that run together where nobody says otherwise, and bytes for each of their values: as it
# is stored, and twice in single precision.
BATCH = 256
BYTES_OF_VALUE = 9
# Digits of an option's number.
_LONGEST_NUMBER = 20


class Examples(Protocol):
    """Raw examples, not yet standardised, in the order in which the dataset holds them."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one example as a network sees it: [C, H, W] for images, [D] for vectors."""
        ...

    @property
    def augmentation(self) -> str:
        """What `take` does when it is given a generator, in words; empty for nothing."""
        ...

    def __len__(self) -> int: ...

    def take(self, rows: Tensor, augment: torch.Generator | None = None) -> Tensor:
        """Copy examples out of the dataset.

        Args:
            rows: [n], int64, indices into the dataset.
            augment: Draws the random augmentation; None takes the examples as they are.

        Returns:
            [n, *shape] in the raw values and dtype of the dataset.
        """
        ...


@dataclass(frozen=True, eq=False)
class Stored:
    """Examples that lie in memory as one tensor, in the dtype they came in (uint8 for images).

    Attributes:
        values: [N, C, H, W] or [N, D] (or any [N, ...] that is neither cropped nor augmented).
        crop: Height and width that images are cropped to: the centre, or, when augmenting, any
            place. None leaves the whole image.
        padding: Pixels of zeros around an image before it is cropped at random.
        flip: Whether augmentation mirrors half of the images left to right.
    """

    values: Tensor
    crop: tuple[int, int] | None = None
    padding: int = 0
    flip: bool = False

    def __len__(self) -> int:
        return len(self.values)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one example after cropping."""
        whole = tuple(self.values.shape[1:])
        return whole if self.crop is None else (*whole[:-2], *self.crop)

    @property
    def augmentation(self) -> str:
        """What `take` does when it is given a generator, in words."""
        if self.padding:
            words = f"random crop with {self.padding}-pixel padding"
        else:
            words = "random crop" if self.crop else ""
        return " and ".join(filter(None, (words, "horizontal flip" if self.flip else "")))

    def take(self, rows: Tensor, augment: torch.Generator | None = None) -> Tensor:
        """Copy examples out; see `Examples.take`."""
        chosen = self.values[rows]
        if augment is not None and self.augmentation:
            size = self.crop or (int(chosen.shape[-2]), int(chosen.shape[-1]))
            chosen = random_crops(chosen, size, self.padding, augment)
            return random_flips(chosen, augment) if self.flip else chosen
        if self.crop is None:
            return chosen
        top, left = ((chosen.shape[i] - self.crop[i]) // 2 for i in (-2, -1))
        return chosen[..., top : top + self.crop[0], left : left + self.crop[1]]


@dataclass(frozen=True, eq=False)
class Rescaled:
    """Stored 8-bit images at another size or in other colours, made when they are taken.

    Attributes:
        inner: The images as they are stored, [C, H, W] each with 1 or 3 channels.
        size: Height and width of what `take` returns.
        channels: 1 (grey) or 3 (RGB).
        preprocess: How images are scaled.
    """

    inner: Examples
    size: tuple[int, int]
    channels: int
    preprocess: Preprocess

    def __len__(self) -> int:
        return len(self.inner)

    @property
    def shape(self) -> tuple[int, ...]:
        """[C, H, W] of one image as it is returned."""
        return (self.channels, *self.size)

    @property
    def augmentation(self) -> str:
        """What `take` does when it is given a generator, in words."""
        return self.inner.augmentation

    def take(self, rows: Tensor, augment: torch.Generator | None = None) -> Tensor:
        """Take images and scale them, uint8; see `Examples.take`."""
        made = torch.empty(len(rows), *self.shape, dtype=torch.uint8)
        for number, values in enumerate(self.inner.take(rows, augment)):
            pixels = values[0] if len(values) == 1 else values.permute(1, 2, 0)
            image = Image.fromarray(np.ascontiguousarray(pixels.numpy()))
            image = image.convert("L" if self.channels == 1 else "RGB")
            scaled = np.array(_scaled(image, self.size, 1.0, self.preprocess))
            made[number] = torch.from_numpy(scaled).view(*self.size, -1).permute(2, 0, 1)
        return made


def check_batch(shape: tuple[int, ...]) -> None:
    """See that a batch of examples fits in memory.

    Args:
        shape: Of one example.

    Raises:
        DataError: It does not; says how many bytes it takes.
    """
    sides = " x ".join(map(str, shape))
    check_memory(
        float(BYTES_OF_VALUE * BATCH * prod(shape)),
        f"a batch of {BATCH} examples of {sides} values",
        "take smaller ones, as images with the option size=64",
        DataError,
    )


def rows_at_once(examples: Examples, most: int = 1024) -> int:
    """How many examples to take at a time, so that they stay below `AT_ONCE` bytes in float64.

    Args:
        examples: Of any shape.
        most: Never more than so many.
    """
    return max(1, min(most, AT_ONCE // (8 * max(1, prod(examples.shape)))))


def random_crops(
    images: Tensor, size: tuple[int, int], padding: int, generator: torch.Generator
) -> Tensor:
    """Cut a window out of each zero-padded image, each at its own random place.

    Args:
        images: [N, C, H, W], any dtype.
        size: Height and width of the windows.
        padding: Pixels of zeros added on each side first.
        generator: Draws the places.

    Returns:
        [N, C, *size], dtype of `images`.
    """
    padded = F.pad(images, [padding] * 4) if padding else images
    windows = padded.unfold(2, size[0], 1).unfold(3, size[1], 1)  # a view, nothing is copied
    count = len(images)
    top = torch.randint(windows.shape[2], (count,), generator=generator)
    left = torch.randint(windows.shape[3], (count,), generator=generator)
    return windows[torch.arange(count), :, top, left]


def random_flips(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror each of [N, C, H, W] left to right with probability one half."""
    mirrored = torch.rand(len(images), generator=generator) < 0.5
    return torch.where(mirrored[:, None, None, None], images.flip(-1), images)


@dataclass(frozen=True, eq=False)
class OnDisk:
    """Images that stay on disk and are decoded batch by batch.

    Without augmentation an image is scaled until it covers `margin` times the size, and the
    centre is cut out. With it, a box of 8 to 100% of the area and of aspect ratio 3/4 to 4/3 is
    cut out at a random place and scaled to the size, and half of the images are mirrored.

    Attributes:
        folder: What the names are relative to.
        names: The image files.
        size: Height and width of what `take` returns.
        channels: 1 (grey) or 3 (RGB).
        margin: 1 keeps as much of an image as fits; ImageNet is customarily seen with 256/224.
        preprocess: How images are scaled instead, where it says so.
    """

    folder: Path
    names: tuple[str, ...]
    size: tuple[int, int]
    channels: int
    margin: float = 1.0
    preprocess: Preprocess | None = None

    def __len__(self) -> int:
        return len(self.names)

    @property
    def shape(self) -> tuple[int, ...]:
        """[C, H, W] of one image as it is returned."""
        return (self.channels, *self.size)

    @property
    def augmentation(self) -> str:
        """What `take` does when it is given a generator, in words."""
        return "random resized crop and horizontal flip"

    def take(self, rows: Tensor, augment: torch.Generator | None = None) -> Tensor:
        """Decode images, uint8; see `Examples.take`.

        Raises:
            DataError: A file is damaged or not an image; names it.
        """
        draws = None if augment is None else torch.rand(len(rows), 5, generator=augment).tolist()
        jobs = zip(rows.tolist(), draws or [None] * len(rows), strict=True)
        with ThreadPoolExecutor(DECODING_THREADS) as threads:
            images = list(threads.map(lambda job: self._one(*job), jobs))
        if not images:
            return torch.empty(0, *self.shape, dtype=torch.uint8)
        # Not as decoded, channels last: in that layout torch 2.15 writes outside its memory on the
        # way back through 1x1 convolutions of few channels and stride 2 (ResNets), on the CPU.
        return torch.from_numpy(np.ascontiguousarray(np.stack(images)))

    def _one(self, row: int, draw: list[float] | None) -> np.ndarray:
        image = decode(self.folder / self.names[row], self.channels)
        if draw is None:
            image = _scaled(image, self.size, self.margin, self.preprocess)
        else:
            image = image.resize(
                (self.size[1], self.size[0]),
                Image.Resampling.BILINEAR,
                box=_random_box(image.size, draw),
                reducing_gap=2.0,
            )
            if draw[4] < 0.5:
                image = ImageOps.mirror(image)
        pixels = np.asarray(image)
        return pixels[None] if self.channels == 1 else pixels.transpose(2, 0, 1)


@contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """An image file, open; its pixels are not decoded yet.

    Raises:
        DataError: It holds more pixels than `MOST_PIXELS`.
    """
    with Image.open(path) as image:
        if image.width * image.height > MOST_PIXELS:
            raise DataError(
                f"{path} has {image.width} x {image.height} pixels, more than {MOST_PIXELS:,}; "
                "make it smaller"
            )
        yield image


def decode(path: Path, channels: int) -> Image.Image:
    """Read one image file as 8-bit grey (`channels` 1) or RGB (3).

    Raises:
        DataError: The file is missing, damaged, not an image, or has more than 8 bits a channel.
    """
    try:
        with opened(path) as image:
            if image.mode.startswith(("I", "F")):
                raise DataError(f"{path} has more than 8 bits a channel; convert it to 8 bits")
            return image.convert("L" if channels == 1 else "RGB")
    except DataError:
        raise
    # Pillow's decoders report damage by many exception types, struct.error among them.
    except Exception as error:
        raise DataError(
            f"{path} cannot be read as an image ({error}); replace or remove the file"
        ) from error


def _scaled(
    image: Image.Image, size: tuple[int, int], margin: float, preprocess: Preprocess | None
) -> Image.Image:
    """Bring an image to its size: by a preset, as torchvision's transforms do it, or covering."""
    if preprocess is None or not preprocess.resize:
        return _covering(image, size, margin)
    if len(preprocess.resize) == 2:
        height, width = preprocess.resize
    else:
        shorter, longer = sorted(image.size)
        (side,) = preprocess.resize
        other = int(side * longer / shorter)
        height, width = (side, other) if image.height <= image.width else (other, side)
    how = Image.Resampling[preprocess.interpolation.upper()]
    if (width, height) != image.size:
        image = image.resize((width, height), how)
    # Where the crop is larger than the image, Pillow pads with zeros as torchvision does.
    left, top = round((width - size[1]) / 2), round((height - size[0]) / 2)
    return image.crop((left, top, left + size[1], top + size[0]))


def _covering(image: Image.Image, size: tuple[int, int], margin: float) -> Image.Image:
    height, width = size
    scale = margin * max(height / image.height, width / image.width)
    scaled = (max(width, round(image.width * scale)), max(height, round(image.height * scale)))
    if scaled != image.size:
        image = image.resize(scaled, Image.Resampling.BILINEAR, reducing_gap=2.0)
    left, top = (scaled[0] - width) // 2, (scaled[1] - height) // 2
    return image.crop((left, top, left + width, top + height))


def _random_box(size: tuple[int, int], draw: list[float]) -> tuple[float, float, float, float]:
    width, height = size
    area = (0.08 + 0.92 * draw[0]) * width * height
    ratio = float((3 / 4) * (16 / 9) ** draw[1])
    # A box too long for the image is shortened, not redrawn: one draw an image, in any order.
    box_width = min(float(width), (area * ratio) ** 0.5)
    box_height = min(float(height), (area / ratio) ** 0.5)
    left, top = draw[2] * (width - box_width), draw[3] * (height - box_height)
    return left, top, left + box_width, top + box_height


@dataclass(frozen=True, eq=False)
class Raw:
    """A dataset as its reader found it: not yet cut, relabelled or standardised.

    Attributes:
        examples: All examples; those of an official test set come last.
        labels: [N], int64, or None.
        classes: Number of classes, None without labels.
        class_names: Their names, where the dataset has names.
        official_test: How many of the last examples are the official test set, kept whole.
        sizes: Split name -> size, for the other examples; a split not named does not exist.
        sha256: Identity of the content, whatever folder it lies in.
        identified_by: What the hash was taken over: "content", or "file list" (names and sizes).
        statistics: Fixed per-channel mean and standard deviation in raw values; None: measured.
        packing: How several inputs lie in one example; None for a single one.
    """

    examples: Examples
    labels: Tensor | None
    classes: int | None
    sizes: Mapping[str, int]
    sha256: str
    class_names: tuple[str, ...] = ()
    official_test: int = 0
    identified_by: str = "content"
    statistics: tuple[list[float], list[float]] | None = None
    packing: Packing | None = None


@dataclass(frozen=True)
class Request:
    """What a reader is asked for.

    Attributes:
        argument: What follows the colon in the spec, such as a path; empty if nothing does.
        options: The spec's `key=value` options.
        root: Folder that the user said datasets lie in.
        download: Whether a dataset that is not here may be fetched.
        roles: "all" cuts every split out of a user's own data, "compress" only the three that
            compression needs.
        shape: Shape of one example that the network expects, if one is given.
        preprocess: How the network sees images, if that is given.
    """

    argument: str = ""
    options: Mapping[str, str] = field(default_factory=dict)
    root: Path | None = None
    download: bool = False
    roles: str = "all"
    shape: tuple[int, ...] | None = None
    preprocess: Preprocess | None = None

    def number(self, option: str, default: int, least: int = 0) -> int:
        """Read an option as a whole number of at least `least`."""
        text = self.options.get(option)
        if text is None:
            return default
        most = _MOST.get(option, LARGEST)
        try:
            return whole(option, whole_text(text), least, most)
        except ValueError as error:
            raise DataError(
                f"option {option}={short(text)}: expected a whole number, {least} or more, and "
                f"{most} at most"
            ) from error

    def flag(self, option: str, default: bool) -> bool:
        """Read an option as 0 (no) or 1 (yes)."""
        value = self.number(option, int(default))
        if value > 1:
            raise DataError(f"option {option}={value}: expected 0 (no) or 1 (yes)")
        return bool(value)


def sha256_of(tensors: Iterable[Tensor | None]) -> str:
    """Hash tensors by shape, dtype and bytes, so that a result can name its data."""
    digest = hashlib.sha256()
    for tensor in tensors:
        if tensor is None:
            digest.update(b"none;")
            continue
        digest.update(f"{tuple(tensor.shape)} {tensor.dtype};".encode())
        for block in tensor.split(4096):
            digest.update(block.contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
