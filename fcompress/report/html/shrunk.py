"""What stands on the page of a compression, in plain values."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch

from fcompress.compress.evidence import ChangedExample, Evidence, Flow, UnitMap
from fcompress.compress.result import ShrinkResult
from fcompress.report.cascade import cascade_rows
from fcompress.report.html.figures import packed, pair, percent, png, rounded, share
from fcompress.report.labels import headings, label_lines, plural, rounded_up
from fcompress.report.text import changing, verdict

MOST_POINTS = 300  # of a map of units; of more, evenly spread by the order in which they go
MOST_LABELS = 1000  # rows of a table


def shrunk(
    result: ShrinkResult, *, examples: bool, files: tuple[str | None, str | None]
) -> dict[str, Any]:
    """Everything on the page.

    Args:
        result: Of `shrink`.
        examples: Whether examples may be shown.
        files: Of the compressed and of the original network, where they are known.
    """
    seen = result.evidence
    flow = None if seen.flow is None else _drawn(seen.flow, result)
    joins = [] if flow is None else flow["joins"]
    names = [str(name) for name in result.data.get("class_names") or ()]
    return {
        "title": _title(result),
        "verdict": _verdict(result),
        "sizes": list(_sizes(result)),
        "load": _load(files[0]),
        "proven": [line for line in verdict(result) if not _elsewhere(line)],
        "layers": _layers(result),
        "flow": seen.flow,
        "joins": {
            "added": any(len(j[0]) > 1 for j in joins),
            "read": any(len(j[0]) == 1 for j in joins),
        },
        "candidates": _candidates(result),
        "labels": _labels(result, names),
        "examples": _examples(seen, examples),
        "blocks": result.blocks,
        "skipped": _by_reason(result),
        "warnings": result.warnings,
        "left_out": seen.left_out,
        "groups": [_named(u.name) for u in seen.units],
        "again": _again(result, files),
        "data": {
            "flow": flow,
            "tradeoff": _tradeoff(result),
            "units": [_unit_map(one) for one in seen.units],
        },
    }


def _title(result: ShrinkResult) -> str:
    where = result.data.get("spec")
    return f"{result.method} compression" + (f" on {where}" if where else "")


def _verdict(result: ShrinkResult) -> dict[str, Any]:
    """The first thing to read."""
    found = result.agreement
    bound = rounded_up(found.upper_bound)
    noun = changing(found.labels, "").strip().removeprefix("of the ").strip()
    said = f"at most {bound} of the {noun} change, {found.confidence:.0%} confidence"
    if result.tolerance is None:
        return {
            "word": "SIZE REACHED",
            "rest": "no tolerance was asked for",
            "kind": "size",
            "said": said,
        }
    word = "PASS" if result.certified else "FAIL"
    tolerance = f"{100 * result.tolerance:g}%"
    return {
        "word": word,
        "rest": f"within {tolerance}",
        "said": said,
        "kind": "pass" if result.certified else "fail",
    }


def _sizes(result: ShrinkResult) -> Any:
    counts: Any = ("parameters", result.params), ("MACs", result.macs)
    if result.cascade is not None:
        counts = cascade_rows(result)
    for name, both in counts:
        yield pair(name[0].upper() + name[1:], both["before"], both["after"])
    yield pair("Bytes", result.bytes["before"], result.bytes["after"])
    times = result.latency_ms, result.latency_single_ms
    for name, time in zip(("Latency, 64 examples", "Latency, 1 example"), times, strict=True):
        yield pair(name, time["before"], time["after"], "ms")
    if result.accuracy is not None:
        yield pair("Accuracy", result.accuracy["before"], result.accuracy["after"], "percent")


def _load(file: str | None) -> str:
    if file is None:
        return 'import fcompress\nfcompress.save(result.model, "thin.pt")  # then load it anywhere'
    return f"import fcompress\nmodel = fcompress.load({json.dumps(file)})"


def _elsewhere(line: str) -> bool:
    """Whether a line of the verdict has a place of its own on the page."""
    return line.startswith(("Not pruned: ", "Warning: ", "Accuracy: ", "Dropped as a whole: "))


def _layers(result: ShrinkResult) -> list[dict[str, Any]]:
    """A row for each layer."""
    reasons = {layer.name: layer.reason for layer in result.layers}
    flow = result.evidence.flow
    if flow is None:
        return [
            {
                "name": one.name,
                "kind": "",
                "inputs": None,
                "units": (one.units_before, one.units_after),
                "macs": None,
                "ms": None,
                "reason": one.reason or "",
            }
            for one in result.layers
        ]
    most = max((one.macs_before for one in flow.layers), default=0) or 1
    slowest = max((one.ms_before or 0.0 for one in flow.layers), default=0.0) or 1.0
    rows = []
    for one in flow.layers:
        timed = one.ms_before is not None and one.ms_after is not None
        gone = one.units_after == 0
        rows.append(
            {
                "name": one.name,
                "kind": one.kind,
                "inputs": (one.inputs_before, one.inputs_after),
                "units": (one.units_before, one.units_after),
                "macs": (one.macs_before, one.macs_after),
                "macs_part": (one.macs_before / most, one.macs_after / most),
                "ms": (one.ms_before, one.ms_after) if timed else None,
                "ms_part": ((one.ms_before or 0) / slowest, (one.ms_after or 0) / slowest),
                "reason": "dropped with its block" if gone else reasons.get(one.name) or "",
            }
        )
    return rows


def _candidates(result: ShrinkResult) -> list[dict[str, Any]]:
    """Every network that was tried, thinnest last."""
    before = max(result.macs["before"], 1)
    tried = sorted(result.candidates, key=lambda c: (-c["macs"], c["removed"]))
    return [
        {
            **one,
            "share": percent(one["macs"] / before),
            "changed_share": share(one["changed"], one["n"]),
            "distilled": one.get("distilled", False),
            "certification": one.get("certification"),
        }
        for one in tried
    ]


def _tradeoff(result: ShrinkResult) -> dict[str, Any]:
    """The curve that the search walked, as it is drawn."""
    before = max(result.macs["before"], 1)
    points = [
        [
            one["macs"] / before,
            one["changed"] / one["n"],
            one["distilled"],
            f"{one['removed']:,} units removed, {one['share']} of MACs: {one['changed_share']} of "
            f"{one['n']:,} changed on the search split"
            + (", distilled" if one["distilled"] else ""),
        ]
        for one in _candidates(result)
    ]
    found = result.agreement
    return {
        "points": [[rounded(x), rounded(y), kind, tip] for x, y, kind, tip in points],
        "chosen": [
            rounded(result.macs["after"] / before),
            rounded(found.changed / found.n),
            rounded(found.upper_bound),
            f"chosen: {share(result.macs['after'], before)} of MACs; "
            f"{percent(found.changed / found.n)} changed on the certification split, at most "
            f"{rounded_up(found.upper_bound)} with {found.confidence:.0%} confidence",
        ],
        "tolerance": result.tolerance,
    }


def _labels(result: ShrinkResult, names: list[str]) -> dict[str, Any] | None:
    """Each label's own agreement."""
    found = result.agreement.by_label
    if found is None or not found.labels:
        return None

    def called(label: int) -> str:
        return names[label] if label < len(names) else str(label)

    rows: list[dict[str, Any]] = [
        {
            "name": called(one.label) + ("" if one.side is None else f" {one.side}"),
            "n": one.n,
            "changed": one.changed,
            "share": one.share,
            "bound": one.bound,
            "bound_said": rounded_up(one.bound),
        }
        for one in (found.labels if len(found.labels) <= MOST_LABELS else found.worst())
    ]
    lines = [line for line in label_lines(found) if "--json has all" not in line]
    return {
        "word": found.word,
        "plural": plural(found),
        "headings": headings(found),
        "rows": rows[:MOST_LABELS],
        "of": len(found.labels),
        "lines": lines,
        "confidence": found.confidence,
        "tolerance": result.tolerance,
        "largest": max((row["bound"] for row in rows), default=1.0) or 1.0,
    }


