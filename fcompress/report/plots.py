"""Pictures of results, as PNG bytes; no window, no global state of matplotlib."""

import io
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from fcompress.comparison.result import CompareResult
from fcompress.compress.result import LayerChange, ShrinkResult
from fcompress.measure.ablation import AblationCurve, AblationResult
from fcompress.measure.analysis import AnalyzeResult
from fcompress.measure.growth import GainResult, Growth
from fcompress.measure.redundancy import HISTOGRAM_BINS, RedundancyResult

DOTS_PER_INCH = 150
# Of layers' curves two are named, at most: those at the edges of the bundle.
BUNDLE = "#9aa5b1"
CHOSEN = "#0b62b8"
LIMIT = "#b4530a"
ROW = 0.19  # inches of a layer's bar
MOST_ROWS = 120


def figure_of(result: AnalyzeResult | GainResult | ShrinkResult) -> Figure:
    """Draw a result.

    Returns:
        A figure that no window shows.
    """
    if isinstance(result, AnalyzeResult):
        return _analysis(result)
    return _gain(result) if isinstance(result, GainResult) else _shrunk(result)


def analysis_png(result: AnalyzeResult) -> bytes:
    """Draw ablation curves (Fig. 2a-b), explained variance and correlations (Fig. 2c-d)."""
    return _png(_analysis(result))


def gain_png(result: GainResult) -> bytes:
    """Draw normalised frivolous units against the width, both axes logarithmic (Figs. 3 and 4).

    Full lines are prunable or redundant units, dashed lines the others; thick for the network,
    thin for its layers. The dotted line grows as the network does (g = 2).
    """
    return _png(_gain(result))


def shrink_png(result: ShrinkResult) -> bytes:
    """Draw the search (changed answers against MACs) and the units of each layer."""
    return _png(_shrunk(result))


def _analysis(result: AnalyzeResult) -> Figure:
    height = max(4.6, 1.3 + ROW * min(len(result.redundancy.layers), MOST_ROWS))
    figure = Figure(figsize=(15, height), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    _ablation(left, result.ablation)
    _variance(middle, result.redundancy)
    _violins(right, result.redundancy)
    where = f" on {result.data['spec']}" if result.data else ""
    figure.suptitle(f"{result.network}{where}, {result.examples:,} examples")
    return figure


def _gain(result: GainResult) -> Figure:
    figure = Figure(figsize=(12, 5), layout="constrained")
    panels = (("prunable", "non_prunable"), ("redundant", "non_redundant"))
    for axes, (frivolous, other) in zip(figure.subplots(1, 2), panels, strict=True):
        for curve in result.layers:
            if curve.quantity in (frivolous, other):
                dashed = "--" if curve.quantity == other else "-"
                _growth(axes, result.widths, curve, dashed, BUNDLE, 0.8)
        axes.plot(
            result.widths,
            [0.5 * width / result.widths[-1] for width in result.widths],
            ":",
            color=LIMIT,
            label="proportional to the width (g = 2)",
        )
        for curve in result.network:
            if curve.quantity in (frivolous, other):
                mine = curve.quantity == frivolous
                style, colour = ("-", CHOSEN) if mine else ("--", "black")
                label = f"network, {curve.quantity.replace('_', '-')}"
                _growth(axes, result.widths, curve, style, colour, 2.2, label)
        axes.plot([], [], "-", color=BUNDLE, linewidth=0.8, label="layers")
        axes.set_xscale("log", base=2)
        axes.set_yscale("log", base=2)
        axes.set_xticks(result.widths, [f"{width:g}x" for width in result.widths])
        axes.minorticks_off()
        axes.set_xlabel("width factor")
        axes.set_ylabel("units / units of the widest")
        axes.set_title(f"{frivolous}: {_gains(result, frivolous)}", fontsize=10)
        axes.legend(fontsize=8, frameon=False)
    figure.suptitle(
        f"{result.family}, tolerance {result.tolerance:g} of labels, "
        f"{result.redundancy_tolerance:g} of variance"
    )
    return figure


def _shrunk(result: ShrinkResult) -> Figure:
    shown = result.layers[:MOST_ROWS]
    height = max(4.6, 1.1 + ROW * len(shown))
    figure = Figure(figsize=(12, height), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.3, 1))
    _search(left, result)
    _widths(right, shown)
    kept = result.params["after"] / result.params["before"]
    macs = 100 * result.macs["after"] / result.macs["before"]
    left_out = len(result.layers) - len(shown)
    figure.suptitle(
        f"{result.method}: {100 * kept:.3g}% of parameters, "
        f"{macs:.3g}% of MACs, {result.agreement.rate:.1%} same labels"
        + (f"; the first {len(shown)} of {len(result.layers)} layers" if left_out else "")
    )
    return figure


