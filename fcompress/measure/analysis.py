"""analyze() and gain(): the whole measuring sequence on one screen."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fcompress.cascades.network import check_alone
from fcompress.data import Split, Splits, as_batches, remembered_data
from fcompress.errors import UnsupportedNetworkError
from fcompress.forward.answers.resolving import resolved
from fcompress.forward.answers.understanding import understood
from fcompress.forward.copying import deep_copy
from fcompress.forward.cost import Cost, LayerCost, count
from fcompress.forward.predictor import Predictor
from fcompress.forward.running import device_of
from fcompress.measure.ablation import AblationResult, measure_ablation
from fcompress.measure.blocks import BlockAblation, measure_blocks
from fcompress.measure.growth import GainResult, doublings, gain_of
from fcompress.measure.hooks import trace_calls
from fcompress.measure.layers import Skipped
from fcompress.measure.options import (
    BATCH_SIZE,
    LAYER_EXAMPLES,
    ORDERS,
    REDUNDANCY_TOLERANCES,
    STEPS,
    TOLERANCES,
    AnalyzeOptions,
    Unit,
)
from fcompress.measure.redundancy import RedundancyResult, measure_redundancy
from fcompress.models import Spec
from fcompress.models.external import check_layers, check_weights
from fcompress.models.provenance import described
from fcompress.showing.display import watched
from fcompress.showing.progress import Progress, Report, silent, takes
from fcompress.showing.results import Drawn
from fcompress.structure.groups import find_groups
from fcompress.surgery.preparation import prepare

# Examples on which groups are found and proven.
GROUP_EXAMPLES = 4


@dataclass(frozen=True, repr=False)
class AnalyzeResult(Drawn):
    """What is frivolous in a network, and what can be excised.

    Attributes:
        network: Name of the family, of the architecture, or of the class for other networks.
        family: Name of the family; None for other networks.
        args: Arguments of the family, `width` among them; empty for other networks.
        data: Identity of the examples in plain values; None for data handed over as such.
        examples: Examples that were measured.
        accuracy: Of the network on them; None without labels.
        labels: The kind of answer, as in `AgreementResult.labels`.
        ablation: Prunable units.
        redundancy: Redundant, dead and constant units, correlations.
        cost: Parameters and MACs of the network and of each module.
        layer_costs: The same for each measured layer: of the modules that run after the ablated
            layer before it, up to itself; of a block, of the modules inside it.
        groups: Units of each group that can be excised, by the group's name.
        blocks: Blocks that can be skipped, with the share of labels that stay.
        skipped: What was not measured or cannot be excised, with the reason.
    """

    network: str
    family: str | None
    args: dict[str, Any]
    data: dict[str, Any] | None
    examples: int
    accuracy: float | None
    labels: str
    ablation: AblationResult
    redundancy: RedundancyResult
    cost: Cost
    layer_costs: dict[str, LayerCost]
    groups: dict[str, int]
    blocks: tuple[BlockAblation, ...]
    skipped: tuple[Skipped, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "network": self.network,
            "family": self.family,
            "args": self.args,
            "data": self.data,
            "examples": self.examples,
            "accuracy": self.accuracy,
            "labels": self.labels,
            "ablation": self.ablation.to_dict(),
            "redundancy": self.redundancy.to_dict(),
            "cost": self.cost.to_dict(),
            "layer_costs": {name: asdict(cost) for name, cost in self.layer_costs.items()},
            "groups": self.groups,
            "blocks": [block.to_dict(self.ablation.tolerances) for block in self.blocks],
            "skipped": [asdict(s) for s in self.skipped],
        }

    def report(self, path: str | os.PathLike[str]) -> None:
        """Write all of this as one HTML page that needs nothing else.

        Args:
            path: The file, which is replaced.

        Raises:
            FcompressError: The file cannot be written.
        """
        # Pages stand above results, which know of them only when one is asked for.
        import_module("fcompress.report.html").write_page(path, self)


def analyze(
    model: nn.Module,
    data: object = None,
    *,
    tolerances: Sequence[float] = TOLERANCES,
    redundancy_tolerances: Sequence[float] = REDUNDANCY_TOLERANCES,
    unit: Unit = "element",
    by_layer: bool = True,
    layer_examples: int | None = LAYER_EXAMPLES,
    examples: int | None = None,
    steps: int = STEPS,
    orders: int = ORDERS,
    seed: int = 0,
    layers: Sequence[str] | None = None,
    redundancy_layers: Sequence[str] | None = None,
    groups: bool = True,
    root: Path | None = None,
    device: str | torch.device | None = None,
    batch_size: int = BATCH_SIZE,
    output: str | int | None = None,
    labels: str | None = None,
    answer: str | None = None,
    within: float | str | None = None,
    cosine: float | None = None,
    same: Callable[[Tensor, Tensor], Tensor] | None = None,
    gallery: object | None = None,
    score: float | None = None,
    iou: float | None = None,
    threshold: float | None = None,
    pad: int | None = None,
    progress: Callable[..., object] | bool | None = None,
) -> AnalyzeResult:
    """Measure what is frivolous in a network (docs/protocol.md sections 1 and 2).

    Examples stream through; memory does not grow with their number. Labels are not needed;
    where they exist accuracies are measured too.

    Args:
        model: A classifier; comes back as it was.
        data: `Splits` (the test split is taken, without one the calibration split), or whatever
            `as_batches` accepts: a split, a tensor, a DataLoader, an iterable of batches. None:
            the data that a loaded network remembers.
        tolerances: Shares of labels that may change, main one first.
        redundancy_tolerances: Shares of variance that may stay unexplained, main one first.
        unit: What is ablated: single elements of a feature map, or whole maps.
        by_layer: Whether to measure each layer's own ablation curve, which costs a further run
            from that layer on for each layer, proportion and order.
        layer_examples: Measure the layers' own curves on the first so many examples; None for
            all of them.
        examples: Measure everything on the first so many examples only; None for all.
        steps: Steps from nothing to everything ablated; more than the protocol's six for networks
            whose labels change within the first.
        orders: Random orders of ablation.
        seed: Random seed of the orders.
        layers: Addresses of the layers to ablate; None for docs/protocol.md 1.2's.
        redundancy_layers: Addresses of the layers to analyse for redundancy; None for those of
            docs/protocol.md 2.5.
        groups: Whether to find what can be excised or skipped as a whole, which for deep networks
            takes seconds.
        root: Folder in which remembered data is looked for instead of the one given then.
        device: Where to compute, "auto" for a GPU if there is one; None for where the network is.
        batch_size: Examples at a time, where the data is not in batches yet.
        output: Which of several outputs are the scores, as for `shrink`.
        answer: What of the outputs counts, as for `shrink`.
        within: As for `shrink`.
        cosine: As for `shrink`.
        same: As for `shrink`.
        gallery: As for `verify`, embedded by this network.
        score: As for `shrink`.
        iou: As for `shrink`.
        threshold: As for `shrink`.
        pad: As for `shrink`.
        labels: The same as `answer`; of "positions" agreement is the mean share of
            positions.
        progress: Told after each batch, or as for `shrink`.

    Returns:
        Prunable and redundant units, costs, and the groups that can be excised.

    Raises:
        FcompressError: There is no data, or the network cannot be measured.

    Example:
        >>> from fcompress import build, load_data
        >>> network = build("mlp", in_features=64, classes=10, hidden=16)
        >>> result = analyze(network, load_data("digits"), examples=100)
        >>> [(layer.name, layer.units) for layer in result.redundancy.layers]
        [('relu1', 16)]
        >>> 0 <= result.ablation.network.share(0.2) <= 1
        True
    """
    options = AnalyzeOptions(
        tolerances=tolerances,
        redundancy_tolerances=redundancy_tolerances,
        unit=unit,
        by_layer=by_layer,
        layer_examples=layer_examples,
        examples=examples,
        steps=steps,
        orders=orders,
        seed=seed,
        layers=layers,
        redundancy_layers=redundancy_layers,
        groups=groups,
        device=device,
        batch_size=batch_size,
        output=output,
        labels=labels,
        answer=answer,
        within=within,
        cosine=cosine,
        same=same,
        gallery=gallery,
        score=score,
        iou=iou,
        threshold=threshold,
        pad=pad,
    )
    with watched(progress) as report:
        if not takes(report, 3):
            return measure(model, data, options, report, root=root)
        old: Callable[..., object] = report

        def told(event: Progress) -> None:
            old(event.stage, event.done, event.of)

        return measure(model, data, options, told, root=root)


def measure(
    model: nn.Module,
    data: object,
    options: AnalyzeOptions,
    report: Report = silent,
    *,
    root: Path | None = None,
) -> AnalyzeResult:
    """`analyze`, with its options as one object."""
    check_layers(model)
    check_alone(model)
    check_weights(model)
    data, identity = _evaluation_data(model, data, root)
    batches = as_batches(data, options.batch_size)
    total = len(data) if isinstance(data, Split | Tensor) else None
    if options.examples is not None:
        total = options.examples if total is None else min(total, options.examples)
    some = next(_first(batches, GROUP_EXAMPLES))[0]
    (scoring,) = resolved(options.output, options.asked, (model,))
    given = Predictor(model, batches.packing, scoring.traced(model))
    work = understood(given.of(_on_device(model, options.device)), batches)
    given, scoring = work.of(model), work.scoring
    with work.evaluating():
        kind = scoring.kind(work.scores(work.place(some)))
    redundant = measure_redundancy(
        work,
        _first(batches, options.examples),
        tolerances=options.redundancy_tolerances,
        layers=options.redundancy_layers,
        progress=report,
        of=total,
    )
    prunable = measure_ablation(
        work,
        _first(batches, options.examples),
        tolerances=options.tolerances,
        unit=options.unit,
        by_layer=options.by_layer,
        layer_examples=options.layer_examples,
        steps=options.steps,
        orders=options.orders,
        seed=options.seed,
        layers=options.layers,
        progress=report,
        of=total,
    )
    cost = count(work, some)
    found: dict[str, int] = {}
    blocks: tuple[BlockAblation, ...] = ()
    not_pruned: tuple[Skipped, ...] = ()
    if options.groups:
        fewer = [n for n in (options.examples, options.layer_examples) if n is not None]
        measured = _first(batches, min(fewer, default=None))
        found, blocks, not_pruned = _choices(given, some, measured)
    costs = _layer_costs(work, some, cost, prunable, redundant)
    family, args = _built(model)
    return AnalyzeResult(
        network=family or _called(model),
        family=family,
        args=args,
        data=identity,
        examples=redundant.examples,
        accuracy=prunable.accuracy,
        labels=kind,
        ablation=prunable,
        redundancy=redundant,
        cost=cost,
        layer_costs=costs,
        groups=found,
        blocks=blocks,
        skipped=(*prunable.skipped, *redundant.skipped, *not_pruned),
    )


def gain(
    networks: Sequence[nn.Module | AnalyzeResult],
    data: object = None,
    *,
    tolerance: float = TOLERANCES[0],
    redundancy_tolerance: float = REDUNDANCY_TOLERANCES[0],
    progress: Callable[..., object] | bool | None = None,
    **options: Any,
) -> GainResult:
    """Measure how frivolous units grow with the width of a family (docs/protocol.md section 3).

    Args:
        networks: Networks of one family at successive doublings of the width, in any order, or
            what `analyze` measured of them; several of one width (seeds) are averaged. Of a
            family whose width applies to one layer, only that layer is measured.
        data: As for `analyze`; None: each network's own.
        tolerance: Of the prunable units.
        redundancy_tolerance: Of the redundant units.
        progress: As for `analyze`; the stage says which network it is about.
        **options: Further arguments of `analyze`, for the networks that are yet to be measured.

    Returns:
        The gains of prunable and redundant units, of the network and by layer.

    Raises:
        FcompressError: A width is missing, or the networks are not comparable.

    Example:
        >>> from fcompress import build, load_data
        >>> networks = [build("mlp", width=w, in_features=64, classes=10) for w in (0.25, 0.5, 1)]
        >>> result = gain(networks, load_data("digits"), examples=100)
        >>> result.widths, [curve.quantity for curve in result.network]
        ((0.25, 0.5, 1.0), ['prunable', 'non_prunable', 'redundant', 'non_redundant'])
    """
    doublings([(n.family, n.args) if isinstance(n, AnalyzeResult) else _built(n) for n in networks])
    with watched(progress) as report:
        measured = _each(networks, data, report, options)
    return gain_of(measured, tolerance=tolerance, redundancy_tolerance=redundancy_tolerance)


def _each(
    networks: Sequence[nn.Module | AnalyzeResult],
    data: object,
    progress: Callable[..., object],
    options: dict[str, Any],
) -> list[AnalyzeResult]:
    """What was measured of each network."""
    numbered = takes(progress, 4)
    measured = []
    for number, network in enumerate(networks):
        if isinstance(network, nn.Module):

            def tell(event: Progress, number: int = number) -> None:
                if numbered:
                    progress(number, event.stage, event.done, event.of)
                    return
                stage = f"network {number + 1} of {len(networks)}: {event.stage}"
                progress(replace(event, stage=stage))

            network = analyze(
                network, data, progress=tell, **{**widened_layers(network), **options}
            )
        measured.append(network)
    return measured


def _built(model: nn.Module) -> tuple[str | None, dict[str, Any]]:
    """Family and arguments of a network; None and {} if it is not of the registry."""
    spec = getattr(model, "spec", None)
    return (spec.family, dict(spec.args)) if isinstance(spec, Spec) else (None, {})


def _called(model: nn.Module) -> str:
    """Name of a network's architecture, or else of its class."""
    record = described(model)
    return type(model).__name__ if record is None else record.architecture.name