def _examples(seen: Evidence, wanted: bool) -> dict[str, Any]:
    """Examples whose answer changed, or why there are none."""
    if not wanted:
        return {"why": "Examples are left out of this page (--no-examples)."}
    if seen.examples is None:
        return {"why": f"Left out: {seen.left_out.get('examples', 'not collected')}."}
    found = seen.examples
    if not found.shown:
        return {"why": f"None of {found.looked_at:,} {found.split} examples changed."}
    return {
        "why": None,
        "split": found.split,
        "looked_at": found.looked_at,
        "shown": [_example(one) for one in found.shown],
    }


def _example(one: ChangedExample) -> dict[str, Any]:
    found: dict[str, Any] = {
        **{
            key: getattr(one, key) for key in ("number", "before", "after", "truth", "kind", "note")
        },
        "margins": (one.margin_before, one.margin_after),
        "shape": " x ".join(map(str, one.shape)),
    }
    if one.kind == "image":
        height, width, _ = one.values.shape
        return {**found, "image": png(one.values), "size": (width, height)}
    form = "{:.3g}" if one.kind == "numbers" else "{}"
    found["values"] = [form.format(value) for value in one.values.tolist()]
    found["more"] = _count(one.shape) > len(found["values"])
    return found


def _count(shape: tuple[int, ...]) -> int:
    return int(torch.Size(shape).numel())


