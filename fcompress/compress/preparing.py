"""What every method needs before it ranks units: a network and its data, looked at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import nn

from fcompress.cascades.network import check_alone
from fcompress.certify.labels import check_labels
from fcompress.certify.per_label import check_labelled
from fcompress.certify.screening import Copies, screened, weaknesses
from fcompress.compress.amounts import affordable, check_enough, used
from fcompress.compress.balance import balanced
from fcompress.compress.cascade import check_cascade
from fcompress.compress.methods import Context
from fcompress.compress.opening import (
    check_truth,
    own_copy,
    repeating,
    said_of_ways,
    ways_of,
)
from fcompress.compress.options import ShrinkOptions
from fcompress.compress.quantized import quantizer
from fcompress.data.roles import (
    Roles,
    batches_of,
    gallery_apart,
    roles_of,
    uncertified,
    with_further,
)
from fcompress.data.seen import seen_warning
from fcompress.data.specs import remembered_data
from fcompress.forward import cost
from fcompress.forward.answers.heads import main_of
from fcompress.forward.answers.nearest import Nearest
from fcompress.forward.answers.resolving import resolved
from fcompress.forward.answers.understanding import understood
from fcompress.forward.draws import averaged
from fcompress.forward.predictor import Predictor
from fcompress.forward.recording import Recording
from fcompress.models.external import check_layers, check_weights
from fcompress.showing.progress import WARNING, Progress, Report, silent
from fcompress.structure.groups import find_groups
from fcompress.structure.paths import commonest_way, spared


@dataclass(frozen=True)
class Ready:
    """A network and its data, looked at, before any method ranks its units.

    Attributes:
        context: What every method works with, apart from blocks that may go.
        roles: The data; certification examples that are copies are left out.
        copies: Copies among the examples.
        weak: What weakens the result so far, in words.
        ways: How many ways through the network's code were seen.
        quantizer: Makes of a network the file in int8 that is judged in its place, or None.
    """

    context: Context
    roles: Roles
    copies: Copies
    weak: tuple[str, ...]
    ways: int
    quantizer: Callable[[Predictor], nn.Module] | None


def prepared(
    model: nn.Module,
    data: object,
    options: ShrinkOptions,
    report: Report = silent,
    *,
    groups: object = None,
    certifying: bool = True,
) -> Ready:
    """Check a network and its data, and find the units that can go.

    Args:
        model: As for `shrink`.
        data: The same.
        options: The same.
        report: Told whenever something takes a while.
        groups: As for `shrink`.
        certifying: Whether there is to be a certificate; otherwise the certification split is not
            even read, and none is left. It goes with options that have no tolerance.

    Raises:
        FcompressError: As for `shrink`.
    """
    check_layers(model)
    check_alone(model)
    check_weights(model)
    if data is None:
        data, groups = remembered_data(model, groups=groups), None
    roles = roles_of(data, seed=options.seed, groups=groups)
    copies = Copies(0, 0, 0, 0)
    if options.distill:
        roles = with_further(roles, data, options.distill_data)
    if certifying:
        roles, copies = screened(roles)
    else:
        roles = uncertified(roles)
    (scoring,) = resolved(options.output, options.asked, (model,))
    in_parts, confidence = scoring.in_parts, options.confidence
    check_enough(roles, options, in_parts)
    scoring = scoring.traced(model)
    if isinstance(scoring, Nearest) and scoring.embedded is None and scoring.gallery is None:
        roles, gallery = gallery_apart(roles)
        scoring = replace(scoring, gallery=gallery)
    original = own_copy(Predictor(model, roles.packing, scoring), roles)
    original = repeating(original, roles, stochastic=options.stochastic)
    original = understood(original, roles.calibration)
    if options.cascade:
        check_cascade(original)
    main = main_of(original.scoring)
    if options.label_tolerance is not None:
        check_labelled(str(main.labels))
    check_truth(original, roles)
    recordings: dict[int, Recording] = {}
    macs = cost.count(original, original.place(roles.calibration.first(1))).macs
    roles = used(roles, macs)
    check_enough(roles, options, in_parts)
    weak = tuple(weaknesses(roles, copies, options.tolerance, confidence, in_parts=in_parts))
    weak += tuple(line for line in (seen_warning(model, roles.info), main.doubt) if line)
    tell_warnings(report, weak)
    wanted = options.calibration or affordable(original, roles, macs, recordings)
    inputs = original.place(roles.calibration.first(wanted))
    check_labels(original, batches_of(inputs), (x for x, _ in roles.search))
    if options.balance:
        inputs = balanced(original, inputs, seed=options.seed)
    call = averaged(original.whole) if original.draws else original.whole
    ways, differing, unreached = ways_of(original, inputs, call)
    lines = tuple(said_of_ways(differing, unreached))
    tell_warnings(report, lines)
    weak += lines
    made_files = None
    if options.quantize is not None:
        tell(report, "the original network in int8, to see that it can be")
        made_files = quantizer(original, batches_of(inputs))
    structure = find_groups(
        original.network, inputs[:4], seed=options.seed, call=call, also=ways[1:]
    )
    if not options.only_seen_paths:
        structure = spared(structure, original.network, unreached)
    batches = batches_of(inputs)
    if len(ways) > 1:
        with original.evaluating():
            batches = commonest_way(original.network, batches, call=call)
    context = Context(
        original, structure, batches, options.seed, macs, options.objective, recordings
    )
    return Ready(context, roles, copies, weak, differing, made_files)


def tell(report: Report, line: str) -> None:
    """Say something in one line, which is an event of its own."""
    report(Progress(line, line=line))


def tell_warnings(report: Report, lines: tuple[str, ...]) -> None:
    """Tell of what weakens the result while there is still something to wait for."""
    for line in lines:
        tell(report, f"{WARNING}{line}")
