"""`fcompress show`: what a file is, and what was done to the network in it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich import box
from rich.console import Console
from rich.table import Table

from fcompress.cli.boundary import Command
from fcompress.cli.output import FILE, json_option, stdout, write_json
from fcompress.report.cascade import cascade_sizes
from fcompress.report.text import history_sentence

if TYPE_CHECKING:
    from fcompress.exports.describe import Contents


@click.command("show", cls=Command)
@click.argument("file", type=FILE)
@json_option
def show_command(file: Path, json_file: Path | None) -> None:
    r"""Describe a file: what it is, from which network, and how it was certified.

    FILE is a network of fcompress, one of its exports, or weights or a program of others. Nothing
    in it is run.

    \b
    Example:
      fcompress show small.pt --json -
    """
    from fcompress.exports.describe import describe_file

    found = describe_file(file)
    if write_json(json_file, _plain(found.to_dict())):
        console = stdout()
        for line in _lines(found):
            console.print(_printable(line), soft_wrap=True, markup=False)
        _print_layers(console, found)
        for line in _history(found):
            console.print(_printable(line), soft_wrap=True, markup=False)


def _lines(found: Contents) -> Iterator[str]:
    """What the file is, and of which network."""
    from fcompress.exports.describe import KINDS

    yield f"{found.path}: {KINDS[found.kind]}, {found.bytes:,} bytes"
    parts = []
    if found.family is not None:
        args = ", ".join(f"{name}={value}" for name, value in found.args.items())
        parts.append(f"{found.family} ({args})" if args else found.family)
    if found.params is not None:
        parts.append(f"{found.params:,} parameters")
    if found.dtypes:
        parts.append(", ".join(found.dtypes))
    if parts:
        yield "; ".join(parts)
    yield from found.notes
    if found.data is not None:
        yield f"Data: {found.data.get('spec', 'not named')}, inputs {found.data.get('shape', '?')}"


def _print_layers(console: Console, found: Contents) -> None:
    """Each layer's units as built and now."""
    if not found.widths:
        return
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("layer", no_wrap=True)
    for heading in ("units as built", "now", "inputs as built", "now"):
        table.add_column(heading, justify="right")
    for name, (units, inputs) in found.widths.items():
        before = (found.wide or {}).get(name)
        was = ("?", "?") if before is None else (f"{before[0]:,}", f"{before[1]:,}")
        table.add_row(_printable(name), was[0], f"{units:,}", was[1], f"{inputs:,}")
    console.print(table)


def _history(found: Contents) -> Iterator[str]:
    """What was done to the network, and by what."""
    from fcompress.models.fingerprint import last_shrink

    last = last_shrink(found.history)
    for number, entry in enumerate(found.history, 1):
        yield f"{number}. {_done(entry, last is not None and number <= last)}"
    if found.versions:
        written = ", ".join(f"{name} {version}" for name, version in found.versions.items())
        yield f"Written with {written}."


def _done(entry: Any, superseded: bool) -> str:
    """One step of a history; files of others may hold anything there."""
    if not isinstance(entry, dict) or not isinstance(entry.get("action"), str):
        return f"an entry that is not understood: {str(entry)[:80]}"
    action = entry["action"]
    try:
        if action == "train":
            last = entry["epochs"][-1]
            parts = [
                f"{what} {last[key]:.2%}"
                for what, key in (
                    ("training accuracy", "train_accuracy"),
                    ("test accuracy", "test_accuracy"),
                )
                if last[key] is not None
            ]
            return f"trained for {len(entry['epochs'])} epochs: {', '.join(parts)}"
        if action == "shrink":
            return _shrunk(entry, superseded)
        if action == "candidate":
            return (
                f"a candidate of {entry['method']}, not certified: {entry['removed']:,} units "
                f"removed, {entry['changed']:g} of {entry['n']:,} search examples changed"
            )
    except (KeyError, TypeError, ValueError, AttributeError, IndexError):
        pass
    return action


def _shrunk(entry: dict[str, Any], superseded: bool) -> str:
    """One shrinking: by how much, and what is proven of it."""
    from fcompress.models.fingerprint import certified_weights

    sentence = history_sentence(entry["agreement"], "certification examples")
    proven = f"o{sentence[1:]}".rstrip(".")
    sizes = ", ".join(
        f"{what} {entry[key]['before']:,} -> {entry[key]['after']:,}"
        for what, key in (("parameters", "params"), ("MACs", "macs"))
    )
    if entry.get("cascade") is not None:
        sizes = cascade_sizes(entry)
    aim = (
        f"certified for a tolerance of {entry['tolerance']:.1%}"
        if entry["certified"] is True
        else "to a size target, not certified"
    )
    if entry.get("void") is not None:
        return (
            f"shrunk by {entry['method']}, certificate void: {entry['void']}: {sizes}; before "
            f"that, {proven.partition(', so with')[0]} (fcompress verify measures afresh)"
        )
    if isinstance(entry.get("quantized"), dict):
        sizes += "; the file in int8 is what was certified, run by onnxruntime"
    about = "" if not superseded else "; superseded by the compression after it"
    if not superseded and certified_weights(entry) is None:
        about = "; certificate not tied to weights (written by an earlier version)"
    return f"shrunk by {entry['method']}, {aim}: {sizes}; {proven}{about}"


def _printable(text: str) -> str:
    """Without what could move the cursor of a terminal."""
    return "".join(c if c.isprintable() else "?" for c in text)


def _plain(value: Any) -> Any:
    """JSON has no numbers that are not finite; such a one becomes a text."""
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return str(value)
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return value
