"""Options that would have no effect are refused, all by one table.

An option that does nothing is a misunderstanding: who gives it believes that it does something.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import click
from click.core import ParameterSource


@dataclass(frozen=True)
class Rule:
    """When an option has an effect.

    Attributes:
        works: Of the values of all parameters, whether it has one.
        why: What it needs, in words.
    """

    works: Callable[[Mapping[str, Any]], bool]
    why: str


def _distils(given: Mapping[str, Any]) -> bool:
    return bool(given.get("distill") or given.get("old_distill"))


_DISTILS = Rule(_distils, "it needs --distill")


def _reads_public_data(given: Mapping[str, Any]) -> bool:
    spec = given.get("data") or given.get("spec")
    return spec is None or str(spec).partition(":")[0].partition(",")[0] not in _NOT_LOOKED_FOR


_NOT_LOOKED_FOR = ("digits", "gaussian", "folder", "file", "text")


def _limits_latency(given: Mapping[str, Any]) -> bool:
    share = given.get("ratio") is not None and given.get("objective") == "latency"
    return share or given.get("max_latency") is not None


_ROOT = Rule(
    _reads_public_data,
    "it is for datasets that are looked for; this one is embedded, made, or named by its own path",
)
_LAYERS = Rule(lambda given: bool(given["by_layer"]), "--no-layers measures no layer by itself")
_SPEC = Rule(lambda given: given.get("spec") is not None, "it needs a SPEC")
_COMPARED = Rule(lambda given: False, "it ranks units and distils, and answers are compared only")
_TIMED = Rule(lambda given: False, "networks are timed, whatever their answers are")
_ANSWERS = "answer within cosine same divergence gallery score iou threshold pad groups output"
# Command -> parameter -> when it has an effect.
RULES: Mapping[str, Mapping[str, Rule]] = {
    "shrink": {
        "distill_seconds": _DISTILS,
        "distill_effort": _DISTILS,
        "distill_data": _DISTILS,
        "divergence": Rule(
            lambda given: given["method"] != "factor" or _distils(given),
            "--method factor does not weigh answers; it needs another method, or --distill",
        ),
        "exports": Rule(
            lambda given: given.get("quantize") is None, "--quantize writes the one file itself"
        ),
        "no_examples": Rule(lambda given: given.get("page") is not None, "it needs --report"),
        "batch": Rule(_limits_latency, "it needs --max-latency, or --ratio of latency"),
        "data_root": _ROOT,
    },
    "compare": {"distill_effort": _DISTILS, "distill_data": _DISTILS, "data_root": _ROOT},
    "export": {
        "tol": Rule(
            lambda given: bool(given.get("original") or given.get("old_original")),
            "it needs --original, whose labels are compared",
        ),
        "divergence": _COMPARED,
        "data_root": _ROOT,
    },
    "analyze": {"layer_examples": _LAYERS, "divergence": _COMPARED, "data_root": _ROOT},
    "gain": {"layer_examples": _LAYERS, "data_root": _ROOT},
    "verify": {"divergence": _COMPARED, "data_root": _ROOT},
    "bench": {**dict.fromkeys(_ANSWERS.split(), _TIMED), "data_root": _ROOT},
    "train": {"data_root": _ROOT},
    "data": {"data_root": _ROOT, "data_seed": _SPEC, "download": _SPEC},
}
# Options that say how a network of the user's own is built, or sees its data.
BUILDING = ("arch", "arch_args", "weights_key")
SEEING = ("transform", "mean", "std", "size", "input_shape")


def check(ctx: click.Context, command: str) -> None:
    """Refuse options of a command that its other options make idle.

    Raises:
        click.UsageError: There is one.
    """
    for name, rule in RULES.get(command, {}).items():
        for parameter in ctx.command.params:
            if str(parameter.name).removeprefix("old_") != name:
                continue
            if given(ctx, str(parameter.name)) and not rule.works(ctx.params):
                raise click.UsageError(f"{parameter.opts[0]} has no effect here: {rule.why}")


def given(ctx: click.Context, name: str) -> bool:
    """Whether the user gave a parameter."""
    return ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE


def check_networks(options: Mapping[str, Any], foreign: bool, own: bool) -> None:
    """Refuse options about networks of other people where there are none.

    Args:
        options: Values of the options of a network, those that were not given None.
        foreign: Whether one of the networks is not of fcompress.
        own: Whether one of them is, and so says how all of them see the data.

    Raises:
        click.UsageError: There is one.
    """
    said = [name for name in BUILDING if options.get(name) is not None and not foreign]
    said += [name for name in SEEING if options.get(name) is not None and own]
    if said:
        option = f"--{said[0].replace('_', '-')}"
        why = (
            "a file of fcompress says itself how its network is built"
            if said[0] in BUILDING
            else "a network of fcompress remembers how it sees its data"
        )
        raise click.UsageError(f"{option} has no effect here: {why}")
