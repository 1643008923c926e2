"""What was measured, in tables and words: analyses and gains."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console, RenderableType
from rich.measure import Measurement
from rich.table import Table

from fcompress.forward.answers.asked import noun_of
from fcompress.report.text import changing

# For annotations only: the command line shows its help without torch.
if TYPE_CHECKING:
    from fcompress.measure.analysis import AnalyzeResult
    from fcompress.measure.growth import GainResult

# Unit of ablation -> what it is, in words.
UNITS = {"element": "neurons or single elements of feature maps", "map": "neurons or feature maps"}


def analysis_screen(result: AnalyzeResult, console: Console) -> Iterator[RenderableType]:
    """An analysis: the layers, then what the numbers mean.

    Args:
        result: The analysis.
        console: Where it is to be shown; columns that have no room there are left out.
    """
    yield _title(result)
    table = _layer_table(result)
    unbounded = console.options.update(max_width=10 * console.width)
    fits = Measurement.get(console, unbounded, table).maximum <= console.width
    yield table if fits else _layer_table(result, costs=False)
    if not fits:
        yield "Parameters and MACs of each layer: in a wider terminal, or by --json."
    yield from _findings(result)


def _title(result: AnalyzeResult) -> str:
    width = f" {result.args['width']:g}x" if "width" in result.args else ""
    where = f" on {result.data['spec']} ({result.data['split']} split)" if result.data else ""
    right = "" if result.accuracy is None else f", accuracy {result.accuracy:.1%}"
    return f"{result.network}{width}{where}: {result.examples:,} examples{right}"


def _layer_table(result: AnalyzeResult, costs: bool = True) -> Table:
    tolerance = result.ablation.tolerances[0]
    variance = result.redundancy.tolerances[0]
    table = Table(box=box.SIMPLE_HEAD, collapse_padding=not costs)
    table.add_column("layer", no_wrap=True)
    for heading in (
        "units",
        f"prunable\nat {tolerance:g}",
        "neurons/\nmaps",
        f"redundant\nat {variance:g}",
        "dead",
        "const.",
        "mean\n|r|",
        *(("params", "MACs") if costs else ()),
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    curves = {curve.name: curve for curve in result.ablation.layers}
    redundant = {layer.name: layer for layer in result.redundancy.layers}
    for name in _in_order(list(result.ablation.units), list(redundant)):
        cells = ["-"] * 7
        if name in result.ablation.units:
            cells[0] = f"{result.ablation.units[name]:,}"
        if name in curves:
            cells[1] = f"{curves[name].share(tolerance):.1%}"
        if name in redundant:
            layer = redundant[name]
            r = layer.correlations
            cells[2:] = (
                f"{layer.units:,}",
                f"{layer.redundant(variance) / layer.units:.1%}",
                f"{len(layer.dead):,}",
                f"{len(layer.constant):,}",
                "-" if r is None else f"{r.mean:.2f}",
            )
        cost = result.layer_costs[name]
        if costs:
            cells += [f"{cost.params:,}", f"{cost.macs:,}"]
        table.add_row(name, *cells)
    table.add_section()
    whole = result.ablation.network
    table.add_row(
        "network",
        f"{whole.units:,}",
        f"{whole.share(tolerance):.1%}",
        f"{sum(layer.units for layer in redundant.values()):,}",
        f"{result.redundancy.share(variance):.1%}",
        f"{sum(len(layer.dead) for layer in redundant.values()):,}",
        f"{sum(len(layer.constant) for layer in redundant.values()):,}",
        "",
        *((f"{result.cost.params:,}", f"{result.cost.macs:,}") if costs else ()),
    )
    return table


def _in_order(inner: list[str], outer: list[str]) -> list[str]:
    """Both kinds of layers in one list; a block comes after the layers inside it."""
    names = list(inner)
    for name in outer:
        if name not in names:
            inside = [i for i, other in enumerate(names) if other.startswith(f"{name}.")]
            names.insert(inside[-1] + 1 if inside else len(names), name)
    return names


def _findings(result: AnalyzeResult) -> Iterator[str]:
    """What the numbers mean, in words."""
    whole, redundant = result.ablation.network, result.redundancy
    tolerance, *others = result.ablation.tolerances
    what = changing(result.labels, f"{tolerance:.0%}")
    yield (
        f"Prunable: {whole.share(tolerance):.1%} of the units ({whole.prunable(tolerance):,.0f} of "
        f"{whole.units:,}; units are {UNITS[result.ablation.unit]}), taken at random in all "
        f"layers at once, can be set to 0 before more than {what} change "
        f"(best of {len(whole.agreement)} random orders)."
        + _further((f"{t:g}", whole.share(t)) for t in others)
    )
    first = whole.proportions[1]
    if whole.share(tolerance) < first:
        yield (
            f"The {noun_of(result.labels)} change within the first step, {first:.1%} of the "
            "units, and what is prunable is interpolated inside of it: "
            f"--steps {4 * round(1 / first)} measures it."
        )
    tolerance, *others = redundant.tolerances
    yield (
        f"Redundant: {redundant.share(tolerance):.1%} of the neurons or feature maps (mean over "
        f"layers) are linear combinations of the others up to {tolerance:.0%} of the variance."
        + _further((f"{t:g}", redundant.share(t)) for t in others)
    )
    yield "Dead units are 0 on every example; constant ones (dead ones included) never vary."
    yield (
        "Parameters and MACs (multiply-adds for one example) of a layer: all since the ablated "
        "layer before it; of a block: all inside it; of the network: the output layer too."
    )
    sampled = {curve.examples for curve in result.ablation.layers} - {whole.examples}
    if sampled:
        yield (
            f"Prunable shares of single layers: on the first {sampled.pop():,} examples "
            "(--layer-examples)."
        )
    yield f"Ablated: {result.ablation.rule}. Redundancy: {redundant.rule}."
    yield from _blocks(result)
    for left in result.skipped:
        yield f"Not pruned: {left.name}: {left.reason}."


def _blocks(result: AnalyzeResult) -> Iterator[str]:
    """Which blocks labels do without."""
    if not result.blocks:
        return
    tolerance = result.ablation.tolerances[0]
    frivolous = [block for block in result.blocks if block.frivolous(tolerance)]
    named = ", ".join(f"{block.name} ({block.agreement:.1%} stay)" for block in frivolous)
    least = max(result.blocks, key=lambda block: block.agreement)
    yield (
        f"Blocks: {len(frivolous)} of {len(result.blocks)} can each be skipped alone before more "
        f"than {tolerance:.0%} of the labels change (on {least.examples:,} examples)"
        + (f": {named}." if named else f"; without {least.name} {least.agreement:.1%} stay.")
    )


def _further(shares: Iterable[tuple[str, float]]) -> str:
    listed = ", ".join(f"{share:.1%} at tolerance {tolerance}" for tolerance, share in shares)
    return f" {listed}." if listed else ""


def gain_screen(result: GainResult) -> Iterator[RenderableType]:
    """Gains: how units grow with the width, of the network and by layer."""
    from fcompress.measure.growth import LAST, QUANTITIES

    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("share of\nthe widest", no_wrap=True)
    for heading in (*[f"{width:g}x" for width in result.widths], "g", f"g,\nlast {LAST}"):
        table.add_column(heading, justify="right", no_wrap=True)
    several = max(result.networks) > 1
    for curve in result.network:
        values = [
            f"{mean:.4f}" + (f"\n±{std:.4f}" if several else "")
            for mean, std in zip(curve.mean, curve.std, strict=True)
        ]
        table.add_row(
            curve.quantity.replace("_", "-"), *values, _gain(curve.gain), _gain(curve.gain_last)
        )
    by_layer = Table(box=box.SIMPLE_HEAD)
    for heading in ("by layer", "g", f"g, last {LAST}"):
        by_layer.add_column(heading, no_wrap=True)
    for quantity in QUANTITIES:
        layers = result.range(quantity, layers=True)
        if layers.gain_min is not None:
            by_layer.add_row(
                quantity.replace("_", "-"),
                f"{_gain(layers.gain_min)} to {_gain(layers.gain_max)}",
                f"{_gain(layers.gain_last_min)} to {_gain(layers.gain_last_max)}",
            )
    yield (
        f"{result.family}: {sum(result.networks)} networks, tolerance {result.tolerance:g} of "
        f"labels, {result.redundancy_tolerance:g} of variance; ablated units are "
        f"{UNITS[result.unit]}"
    )
    yield table
    if by_layer.row_count:
        yield by_layer
    for curve in result.network:
        if curve.quantity in ("prunable", "redundant") and curve.gain is not None:
            pace = "faster than" if curve.gain > 2 else "no faster than"
            yield (
                f"{curve.quantity.capitalize()} units multiply by {curve.gain:.2f} when the width "
                f"doubles: they grow {pace} the network."
            )


def _gain(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.2f}"
