"""Recipes: short files that say which networks to train, what to measure and what to draw.

A recipe is a TOML file. What stands at its top holds for all scales; the tables [smoke], [small]
and [paper] replace or add to it, and `like = "NAME"` begins with what another recipe says:

    title = "AlexNets by initializer"
    source = "Fig. 4c"
    finding = "what the paper concludes"
    published = "fig4c_initializers_normal"      a key of published_gains.json
    draw = ["growth", "accuracy"]                `DRAWINGS`
    family = "alexnet"
    measure.analyze = {}                         `MEASURES` and their settings

    [curves.He]                                  one curve of the figures
    args = { init = "he_normal" }                what it changes: any of `CURVE_KEYS`

    [paper]
    data = "cifar10,crop=28,holdout=0"
    widths = [0.25, 0.5, 1, 2, 4]
    seeds = 3
    train = { epochs = 500, lr = 0.01, schedule = "decay" }

`train = "none"` leaves the networks as they were initialised; of a list of learning rates the one
with the best test accuracy is taken for each width; `{seed}` in `data` is the number of the
network; `only` lists the curves that a scale has, where it has not all.
Nothing here needs torch.
"""

import copy
import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from fcompress.errors import FcompressError, first_line, shown, suggest
from fcompress.experiments.names import DRAWINGS, DRAWN_FROM, MEASURES, REQUIRED
from fcompress.experiments.settings import SETTINGS, TEXTS, UNTRAINED
from fcompress.formats.places import real_path
from fcompress.formats.schema import problem
from fcompress.training.config import TrainConfig

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SCALES = ("smoke", "small", "paper")
CURVE_KEYS = ("family", "args", "data", "random_labels", "train", "widths", "seeds", "measure")
COMPARED = ("curves", "layers")
_KEYS = (*TEXTS, "draw", "only", "curves", *CURVE_KEYS)
_TRAIN_KEYS = tuple(name for name in asdict(TrainConfig()) if name not in ("seed", "device"))
# Far above any real recipe; keeps a hostile one from costing hours, or the memory.
_MOST_BYTES = 2**20
_DEEPEST = 20
_FILE_NAME = re.compile(r"\w[\w .-]*")
_MOST_TRIALS = 100_000