def compare_png(result: CompareResult) -> bytes:
    """Draw every network that was tried: changed answers against MACs, a curve for each method."""
    figure = Figure(figsize=(9, 5.2), layout="constrained")
    axes = figure.subplots()
    rows = [row for row in result.rows if row.failed is None]
    macs = 100 / max(result.macs, 1)
    for row, colour in zip(rows, _colours(len(rows)), strict=True):
        made = [one for one in row.tried if one["macs"] is not None]
        made.sort(key=lambda one: one["macs"])
        changed = [100 * one["changed"] / result.search for one in made]
        style = "--" if row.summary.startswith("torch-pruning") else "-"
        axes.plot([macs * one["macs"] for one in made], changed, style, marker=".", color=colour)
        assert row.macs is not None and row.changed is not None
        kept = macs * row.macs
        label = f"{row.name}: {kept:.3g}%"
        place = [kept], [100 * row.changed / result.search]
        axes.plot(*place, "s", color=colour, markeredgecolor="black", label=label)
    axes.axhline(100 * result.tolerance, color="grey", linestyle=":", label="tolerance")
    axes.set_ylim(0, max(400 * result.tolerance, 4))
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("MACs kept (%)")
    axes.set_ylabel(f"changed {result.noun} of {result.search:,} search examples (%)")
    title = "smallest within\nthe tolerance"
    figure.legend(fontsize=8, title=title, title_fontsize=8, loc="outside right upper")
    return _png(figure)


def _search(axes: Axes, result: ShrinkResult) -> None:
    """Every candidate that is not far beyond what was allowed, and the network that was chosen."""
    agreement, tolerance = result.agreement, result.tolerance
    macs = 100 / result.macs["before"]
    tried = sorted(result.candidates, key=lambda c: c["macs"])
    changed, bound = 1 - agreement.rate, agreement.upper_bound
    most = 100 * min(1.0, max(2.5 * tolerance if tolerance else 0.0, 1.4 * bound, 0.01))
    points = [(macs * c["macs"], 100 * c["changed"] / c["n"]) for c in tried]
    inside = [point for point in points if point[1] <= most]
    axes.plot(*zip(*inside, strict=True), "o-", color=BUNDLE, markersize=4) if inside else None
    place = macs * result.macs["after"]
    axes.errorbar(
        [place],
        [100 * changed],
        yerr=np.array([[0.0], [100 * (bound - changed)]]),
        fmt="s",
        color=CHOSEN,
        capsize=4,
        zorder=5,
    )
    said = f" chosen: {place:.3g}% of MACs,\n at most {100 * bound:.3g}% change"
    axes.annotate(
        f"{said}\n ({agreement.confidence:.0%} confidence)",
        (place, 100 * bound),
        xytext=(2, 6),
        textcoords="offset points",
        color=CHOSEN,
        va="bottom",
        ha="left" if place < 20 else "right",
        fontsize=9,
        zorder=6,
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1},
    )
    if tolerance is not None:
        axes.axhline(100 * tolerance, color=LIMIT, linestyle="--", linewidth=1)
        axes.annotate(
            f"tolerance {100 * tolerance:g}%",
            (1, 100 * tolerance),
            xycoords=("axes fraction", "data"),
            xytext=(-4, 4),
            textcoords="offset points",
            ha="right",
            color=LIMIT,
            fontsize=9,
        )
    beyond = len(points) - len(inside)
    if beyond:
        axes.set_title(f"{beyond} of {len(points)} candidates change more", fontsize=9, loc="left")
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    # Room above for the words on the bound.
    top = max([y for _, y in inside] + [100 * bound, 100 * (tolerance or 0)])
    axes.set_ylim(-0.03 * top, 1.25 * top)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("MACs kept (%); circles: candidates, on the search split")
    axes.set_ylabel("answers that change (%)")


