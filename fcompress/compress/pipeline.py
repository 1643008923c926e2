"""shrink(): from a trained network and unlabelled data to a certified, compressed one."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace

from torch import Tensor, nn

from fcompress.arguments.deprecation import renamed
from fcompress.certify.agreement import empty_examples
from fcompress.certify.bounds import CONFIDENCE
from fcompress.certify.fixed_sequence import Candidate
from fcompress.certify.per_label import warnings_by_label
from fcompress.compress.blocks.choosing import blocks_of
from fcompress.compress.candidates import watching
from fcompress.compress.cascade import within_cascade
from fcompress.compress.methods import METHODS
from fcompress.compress.opening import (
    check_something,
)
from fcompress.compress.options import BATCH, DISTILL_EFFORT, ShrinkOptions
from fcompress.compress.preparing import Ready, prepared, tell, tell_warnings
from fcompress.compress.result import ShrinkResult, outcome
from fcompress.compress.search import CandidateBuilder, best_multiple, within
from fcompress.compress.sizing import Target, of_size
from fcompress.errors import ResultWarning, UnsupportedNetworkError
from fcompress.showing.display import watched
from fcompress.showing.progress import Progress, Report, numbered, silent

RANKING, MEASURING = "ranking units", "measuring the compressed network"
STAGES = ("looking at the network", RANKING, "searching", "certifying", MEASURING)


@renamed(polish="distill", polish_seconds="distill_seconds")
def shrink(
    model: nn.Module,
    data: object = None,
    tol: float | None = None,
    *,
    method: str = "hybrid",
    objective: str = "macs",
    round_to: int | str = 1,
    distill: bool = False,
    distill_effort: float = DISTILL_EFFORT,
    distill_seconds: float | None = None,
    distill_data: object | None = None,
    ratio: float | None = None,
    max_macs: int | None = None,
    max_params: int | None = None,
    max_bytes: int | None = None,
    max_latency: float | None = None,
    batch: int = BATCH,
    calibration: int | None = None,
    confidence: float = CONFIDENCE,
    seed: int = 0,
    output: str | int | None = None,
    labels: str | None = None,
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
    per_label: bool = False,
    tol_label: float | None = None,
    stochastic: bool = False,
    balance: bool = False,
    keep_depth: bool = False,
    only_seen_paths: bool = False,
    cascade: bool = False,
    quantize: str | None = None,
    groups: object = None,
    progress: Report | bool | None = None,
) -> ShrinkResult:
    """Find the thinnest network that still gives the same labels, and certify it.

    Args:
        model: A trained classifier: inputs [N, ...] to scores [N, classes]. Left as it is.
        data: Inputs as the network takes them, labels optional: `Splits`, a DataLoader, or any
            iterable of batches (tensors or (inputs, labels) pairs). Several inputs stand in a
            dict by keyword, or in a tuple as in ((first, second), labels). None: the data that a
            loaded network remembers.
        tol: Largest share of labels that may change, in [0, 1); None for 0.05, unless a size is
            asked for.
        method: A name in `options.METHODS`.
        objective: What removing units is to save: "macs", "params" or "latency" (of the layers, as
            measured on the model's device; not repeatable to the unit).
        round_to: Keep multiples of so many units where a group has them; "auto" for the largest
            multiple that costs no time on the model's device (not repeatable either).
        distill: Train candidates on towards the original network, without labels, and so get
            thinner: on the calibration inputs and, of named data, those of the training split.
        distill_effort: Work to distil one candidate with, above 0, in plain sweeps over calibration
            and search examples; training on an example counts as three. Each candidate begins where
            the one before it has come to; of a size there is one, which gets six times as much.
        distill_seconds: Most seconds for that; None for no limit. Where it strikes, the result
            depends on the clock.
        distill_data: Further inputs to distil on, in any form that `data` may have.
        ratio: Instead of searching for the tolerance: at most this share of what the objective
            counts: MACs, parameters, or the latency of a batch.
        max_macs: Instead of searching for the tolerance: at most this many MACs.
        max_params: The same: at most this many parameters.
        max_bytes: The same: at most so many bytes of parameters and buffers; a file is some
            kilobytes larger.
        max_latency: The same: at most so many milliseconds for a batch, the median, as measured on
            the model's device (not repeatable to the unit).
        batch: Examples of a batch whose latency is limited.
        calibration: Most calibration examples to use; None for as many as are cheap (1,024 to
            8,192, fewer the more multiply-adds the network takes).
        confidence: Of the certificate, in (0, 1).
        seed: Random seed: it cuts the data and samples rows and labels.
        output: Which of several outputs are the scores: a key, the name of an attribute or a
            number; None for what the network was compressed with, or else `logits` or the first,
            and an example's label changed if that of any other head did (`answers/heads.py`).
            All outputs keep their shapes in any case.
        labels: The same as `answer`, by its older name.
        answer: What of the outputs counts: "classes" (the largest of scores [N, classes]), "top-5"
            or another number (the set of the 5 largest), "sigmoid" (each of scores [N, labels] or
            [N] that is above 0; an example's label changed if any did), "positions" (the largest
            of scores [N, classes, ...] at each position; the bound is one on the share of an
            example's positions that changes, on average), "tokens" (the same for a language model's
            logits [N, positions, vocabulary], padding left out), "regression" (each output moves by
            at most `within`), "regression-norm" (the outputs of an example, as a vector, do),
            "embedding" (the cosine with the original's output is at least `cosine`), "nearest" (the
            nearest entry of `gallery` is the same), "pairs" (two embeddings of each example, as a
            pair of tensors: whether their cosine is above `threshold`) or "detections" (every box
            from `score` on has a match of its label with an overlap of `iou`, both ways). Of a
            network that ends in a sigmoid or a softmax labels are decided at 0.5. None for what the
            network was compressed with, or else what can be told (docs/certificate.md); what cannot
            is refused.
        within: Of answer="regression", how far an output may move: 0.1, or "10%" for a share of
            its standard deviation on the calibration data.
        cosine: Of answer="embedding"; 0.95 if not given.
        same: What else decides which answers are the same: (original outputs, compressed outputs)
            -> bool [n], for outputs of one batch.
        divergence: Beside `same`, how far apart answers are: (original outputs, compressed
            outputs) -> nats [n], differentiable, 0 for equal ones. It ranks and distils.
        gallery: Of answer="nearest": inputs that the original network embeds once, and both
            networks look their embeddings up in. None: a quarter of the calibration examples, at
            most 1,024, which nothing else then reads.
        score: Of answer="detections": boxes below it do not count; 0.5 if not given.
        iou: Of answer="detections": the least overlap of two boxes that match; 0.5 if not given.
        threshold: Of answer="pairs": the cosine above which two inputs are of one kind.
        pad: Of answer="tokens", the id of the token that is padding, where no attention_mask among
            the inputs says which positions are.
        per_label: Make the tolerance hold for every label of the original with enough examples
            too, for all of them at once; `agreement.by_label.promise` names those without.
        tol_label: The same with a tolerance of its own.
        stochastic: Take a network that draws random numbers (dropout that stays on, noise): every
            example has draws of its own in each network, so that what the network disagrees with
            itself counts against the tolerance. It takes a pass for each example.
        balance: Calibrate on as many examples of each of the original's labels, so that what is
            removed costs rare labels no more than frequent ones. For one class an example.
        keep_depth: Take units only; otherwise whole blocks (of layers around which the network
            has a skip) may go as well.
        only_seen_paths: Prune as if no example will ever take a way through the code that no
            calibration example took; otherwise units that layers which none reached seem to read
            or write, by their number, stay.
        cascade: Give a pair of networks as one (`cascades.Cascade`): the compressed network answers
            where it is sure enough, the original all other examples. Its size and the threshold
            are those that cost least on average within the tolerance.
        quantize: "int8": every candidate is made an ONNX file in int8 by onnxruntime's quantiser
            before it is judged, and the file is certified, run by onnxruntime. `model` of the
            result is that program (`programs.Quantized`); `export` writes it.
        groups: Which examples belong together (a video, a patient, a speaker): a name or number
            for each, in the data's order. A group lies in one split and counts as one example.
            `load_data` takes them for named data.
        progress: Told whenever something takes a while; True for a display on stderr, False for
            none, None for one where Python is typed or a notebook runs.

    Returns:
        The compressed network with its certificate and costs. With a size it is
        verified and reported, but not certified for a tolerance.

    Raises:
        ToleranceError: No thinner network can be certified with this data.
        UnsupportedNetworkError: Nothing in the network can be excised, it cannot be told what its
            outputs are, or it does not repeat its answers: it draws random numbers, or they depend
            on the other examples of the batch.
        DataError: Not enough data, values that are not finite, or many certification examples
            that also stand in the calibration or search data.
        TypeError: The model is no network.
        ValueError: An argument is out of its range, or both a tolerance and a size are asked for.

    Warns:
        ResultWarning: What weakens the result; it stands in `warnings` of the result as well.

    Example:
        >>> from fcompress import build, default_config, load_data, train
        >>> digits = load_data("digits")
        >>> config = default_config("mlp", epochs=3, device="cpu")
        >>> wide = train(build("mlp", width=2, in_features=64, classes=10), digits, config).model
        >>> result = shrink(wide, digits, tol=0.2)
        >>> result.certified, result.agreement.upper_bound <= 0.2
        (True, True)
        >>> result.macs["after"] < result.macs["before"] / 2
        True
    """
    options = ShrinkOptions(
        tol=tol,
        method=method,
        objective=objective,
        round_to=round_to,
        distill=distill,
        distill_effort=distill_effort,
        distill_seconds=distill_seconds,
        distill_data=distill_data,
        ratio=ratio,
        max_macs=max_macs,
        max_params=max_params,
        max_bytes=max_bytes,
        max_latency=max_latency,
        batch=batch,
        calibration=calibration,
        confidence=confidence,
        seed=seed,
        output=output,
        labels=labels,
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
        per_label=per_label,
        tol_label=tol_label,
        stochastic=stochastic,
        balance=balance,
        keep_depth=keep_depth,
        only_seen_paths=only_seen_paths,
        cascade=cascade,
        quantize=quantize,
    )
    with watched(progress) as report:
        return compress(model, data, options, report, groups=groups)


def builder_of(
    ready: Ready, options: ShrinkOptions, report: Report = silent
) -> tuple[CandidateBuilder, dict[str, str]]:
    """What makes the networks of a method, which ranks units for it.

    Args:
        ready: The network and its data.
        options: The method, what it is to save, and whether and how it distils.
        report: Told whenever something takes a while.

    Returns:
        The builder, and the groups that the method cannot use, with the reason.

    Raises:
        UnsupportedNetworkError: Nothing in the network can be excised, or nothing by this method.
    """
    context = ready.context
    original, structure, batches = context.original, context.structure, context.batches
    check_something(structure)
    units = sum(g.size for g in structure.groups)
    tell(report, f"{units} units in {len(structure.groups)} groups")
    method = METHODS[options.method]
    if method.takes_blocks and not options.keep_depth and ready.ways == 1:
        choice = blocks_of(original, structure, batches, seed=options.seed)
        if choice.blocks:
            tell(report, f"{len(choice.blocks)} blocks")
        context = replace(context, choice=choice)
    count = sum(map(len, batches))
    with original.evaluating():
        not_pruned = method.not_pruned(context)
        if len(not_pruned) == len(structure.groups):
            raise UnsupportedNetworkError(
                f"method {options.method} can use no group of this network: "
                f"{'; '.join(sorted(set(not_pruned.values())))}; choose another method"
            )
        report(
            Progress(
                RANKING,
                line=f"{options.method}: ranking units on {count} calibration examples",
            )
        )
        removal_order = method.removal_order(context)
        multiple = options.round_to
        if not isinstance(multiple, int):
            multiple = best_multiple(context, removal_order)
        if multiple > 1:
            tell(report, f"numbers of units are rounded up to multiples of {multiple}")
    effort = options.network_effort if options.distill else None
    limit = options.distill_seconds
    builder = CandidateBuilder(
        context, method, removal_order, ready.roles, report, multiple, effort, limit
    )
    builder.quantizer = ready.quantizer
    return builder, not_pruned


def compress(
    model: nn.Module,
    data: object,
    options: ShrinkOptions,
    report: Report = silent,
    *,
    groups: object = None,
    watch: Callable[[Candidate, nn.Module], None] | None = None,
) -> ShrinkResult:
    """`shrink`, with its options as one object.

    Args:
        model: As for `shrink`.
        data: The same.
        options: The same.
        report: Told whenever something takes a while.
        groups: As for `shrink`.
        watch: Given every candidate of the search, and its network in a state to be saved.

    Returns:
        The same.
    """
    report = numbered(report, STAGES)
    ready = prepared(model, data, options, report, groups=groups)
    weak = ready.weak
    _warn(weak)
    builder, not_pruned = builder_of(ready, options, report)
    with builder.context.original.evaluating():
        if watch is not None:
            builder.watch = watching(model, builder, watch)
        if options.tolerance is not None:
            search = within_cascade if options.cascade else within
            found = search(builder, options.tolerance, options.confidence, options.label_tolerance)
        else:
            found = of_size(builder, _target(options), options.confidence)
    unequal = tuple(warnings_by_label(found.agreement.by_label, options.tolerance))
    unequal += tuple(empty_examples(found.agreement))
    tell_warnings(report, unequal)
    _warn(unequal)
    weak += unequal
    report(Progress(MEASURING, line=MEASURING))
    result = outcome(model, builder, found, not_pruned, (ready.copies, weak), options)
    tell_warnings(report, result.warnings[len(weak) :])
    _warn(result.warnings[len(weak) :])
    return result


def _target(options: ShrinkOptions) -> Target:
    """The size that was asked for."""
    return Target(
        macs=options.max_macs,
        params=options.max_params,
        bytes=options.max_bytes,
        latency=options.max_latency,
        ratio=options.ratio,
        share_of=options.objective,
        batch=options.batch,
    )


def _warn(lines: tuple[str, ...]) -> None:
    """Warn the caller of `shrink` of what weakens the result; called by `compress`."""
    for line in lines:
        warnings.warn(line, ResultWarning, stacklevel=5)
