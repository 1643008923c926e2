"""`fcompress analyze`: what is frivolous in a network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fcompress.cli.boundary import Command
from fcompress.cli.measuring import TOLERANCE, measuring_options
from fcompress.cli.network_options import NetworkOptions, network_options
from fcompress.cli.output import FILE, checked, stdout, tell, write_bytes, write_json
from fcompress.cli.reports.options import write_report
from fcompress.measure.options import REDUNDANCY_TOLERANCES, TOLERANCES, AnalyzeOptions
from fcompress.report.measured import analysis_screen
from fcompress.report.screens import show
from fcompress.showing.display import display

if TYPE_CHECKING:
    pass


@click.command("analyze", cls=Command)
@click.argument("model", type=FILE)
@click.option(
    "--tol",
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
    with display() as report:
        result = measure(network, splits, options, report)
    if plot is not None:
        from fcompress.report.plots import analysis_png

        write_bytes(plot, analysis_png(result))
    if page is not None:
        write_report(page, result)
    if write_json(json_file, result.to_dict()):
        console = stdout()
        show(console, analysis_screen(result, console))
