"""The figures of a recipe, in the form of the paper's, as PNG and SVG."""

import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from fcompress.experiments.measures import constructions as constructing
from fcompress.experiments.measures import interpretability, shrinking_by_width
from fcompress.experiments.recipe import Curve
from fcompress.experiments.report import feature_figure
from fcompress.experiments.report.measured import analyzed_of, correlations_of, gains, responses_of
from fcompress.experiments.report.tables import (
    accuracies,
    paper_gain,
    range_text,
    shown,
    tolerance_pairs,
)
from fcompress.experiments.trials.results import Results
from fcompress.experiments.trials.trial import Record
from fcompress.measure.ablation import TOLERANCES
from fcompress.measure.growth import GainResult, Growth
from fcompress.measure.redundancy import HISTOGRAM_BINS, Correlations

DOTS_PER_INCH = 130
MOST_NAMES = 20  # in a legend beside a curve that is to be seen
FRIVOLOUS, OTHERS = ("prunable", "redundant"), ("non_prunable", "non_redundant")

# Name -> function; those that show something else than gains stand in files of their own.
Drawing = Callable[[Results], Figure | None]


def growth(results: Results) -> Figure | None:
    """Prunable and redundant units against the width (Figs. 3a-b and 4)."""
    return _growth_panels(results, FRIVOLOUS)


def non_frivolous(results: Results) -> Figure | None:
    """The same for the other units (appendix)."""
    return _growth_panels(results, OTHERS)


def layers(results: Results) -> Figure | None:
    """Prunable and redundant units of each layer against the width (Fig. 3c-d)."""
    found = gains(results)
    if not found:
        return None
    figure = _figure(results, (11, 4.6 * len(found)))
    panels = figure.subplots(len(found), 2, squeeze=False)
    for (name, result), pair in zip(found.items(), panels, strict=True):
        for axes, quantity in zip(pair, FRIVOLOUS, strict=True):
            curves = [c for c in shown(results, result) if c.quantity == quantity]
            for curve, colour in zip(curves, colours(len(curves)), strict=True):
                _growth_line(axes, result, curve, colour, curve.name)
            _growth_axes(axes, result.widths, f"{quantity}, {name}", curves)
    return figure


def accuracy(results: Results) -> Figure | None:
    """Test accuracy against the width (Fig. 1)."""
    points = {
        name: [(float(width), one["mean"], one["std"]) for width, one in by_width.items()]
        for name, by_width in accuracies(results).items()
    }
    return _against_width(results, points, "test accuracy")


def params(results: Results) -> Figure | None:
    """Trainable parameters against the width (appendix)."""
    points = {}
    for curve in results.recipe.curves:
        found = [(width, results.of(curve.name, width)) for width in curve.widths]
        points[curve.name] = [(w, float(own[0]["params"]), 0.0) for w, own in found if own]
    return _against_width(results, points, "parameters", scale="log")


def ablation(results: Results) -> Figure | None:
    """Unchanged labels against the share of ablated units, by width (Fig. 2a-b)."""
    figure, panels = _a_panel_for_each_curve(results)
    for (curve, _), axes in zip(_curves(results), panels, strict=True):
        for width, colour in zip(curve.widths, colours(len(curve.widths)), strict=True):
            networks = [analyzed_of(r).ablation.network for r in results.of(curve.name, width)]
            if not networks:
                continue
            best = []
            for network in networks:
                shares = network.shares(TOLERANCES[0])
                best.append(network.agreement[shares.index(max(shares))])
            percent = [100 * p for p in networks[0].proportions]
            values = 100 * np.array(best)
            deviation = values.std(0, ddof=1) if len(values) > 1 else None
            axes.errorbar(
                percent, values.mean(0), deviation, fmt="o-", color=colour, markersize=4,
                capsize=2, label=f"{width:g}x",
            )  # fmt: skip
        axes.axhline(100 * (1 - TOLERANCES[0]), color="grey", linestyle="--", linewidth=0.8)
        axes.set_xlabel("ablated units (%)")
        axes.set_ylabel("unchanged labels (%)")
        axes.set_ylim(0, 103)
        axes.set_title(curve.name, fontsize=10)
        axes.legend(fontsize=8)
    return figure


def correlations(results: Results) -> Figure | None:
    """Correlations of all pairs of units of one layer, by width (Fig. 2c-d)."""
    layer = results.recipe.layer
    return _violins(
        results, lambda records: correlations_of(records, layer), layer or "the last layer"
    )


def responses(results: Results) -> Figure | None:
    """The same before the nonlinearity, where units that a ReLU silences still respond."""
    layer = results.recipe.curves[0].measure["responses"]["layer"]
    return _violins(results, responses_of, f"{layer}, before its nonlinearity")


