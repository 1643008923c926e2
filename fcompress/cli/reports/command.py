"""`fcompress report`: results of shrink side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from fcompress.cli.boundary import Command, OutputFile
from fcompress.cli.output import FILE
from fcompress.cli.reports.options import typed


@click.command("report", cls=Command)
@click.argument("results", nargs=-1, required=True, type=FILE)
@click.option(
    "--out",
    type=OutputFile("report"),
    metavar="FILE.html",
    required=True,
    help="The page.",
)
def report_command(results: Sequence[Path], out: Path) -> None:
    r"""Put results of `fcompress shrink` side by side: methods, tolerances, searches, widths.

    RESULTS are files that `fcompress shrink --json` wrote. The page needs nothing else: no
    network, no program. A page about one network, with its units and examples, is what
    `fcompress shrink --report` writes.

    \b
    Example:
      fcompress report five.json one.json --out page.html
    """
    from fcompress.report.html import page_of_files
    from fcompress.report.html.page import save_page

    save_page(out, page_of_files(results, command=typed()))
    click.echo(f"Written: {out}")
