"""`fcompress analyze`: what is frivolous in a network."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click
from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars
from rich.table import Table
from torch import nn

from fcompress.cli.network_options import NetworkOptions, network_options, open_data, open_network
from fcompress.cli.output import (
    FILE_COLUMNS,
    FloatRange,
    data_root_option,
    existing_folder,
    json_option,
    stdout,
    write_json,
)
from fcompress.data import Splits, load_data
from fcompress.formats.atomic import write_atomic
from fcompress.measure.analysis import AnalyzeResult, analyze
from fcompress.measure.options import LAYER_EXAMPLES, REDUNDANCY_TOLERANCES, STEPS, TOLERANCES
from fcompress.models.provenance import origin_of
from fcompress.progress import Progress, Report, silent
from fcompress.report.plots import analysis_png

_Command = TypeVar("_Command", bound=Callable[..., Any])
_TOLERANCE = FloatRange(0, 1, max_open=True)
_UNITS = {"element": "neurons or single elements of feature maps", "map": "neurons or feature maps"}


def _measuring_options(command: _Command) -> _Command:
    """The options that `analyze` and `gain` have in common."""
    options = [
        click.option("--data", metavar="SPEC", help="Data to measure on (`fcompress data`)."),
        data_root_option,
        click.option(
            "--unit",
            type=click.Choice(["element", "map"]),
            default="element",
            show_default=True,
            help="What is ablated: single elements of feature maps, or whole maps.",
        ),
        click.option(
            "--examples",
            type=click.IntRange(min=1),
            metavar="N",
            help="Measure on the first N examples of the test split.  [default: all]",
        ),
        click.option(
            "--layer-examples",
            type=click.IntRange(min=1),
            metavar="N",
            default=LAYER_EXAMPLES,
            show_default=True,
            help="Measure the ablation curves of single layers on the first N examples.",
        ),
        click.option(
            "--layers/--no-layers",
            "by_layer",
            default=True,
            help="Measure each layer's own ablation curve.  [default: layers]",
        ),
        click.option(
            "--steps",
            type=click.IntRange(min=1),
            metavar="N",
            default=STEPS,
            show_default=True,
            help="Steps from nothing to everything ablated.",
        ),
        click.option("--seed", type=int, default=0, show_default=True, help="Of random orders."),
        click.option(
            "--device",
            type=click.Choice(["auto", "cpu", "cuda"]),
            default="auto",
            show_default=True,
            help="Where to compute.",
        ),
        json_option,
        click.option(
            "--plot",
            type=click.Path(dir_okay=False, path_type=Path),
            callback=existing_folder,
            metavar="FILE.png",
            help="Draw the curves.",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@click.command("analyze")
@click.argument("model", type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--tolerance",
    "tolerances",
    type=_TOLERANCE,
    multiple=True,
    default=TOLERANCES,
    show_default=True,
    help="Share of labels that may change when units are ablated; may be repeated.",
)
@click.option(
    "--redundancy-tolerance",
    "redundancy_tolerances",
    type=_TOLERANCE,
    multiple=True,
    default=REDUNDANCY_TOLERANCES,
    show_default=True,
    help="Share of variance that may stay unexplained; may be repeated.",
)
@network_options
@_measuring_options
def analyze_command(
    model: Path,
    data: str | None,
    data_root: Path | None,
    how: NetworkOptions,
    json_file: Path | None,
    plot: Path | None,
    **options: Any,
) -> None:
    r"""Measure what is frivolous in a network: prunable, redundant, dead and constant units.

    MODEL is a file written by `fcompress train` or `fcompress shrink`; it remembers its data, so
    that --data is needed for other data only. Or it holds weights of a network of your own, whose
    architecture you name by --arch. Labels are not needed.

    \b
    Example:
      fcompress analyze wide.pt --json analysis.json --plot analysis.png
    """
    network = open_network(model, how)
    splits = open_data(
        [network], model, how, data, data_root, "all", say=lambda line: click.echo(line, err=True)
    )
    with _progress() as report:
        result = analyze(network, splits, progress=report, **options)
    if plot is not None:
        write_atomic(plot, lambda file: file.write(analysis_png(result)))
    if write_json(json_file, result.to_dict()):
        _show_analysis(result)


def _named(data: str | None, root: Path | None, network: nn.Module) -> Splits | None:
    """The data that the user named; None if the network is to be asked for its own."""
    if data is None:
        return None
    return load_data(data, root=root, like=origin_of(network)["data"])


@contextmanager
def _progress() -> Iterator[Report]:
    """Progress bars on stderr, one for each stage; none where it is no terminal."""
    stderr = Console(stderr=True)
    if not stderr.is_terminal:
        yield silent
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=stderr, transient=True) as bars:
        tasks: dict[str, TaskID] = {}

        def report(event: Progress) -> None:
            if event.stage not in tasks:
                tasks[event.stage] = bars.add_task(event.stage, total=event.of)
            bars.update(tasks[event.stage], completed=event.done)

        yield report


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
    yield (
        f"Prunable: {whole.share(tolerance):.1%} of the units ({whole.prunable(tolerance):,.0f} of "
        f"{whole.units:,}; units are {_UNITS[result.ablation.unit]}), taken at random in all "
        f"layers at once, can be set to 0 before more than {tolerance:.0%} of the labels change "
        f"(best of {len(whole.agreement)} random orders)."
        + _further((f"{t:g}", whole.share(t)) for t in others)
    )
    first = whole.proportions[1]
    if whole.share(tolerance) < first:
        yield (
            f"The labels change within the first step, {first:.1%} of the units, and what is "
            f"prunable is interpolated inside of it: --steps {4 * round(1 / first)} measures it."
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
    for left in result.skipped:
        yield f"Left alone: {left.name}: {left.reason}."


def _further(shares: Iterable[tuple[str, float]]) -> str:
    listed = ", ".join(f"{share:.1%} at tolerance {tolerance}" for tolerance, share in shares)
    return f" {listed}." if listed else ""
