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
from fcompress.compress.result import ShrinkResult
from fcompress.measure.ablation import AblationCurve, AblationResult
from fcompress.measure.analysis import AnalyzeResult
from fcompress.measure.growth import GainResult, Growth
from fcompress.measure.redundancy import HISTOGRAM_BINS, RedundancyResult

DOTS_PER_INCH = 150
NAMED_LAYERS = 10  # with more of them a legend would hide the curves


def analysis_png(result: AnalyzeResult) -> bytes:
    """Draw ablation curves (Fig. 2a-b), explained variance and correlations (Fig. 2c-d)."""
    figure = Figure(figsize=(15, 4.6), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    _ablation(left, result.ablation)
    _variance(middle, result.redundancy)
    _violins(right, result.redundancy)
    where = f" on {result.data['spec']}" if result.data else ""
    figure.suptitle(f"{result.network}{where}, {result.examples:,} examples")
    return _png(figure)


def gain_png(result: GainResult) -> bytes:
    """Draw normalised frivolous units against the width, both axes logarithmic (Figs. 3 and 4).

    Full lines are prunable or redundant units, dashed lines the others; thick for the network,
    thin for its layers. The dotted line grows as the network does (g = 2).
    """
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    panels = (("prunable", "non_prunable"), ("redundant", "non_redundant"))
    for axes, (frivolous, other) in zip(figure.subplots(1, 2), panels, strict=True):
        layers = [c for c in result.layers if c.quantity in (frivolous, other)]
        colours = _colours(len({c.name for c in layers}))
        colour = dict(zip(dict.fromkeys(c.name for c in layers), colours, strict=True))
        for curve in layers:
            dashed = curve.quantity == other
            _growth(axes, result.widths, curve, "--" if dashed else "-", colour[curve.name], 0.8)
        for curve in result.network:
            if curve.quantity in (frivolous, other):
                style = "-" if curve.quantity == frivolous else "--"
                label = f"network, {curve.quantity.replace('_', '-')}"
                _growth(axes, result.widths, curve, style, "black", 2.2, label)
        axes.plot(
            result.widths,
            [0.5 * width / result.widths[-1] for width in result.widths],
            ":",
            color="grey",
            label="proportional to the width (g = 2)",
        )
        axes.set_xscale("log", base=2)
        axes.set_yscale("log", base=2)
        axes.set_xticks(result.widths, [f"{width:g}x" for width in result.widths])
        axes.minorticks_off()
        axes.set_xlabel("width factor")
        axes.set_ylabel("units / units of the widest")
        axes.set_title(f"{frivolous}: {_gains(result, frivolous)}", fontsize=10)
        axes.legend(fontsize=8)
    figure.suptitle(
        f"{result.family}, tolerance {result.tolerance:g} of labels, "
        f"{result.redundancy_tolerance:g} of variance"
    )
    return _png(figure)


def shrink_png(result: ShrinkResult) -> bytes:
    """Draw the search (agreement against MACs) and the units of each layer before and after."""
    figure = Figure(figsize=(12, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.4))
    macs = 100 / result.macs["before"]
    tried = sorted(result.candidates, key=lambda c: c["macs"])
    left.plot(
        [macs * c["macs"] for c in tried],
        [1 - c["changed"] / c["n"] for c in tried],
        "o-",
        color="grey",
        label="tried, search split",
    )
    left.errorbar(
        [macs * result.macs["after"]],
        [result.agreement.rate],
        yerr=[[result.agreement.rate - result.agreement.lower_bound], [0]],
        fmt="s",
        color="black",
        capsize=4,
        label=f"chosen, certification split, {result.agreement.confidence:.0%} bound",
    )
    if result.tolerance is not None:
        left.axhline(1 - result.tolerance, color="grey", linestyle="--", label="tolerance")
    left.set_xscale("log")
    left.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    left.xaxis.set_major_formatter("{x:g}")
    left.xaxis.set_minor_formatter(NullFormatter())
    left.set_xlabel("MACs kept (%)")
    left.set_ylabel("label agreement with the original network")
    left.legend(fontsize=8)
    places = np.arange(len(result.layers))
    before = [layer.units_before for layer in result.layers]
    after = [layer.units_after for layer in result.layers]
    right.bar(places, before, color="lightgrey", label="original")
    right.bar(places, after, color="black", label="compressed")
    _name(right, [layer.name for layer in result.layers])
    right.set_ylabel("units")
    right.legend(fontsize=8)
    kept = result.params["after"] / result.params["before"]
    figure.suptitle(
        f"{result.method}: {100 * kept:.3g}% of parameters, "
        f"{macs * result.macs['after']:.3g}% of MACs, {result.agreement.rate:.1%} same labels"
    )
    return _png(figure)


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


def _ablation(axes: Axes, result: AblationResult) -> None:
    tolerance = result.tolerances[0]
    percent = [100 * p for p in result.network.proportions]
    named = len(result.layers) <= NAMED_LAYERS
    for curve, colour in zip(result.layers, _colours(len(result.layers)), strict=True):
        label = curve.name if named else None
        axes.plot(percent, _best(curve, tolerance), color=colour, linewidth=1, label=label)
    values = np.array(result.network.agreement)
    axes.fill_between(percent, values.min(0), values.max(0), color="black", alpha=0.15)
    axes.plot(percent, _best(result.network, tolerance), "k-o", markersize=4, label="network")
    axes.axhline(1 - tolerance, color="grey", linestyle="--")
    axes.axvline(100 * result.network.share(tolerance), color="grey", linestyle=":")
    axes.set_xlabel(f"ablated units (%), one unit = one {result.unit}")
    axes.set_ylabel("unchanged labels")
    axes.set_ylim(0, 1.03)
    axes.set_title(
        f"prunable: {result.network.share(tolerance):.1%} at tolerance {tolerance:g}", fontsize=10
    )
    axes.legend(fontsize=7, title=None if named else f"and {len(result.layers)} layers")


def _variance(axes: Axes, result: RedundancyResult) -> None:
    tolerance = result.tolerances[0]
    named = len(result.layers) <= NAMED_LAYERS
    for layer, colour in zip(result.layers, _colours(len(result.layers)), strict=True):
        if layer.explained:
            share = 100 * np.arange(1, layer.units + 1) / layer.units
            label = layer.name if named else None
            axes.plot(share, layer.explained, color=colour, linewidth=1, label=label)
    axes.axhline(1 - tolerance, color="grey", linestyle="--")
    axes.set_xlabel("principal components (% of the units)")
    axes.set_ylabel("explained variance")
    axes.set_ylim(0, 1.03)
    axes.set_title(
        f"redundant: {result.share(tolerance):.1%} at tolerance {tolerance:g}", fontsize=10
    )
    if named:
        axes.legend(fontsize=7)


def _violins(axes: Axes, result: RedundancyResult) -> None:
    """Histograms of |r| drawn as violins: the pairs themselves are not kept."""
    centres = (np.arange(HISTOGRAM_BINS) + 0.5) / HISTOGRAM_BINS
    for x, (layer, colour) in enumerate(
        zip(result.layers, _colours(len(result.layers)), strict=True)
    ):
        if layer.correlations is not None:
            counts = np.array(layer.correlations.histogram)
            half = 0.42 * counts / counts.max()
            axes.fill_betweenx(centres, x - half, x + half, color=colour, alpha=0.6, linewidth=0)
            axes.plot(x, layer.correlations.mean, "k_", markersize=10)
    _name(axes, [layer.name for layer in result.layers])
    axes.set_ylim(0, 1)
    axes.set_ylabel("|correlation| of two units")
    axes.set_title("unit-to-unit correlation (bar: mean)", fontsize=10)


def _name(axes: Axes, layers: Sequence[str]) -> None:
    """Slanted names that end at their places, 0 to n - 1."""
    axes.set_xticks(
        range(len(layers)), layers, rotation=60, ha="right", rotation_mode="anchor", fontsize=7
    )


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


def _colours(count: int) -> list[object]:
    return list(matplotlib.colormaps["viridis"](np.linspace(0, 0.9, count)))


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    # The name of the program is how the command line knows its own pictures again.
    FigureCanvasAgg(figure).print_figure(
        buffer, format="png", dpi=DOTS_PER_INCH, metadata={"Software": "fcompress"}
    )
    return buffer.getvalue()
