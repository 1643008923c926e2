"""recipes/README.md from results: what was published, what came out here, the same or not.

    .venv/bin/python -m recipes.results.readme RESULTS...

Of every folder of results the page, the figures as PNG and what is needed here of results.json are
copied to recipes/results/NAME; `fcompress recipe run` makes the rest again. The table in
recipes/README.md has one line for each; where a recipe compares no gains, what to say about it
stands in recipes/results/verdicts.toml.
"""

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

from benchmarks.pictures import small_png

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
KEPT = ROOT / "recipes" / "results"
README = ROOT / "recipes" / "README.md"
TABLE = "<!-- table: recipes/results/readme.py -->", "<!-- end of the table -->"
FIGURES = "<!-- figures: recipes/results/readme.py -->", "<!-- end of the figures -->"
SHOWN = 3  # figures of a recipe
FRIVOLOUS = ("prunable", "redundant")


def keep(folder: Path) -> None:
    """Copy the page, the figures, and of results.json what the table is made of."""
    record: dict[str, Any] = json.loads((folder / "results.json").read_text())
    name, scale = record["recipe"]["name"], record["recipe"]["scale"]
    there = KEPT / name
    shutil.rmtree(there, ignore_errors=True)
    (there / "figures").mkdir(parents=True)
    shutil.copy(folder / "summary.md", there)
    for picture in sorted((folder / "figures").glob("*.png")):
        (there / "figures" / picture.name).write_bytes(small_png(picture.read_bytes()))
    asked = json.loads((folder / "recipe.json").read_text())
    kept = {
        "recipe": {key: value for key, value in record["recipe"].items() if key != "curves"},
        "compared": record.get("compared", []),
        "command": asked.get("command") or f"fcompress recipe run {name} --scale {scale}",
    }
    text = json.dumps(kept, indent=1, sort_keys=True) + "\n"
    (there / "results.json").write_text(text)


def line(record: dict[str, Any], verdicts: dict[str, Any]) -> str:
    """One experiment."""
    recipe = record["recipe"]
    name, own = recipe["name"], verdicts.get(recipe["name"], {})
    published, here, same = own.get("published", ""), own.get("here", ""), own.get("same", "")
    off = "-"
    rows = {row["quantity"]: row for row in record.get("compared", [])}
    if recipe["published"] and rows:
        published = ", ".join(f"{q} {_range(rows[q]['published'])}" for q in FRIVOLOUS)
        here = ", ".join(f"{q} {_range(rows[q]['here'])}" for q in FRIVOLOUS)
        words = {True: "yes", False: "no", None: "-"}
        said = [words[rows[q]["same"]] for q in FRIVOLOUS]
        same = (
            said[0] if said[0] == said[1] else f"{FRIVOLOUS[0]} {said[0]}, {FRIVOLOUS[1]} {said[1]}"
        )
        far = max(rows.values(), key=lambda row: row["off"] or 0.0)
        off = f"{far['off'] or 0.0:.2f} ({far['quantity'].replace('_', '-')})"
        if own.get("here"):
            here += f"; {own['here']}"
    cells = [recipe["source"], f"[{name}](results/{name}/summary.md)", recipe["scale"]]
    return "| " + " | ".join([*cells, published, here, off, same]) + " |"


def pictures(record: dict[str, Any]) -> list[str]:
    """The figures of one of the paper's own figures, with the command that made them."""
    recipe = record["recipe"]
    folder = KEPT / recipe["name"] / "figures"
    found = [name for name in recipe["draw"][:SHOWN] if (folder / f"{name}.png").exists()]
    lines = [f"### {recipe['source']}: {recipe['title']}", "", f"`{record['command']}`", ""]
    shown = [f"![{recipe['name']}, {n}](results/{recipe['name']}/figures/{n}.png)" for n in found]
    return [*lines, *(line for picture in shown for line in (picture, ""))]


def main(folders: list[str]) -> None:
    """Copy, and write the table anew for everything that is kept."""
    for folder in folders:
        keep(Path(folder))
    verdicts = tomllib.loads((KEPT / "verdicts.toml").read_text())
    records = [json.loads(path.read_text()) for path in sorted(KEPT.glob("*/results.json"))]
    records.sort(key=lambda r: (r["recipe"]["source"][:4] != "Fig.", r["recipe"]["source"]))
    table = ["| experiment | recipe | scale | published | here | off by | same conclusion? |"]
    table += ["|" + " --- |" * 7, *(line(record, verdicts) for record in records)]
    own = [r for r in records if r["recipe"]["source"].startswith("Fig.")]
    figures = [line for record in own for line in pictures(record)]
    text = README.read_text()
    for (begin, end), lines in ((TABLE, [*table, ""]), (FIGURES, figures)):
        block = "\n".join([begin, "", *lines, end])
        pattern = re.escape(begin) + ".*?" + re.escape(end)
        text = re.sub(pattern, lambda _, block=block: block, text, flags=re.S)
    README.write_text(text)


def _range(ends: list[float | None] | None) -> str:
    if ends is None or ends == [None, None]:
        return "-"
    return " to ".join(dict.fromkeys(f"{end:.2f}" for end in ends if end is not None))


if __name__ == "__main__":
    main(sys.argv[1:])
