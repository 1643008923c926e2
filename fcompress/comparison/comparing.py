"""compare(): other methods and ours on one network, each at its smallest within a tolerance."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from torch import Tensor, nn

from fcompress.arguments.numbers import real
from fcompress.certify.agreement import compare as agreement_of
from fcompress.certify.bounds import CONFIDENCE
from fcompress.certify.labels import changed_shares, reference_labels
from fcompress.comparison.options import DISTILLED, NAMES
from fcompress.comparison.result import LATENCY_BATCH, Compared, CompareResult
from fcompress.comparison.searching import Tried, bisect
from fcompress.comparison.torch_pruning import RIVALS, Given, Pruning, reason_of
from fcompress.compress.options import DISTILL_EFFORT, METHODS, TOLERANCE, ShrinkOptions
from fcompress.compress.pipeline import builder_of
from fcompress.compress.preparing import Ready, prepared
from fcompress.compress.search import path
from fcompress.errors import FcompressError, ResultWarning
from fcompress.forward import cost
from fcompress.forward.copying import deep_copy
from fcompress.forward.timing import latency
from fcompress.models import Network
from fcompress.models.provenance import versions
from fcompress.showing.progress import Progress, Report, reporter, silent
from fcompress.structure.reach import OUTPUT

# Networks of a rival where no method of ours says how many it needs.
TRIES = 12
SECONDS = 0.5  # to time each network, about


def compare(
    model: nn.Module,
    data: object,
    tol: float = TOLERANCE,
    *,
    methods: Sequence[str] | None = None,
    distill: bool = False,
    distill_effort: float = DISTILL_EFFORT,
    distill_data: object | None = None,
    keep_depth: bool = False,
    calibration: int | None = None,
    confidence: float = CONFIDENCE,
    seed: int = 0,
    output: str | int | None = None,
    answer: str | None = None,
    within: float | str | None = None,
    cosine: float | None = None,
    same: Callable[[Tensor, Tensor], Tensor] | None = None,
    divergence: Callable[[Tensor, Tensor], Tensor] | None = None,
    gallery: object | None = None,
    score: float | None = None,
    iou: float | None = None,
    threshold: float | None = None,
    pad: int | None = None,
    stochastic: bool = False,
    groups: object = None,
    progress: Report | None = None,
) -> CompareResult:
    """Compare methods that need no retraining: each one's smallest network within a tolerance.

    What is within the tolerance is decided on the search split, for every method alike; the test
    split, where there is one, says how the networks fare on examples that nothing was chosen on.
    The certification split is not read, so that `shrink` can still certify on it.

    Args:
        model: A trained network, as for `shrink`. Left as it is.
        data: As for `shrink`; only named data has a test split.
        tol: Largest share of the search split's answers that may change, in [0, 1).
        methods: Names in `comparison.options.NAMES`: those of fcompress ("prune", "factor",
            "hybrid") and those of torch-pruning ("tp-l1-global", "tp-l1-layer", and so on). None
            for all.
        distill: Compare methods of fcompress distilled ("hybrid+distill"), too.
        distill_effort: As for `shrink`.
        distill_data: The same.
        keep_depth: The same.
        calibration: The same.
        confidence: Of the bounds on the test split, in (0, 1).
        seed: As for `shrink`.
        output: The same.
        answer: The same.
        within: The same.
        cosine: The same.
        same: The same.
        divergence: The same.
        gallery: The same.
        score: The same.
        iou: The same.
        threshold: The same.
        pad: The same.
        stochastic: The same.
        groups: The same.
        progress: Told whenever something takes a while.

    Returns:
        A row for each method. One that fails on this network says why.

    Raises:
        UnsupportedNetworkError: As for `shrink`.
        DataError: The same.
        ValueError: An argument is out of its range, or there is no such method.

    Warns:
        ResultWarning: What weakens the result; it stands in `warnings` of the result as well.

    Example:
        >>> import torch
        >>> from fcompress import build, default_config, load_data, train
        >>> digits = load_data("digits")
        >>> config = default_config("mlp", epochs=3, device="cpu")
        >>> wide = train(build("mlp", width=1, in_features=64, classes=10), digits, config).model
        >>> result = compare(wide, digits, tol=0.2, methods=["hybrid", "tp-l2-layer"])
        >>> sorted(row.name for row in result.rows)
        ['hybrid', 'tp-l2-layer']
        >>> result["hybrid"].changed <= 0.2 * result.search
        True
        >>> result["hybrid"].macs < result.macs
        True
    """
    options = ShrinkOptions(
        distill=distill,
        distill_effort=distill_effort,
        distill_data=distill_data,
        keep_depth=keep_depth,
        calibration=calibration,
        confidence=confidence,
        seed=seed,
        output=output,
        answer=answer,
        within=within,
        cosine=cosine,
        same=same,
        divergence=divergence,
        gallery=gallery,
        score=score,
        iou=iou,
        threshold=threshold,
        pad=pad,
        stochastic=stochastic,
        ratio=1.0,
    )
    found = compared(model, data, tol, options, methods, reporter(progress), groups=groups)
    for line in found.warnings:
        warnings.warn(line, ResultWarning, stacklevel=2)
    return found


def compared(
    model: nn.Module,
    data: object,
    tol: float,
    options: ShrinkOptions,
    methods: Sequence[str] | None = None,
    report: Report = silent,
    *,
    groups: object = None,
) -> CompareResult:
    """`compare`, with the options of `shrink` as one object, which asks for no tolerance."""
    tol = real("tol", tol, "a share of answers in [0, 1)", lambda one: 0 <= one < 1)
    chosen = _chosen(methods)
    ready = prepared(model, data, options, report, groups=groups, certifying=False)
    context, roles = ready.context, ready.roles
    original = context.original
    steps = _steps(chosen, options)
    _tell(report, f"{len(steps)} methods; the certification split is not used", 0, len(steps))
    with original.evaluating():
        reference = reference_labels(original, (x for x, _ in roles.search))
    n = len(reference)
    rows: list[Compared] = []

    def done(row: Compared) -> None:
        rows.append(row)
        _tell(report, _said(row, context.macs), len(rows), len(steps))

    for name, one in steps:
        if isinstance(one, ShrinkOptions):
            done(_ours(name, ready, one, tol, report))
    tries = max((len(row.tried) for row in rows), default=0) or TRIES
    # Others get the user's network as it is: what ours rewrites in its copy, in order to cut it,
    # torch-pruning may not understand.
    plain = deep_copy(model).eval()
    if isinstance(plain, Network):
        plain.drop_training_parts()
    given = Given(original.of(plain), context.batches, options.seed, _outputs(ready, plain))
    for _, one in steps:
        if isinstance(one, Pruning):
            done(_theirs(one, given, ready, reference, tol, tries, report))
    _tell(report, "measuring the networks", len(rows), len(steps))
    made, latency_ms = _measured(rows, ready, options.confidence)
    return CompareResult(
        rows=tuple(sorted(made, key=lambda row: (row.macs is None, row.macs or 0))),
        tolerance=tol,
        macs=context.macs,
        params=cost.count(original, context.batches[0]).params,
        latency_ms=latency_ms,
        noun=original.scoring.noun,
        calibration=sum(map(len, context.batches)),
        search=n,
        test=None if roles.test is None else len(roles.test),
        confidence=options.confidence,
        candidates=tries,
        data=roles.info,
        seed=options.seed,
        device=context.batches[0].device.type,
        warnings=ready.weak,
        versions={**versions(), **_version()},
    )


def _version() -> dict[str, str]:
    from importlib.metadata import version

    return {"torch-pruning": version("torch-pruning")}


def _chosen(methods: Sequence[str] | None) -> list[str]:
    """Names, each once, in the order of `NAMES`.

    Raises:
        ValueError: There is no such method, or none is named.
    """
    given = list(NAMES) if methods is None else [methods] if isinstance(methods, str) else methods
    for name in given:
        if name not in NAMES:
            raise ValueError(f"methods: {name!r} is none of {', '.join(NAMES)}")
    if not given:
        raise ValueError(f"methods=[]: expected some of {', '.join(NAMES)}")
    return [name for name in NAMES if name in given]


def _steps(
    chosen: Sequence[str], options: ShrinkOptions
) -> list[tuple[str, ShrinkOptions | Pruning]]:
    """What is to be done, by name; distilled networks behind the others of a method."""
    rivals = {rival.name: rival for rival in RIVALS}
    found: list[tuple[str, ShrinkOptions | Pruning]] = []
    for name in chosen:
        if name in rivals:
            found.append((name, rivals[name]))
            continue
        plain = replace(options, method=name, distill=False, distill_data=None)
        found.append((name, plain))
        if options.distill:
            found.append((name + DISTILLED, replace(options, method=name)))
    return found


def _ours(name: str, ready: Ready, options: ShrinkOptions, tol: float, report: Report) -> Compared:
    """The smallest network of a method of fcompress, as `shrink` searches."""
    summary = "fcompress: " + METHODS[options.method]
    summary += "; distilled" if options.distill else ""
    try:
        builder, _ = builder_of(ready, options, report)
        onward = builder.make_distilled if options.distill else None
        with ready.context.original.evaluating():
            path(builder.steps, builder.make, lambda one: one.changed > tol * one.n, onward)
    except FcompressError as error:
        return Compared(name, summary, failed=reason_of(error))
    n = len(builder.reference)
    tried = [Tried(one.macs, float(one.changed), one.model) for one in builder.tried]
    return _row(Compared(name, summary), tried, tol, n, ready.context.macs)


def _theirs(
    rival: Pruning,
    given: Given,
    ready: Ready,
    reference: Tensor,
    tol: float,
    tries: int,
    report: Report,
) -> Compared:
    """The smallest network of torch-pruning."""
    n = len(reference)
    count = 0

    def make(amount: float) -> Tried:
        nonlocal count
        count += 1
        one = made(amount)
        line = one.error or (
            f"{(one.macs or 0) / max(ready.context.macs, 1):.1%} of MACs, "
            f"{(one.changed or 0) / n:.1%} of {given.original.scoring.noun} changed"
        )
        line = f"{rival.name}, pruning ratio {amount:.3f}: {line}"
        report(Progress("searching", count, None, "candidates", line))
        return one

    def made(amount: float) -> Tried:
        try:
            thin = rival.make(given, amount)
            predictor = given.original.of(thin)
            macs = cost.count(predictor, given.batches[0]).macs
            with predictor.evaluating():
                lost = changed_shares(predictor, (x for x, _ in ready.roles.search), reference)
        except Exception as error:  # whatever it fails with is its result
            return Tried(None, None, error=reason_of(error))
        return Tried(macs, float(lost.sum()), thin)

    tried = bisect(make, tol * n, tries)
    return _row(Compared(rival.name, rival.summary), tried, tol, n, ready.context.macs)


def _row(row: Compared, tried: Sequence[Tried], tol: float, n: int, macs: int) -> Compared:
    """A method with the smallest of its networks within the tolerance."""
    row = replace(row, tried=tuple(one.to_dict() for one in tried))
    good = [one for one in tried if one.within(tol * n)]
    if good:
        best = min(good, key=lambda one: (one.macs or 0, one.changed or 0))
        return replace(row, macs=best.macs, changed=best.changed, model=best.model)
    made = [one for one in tried if one.macs is not None]
    if not made:
        return replace(row, failed=next((one.error for one in tried), "nothing can go"))
    best = min(made, key=lambda one: one.changed or 0)
    return replace(
        row,
        failed=f"none of {len(tried)} networks is within the tolerance; the closest, with "
        f"{(best.macs or 0) / max(macs, 1):.1%} of MACs, changes {(best.changed or 0) / n:.1%}",
    )


def _outputs(ready: Ready, network: nn.Module) -> tuple[str, ...]:
    """Layers of a network that write what it returns, as far as its structure is known."""
    tensors = [
        slot.tensor
        for group in ready.context.structure.not_pruned
        if OUTPUT in (group.reason or "")
        for slot in group.producers
    ]
    there = {name for name, _ in network.named_modules()}
    names = (name.rpartition(".")[0] for name in tensors)
    return tuple(dict.fromkeys(name for name in names if name in there))


def _measured(
    rows: Sequence[Compared], ready: Ready, confidence: float
) -> tuple[list[Compared], float]:
    """Rows with parameters, latencies and test agreement; and the original's latency."""
    original, roles = ready.context.original, ready.roles
    made = [original.of(row.model) for row in rows if row.model is not None]
    example = original.place(roles.search.first(LATENCY_BATCH))
    before, *times = latency([original, *made], example, seconds=SECONDS * (1 + len(made)))
    left = iter(times)

    def finished() -> Iterator[Compared]:
        for row in rows:
            if row.model is None:
                yield row
                continue
            thin = original.of(row.model)
            test = None
            if roles.test is not None:
                test = agreement_of(original, thin, roles.test, confidence)
            params = cost.count(thin, example).params
            yield replace(row, params=params, latency_ms=next(left), test=test)

    return list(finished()), before


def _said(row: Compared, macs: int) -> str:
    if row.macs is None:
        return f"{row.name}: {row.failed}"
    return f"{row.name}: {row.macs / max(macs, 1):.1%} of MACs ({len(row.tried)} networks tried)"


def _tell(report: Report, line: str, done: int, of: int) -> None:
    report(Progress("comparing", done, of, "methods", line))
