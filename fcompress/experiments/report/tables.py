"""What a recipe found, in numbers: gains beside the published ones, accuracies."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from fcompress.experiments.recipe import published_gains
from fcompress.experiments.report.measured import gains
from fcompress.experiments.trials.results import Results
from fcompress.measure.ablation import TOLERANCES
from fcompress.measure.growth import LAST, QUANTITIES, GainResult, Growth
from fcompress.measure.options import REDUNDANCY_TOLERANCES

# The words of the published file.
PUBLISHED_AS = {
    "prunable": "prunability",
    "non_prunable": "non_prunability",
    "redundant": "redundancy",
    "non_redundant": "non_redundancy",
}
FRIVOLOUS = ("prunable", "redundant")
LINEAR = 2.0  # the gain of what grows as the network does


@dataclass(frozen=True)
class Comparison:
    """One quantity of a figure beside what was published.

    Attributes:
        quantity: One of `QUANTITIES`.
        published: Smallest and largest published gain; None where not printed.
        here: Smallest and largest gain of the curves, over the doublings that the published ones
            take (all for prunable, the last three for redundant units).
        all_doublings: The same over all doublings.
        doublings: How many doublings `here` is over.
        off: How far `here` reaches beyond the published range; None without one.
        same: Whether both say the same about the question of the paper: do all curves of
            frivolous units grow faster than the network (g > 2), all others slower? None if one
            does not say.
    """

    quantity: str
    published: tuple[float | None, float | None]
    here: tuple[float, float] | None
    all_doublings: tuple[float, float] | None
    doublings: int
    off: float | None
    same: bool | None


def compare(results: Results) -> list[Comparison]:
    """The gains of a recipe beside the published ones; none without gains."""
    found = gains(results) if analyzed(results) else {}
    if not found:
        return []
    published = published_gains().get(results.recipe.published or "", {})
    rows = []
    for quantity in QUANTITIES:
        curves = [
            growth
            for result in found.values()
            for growth in shown(results, result)
            if growth.quantity == quantity
        ]
        printed = published.get(PUBLISHED_AS[quantity], [None, None])
        here = _range([paper_gain(c) for c in curves])
        rows.append(
            Comparison(
                quantity=quantity,
                published=(printed[0], printed[1]),
                here=here,
                all_doublings=_range([c.gain for c in curves]),
                doublings=max(len(_taken(c)) for c in curves) if curves else 0,
                off=_off(here, printed),
                same=_same(quantity, here, printed),
            )
        )
    return rows


def shown(results: Results, result: GainResult) -> Sequence[Growth]:
    """The curves that a recipe compares: of the network, of its layers, or of one of them."""
    recipe = results.recipe
    if recipe.compare == "curves":
        return result.network
    return [g for g in result.layers if recipe.layer in (None, g.name)]


def paper_gain(growth: Growth) -> float | None:
    """The gain over the doublings that the published plots take (docs/protocol.md section 3)."""
    return growth.gain if growth.quantity.endswith("prunable") else growth.gain_last


def tables(results: Results) -> dict[str, Any]:
    """Everything that the figures show, as plain values."""
    if not analyzed(results):
        return {"gains": {}, "compared": [], "accuracy": accuracies(results)}
    return {
        "gains": {name: result.to_dict() for name, result in gains(results).items()},
        "tolerances": {
            f"{a:g}, {b:g}": {name: _short(result) for name, result in gains(results, a, b).items()}
            for a, b in tolerance_pairs()
        },
        "compared": [asdict(row) for row in compare(results)],
        "accuracy": accuracies(results),
    }


def tolerance_pairs() -> Iterator[tuple[float, float]]:
    """Tolerances of prunable and of redundant units, the main ones first."""
    for number, tolerance in enumerate(TOLERANCES):
        yield tolerance, REDUNDANCY_TOLERANCES[min(number, len(REDUNDANCY_TOLERANCES) - 1)]


def range_text(values: Sequence[float | None] | None) -> str:
    """A range of gains in words."""
    if values is None or all(value is None for value in values):
        return "-"
    shown = [f"{value:.2f}" for value in values if value is not None]
    return " to ".join(dict.fromkeys(shown))


def accuracies(results: Results) -> dict[str, dict[str, dict[str, float]]]:
    """Curve -> width -> mean and standard deviation of the test accuracy, and of training."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for curve in results.recipe.curves:
        found[curve.name] = {}
        for width in curve.widths:
            trained = [r["train"] for r in results.of(curve.name, width) if r["train"]]
            tested = [t["test_accuracy"] for t in trained if t["test_accuracy"] is not None]
            if tested:
                found[curve.name][f"{width:g}"] = {
                    "mean": float(np.mean(tested)),
                    "std": float(np.std(tested, ddof=1)) if len(tested) > 1 else 0.0,
                    "train": float(np.mean([t["train_accuracy"][-1] for t in trained])),
                    "networks": len(tested),
                }
    return found


def analyzed(results: Results) -> bool:
    """Whether the recipe measures frivolous units by `analyze`."""
    return all("analyze" in curve.measure for curve in results.recipe.curves)


def _short(result: GainResult) -> dict[str, Any]:
    return {c.quantity: {"gain": c.gain, "gain_last": c.gain_last} for c in result.network}


def _taken(growth: Growth) -> tuple[float | None, ...]:
    """The doublings that `paper_gain` is over."""
    return growth.ratios if growth.quantity.endswith("prunable") else growth.ratios[-LAST:]


def _range(values: Sequence[float | None]) -> tuple[float, float] | None:
    known = [value for value in values if value is not None]
    return (min(known), max(known)) if known else None


def _off(here: tuple[float, float] | None, printed: Sequence[float | None]) -> float | None:
    low, high = printed
    if here is None or low is None:
        return None
    return max(low - here[0], here[1] - (low if high is None else high), 0.0)


def _same(
    quantity: str, here: tuple[float, float] | None, printed: Sequence[float | None]
) -> bool | None:
    """Compares the end of the range that the question is about; see `Comparison.same`."""
    end = 0 if quantity in FRIVOLOUS else 1
    there = printed[end]
    if here is None or there is None:
        return None
    return (here[end] > LINEAR) == (there > LINEAR)
