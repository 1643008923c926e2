"""Records of `analyze` as results again, and the gains of a recipe's curves."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fcompress.errors import FcompressError
from fcompress.experiments.trials.results import Results
from fcompress.experiments.trials.trial import Record
from fcompress.measure.ablation import TOLERANCES, AblationCurve, AblationResult
from fcompress.measure.growth import GainResult, gain_of
from fcompress.measure.layers import Skipped
from fcompress.measure.options import REDUNDANCY_TOLERANCES
from fcompress.measure.redundancy import Correlations, LayerRedundancy, RedundancyResult


@dataclass(frozen=True)
class Analyzed:
    """What `analyze` measured of one network.

    Attributes:
        family: In the registry.
        args: Of the family, as far as the recipe gives them; `width` among them.
        ablation: Prunable units.
        redundancy: Redundant units.
    """

    family: str
    args: Mapping[str, Any]
    ablation: AblationResult
    redundancy: RedundancyResult


def analyzed_of(record: Record) -> Analyzed:
    """What the record of a trial says about frivolous units.

    Raises:
        FcompressError: The trial was measured in other ways only.
    """
    if "analyze" not in record.get("measure", {}):
        raise FcompressError(
            "the trials of this recipe were not analyzed; add measure.analyze to the recipe"
        )
    found = record["measure"]["analyze"]
    ablation, redundancy = found["ablation"], found["redundancy"]
    return Analyzed(
        family=record["work"]["family"],
        args=record["work"]["args"],
        ablation=AblationResult(
            network=_curve(ablation["network"]),
            layers=tuple(_curve(layer) for layer in ablation["layers"]),
            tolerances=tuple(ablation["tolerances"]),
            skipped=tuple(Skipped(**s) for s in ablation["skipped"]),
            **{key: ablation[key] for key in ("unit", "units", "accuracy", "seed", "rule")},
        ),
        redundancy=RedundancyResult(
            layers=tuple(_layer(layer) for layer in redundancy["layers"]),
            tolerances=tuple(redundancy["tolerances"]),
            skipped=tuple(Skipped(**s) for s in redundancy["skipped"]),
            **{key: redundancy[key] for key in ("examples", "rule")},
        ),
    )


def gains(
    results: Results,
    tolerance: float = TOLERANCES[0],
    redundancy_tolerance: float = REDUNDANCY_TOLERANCES[0],
) -> dict[str, GainResult]:
    """The gains of every curve that has networks at two successive doublings at least.

    A width none of whose networks is there yet ends a curve: only what comes after it counts.
    """
    found = {}
    for curve in results.recipe.curves:
        chain: list[list[Analyzed]] = []
        last = 0.0
        for width in curve.widths:
            measured = [analyzed_of(record) for record in results.of(curve.name, width)]
            if chain and abs(width / last - 2) > 1e-6:
                chain = []
            if measured:
                chain.append(measured)
                last = width
        if len(chain) > 1:
            found[curve.name] = gain_of(
                [one for group in chain for one in group],
                tolerance=tolerance,
                redundancy_tolerance=redundancy_tolerance,
            )
    return found


def correlations_of(records: Sequence[Record], name: str | None) -> list[Correlations]:
    """Correlations of the units of a layer, the last one if none is named, of each network."""
    found = []
    for record in records:
        by_name = {layer.name: layer for layer in analyzed_of(record).redundancy.layers}
        layer = by_name.get(name or "", list(by_name.values())[-1])
        if layer.correlations is not None:
            found.append(layer.correlations)
    return found


def responses_of(records: Sequence[Record]) -> list[Correlations]:
    """Correlations that the measure `responses` found in each network."""
    found = [_correlations(record["measure"]["responses"]["correlations"]) for record in records]
    return [one for one in found if one is not None]


def _curve(record: Mapping[str, Any]) -> AblationCurve:
    accuracy = record["accuracy"]
    return AblationCurve(
        name=record["name"],
        units=record["units"],
        examples=record["examples"],
        agreement=tuple(tuple(order) for order in record["agreement"]),
        accuracy=None if accuracy is None else tuple(tuple(order) for order in accuracy),
    )


def _layer(record: Mapping[str, Any]) -> LayerRedundancy:
    return LayerRedundancy(
        name=record["name"],
        units=record["units"],
        rows=record["rows"],
        explained=tuple(record["explained"]),
        dead=tuple(record["dead"]),
        constant=tuple(record["constant"]),
        correlations=_correlations(record["correlations"]),
    )


def _correlations(record: Mapping[str, Any] | None) -> Correlations | None:
    if record is None:
        return None
    lists = {key: tuple(record[key]) for key in ("quantiles", "histogram")}
    return Correlations(**{**record, **lists})