@dataclass(frozen=True)
class Curve:
    """Networks that differ in their width only.

    Attributes:
        name: In legends.
        family: In the registry.
        args: Of the family, the width apart.
        data: Spec of the data; `{seed}` is replaced by the number of the network.
        random_labels: Whether all labels are drawn at random.
        train: Settings of `TrainConfig`; `lr` may be a list. None: networks stay as initialised.
        widths: Width factors, narrowest first.
        seeds: Networks of each width.
        measure: Name of a measure -> its settings.
    """

    name: str
    family: str
    args: dict[str, Any]
    data: str
    random_labels: bool
    train: dict[str, Any] | None
    widths: tuple[float, ...]
    seeds: int
    measure: dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Recipe:
    """One experiment at one scale.

    Attributes:
        name: Of its file.
        scale: One of `SCALES`.
        title: In a few words.
        source: Figure or section of the paper.
        finding: What the paper concludes.
        published: Key of the published gains, if the paper's figure has some.
        compare: Whose smallest and largest gain they are: of "curves" or of "layers".
        draw: Names of the figures.
        layer: Layer of the figures that show one layer only.
        note: How this scale differs from the paper; shown on every figure.
        curves: In the order of the legend.
    """

    name: str
    scale: str
    title: str
    source: str
    finding: str
    published: str | None
    compare: str
    draw: tuple[str, ...]
    layer: str | None
    note: str
    curves: tuple[Curve, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; `recipe_of` reads them back."""
        return asdict(self)


def recipe_of(record: Mapping[str, Any]) -> Recipe:
    """The recipe that `Recipe.to_dict` wrote."""
    curves = tuple(Curve(**{**c, "widths": tuple(c["widths"])}) for c in record["curves"])
    return Recipe(**{**record, "draw": tuple(record["draw"]), "curves": curves})


def folder() -> Path:
    """Where the recipes of the project are: in the built package, or at the top of a source tree.

    Raises:
        FcompressError: There are none.
    """
    # The build puts the folder of the source tree into the package (pyproject.toml). A source
    # tree, installed as editable or not at all, has it beside the package.
    package = resources.files("fcompress")
    for place in (package / "experiments" / "recipes", package / ".." / "recipes"):
        path = real_path(str(place))
        if any(path.glob("*.toml")):
            return path
    raise FcompressError(
        "this installation of fcompress has no recipes; name a recipe file of your own"
    )


def published_gains() -> dict[str, dict[str, list[float | None]]]:
    """The published gains of every figure, as the file beside the recipes has them."""
    path = folder() / "published_gains.json"
    try:
        figures: dict[str, dict[str, list[float | None]]] = json.loads(path.read_text())["figures"]
    except (OSError, ValueError, KeyError) as error:
        raise FcompressError(f"cannot read the published gains in {path}: {error}") from error
    return figures


def known() -> dict[str, Path]:
    """The file of every recipe of the project by name."""
    return {path.stem: path for path in sorted(folder().glob("*.toml"))}


def find(name: str) -> Path:
    """The file of a recipe: one of the project by its name, any other by its path."""
    if name.endswith(".toml"):
        path = Path(name)
        if not path.is_file():
            raise FcompressError(f"there is no recipe file {name}")
        return path
    recipes = known()
    if name not in recipes:
        raise FcompressError(f"there is no recipe {suggest(name, recipes)}")
    return recipes[name]


def read(name: str, scale: str, changes: Sequence[str] = ()) -> Recipe:
    """Read a recipe at a scale.

    Args:
        name: Of a recipe of the project, or the path of a file that ends in .toml.
        scale: One of `SCALES`.
        changes: `KEY=VALUE` pairs on top: a dotted key and a TOML value (bare words are texts),
            as in `train.epochs=2` or `curves.He.widths=[1, 2]`.

    Raises:
        FcompressError: There is no such recipe or scale, or something in it has no meaning.
    """
    path = find(name)
    content = _content(path, ())
    scales = [s for s in SCALES if s in content]
    if scale not in scales:
        raise FcompressError(
            f"recipe {path.stem} has no scale {scale}; it has: {', '.join(scales) or 'none'}"
        )
    chosen = content[scale]
    merged = _merged({k: v for k, v in content.items() if k not in SCALES}, chosen)
    for change in changes:
        merged = _merged(merged, _change(change, path.stem, _curves(path.stem, merged)))
    return _resolved(path.stem, scale, merged)


def summaries() -> Iterable[tuple[str, str, str, tuple[str, ...]]]:
    """Name, title, source and scales of every recipe of the project."""
    for name, path in known().items():
        content = _content(path, ())
        scales = tuple(s for s in SCALES if s in content)
        yield name, str(content.get("title", "")), str(content.get("source", "")), scales


def _content(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    """What a file says, on top of the recipe that it is like."""
    if path in seen:
        raise FcompressError(f"{path}: it is like itself, by way of {seen[-1].stem}")
    try:
        with path.open("rb") as file:
            written = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise FcompressError(f"cannot read {path}: {error.strerror}") from error
    if len(written) > _MOST_BYTES:
        raise FcompressError(f"{path} is longer than {_MOST_BYTES:,} bytes; no recipe is")
    try:
        content = _parsed(written.decode())
    except ValueError as error:
        raise FcompressError(f"{path} is no TOML file: {first_line(error)}") from error
    for where, part in [("", content), *((s, content[s]) for s in SCALES if s in content)]:
        if not isinstance(part, dict):
            raise FcompressError(f"{path}: [{where}] is no table")
        _check_keys(path.stem, where, part, (*_KEYS, *SCALES) if not where else _KEYS)
        _check_kinds(path.stem, where, part)
    like = content.pop("like", None)
    if like is None:
        return content
    if not _FILE_NAME.fullmatch(like):
        raise FcompressError(
            f"recipe {path.stem}: like = {shown(like)}; expected the name of a recipe, of the "
            "project or in the same folder"
        )
    beside = path.with_name(f"{like}.toml")
    base = _content(beside if beside.is_file() else find(like), (*seen, path))
    if "curves" in content:
        base.pop("curves", None)  # other curves, not more of them
        for scale in SCALES:
            base.get(scale, {}).pop("curves", None)
    return _merged(base, content)


def _parsed(text: str) -> dict[str, Any]:
    """What a TOML text says.

    Raises:
        ValueError: It is no TOML, or nests too deep.
    """
    try:
        content = tomllib.loads(text)
    except RecursionError:
        raise ValueError(f"it nests deeper than {_DEEPEST}") from None
    left: list[tuple[Any, int]] = [(content, 0)]
    while left:
        value, depth = left.pop()
        if depth > _DEEPEST:
            raise ValueError(f"it nests deeper than {_DEEPEST}")
        if isinstance(value, dict | list):
            parts = value.values() if isinstance(value, dict) else value
            left += [(part, depth + 1) for part in parts]
    return content


def _check_kinds(name: str, where: str, content: Mapping[str, Any]) -> None:
    """See that every setting is of its kind and within its range.

    Raises:
        FcompressError: One is not; names it and says what was expected.
    """
    for key, value in content.items():
        if key in SETTINGS:
            found = problem(value, SETTINGS[key], key)
            if found is not None:
                place = f" in [{where}]" if where else ""
                raise FcompressError(f"recipe {name}{place}: {found}")


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Tables within tables: what stands above wins, key by key."""
    merged = copy.deepcopy(dict(below))
    for key, value in above.items():
        if isinstance(value, Mapping) and isinstance(merged.get(key), dict):
            merged[key] = _merged(merged[key], value)
        else:
            merged[key] = copy.deepcopy(value)
    return merged


def _change(text: str, name: str, curves: Mapping[str, Any]) -> dict[str, Any]:
    """The table that `a.b=value` stands for."""
    for place in (i for i, character in enumerate(text) if character == "="):
        parts = _key(text[:place])
        if parts:  # else the sign stands within a quoted name
            break
    else:
        raise FcompressError(
            f"{text!r}: expected KEY=VALUE, as in train.epochs=2; a name with spaces in quotes, as "
            'in curves."a b".seeds=2'
        )
    try:
        read = _parsed(f"value = {text[place + 1 :]}")["value"]
    except ValueError:
        read = text[place + 1 :].strip()
    _check_keys(name, "", {parts[0]: None}, _KEYS)
    if parts[0] == "curves" and len(parts) > 1 and parts[1] not in curves:
        raise FcompressError(f"recipe {name}: no curve {suggest(parts[1], curves)}")
    if parts[0] in CURVE_KEYS and all(_says(own, parts) for own in curves.values()):
        key = ".".join(parts)
        raise FcompressError(
            f"recipe {name}: each curve has a {key} of its own; change curves.NAME.{key} instead"
        )
    for part in reversed(parts):
        read = {part: read}
    return dict(read)


def _says(table: Any, parts: Sequence[str]) -> bool:
    """Whether a table holds a value at a dotted key."""
    for part in parts:
        if not isinstance(table, Mapping) or part not in table:
            return False
        table = table[part]
    return True


def _key(text: str) -> list[str]:
    """The parts of a dotted TOML key; none if it is not one."""
    try:
        found: Any = _parsed(f"{text.strip()} = 0")
    except ValueError:
        return []
    parts = []
    while isinstance(found, dict) and len(found) == 1:
        ((part, found),) = found.items()
        parts.append(part)
    return parts


def _check_keys(name: str, where: str, table: Iterable[str], allowed: Iterable[str]) -> None:
    for key in table:
        if key not in allowed:
            place = f" in [{where}]" if where else ""
            raise FcompressError(f"recipe {name}{place}: no key {suggest(key, allowed)}")


def _resolved(name: str, scale: str, table: Mapping[str, Any]) -> Recipe:
    """Check everything and fill in what every curve inherits."""
    _check_kinds(name, "", table)
    if table.get("compare", COMPARED[0]) not in COMPARED:
        raise FcompressError(
            f"recipe {name}: compare = {table['compare']!r}; expected one of {', '.join(COMPARED)}"
        )
    drawings = table.get("draw", [])
    for drawing in drawings:
        if drawing not in DRAWINGS:
            raise FcompressError(f"recipe {name}: no drawing {suggest(drawing, DRAWINGS)}")
    published = table.get("published")
    if published and published not in published_gains():
        raise FcompressError(
            f"recipe {name}: no published gains {suggest(published, published_gains())}"
        )
    curves = _curves(name, table)
    only = table.get("only", list(curves))
    for curve in only:
        if curve not in curves:
            raise FcompressError(f"recipe {name}: no curve {suggest(curve, curves)}")
    shared = {key: table[key] for key in CURVE_KEYS if key in table}
    found = tuple(
        _curve(f"{name}, curve {c}", c, shared, own) for c, own in curves.items() if c in only
    )
    count = sum(len(c.widths) * c.seeds * len(_rates(c.train)) for c in found)
    if count > _MOST_TRIALS:
        raise FcompressError(
            f"recipe {name}: {count:,} networks, more than {_MOST_TRIALS:,}; take fewer seeds, "
            "widths or learning rates"
        )
    for drawing in drawings:
        measure = DRAWN_FROM.get(drawing)
        if measure is not None and not all(measure in curve.measure for curve in found):
            raise FcompressError(
                f"recipe {name}: the drawing {drawing} needs measure.{measure} of every curve"
            )
    return Recipe(
        name=name,
        scale=scale,
        title=table.get("title", name),
        source=table.get("source", ""),
        finding=table.get("finding", ""),
        published=published or None,
        compare=table.get("compare", COMPARED[0]),
        draw=tuple(drawings),
        layer=table.get("layer") or None,
        note=table.get("note", ""),
        curves=found,
    )


def _curves(name: str, table: Mapping[str, Any]) -> Mapping[str, Any]:
    """Name -> what a curve changes; one that changes nothing for a recipe without any."""
    curves = table.get("curves") or {str(table.get("family", name)): {}}
    assert isinstance(curves, Mapping)
    return curves


def _curve(where: str, name: str, shared: Mapping[str, Any], own: Any) -> Curve:
    _check_keys(where, "", own, CURVE_KEYS)
    if own.get("train") == UNTRAINED or (shared.get("train") == UNTRAINED and "train" not in own):
        shared, own = {**shared, "train": {}}, {**own, "train": {}}
        trained = False
    else:
        trained = True
    table = _merged(shared, own)
    for key, said in (
        ("family", "the name of a family"),
        ("data", "a data spec"),
        ("measure", "a table"),
    ):
        if key not in table:
            raise FcompressError(f"recipe {where}: {key} is missing; expected {said}")
    train = dict(table.get("train", {}))
    _check_keys(where, "train", train, _TRAIN_KEYS)
    _check_training(where, train)
    measures = {}
    for measure, settings in table["measure"].items():
        if measure not in MEASURES:
            raise FcompressError(f"recipe {where}: no measure {suggest(measure, MEASURES)}")
        _check_keys(where, f"measure.{measure}", settings, MEASURES[measure])
        for key in REQUIRED.get(measure, ()):
            if key not in settings:
                raise FcompressError(f"recipe {where}: measure.{measure}: {key} is missing")
        measures[measure] = dict(settings)
    return Curve(
        name=name,
        family=table["family"],
        args=dict(table.get("args", {})),
        data=table["data"],
        random_labels=table.get("random_labels", False),
        train=train if trained else None,
        widths=_widths(table.get("widths", [1])),
        seeds=table.get("seeds", 1),
        measure=measures,
    )


def _check_training(where: str, train: Mapping[str, Any]) -> None:
    for rate in _rates(train):
        try:
            TrainConfig(**{**train, "lr": rate})
        except FcompressError as error:
            raise FcompressError(f"recipe {where}: train: {error}") from error


def _rates(train: Mapping[str, Any] | None) -> list[float]:
    """The learning rates to choose from; one for networks that are not trained."""
    rates = (train or {}).get("lr", TrainConfig.lr)
    return rates if isinstance(rates, list) else [rates]


def _widths(widths: float | Sequence[float]) -> tuple[float, ...]:
    given = [widths] if isinstance(widths, int | float) else widths
    return tuple(sorted({float(width) for width in given}))