def widened_layers(model: nn.Module) -> dict[str, Sequence[str]]:
    """The layers to measure, as arguments of `analyze`, where the width applies to one only."""
    layer = _built(model)[1].get("layer")
    if layer is None:
        return {}
    names = getattr(model, "ablation_layers", ())
    return {
        "layers": [name for name in names if name.startswith(f"{layer}.")],
        "redundancy_layers": [layer],
    }


def _evaluation_data(
    model: nn.Module, data: object, root: Path | None
) -> tuple[object, dict[str, Any] | None]:
    """The examples to measure on, and what identifies them."""
    if data is None:
        data = remembered_data(model, root=root)
    if not isinstance(data, Splits):
        return data, None
    # Data cut for compression only has no test split; calibration serves no choice made here.
    split = data.test or data.need("calibration")
    identity = {key: data.info[key] for key in ("spec", "seed", "sha256", "random_labels")}
    return split, {**identity, "split": split.name}


def _first(
    batches: Iterable[tuple[Tensor, Tensor | None]], examples: int | None
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """The batches up to so many examples; the last one is cut."""
    left = examples
    for inputs, labels in batches:
        if left is not None and left < len(inputs):
            inputs, labels = inputs[:left], None if labels is None else labels[:left]
        if len(inputs):
            yield inputs, labels
        if left is not None:
            left -= len(inputs)
            if left <= 0:
                return


def _on_device(model: nn.Module, device: str | torch.device | None) -> nn.Module:
    """The network itself if it is there already, else a copy."""
    if device is None:
        return model
    wanted = device_of(device)
    if all(p.device == wanted for p in model.parameters()):
        return model
    return deep_copy(model).to(wanted)


def _layer_costs(
    predictor: Predictor,
    inputs: Tensor,
    cost: Cost,
    prunable: AblationResult,
    redundant: RedundancyResult,
) -> dict[str, LayerCost]:
    """Parameters and MACs that belong to each measured layer."""
    with predictor.evaluating():
        calls = trace_calls(predictor, predictor.place(inputs))
    ends = {*prunable.units, *(layer.name for layer in redundant.layers)}
    costs: dict[str, LayerCost] = {}
    since: list[LayerCost] = []
    counted: set[str] = set()
    for call in calls:
        if call.name in cost.layers and call.name not in counted:
            counted.add(call.name)
            since.append(cost.layers[call.name])
        for name in {call.name, f"{call.name}#{call.number}"} & ends:
            inside = [c for n, c in cost.layers.items() if n.startswith(f"{call.name}.")]
            own = inside if inside else since
            costs[name] = LayerCost(sum(c.params for c in own), sum(c.macs for c in own))
            if name in prunable.units:
                since = []
    return costs


def _choices(
    given: Predictor, inputs: Tensor, batches: Iterable[tuple[Tensor, Tensor | None]]
) -> tuple[dict[str, int], tuple[BlockAblation, ...], tuple[Skipped, ...]]:
    """Units of each group that can be excised, blocks, and what has to stay with the reason."""
    try:
        # As `shrink` sees it: with local response normalisation that can be excised exactly.
        prepared = prepare(given.network, inputs, call=given.whole)
        structure = find_groups(prepared, inputs, call=given.whole)
        blocks, kept = measure_blocks(given.of(prepared), structure.groups, batches)
    except UnsupportedNetworkError as error:
        return {}, (), (Skipped("network", str(error)),)
    skipped = (*(Skipped(**left) for left in structure.skipped()), *kept)
    return {group.name: group.size for group in structure.groups}, blocks, skipped
