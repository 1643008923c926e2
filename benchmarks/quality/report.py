"""What `bench quality` measured, as tables and a picture."""

import datetime
import io
import json
import math
import os
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.pictures import small_png
from benchmarks.quality.networks import write_whole
from benchmarks.quality.search import TOLERANCES

# Largest ratio of hybrid's size to the best rival's, by tolerance and kind of rival.
GOALS = {
    (0.05, "torch-pruning"): 1 / 3,
    (0.01, "torch-pruning"): 1 / 2,
    (0.05, "reconstruction"): 0.7,
    (0.01, "reconstruction"): 0.8,
}
MLP_GOAL = 1 / 6  # of MLPs, in place of the first of these
POLISH_GOAL = 0.6
SIZES = {"macs": "MACs", "params": "parameters"}
COLOURS = {"prune": "tab:green", "factor": "tab:orange", "hybrid": "tab:red"}
COLUMNS = 5

Record = dict[str, Any]
Row = dict[str, Any]


def rows_of(records: Sequence[Record]) -> list[Row]:
    """One row for each network, method and tolerance.

    Sizes are shares of the wide network's; None where no network of the method passes. Every size
    comes with the agreement on the test images of the network that has it.
    """
    rows = []
    for record in records:
        for tolerance in TOLERANCES:
            row: Row = {
                "network": record["facts"]["network"],
                "method": record["facts"]["method"],
                "kind": record["kind"],
                "tolerance": tolerance,
                "failed": record["failed"],
                "accuracy_before": record["wide"]["accuracy"],
            }
            for by in SIZES:
                amount = record["smallest"][by][f"{tolerance:g}"]
                made = next((e for e in record["evaluations"] if e["amount"] == amount), None)
                test = record["test"].get(str(amount), {})
                row[by] = None if made is None else made[by] / record["wide"][by]
                row[f"{by}_test"] = test.get("agreement")
                row[f"{by}_search"] = None if made is None else 1 - made["changed"] / made["n"]
                row[f"{by}_accuracy"] = test.get("accuracy")
            rows.append(row)
    return rows


def markdown(records: Sequence[Record], command: str) -> str:
    """All tables."""
    rows = rows_of(records)
    methods = {r["facts"]["method"]: r["facts"]["summary"] for r in records}
    lines = [
        "# The smallest network of each method at each tolerance",
        "",
        f"`{command}`, {datetime.date.today().isoformat()}, {versions()}, {platform.machine()}, "
        f"{os.cpu_count()} cores, one thread a process.",
        "",
        *_rules(records),
        "",
        "## Goals",
        "",
        *goals(rows),
        "## Methods",
        "",
        *(f"- `{name}`: {summary}" for name, summary in methods.items()),
        "",
    ]
    for network in dict.fromkeys(r["network"] for r in rows):
        lines += _network_tables([r for r in rows if r["network"] == network], records)
    return "\n".join(lines).rstrip() + "\n"


def goals(rows: Sequence[Row]) -> list[str]:
    """Hybrid (before it exists: factor) against the best of each kind of rival, by size."""
    methods = {r["method"] for r in rows}
    own = next((m for m in ("hybrid", "factor") if m in methods), None)
    if own is None:
        return ["No method of fcompress was measured.", ""]
    lines = []
    for by, word in SIZES.items():
        head = ["network", "agreement", f"{own} (on test)"]
        head += ["best torch-pruning (on test)", f"{own} / best", "goal"]
        head += ["best reconstruction (on test)", f"{own} / best", "goal"]
        head += [f"{own}+polish (on test)", "polish / without", "goal"]
        lines += [f"By {word}:", "", *header(head)]
        for network in dict.fromkeys(r["network"] for r in rows):
            for tolerance in (0.05, 0.01):
                there = [r for r in rows if r["network"] == network and r["tolerance"] == tolerance]
                plain = next((r for r in there if r["method"] == own), None)
                mine = _best([r for r in there if r["method"] in (own, f"{own}-{by}")], by)
                cells = [network, f"{1 - tolerance:g}", _cell(mine, by)]
                for kind in ("torch-pruning", "reconstruction"):
                    best = _best([r for r in there if r["kind"] == kind], by)
                    goal = GOALS[tolerance, kind]
                    if kind == "torch-pruning" and tolerance == 0.05 and "mlp" in network:
                        goal = MLP_GOAL
                    named = "" if best is None else f"{best['method']} {_cell(best, by)}"
                    cells += [named, *_ratio(mine, best, by, goal)]
                polished = next((r for r in there if r["method"] == f"{own}+polish"), None)
                cells += [_cell(polished, by), *_ratio(polished, plain, by, POLISH_GOAL)]
                lines.append(line(cells))
        lines.append("")
    lines += [
        "A method none of whose networks is within the tolerance counts as the wide network "
        "(100%). Agreement on the test images of the compared networks is in brackets. By "
        f"parameters {own} is the smaller of two, one made to save MACs and one made to save "
        "parameters; polishing was run on the former only.",
        "",
    ]
    return lines


