"""`fcompress train`: train a network and keep it in a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fcompress.arguments.numbers import (
    MOST_BATCH,
    MOST_EPOCHS,
    MOST_LAYERS,
    MOST_UNITS,
    MOST_WIDTH,
    real_text,
    whole_text,
)
from fcompress.cli.boundary import SEED, Command, DataSpec, Device, OutputFile, Real, Whole
from fcompress.cli.boundary.files import DEVICES
from fcompress.cli.network_options import GROUPS_OPTION
from fcompress.cli.output import (
    data_root_option,
    json_option,
    stdout,
    tell,
    write_json,
)
from fcompress.showing.display import display
from fcompress.training.config import OPTIMIZERS, SCHEDULES, default_config

if TYPE_CHECKING:
    from fcompress.training.loop import TrainResult


def _arguments(
    context: click.Context, parameter: click.Parameter, values: Sequence[str]
) -> dict[str, Any]:
    """Read `key=value` pairs; numbers, true, false and none become what they say."""
    words = {"true": True, "false": False, "none": None}
    pairs: dict[str, Any] = {}
    for text in values:
        key, equals, value = text.partition("=")
        if not (key and equals):
            raise click.BadParameter(f"{text!r}: expected KEY=VALUE, as in hidden=1024")
        pairs[key.replace("-", "_")] = words[value] if value in words else _number(value)
    return pairs


def _number(text: str) -> int | float | str:
    for read in (whole_text, real_text):
        try:
            return read(text)
        except ValueError:
            continue
    return text


@click.command("train", cls=Command)
@click.argument("family")
@click.option(
    "--data",
    "spec",
    required=True,
    type=DataSpec(),
    metavar="SPEC",
    help="Data (`fcompress data`).",
)
@click.option(
    "--out",
    required=True,
    type=OutputFile("network", beside=(".resume",)),
    metavar="FILE",
    help="Where the network goes, after every epoch.",
)
@click.option(
    "--width", type=Real(0, MOST_WIDTH, min_open=True), help="Width factor.  [default: 1]"
)
@click.option(
    "--hidden",
    type=Whole(1, MOST_UNITS),
    help="mlp: units of each hidden layer at 1x.  [default: 128]",
)
@click.option("--depth", type=Whole(1, MOST_LAYERS), help="mlp: hidden layers.  [default: 1]")
@click.option("--init", help="Initializer of the weights (`fcompress models`).")
@click.option(
    "--dropout", type=Real(0, 1, max_open=True), help="Share of units that training drops."
)
@click.option(
    "--arg",
    "arguments",
    multiple=True,
    callback=_arguments,
    metavar="KEY=VALUE",
    help="Any other argument of the family (`fcompress models`); may be repeated.",
)
@click.option(
    "--epochs",
    type=Whole(1, MOST_EPOCHS),
    default=4,
    show_default=True,
    help="Passes over the data.",
)
@click.option(
    "--batch-size",
    type=Whole(2, MOST_BATCH),
    default=128,
    show_default=True,
    help="Examples a step.",
)
@click.option("--optimizer", type=click.Choice(OPTIMIZERS), help="[default: by family]")
@click.option(
    "--lr",
    type=Real(0, min_open=True),
    help="Learning rate.  [default: by family and optimizer]",
)
@click.option(
    "--schedule",
    type=click.Choice(SCHEDULES),
    default="cosine",
    show_default=True,
    help="Schedule of the learning rate; decay: x0.95 an epoch.",
)
@click.option("--weight-decay", type=Real(0), help="[default: by family]")
@click.option("--augment", is_flag=True, help="Crop and mirror images at random.")
@click.option("--random-labels", type=SEED, metavar="SEED", help="Draw all labels at random, once.")
@click.option(
    "--seed",
    type=SEED,
    default=0,
    show_default=True,
    help="Random seed of weights, shuffling and dropout.",
)
@click.option(
    "--data-seed",
    type=SEED,
    default=0,
    show_default=True,
    help="Random seed of how the data is split.",
)
@GROUPS_OPTION
@data_root_option
@click.option("--download", is_flag=True, help="Fetch a public dataset that is not here.")
@click.option(
    "--device",
    type=Device(),
    metavar=DEVICES,
    default="auto",
    show_default=True,
    help="Where to train.",
)
@click.option("--resume", is_flag=True, help="Go on where an interrupted run stopped.")
@json_option
def train_command(
    family: str,
    spec: str,
    out: Path,
    arguments: dict[str, Any],
    random_labels: int | None,
    data_seed: int,
    groups: str | None,
    data_root: Path | None,
    download: bool,
    resume: bool,
    json_file: Path | None,
    **options: Any,
) -> None:
    r"""Train a network of FAMILY (`fcompress models`) and keep it in a file.

    The shape of its input and the number of labels are those of the data. The file remembers the
    data, so that the other commands need not be told. A run that was interrupted goes on with the
    same command and --resume.

    \b
    Example:
      fcompress train alexnet --data fashion-mnist --width 0.5 --epochs 4 --out alexnet.pt
    """
    chosen = {key: value for key, value in options.items() if value is not None}
    for key in ("width", "hidden", "depth", "init", "dropout"):
        if key in chosen:
            arguments[key] = chosen.pop(key)
    config = default_config(family, **chosen)

    from fcompress.data import load_data
    from fcompress.models import build
    from fcompress.training.loop import fitting, train

    splits = load_data(
        spec,
        root=data_root,
        seed=data_seed,
        random_labels=random_labels,
        download=download,
        groups=groups,
    )
    arguments = fitting(family, splits.info, arguments)
    network = build(family, seed=config.seed, **arguments)
    try:
        with display(log=True) as report:
            result = train(network, splits, config, out=out, resume=resume, progress=report)
    except KeyboardInterrupt:
        if out.with_name(f"{out.name}.resume").exists():
            tell("stopped; the same command with --resume goes on")
        raise
    params = sum(parameter.numel() for parameter in network.parameters())
    record = {"family": family, "args": network.spec.args, "params": params, **result.to_dict()}
    if write_json(json_file, record):
        _show_result(family, params, result)


def _show_result(family: str, params: int, result: TrainResult) -> None:
    seconds = sum(record.seconds for record in result.epochs)
    last = result.epochs[-1]
    test = "" if last.test_accuracy is None else f", test accuracy {last.test_accuracy:.2%}"
    stdout().print(
        f"{family}, {params:,} parameters, trained on {result.data['spec']} for "
        f"{len(result.epochs)} epochs in {seconds:.0f} s: training accuracy "
        f"{last.train_accuracy:.2%}{test}\nwrote {result.path}",
        soft_wrap=True,
    )
