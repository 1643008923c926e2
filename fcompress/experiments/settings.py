"""What each setting of a recipe must be; names in it are looked up later, by `recipe.read`."""

from dataclasses import replace

from fcompress.experiments.names import MEASURES
from fcompress.formats.schema import (
    Kind,
    as_one,
    either,
    flag,
    listed,
    named,
    number,
    one_of,
    optional,
    table,
    text,
    whole,
)
from fcompress.training.config import OPTIMIZERS, SCHEDULES

UNTRAINED = "none"
TEXTS = ("title", "source", "finding", "published", "compare", "note", "layer", "like")
_RATE = number(above=0)
_TRAIN = {
    "epochs": whole(1, 1_000_000),
    "batch_size": whole(2),
    "optimizer": one_of(OPTIMIZERS),
    "lr": as_one(either(_RATE, listed(_RATE, 1, 100)), "a number above 0, or a list of some"),
    "schedule": one_of(SCHEDULES),
    "weight_decay": number(0),
    "augment": flag(),
}
_WIDTH = number(above=0)
# What each key of a recipe, of a scale and of a curve holds; names are looked up later.
_OF_CURVES: dict[str, Kind] = {
    "family": text(),
    "args": named(either(number(), flag(), text(), optional(listed(whole(1), 2, 2)))),
    "data": replace(text(), said="a data spec"),
    "random_labels": flag(),
    "train": replace(
        either(one_of((UNTRAINED,)), table(_TRAIN, whole=False)), said='a table, or "none"'
    ),
    "widths": as_one(either(_WIDTH, listed(_WIDTH, 1, 100)), "a list of factors above 0"),
    "seeds": whole(1, 10_000),
    "measure": table(
        {name: table(settings, whole=False) for name, settings in MEASURES.items()}, whole=False
    ),
}
SETTINGS: dict[str, Kind] = {
    **dict.fromkeys(TEXTS, text()),
    **_OF_CURVES,
    "draw": replace(listed(text(), most=100), said="a list of names"),
    "only": replace(listed(text(), 1), said="a list of curves"),
    "curves": replace(named(table(_OF_CURVES, whole=False), 1000), said="a table of tables"),
}