def png(records: Sequence[Record]) -> bytes:
    """Agreement against MACs and against parameters, a panel for each network."""
    networks = list(dict.fromkeys(r["facts"]["network"] for r in records))
    columns = min(COLUMNS, len(networks))
    blocks = math.ceil(len(networks) / columns)
    figure = Figure(figsize=(4 * columns, 3.6 * 2 * blocks + 0.6), layout="constrained")
    panels = figure.subplots(2 * blocks, columns, squeeze=False)
    for number, network in enumerate(networks):
        block, column = divmod(number, columns)
        for down, by in enumerate(SIZES):
            _panel(
                panels[2 * block + down][column],
                [r for r in records if r["facts"]["network"] == network],
                by,
            )
    for empty in range(len(networks), blocks * columns):
        block, column = divmod(empty, columns)
        for down in range(2):
            panels[2 * block + down][column].axis("off")
    handles = {
        curve.get_label(): curve
        for axes in panels.flat
        for curve in axes.get_lines()
        if not str(curve.get_label()).startswith("_")
    }
    figure.legend(
        list(handles.values()),
        list(handles),
        loc="outside lower center",
        ncols=min(6, 2 * columns - 1),
        fontsize=10,
    )
    return _png(figure)


def _panel(axes: Axes, records: Sequence[Record], by: str) -> None:
    for record in records:
        wide = record["wide"][by]
        made = [e for e in record["evaluations"] if e["error"] is None]
        points = _front([(e[by] / wide, max(e["changed"], 0.5) / e["n"]) for e in made])
        if points:
            axes.plot(*zip(*points, strict=True), **_style(record))
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(None, 1)
    axes.set_ylim(0.5, 0.003)
    axes.set_yticks(TOLERANCES, [f"{1 - t:g}" for t in TOLERANCES])
    axes.minorticks_off()
    axes.set_xticks(ticks := [0.01, 0.03, 0.1, 0.3, 1], [f"{t:.0%}" for t in ticks])
    axes.grid(alpha=0.3)
    axes.set_xlabel(f"{SIZES[by]} kept", fontsize=9)
    axes.set_ylabel("agreement, search split", fontsize=9)
    axes.set_title(records[0]["facts"]["network"], fontsize=10)


