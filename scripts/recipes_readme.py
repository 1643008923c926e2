"""recipes/README.md from results: what was published, what came out here, the same or not.

    .venv/bin/python scripts/recipes_readme.py RESULTS...

Every folder of results is copied, without its trials, to recipes/results/NAME: the page and the
figures as PNG. The table in recipes/README.md has one line for each; where a recipe compares no
gains, what to say about it stands in recipes/results/verdicts.toml.
"""

import io
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

from PIL import Image

from fcompress.experiments.spec import tomllib

ROOT = Path(__file__).parent.parent
KEPT = ROOT / "recipes" / "results"
README = ROOT / "recipes" / "README.md"
BEGIN, END = "<!-- table: scripts/recipes_readme.py -->", "<!-- end of the table -->"
FRIVOLOUS = ("prunable", "redundant")


def keep(folder: Path) -> dict[str, Any]:
    """Copy the page and the figures; returns what results.json says without the trials."""
    record: dict[str, Any] = json.loads((folder / "results.json").read_text())
    there = KEPT / record["recipe"]["name"]
    shutil.rmtree(there, ignore_errors=True)
    (there / "figures").mkdir(parents=True)
    shutil.copy(folder / "summary.md", there)
    for picture in sorted((folder / "figures").glob("*.png")):
        small = io.BytesIO()
        with Image.open(picture) as image:
            image.convert("RGB").quantize(128).save(small, "png", optimize=True)
        (there / "figures" / picture.name).write_bytes(small.getvalue())
    del record["trials"]
    text = json.dumps(record, indent=1, sort_keys=True) + "\n"
    (there / "results.json").write_text(text)
    return record


def line(record: dict[str, Any], verdicts: dict[str, Any]) -> str:
    """One experiment."""
    recipe = record["recipe"]
    name, own = recipe["name"], verdicts.get(recipe["name"], {})
    published, here, same = own.get("published", ""), own.get("here", ""), own.get("same", "")
    rows = {row["quantity"]: row for row in record.get("compared", [])}
    if recipe["published"] and rows:
        published = ", ".join(f"{q} {_range(rows[q]['published'])}" for q in FRIVOLOUS)
        here = ", ".join(f"{q} {_range(rows[q]['here'])}" for q in FRIVOLOUS)
        words = {True: "yes", False: "no", None: "-"}
        said = [words[rows[q]["same"]] for q in FRIVOLOUS]
        same = (
            said[0] if said[0] == said[1] else f"{FRIVOLOUS[0]} {said[0]}, {FRIVOLOUS[1]} {said[1]}"
        )
        if own.get("here"):
            here += f"; {own['here']}"
    cells = [recipe["source"], f"[{name}](results/{name}/summary.md)", recipe["scale"]]
    return "| " + " | ".join([*cells, published, here, same]) + " |"


def main(folders: list[str]) -> None:
    """Copy, and write the table anew for everything that is kept."""
    for folder in folders:
        keep(Path(folder))
    verdicts = tomllib.loads((KEPT / "verdicts.toml").read_text())
    records = [json.loads(path.read_text()) for path in sorted(KEPT.glob("*/results.json"))]
    records.sort(key=lambda r: (r["recipe"]["source"][:4] != "Fig.", r["recipe"]["source"]))
    table = ["| experiment | recipe | scale | published | here | same conclusion? |"]
    table += ["|" + " --- |" * 6, *(line(record, verdicts) for record in records)]
    text = README.read_text()
    pattern = re.escape(BEGIN) + ".*?" + re.escape(END)
    block = "\n".join([BEGIN, "", *table, "", END])
    README.write_text(re.sub(pattern, lambda _: block, text, flags=re.S))


def _range(ends: list[float | None] | None) -> str:
    if ends is None or ends == [None, None]:
        return "-"
    return " to ".join(dict.fromkeys(f"{end:.2f}" for end in ends if end is not None))


if __name__ == "__main__":
    main(sys.argv[1:])
