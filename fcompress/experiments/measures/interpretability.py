"""Interpretability of thin and wide networks (paper section 5, Fig. 5; docs/protocol.md section 7).

`visualise` measures one network: images that maximise some units of each stage, and how much they
vary. `compare` tests thin networks against wide ones of the same family, stage by stage. A lower
total variation counts as better to interpret.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from matplotlib import image as pictures
from torch import Tensor, nn

from fcompress.data import Split, Splits
from fcompress.errors import FcompressError
from fcompress.experiments.measures.feature_images import (
    RATE,
    STEPS,
    FeatureImages,
    feature_images,
    unit_means,
)
from fcompress.experiments.measures.variation import (
    PERMUTATIONS,
    RankTest,
    fourier_variation,
    holm,
    rank_biserial,
    rank_test,
    total_variation,
)
from fcompress.forward.predictor import Predictor
from fcompress.measure.hooks import observe
from fcompress.measure.layers import Layer, redundancy_layers

# `sheet`: images of each stage that the record keeps. `examples`: of the calibration split, to
# compare activations with.
DEFAULTS: Mapping[str, Any] = {
    "units": 24,
    "steps": STEPS,
    "lr": RATE,
    "layers": None,
    "sheet": 8,
    "examples": 512,
    "seed": 0,
}
QUANTITIES = ("raw", "fourier")
_DIGITS = 6  # significant digits of the numbers in a record


@dataclass(frozen=True)
class StageTest:
    """Total variations of thin and wide networks in one stage.

    Attributes:
        stage: Address of the layer.
        quantity: "raw" (images) or "fourier" (magnitudes of their Fourier transforms).
        thin: Median total variation of the thin networks' images.
        wide: Of the wide networks'.
        test: Thin against wide; a positive effect means that the wide ones vary more.
        p: Corrected by Holm's method for the number of stages.
        between_seeds: The largest size of the effect of one network against the others of its
            width; None where no width has several networks. A difference between widths that is
            not larger than this need not come from the width.
    """

    stage: str
    quantity: str
    thin: float
    wide: float
    test: RankTest
    p: float
    between_seeds: float | None


@dataclass(frozen=True)
class Comparison:
    """Thin networks against wide ones.

    Attributes:
        tests: One for each quantity and stage, in order of execution. The values of all networks
            of a group are put together, so that p speaks about units of these networks, not about
            others that might have been trained: see `StageTest.between_seeds`.
        networks: How many thin and how many wide ones.
        untested: Stages in which one of the groups has no image at all.
    """

    tests: tuple[StageTest, ...]
    networks: tuple[int, int]
    untested: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "tests": [asdict(test) for test in self.tests],
            "networks": list(self.networks),
            "untested": list(self.untested),
        }


def visualise(model: nn.Module, splits: Splits, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Draw units of each stage of a network and measure the images.

    Args:
        model: The network; comes back as it was.
        splits: Its data: the calibration split says between which values pixels lie and how far
            data activate the units.
        settings: Any of `DEFAULTS`. `units` units of each layer are drawn at random, all of them
            where there are not more; `layers` are addresses, None for docs/protocol.md 2.5's.

    Returns:
        Plain values: {"settings", "shape", "stages"}; of each stage its "layer", how many "units"
        it has, which were "drawn", the "sheet" (see `sheet_images`) and lists with one value for
        each of these: "before" and "after" (mean output on the image at the start and the end),
        "data_mean" and "data_max" (over examples), "raw" and "fourier" (total variations; None
        for a unit that stayed dead).

    Raises:
        FcompressError: A setting is unknown or makes no sense, or the data are no images.
    """
    chosen = _settings(settings)
    split = splits.calibration or splits.need("train")
    inputs = torch.cat([x for x, _ in split.batches(256, chosen["examples"])])
    shape = tuple(split.shape)
    if len(shape) != 3:
        raise FcompressError(
            f"{splits.info['spec']} has examples of shape {list(shape)}: visualisation needs "
            "images; choose image data"
        )
    low, high = inputs.amin((0, 2, 3)), inputs.amax((0, 2, 3))
    layers = redundancy_layers(model, Predictor(model).place(inputs[:2]), chosen["layers"])
    seen = _activations(model, split, layers.measured, chosen["examples"])
    generator = torch.Generator().manual_seed(chosen["seed"])
    stages = []
    for number, layer in enumerate(layers.measured):
        order = torch.randperm(layer.maps, generator=generator)
        units = sorted(order[: chosen["units"]].tolist())
        images = feature_images(
            model,
            layer.name,
            units,
            shape=shape,
            low=low,
            high=high,
            steps=chosen["steps"],
            lr=chosen["lr"],
            seed=1000 * chosen["seed"] + number,
        )
        stages.append(_stage(layer, images, seen[layer.name][:, units], chosen["sheet"]))
    return {
        "settings": chosen,
        "shape": list(shape),
        "stages": stages,
        "skipped": [asdict(s) for s in layers.skipped],
    }


