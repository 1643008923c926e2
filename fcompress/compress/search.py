"""From nested choices of units to one network: the thinnest within a tolerance."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from fcompress.certify.agreement import AgreementResult
from fcompress.certify.fixed_sequence import (
    Candidate,
    certify,
    counted,
    holds,
    refusal,
    sequence_to_test,
)
from fcompress.certify.labels import changed_shares, reference_labels
from fcompress.certify.outlook import Limits
from fcompress.compress.distillation.distilling import STEP_COST, distill_by
from fcompress.compress.distillation.teacher import HELD_OUT_MOST, Teacher, teacher_of
from fcompress.compress.methods import Context, Method
from fcompress.compress.ranking.allocation import RemovalOrder
from fcompress.data.roles import Roles, batches_of
from fcompress.errors import ToleranceError
from fcompress.forward import cost
from fcompress.forward.predictor import Predictor
from fcompress.forward.timing import latency
from fcompress.showing.progress import Progress, Report

# The search, tuned on resampled splits of networks for digits. None of it may depend on
# the tolerance (see `path`).
SHRINKING = 0.9  # share of the remaining units that the next network keeps
MILD = 0.01  # share of changed labels up to which networks are not looked at one by one
TWO_AT_ONCE = 0.03  # share of changed labels from which two steps are taken at once
# Where better networks follow, steps are half as long up to this share of changed labels: there is
# much to save at tolerances near it.
HALVES = 0.01
# From one network to the next no more than this share of labels, and of those that change already.
JUMP = (0.02, 0.5)
RUNGS = (1 / 2, 15 / 16)  # milder networks still: how far back to the whole one, logarithmic
# Distillation learns from all calibration examples, and further ones, up to so many bytes.
DISTILL_BYTES = 1 << 30
# Multiples that `round_to="auto"` chooses from, and how much slower it may be by accident.
MULTIPLES = (1, 2, 4, 8, 16)
JITTER = 1.03
TIMED_EXAMPLES = 64


@dataclass(frozen=True)
class Found:
    """The network that was looked for.

    Attributes:
        candidate: The network.
        agreement: On the certification split.
        tried: Every network that was compared on the search split.
        tested: How many met the certification split.
        passed: Those that did and passed, in the order of the test.
        failed: The one that met it and did not, if there is one.
    """

    candidate: Candidate
    agreement: AgreementResult
    tried: list[Candidate]
    tested: int
    passed: tuple[Candidate, ...] = ()
    failed: tuple[Candidate, ...] = ()


@dataclass
class CandidateBuilder:
    """Makes the networks of a removal order and measures each on the search split.

    Attributes:
        context: The original network with all that belongs to it.
        method: Makes networks.
        removal_order: Which units they keep.
        roles: The data.
        report: Told of each network.
        multiple: Numbers of units are rounded up to multiples of this.
        distill_effort: Work to distil one network with, in plain sweeps over the calibration and
            search examples; None to distil none.
        distill_seconds: Most seconds for one; None for no limit.
        tried: Every network so far.
        quantizer: Makes of a network the file in int8 that is judged in its place; None to judge
            networks as they are.
        watch: Told of each network when it was measured.
        allowed: Largest share of labels that may change, for what is told of the best; None for
            no such limit.
        to_come: How many more networks may follow, at most; None where nobody knows.
    """

    context: Context
    method: Method
    removal_order: RemovalOrder
    roles: Roles
    report: Report
    multiple: int = 1
    distill_effort: float | None = None
    distill_seconds: float | None = None
    tried: list[Candidate] = field(default_factory=list)
    quantizer: Callable[[Predictor], nn.Module] | None = None
    watch: Callable[[Candidate], None] | None = None
    allowed: float | None = None
    to_come: int | None = None

    @cached_property
    def reference(self) -> Tensor:
        """Labels of the original network on the search split."""
        return reference_labels(self.context.original, (x for x, _ in self.roles.search))

    @cached_property
    def teacher(self) -> Teacher:
        """Calibration inputs, and further ones, to distil on, and search inputs that decide.

        Of further inputs no more are taken than the effort can use.
        """
        assert self.distill_effort is not None
        original, roles = self.context.original, self.roles
        first = roles.calibration.first(1)
        affordable = max(1, DISTILL_BYTES // (first.numel() * first.element_size()))
        known = roles.calibration.first(affordable)
        inputs = [known]
        # A plain sweep is over the calibration examples that statistics are from, and the search.
        swept = sum(map(len, self.context.batches)) + len(roles.search)
        sweep = math.ceil(swept / STEP_COST)
        wanted = min(affordable, math.ceil(self.distill_effort * sweep)) - len(known)
        for examples in roles.unlabelled:
            if wanted > 0:
                inputs.append(examples.first(wanted))
                wanted -= len(inputs[-1])
        batches = [original.place(batch) for part in inputs for batch in batches_of(part)]
        held_out = [original.place(b) for b in batches_of(roles.search.first(HELD_OUT_MOST))]
        return teacher_of(original, batches, held_out, sweep=sweep)

    @property
    def steps(self) -> int:
        """How many units can go in all."""
        return len(self.removal_order.prices)

    def kept(self, removed: int) -> dict[str, Tensor]:
        """Kept units of each group when `removed` units are gone, apart from rounding."""
        return self.removal_order.kept(removed, self.multiple)

    def macs(self, removed: int) -> int:
        """Multiply-adds of the network without `removed` units, without refitting it."""
        return cost.count(self.context.thin(self.kept(removed)), self.context.batches[0]).macs

    def make(self, removed: int) -> Candidate:
        """Build the network without `removed` units and measure it."""
        return self._measured(removed, distilled=False)

    def make_distilled(self, removed: int) -> Candidate:
        """The same, distilled."""
        return self._measured(removed, distilled=True)

    def changed(self, predictor: Predictor) -> float:
        """How many answers of the search split a network changes."""
        lost = changed_shares(predictor, (x for x, _ in self.roles.search), self.reference)
        return float(lost.sum())

    def _best(self) -> str:
        """The cheapest network on the search split that changes no more than is allowed."""
        if self.allowed is None:
            return ""
        good = [c.macs for c in self.tried if c.changed <= self.allowed * c.n]
        return f"{min(good) / max(self.context.macs, 1):.1%} of MACs" if good else ""

    def _measured(self, removed: int, *, distilled: bool) -> Candidate:
        original = self.context.original
        kept = self.kept(removed)
        thin = self.method.make(self.context, kept)
        record = None
        if distilled:
            assert self.distill_effort is not None
            better = distill_by(
                self.teacher,
                thin,
                effort=self.distill_effort,
                seconds=self.distill_seconds,
                seed=self.context.seed,
            )
            thin, record = better.model, better.to_dict()
        macs = cost.count(original.of(thin), self.context.batches[0]).macs
        if self.quantizer is not None:
            thin = self.quantizer(original.of(thin))
        found = measure(
            removed,
            kept,
            original.of(thin),
            macs,
            (x for x, _ in self.roles.search),
            self.reference,
        )
        found = replace(found, distill=record)
        self.tried.append(found)
        if self.watch is not None:
            self.watch(found)
        line = (
            f"{removed} of {self.steps} units removed{' and distilled' if distilled else ''}: "
            f"{macs / max(self.context.macs, 1):.1%} of MACs, "
            f"{counted(found, original.scoring.noun)} changed"
        )
        done = len(self.tried)
        of = None if self.to_come is None else done + self.to_come
        event = Progress("searching", done, of, "candidates", line, at_most=of is not None)
        self.report(replace(event, best=self._best()))
        return found


def within(
    builder: CandidateBuilder,
    tol: float,
    confidence: float,
    label_tolerance: float | None = None,
) -> Found:
    """The thinnest network within the tolerance.

    Which networks meet the certification split, and in which order, is decided by the search split
    alone: those of `path`, mildest first. With a looser tolerance the path goes on further and is
    the same until there, so that on the same data nothing that was certified is lost. Where
    networks are distilled, the path is refitted networks before the last that changes next to no
    label, and distilled ones from that one on; each is the same whatever the tolerance (unless a
    time limit struck), since it begins where those before it on the path have come to.

    Args:
        builder: Makes networks.
        tol: Largest share of labels that may change.
        confidence: Of the certificate.
        label_tolerance: Largest share of each label that may change; None for any.

    Raises:
        ToleranceError: None can be certified.
    """
    n = len(builder.roles.certification)
    original = builder.context.original
    builder.allowed = tol

    def expect(more: int) -> None:
        builder.to_come = more

    limits = Limits(original, builder.roles, tol, confidence, label_tolerance)
    onward = None if builder.distill_effort is None else builder.make_distilled
    sequence = sequence_to_test(
        path(builder.steps, builder.make, limits.beyond, onward, expect, limits.far), limits.beyond
    )
    builder.report(Progress("certifying", 0, n, "examples", f"certifying on {n} examples"))
    passed, results = certify(
        original,
        sequence,
        builder.roles.certification,
        tol,
        confidence,
        label_tolerance,
    )
    if passed is None:
        line = refusal(builder.tried, sequence, results, tol, confidence, original.scoring.noun)
        raise ToleranceError(line + limits.shortfall(results[0] if results else None))
    good = sum(holds(result, tol, label_tolerance) for result in results)
    met = tuple(sequence[: len(results)])
    return Found(*passed, builder.tried, len(results), met[:good], met[good:])


def best_multiple(context: Context, removal_order: RemovalOrder) -> int:
    """The largest multiple of units that costs no time on this device.

    Networks that are half way down the removal order, rounded up to each of `MULTIPLES`, are timed
    in turns. More units for the same time change fewer labels.
    """
    half = len(removal_order.prices) // 2
    thin = [context.thin(removal_order.kept(half, multiple)) for multiple in MULTIPLES]
    example = torch.cat(list(context.batches[:1]))[:TIMED_EXAMPLES]
    times = latency(thin, example)
    limit = JITTER * min(times)
    return max(m for m, time in zip(MULTIPLES, times, strict=True) if time <= limit)


def path(
    total: int,
    make: Callable[[int], Candidate],
    beyond: Callable[[Candidate], bool],
    onward: Callable[[int], Candidate] | None = None,
    expect: Callable[[int], object] = lambda more: None,
    far: Callable[[Candidate], bool] = lambda candidate: False,
) -> list[Candidate]:
    """Networks from mild to thin, until one is clearly beyond what is allowed.

    All are points of one `lattice`. Bisection finds the last point that changes next to nothing
    (`MILD`). The path begins well before it (`RUNGS`), since a search split may be lucky, and goes
    on from there point by point, or by two where many labels change (`TWO_AT_ONCE`); where the
    changes jump from one to the next, there are networks in between (`JUMP`).

    The tolerance decides only where the path ends. So the path for a tighter tolerance is the
    beginning of that for a looser one, and what `sequence_to_test` takes of it as well. Tested in
    that order until one fails, everything that passes at the tighter tolerance passes at the
    looser: the result cannot get worse.

    Args:
        total: Units that can go in all.
        make: Builds and measures the network with that many units removed, the same one whenever
            it is asked.
        beyond: Whether a network changes so much that no thinner one is worth a look. Of two
            tolerances, whatever is beyond the looser must be beyond the tighter.
        onward: Builds better networks: the last that is mild, and all behind it; None for `make`.
        expect: Told before each network how many more may follow it, jumps apart.
        far: What is known to be beyond without running it, for what `expect` is told.

    Returns:
        Candidates, mildest first. The last one is beyond, or the thinnest that there is.
    """
    points = lattice(total)
    if not points:
        return []
    made: dict[int, Candidate] = {}

    def at(removed: int) -> Candidate:
        if removed not in made:
            made[removed] = make(removed)
        return made[removed]

    further = onward or at
    halves = points if onward is None else _with_middles(points, total)

    def onward_from(removed: int) -> int:
        """How many points the path may still have: it ends where a network is beyond."""
        ends = () if onward else (n for n, c in made.items() if n > removed and far(c))
        end = min(ends, default=points[-1])
        return sum(removed < n <= end for n in halves)

    def back(share: float) -> int:
        left = round((total + 1 - begin) ** (1 - share) * (total + 1) ** share)
        return max(total + 1 - left, 1)

    low, high = 0, len(points)  # where not even the first point is mild, the path begins there
    while high - low > 1:
        middle = (low + high) // 2
        expect(len(RUNGS) + onward_from(points[low]) + (high - low).bit_length())
        candidate = at(points[middle])
        low, high = (middle, high) if candidate.changed <= MILD * candidate.n else (low, middle)
    begin = points[low]
    found = [at(n) for n in sorted(set(map(back, RUNGS)) - {begin})] + [further(begin)]
    ahead: list[Candidate] = []  # the next one, and before it what closes a jump
    while ahead or found[-1].removed < points[-1]:
        last = found[-1]
        expect(onward_from(last.removed) - 1)
        if not ahead:
            near = onward is not None and last.changed <= HALVES * last.n
            behind = [n for n in (halves if near else points) if n > last.removed]
            ahead.append(further(behind[:2][-1 if last.changed > TWO_AT_ONCE * last.n else 0]))
        middle = _between(last.removed, ahead[-1].removed, total)
        if _jumps(last, ahead[-1]) and last.removed < middle < ahead[-1].removed:
            ahead.append(further(middle))
            continue
        found.append(ahead.pop())
        if beyond(found[-1]):
            break
    return found


def _with_middles(points: Sequence[int], total: int) -> list[int]:
    """Points of a lattice and, between each two, where the middle of what remains is."""
    middles = {_between(a, b, total) for a, b in itertools.pairwise(points)}
    return sorted({*points, *middles})


def _between(one: int, other: int, total: int) -> int:
    """Units to remove so that what remains is the geometric mean of two networks'."""
    return total + 1 - round(math.sqrt((total + 1 - one) * (total + 1 - other)))


