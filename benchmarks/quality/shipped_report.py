"""What `bench quality` measured of networks in a cascade and in int8, as tables."""

import datetime
import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.quality.networks import write_whole
from benchmarks.quality.report import header, line, share, versions
from benchmarks.quality.shipped import BATCHES, FORMS, TOLERANCES

# Largest size by form and tolerance: multiply-adds on average, and bytes, of the wide network's.
GOALS = {("cascade", 0.01): 0.35, ("cascade", 0.001): 0.60, ("int8", 0.01): 0.20}
LATENCY_GOAL = 1.3  # of a cascade's share of average MACs, the most that its latency may be
WHAT = {"cascade": "multiply-adds on average", "int8": "bytes"}

Record = dict[str, Any]
Row = dict[str, Any]


def rows_of(records: Sequence[Record]) -> list[Row]:
    """One row for each network, method and tolerance.

    "size" is a share of the wide network's, on the search split, which chose; None where nothing
    is within the tolerance. The others were measured on test images: "size_test" (of a cascade
    the average there, of int8 the same), "agreement", "accuracy", "deferred", "latency".
    """
    rows = []
    for record in records:
        for tolerance in TOLERANCES:
            key, wide = f"{tolerance:g}", record["wide"]
            amount = (record.get("smallest") or {}).get(key)
            row: Row = {
                "network": record["facts"]["network"],
                "method": record["facts"]["method"],
                "kind": record["kind"],
                "form": record["form"],
                "tolerance": tolerance,
                "failed": record["failed"],
                "size": None,
                "accuracy_before": wide["accuracy"],
            }
            if amount is not None:
                made = next(e for e in record["evaluations"] if e["amount"] == amount)
                test = record["test"][key]
                row |= {k: test.get(k) for k in ("agreement", "accuracy", "deferred", "latency")}
                row["macs"] = made["macs"] / wide["macs"]
                if record["form"] == "cascade":
                    row["size"] = made["pairs"][key]["average"] / wide["macs"]
                    row["size_test"] = test["average"] / wide["macs"]
                else:
                    row["size"] = row["size_test"] = made["bytes"] / wide["bytes"]
            rows.append(row)
    return rows


def markdown(records: Sequence[Record], command: str) -> str:
    """All tables."""
    rows = rows_of(records)
    methods = {r["facts"]["method"]: r["facts"]["summary"] for r in records}
    lines = [
        "# Networks in a cascade and in int8",
        "",
        f"`{command}`, {datetime.date.today().isoformat()}, {versions()}, {platform.machine()}, "
        f"{os.cpu_count()} cores, one thread a process.",
        "",
        "Every method makes networks of the same wide one from the same calibration inputs, as in "
        "[quality.md](quality.md). In a cascade the thin network answers where its margin is "
        "large, the wide network the rest; the size is that of both on average. Thresholds and "
        "networks are chosen on the search split by the same rules for all. In int8 the network "
        "is onnxruntime's file of it, bytes are those of the file against the wide network's in "
        "single precision; the wide network in int8 is among those to choose from. All numbers of "
        "the tables are of the test images, which nothing chose on; the agreement there (in "
        "brackets) can be lower than what was asked for on the search split. Nothing here is "
        "certified: `shrink --cascade` and `--quantize int8` ask for more. Latency is measured "
        "against the wide network in the same program, in turns; it varies with what else runs.",
        "",
    ]
    for form in FORMS:
        of_form = [r for r in rows if r["form"] == form]
        if of_form:
            lines += [f"## {form.capitalize()}: {WHAT[form]}", "", *goals(of_form, form)]
            lines += ["All methods:", "", *_all(of_form, form), ""]
    lines += ["## Methods", "", *(f"- `{name}`: {words}" for name, words in methods.items())]
    return "\n".join(lines).rstrip() + "\n"


