"""shrink(): from a trained network and unlabelled data to a certified, compressed one."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from torch import Tensor, nn

from fcompress.cascades.network import check_alone
from fcompress.certify.agreement import empty_examples
from fcompress.certify.bounds import CONFIDENCE
from fcompress.certify.labels import check_labels
from fcompress.certify.per_label import check_labelled, warnings_by_label
from fcompress.certify.screening import check_reachable, screened, weaknesses
from fcompress.compress.balance import balanced
from fcompress.compress.blocks.chain import Choice
from fcompress.compress.blocks.choosing import blocks_of
from fcompress.compress.cascade import check_cascade, within_cascade
from fcompress.compress.methods import METHODS, Context
from fcompress.compress.options import BATCH, DISTILL_SECONDS, ShrinkOptions
from fcompress.compress.result import ShrinkResult, outcome
from fcompress.compress.search import CandidateBuilder, best_multiple, within
from fcompress.compress.sizing import Target, of_size
from fcompress.data.roles import Roles, batches_of, gallery_apart, roles_of
from fcompress.data.seen import seen_warning
from fcompress.deprecation import renamed
from fcompress.errors import FcompressError, ResultWarning, UnsupportedNetworkError
from fcompress.forward import cost
from fcompress.forward.answers.heads import answering, main_of
from fcompress.forward.answers.nearest import Nearest
from fcompress.forward.answers.resolving import resolved
from fcompress.forward.answers.understanding import understood
from fcompress.forward.draws import averaged
from fcompress.forward.predictor import Predictor
from fcompress.forward.recording import Recording, frontier_bytes
from fcompress.forward.repeats import check_repeats
from fcompress.forward.running import runs_on
from fcompress.models import Network
from fcompress.models.external import check_layers, check_weights
from fcompress.progress import Progress, Report, silent
from fcompress.structure.groups import Structure, find_groups
from fcompress.structure.paths import commonest_way, different_ways
from fcompress.surgery.preparation import Call, prepare

# Calibration examples: as many as this many multiply-adds allow, within bounds.
# Single examples and whole batches on which the network is watched for other ways through it.
SINGLES, LOOKED_AT = 4, 8
NAMED = 5  # modules that a sentence names
CALIBRATION_MACS = 6e10
CALIBRATION_LEAST, CALIBRATION_MOST = 1024, 8192
# Refitting holds the activations between two layers for all of them: no more than so many bytes,
# unless that leaves too few examples.
CALIBRATION_BYTES, CALIBRATION_FEWEST = 2 << 30, 64
# Search and certification examples: all that there are, of costly networks as many as so many
# multiply-adds allow. Every candidate meets the search split, a few the certificate. Work decides
# and never the tolerance, so that a looser one is searched and certified on the same examples.
SEARCH_MACS, SEARCH_LEAST = 6e11, 2000
CERTIFICATION_MACS, CERTIFICATION_LEAST = 6e12, 5000


@renamed(polish="distill", polish_seconds="distill_seconds")
def shrink(
    model: nn.Module,
    data: object,
    tol: float | None = None,
    *,
    method: str = "hybrid",
    objective: str = "macs",
    round_to: int | str = 1,
    distill: bool = False,
    distill_seconds: float = DISTILL_SECONDS,
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
    cascade: bool = False,
    groups: object = None,
    progress: Report | None = None,
) -> ShrinkResult:
    """Find the thinnest network that still gives the same labels, and certify it.

    Args:
        model: A trained classifier: inputs [N, ...] to scores [N, classes]. Left as it is.
        data: Inputs as the network takes them, labels optional: `Splits`, a DataLoader, or any
            iterable of batches (tensors or (inputs, labels) pairs). Several inputs stand in a
            dict by keyword, or in a tuple as in ((first, second), labels).
        tol: Largest share of labels that may change, in [0, 1); None for 0.05, unless a size is
            asked for.
        method: A name in `options.METHODS`.
        objective: What removing units is to save: "macs", "params" or "latency" (of the layers, as
            measured on the model's device; not repeatable to the unit).
        round_to: Keep multiples of so many units where a group has them; "auto" for the largest
            multiple that costs no time on the model's device (not repeatable either).
        distill: Train candidates on towards the original network, on the calibration inputs and
            without labels, and so get thinner.
        distill_seconds: Most seconds to distil one candidate; up to six are.
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
        cascade: Give a pair of networks as one (`cascades.Cascade`): the compressed network answers
            where it is sure enough, the original all other examples. Its size and the threshold
            are those that cost least on average within the tolerance.
        groups: Which examples belong together (a video, a patient, a speaker): a name or number
            for each, in the data's order. A group lies in one split and counts as one example.
            `load_data` takes them for named data.
        progress: Told whenever something takes a while.

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
        distill_seconds=distill_seconds,
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
        cascade=cascade,
    )
    return compress(model, data, options, progress or silent, groups=groups)