def _violins(
    results: Results, correlations_in: Callable[[Sequence[Record]], list[Correlations]], where: str
) -> Figure:
    figure, panels = _a_panel_for_each_curve(results)
    centres = (np.arange(HISTOGRAM_BINS) + 0.5) / HISTOGRAM_BINS
    for (curve, colour), axes in zip(_curves(results), panels, strict=True):
        for place, width in enumerate(curve.widths):
            found = correlations_in(results.of(curve.name, width))
            if not found:
                continue
            counts = np.mean([np.array(f.histogram) / f.pairs for f in found], axis=0)
            half = 0.45 * counts / counts.max()
            axes.fill_betweenx(
                centres, place - half, place + half, color=colour, alpha=0.6, linewidth=0
            )
            mean = np.mean([f.mean for f in found])
            axes.plot(place, mean, "k_", markersize=14)
            axes.annotate(f"{mean:.2f}", (place, 1.03), ha="center", fontsize=8)
        axes.set_xticks(range(len(curve.widths)), [f"{w:g}x" for w in curve.widths])
        axes.set_ylim(0, 1.1)
        axes.set_xlabel("width factor")
        axes.set_ylabel(f"|correlation| of two units of {where}", fontsize=8)
        axes.set_title(f"{curve.name} (bar and number: mean)", fontsize=10)
    return figure


def tolerances(results: Results) -> Figure | None:
    """The gains at larger tolerances (section 4: trends were similar)."""
    pairs = list(tolerance_pairs())
    by_pair = [gains(results, *pair) for pair in pairs]
    if not by_pair[0]:
        return None
    figure = _figure(results, (11, 4.4))
    for axes, quantity, which in zip(figure.subplots(1, 2), FRIVOLOUS, (0, 1), strict=True):
        for name, colour in zip(by_pair[0], colours(len(by_pair[0])), strict=True):
            points = {}
            for pair, found in zip(pairs, by_pair, strict=True):
                curve = next(c for c in found[name].network if c.quantity == quantity)
                points[pair[which]] = paper_gain(curve)
            known = {t: g for t, g in points.items() if g is not None}
            axes.plot(list(known), list(known.values()), "o-", color=colour, label=name)
        axes.axhline(2, color="grey", linestyle=":")
        axes.set_xlabel(f"tolerance of the {('labels', 'variance')[which]}")
        axes.set_ylabel(f"gain g of {quantity} units")
        axes.legend(fontsize=8)
    return figure


def shrunk(results: Results) -> Figure | None:
    """Size and accuracy before and after `shrink` against the width, of the first curve."""
    curve = results.recipe.curves[0]
    found = {width: results.of(curve.name, width) for width in curve.widths}
    return shrinking_by_width.figure({w: r for w, r in found.items() if r}, _title(results))


def constructions(results: Results) -> Figure | None:
    """Prunable and redundant units of the narrow network and of the paper's wide ones."""
    widths = results.recipe.curves[0].widths
    records = [one for width in widths for one in results.measured("constructions", width)]
    return constructing.figure(records, _title(results)) if records else None


def images(results: Results) -> Figure | None:
    """Images of units of the first curve's narrowest and widest networks (Fig. 5)."""
    widths = results.recipe.curves[0].widths
    thin, wide = (results.measured("visualise", width) for width in (widths[0], widths[-1]))
    if not thin or not wide:
        return None
    labels = f"{widths[0]:g}x", f"{widths[-1]:g}x"
    return feature_figure.figure(
        thin[0], wide[0], interpretability.compare(thin, wide), labels, _title(results)
    )


DRAWINGS: dict[str, Drawing] = {
    drawing.__name__: drawing
    for drawing in (
        growth,
        non_frivolous,
        layers,
        accuracy,
        params,
        ablation,
        correlations,
        responses,
        tolerances,
        shrunk,
        constructions,
        images,
    )
}


def draw(results: Results) -> Iterator[tuple[str, Figure]]:
    """Every figure that the recipe asks for and that its finished trials allow."""
    for name in results.recipe.draw:
        figure = DRAWINGS[name](results)
        if figure is not None:
            _without_formulas(figure)
            yield name, figure


def _without_formulas(figure: Figure) -> None:
    """Draw every text as it is: a name with two dollar signs is no formula. Ticks stay theirs."""
    axes = [axis for panel in figure.axes for axis in (panel.xaxis, panel.yaxis)]
    ticks = {id(text) for axis in axes for text in axis.findobj(Text) if text is not axis.label}
    for text in figure.findobj(Text):
        if id(text) not in ticks:
            text.set_parse_math(False)


def files(figure: Figure) -> dict[str, bytes]:
    """A figure as PNG and as SVG; the same figure gives the same bytes."""
    found = {}
    with matplotlib.rc_context({"svg.hashsalt": "fcompress", "svg.fonttype": "none"}):
        for kind, metadata in (("png", {}), ("svg", {"Date": None})):
            buffer = io.BytesIO()
            FigureCanvasAgg(figure)
            figure.savefig(buffer, format=kind, dpi=DOTS_PER_INCH, metadata=metadata)
            found[kind] = buffer.getvalue()
    found["svg"] = _numbered(found["svg"])
    return found


