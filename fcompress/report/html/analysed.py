"""What stands on the page of an analysis, in plain values."""

from __future__ import annotations

from typing import Any

from fcompress.forward.correlating import CorrelationPicture
from fcompress.measure.ablation import AblationCurve
from fcompress.measure.analysis import AnalyzeResult
from fcompress.measure.redundancy import LayerRedundancy
from fcompress.report.html.figures import packed, percent, rounded, short
from fcompress.report.text import changing

POINTS = 60  # of a curve


def analysed(result: AnalyzeResult) -> dict[str, Any]:
    """Everything on the page."""
    tolerance, variance = result.ablation.tolerances[0], result.redundancy.tolerances[0]
    network = result.ablation.network
    changes = changing(result.labels, f"{tolerance:.0%}")
    spec = result.data["spec"] if result.data else None
    width = f" {result.args['width']:g}x" if "width" in result.args else ""
    sizes = [
        (
            "Prunable",
            percent(network.share(tolerance)),
            f"of {network.units:,} units, before {changes} change",
        ),
        (
            "Redundant",
            percent(result.redundancy.share(variance)),
            f"of the units of a layer, {variance:.0%} of variance left unexplained",
        ),
        ("Parameters", short(result.cost.params), f"{result.cost.params:,}"),
        ("MACs", short(result.cost.macs), f"{result.cost.macs:,} for one example"),
        ("Examples", f"{result.examples:,}", "measured"),
    ]
    if result.accuracy is not None:
        sizes.append(("Accuracy", f"{result.accuracy:.2%}", "on these examples"))
    names = layer_names(result)
    return {
        "title": f"{result.network}{width}" + (f" on {spec}" if spec else ""),
        "sizes": sizes,
        "tolerance": tolerance,
        "variance": variance,
        "layers": [_row(result, name) for name in names],
        "names": names,
        "rules": (result.ablation.rule, result.redundancy.rule),
        "blocks": [
            {"name": b.name, "agreement": percent(b.agreement), "frivolous": b.frivolous(tolerance)}
            for b in result.blocks
        ],
        "groups": result.groups,
        "skipped": _by_reason(result),
        "left_out": {
            "units": "how much the labels listen to single units is measured by "
            "`fcompress shrink --report`"
        },
        "again": _again(result),
        "data": {
            "tolerance": tolerance,
            "variance": variance,
            "network": _ablation(network, tolerance),
            "share": rounded(network.share(tolerance)),
            "layers": [_curves(result, name) for name in names],
        },
    }


def layer_names(result: AnalyzeResult) -> list[str]:
    """Both kinds of layers in one list; a block comes after the layers inside it."""
    names = list(result.ablation.units)
    for layer in result.redundancy.layers:
        if layer.name not in names:
            inside = [i for i, other in enumerate(names) if other.startswith(f"{layer.name}.")]
            names.insert(inside[-1] + 1 if inside else len(names), layer.name)
    return names


def _row(result: AnalyzeResult, name: str) -> dict[str, Any]:
    tolerance, variance = result.ablation.tolerances[0], result.redundancy.tolerances[0]
    curve = next((c for c in result.ablation.layers if c.name == name), None)
    layer = _redundancy(result, name)
    cost = result.layer_costs[name]
    return {
        "name": name,
        "units": result.ablation.units.get(name),
        "prunable": None if curve is None else curve.share(tolerance),
        "maps": None if layer is None else layer.units,
        "redundant": None if layer is None else layer.redundant(variance) / layer.units,
        "dead": None if layer is None else len(layer.dead),
        "constant": None if layer is None else len(layer.constant),
        "r": None if layer is None or layer.correlations is None else layer.correlations.mean,
        "params": cost.params,
        "macs": cost.macs,
    }


def _redundancy(result: AnalyzeResult, name: str) -> LayerRedundancy | None:
    return next((one for one in result.redundancy.layers if one.name == name), None)


def _curves(result: AnalyzeResult, name: str) -> dict[str, Any]:
    curve = next((c for c in result.ablation.layers if c.name == name), None)
    layer = _redundancy(result, name)
    picture: CorrelationPicture | None = None if layer is None else layer.picture
    return {
        "name": name,
        "ablation": [] if curve is None else _ablation(curve, result.ablation.tolerances[0]),
        "variance": [] if layer is None else _variance(layer),
        "units": 0 if layer is None else layer.units,
        "compared": 0 if picture is None else picture.units,
        "side": 0 if picture is None else picture.side,
        "cells": "" if picture is None else packed(picture.cells),
        "histogram": []
        if layer is None or layer.correlations is None
        else list(layer.correlations.histogram),
    }


def _ablation(curve: AblationCurve, tolerance: float) -> list[list[float | None]]:
    """The random order whose prunable share counts: pairs (share ablated, agreement)."""
    shares = curve.shares(tolerance)
    best = curve.agreement[shares.index(max(shares))]
    return [[rounded(p), rounded(a)] for p, a in zip(curve.proportions, best, strict=True)]


def _variance(layer: LayerRedundancy) -> list[list[float | None]]:
    """Pairs (share of the components, share of the variance), closer where the curve bends."""
    last = len(layer.explained) - 1
    places = {round(last * (i / (POINTS - 1)) ** 1.5) for i in range(POINTS)} if last > 0 else {0}
    return [
        [rounded((place + 1) / layer.units), rounded(layer.explained[place])]
        for place in sorted(places)
        if layer.explained
    ]


def _by_reason(result: AnalyzeResult) -> list[tuple[str, list[str]]]:
    found: dict[str, list[str]] = {}
    for left in result.skipped:
        found.setdefault(left.reason, []).append(left.name)
    return list(found.items())


def _again(result: AnalyzeResult) -> list[tuple[str, str]]:
    rows = [
        ("Network", result.network),
        *((f"Argument {key}", str(value)) for key, value in result.args.items()),
        *(
            (f"Data, {key}", str(value))
            for key, value in (result.data or {}).items()
            if value is not None
        ),
        ("Examples", f"{result.examples:,}"),
        ("Ablated", result.ablation.rule),
        ("Unit of ablation", result.ablation.unit),
        ("Random orders", str(len(result.ablation.network.agreement))),
        ("Steps", str(len(result.ablation.network.proportions) - 1)),
        ("Seed", str(result.ablation.seed)),
        ("Redundancy of", result.redundancy.rule),
    ]
    return rows
