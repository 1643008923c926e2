"""`fcompress verify`: compare the answers of two networks."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import RenderableType
from rich.text import Text

from fcompress.cli.boundary import Command
from fcompress.cli.network_options import NetworkOptions, network_options
from fcompress.cli.output import (
    CONFIDENCE_OPTION,
    DATA,
    DEVICE_OPTION,
    FILE,
    STOCHASTIC_OPTION,
    data_root_option,
    json_option,
    place,
    stdout,
    tell,
    write_json,
)
from fcompress.errors import ResultWarning
from fcompress.forward.answers.asked import CONTINUOUS
from fcompress.report.labels import rounded_up
from fcompress.report.screens import label_screen, show
from fcompress.report.text import agreement_sentence

if TYPE_CHECKING:
    from torch import nn

    from fcompress.certify.agreement import AgreementResult
    from fcompress.data import Split, Splits


@click.command("verify", cls=Command)
@click.argument("original", type=FILE)
@click.argument("compressed", type=FILE)
@click.option(
    "--split",
    type=click.Choice(["test", "certification", "search", "calibration"]),
    help="Split to compare on.  [default: test, else certification]",
)
@json_option
@CONFIDENCE_OPTION
@STOCHASTIC_OPTION
@DATA
@data_root_option
@network_options
@DEVICE_OPTION
def verify_command(
    original: Path,
    compressed: Path,
    split: str | None,
    json_file: Path | None,
    confidence: float,
    stochastic: bool,
    data: str | None,
    data_root: Path | None,
    how: NetworkOptions,
    device: str,
) -> None:
    r"""Compare the answers of two networks.

    ORIGINAL and COMPRESSED are files of fcompress, weights for the architecture of --arch, ONNX
    (also quantised), or with --trust-pickle .pt2 programs. The
    bound is exact as long as nothing was chosen by looking at the examples: `fcompress shrink`
    never touches the test split.

    \b
    Example:
      fcompress verify model.pt small.pt --json agreement.json
    """
    from fcompress.certify.agreement import verify
    from fcompress.cli.opening import open_data, open_shipped
    from fcompress.forward.callables import Called

    before, after = open_shipped(original, how), open_shipped(compressed, how)
    # Networks know more of their data than programs do.
    known = sorted((before, after), key=lambda network: isinstance(network, Called))
    splits = open_data(known, original, how, data, data_root, "all", say=tell)
    chosen = _choose(splits, split)
    place(before, device)
    place(after, device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResultWarning)  # shown with the result
        result = verify(before, after, chosen, confidence=confidence, stochastic=stochastic)
    own = own_certificate(before, after)
    record = {**result.to_dict(), "split": chosen.name, "data": splits.info, "certificate": own}
    if write_json(json_file, record):
        show_agreement(result, chosen.name)
        if own not in (None, "holds"):
            bound = rounded_up(result.upper_bound)
            stdout().print(
                f"The certificate in {compressed} is {own}; measured afresh: at most {bound}.",
                soft_wrap=True,
                markup=False,
            )


def own_certificate(original: nn.Module, compressed: nn.Module) -> str | None:
    """What the certificate in a compressed network's file is worth for these two networks.

    Returns:
        "holds", a reason why it says nothing, or None where there is none.
    """
    from fcompress.forward.callables import Called
    from fcompress.models.fingerprint import certified_weights, fingerprint, last_shrink
    from fcompress.models.provenance import origin_of

    history = origin_of(compressed)["history"]
    last = last_shrink(history)
    if last is None:
        return None
    entry = history[last]
    if entry.get("void") is not None:
        return f"void: {entry['void']}"
    if certified_weights(entry) is None:
        return "not tied to weights (written by an earlier version)"
    about = certified_weights(entry, "original")
    if not isinstance(original, Called) and about not in (None, fingerprint(original)):
        return "about another original network than this one"
    return "holds"


def _choose(splits: Splits, name: str | None) -> Split:
    if name is not None:
        return splits.need(name)
    return splits.test if splits.test is not None else splits.need("certification")


def show_agreement(result: AgreementResult, split: str) -> None:
    """Print how far two networks agree."""
    show(stdout(), _lines_of(result, split))


def _lines_of(result: AgreementResult, split: str) -> Iterator[RenderableType]:
    yield agreement_sentence(result, f"{split} examples")
    for warning in result.warnings:
        yield Text(f"Warning: {warning}.", style="yellow")
    mean, most = result.mean_difference, result.largest_difference
    what = "Outputs" if result.labels in (*CONTINUOUS, "pairs") else "Logits"
    yield f"{what} differ by {mean:.4g} on average, {most:.4g} at most."
    if result.accuracy is not None:
        before, after = result.accuracy["before"], result.accuracy["after"]
        yield f"Accuracy: {before:.2%} before, {after:.2%} after."
    yield from label_screen(result)
