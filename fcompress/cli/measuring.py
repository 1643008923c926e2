"""What `analyze` and `gain` have in common: options, words, progress bars."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from fcompress.arguments.numbers import MOST_BATCH, MOST_STEPS
from fcompress.cli.boundary import SEED, DataSpec, Real, Whole
from fcompress.cli.output import (
    DEVICE_OPTION,
    data_root_option,
    json_option,
    plot_option,
)
from fcompress.cli.reports.options import report_option
from fcompress.measure.options import BATCH_SIZE, LAYER_EXAMPLES, STEPS
from fcompress.report.measured import UNITS

TOLERANCE = Real(0, 1, max_open=True)
_Command = TypeVar("_Command", bound=Callable[..., Any])

_OPTIONS = (
    click.option(
        "--data", type=DataSpec(), metavar="SPEC", help="Data to measure on (`fcompress data`)."
    ),
    data_root_option,
    click.option(
        "--unit",
        type=click.Choice(list(UNITS)),
        default="element",
        show_default=True,
        help="What is ablated: single elements of feature maps, or whole maps.",
    ),
    click.option(
        "--examples",
        type=Whole(1),
        metavar="N",
        help="Measure on the first N examples of the test split.  [default: all]",
    ),
    click.option(
        "--layer-examples",
        type=Whole(1),
        metavar="N",
        default=LAYER_EXAMPLES,
        show_default=True,
        help="Measure the ablation curves of single layers on the first N examples.",
    ),
    click.option(
        "--layers/--no-layers",
        "by_layer",
        default=True,
        help="Measure each layer's own ablation curve.  [default: layers]",
    ),
    click.option(
        "--steps",
        type=Whole(1, MOST_STEPS),
        metavar="N",
        default=STEPS,
        show_default=True,
        help="Steps from nothing to everything ablated.",
    ),
    click.option(
        "--seed", type=SEED, default=0, show_default=True, help="Random seed of the orders."
    ),
    DEVICE_OPTION,
    click.option(
        "--batch-size",
        type=Whole(1, MOST_BATCH),
        default=BATCH_SIZE,
        show_default=True,
        metavar="N",
        help="Examples at a time; fewer take less memory.",
    ),
    json_option,
    plot_option("the curves"),
    report_option,
)


def measuring_options(command: _Command) -> _Command:
    """The options of both commands."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command