def compare(
    thin: Sequence[Mapping[str, Any]],
    wide: Sequence[Mapping[str, Any]],
    *,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> Comparison:
    """Test thin networks against wide ones, stage by stage.

    Args:
        thin: Records of `visualise`, one for each network (seed).
        wide: Likewise.
        permutations: See `rank_test`.
        seed: Of the permutations.

    Raises:
        FcompressError: There is no network in a group, or their stages or images differ.
    """
    if not thin or not wide:
        raise FcompressError("expected at least one thin and one wide network to compare")
    forms = {
        (*(stage["layer"] for stage in record["stages"]), *record["shape"])
        for record in [*thin, *wide]
    }
    if len(forms) > 1:
        raise FcompressError(
            "the networks have different stages or images; compare networks of one family that "
            "were visualised alike"
        )
    names = [stage["layer"] for stage in thin[0]["stages"]]
    places = {name: place for place, name in enumerate(names)}
    tests: list[StageTest] = []
    untested: list[str] = []
    for quantity in QUANTITIES:
        groups = {
            name: [_values(records, place, quantity) for records in (thin, wide)]
            for name, place in places.items()
        }
        tested = {name: pair for name, pair in groups.items() if all(pair)}
        untested = [name for name in names if name not in tested]
        found = [
            rank_test(first, second, permutations=permutations, seed=seed)
            for first, second in tested.values()
        ]
        corrected = holm([test.p for test in found])
        tests += [
            StageTest(
                stage=name,
                quantity=quantity,
                thin=float(np.median(a)),
                wide=float(np.median(b)),
                test=test,
                p=p,
                between_seeds=_between_seeds([thin, wide], places[name], quantity),
            )
            for (name, (a, b)), test, p in zip(tested.items(), found, corrected, strict=True)
        ]
    return Comparison(tuple(tests), (len(thin), len(wide)), tuple(untested))


def sheet_images(stage: Mapping[str, Any]) -> np.ndarray:
    """Read the images of a stage's record.

    Args:
        stage: One of "stages" of `visualise`.

    Returns:
        [images, H, W, 3], between 0 and 1; none of units that stayed dead.
    """
    count = len(stage["sheet"]["units"])
    if not count:
        return np.zeros((0, 1, 1, 3))
    row = pictures.imread(io.BytesIO(base64.b64decode(stage["sheet"]["png"])), format="png")
    return np.stack(np.split(row[..., :3], count, axis=1))


def _settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    unknown = [name for name in settings if name not in DEFAULTS]
    if unknown:
        raise FcompressError(
            f"visualise has no setting {unknown[0]!r}; it has {', '.join(DEFAULTS)}"
        )
    chosen = {**DEFAULTS, **settings}
    for name, least in (("units", 1), ("steps", 1), ("sheet", 0), ("examples", 2), ("seed", 0)):
        value = chosen[name]
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise FcompressError(
                f"visualise: {name} {value!r}: expected a whole number, at least {least}"
            )
    return chosen


def _activations(
    model: nn.Module, split: Split, layers: Sequence[Layer], limit: int
) -> dict[str, Tensor]:
    """Address -> [examples, units], what the images maximise, on data."""
    found: dict[str, list[Tensor]] = {layer.name: [] for layer in layers}
    with Predictor(model).evaluating():
        for batch, _ in split.batches(256, limit):
            with observe(model, found) as outputs:
                model(Predictor(model).place(batch))
                for layer in layers:
                    means = unit_means(outputs[layer.name], layer.axis)
                    found[layer.name].append(means.double().cpu())
    return {name: torch.cat(parts) for name, parts in found.items()}


def _stage(layer: Layer, images: FeatureImages, data: Tensor, sheet: int) -> dict[str, Any]:
    """The record of one stage.

    Args:
        layer: The stage.
        images: Of its units.
        data: [examples, drawn], activations of these units.
        sheet: Images to keep.
    """
    dead = images.dead.tolist()
    alive = [place for place, silent in enumerate(dead) if not silent]
    kept = alive[:sheet]
    variations = {
        "raw": total_variation(images.images),
        "fourier": fourier_variation(images.images),
    }
    return {
        "layer": layer.name,
        "units": layer.maps,
        "drawn": list(images.units),
        "dead": [unit for unit, silent in zip(images.units, dead, strict=True) if silent],
        "before": _numbers(images.before),
        "after": _numbers(images.after),
        "data_mean": _numbers(data.mean(0)),
        "data_max": _numbers(data.amax(0)),
        **{
            name: [None if d else v for d, v in zip(dead, _numbers(values), strict=True)]
            for name, values in variations.items()
        },
        "sheet": {
            "units": [images.units[place] for place in kept],
            "png": _png(images.images[kept]) if kept else "",
        },
    }


def _numbers(values: Tensor) -> list[float]:
    return [float(f"{value:.{_DIGITS}g}") for value in values.tolist()]


def _png(images: Tensor) -> str:
    """Images [n, C, H, W] side by side, in base64; of other than 3 channels the mean is shown."""
    if images.shape[1] != 3:
        images = images.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    row = torch.cat(list(images), dim=2).permute(1, 2, 0)
    data = io.BytesIO()
    pictures.imsave(data, (255 * row).round().to(torch.uint8).numpy(), format="png")
    return base64.b64encode(data.getvalue()).decode("ascii")


def _between_seeds(
    groups: Sequence[Sequence[Mapping[str, Any]]], stage: int, quantity: str
) -> float | None:
    """Largest size of the effect of one network against the others of its group."""
    effects = []
    for group in groups:
        for place, record in enumerate(group):
            own = _values([record], stage, quantity)
            others = _values([*group[:place], *group[place + 1 :]], stage, quantity)
            if own and others:
                effects.append(abs(rank_biserial(others, own)))
    return max(effects, default=None)


def _values(records: Sequence[Mapping[str, Any]], stage: int, quantity: str) -> list[float]:
    return [v for r in records for v in r["stages"][stage][quantity] if v is not None]
