"""`fcompress models` and `fcompress data`: what there is to choose from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from rich import box
from rich.table import Table

from fcompress.cli.boundary import SEED, Command, DataSpec
from fcompress.cli.output import data_root_option, json_option, stdout, write_json


@click.command("models", cls=Command)
@json_option
def models_command(json_file: Path | None) -> None:
    r"""List the network families, what they are and what they take.

    \b
    Example:
      fcompress models
    """
    import torch

    from fcompress.models import build, families

    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("family", "what it is", "arguments (defaults)"):
        table.add_column(heading, no_wrap=heading == "family", overflow="fold")
    table.add_column("parameters\nat 1x", justify="right")
    records = []
    for family in families().values():
        with torch.device("meta"):
            params = sum(parameter.numel() for parameter in build(family.name).parameters())
        defaults = " ".join(f"{name}={value}" for name, value in family.defaults.items())
        table.add_row(family.name, family.summary, defaults, f"{params:,}")
        records.append(
            {
                "name": family.name,
                "summary": family.summary,
                "params": params,
                "arguments": {
                    name: {"default": argument.default, "meaning": argument.meaning}
                    for name, argument in family.arguments.items()
                },
                "inits": list(family.inits),
            }
        )
    if write_json(json_file, records):
        console = stdout()
        console.print(table)
        inits = sorted({init for family in families().values() for init in family.inits})
        console.print(f"init: {', '.join(inits)}", soft_wrap=True, markup=False)


@click.command("data", cls=Command)
@click.argument("spec", required=False, type=DataSpec(), metavar="[SPEC]")
@data_root_option
@click.option(
    "--data-seed", type=SEED, default=0, show_default=True, help="Random seed of how SPEC is split."
)
@click.option("--download", is_flag=True, help="Fetch SPEC if it is not here.")
@json_option
def data_command(
    spec: str | None,
    data_root: Path | None,
    data_seed: int,
    download: bool,
    json_file: Path | None,
) -> None:
    r"""List the datasets that a SPEC can name; with SPEC, load one and describe it.

    A SPEC is NAME[:ARGUMENT][,option=value ...].

    \b
    Examples:
      fcompress data
      fcompress data folder:my-images,size=64
    """
    from fcompress.data import datasets, load_data

    table = Table(box=box.SIMPLE_HEAD)
    if spec is not None:
        info = load_data(spec, root=data_root, seed=data_seed, download=download).info
        table.add_column("", no_wrap=True)
        table.add_column("", overflow="fold")
        for key, value in info.items():
            table.add_row(key.replace("_", " "), _in_words(value))
        record: Any = info
        table.show_header = False
    else:
        for heading in ("spec", "what it is", "splits", "options", "from"):
            table.add_column(heading, no_wrap=heading == "spec", overflow="fold")
        record = []
        for kind in datasets().values():
            options = "\n".join(f"{name}: {meaning}" for name, meaning in kind.options.items())
            table.add_row(kind.form, kind.summary, kind.splits, options, kind.find)
            fields = ("name", "form", "summary", "splits", "find")
            record.append(
                {**{name: getattr(kind, name) for name in fields}, "options": dict(kind.options)}
            )
    if write_json(json_file, record):
        stdout().print(table)


def _in_words(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_in_words(part)}" for key, part in value.items())
    if isinstance(value, list):
        shown = [f"{part:.4g}" if isinstance(part, float) else str(part) for part in value[:20]]
        return ", ".join([*shown, f"... ({len(value):,})"] if len(value) > len(shown) else shown)
    return (
        "-" if value is None or value == "" else f"{value:,}" if type(value) is int else str(value)
    )
