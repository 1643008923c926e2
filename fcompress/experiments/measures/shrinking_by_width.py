"""Beyond the paper: how small the thinnest network of the same labels is, width by width.

If what a wide network has more than a narrow one is frivolous, then wide networks should shrink
back to the size of narrow ones. Here each width is shrunk without retraining and its size compared
with that of the 1x network as it was trained.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import nn

from fcompress.compress.pipeline import shrink
from fcompress.compress.result import ShrinkResult
from fcompress.data import Splits
from fcompress.errors import FcompressError, ResultWarning, ToleranceError

TOLERANCES = (0.2, 0.05)
KEYS = ("params", "macs")
# What `shrunk` takes beside `tolerances`; arguments of `shrink`.
OPTIONS = (
    "method",
    "objective",
    "distill",
    "distill_effort",
    "distill_seconds",
    "calibration",
    "confidence",
    "seed",
)
# Recipes of earlier versions.
FORMER = {"polish": "distill", "polish_seconds": "distill_seconds"}


@dataclass(frozen=True)
class Size:
    """What became of the networks of one width at one tolerance; means over networks (seeds).

    Attributes:
        width: Width factor.
        tolerance: Largest share of labels that may change.
        networks: How many there are.
        failed: Those of which no thinner network could be certified; they count at full size.
        params: (before, after).
        params_std: Sample standard deviation of `params`; 0 for one network.
        macs: (before, after), multiply-adds for one example.
        macs_std: Of `macs`.
        accuracy: (before, after) on the test split, or None.
        agreement: Share of equal labels on the certification split.
        params_of_1x: Parameters after over those of the 1x network before; None without one.
        macs_of_1x: The same of multiply-adds.
    """

    width: float
    tolerance: float
    networks: int
    failed: int
    params: tuple[float, float]
    params_std: tuple[float, float]
    macs: tuple[float, float]
    macs_std: tuple[float, float]
    accuracy: tuple[float, float] | None
    agreement: float
    params_of_1x: float | None
    macs_of_1x: float | None


def shrunk(model: nn.Module, splits: Splits, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Shrink a trained network at several tolerances.

    Args:
        model: The network; it is left as it is.
        splits: Its data; calibration, search and certification are used, and test to report.
        settings: `tolerances` and any of `OPTIONS`; each may be missing.

    Returns:
        Plain values: {"method", "objective", "found": one record for each tolerance}. A record
        holds params, MACs and accuracy before and after, units of each layer, the agreement on
        certification and test split with its bound, or "failed" with the reason where no thinner
        network could be certified.
    """
    named = {FORMER.get(key, key): value for key, value in settings.items()}
    options = {key: named[key] for key in OPTIONS if key in named}
    options = {"method": "hybrid", "objective": "macs", **options}
    found = []
    for tolerance in settings.get("tolerances", TOLERANCES):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ResultWarning)  # it stands in the record
                result = shrink(model, splits, tolerance, **options)
        except ToleranceError as error:
            found.append({"tolerance": tolerance, "failed": str(error)})
        else:
            found.append({"tolerance": tolerance, **_record(result)})
    return {"method": options["method"], "objective": options["objective"], "found": found}


def sizes(trials: Mapping[float, Sequence[Mapping[str, Any]]]) -> tuple[Size, ...]:
    """Put together what `shrunk` gave for the networks of a family.

    Args:
        trials: Width factor -> for each network the record of a trial: "params" and "macs" of the
            network, "train" with its "test_accuracy" (or None), "measure" with "shrunk".

    Returns:
        One for each tolerance and width, in the order of the tolerances, narrowest first.

    Raises:
        FcompressError: A trial was not shrunk, or its tolerances are others.
    """
    widths = sorted(width for width, own in trials.items() if own)
    measured = {width: [_shrunk_of(trial) for trial in trials[width]] for width in widths}
    asked = {tuple(f["tolerance"] for f in m["found"]) for own in measured.values() for m in own}
    if len(asked) > 1:
        raise FcompressError("the networks were shrunk at different tolerances; shrink them alike")
    one = trials.get(1.0) or ()
    narrow = {key: float(np.mean([t[key] for t in one])) if one else None for key in KEYS}
    found = []
    for place, tolerance in enumerate(next(iter(asked), ())):
        for width in widths:
            results = [m["found"][place] for m in measured[width]]
            found.append(_size(width, tolerance, trials[width], results, narrow))
    return tuple(found)


def figure(trials: Mapping[float, Sequence[Mapping[str, Any]]], title: str = "") -> Figure:
    """Draw sizes before and after against the width, and the accuracies.

    Args:
        trials: As for `sizes`.
        title: Above the picture.
    """
    found = sizes(trials)
    drawn = Figure(figsize=(14, 4.6), layout="constrained")
    panels = drawn.subplots(1, 3)
    for axes, key, label in zip(panels, KEYS, ("parameters", "multiply-adds"), strict=False):
        _sizes(axes, found, key)
        axes.set_yscale("log")
        axes.set_ylabel(label)
    _accuracies(panels[2], found)
    widths = sorted({size.width for size in found})
    for axes in panels:
        axes.set_xscale("log", base=2)
        axes.set_xticks(widths, [f"{width:g}x" for width in widths])
        axes.minorticks_off()
        axes.set_xlabel("width factor")
        axes.legend(fontsize=8)
    drawn.suptitle(title)
    return drawn