def _widths(axes: Axes, layers: Sequence[LayerChange]) -> None:
    """Units of each layer, original behind compressed, in order from the top."""
    places = np.arange(len(layers))
    before = [layer.units_before for layer in layers]
    after = [layer.units_after for layer in layers]
    axes.barh(places, before, color="#d5dbe2", height=0.8, label="original")
    axes.barh(places, after, color=CHOSEN, height=0.5, label="compressed")
    for place, (old, new) in enumerate(zip(before, after, strict=True)):
        numbers = f" {new:,}" if old == new else f" {new:,} of {old:,}"
        axes.text(old, place, numbers, va="center", fontsize=7, color="#4c5661")
    names = [_short(layer.name) for layer in layers]
    axes.set_yticks(places, names, fontsize=7 if len(layers) > 20 else 8)
    axes.set_ylim(len(layers) - 0.4, -0.6)
    axes.set_xlim(0, 1.2 * max(before, default=1))
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("units: original, of them compressed")


def _short(name: str, most: int = 34) -> str:
    """A name that leaves room for what it names."""
    return name if len(name) <= most else f"{name[: most // 2 - 2]}...{name[-(most // 2 - 1) :]}"


def _ablation(axes: Axes, result: AblationResult) -> None:
    tolerance = result.tolerances[0]
    percent = [100 * p for p in result.network.proportions]
    for curve in result.layers:
        axes.plot(percent, _best(curve, tolerance), color=BUNDLE, linewidth=0.8)
    values = np.array(result.network.agreement)
    axes.fill_between(percent, values.min(0), values.max(0), color="black", alpha=0.12)
    named = {_place(_best(c, tolerance), percent): c.name for c in _edges(result, tolerance)}
    for (x, y), name in named.items():
        _beside(axes, x, y, _short(name, 24), "#59636e")
    best = _best(result.network, tolerance)
    axes.plot(percent, best, "k-o", markersize=4, zorder=4)
    middle = len(percent) // 2
    _beside(axes, percent[middle], best[middle], "network", "black")
    axes.axhline(1 - tolerance, color=LIMIT, linestyle="--", linewidth=1)
    _beside(axes, 0, 1 - tolerance, f"tolerance {tolerance:g}", LIMIT, below=True)
    axes.axvline(100 * result.network.share(tolerance), color="grey", linestyle=":")
    axes.set_xlabel(f"ablated units (%), one unit = one {result.unit}")
    axes.set_ylabel("unchanged labels")
    axes.set_ylim(0, 1.06)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(
        f"prunable: {result.network.share(tolerance):.1%} at tolerance {tolerance:g}", fontsize=10
    )


def _edges(result: AblationResult, tolerance: float) -> list[AblationCurve]:
    """The layers that can be pruned most and least; one if they are the same."""
    ordered = sorted(result.layers, key=lambda curve: curve.share(tolerance))
    return [] if len(ordered) < 2 else [ordered[0], ordered[-1]]


def _place(values: Sequence[float], percent: Sequence[float]) -> tuple[float, float]:
    """A point of a curve where it has left the others: half way down."""
    half = (max(values) + min(values)) / 2
    at = next((i for i, value in enumerate(values) if value <= half), len(values) - 1)
    return percent[at], values[at]


def _beside(axes: Axes, x: float, y: float, text: str, colour: str, *, below: bool = False) -> None:
    """A name beside a point, inside the axes."""
    far = x > 0.6 * axes.get_xlim()[1]
    axes.annotate(
        text,
        (x, y),
        xytext=(-6 if far else 6, -11 if below else 5),
        textcoords="offset points",
        ha="right" if far else "left",
        color=colour,
        fontsize=8,
        zorder=6,
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 0.5},
    )


