"""`fcompress export`: a network as files that run without fcompress."""

from __future__ import annotations

from pathlib import Path

import click

from fcompress.cli.boundary import Command, DataSpec, OutputFile, Real, Whole
from fcompress.cli.network_options import NetworkOptions, network_options
from fcompress.cli.output import (
    FILE,
    data_root_option,
    export_targets,
    json_option,
    old_option,
    stdout,
    tell,
    write_json,
)
from fcompress.report.text import export_lines

EXAMPLES = 1024  # as `exports.exporting` has it, without torch


@click.command("export", cls=Command)
@click.argument("compressed", type=FILE)
@click.option(
    "--to",
    "targets",
    type=OutputFile("export"),
    multiple=True,
    required=True,
    callback=export_targets,
    metavar="FILE",
    help="Write this file; its ending says what: .pt2, .onnx or .safetensors. Repeatable.",
)
@click.option(
    "--original",
    type=FILE,
    metavar="ORIGINAL.pt",
    help="Compare answers with this network, the one that COMPRESSED was made from.",
)
@old_option("--wide", "--original", type=FILE)
@click.option(
    "--tol",
    "--tolerance",
    "tol",
    type=Real(0, 1, max_open=True),
    help="Largest share of answers that may differ from ORIGINAL's.  [default: as certified]",
)
@click.option(
    "--examples",
    type=Whole(1),
    default=EXAMPLES,
    show_default=True,
    help="Most examples to run the file on.",
)
@click.option(
    "--data", type=DataSpec(), metavar="SPEC", help="Other data than COMPRESSED remembers."
)
@data_root_option
@json_option
@network_options
def export_command(
    compressed: Path,
    targets: tuple[Path, ...],
    original: Path | None,
    tol: float | None,
    examples: int,
    data: str | None,
    data_root: Path | None,
    json_file: Path | None,
    how: NetworkOptions,
) -> None:
    r"""Write a network as files that run without fcompress.

    COMPRESSED is a file of fcompress, or weights for the architecture of --arch. A .pt2 file runs
    with torch alone, an .onnx file with onnxruntime and others; both take batches of any size.
    Each file is run on real data before it gets its name, and is only kept if it gives the outputs
    of COMPRESSED.

    \b
    Example:
      fcompress export small.pt --to small.pt2 --to small.onnx --original model.pt
    """
    from fcompress.cli.opening import open_data, open_network
    from fcompress.exports.exporting import export

    network = open_network(compressed, how)
    reference = None if original is None else open_network(original, how)
    splits = open_data([network], compressed, how, data, data_root, "compress")
    # The examples that a certificate is about.
    present = splits.present()
    split = present.get("certification") or present.get("test") or next(iter(present.values()))
    results = []
    for target in targets:
        tell(f"writing {target} and running it")
        results.append(
            export(network, target, split, original=reference, tol=tol, examples=examples)
        )
    if write_json(json_file, [result.to_dict() for result in results]):
        for line in export_lines(results):
            stdout().print(line, soft_wrap=True, markup=False)
