"""The one-page summary of a recipe's results."""

from __future__ import annotations

import html
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from fcompress.experiments.measures import shrinking_by_width
from fcompress.experiments.measures.constructions import KINDS, NARROW
from fcompress.experiments.measures.interpretability import compare
from fcompress.experiments.report import tables
from fcompress.experiments.report.figures import draw, files
from fcompress.experiments.report.measured import analyzed_of, correlations_of, gains, responses_of
from fcompress.experiments.report.tables import Comparison, range_text
from fcompress.experiments.report.written import Written
from fcompress.experiments.trials.results import Results, json_bytes
from fcompress.experiments.trials.trial import Record
from fcompress.measure.ablation import TOLERANCES
from fcompress.measure.growth import LAST, QUANTITIES, GainResult
from fcompress.measure.options import REDUNDANCY_TOLERANCES
from fcompress.measure.redundancy import Correlations


def write(results: Results, out: Path) -> None:
    """Write figures/, results.json and summary.md into the folder of the results.

    Args:
        results: Finished or not.
        out: Their folder.

    Raises:
        FcompressError: The folder cannot be written to.
    """
    folder = Written(out)
    names = []
    for name, figure in draw(results):
        names.append(name)
        for kind, content in files(figure).items():
            folder.write(f"figures/{name}.{kind}", content)
    record = {
        "recipe": results.recipe.to_dict(),
        **tables.tables(results),
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
    folder.write("results.json", json_bytes(record))
    page = summary(results, _seconds(out))
    page += "".join(f"\n![{name}](figures/{name}.png)\n" for name in names)
    folder.write("summary.md", page.encode())
    folder.close()


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


def summary(results: Results, seconds: float) -> str:
    """One page: what was run, what came out, what is missing.

    Args:
        results: Of a recipe.
        seconds: Processor time of all trials, as the log has it.
    """
    recipe = results.recipe
    lines = [f"# {plain(recipe.name)}: {plain(recipe.title)}", ""]
    where = f"{plain(recipe.source)}, scale" if recipe.source else "Scale"
    lines += [f"{where} `{recipe.scale}`, made by {code(results.command)}.", ""]
    if recipe.note:
        lines += [f"Not as in the paper: {plain(recipe.note)}.", ""]
    if recipe.finding:
        lines += [f"The paper: {plain(recipe.finding)}", ""]
    compared = tables.compare(results)
    if compared:
        lines += ["## Gains beside the published ones", "", *_compared(compared), ""]
        lines += ["## Gains of every curve", "", *_gains(gains(results)), ""]
    if tables.analyzed(results):
        lines += ["## Shares of prunable and redundant units", "", *_shares(results), ""]
    if "correlations" in recipe.draw:
        lines += ["## Mean |correlation| of two units", "", *_correlations(results), ""]
    for measure, (heading, table) in _OF_MEASURES.items():
        if all(measure in curve.measure for curve in recipe.curves):
            lines += [f"## {heading}", "", *table(results), ""]
    accuracies = tables.accuracies(results)
    if any(accuracies.values()):
        lines += ["## Test accuracy", "", *_accuracy_table(accuracies), ""]
    facts = _facts(results, seconds)
    lines += ["## What it rests on", "", *(f"- {plain(fact)}" for fact in facts)]
    return "\n".join(lines) + "\n"


def plain(text: object) -> str:
    r"""A text in one line of Markdown that shows as it is: no markup, no HTML, no cell of its own.

    Example:
        >>> plain("a|b *c* <i>")
        'a\\|b \\*c\\* &lt;i&gt;'
    """
    line = html.escape(" ".join(str(text).split()), quote=False)
    # Within a word an underscore means nothing.
    return re.sub(r"[\\`*\[\]|$~]|(?<![^\W_])_|_(?![^\W_])", r"\\\g<0>", line)


def code(text: str) -> str:
    """A text in one line as Markdown shows code, between more backticks than it holds."""
    line = " ".join(text.split())
    fence = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    return f"{fence} {line} {fence}" if len(fence) > 1 else f"`{line}`"


def row(cells: Sequence[object]) -> str:
    """A line of a Markdown table; cells show as they are."""
    return "| " + " | ".join(map(plain, cells)) + " |"


def head(names: Sequence[str]) -> list[str]:
    """The first two lines of a Markdown table."""
    return [row(names), "|" + " --- |" * len(names)]


def _compared(rows: Sequence[Comparison]) -> Iterator[str]:
    names = ["units", "published g", "here", "doublings", "all doublings", "off by", "conclusion"]
    yield from head(names)
    words = {True: "same", False: "other", None: "-"}
    for one in rows:
        off = "-" if one.off is None else f"{one.off:.2f}"
        cells = [one.quantity.replace("_", "-"), range_text(one.published), range_text(one.here)]
        cells += [str(one.doublings), range_text(one.all_doublings), off, words[one.same]]
        yield row(cells)
    yield ""
    yield (
        "g is the mean ratio of units when the width doubles, smallest to largest over the curves; "
        "off: how far it reaches beyond the published range; the conclusion is whether all "
        "frivolous units outgrow the network (g > 2), and all others lag behind it."
    )


def _gains(found: Mapping[str, GainResult]) -> Iterator[str]:
    yield from head(["curve", "widths", "networks", *(q.replace("_", "-") for q in QUANTITIES)])
    for name, result in found.items():
        cells = [name, " ".join(f"{w:g}" for w in result.widths), str(sum(result.networks))]
        for quantity in QUANTITIES:
            growth = next(c for c in result.network if c.quantity == quantity)
            cells.append("-" if growth.gain is None else f"{growth.gain:.2f}")
            if growth.gain_last is not None and len(growth.ratios) > LAST:
                cells[-1] += f" (last {LAST}: {growth.gain_last:.2f})"
        yield row(cells)


def _shares(results: Results) -> Iterator[str]:
    """p* of the network and the redundant share of its layers, means over networks."""

    def cell(records: Sequence[Record]) -> str:
        found = [analyzed_of(record) for record in records]
        prunable = [one.ablation.network.share(TOLERANCES[0]) for one in found]
        redundant = [one.redundancy.share(REDUNDANCY_TOLERANCES[0]) for one in found]
        return f"{np.mean(prunable):.3f} / {np.mean(redundant):.3f}"

    yield from _by_width(results, cell)


def _correlations(results: Results) -> Iterator[str]:
    layer = results.recipe.layer
    yield from _by_width(results, lambda records: _mean_of(correlations_of(records, layer)))
    yield ""
    yield f"Of {plain(layer or 'the last layer')}; units that never vary are not compared."


def _responses(results: Results) -> Iterator[str]:
    yield from _by_width(results, lambda records: _mean_of(responses_of(records)))
    yield ""
    yield f"Of {plain(results.recipe.curves[0].measure['responses']['layer'])}."


def _mean_of(found: Sequence[Correlations]) -> str:
    if not found:
        return "-"
    units = np.mean([one.units for one in found])
    return f"{np.mean([one.mean for one in found]):.3f} ({units:.0f} units)"


def _constructions(results: Results) -> Iterator[str]:
    widths = results.recipe.curves[0].widths
    records = [one for width in widths for one in results.measured("constructions", width)]
    yield from head(
        ["network", "prunable, random", "prunable, removed first", "redundant", "logits"]
    )
    for name in (NARROW, *KINDS):
        found = [one["networks"][name] for one in records]
        cells = [name]
        for key in ("prunable", "removable", "redundant"):
            cells.append(f"{np.mean([one[key] for one in found]):.1f}")
        cells.append("-" if name == NARROW else f"{max(o['logit_difference'] for o in found):.1e}")
        yield row(cells)
    yield ""
    yield (
        f"Units, means over {len(records)} networks; random: in random order at a tolerance of "
        "0.2; first: the doubled half, where its removal changes no label, then those of "
        "the narrow network; logits: largest difference from the narrow network's, relative."
    )


def _shrunk(results: Results) -> Iterator[str]:
    curve = results.recipe.curves[0]
    found = {width: results.of(curve.name, width) for width in curve.widths}
    yield from head(
        ["tolerance", "width", "params before", "after", "after / 1x as trained", "MACs after / 1x",
         "agreement", "accuracy"]
    )  # fmt: skip
    for size in shrinking_by_width.sizes({w: r for w, r in found.items() if r}):
        ratios = [
            "-" if ratio is None else f"{ratio:.3f}"
            for ratio in (size.params_of_1x, size.macs_of_1x)
        ]
        accuracy = "-"
        if size.accuracy is not None:
            accuracy = f"{size.accuracy[0]:.3f} -> {size.accuracy[1]:.3f}"
        yield row(
            [f"{size.tolerance:g}", f"{size.width:g}x", f"{size.params[0]:,.0f}",
             f"{size.params[1]:,.0f}", *ratios, f"{size.agreement:.3f}", accuracy]
        )  # fmt: skip


def _images(results: Results) -> Iterator[str]:
    widths = results.recipe.curves[0].widths
    thin, wide = (results.measured("visualise", width) for width in (widths[0], widths[-1]))
    if not thin or not wide:
        return
    yield from head(["stage", "of", "median thin", "wide", "effect", "p (Holm)", "between seeds"])
    for test in compare(thin, wide).tests:
        between = "-" if test.between_seeds is None else f"{test.between_seeds:.2f}"
        cells = [test.stage, test.quantity, f"{test.thin:.3g}", f"{test.wide:.3g}"]
        yield row([*cells, f"{test.test.effect:+.2f}", f"{test.p:.2g}", between])
    yield ""
    yield (
        "Total variation of images and of their Fourier transforms; effect: rank-biserial, above 0 "
        "where the wide networks' images vary more; between seeds: the largest effect among "
        "networks of one width, which a difference between widths should exceed."
    )


_OF_MEASURES: dict[str, tuple[str, Callable[[Results], Iterator[str]]]] = {
    "responses": ("Mean |correlation| of two units before the nonlinearity", _responses),
    "constructions": ("Frivolous units of the constructions", _constructions),
    "visualise": ("Total variation of feature images, widest against narrowest", _images),
    "shrunk": ("Sizes before and after `shrink`", _shrunk),
}


def _by_width(results: Results, cell: Callable[[Sequence[Record]], str]) -> Iterator[str]:
    """A row for each curve, a column for each width."""
    widths = sorted({width for curve in results.recipe.curves for width in curve.widths})
    yield from head(["curve", *(f"{w:g}x" for w in widths)])
    for curve in results.recipe.curves:
        found = [results.of(curve.name, width) for width in widths]
        yield row([curve.name, *(cell(records) if records else "-" for records in found)])


def _accuracy_table(accuracies: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Iterator[str]:
    widths = sorted({float(w) for by_width in accuracies.values() for w in by_width})
    yield from head(["curve", *(f"{w:g}x" for w in widths)])
    for name, by_width in accuracies.items():
        cells = [name]
        for width in widths:
            one = by_width.get(f"{width:g}")
            cells.append("-" if one is None else f"{one['mean']:.3f} ({one['train']:.3f})")
        yield row(cells)
    yield ""
    yield "In brackets: training accuracy in the last epoch."


def _facts(results: Results, seconds: float) -> Iterator[str]:
    records = list(results.records.values())
    yield f"{len(records)} of {len({t.id for t in results.trials})} trials, {seconds:.0f} s of work"
    for spec in dict.fromkeys(r["data"]["spec"].partition(",seed=")[0] for r in records):
        one = next(r["data"] for r in records if r["data"]["spec"].startswith(spec))
        sizes = ", ".join(f"{role} {n:,}" for role, n in one["sizes"].items())
        yield f"data {spec} ({sizes}), sha256 {one['sha256'][:12]}..."
    for versions in dict.fromkeys(json.dumps(r["versions"]) for r in records):
        yield ", ".join(f"{name} {number}" for name, number in json.loads(versions).items())
    diverged = [results.records[name]["work"]["train"]["lr"] for name in results.failed]
    for rate, count in Counter(diverged).items():
        yield f"{count} trainings at learning rate {rate:g} diverged and are left out"
