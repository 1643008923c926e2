"""Results in two or three lines, and as rows of plain values: what Python and notebooks show."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from fcompress.forward.answers.asked import noun_of
from fcompress.report.labels import rounded_up

# For annotations only: what prints a result has it already.
if TYPE_CHECKING:
    from fcompress.certify.agreement import AgreementResult
    from fcompress.compress.result import ShrinkResult
    from fcompress.exports.describe import Contents
    from fcompress.exports.exporting import ExportResult
    from fcompress.forward.cost import Cost
    from fcompress.latency.benchmarking import BenchResult
    from fcompress.measure.ablation import AblationResult
    from fcompress.measure.analysis import AnalyzeResult
    from fcompress.measure.growth import GainResult
    from fcompress.measure.redundancy import RedundancyResult
    from fcompress.training.loop import TrainResult

NAMED = 40  # characters of a name in a line
Rows = list[Mapping[str, Any]]


def lines_of(result: object) -> Iterator[str]:
    """A result in two or three lines, the first of which begins with its class.

    Args:
        result: Any of the package's results.
    """
    known = _of_class(_LINES, result)
    first, *others = known(result)
    yield f"{type(result).__name__}: {first}"
    for line in others:
        yield f"  {line}"


def rows_of(result: object) -> Rows:
    """The parts of a result, all with the same keys; none where it has no parts."""
    return _of_class(_ROWS, result)(result)


def _of_class(table: Mapping[str, Callable[[Any], Any]], result: object) -> Callable[[Any], Any]:
    """What a table has for a class or the first of its bases."""
    return next(table[c.__name__] for c in type(result).__mro__ if c.__name__ in table)


def _short(name: str) -> str:
    """A name that leaves room for what is said of it."""
    return name if len(name) <= NAMED else f"...{name[3 - NAMED :]}"


def _pair(pair: Mapping[str, float]) -> str:
    before, after = pair["before"], pair["after"]
    share = f" ({after / before:.1%})" if before else ""
    return f"{before:,} -> {after:,}{share}"


def _shrunk(result: ShrinkResult) -> Iterator[str]:
    agreement, tolerance = result.agreement, result.tolerance
    bound = rounded_up(agreement.upper_bound)
    what = f"at most {bound} of {noun_of(agreement.labels)} change"
    sure = f"{agreement.confidence:.0%} confidence"
    if tolerance is None:
        yield f"of the size asked for, {what} ({sure})"
    else:
        said = "certified" if result.certified else "not certified"
        yield f"{said}, {what} (tolerance {tolerance:.3g}, {sure})"
    yield f"MACs {_pair(result.macs)}, parameters {_pair(result.params)}"
    accuracy = result.accuracy
    right = ""
    if accuracy is not None:
        right = f", accuracy {accuracy['before']:.2%} -> {accuracy['after']:.2%}"
    thinner = sum(layer.units_after < layer.units_before for layer in result.layers)
    yield f"{thinner:,} of {len(result.layers):,} layers thinner ({result.method}){right}"


def _agreement(result: AgreementResult) -> Iterator[str]:
    yield (
        f"{result.rate:.1%} of {noun_of(result.labels)} the same on {result.n:,} examples, at most "
        f"{rounded_up(result.upper_bound)} change"
    )
    right = ""
    if result.accuracy is not None:
        right = f", accuracy {result.accuracy['before']:.2%} -> {result.accuracy['after']:.2%}"
    yield f"{result.confidence:.0%} confidence{right}"


def _prunable(result: AblationResult) -> Iterator[str]:
    tolerance, whole = result.tolerances[0], result.network
    yield (
        f"{whole.share(tolerance):.1%} of {whole.units:,} units prunable before more than "
        f"{tolerance:g} of labels change"
    )
    yield f"{len(result.units):,} layers, {len(whole.agreement)} random orders, unit {result.unit}"


def _redundant(result: RedundancyResult) -> Iterator[str]:
    tolerance = result.tolerances[0]
    units = sum(layer.units for layer in result.layers)
    dead = sum(len(layer.dead) for layer in result.layers)
    yield f"{result.share(tolerance):.1%} redundant up to {tolerance:g} of the variance"
    yield f"{units:,} units in {len(result.layers):,} layers, {dead:,} of them dead"


def _analyzed(result: AnalyzeResult) -> Iterator[str]:
    width = f" {result.args['width']:g}x" if "width" in result.args else ""
    where = f" on {_short(result.data['spec'])}" if result.data else ""
    right = "" if result.accuracy is None else f", accuracy {result.accuracy:.1%}"
    yield f"{_short(result.network)}{width}{where}, {result.examples:,} examples{right}"
    tolerance, variance = result.ablation.tolerances[0], result.redundancy.tolerances[0]
    yield (
        f"prunable {result.ablation.network.share(tolerance):.1%} at {tolerance:g}, redundant "
        f"{result.redundancy.share(variance):.1%} at {variance:g}"
    )
    yield (
        f"{result.cost.params:,} parameters, {result.cost.macs:,} MACs, "
        f"{sum(result.groups.values()):,} units can be excised"
    )


def _gained(result: GainResult) -> Iterator[str]:
    widths = f"{result.widths[0]:g}x to {result.widths[-1]:g}x"
    yield f"{result.family}, widths {widths}, {sum(result.networks)} networks"
    gains = {c.quantity: c.gain for c in result.network if c.quantity in ("prunable", "redundant")}
    said = (f"{q} {'undefined' if g is None else f'{g:.2f}'}" for q, g in gains.items())
    yield f"gain when the width doubles: {', '.join(said)} (above 2: faster than the network)"


def _timed(result: BenchResult) -> Iterator[str]:
    yield f"{len(result.rows):,} measurements on {result.device}"
    for row in result.rows[:2]:
        yield (
            f"{_short(row.file)} in {row.runs_in}, batch {row.batch}: {row.average_ms:.3g} ms, "
            f"ratio {row.ratio:.2f}"
        )


def _exported(result: ExportResult) -> Iterator[str]:
    yield f"{result.path} ({result.bytes:,} bytes)"
    yield (
        f"run on {result.n:,} examples: {result.same:,} {noun_of(result.labels)} as in memory, "
        f"differs by {result.largest_difference:.2g} at most"
    )


def _trained(result: TrainResult) -> Iterator[str]:
    where = "" if result.path is None else f", in {_short(str(result.path))}"
    yield f"{len(result.epochs):,} epochs on {_short(result.data['spec'])}{where}"
    if result.epochs:
        last = result.epochs[-1]
        test = "" if last.test_accuracy is None else f", test {last.test_accuracy:.2%}"
        yield f"accuracy: training {last.train_accuracy:.2%}{test}"


def _cost(result: Cost) -> Iterator[str]:
    yield (
        f"{result.params:,} parameters, {result.macs:,} MACs for one example, "
        f"{len(result.layers):,} layers"
    )


def _file(result: Contents) -> Iterator[str]:
    params = "" if result.params is None else f", {result.params:,} parameters"
    yield f"{_short(result.path)}, {result.kind}, {result.bytes:,} bytes"
    done = f", {len(result.history)} entries of history" if result.history else ""
    yield f"{result.family or 'family not known'}{params}{done}"


def _layers(result: ShrinkResult) -> Rows:
    return [
        {
            "layer": layer.name,
            "units_before": layer.units_before,
            "units_after": layer.units_after,
            "reason": layer.reason,
        }
        for layer in result.layers
    ]


def _measured_layers(result: AnalyzeResult) -> Rows:
    tolerance, variance = result.ablation.tolerances[0], result.redundancy.tolerances[0]
    curves = {curve.name: curve for curve in result.ablation.layers}
    redundant = {layer.name: layer for layer in result.redundancy.layers}
    rows: Rows = []
    for name in dict.fromkeys([*result.ablation.units, *redundant]):
        curve, layer = curves.get(name), redundant.get(name)
        cost = result.layer_costs[name]
        r = None if layer is None else layer.correlations
        rows.append(
            {
                "layer": name,
                "units": result.ablation.units.get(name),
                "prunable": None if curve is None else curve.share(tolerance),
                "maps": None if layer is None else layer.units,
                "redundant": None if layer is None else layer.redundant(variance) / layer.units,
                "dead": None if layer is None else len(layer.dead),
                "constant": None if layer is None else len(layer.constant),
                "mean_correlation": None if r is None else r.mean,
                "params": cost.params,
                "macs": cost.macs,
            }
        )
    return rows


def _prunable_layers(result: AblationResult) -> Rows:
    tolerance = result.tolerances[0]
    return [
        {"layer": c.name, "units": c.units, "prunable": c.share(tolerance)}
        for c in (*result.layers, result.network)
    ]


def _redundant_layers(result: RedundancyResult) -> Rows:
    tolerance = result.tolerances[0]
    return [
        {
            "layer": layer.name,
            "units": layer.units,
            "redundant": layer.redundant(tolerance) / layer.units,
            "dead": len(layer.dead),
            "constant": len(layer.constant),
        }
        for layer in result.layers
    ]


def _curves(result: GainResult) -> Rows:
    return [
        {
            "name": curve.name,
            "quantity": curve.quantity,
            "gain": curve.gain,
            "gain_last": curve.gain_last,
            **{f"{w:g}x": mean for w, mean in zip(result.widths, curve.mean, strict=True)},
        }
        for curve in (*result.network, *result.layers)
    ]


def _labels(result: AgreementResult) -> Rows:
    """Each of the original's labels; of answers that are no labels, the whole in one row."""
    if result.by_label is None:
        return _whole(result)
    return [
        {
            result.by_label.word: one.label if one.side is None else f"{one.label} {one.side}",
            "examples": one.n,
            "changed": one.changed,
            "at_most": one.bound,
        }
        for one in result.by_label.labels
    ]