def _record(result: ShrinkResult) -> dict[str, Any]:
    """What is kept of one result: nothing that takes another value when it is run again."""
    test = result.test
    return {
        "params": result.params,
        "macs": result.macs,
        "accuracy": result.accuracy,
        "agreement": result.agreement.rate,
        "lower_bound": result.agreement.lower_bound,
        "certification_examples": result.agreement.n,
        "test_agreement": None if test is None else test.rate,
        "test_examples": None if test is None else test.n,
        "certified": result.certified,
        "polished": bool(result.distill and result.distill["kept"]),
        "units": {layer.name: [layer.units_before, layer.units_after] for layer in result.layers},
        "warnings": list(result.warnings),
    }


def _shrunk_of(trial: Mapping[str, Any]) -> Mapping[str, Any]:
    measured = trial.get("measure", {}).get("shrunk")
    if measured is None:
        raise FcompressError(
            "the trials of this recipe were not shrunk; add measure.shrunk to the recipe"
        )
    return dict(measured)


def _size(
    width: float,
    tolerance: float,
    trials: Sequence[Mapping[str, Any]],
    results: Sequence[Mapping[str, Any]],
    narrow: Mapping[str, float | None],
) -> Size:
    """One width at one tolerance; a network that could not be shrunk stays as it is."""
    pairs: dict[str, list[tuple[float, float]]] = {key: [] for key in KEYS}
    accuracies: list[tuple[float, float]] = []
    agreements = []
    for trial, result in zip(trials, results, strict=True):
        stays = "failed" in result
        for key in KEYS:
            pairs[key].append((trial[key], trial[key] if stays else result[key]["after"]))
        trained = (trial["train"] or {}).get("test_accuracy")
        if not stays and result["accuracy"] is not None:
            accuracies.append((result["accuracy"]["before"], result["accuracy"]["after"]))
        elif stays and trained is not None:
            accuracies.append((trained, trained))
        agreements.append(1.0 if stays else result["agreement"])
    means = {key: _pair(np.mean(values, axis=0)) for key, values in pairs.items()}
    of_1x = {key: None if n is None else means[key][1] / n for key, n in narrow.items()}
    return Size(
        width=width,
        tolerance=tolerance,
        networks=len(results),
        failed=sum("failed" in result for result in results),
        params=means["params"],
        params_std=_std(pairs["params"]),
        macs=means["macs"],
        macs_std=_std(pairs["macs"]),
        accuracy=_pair(np.mean(accuracies, axis=0)) if accuracies else None,
        agreement=float(np.mean(agreements)),
        params_of_1x=of_1x["params"],
        macs_of_1x=of_1x["macs"],
    )


def _pair(values: Any) -> tuple[float, float]:
    return float(values[0]), float(values[1])


def _std(pairs: Sequence[tuple[float, float]]) -> tuple[float, float]:
    return _pair(np.std(pairs, axis=0, ddof=1)) if len(pairs) > 1 else (0.0, 0.0)


def _by_tolerance(found: Sequence[Size]) -> list[tuple[float, list[Size], object]]:
    """Tolerance, its sizes and its colour."""
    tolerances = list(dict.fromkeys(size.tolerance for size in found))
    colours = matplotlib.colormaps["viridis"](np.linspace(0, 0.8, len(tolerances)))
    return [
        (tolerance, [size for size in found if size.tolerance == tolerance], colour)
        for tolerance, colour in zip(tolerances, colours, strict=True)
    ]


def _sizes(axes: Axes, found: Sequence[Size], key: str) -> None:
    """One panel of sizes; the dotted line is the 1x network as it was trained."""
    for place, (tolerance, own, colour) in enumerate(_by_tolerance(found)):
        widths = [size.width for size in own]
        if place == 0:
            before = [getattr(size, key)[0] for size in own]
            axes.plot(widths, before, "o--", color="grey", markersize=4, label="as trained")
            one = [b for w, b in zip(widths, before, strict=True) if w == 1]
            for value in one:
                axes.axhline(value, color="grey", linestyle=":", label="same size as the 1x")
        axes.errorbar(
            widths,
            [getattr(size, key)[1] for size in own],
            yerr=[getattr(size, f"{key}_std")[1] for size in own],
            fmt="o-",
            color=colour,
            capsize=2,
            markersize=4,
            label=f"shrunk, tolerance {tolerance:g} of labels",
        )


def _accuracies(axes: Axes, found: Sequence[Size]) -> None:
    for place, (tolerance, own, colour) in enumerate(_by_tolerance(found)):
        known = [(size.width, *size.accuracy) for size in own if size.accuracy is not None]
        widths, before, after = zip(*known, strict=True) if known else ((), (), ())
        if place == 0:
            axes.plot(widths, before, "o--", color="grey", markersize=4, label="as trained")
        axes.plot(widths, after, "o-", color=colour, markersize=4, label=f"tolerance {tolerance:g}")
    axes.set_ylabel("test accuracy")
