"""`fcompress shrink` and `fcompress verify`."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import nn

from fcompress.agreement import CONFIDENCE, AgreementResult, verify
from fcompress.allocation import OBJECTIVES
from fcompress.checkpoint import save
from fcompress.cli.export_cmd import export_lines, export_targets
from fcompress.cli.network_options import (
    NetworkOptions,
    network_options,
    open_data,
    open_network,
)
from fcompress.cli.output import (
    FloatRange,
    Multiple,
    data_root_option,
    existing_folder,
    json_option,
    stdout,
    write_json,
)
from fcompress.data import Split, Splits
from fcompress.errors import DataError, ResultWarning
from fcompress.exporting import ExportResult, export
from fcompress.files import write_atomic
from fcompress.methods import METHODS
from fcompress.models import Network
from fcompress.outcome import ShrinkResult
from fcompress.pipeline import POLISH_SECONDS, shrink
from fcompress.plots import shrink_png
from fcompress.report import agreement_sentence, change_rows, verdict

_DATA = click.option("--data", metavar="SPEC", help="Other data than MODEL was trained on.")
_DEVICE = click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="Where to compute.",
)
_CONFIDENCE = click.option(
    "--confidence",
    type=FloatRange(0, 1, min_open=True, max_open=True),
    default=CONFIDENCE,
    show_default=True,
    help="Of the bound on changed labels.",
)


@click.command("shrink")
@click.argument("model", type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--tol",
    type=FloatRange(0, 1, max_open=True),
    default=0.2,
    show_default=True,
    help="Largest share of labels that may change.",
)
@click.option(
    "--method",
    type=click.Choice(list(METHODS)),
    default="hybrid",
    show_default=True,
    help="; ".join(f"{name}: {method.summary}" for name, method in METHODS.items()) + ".",
)
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    callback=existing_folder,
    metavar="THIN.pt",
    help="Write the thin network.  [default: MODEL with .thin before its ending]",
)
@click.option(
    "--export",
    "exports",
    type=click.Path(dir_okay=False, path_type=Path),
    multiple=True,
    callback=export_targets,
    metavar="FILE",
    help="Write the thin network also as .pt2, .onnx or .safetensors. Repeatable.",
)
@json_option
@click.option(
    "--plot",
    type=click.Path(dir_okay=False, path_type=Path),
    callback=existing_folder,
    metavar="FILE.png",
    help="Draw the search and the units of each layer.",
)
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
    "--polish",
    is_flag=True,
    help="Distil thin networks towards the wide one, without labels, to get thinner.",
)
@click.option(
    "--polish-seconds",
    type=FloatRange(0, min_open=True),
    default=POLISH_SECONDS,
    show_default=True,
    help="Most seconds to polish one network; up to six are.",
)
@click.option(
    "--ratio",
    type=FloatRange(0, 1, min_open=True),
    metavar="R",
    help="Ask for a size instead: at most this share of the MACs.",
)
@click.option(
    "--max-macs",
    type=click.IntRange(min=1),
    metavar="N",
    help="Ask for a size instead: at most this many MACs.",
)
@click.option(
    "--calibration",
    type=click.IntRange(min=2),
    metavar="N",
    help="Most calibration examples to use.  [default: 1,024 to 8,192 by the network's cost]",
)
@_CONFIDENCE
@click.option("--seed", type=int, default=0, show_default=True, help="Of all choices.")
@_DATA
@data_root_option
@network_options
@_DEVICE
def shrink_command(
    model: Path,
    tol: float,
    method: str,
    out: Path | None,
    exports: tuple[Path, ...],
    json_file: Path | None,
    plot: Path | None,
    objective: str,
    round_to: int | str,
    polish: bool,
    polish_seconds: float,
    ratio: float | None,
    max_macs: int | None,
    calibration: int | None,
    confidence: float,
    seed: int,
    data: str | None,
    data_root: Path | None,
    how: NetworkOptions,
    device: str,
) -> None:
    r"""Find the thinnest network that still gives the same labels, and certify it.

    MODEL is a file written by `fcompress train`, which remembers its data, or weights of a
    network of your own, whose architecture you name by --arch. Labels are not needed.
    The thin network is only written if the bound on its changed labels holds.

    \b
    Example:
      fcompress shrink wide.pt --tol 0.05 --out thin.pt --json thin.json
      fcompress shrink weights.pt --arch torchvision:resnet50 --data folder:photos/ --size 224
    """
    network = open_network(model, how)
    splits = open_data([network], model, how, data, data_root, "compress", say=_tell)
    ending = model.suffix if isinstance(network, Network) else ".pt"
    out = out or model.with_name(f"{model.stem}.thin{ending}")
    if out.resolve() == model.resolve():
        raise click.BadParameter("this is MODEL itself; name another file", param_hint="--out")
    _place(network, device)
    with _lines() as say, warnings.catch_warnings():
        # Shown as progress, and with the result.
        warnings.simplefilter("ignore", ResultWarning)
        result = shrink(
            network,
            splits,
            tol,
            method=method,
            objective=objective,
            round_to=round_to,
            polish=polish,
            polish_seconds=polish_seconds,
            ratio=ratio,
            max_macs=max_macs,
            calibration=calibration,
            confidence=confidence,
            seed=seed,
            progress=say,
        )
    save(result.model.cpu(), out)
    certified = splits.need("certification")
    written = [export(result.model, path, certified, wide=network) for path in exports]
    if plot is not None:
        picture = shrink_png(result)
        write_atomic(plot, lambda file: file.write(picture))
    if write_json(json_file, result.to_dict()):
        _show(result, out, written)


@click.command("verify")
@click.argument("wide", type=click.Path(dir_okay=False, path_type=Path))
@click.argument("thin", type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--split",
    type=click.Choice(["test", "certification", "search", "calibration"]),
    help="Split to compare on.  [default: test, else certification]",
)
@json_option
@_CONFIDENCE
@_DATA
@data_root_option
@network_options
@_DEVICE
def verify_command(
    wide: Path,
    thin: Path,
    split: str | None,
    json_file: Path | None,
    confidence: float,
    data: str | None,
    data_root: Path | None,
    how: NetworkOptions,
    device: str,
) -> None:
    r"""Compare the labels of two networks.

    WIDE and THIN are files of fcompress, or weights for the architecture of --arch. The bound is
    exact as long as nothing was chosen by looking at the examples: `fcompress shrink` never
    touches the test split.

    \b
    Example:
      fcompress verify wide.pt thin.pt --json agreement.json
    """
    before, after = open_network(wide, how), open_network(thin, how)
    splits = open_data([before, after], wide, how, data, data_root, "all", say=_tell)
    chosen = _choose(splits, split)
    _place(before, device)
    _place(after, device)
    result = verify(before, after, chosen, confidence=confidence)
    record = {**result.to_dict(), "split": chosen.name, "data": splits.info}
    if write_json(json_file, record):
        _show_agreement(result, chosen.name)


def _tell(line: str) -> None:
    click.echo(line, err=True)


def _choose(splits: Splits, name: str | None) -> Split:
    if name is not None:
        return splits.need(name)
    return splits.test if splits.test is not None else splits.need("certification")


def _place(network: nn.Module, device: str) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        raise DataError("--device cuda: no CUDA device is available here; use --device cpu")
    if device == "cuda" or (device == "auto" and torch.cuda.is_available()):
        network.to("cuda")


@contextmanager
def _lines() -> Iterator[Callable[[str], None]]:
    """Progress lines on stderr."""
    console = Console(stderr=True, highlight=False)
    with console.status("looking at the network") as status:

        def say(line: str) -> None:
            console.print(line, style="dim")
            status.update(line)

        yield say


def _show(result: ShrinkResult, out: Path, exports: list[ExportResult]) -> None:
    console = stdout()
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("")
    for heading in ("before", "after", "kept"):
        table.add_column(heading, justify="right")
    for row in change_rows(result):
        table.add_row(*row)
    console.print(table)
    layers = Table(box=box.SIMPLE_HEAD)
    layers.add_column("layer", no_wrap=True)
    layers.add_column("units before", justify="right")
    layers.add_column("after", justify="right")
    layers.add_column("left alone because")
    for layer in result.layers:
        layers.add_row(
            layer.name, f"{layer.units_before:,}", f"{layer.units_after:,}", layer.reason or ""
        )
    console.print(layers)
    for line in verdict(result):
        console.print(line, soft_wrap=True)
    console.print(f"Written: {out}", soft_wrap=True)
    for line in export_lines(exports):
        console.print(line, soft_wrap=True, markup=False)


def _show_agreement(result: AgreementResult, split: str) -> None:
    console = stdout()
    console.print(agreement_sentence(result, f"{split} examples"), soft_wrap=True)
    mean, most = result.mean_difference, result.largest_difference
    console.print(f"Logits differ by {mean:.4g} on average, {most:.4g} at most.", soft_wrap=True)
    if result.accuracy is not None:
        before, after = result.accuracy["before"], result.accuracy["after"]
        console.print(f"Accuracy: {before:.2%} before, {after:.2%} after.")
