"""How images are brought to what a network was trained on: size, crop, mean and deviation.

Said by the name of a preset of torchvision or timm, or by numbers. What is not said is measured on
the data or taken from it (`data.load_data`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torchvision

from fcompress.errors import ArchitectureError, CheckpointError, DataError, suggest
from fcompress.models.external import Architecture, import_timm
from fcompress.models.huggingface import read_json

INTERPOLATIONS = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")
_LARGEST = 2**14


@dataclass(frozen=True)
class Preprocess:
    """What happens to an image before a network sees it; None: as the data has it.

    Attributes:
        source: Where this is from, in words.
        channels: 1 (grey) or 3 (RGB).
        size: Height and width that the network sees.
        resize: What an image is scaled to before its centre of `size` is cut out: (shorter side,),
            or (height, width) whatever its shape. Empty: until it just covers `size`.
        interpolation: One of `INTERPOLATIONS`.
        mean: Of each channel, of values from 0 to 1 where the data are 8-bit images, else of the
            values as they are.
        std: The deviations belonging to `mean`.
    """

    source: str
    channels: int | None = None
    size: tuple[int, int] | None = None
    resize: tuple[int, ...] = ()
    interpolation: str = "bilinear"
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        """Check what users and files say.

        Raises:
            DataError: A value is of the wrong kind or out of its range.
        """
        sides = [*(self.size or (1, 1)), *self.resize]
        if len(sides) > 4 or not all(type(s) is int and 0 < s <= _LARGEST for s in sides):
            raise DataError(f"sizes of images {sides}: expected whole numbers from 1 to {_LARGEST}")
        if self.channels not in (None, 1, 3):
            raise DataError(f"{self.channels} channels: expected 1 (grey) or 3 (RGB)")
        if self.interpolation not in INTERPOLATIONS:
            raise DataError(
                f"interpolation {self.interpolation!r}: expected one of {', '.join(INTERPOLATIONS)}"
            )
        mean, std = self.mean, self.std
        if (mean is None) != (std is None):
            raise DataError("mean and std belong together: give both, one number a channel")
        if mean is None or std is None:
            return
        numbers = [*mean, *std]
        if not all(isinstance(v, float) and math.isfinite(v) for v in numbers) or min(std) <= 0:
            raise DataError(f"mean {mean} and std {std}: expected finite numbers, std above 0")
        if len(mean) != len(std) or not mean:
            raise DataError(f"{len(mean)} means and {len(std)} deviations: expected as many")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, lists for tuples."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}


def from_dict(values: object) -> Preprocess | None:
    """What `to_dict` gave; None for None.

    Raises:
        DataError: It is nothing of the kind.
    """
    if values is None:
        return None
    known = {f.name for f in fields(Preprocess)}
    if not isinstance(values, Mapping) or set(values) != known:
        raise DataError("the remembered preprocessing is damaged; name it again by --transform")
    given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    try:
        return Preprocess(**given)
    except (TypeError, ValueError) as error:
        raise DataError(f"the remembered preprocessing is damaged ({error})") from error


def of_numbers(
    *,
    size: tuple[int, int] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    input_shape: Sequence[int] | None = None,
    base: Preprocess | None = None,
) -> Preprocess | None:
    """Preprocessing by numbers, laid over a preset; None if nothing is said.

    Args:
        size: Height and width; what a preset scales to before cropping keeps its proportion.
        mean: One number a channel.
        std: One number a channel.
        input_shape: (channels, height, width).
        base: A preset.

    Raises:
        DataError: The numbers make no sense, or contradict each other.
    """
    channels = None if base is None else base.channels
    if mean is not None:
        channels = len(mean) if len(mean) in (1, 3) else None
    if input_shape is not None and len(input_shape) == 3:
        if size is not None and tuple(input_shape[1:]) != size:
            raise DataError(
                f"--size {size[0]}x{size[1]} and --input-shape {list(input_shape)} contradict "
                "each other; give one of them"
            )
        channels, size = input_shape[0], (input_shape[1], input_shape[2])
    if base is None:
        if size is None and mean is None and std is None and channels is None:
            return None
        base = Preprocess("numbers given")
    resize = base.resize
    if size is not None and base.size is not None and resize:
        old = base.size if len(resize) == 2 else (min(base.size),)
        new = size if len(resize) == 2 else (min(size),)
        resize = tuple(round(r * n / o) for r, n, o in zip(resize, new, old, strict=True))
    changed = any(value is not None for value in (size, mean, std))
    return Preprocess(
        source=f"{base.source}, changed" if changed and base.mean else base.source,
        channels=channels,
        size=size or base.size,
        resize=resize,
        interpolation=base.interpolation,
        mean=base.mean if mean is None else tuple(map(float, mean)),
        std=base.std if std is None else tuple(map(float, std)),
    )


def of_name(name: str, architecture: Architecture | None = None) -> Preprocess:
    """A preset of torchvision or timm.

    Args:
        name: `torchvision:WEIGHTS` (as in torchvision:ResNet50_Weights.IMAGENET1K_V2), `timm:NAME`,
            `timm` for the preset of the timm network at hand, or `hf:DIR` for the image processor
            of a folder of transformers.
        architecture: The network at hand.

    Raises:
        DataError: There is no such preset, or it does something that is not supported here.
        ArchitectureError: timm is not installed.
    """
    kind, _, rest = name.partition(":")
    if kind == "torchvision" and rest:
        return _of_torchvision(rest)
    if kind == "timm" and not rest and architecture is not None and architecture.kind == "timm":
        rest = architecture.name.partition(":")[2]
    if kind == "timm" and rest:
        return _of_timm(rest)
    if kind == "hf" and rest:
        return _of_transformers(Path(rest).expanduser())
    raise DataError(
        f"--transform {name}: expected torchvision:WEIGHTS, as in "
        "torchvision:ResNet50_Weights.IMAGENET1K_V2, timm:NAME, timm with --arch timm:NAME, or "
        "hf:DIR"
    )


def _of_transformers(folder: Path) -> Preprocess:
    """What the image processor of a folder does, as far as it is one of these steps."""
    file = folder / "preprocessor_config.json"
    try:
        said = read_json(file)
    except CheckpointError as error:
        raise DataError(f"--transform hf:{folder}: {error}") from error
    resize, crop = (_sides(said, key) for key in ("size", "crop_size"))
    if not said.get("do_center_crop"):
        crop = ()
    crop = crop * 2 if len(crop) == 1 else crop
    resize = resize if said.get("do_resize", True) else ()
    # One number in older files: of the shorter side where the centre is cut out, else of both.
    if isinstance(said.get("size"), int) and not crop and "crop_pct" not in said:
        resize = resize * 2
    share = said.get("crop_pct")
    if share is not None and len(resize) == 1:  # as ConvNeXt has it, up to 384 pixels
        crop = resize * 2
        resize = (int(resize[0] / share),) if resize[0] < 384 else crop
    size = crop or (resize if len(resize) == 2 else resize * 2)
    mean, std = (_numbers(said, key) for key in ("image_mean", "image_std"))
    scale, number = said.get("rescale_factor", 1 / 255), said.get("resample", 2)
    known = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
    if abs(scale - 1 / 255) > 1e-6 or number not in known or not said.get("do_rescale", True):
        raise DataError(f"{file} scales images in another way; give --mean, --std and --size")
    if not said.get("do_normalize", True):
        mean, std = (0.0,) * len(mean or (0,)), (1.0,) * len(mean or (0,))
    return Preprocess(
        source=f"hf:{folder}",
        channels=len(mean) if mean is not None and len(mean) in (1, 3) else None,
        size=(size[0], size[1]) if size else None,
        resize=resize,
        interpolation=known[number],
        mean=mean,
        std=std,
    )


def _sides(said: Mapping[str, Any], key: str) -> tuple[int, ...]:
    """A size of an image processor: of the shorter side, or height and width."""
    found = said.get(key)
    if isinstance(found, Mapping):
        found = [found[k] for k in ("height", "width", "shortest_edge") if found.get(k) is not None]
    sides = [found] if isinstance(found, int) else list(found or ())
    if not all(type(side) is int and side > 0 for side in sides) or len(sides) > 2:
        raise DataError(f"an image processor with {key} = {found}; give --size")
    return tuple(sides)


def _numbers(said: Mapping[str, Any], key: str) -> tuple[float, ...] | None:
    found = said.get(key)
    if found is None:
        return None
    if not isinstance(found, list) or not all(type(value) in (int, float) for value in found):
        raise DataError(f"an image processor with {key} = {found}; give --mean and --std")
    return tuple(map(float, found))


def _of_torchvision(name: str) -> Preprocess:
    try:
        weights = torchvision.models.get_weight(name)
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise DataError(
            f"--transform torchvision:{name}: there are no such weights; expected a name as in "
            "torchvision:ResNet50_Weights.IMAGENET1K_V2"
        ) from error
    preset = weights.transforms()
    needed = ("crop_size", "resize_size", "mean", "std", "interpolation")
    if any(not hasattr(preset, key) for key in needed) or len(preset.crop_size) != 1:
        raise DataError(
            f"--transform torchvision:{name}: {type(preset).__name__} is no preset for labelling "
            "images; give --mean, --std and --size"
        )
    side = preset.crop_size[0]
    return Preprocess(
        source=f"torchvision:{name}",
        channels=len(preset.mean),
        size=(side, side),
        resize=(preset.resize_size[0],),
        interpolation=preset.interpolation.value,
        mean=tuple(map(float, preset.mean)),
        std=tuple(map(float, preset.std)),
    )


def _of_timm(name: str) -> Preprocess:
    timm = import_timm()
    if not timm.is_model(name):
        known = [other for other in timm.list_models() if name and name in other][:5]
        raise DataError(f"timm has no network {suggest(name, known)}")
    preset = timm.get_pretrained_cfg(name)
    if preset is None:
        raise ArchitectureError(f"timm has no preset for {name}; give --mean, --std and --size")
    channels, height, width = preset.input_size
    crop, mode = preset.crop_pct or 0.875, preset.crop_mode or "center"
    if mode == "squash":
        resize: tuple[int, ...] = (math.floor(height / crop), math.floor(width / crop))
    elif mode == "center" and height == width:
        resize = (math.floor(height / crop),)
    else:
        raise DataError(
            f"--transform timm:{name}: its crop ({mode}, {height}x{width}) is not supported; give "
            "--mean, --std and --size"
        )
    return Preprocess(
        source=f"timm:{name}",
        channels=channels,
        size=(height, width),
        resize=resize,
        interpolation=preset.interpolation or "bicubic",
        mean=tuple(map(float, preset.mean)),
        std=tuple(map(float, preset.std)),
    )
