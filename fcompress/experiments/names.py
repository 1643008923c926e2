"""What recipes can ask for: measures with the settings they take, and drawings.

Names only, so that `fcompress recipe list` need not wait for torch; `trials` and `figures` hold
what they stand for.
"""

MEASURES: dict[str, tuple[str, ...]] = {
    "analyze": (
        "examples",
        "by_layer",
        "layer_examples",
        "unit",
        "steps",
        "orders",
        "layers",
        "redundancy_layers",
    ),
    "shrunk": (
        "tolerances",
        "method",
        "objective",
        "distill",
        "distill_seconds",
        "polish",
        "polish_seconds",
        "calibration",
        "confidence",
    ),
    "visualise": ("units", "steps", "lr", "layers", "sheet", "examples"),
    "constructions": ("examples", "orders", "balance"),
    "responses": ("layer", "examples"),
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
