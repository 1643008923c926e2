"""`fcompress gain`: how frivolous units grow with the width."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich import box
from rich.table import Table

from fcompress.cli.boundary import Command
from fcompress.cli.measuring import TOLERANCE, UNITS, measuring_options, progress_bars
from fcompress.cli.output import FILE, stdout, write_bytes, write_json
from fcompress.cli.reports.options import write_report
from fcompress.measure.options import REDUNDANCY_TOLERANCES, TOLERANCES

if TYPE_CHECKING:
    from torch import nn

    from fcompress.data import Splits
    from fcompress.measure.growth import GainResult


@click.command("gain", cls=Command)
@click.argument("models", nargs=-1, required=True, type=FILE)
@click.option(
    "--tolerance",
    type=TOLERANCE,
    default=TOLERANCES[0],
    show_default=True,
    help="Share of labels that may change when units are ablated.",
)
@click.option(
    "--redundancy-tolerance",
    type=TOLERANCE,
    default=REDUNDANCY_TOLERANCES[0],
    show_default=True,
    help="Share of variance that may stay unexplained.",
)
@measuring_options
def gain_command(
    models: Sequence[Path],
    data: str | None,
    data_root: Path | None,
    json_file: Path | None,
    plot: Path | None,
    page: Path | None,
    **options: Any,
) -> None:
    r"""Measure how frivolous units multiply when the width of a network is doubled.

    MODELS are networks of one family at successive doublings of the width, in any order; several
    of one width (trained with other seeds) are averaged. Frivolous units outgrow the network
    when the gain g is above 2.

    \b
    Example:
      fcompress gain quarter.pt half.pt one.pt two.pt four.pt --plot gain.png
    """
    from fcompress.checkpoints.checkpoint import load
    from fcompress.measure.analysis import gain

    networks = [load(path) for path in models]
    with progress_bars() as report:
        result = gain(
            networks,
            _named(data, data_root, networks[0]),
            root=data_root,
            progress=report,
            **options,
        )
    if plot is not None:
        from fcompress.report.plots import gain_png

        write_bytes(plot, gain_png(result))
    if page is not None:
        write_report(page, result)
    if write_json(json_file, result.to_dict()):
        _show_gain(result)


def _named(data: str | None, root: Path | None, network: nn.Module) -> Splits | None:
    """The data that the user named; None if each network is to be asked for its own."""
    if data is None:
        return None
    from fcompress.data import load_data
    from fcompress.models.provenance import origin_of

    return load_data(data, root=root, like=origin_of(network)["data"])


def _show_gain(result: GainResult) -> None:
    from fcompress.measure.growth import LAST, QUANTITIES

    console = stdout()
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
    console.print(
        f"{result.family}: {sum(result.networks)} networks, tolerance {result.tolerance:g} of "
        f"labels, {result.redundancy_tolerance:g} of variance; ablated units are "
        f"{UNITS[result.unit]}",
        soft_wrap=True,
    )
    console.print(table)
    if by_layer.row_count:
        console.print(by_layer)
    for curve in result.network:
        if curve.quantity in ("prunable", "redundant") and curve.gain is not None:
            pace = "faster than" if curve.gain > 2 else "no faster than"
            console.print(
                f"{curve.quantity.capitalize()} units multiply by {curve.gain:.2f} when the width "
                f"doubles: they grow {pace} the network.",
                soft_wrap=True,
            )


def _gain(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.2f}"
