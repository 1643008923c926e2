"""`fcompress shrink`: the compressed network, certified."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from fcompress.arguments.numbers import MOST_BATCH, MOST_SECONDS
from fcompress.cli.boundary import SEED, Command, DataSpec, OutputFile, Real, Whole
from fcompress.cli.boundary.numbers import Multiple
from fcompress.cli.boundary.recognise import says_fcompress
from fcompress.cli.network_options import NetworkOptions, network_options
from fcompress.cli.output import (
    CONFIDENCE_OPTION,
    DATA,
    DEVICE_OPTION,
    FILE,
    STOCHASTIC_OPTION,
    checked,
    data_root_option,
    export_targets,
    json_option,
    old_option,
    place,
    plot_option,
    stdout,
    tell,
    write_bytes,
    write_json,
)
from fcompress.cli.reports.options import (
    Candidates,
    candidates_option,
    report_option,
    write_report,
)
from fcompress.compress.options import (
    BATCH,
    DISTILL_EFFORT,
    METHODS,
    OBJECTIVES,
    QUANTIZE,
    SIZES,
    TOLERANCE,
    ShrinkOptions,
)
from fcompress.errors import FcompressError, ResultWarning
from fcompress.report.screens import show, shrink_screen
from fcompress.report.text import export_lines
from fcompress.showing.display import display
from fcompress.showing.progress import WARNING, Progress, Report


def _size_option(name: str, kind: click.ParamType, metavar: str, most: str) -> Any:
    """An option that limits a size."""
    said = f"Size target instead of --tol: at most {most}."
    return click.option(name, type=kind, metavar=metavar, help=said)


GROUPS = {
    "What to reach": "tol confidence per-label tol-label ratio max-macs max-params max-bytes "
    "max-latency batch objective",
    "How": "method distill distill-effort distill-seconds distill-data cascade quantize round-to "
    "keep-depth only-seen-paths balance calibration stochastic seed device",
    "Data": "data data-root seen groups",
    "Network": "arch arch-args weights-key trust-pickle transform mean std size input-shape output "
    "answer within cosine same divergence gallery score iou threshold pad",
    "Output": "out export json plot report no-examples keep-candidates full force help",
}


@click.command("shrink", cls=Command, groups=GROUPS)
@click.argument("model", type=FILE)
@click.option(
    "--tol",
    "--tolerance",
    "tol",
    type=Real(0, 1, max_open=True),
    help=f"Largest share of labels that may change.  [default: {TOLERANCE:g}]",
)
@click.option(
    "--per-label",
    is_flag=True,
    help="Hold the tolerance for every label of the original with enough examples, too.",
)
@click.option(
    "--tol-label",
    type=Real(0, 1, min_open=True, max_open=True),
    metavar="T",
    help="Like --per-label, with a tolerance of its own.",
)
@click.option(
    "--balance",
    is_flag=True,
    help="Calibrate on as many examples of each of the original's labels.",
)
@click.option(
    "--keep-depth",
    is_flag=True,
    help="Take units only: every block stays.",
)
@click.option(
    "--only-seen-paths",
    is_flag=True,
    help="Prune too what layers that no example reached may read.",
)
@click.option(
    "--cascade",
    is_flag=True,
    help="Give a pair: the original answers where the compressed network is unsure.",
)
@click.option(
    "--quantize",
    type=click.Choice(QUANTIZE),
    help="Certify and write the network as an ONNX file in int8, run by onnxruntime.",
)
@click.option(
    "--method",
    type=click.Choice(list(METHODS)),
    default="hybrid",
    show_default=True,
    help="; ".join(f"{name}: {summary}" for name, summary in METHODS.items()) + ".",
)
@click.option(
    "--out",
    type=OutputFile("network"),
    metavar="COMPRESSED.pt",
    help="Write the compressed network; .onnx with --quantize.  [default: MODEL with .thin before "
    "its ending]",
)
@click.option(
    "--export",
    "exports",
    type=OutputFile("export"),
    multiple=True,
    callback=export_targets,
    metavar="FILE",
    help="Write the compressed network also as .pt2, .onnx or .safetensors. Repeatable.",
)
@json_option
@plot_option("the search and the units of each layer")
@report_option
@click.option(
    "--no-examples",
    is_flag=True,
    help="Leave examples whose answer changed out of the report.",
)
@candidates_option
@click.option("--full", is_flag=True, help="List the layers that did not change, too.")
@click.option(
    "--objective",
    type=click.Choice(OBJECTIVES),
    default="macs",
    show_default=True,
    help="What to save.",
)
@click.option(
    "--round-to",
    type=Multiple(),
    default="1",
    show_default=True,
    metavar="N|auto",
    help="Keep multiples of N units; auto: the largest that costs no time on this device.",
)
@click.option(
    "--distill",
    is_flag=True,
    help="Distil candidates towards the original network, without labels, to get thinner.",
)
@old_option("--polish", "--distill", is_flag=True)
@click.option(
    "--distill-effort",
    type=Real(0, min_open=True),
    default=DISTILL_EFFORT,
    show_default=True,
    metavar="N",
    help="Work to distil a candidate, in plain sweeps over calibration and search data.",
)
@click.option(
    "--distill-seconds",
    type=Real(0, MOST_SECONDS, min_open=True),
    help="Most seconds to distil one candidate. The result then depends on the clock.",
)
@old_option("--polish-seconds", "--distill-seconds", type=Real(0, MOST_SECONDS, min_open=True))
@click.option(
    "--distill-data",
    type=DataSpec(),
    metavar="SPEC",
    help="Further inputs to distil on, beside those of the training split.",
)
@_size_option("--ratio", Real(0, 1, min_open=True), "R", "this share of what --objective counts")
@_size_option("--max-macs", Whole(1), "N", "this many MACs")
@_size_option("--max-params", Whole(1), "N", "this many parameters")
@_size_option("--max-bytes", Whole(1), "N", "so many bytes of weights")
@_size_option(
    "--max-latency",
    Real(0, MOST_SECONDS, min_open=True),
    "MS",
    "so many milliseconds for a batch on this device",
)
@click.option(
    "--batch",
    type=Whole(1, MOST_BATCH),
    default=BATCH,
    show_default=True,
    help="Examples of a batch whose latency is limited.",
)
@click.option(
    "--calibration",
    type=Whole(2),
    metavar="N",
    help="Most calibration examples to use.  [default: 1,024 to 8,192 by the network's cost]",
)
@CONFIDENCE_OPTION
@STOCHASTIC_OPTION
@click.option("--seed", type=SEED, default=0, show_default=True, help="Random seed.")
@DATA
@data_root_option
@network_options
@DEVICE_OPTION
def shrink_command(
    model: Path,
    out: Path,
    exports: tuple[Path, ...],
    json_file: Path | None,
    plot: Path | None,
    page: Path | None,
    no_examples: bool,
    keep_candidates: Path | None,
    full: bool,
    data: str | None,
    data_root: Path | None,
    how: NetworkOptions,
    device: str,
    **chosen: Any,
) -> None:
    r"""Find the thinnest network that still gives the same labels, and certify it.

    MODEL is a file written by `fcompress train`, which remembers its data, or weights of a
    network of your own, whose architecture you name by --arch. Labels are not needed.
    The compressed network is only written if the bound on its changed labels holds.

    \b
    Example:
      fcompress shrink model.pt --tol 0.05 --out small.pt --json small.json
      fcompress shrink weights.pt --arch torchvision:resnet50 --data folder:photos/ --size 224
    """
    from fcompress.checkpoints.checkpoint import save
    from fcompress.cli.opening import open_data, open_network
    from fcompress.compress.pipeline import compress
    from fcompress.data.specs import load_data
    from fcompress.exports.exporting import export

    _not_both(chosen)
    more = chosen.pop("distill_data")
    options = checked(ShrinkOptions, **chosen)
    network = open_network(model, how)
    splits = open_data([network], model, how, data, data_root, "compress", say=tell)
    if more is not None:
        further = load_data(more, root=data_root, roles="compress", like=splits.info)
        options = replace(options, distill_data=further)
    place(network, device)
    kept = None if keep_candidates is None else Candidates(keep_candidates)
    watch = None if kept is None else kept.keep
    with _lines() as report, warnings.catch_warnings():
        # Shown as progress, and with the result.
        warnings.simplefilter("ignore", ResultWarning)
        result = compress(network, splits, options, report, watch=watch)
    if kept is not None:
        kept.done(result)
    certified = splits.need("certification")
    if result.quantized is None:
        save(result.model.cpu(), out)
    else:
        export(result.model, out, certified, original=network.cpu())
    sizes = {"before": _size(model), "after": out.stat().st_size}
    result = replace(result, bytes=sizes)
    written = [export(result.model, path, certified, original=network) for path in exports]
    if plot is not None:
        from fcompress.report.plots import shrink_png

        write_bytes(plot, shrink_png(result))
    if page is not None:
        write_report(page, result, examples=not no_examples, network=out, original=model)
    if write_json(json_file, result.to_dict()):
        written_lines = [f"Written: {out}", *export_lines(written)]
        show(stdout(), [*shrink_screen(result, full=full), *written_lines])


def _beside_model(given: dict[str, Any]) -> tuple[str, Path]:
    """Where the compressed network goes if nothing else is said."""
    model: Path = given["model"]
    ending = model.suffix if says_fcompress(model) else ".pt"
    if given["quantize"] is not None:
        ending = ".onnx"
        if given["out"] is not None and given["out"].suffix.lower() != ending:
            raise click.UsageError(f"--quantize writes ONNX; end the name {given['out']} in .onnx")
    return "out", given["out"] or model.with_name(f"{model.stem}.thin{ending}")


def _size(path: Path) -> int:
    """Bytes of a file, or of the weights in a folder."""
    files = path.glob("*.safetensors") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files)


shrink_command.default_output = _beside_model  # type: ignore[attr-defined]


def _not_both(chosen: Mapping[str, Any]) -> None:
    """Refuse a tolerance together with a size.

    Raises:
        click.UsageError: Both are given.
    """
    for name in SIZES:
        if chosen["tol"] is not None and chosen[name] is not None:
            option = f"--{name.replace('_', '-')}"
            raise click.UsageError(
                f"--tol {chosen['tol']:g} and {option} {chosen[name]} contradict each other: "
                "ask for a tolerance or for a size"
            )


@contextmanager
def _lines() -> Iterator[Report]:
    """Progress on stderr; what weakens the result stands with it, or else before the error."""
    weak: list[str] = []
    with display() as show_event:

        def report(event: Progress) -> None:
            if event.line.startswith(WARNING):
                weak.append(event.line)
            show_event(event)

        try:
            yield report
        except FcompressError:
            for line in weak:
                tell(line)
            raise