def _front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Those that no other point beats in both size and disagreement, by size."""
    found: list[tuple[float, float]] = []
    for size, disagreement in sorted(points):
        if not found or disagreement < found[-1][1]:
            found.append((size, disagreement))
    return found


def _style(record: Record) -> dict[str, Any]:
    method = record["facts"]["method"]
    if record["kind"] == "torch-pruning":
        return {"color": "0.6", "linewidth": 0.8, "label": "torch-pruning (each importance)"}
    if record["kind"] == "reconstruction":
        return {"color": "tab:blue", "linewidth": 0.9, "label": "reconstruction rivals (each)"}
    base, _, polished = method.partition("+")
    return {
        "color": "black" if polished else COLOURS.get(base, "tab:purple"),
        "linewidth": 2,
        "marker": ".",
        "label": f"fcompress {method}",
    }


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(buffer, format="png", dpi=110)
    return small_png(buffer.getvalue(), colours=64)


def _rules(records: Sequence[Record]) -> list[str]:
    head = (
        "network",
        "data",
        "epochs",
        "MACs",
        "parameters",
        "accuracy",
        "calibration",
        "search",
        "test",
    )
    wides = {r["facts"]["network"]: r for r in records}
    lines = [
        "Every method gets the same trained network and the same unlabelled calibration inputs. "
        "Its amount (pruning ratio, share of units removed) is searched the same way: networks "
        "are made, batch norm recalibrated, labels compared with the wide network's on the search "
        "split, and the next amount is taken between the thinnest that passes and the next "
        "thinner that does not. The smallest network that passes a tolerance is then measured on "
        "the test images, which nothing else reads; because it was the smallest to pass, its "
        "agreement there can be a little lower than on the search split. MACs and parameters are "
        "counted by `fcompress.count` for all. How many images a network's methods get depends on "
        "its MACs only:",
        "",
        *header(head),
    ]
    for name, record in wides.items():
        facts, wide = record["facts"], record["wide"]
        cells = [name, facts["data"], facts["epochs"], f"{wide['macs']:,}", f"{wide['params']:,}"]
        cells += [f"{wide['accuracy']:.4f}"]
        cells += [f"{facts[k]:,}" for k in ("calibration", "search", "test")]
        lines.append(line(cells))
    return lines


def _network_tables(rows: Sequence[Row], records: Sequence[Record]) -> list[str]:
    """MACs of every method in short, then everything."""
    network = rows[0]["network"]
    methods = list(dict.fromkeys(r["method"] for r in rows))
    failed = {r["method"]: r["failed"] for r in rows if r["failed"]}
    lines = [f"## {network}", "", "MACs kept at an agreement (search split) of at least:", ""]
    lines += header(["method", *(f"{1 - t:g}" for t in TOLERANCES)])
    for method in methods:
        mine = [r for r in rows if r["method"] == method]
        cells = [f"fails: {failed[method]}" if method in failed else share(r["macs"]) for r in mine]
        lines.append(line([method, *cells[: 1 if method in failed else None]]))
    head = ["method", "agreement", "MACs kept", "test agreement", "test accuracy"]
    head += ["parameters kept", "test agreement"]
    lines += ["", *header(head)]
    for row in rows:
        if row["macs"] is None:
            continue
        cells = [row["method"], f">= {1 - row['tolerance']:g}", share(row["macs"])]
        cells += [f"{row['macs_test']:.4f}"]
        cells += [f"{row['accuracy_before']:.4f} -> {row['macs_accuracy']:.4f}"]
        cells += [share(row["params"]), f"{row['params_test']:.4f}"]
        lines.append(line(cells))
    return [*lines, ""]


def _best(rows: Sequence[Row], by: str) -> Row | None:
    return min(rows, key=lambda r: 1.0 if r[by] is None else r[by], default=None)


def _ratio(mine: Row | None, other: Row | None, by: str, goal: float) -> tuple[str, str]:
    """The ratio of two sizes, and the goal with whether it is reached."""
    if mine is None or other is None:
        return "", f"{goal:.2f}"
    ratio = (1.0 if mine[by] is None else mine[by]) / (1.0 if other[by] is None else other[by])
    return f"{ratio:.2f}", f"{goal:.2f} {'reached' if ratio <= goal else 'missed'}"


def _cell(row: Row | None, by: str) -> str:
    if row is None:
        return ""
    if row[by] is None:
        return "none"
    return f"{row[by]:.1%} ({row[f'{by}_test']:.3f})"


def share(part: float | None) -> str:
    """A share as a percentage; "none" where there is none."""
    return "none" if part is None else f"{part:.1%}"


def header(names: Sequence[str]) -> list[str]:
    """The first two lines of a table."""
    return [line(names), "|" + " --- |" * len(names)]


def line(cells: Sequence[object]) -> str:
    """A line of a table."""
    return "| " + " | ".join(str(c) for c in cells) + " |"


def versions() -> str:
    """The programs that the numbers hang on."""
    packages = ("fcompress", "torch-pruning")
    found = [f"{name} {version(name)}" for name in packages]
    return ", ".join([*found, f"torch {torch.__version__}", f"python {platform.python_version()}"])


def save(records: Sequence[Record], folder: Path, command: str) -> None:
    """Write quality.json, quality.md and quality.png.

    The JSON has a line for each method on each network, without the networks that are the
    smallest at no tolerance: all tables can be made of it, the picture only of the records.
    """
    folder.mkdir(exist_ok=True)
    lines = ",\n".join(json.dumps(_in_short(record)) for record in records)
    write_whole(folder / "quality.json", f"[\n{lines}\n]\n".encode())
    write_whole(folder / "quality.md", markdown(records, command).encode())
    write_whole(folder / "quality.png", png(records))


def _in_short(record: Record) -> Record:
    amounts = {amount for of_size in record["smallest"].values() for amount in of_size.values()}
    made = [one for one in record["evaluations"] if one["amount"] in amounts]
    return {**record, "evaluations": made}
