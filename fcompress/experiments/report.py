"""The report of a recipe's results: figures, all numbers as JSON, a page of text."""

import json
from functools import partial
from pathlib import Path
from typing import BinaryIO

from fcompress.experiments.figures import DRAWINGS, draw, files
from fcompress.experiments.results import Results, write_json
from fcompress.experiments.summary import summary
from fcompress.experiments.tables import tables
from fcompress.files import make_folder, write_atomic


def write(results: Results, out: Path) -> None:
    """Write figures/, results.json and summary.md into the folder of the results.

    Args:
        results: Finished or not.
        out: Their folder.

    Raises:
        FcompressError: The folder cannot be written to.
    """
    folder = out / "figures"
    make_folder(folder)
    names = []
    for name, figure in draw(results):
        names.append(name)
        for kind, content in files(figure).items():
            write_atomic(folder / f"{name}.{kind}", partial(_put, content))
    for path in folder.iterdir():
        if path.stem in DRAWINGS and path.stem not in names:
            path.unlink()  # of another time: it shows what these results do not
    record = {
        "recipe": results.recipe.to_dict(),
        **tables(results),
        "trials": [
            {
                "curve": t.curve,
                "width": t.width,
                "seed": t.seed,
                "id": t.id,
                **results.records[t.id],
            }
            for t in results.trials
            if t.id in results.records
        ],
    }
    write_json(out / "results.json", record)
    page = summary(results, _seconds(out))
    page += "".join(f"\n![{name}](figures/{name}.png)\n" for name in names)
    write_atomic(out / "summary.md", partial(_put, page.encode()))


def _put(content: bytes, file: BinaryIO) -> None:
    file.write(content)


def _seconds(out: Path) -> float:
    """Of all jobs in the log; a line that a killed run left half is no job."""
    total = 0.0
    path = out / "log.jsonl"
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            total += float(json.loads(line)["seconds"])
        except (ValueError, KeyError, TypeError):
            continue
    return total