def _jumps(one: Candidate, following: Candidate) -> bool:
    """Whether so many more labels change that there should be a network in between."""
    least, more = JUMP
    return following.changed > one.changed * (1 + more) + least * one.n


def lattice(total: int) -> list[int]:
    """Numbers of removed units that are looked at, ascending, of `total` that can go.

    What remains shrinks by a tenth from one to the next. Before the first tenth, what goes doubles.
    """
    found: set[int] = set()
    left = float(total + 1)
    while left > 1 and total:
        left = max(left * SHRINKING, 1.0)
        found.add(total + 1 - round(left))
    first = round((1 - SHRINKING) * (total + 1))
    found.update(first >> halved for halved in range(1, first.bit_length()))
    return sorted(found - {0})


def measure(
    removed: int,
    kept: dict[str, Tensor],
    predictor: Predictor,
    macs: int,
    batches: Iterable[Tensor],
    reference: Tensor,
) -> Candidate:
    """Compare a candidate's labels with the original network's."""
    lost = changed_shares(predictor, batches, reference)
    changed, deviation = float(lost.sum()), None
    if predictor.scoring.in_parts:
        deviation = float(lost.std(unbiased=False))
    else:
        changed = int(changed)
    return Candidate(removed, kept, predictor.network, macs, changed, len(lost), deviation)
