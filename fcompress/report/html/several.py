"""Several results of `shrink`, out of their JSON files, on one page."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fcompress.errors import FcompressError
from fcompress.report.html.figures import percent, rounded, share
from fcompress.report.html.page import filled

LONGEST = 2**26  # bytes of a file that are read
_NEEDED = ("method", "agreement", "candidates", "layers", "params", "macs", "tolerance")


def page_of_files(paths: Sequence[str | os.PathLike[str]], command: str | None = None) -> str:
    """What `shrink --json` wrote, side by side: methods, tolerances, widths.

    Args:
        paths: JSON files, at least one.
        command: What was typed to get the page.

    Raises:
        FcompressError: One of them cannot be read, or holds no result of `shrink`.
    """
    results = [(_title(path, paths), _read(Path(path))) for path in paths]
    rows = [_row(name, one) for name, one in results]
    layers = _layers(results)
    data = {"results": [_curve(name, one) for name, one in results]}
    return filled(
        "several.html",
        page={
            "title": f"{len(rows)} results of shrink",
            "rows": rows,
            "layers": layers,
            "names": [name for name, _ in results],
            "same_data": len({one["data"].get("sha256") for _, one in results}) == 1,
        },
        data=data,
        command=command,
    )


def _title(path: str | os.PathLike[str], among: Sequence[str | os.PathLike[str]]) -> str:
    """The name of a file, with its folder where names are not unique."""
    file = Path(path)
    alike = [one for one in among if Path(one).name == file.name]
    return file.stem if len(alike) < 2 else str(file.with_suffix(""))


def _read(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > LONGEST:
            raise FcompressError(f"{path} is larger than {LONGEST:,} bytes; expected a result")
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FcompressError(f"{path}: {error.strerror}; name another file") from error
    except (ValueError, RecursionError) as error:
        raise FcompressError(f"{path} is no JSON; expected what shrink --json wrote") from error
    if not isinstance(found, dict) or not all(key in found for key in _NEEDED):
        raise FcompressError(f"{path} holds no result of shrink; expected what shrink --json wrote")
    try:
        _row("", found), _curve("", found), _layers([("", found)])
    except (KeyError, TypeError, ValueError, ZeroDivisionError, AttributeError) as error:
        raise FcompressError(
            f"{path} is not as shrink --json wrote it ({type(error).__name__}: {error}); make it "
            "again"
        ) from error
    return found


def _row(name: str, one: Mapping[str, Any]) -> dict[str, Any]:
    found = one["agreement"]
    tolerance = one["tolerance"]
    passed = "size" if tolerance is None else "pass" if one["certified"] else "fail"
    return {
        "name": name,
        "method": str(one["method"]) + (", distilled" if one.get("distill") else ""),
        "tolerance": None if tolerance is None else f"{100 * tolerance:g}%",
        "verdict": {"size": "size", "pass": "PASS", "fail": "FAIL"}[passed],
        "kind": passed,
        "macs": one["macs"]["after"],
        "macs_kept": share(one["macs"]["after"], one["macs"]["before"]),
        "params": one["params"]["after"],
        "params_kept": share(one["params"]["after"], one["params"]["before"]),
        "latency": one["latency_ms"]["after"],
        "latency_kept": share(one["latency_ms"]["after"], one["latency_ms"]["before"]),
        "changed": (found["n"] - found["same"]) / found["n"],
        "bound": 1 - found["lower_bound"],
        "changed_said": percent((found["n"] - found["same"]) / found["n"]),
        "bound_said": percent(1 - found["lower_bound"]),
        "confidence": found["confidence"],
        "data": str(one["data"].get("spec")),
        "seed": one.get("seed"),
    }


def _curve(name: str, one: Mapping[str, Any]) -> dict[str, Any]:
    before = max(one["macs"]["before"], 1)
    found = one["agreement"]
    tried = sorted(one["candidates"], key=lambda c: -c["macs"])
    return {
        "name": name,
        "points": [[rounded(c["macs"] / before), rounded(c["changed"] / c["n"])] for c in tried],
        "chosen": [
            rounded(one["macs"]["after"] / before),
            rounded((found["n"] - found["same"]) / found["n"]),
        ],
        "tolerance": one["tolerance"],
    }


def _layers(results: Sequence[tuple[str, Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """What each result keeps of each layer that any of them has."""
    widths = [{one["name"]: one for one in result["layers"]} for _, result in results]
    names = list(dict.fromkeys(name for found in widths for name in found))
    return [
        {
            "name": name,
            "kept": [
                None
                if name not in found
                else (
                    found[name]["units_before"],
                    found[name]["units_after"],
                    found[name]["units_after"] / max(found[name]["units_before"], 1),
                )
                for found in widths
            ],
        }
        for name in names
    ]
