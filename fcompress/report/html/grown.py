"""What stands on the page of a gain, in plain values."""

from __future__ import annotations

from typing import Any

from fcompress.measure.growth import LAST, QUANTITIES, GainResult, Growth
from fcompress.report.html.figures import rounded

PANELS = (("prunable", "non_prunable"), ("redundant", "non_redundant"))


def grown(result: GainResult) -> dict[str, Any]:
    """Everything on the page."""
    by_name = {curve.quantity: curve for curve in result.network}
    return {
        "title": f"{result.family}: how frivolous units grow with the width",
        "sizes": [
            (
                f"{quantity.capitalize()} units",
                gain(by_name[quantity].gain),
                _pace(by_name[quantity].gain),
            )
            for quantity in ("prunable", "redundant")
        ]
        + [("Networks", str(sum(result.networks)), f"at {len(result.widths)} widths")],
        "widths": [f"{width:g}x" for width in result.widths],
        "last": LAST,
        "network": [_row(curve) for curve in result.network],
        "layers": [_row(curve) for curve in result.layers],
        "ranges": [
            (quantity.replace("_", "-"), found)
            for quantity in QUANTITIES
            if (found := result.range(quantity, layers=True)).gain_min is not None
        ],
        "several": max(result.networks) > 1,
        "again": [
            ("Family", result.family),
            ("Widths", ", ".join(f"{width:g}" for width in result.widths)),
            ("Networks at each", ", ".join(map(str, result.networks))),
            ("Tolerance of labels", f"{result.tolerance:g}"),
            ("Tolerance of variance", f"{result.redundancy_tolerance:g}"),
            ("Unit of ablation", result.unit),
        ],
        "data": {
            "widths": list(result.widths),
            "panels": [
                {
                    "title": f"{name.capitalize()} units",
                    "curves": [
                        _curve(one, kind == name, layer=layer)
                        for layer, curves in ((True, result.layers), (False, result.network))
                        for kind in (other, name)
                        for one in curves
                        if one.quantity == kind
                    ],
                }
                for name, other in PANELS
            ],
        },
    }


def gain(value: float | None) -> str:
    """A gain in words."""
    return "undefined" if value is None else f"g = {value:.2f}"


def _pace(value: float | None) -> str:
    if value is None:
        return "there are none at some width"
    return f"grow {'faster than' if value > 2 else 'no faster than'} the network (2 a doubling)"


def _row(curve: Growth) -> dict[str, Any]:
    return {
        "name": curve.name,
        "quantity": curve.quantity.replace("_", "-"),
        "mean": curve.mean,
        "std": curve.std,
        "gain": curve.gain,
        "last": curve.gain_last,
    }


def _curve(one: Growth, frivolous: bool, *, layer: bool) -> dict[str, Any]:
    return {
        "name": one.name,
        "quantity": one.quantity.replace("_", "-"),
        "frivolous": frivolous,
        "layer": layer,
        "mean": [rounded(v) if v > 0 else None for v in one.mean],
        "gain": gain(one.gain),
    }