def _by_reason(result: ShrinkResult) -> list[tuple[str, list[str]]]:
    """What was not pruned, by the reason."""
    found: dict[str, list[str]] = {}
    for left in result.skipped:
        found.setdefault(left["reason"], []).append(left["name"])
    return list(found.items())


def _again(result: ShrinkResult, files: tuple[str | None, str | None]) -> list[tuple[str, str]]:
    """All that it takes to make the same again."""
    rows = [
        ("Method", result.method),
        ("Objective", result.objective),
        ("Tolerance", "none" if result.tolerance is None else f"{100 * result.tolerance:g}%"),
        ("Confidence", f"{result.agreement.confidence:g}"),
        ("Seed", str(result.seed)),
        ("Calibration examples", f"{result.calibration:,}"),
        ("Certification examples", f"{result.agreement.n:,}, met by {result.tested} candidates"),
    ]
    if result.round_to != 1:
        rows.append(("Units are multiples of", str(result.round_to)))
    if result.target is not None:
        rows.append(("Size asked for", _flat(result.target["limits"])))
    if result.distill is not None:
        rows.append(("Distillation", _flat(result.distill)))
    rows += [("Original", files[1])] if files[1] else []
    rows += [
        (f"Data, {key}", _flat(value))
        for key, value in result.data.items()
        if key not in ("mean", "std", "class_names") and value is not None
    ]
    rows += [
        (f"Weights of the {key}" if key != "data" else "Hash of the data", str(value))
        for key, value in result.certificate.items()
        if value
    ]
    return rows + [(f"Version of {key}", str(value)) for key, value in result.versions.items()]


def _flat(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_flat(one)}" for key, one in value.items())
    if isinstance(value, list | tuple):
        return " x ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _drawn(flow: Flow, result: ShrinkResult) -> dict[str, Any]:
    """The architecture, as it is drawn."""
    place = {one.weight: i for i, one in enumerate(flow.layers)}
    reasons = {layer.name: layer.reason for layer in result.layers}
    layers = [
        [
            one.name,
            one.kind,
            one.units_before,
            one.units_after,
            one.macs_before,
            one.macs_after,
            reasons.get(one.name) or "",
        ]
        for one in flow.layers
    ]
    joins = []
    for group in flow.groups:
        writers = [place[name] for name in group.writers if name in place]
        readers = [place[name] for name in group.readers if name in place]
        if len(writers) > 1 or any(r != w + 1 for w in writers for r in readers):
            joins.append([sorted(writers), sorted(readers), group.before, group.after])
    return {"layers": layers, "joins": joins}


def _named(name: str) -> str:
    """A name that fits into a list."""
    return name if len(name) <= 60 else f"{name[:28]}...{name[-28:]}"


def _unit_map(one: UnitMap) -> dict[str, Any]:
    """A map of units, as it is drawn."""
    size = len(one.order)
    places = torch.linspace(0, size - 1, min(size, MOST_POINTS)).round().long().unique()
    chosen = one.order[places]
    return {
        "name": _named(one.name),
        "units": size,
        "kept": one.kept,
        "listened": [rounded(v, 3) for v in one.listened[chosen].tolist()],
        "missed": [rounded(1 - v, 3) for v in one.explained[chosen].double().tolist()],
        "number": chosen.tolist(),
        "stays": [int(place < one.kept) for place in places.tolist()],
        "cost": [[k, rounded(v, 3)] for k, v in one.cost],
        "variance": [[k, rounded(v, 4)] for k, v in one.variance],
        "side": 0 if one.picture is None else one.picture.side,
        "cells": "" if one.picture is None else packed(one.picture.cells),
    }
