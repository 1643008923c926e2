"""`fcompress export`: a network as files that run without fcompress."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from fcompress.cli.network_options import NetworkOptions, network_options, open_data, open_network
from fcompress.cli.output import (
    FloatRange,
    data_root_option,
    existing_folder,
    json_option,
    stdout,
    write_json,
)
from fcompress.exports.exporting import EXAMPLES, ExportResult, export, format_of

_FILE = click.Path(dir_okay=False, path_type=Path)


def export_targets(
    context: click.Context, parameter: click.Parameter, values: tuple[Path, ...]
) -> tuple[Path, ...]:
    """Refuse files of no known format, or in no folder, before minutes of work."""
    for value in values:
        existing_folder(context, parameter, value)
        format_of(value)
    return values


@click.command("export")
@click.argument("thin", type=_FILE)
@click.option(
    "--to",
    "targets",
    type=_FILE,
    multiple=True,
    required=True,
    callback=export_targets,
    metavar="FILE",
    help="Write this file; its ending says what: .pt2, .onnx or .safetensors. Repeatable.",
)
@click.option(
    "--wide",
    type=_FILE,
    metavar="WIDE.pt",
    help="Compare labels with this network, the one that THIN was made from.",
)
@click.option(
    "--tol",
    type=FloatRange(0, 1, max_open=True),
    help="Largest share of labels that may differ from WIDE.  [default: as certified]",
)
@click.option(
    "--examples",
    type=click.IntRange(min=1),
    default=EXAMPLES,
    show_default=True,
    help="Most examples to run the file on.",
)
@click.option("--data", metavar="SPEC", help="Other data than THIN remembers.")
@data_root_option
@json_option
@network_options
def export_command(
    thin: Path,
    targets: tuple[Path, ...],
    wide: Path | None,
    tol: float | None,
    examples: int,
    data: str | None,
    data_root: Path | None,
    json_file: Path | None,
    how: NetworkOptions,
) -> None:
    r"""Write a network as files that run without fcompress.

    THIN is a file of fcompress, or weights for the architecture of --arch. A .pt2 file runs with
    torch alone, an .onnx file with onnxruntime and others; both take batches of any size. Each
    file is run on real data before it gets its name, and is only kept if it gives the outputs of
    THIN.

    \b
    Example:
      fcompress export thin.pt --to thin.pt2 --to thin.onnx --wide wide.pt
    """
    network = open_network(thin, how)
    reference = None if wide is None else open_network(wide, how)
    splits = open_data([network], thin, how, data, data_root, "compress")
    # The examples that a certificate is about.
    present = splits.present()
    split = present.get("certification") or present.get("test") or next(iter(present.values()))
    results = []
    for target in targets:
        click.echo(f"writing {target} and running it", err=True)
        results.append(
            export(network, target, split, original=reference, tol=tol, examples=examples)
        )
    if write_json(json_file, [result.to_dict() for result in results]):
        for line in export_lines(results):
            stdout().print(line, soft_wrap=True, markup=False)


def export_lines(results: Sequence[ExportResult]) -> Iterator[str]:
    """What was written and how it was checked, in words."""
    for result in results:
        yield (
            f"Written: {result.path} ({result.bytes:,} bytes). Run on {result.n:,} examples: "
            f"{result.same:,} labels as in memory, scores differ by {result.largest_difference:.2g}"
            f" at most ({result.allowed_difference:.2g} allowed)."
        )
        agreement = result.agreement
        if agreement is not None:
            promised = "" if result.tolerance is None else f" ({result.tolerance:.1%} allowed)"
            yield (
                f"  {agreement.changed:,} of {agreement.n:,} labels differ from the wide network's"
                f" ({agreement.changed / agreement.n:.1%}){promised}."
            )