def _whole(result: AgreementResult | ExportResult) -> Rows:
    """Its plain values in one row."""
    plain = (bool, int, float, str)
    return [{k: v for k, v in vars(result).items() if v is None or isinstance(v, plain)}]


def _costs(result: Cost) -> Rows:
    return [{"layer": name, **asdict(cost)} for name, cost in result.layers.items()]


def _widths(result: Contents) -> Rows:
    return [
        {"layer": name, "units_out": out, "units_in": into}
        for name, (out, into) in result.widths.items()
    ]


_LINES: dict[str, Callable[[Any], Iterator[str]]] = {
    "ShrinkResult": _shrunk,
    "AgreementResult": _agreement,
    "AblationResult": _prunable,
    "RedundancyResult": _redundant,
    "AnalyzeResult": _analyzed,
    "GainResult": _gained,
    "BenchResult": _timed,
    "ExportResult": _exported,
    "TrainResult": _trained,
    "Cost": _cost,
    "Contents": _file,
}
_ROWS: dict[str, Callable[[Any], Rows]] = {
    "ShrinkResult": _layers,
    "AgreementResult": _labels,
    "AblationResult": _prunable_layers,
    "RedundancyResult": _redundant_layers,
    "AnalyzeResult": _measured_layers,
    "GainResult": _curves,
    "BenchResult": lambda result: [asdict(row) for row in result.rows],
    "ExportResult": _whole,
    "TrainResult": lambda result: [asdict(record) for record in result.epochs],
    "Cost": _costs,
    "Contents": _widths,
}
