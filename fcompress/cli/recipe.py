"""`fcompress recipe`: the experiments of the paper, one command each."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich import box
from rich.console import Console
from rich.table import Table

from fcompress.arguments.numbers import MOST_WORKERS
from fcompress.cli.boundary import Command, OutputFolder, RecipeName, Whole
from fcompress.cli.output import data_root_option, json_option, stdout, write_json
from fcompress.experiments.names import WRITTEN
from fcompress.experiments.recipe import SCALES, read, summaries
from fcompress.training.config import DEVICES

# torch takes seconds to import, so the commands import what needs it when they run.
if TYPE_CHECKING:
    from fcompress.experiments.trials.results import Results


@click.group("recipe")
def recipe_command() -> None:
    r"""Run the experiments of the paper, and compare them with its published figures.

    \b
    Example:
      fcompress recipe run fig4d --scale small --out fig4d
    """


@recipe_command.command("list", cls=Command)
@json_option
def list_command(json_file: Path | None) -> None:
    r"""List the recipes, what they reproduce and at which scales.

    \b
    Example:
      fcompress recipe list
    """
    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("recipe", "reproduces", "what", "scales"):
        table.add_column(heading, no_wrap=heading == "recipe")
    records = []
    for name, title, source, scales in summaries():
        table.add_row(name, source, title, " ".join(scales))
        records.append({"name": name, "title": title, "source": source, "scales": list(scales)})
    if write_json(json_file, records):
        stdout().print(table)


@recipe_command.command("run", cls=Command)
@click.argument("name", type=RecipeName())
@click.option(
    "--scale",
    type=click.Choice(SCALES),
    default="small",
    show_default=True,
    help="smoke: seconds; small: this machine; paper: as published.",
)
@click.option(
    "--out",
    type=OutputFolder(WRITTEN),
    metavar="DIR",
    help="Folder of the results.  [default: NAME-SCALE]",
)
@click.option(
    "--trials",
    type=OutputFolder(),
    metavar="DIR",
    help="Folder of the trials, for recipes to share.  [default: in --out]",
)
@click.option(
    "--networks",
    type=OutputFolder(),
    metavar="DIR",
    help="Keep the trained networks here, and train none that is here already.",
)
@click.option(
    "--set",
    "changes",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change the recipe, as in train.epochs=2; may be repeated.",
)
@click.option(
    "--workers",
    type=Whole(1, MOST_WORKERS),
    help="Trials at once, each with one thread.  [default: processors]",
)
@click.option(
    "--cluster",
    metavar="ADDRESS",
    help="Run on a Ray cluster; local: start Ray here.",
)
@data_root_option
@click.option(
    "--device",
    type=click.Choice(DEVICES),
    default="auto",
    show_default=True,
    help="Where to train and measure.",
)
@json_option
def run_command(
    name: str,
    scale: str,
    out: Path,
    trials: Path | None,
    networks: Path | None,
    changes: tuple[str, ...],
    workers: int | None,
    cluster: str | None,
    data_root: Path | None,
    device: str,
    json_file: Path | None,
) -> None:
    r"""Run the recipe NAME (`fcompress recipe list`, or a file of your own), draw and compare.

    What is finished is kept: the same command goes on where a run was stopped.

    \b
    Examples:
      fcompress recipe run fig4d --scale paper --out fig4d
      fcompress recipe run fig4c --set seeds=1 --set "curves.He.widths=[0.25, 0.5]"
    """
    recipe = read(name, scale, changes)

    from fcompress.experiments.report import summary
    from fcompress.experiments.trials import results

    console = Console(stderr=True, highlight=False, soft_wrap=True)

    found = results.run(
        recipe,
        out,
        command=_command(name, scale, changes),
        trials=trials,
        networks=networks,
        workers=workers or os.cpu_count() or 1,
        cluster=cluster,
        root=data_root,
        device=device,
        progress=lambda event: console.print(str(event)),
    )
    summary.write(found, out)
    _show(found, out, json_file)


def _of_its_own(given: dict[str, Any]) -> tuple[str, Path]:
    """The folder of the results if nothing else is said."""
    name = Path(given["name"]).stem if given["name"].endswith(".toml") else given["name"]
    return "out", given["out"] or Path(f"{name}-{given['scale']}")


run_command.default_output = _of_its_own  # type: ignore[attr-defined]


@recipe_command.command("report", cls=Command)
@click.argument("folder", type=OutputFolder(WRITTEN))
@json_option
def report_command(folder: Path, json_file: Path | None) -> None:
    r"""Draw and compare what FOLDER holds, finished or not, without running anything.

    \b
    Example:
      fcompress recipe report fig4d
    """
    from fcompress.experiments.report import summary
    from fcompress.experiments.trials import results

    found = results.load(folder)
    summary.write(found, folder)
    _show(found, folder, json_file)


def _command(name: str, scale: str, changes: tuple[str, ...]) -> str:
    """What makes the same results anywhere, ready for a shell."""
    said = [part for change in changes for part in ("--set", change)]
    return shlex.join(["fcompress", "recipe", "run", name, "--scale", scale, *said])


def _show(results: Results, out: Path, json_file: Path | None) -> None:
    from fcompress.experiments.report import tables

    record = {"recipe": results.recipe.to_dict(), **tables.tables(results)}
    if not write_json(json_file, record):
        return
    recipe = results.recipe
    console = stdout()
    finished = len(results.trials) - results.missing
    console.print(
        f"{recipe.name} ({recipe.source}), scale {recipe.scale}: {finished} of "
        f"{len(results.trials)} networks",
        soft_wrap=True,
    )
    compared = tables.compare(results)
    if compared:
        table = Table(box=box.SIMPLE_HEAD)
        for heading in ("units", "published g", "here", "conclusion"):
            table.add_column(heading, no_wrap=True)
        for one in compared:
            table.add_row(
                one.quantity.replace("_", "-"),
                tables.range_text(one.published),
                tables.range_text(one.here),
                {True: "same", False: "other", None: "-"}[one.same],
            )
        console.print(table)
    if results.failed:
        click.echo(f"{len(results.failed)} trainings diverged; they are left out", err=True)
    console.print(f"wrote {out / 'summary.md'} and {out / 'figures'}", soft_wrap=True)
