"""The pair of networks that costs least on average within a tolerance, certified as one network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import nn

from fcompress.cascades.margins import check_margins
from fcompress.cascades.network import Cascade
from fcompress.certify.agreement import AgreementResult, compare, with_upper_bound
from fcompress.certify.bounds import examples_at, upper_bound
from fcompress.certify.fixed_sequence import Candidate, certify, counted, holds
from fcompress.certify.outlook import Limits
from fcompress.compress.cascade.replaying import Remembered, Replayed
from fcompress.compress.cascade.sequence import Pair, pairs, still_cheaper, until
from fcompress.compress.cascade.sizes import Size, examined, spaced
from fcompress.compress.search import CandidateBuilder, Found, lattice
from fcompress.errors import FcompressError, ToleranceError, UnsupportedNetworkError
from fcompress.forward.copying import deep_copy
from fcompress.forward.predictor import Predictor
from fcompress.models.provenance import hand_on, origin_of, set_origin
from fcompress.showing.progress import Progress

# So many sizes in a row that are cheapest for no tolerance end the search.
IN_VAIN = 2
DISTILLED_MOST = 5


@dataclass(frozen=True)
class FoundCascade(Found):
    """The pair that was looked for.

    Attributes:
        threshold: The least margin with which the compressed network's answer stays.
        deferred: Certification examples that the original answers.
        deferred_of: Certification examples in all.
        deferred_at_most: Upper bound on the share of all examples that it answers, with the
            confidence of the certificate, whichever of the pairs was taken.
    """

    threshold: float = 0.0
    deferred: int = 0
    deferred_of: int = 0
    deferred_at_most: float = 1.0


def check_cascade(original: Predictor) -> None:
    """Refuse networks of which no cascade can be made.

    Raises:
        UnsupportedNetworkError: Their answers have no margin, or they draw random numbers.
    """
    check_margins(original.scoring)
    if original.draws:
        raise UnsupportedNetworkError(
            "a cascade (--cascade) asks the original again where the compressed network is unsure, "
            "and a network that draws random numbers gives other answers each time; leave cascade "
            "out, or switch the draws off"
        )


def within_cascade(
    builder: CandidateBuilder,
    tol: float,
    confidence: float,
    label_tolerance: float | None = None,
) -> FoundCascade:
    """The pair (compressed network, threshold) with the least average MACs within the tolerance.

    Sizes, thresholds and their order are chosen on the calibration and search splits alone. Then
    the pairs meet the certification split by the rules for single ones (`fixed_sequence.py`).

    Args:
        builder: Makes compressed networks.
        tol: Largest share of labels that may change.
        confidence: Of the certificate.
        label_tolerance: Largest share of each label that may change; None for any.

    Raises:
        ToleranceError: No pair that is cheaper than the original can be certified.
        FcompressError: The answers hang on how many examples are in a batch.
    """
    original, roles = builder.context.original, builder.roles
    n = len(roles.certification)
    sizes = _sizes(builder, n)
    macs = builder.context.macs
    everything = pairs(sizes, macs, n)
    if not everything:
        raise ToleranceError(
            f"no cascade is cheaper than the original: of {len(sizes)} compressed networks each "
            "would defer so many examples that both together cost more; leave cascade out, or try "
            "distillation"
        )
    remembered = original.of(Remembered(original.network))
    networks: dict[int, Remembered] = {}

    def replayed(size: Size, pair: Pair) -> Pair:
        known = networks.setdefault(id(size), Remembered(size.candidate.model))
        model = Replayed(known, remembered.network, pair.threshold, original.scoring).eval()
        return replace(pair, model=model)

    tried = [(size, replayed(size, pair)) for size, pair in everything]
    limits = Limits(remembered, roles, tol, confidence, label_tolerance)
    sequence = until(tried, limits.beyond)
    _tell(builder, f"{len(sequence)} pairs of network and threshold to certify, mildest first")
    builder.report(Progress("certifying", 0, n, "examples", f"certifying on {n} examples"))
    candidates = [pair for _, pair in sequence]
    passed, results = certify(
        remembered, candidates, roles.certification, tol, confidence, label_tolerance
    )
    if passed is None:
        line = refusal(tried[0][1], len(sequence), results, tol, confidence, original.scoring.noun)
        raise ToleranceError(line + limits.shortfall(results[0] if results else None))
    size, pair = sequence[passed[0].rank]
    cascade = _together(original, size, pair)
    agreement = _run(original, cascade, passed[1], builder, (tol, confidence, label_tolerance))
    deferred = _deferred(original, pair.model, builder)
    # One bound for each pair that could have been taken, so that the one that was is among them.
    apart = 1 - (1 - confidence) / len(sequence)
    return FoundCascade(
        candidate=replace(pair, model=cascade),
        agreement=agreement,
        tried=builder.tried,
        tested=len(results),
        threshold=pair.threshold,
        deferred=deferred,
        deferred_of=n,
        deferred_at_most=upper_bound(deferred, n, apart),
    )


def _tell(builder: CandidateBuilder, line: str) -> None:
    builder.report(Progress(line, line=line))


def _sizes(builder: CandidateBuilder, n: int) -> list[Size]:
    """Compressed networks, largest first, until they get no cheaper for any tolerance."""
    macs = builder.context.macs
    known: dict[int, float] = {}

    def share(removed: int) -> float:
        if removed not in known:
            known[removed] = builder.macs(removed) / max(macs, 1)
        return known[removed]

    found: list[Size] = []
    best: dict[float, float] = {}
    in_vain = 0
    for removed in spaced(lattice(builder.steps), share):
        found.append(_examined(builder, builder.make(removed)))
        in_vain = 0 if still_cheaper(found[-1], best, macs, n) else in_vain + 1
        if in_vain == IN_VAIN:
            break
    if builder.distill_effort is not None:
        useful = {size.candidate.removed for size, _ in pairs(found, macs, n)}
        for removed in sorted(useful)[:DISTILLED_MOST]:
            found.append(_examined(builder, builder.make_distilled(removed)))
    return found


def _examined(builder: CandidateBuilder, candidate: Candidate) -> Size:
    predictor = builder.context.original.of(candidate.model)
    inputs = (x for x, _ in builder.roles.search)
    return examined(candidate, predictor, inputs, builder.reference)


def _together(original: Predictor, size: Size, pair: Pair) -> Cascade:
    """The pair as one network that shares nothing with any other."""
    small, large = (deep_copy(one).eval() for one in (size.candidate.model, original.network))
    hand_on(original.network, small)
    hand_on(original.network, large)
    cascade = Cascade(small, large, pair.threshold, original.scoring).eval()
    origin = origin_of(original.network)
    set_origin(cascade, origin["data"], origin["history"])
    return cascade


def _run(
    original: Predictor,
    cascade: Cascade,
    tested: AgreementResult,
    builder: CandidateBuilder,
    aim: tuple[float, float, float | None],
) -> AgreementResult:
    """The agreement of the cascade as it runs, whose deferred rows are a batch of their own.

    It was tested with rows out of whole batches; what may differ is rounding.

    Raises:
        FcompressError: Rounding changed so many answers that the certificate does not hold.
    """
    tol, confidence, label_tolerance = aim
    data = builder.roles.certification
    found = compare(original, original.of(cascade), data, confidence)
    if found.changed > tested.changed and not holds(found, tol, label_tolerance):
        raise FcompressError(
            f"the cascade as it runs changes {found.changed:g} of {found.n:,} answers and "
            f"{tested.changed:g} in other batches, so the network's answers hang on rounding; "
            "compute in double precision"
        )
    bound = tested.upper_bound
    if found.changed > tested.changed:
        bound = max(bound, found.upper_bound)
    return with_upper_bound(replace(found, by_label=tested.by_label), bound)


def _deferred(original: Predictor, model: nn.Module, builder: CandidateBuilder) -> int:
    """How many certification examples the original answers."""
    assert isinstance(model, Cascade)
    count = 0
    predictor = original.of(model)
    with predictor.evaluating():
        for inputs, _ in builder.roles.certification:
            args, kwargs = predictor.unpacked(model, predictor.place(inputs))
            count += int(model.deferred(*args, **kwargs).sum())
    return count


def refusal(
    mildest: Pair,
    count: int,
    results: Sequence[AgreementResult],
    tolerance: float,
    confidence: float,
    noun: str,
) -> str:
    """Why no pair was certified, and what would help, in one line.

    Args:
        mildest: The pair that was tested first, or would have been.
        count: How many were to be tested.
        results: Of those that were: none, or one that failed.
        tolerance: What it was tested for.
        confidence: Of the bound.
        noun: What is counted, as `asked.noun_of` has it.
    """
    line = f"no cascade could be certified within a tolerance of {tolerance:g}: "
    if not results:
        return line + (
            f"the mildest pair already changed {counted(mildest, noun, 'search')}; try another "
            "method, or distillation"
        )
    result = results[0]
    proves = f"{math.ceil(result.upper_bound * 1e4 - 1e-9) / 1e4:.2%}"
    line += (
        f"of {count} pairs the mildest, which defers {mildest.deferred:.1%} of the examples, "
        f"changed {counted(result, noun, 'certification')}, which proves {proves}; "
    )
    rate = (mildest.changed + result.changed) / (mildest.n + result.n)
    needed = None
    if result.deviation is None:
        needed = examples_at(rate, tolerance, confidence, more_than=result.n)
    if needed is None:
        return line + f"choose a tolerance of at least {proves}, or bring more data"
    return line + (
        f"certifying {100 * tolerance:.4g}% needs about {needed:,} certification examples at that "
        "rate; bring more data"
    )
