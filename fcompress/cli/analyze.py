"""`fcompress analyze`: what is frivolous in a network."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich import box
from rich.measure import Measurement
from rich.table import Table

from fcompress.cli.boundary import Command
from fcompress.cli.measuring import TOLERANCE, UNITS, measuring_options, progress_bars
from fcompress.cli.network_options import NetworkOptions, network_options
from fcompress.cli.output import FILE, FILE_COLUMNS, checked, stdout, tell, write_bytes, write_json
from fcompress.cli.reports.options import write_report
from fcompress.forward.answers.asked import noun_of
from fcompress.measure.options import REDUNDANCY_TOLERANCES, TOLERANCES, AnalyzeOptions
from fcompress.report.text import changing

if TYPE_CHECKING:
    from fcompress.measure.analysis import AnalyzeResult


@click.command("analyze", cls=Command)
@click.argument("model", type=FILE)
@click.option(
    "--tolerance",
    "tolerances",
    type=TOLERANCE,
    multiple=True,
    default=TOLERANCES,
    show_default=True,
    help="Share of labels that may change when units are ablated; may be repeated.",
)
@click.option(
    "--redundancy-tolerance",
    "redundancy_tolerances",
    type=TOLERANCE,
    multiple=True,
    default=REDUNDANCY_TOLERANCES,
    show_default=True,
    help="Share of variance that may stay unexplained; may be repeated.",
)
@network_options
@measuring_options
def analyze_command(
    model: Path,
    data: str | None,
    data_root: Path | None,
    how: NetworkOptions,
    json_file: Path | None,
    plot: Path | None,
    page: Path | None,
    **chosen: Any,
) -> None:
    r"""Measure what is frivolous in a network: prunable, redundant, dead and constant units.

    MODEL is a file written by `fcompress train` or `fcompress shrink`; it remembers its data, so
    that --data is needed for other data only. Or it holds weights of a network of your own, whose
    architecture you name by --arch. Labels are not needed.

    \b
    Example:
      fcompress analyze model.pt --json analysis.json --plot analysis.png
    """
    from fcompress.cli.opening import open_data, open_network
    from fcompress.measure.analysis import measure

    options = checked(AnalyzeOptions, **chosen)
    network = open_network(model, how)
    splits = open_data([network], model, how, data, data_root, "all", say=tell)
    with progress_bars() as report:
        result = measure(network, splits, options, report)
    if plot is not None:
        from fcompress.report.plots import analysis_png

        write_bytes(plot, analysis_png(result))
    if page is not None:
        write_report(page, result)
    if write_json(json_file, result.to_dict()):
        _show_analysis(result)


def _show_analysis(result: AnalyzeResult) -> None:
    console = stdout()
    console.print(_title(result))
    table = _layer_table(result)
    unbounded = console.options.update(max_width=10 * FILE_COLUMNS)
    fits = Measurement.get(console, unbounded, table).maximum <= console.width
    console.print(table if fits else _layer_table(result, costs=False))
    if not fits:
        console.print("Parameters and MACs of each layer: in a wider terminal, or by --json.")
    for line in _findings(result):
        console.print(line, soft_wrap=True)


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
