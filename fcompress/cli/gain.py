"""`fcompress gain`: how frivolous units grow with the width."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fcompress.cli.boundary import Command
from fcompress.cli.measuring import TOLERANCE, measuring_options
from fcompress.cli.output import FILE, stdout, write_bytes, write_json
from fcompress.cli.reports.options import write_report
from fcompress.measure.options import REDUNDANCY_TOLERANCES, TOLERANCES
from fcompress.report.measured import gain_screen
from fcompress.report.screens import show
from fcompress.showing.display import display

if TYPE_CHECKING:
    from torch import nn

    from fcompress.data import Splits


@click.command("gain", cls=Command)
@click.argument("models", nargs=-1, required=True, type=FILE)
@click.option(
    "--tol",
    "--tolerance",
    "tolerance",
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
    with display() as report:
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
        show(stdout(), gain_screen(result))


def _named(data: str | None, root: Path | None, network: nn.Module) -> Splits | None:
    """The data that the user named; None if each network is to be asked for its own."""
    if data is None:
        return None
    from fcompress.data import load_data
    from fcompress.models.provenance import origin_of

    return load_data(data, root=root, like=origin_of(network)["data"])
