"""What recipes can ask for: measures with the settings they take, and drawings.

Names only, so that `fcompress recipe list` need not wait for torch; `trials` and `figures` hold
what they stand for.
"""

from fcompress.compress.options import METHODS, OBJECTIVES
from fcompress.formats.schema import (
    Kind,
    flag,
    listed,
    number,
    one_of,
    optional,
    share,
    text,
    whole,
)
from fcompress.measure.options import UNITS

_EXAMPLES = optional(whole(1))
_LAYERS = optional(listed(text(least=1), 1))
MEASURES: dict[str, dict[str, Kind]] = {
    "analyze": {
        "examples": _EXAMPLES,
        "by_layer": flag(),
        "layer_examples": _EXAMPLES,
        "unit": one_of(UNITS),
        "steps": whole(1, 10_000),
        "orders": whole(1, 10_000),
        "layers": _LAYERS,
        "redundancy_layers": _LAYERS,
    },
    "shrunk": {
        "tolerances": listed(share(), 1, 100),
        "method": one_of(METHODS),
        "objective": one_of(OBJECTIVES),
        "distill": flag(),
        "distill_effort": number(above=0),
        "distill_seconds": number(above=0),
        "polish": flag(),
        "polish_seconds": number(above=0),
        "calibration": optional(whole(2)),
        "confidence": number(above=0, below=1),
    },
    "visualise": {
        "units": whole(1, 100_000),
        "steps": whole(1, 1_000_000),
        "lr": number(above=0),
        "layers": _LAYERS,
        "sheet": whole(0, 10_000),
        "examples": whole(2),
    },
    "constructions": {
        "examples": _EXAMPLES,
        "orders": whole(1, 10_000),
        "balance": number(above=0),
    },
    "responses": {"layer": text(least=1), "examples": _EXAMPLES},
}
# Settings that a measure cannot do without.
REQUIRED: dict[str, tuple[str, ...]] = {"responses": ("layer",)}
DRAWINGS: dict[str, str] = {
    "growth": "prunable and redundant units against the width, with their gains",
    "non_frivolous": "the same for all other units",
    "accuracy": "test accuracy against the width",
    "ablation": "unchanged labels against the share of ablated units, a line for each width",
    "correlations": "correlations between the units of one layer, a violin for each width",
    "responses": "the same of a layer before its nonlinearity",
    "layers": "prunable and redundant units of each layer against the width",
    "params": "trainable parameters against the width",
    "tolerances": "the gains at larger tolerances",
    "shrunk": "size and accuracy before and after `shrink` against the width",
    "images": "images of units of the narrowest and the widest networks, and how much they vary",
    "constructions": "prunable and redundant units of a network and of twice as wide equals",
}
# What a drawing shows comes from this measure; the others need none.
DRAWN_FROM: dict[str, str] = {
    **dict.fromkeys(
        ("growth", "non_frivolous", "ablation", "correlations", "layers", "tolerances"), "analyze"
    ),
    "shrunk": "shrunk",
    "images": "visualise",
    "constructions": "constructions",
    "responses": "responses",
}

# What a folder of results holds: no other file goes there under such a name.
WRITTEN = (
    "recipe.json",
    "trials",
    "scratch",
    "log.jsonl",
    "figures",
    "results.json",
    "summary.md",
    "written.json",
    ".fcompress.lock",
)