def _numbered(svg: bytes) -> bytes:
    """Number the clipping paths: their names hash positions, whose last digits vary."""
    for number, name in enumerate(re.findall(rb'<clipPath id="(\w+)"', svg)):
        for form in (b'id="%s"', b"url(#%s)"):
            svg = svg.replace(form % name, form % b"clip%d" % number)
    return svg


def _growth_panels(results: Results, quantities: Sequence[str]) -> Figure | None:
    found = gains(results)
    if not found:
        return None
    figure = _figure(results, (11, 4.8))
    for axes, quantity in zip(figure.subplots(1, 2), quantities, strict=True):
        drawn = []
        for (name, result), colour in zip(found.items(), colours(len(found)), strict=True):
            curve = next(c for c in result.network if c.quantity == quantity)
            _growth_line(axes, result, curve, colour, name)
            drawn.append(curve)
        widths = sorted({width for result in found.values() for width in result.widths})
        _growth_axes(axes, widths, f"{quantity.replace('_', '-')} units", drawn)
    return figure


def _growth_line(axes: Axes, result: GainResult, curve: Growth, colour: object, label: str) -> None:
    points = [
        (width, mean if mean > 0 else np.nan, std)  # 0 has no place on a logarithmic axis
        for width, mean, std in zip(result.widths, curve.mean, curve.std, strict=True)
    ]
    own = paper_gain(curve)
    _errors(axes, points, colour, f"{label}: g = {'-' if own is None else format(own, '.2f')}")


def _growth_axes(axes: Axes, widths: Sequence[float], title: str, curves: Sequence[Growth]) -> None:
    line = [0.5 * width / widths[-1] for width in widths]
    axes.plot(widths, line, ":", color="grey", label="as the network: g = 2")
    _width_axis(axes, widths)
    axes.set_yscale("log", base=2)
    axes.set_ylabel("units / units of the widest")
    known = [g for g in (paper_gain(curve) for curve in curves) if g is not None]
    ends = range_text((min(known), max(known))) if known else "-"
    axes.set_title(f"{title}, g {ends}", fontsize=10)
    if len(curves) <= MOST_NAMES:
        axes.legend(fontsize=7)
    else:
        said = f"{len(curves)} curves in the order of depth: the first dark, the last light"
        axes.text(0.02, 0.98, said, transform=axes.transAxes, va="top", fontsize=7)


def _against_width(
    results: Results,
    points: Mapping[str, Sequence[tuple[float, float, float]]],
    label: str,
    scale: str = "linear",
) -> Figure | None:
    """A line for each curve that has (width, value, deviation) points; None without any."""
    figure = _figure(results, (6, 4.4))
    axes = figure.subplots()
    for curve, colour in _curves(results):
        if points[curve.name]:
            _errors(axes, points[curve.name], colour, curve.name)
    if not axes.lines:
        return None
    _width_axis(axes, sorted({w for curve in results.recipe.curves for w in curve.widths}))
    axes.set_yscale(scale)
    axes.set_ylabel(label)
    axes.legend(fontsize=8)
    return figure


def _a_panel_for_each_curve(results: Results) -> tuple[Figure, list[Axes]]:
    count = len(results.recipe.curves)
    columns = min(count, 3)
    rows = -(-count // columns)
    figure = _figure(results, (4.6 * columns, 4.2 * rows))
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for empty in panels[count:]:
        empty.axis("off")
    return figure, panels[:count]


def _figure(results: Results, size: tuple[float, float]) -> Figure:
    figure = Figure(figsize=size, layout="constrained")
    figure.suptitle(_title(results), fontsize=10, wrap=True)
    return figure


def _title(results: Results) -> str:
    """What is shown and at which scale, in two lines."""
    recipe = results.recipe
    about = f"{recipe.source}: {recipe.title}" if recipe.source else recipe.title
    remark = f"scale {recipe.scale}" + (f": {recipe.note}" if recipe.note else "")
    if results.missing:
        remark += f"; {results.missing} of {len(results.trials)} networks missing"
    return f"{about}\n{remark}"


def _errors(
    axes: Axes, points: Sequence[tuple[float, float, float]], colour: object, label: str
) -> None:
    x, y, deviation = zip(*points, strict=True)
    axes.errorbar(
        x, y, deviation, fmt="o-", color=colour, markersize=4, capsize=2, label=label, linewidth=1.4
    )


def _width_axis(axes: Axes, widths: Sequence[float]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(widths, [f"{width:g}x" for width in widths])
    axes.minorticks_off()
    axes.set_xlabel("width factor")


def _curves(results: Results) -> list[tuple[Curve, object]]:
    curves = results.recipe.curves
    return list(zip(curves, colours(len(curves)), strict=True))


def colours(count: int) -> list[object]:
    """So many colours that can be told apart, the first dark."""
    return list(matplotlib.colormaps["viridis"](np.linspace(0, 0.88, count)))