def compress(
    model: nn.Module,
    data: object,
    options: ShrinkOptions,
    report: Report = silent,
    *,
    groups: object = None,
) -> ShrinkResult:
    """`shrink`, with its options as one object."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"a model of type {type(model).__name__}: expected a torch.nn.Module")
    check_alone(model)
    check_layers(model)
    check_weights(model)
    roles, copies = screened(roles_of(data, seed=options.seed, groups=groups))
    (scoring,) = resolved(options.output, options.asked, (model,))
    in_parts, confidence = scoring.in_parts, options.confidence
    _check_reachable(roles, options, in_parts)
    weak = tuple(weaknesses(roles, copies, options.tolerance, confidence, in_parts=in_parts))
    seen = seen_warning(model, roles.info)
    weak += () if seen is None else (seen,)
    _warn(report, weak)
    scoring = scoring.traced(model)
    if isinstance(scoring, Nearest) and scoring.embedded is None and scoring.gallery is None:
        roles, gallery = gallery_apart(roles)
        scoring = replace(scoring, gallery=gallery)
    original = _own_copy(Predictor(model, roles.packing, scoring), roles)
    original = _repeating(original, roles, stochastic=options.stochastic)
    original = understood(original, roles.calibration)
    if options.cascade:
        check_cascade(original)
    main = main_of(original.scoring)
    if options.label_tolerance is not None:
        check_labelled(str(main.labels))
    doubt = main.doubt
    if doubt is not None:
        _warn(report, (doubt,))
        weak += (doubt,)
    _check_truth(original, roles)
    recordings: dict[int, Recording] = {}
    macs = cost.count(original, original.place(roles.calibration.first(1))).macs
    roles = _used(roles, macs)
    _check_reachable(roles, options, in_parts)
    wanted = options.calibration or _affordable(original, roles, macs, recordings)
    inputs = original.place(roles.calibration.first(wanted))
    check_labels(original, batches_of(inputs), (x for x, _ in roles.search))
    if options.balance:
        inputs = balanced(original, inputs, seed=options.seed)
    call = averaged(original.whole) if original.draws else original.whole
    ways, unreached = _ways(original, inputs, call)
    lines = tuple(_said_of_ways(ways, unreached))
    _warn(report, lines)
    weak += lines
    structure = find_groups(
        original.network, inputs[:4], seed=options.seed, call=call, also=ways[1:]
    )
    _check_something(structure)
    units = sum(g.size for g in structure.groups)
    _tell(report, f"{units} units in {len(structure.groups)} groups")
    method = METHODS[options.method]
    batches = batches_of(inputs)
    if len(ways) > 1:
        with original.evaluating():
            batches = commonest_way(original.network, batches, call=call)
    choice = Choice()
    if not options.keep_depth and options.method != "factor" and len(ways) == 1:
        choice = blocks_of(original, structure, batches, seed=options.seed)
        if choice.blocks:
            _tell(report, f"{len(choice.blocks)} blocks")
    context = Context(
        original,
        structure,
        batches,
        options.seed,
        macs,
        options.objective,
        recordings,
        choice,
    )
    with original.evaluating():
        not_pruned = method.not_pruned(context)
        if len(not_pruned) == len(structure.groups):
            raise UnsupportedNetworkError(
                f"method {options.method} can use no group of this network: "
                f"{'; '.join(sorted(set(not_pruned.values())))}; choose another method"
            )
        _tell(report, f"{options.method}: ranking units on {len(inputs)} calibration examples")
        removal_order = method.removal_order(context)
        multiple = options.round_to
        if not isinstance(multiple, int):
            multiple = best_multiple(context, removal_order)
        if multiple > 1:
            _tell(report, f"numbers of units are rounded up to multiples of {multiple}")
        seconds = options.distill_seconds if options.distill else None
        builder = CandidateBuilder(context, method, removal_order, roles, report, multiple, seconds)
        if options.tolerance is not None:
            search = within_cascade if options.cascade else within
            found = search(builder, options.tolerance, options.confidence, options.label_tolerance)
        else:
            found = of_size(builder, _target(options), options.confidence)
    unequal = tuple(warnings_by_label(found.agreement.by_label, options.tolerance))
    unequal += tuple(empty_examples(found.agreement))
    _warn(report, unequal)
    weak += unequal
    _tell(report, "measuring the compressed network")
    result = outcome(model, builder, found, not_pruned, (copies, weak), options)
    _warn(report, result.warnings[len(weak) :])
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


def _tell(report: Report, line: str) -> None:
    report(Progress(line, line=line))


def _warn(report: Report, lines: tuple[str, ...]) -> None:
    """Say what weakens the result; called by `compress`, for the caller of `shrink`."""
    for line in lines:
        _tell(report, f"warning: {line}")
        warnings.warn(line, ResultWarning, stacklevel=5)


def _ways(original: Predictor, inputs: Tensor, call: Call) -> tuple[list[Tensor], set[str]]:
    """Batches on which the network executes different operators, the first four among them."""
    single = [inputs[row : row + 1] for row in range(min(SINGLES, len(inputs)))]
    tried = [inputs[:4], *single, *batches_of(inputs)[:LOOKED_AT]]
    with original.evaluating(), runs_on(inputs):
        return different_ways(original.network, tried, call=call)


def _said_of_ways(ways: Sequence[Tensor], unreached: set[str]) -> Iterator[str]:
    if len(ways) > 1:
        yield (
            f"the network takes different ways through its code (at least {len(ways)} were seen); "
            "units fit on those, and what the compressed network does on another is not known"
        )
    modules = sorted({name.rpartition(".")[0] or name for name in unreached})
    if modules:
        more = f" and {len(modules) - NAMED} more" if len(modules) > NAMED else ""
        some = ", ".join(modules[:NAMED]) + more
        yield (
            f"no calibration example reached {some}; where that reads units that are "
            "removed, the compressed network does not run if an example reaches it"
        )


def _check_reachable(roles: Roles, options: ShrinkOptions, in_parts: bool) -> None:
    """See that there are enough certification examples for the tolerance, if one was given.

    Raises:
        ToleranceError: There are too few.
    """
    if options.tolerance is not None:
        what = f"certification {'groups' if 'groups' in roles.info else 'examples'}"
        count = len(roles.certification)
        check_reachable(options.tolerance, count, options.confidence, what, in_parts=in_parts)


def _used(roles: Roles, macs: int) -> Roles:
    """The roles with as many search and certification examples as the work for each allows."""
    search = max(int(SEARCH_MACS / max(macs, 1)), SEARCH_LEAST)
    certification = max(int(CERTIFICATION_MACS / max(macs, 1)), CERTIFICATION_LEAST)
    return replace(
        roles,
        search=roles.search.most(search),
        certification=roles.certification.most(certification),
    )


def _affordable(
    original: Predictor, roles: Roles, macs: int, recordings: dict[int, Recording]
) -> int:
    """How many calibration examples to use where the caller does not say."""
    example = original.place(roles.calibration.first(1))
    wanted = min(max(CALIBRATION_MACS / max(macs, 1), CALIBRATION_LEAST), CALIBRATION_MOST)
    held = CALIBRATION_BYTES / max(frontier_bytes(original, example, recordings), 1)
    return int(max(min(wanted, held), CALIBRATION_FEWEST))


def _repeating(original: Predictor, roles: Roles, *, stochastic: bool) -> Predictor:
    """The network, if it repeats its answers, or draws and may.

    Raises:
        UnsupportedNetworkError: It does not.
    """
    inputs = original.place(next(iter(roles.calibration))[0])
    return replace(original, draws=check_repeats(original, inputs, stochastic=stochastic))


def _own_copy(given: Predictor, roles: Roles) -> Predictor:
    """A copy in eval mode that can be excised exactly, without what only training needs.

    Raises:
        FcompressError: It does not run on the inputs, gives no class scores or holds a weight
            that is not finite.
    """
    inputs = given.place(roles.calibration.first(2))
    network = prepare(given.network, inputs, call=given.whole).eval()
    if isinstance(network, Network):
        network.drop_training_parts()
    for parameter in network.parameters():
        if not bool(parameter.isfinite().all()):
            raise FcompressError("a weight of the network is not finite; repair or retrain it")
    original = given.of(network)
    with original.evaluating(), runs_on(inputs):
        original = answering(original, inputs)
        original.scores(inputs)
    return original


def _check_truth(original: Predictor, roles: Roles) -> None:
    """See that true labels, where there are any, are of the shape that the network's are.

    Raises:
        DataError: They are not.
    """
    inputs, labels = next(iter(roles.calibration))
    if labels is not None and not original.scoring.continuous:
        with original.evaluating():
            found = original.labels(original.place(inputs[:2]))
        original.scoring.truth(labels[:2], found.shape[1])


def _check_something(structure: Structure) -> None:
    if not structure.groups:
        reasons = sorted({s["reason"] for s in structure.skipped()}) or ["it has no layers"]
        raise UnsupportedNetworkError(
            f"nothing in this network can be excised: {'; '.join(reasons[:5])}"
        )