def goals(rows: Sequence[Row], form: str) -> list[str]:
    """fcompress against the best of torch-pruning, a line for each network and tolerance."""
    head = ["network", "agreement", f"hybrid+{form} (on test)", "goal"]
    head += ["best torch-pruning (on test)", "hybrid / best"]
    head += [f"latency, batch {b}{_against(form)}" for b in BATCHES]
    lines = header(head)
    for network in dict.fromkeys(r["network"] for r in rows):
        for tolerance in TOLERANCES:
            there = [r for r in rows if r["network"] == network and r["tolerance"] == tolerance]
            mine = next((r for r in there if r["kind"] == "fcompress"), None)
            rivals = [r for r in there if r["kind"] == "torch-pruning"]
            best = min(rivals, key=_size, default=None)
            cells = [network, f"{1 - tolerance:g}", _cell(mine)]
            goal = GOALS.get((form, tolerance))
            reached = mine is not None and goal is not None and _reaches(mine, goal)
            word = "" if mine is None else " reached" if reached else " missed"
            cells.append("" if goal is None else f"{goal:.2f}{word}")
            cells.append("" if best is None else f"{best['method']} {_cell(best)}")
            both = mine is not None and best is not None
            cells.append(f"{_tested(mine) / _tested(best):.2f}" if both else "")  # type: ignore[arg-type]
            cells += [_latency(mine, batch, form) for batch in BATCHES]
            lines.append(line(cells))
    return [
        *lines,
        "",
        "A method nothing of which is within the tolerance counts as the wide network (100%). A "
        "goal is reached where both the size and the agreement are on the test images.",
        "",
    ]


def in_words(record: Record) -> str:
    """One line for the terminal, without the names."""
    found = ", ".join(
        f"{1 - r['tolerance']:g} {'none' if r['size'] is None else share(r['size'])}"
        for r in rows_of([record])
    )
    seconds = sum(e["seconds"] for e in record["evaluations"])
    return f"{WHAT[record['form']]} at {found} ({seconds:.0f} s)"


def save(records: Sequence[Record], folder: Path, command: str) -> None:
    """Write shipped.json, with a line for each method on each network, and shipped.md."""
    folder.mkdir(exist_ok=True)
    lines = ",\n".join(json.dumps(record) for record in records)
    write_whole(folder / "shipped.json", f"[\n{lines}\n]\n".encode())
    write_whole(folder / "shipped.md", markdown(records, command).encode())


def _all(rows: Sequence[Row], form: str) -> list[str]:
    head = ["network", "method", "agreement", f"{WHAT[form]} kept", "agreement on test"]
    head += ["accuracy on test", "MACs of the thin network", "deferred"]
    lines = header(head[: None if form == "cascade" else -1])
    for row in rows:
        cells = [row["network"], row["method"], f">= {1 - row['tolerance']:g}"]
        if row["failed"]:
            cells.append(f"fails: {row['failed']}")
        elif row["size"] is None:
            cells.append("none")
        else:
            cells += [share(row["size_test"]), f"{row['agreement']:.4f}"]
            cells += [f"{row['accuracy_before']:.4f} -> {row['accuracy']:.4f}", share(row["macs"])]
            if form == "cascade":
                cells.append(share(row["deferred"]))
        lines.append(line(cells))
    return lines


def _size(row: Row) -> float:
    return 1.0 if row["size"] is None else float(row["size"])


def _tested(row: Row) -> float:
    return 1.0 if row["size"] is None else float(row["size_test"])


def _reaches(row: Row, goal: float) -> bool:
    """Whether it is as small, and says the same as often, on the test images."""
    kept = row["size"] is not None and row["agreement"] >= 1 - row["tolerance"]
    return bool(kept and row["size_test"] <= goal)


def _cell(row: Row | None) -> str:
    if row is None:
        return ""
    if row["size"] is None:
        return "none"
    return f"{row['size_test']:.1%} ({row['agreement']:.4f})"


def _against(form: str) -> str:
    return f" (/ average MACs, goal {LATENCY_GOAL:g})" if form == "cascade" else ""


def _latency(row: Row | None, batch: int, form: str) -> str:
    if row is None or row["size"] is None:
        return ""
    found = row["latency"][str(batch)]
    return share(found) + (f" ({found / _tested(row):.2f})" if form == "cascade" else "")