def _variance(axes: Axes, result: RedundancyResult) -> None:
    tolerance = result.tolerances[0]
    drawn = [layer for layer in result.layers if layer.explained]
    for layer in drawn:
        share = 100 * np.arange(1, layer.units + 1) / layer.units
        axes.plot(share, layer.explained, color=BUNDLE, linewidth=0.8)
    axes.axhline(1 - tolerance, color=LIMIT, linestyle="--", linewidth=1)
    ordered = sorted(drawn, key=lambda layer: layer.redundant(tolerance) / layer.units)
    axes.set_xlim(0, 104)
    for one in ordered[:1] + ordered[1:][-1:]:
        at = max(one.components(tolerance) - 1, 0)
        axes.plot(100 * np.arange(1, one.units + 1) / one.units, one.explained, color=CHOSEN)
        x, y = 100 * (at + 1) / one.units, one.explained[at]
        _beside(axes, x, y, _short(one.name, 24), CHOSEN, below=True)
    axes.set_xlabel("principal components (% of the units)")
    axes.set_ylabel("explained variance")
    axes.set_ylim(0, 1.06)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(
        f"redundant: {result.share(tolerance):.1%} at tolerance {tolerance:g}", fontsize=10
    )


def _violins(axes: Axes, result: RedundancyResult) -> None:
    """Histograms of |r| drawn as ridges, one a layer: the pairs themselves are not kept."""
    centres = (np.arange(HISTOGRAM_BINS) + 0.5) / HISTOGRAM_BINS
    shown = result.layers[:MOST_ROWS]
    for place, layer in enumerate(shown):
        if layer.correlations is not None:
            counts = np.array(layer.correlations.histogram)
            height = 0.9 * counts / counts.max()
            axes.fill_between(centres, place + 0.4, place + 0.4 - height, color=BUNDLE, linewidth=0)
            axes.plot([layer.correlations.mean] * 2, [place - 0.4, place + 0.4], color=CHOSEN)
    names = [_short(layer.name, 24) for layer in shown]
    axes.set_yticks(range(len(shown)), names, fontsize=7 if len(shown) > 20 else 8)
    axes.set_ylim(len(shown) - 0.4, -0.8)
    axes.set_xlim(0, 1)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("|correlation| of two units")
    axes.set_title("unit-to-unit correlation (line: mean)", fontsize=10)


def _best(curve: AblationCurve, tolerance: float) -> tuple[float, ...]:
    """Agreement of the random order whose prunable share counts."""
    shares = curve.shares(tolerance)
    return curve.agreement[shares.index(max(shares))]


def _growth(
    axes: Axes,
    widths: Sequence[float],
    curve: Growth,
    style: str,
    colour: object,
    thickness: float,
    label: str | None = None,
) -> None:
    # No units at all have no place on a logarithmic axis; the line has a gap there.
    mean = [value if value > 0 else np.nan for value in curve.mean]
    axes.errorbar(
        widths,
        mean,
        yerr=curve.std,
        fmt=style,
        color=colour,
        linewidth=thickness,
        capsize=2,
        marker="o",
        markersize=2 + thickness,
        label=label,
    )


def _gains(result: GainResult, quantity: str) -> str:
    """The gains of one panel in words."""
    network = next(c for c in result.network if c.quantity == quantity)
    words = f"g = {_number(network.gain)}"
    if len(network.ratios) > 3:
        words += f" (last three doublings {_number(network.gain_last)})"
    layers = result.range(quantity, layers=True)
    if layers.gain_min is not None:
        words += f"; layers {_number(layers.gain_min)} to {_number(layers.gain_max)}"
    return words


def _number(gain: float | None) -> str:
    return "undefined" if gain is None else f"{gain:.2f}"


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    # The name of the program is how the command line knows its own pictures again.
    FigureCanvasAgg(figure).print_figure(
        buffer, format="png", dpi=DOTS_PER_INCH, metadata={"Software": "fcompress"}
    )
    return buffer.getvalue()


def _colours(count: int) -> list[object]:
    return list(matplotlib.colormaps["viridis"](np.linspace(0, 0.9, count)))
