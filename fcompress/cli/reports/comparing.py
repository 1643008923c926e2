"""`fcompress compare`: other methods and ours on one network, side by side."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import click
from rich import box
from rich.console import Console
from rich.table import Table

from fcompress.cli.boundary import SEED, Command, DataSpec, Real, Whole
from fcompress.cli.network_options import NetworkOptions, network_options
from fcompress.cli.output import (
    CONFIDENCE_OPTION,
    DATA,
    DEVICE_OPTION,
    FILE,
    STOCHASTIC_OPTION,
    checked,
    data_root_option,
    json_option,
    place,
    plot_option,
    stdout,
    tell,
    write_bytes,
    write_json,
)
from fcompress.cli.reports.options import report_option, write_report
from fcompress.comparison.options import NAMES
from fcompress.compress.options import DISTILL_EFFORT, TOLERANCE, ShrinkOptions
from fcompress.errors import ResultWarning
from fcompress.report.compared import (
    compare_failures,
    compare_headings,
    compare_lines,
    compare_rows,
)
from fcompress.showing.progress import Progress


@click.command("compare", cls=Command)
@click.argument("model", type=FILE)
@click.option(
    "--tol",
    type=Real(0, 1, max_open=True),
    default=TOLERANCE,
    show_default=True,
    help="Largest share of the search split's labels that may change.",
)
@click.option(
    "--method",
    "methods",
    type=click.Choice(NAMES),
    multiple=True,
    help="Compare this method only. Repeatable.  [default: all]",
)
@click.option(
    "--distill", is_flag=True, help="Compare methods of fcompress with distilled networks, too."
)
@click.option(
    "--distill-effort",
    type=Real(0, min_open=True),
    default=DISTILL_EFFORT,
    show_default=True,
    metavar="N",
    help="Sweeps of training over the calibration examples, to distil one network.",
)
@click.option(
    "--distill-data",
    type=DataSpec(),
    metavar="SPEC",
    help="Further inputs to distil on, beside those of the training split.",
)
@click.option("--keep-depth", is_flag=True, help="Methods of fcompress take units only, no blocks.")
@click.option(
    "--calibration",
    type=Whole(2),
    metavar="N",
    help="Most calibration examples to use.  [default: 1,024 to 8,192 by the network's cost]",
)
@json_option
@plot_option("changed labels against the MACs of every network that was tried")
@report_option
@CONFIDENCE_OPTION
@STOCHASTIC_OPTION
@click.option("--seed", type=SEED, default=0, show_default=True, help="Random seed.")
@DATA
@data_root_option
@network_options
@DEVICE_OPTION
def compare_command(
    model: Path,
    tol: float,
    methods: tuple[str, ...],
    json_file: Path | None,
    plot: Path | None,
    page: Path | None,
    data: str | None,
    data_root: Path | None,
    how: NetworkOptions,
    device: str,
    **chosen: Any,
) -> None:
    r"""Compare methods that need no retraining, each at its smallest network within a tolerance.

    Those of fcompress (prune, factor, hybrid) and of torch-pruning (tp-...), on your network and
    data. Networks are chosen on the search split and measured on the test split. Nothing is
    certified: the certification split is not used, so that `fcompress shrink` can use it.

    \b
    Example:
      fcompress compare model.pt --tol 0.05 --report comparison.html
    """
    from fcompress.cli.opening import open_data, open_network
    from fcompress.comparison.comparing import compared
    from fcompress.data.specs import load_data

    more = chosen.pop("distill_data")
    network = open_network(model, how)
    splits = open_data([network], model, how, data, data_root, "compress", say=tell)
    if more is not None:
        more = load_data(more, root=data_root, roles="compress", like=splits.info)
    # A size, which asks for no certificate.
    options = checked(ShrinkOptions, ratio=1.0, distill_data=more, **chosen)
    place(network, device)
    console = Console(stderr=True, highlight=False)

    def report(event: Progress) -> None:
        of_all = event.stage == "comparing"
        head = f"[{event.done} of {event.of}] " if of_all else "  "
        console.print(f"{head}{event}", style=None if of_all else "dim", markup=False)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResultWarning)  # shown with the result
        result = compared(network, splits, tol, options, methods or None, report)
    if plot is not None:
        from fcompress.report.plots import compare_png

        write_bytes(plot, compare_png(result))
    if page is not None:
        write_report(page, result, original=model)
    if not write_json(json_file, result.to_dict()):
        return
    out = stdout()
    table = Table(box=box.SIMPLE_HEAD)
    for number, heading in enumerate(compare_headings(result)):
        table.add_column(heading, justify="right" if number else "left", no_wrap=True)
    for row in compare_rows(result):
        table.add_row(*row)
    out.print(table)
    for names, reason in compare_failures(result):
        out.print(f"{names}: {reason}", soft_wrap=True, markup=False)
    for line in compare_lines(result):
        out.print(line, soft_wrap=True, markup=False)
    for line in result.warnings:
        out.print(f"Warning: {line}.", soft_wrap=True, markup=False)
