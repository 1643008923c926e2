"""Distil a compressed network: a label-free training towards the original's answers.

Hinton et al. 2015, "Distilling the Knowledge in a Neural Network", with unlabelled inputs only:
what is taught is the original network's softmax. A part of the inputs is held out: it chooses how
to descend and how fast, decides which of the states on the way is kept, and is the reason why
distillation never makes a network worse there. Each choice was measured:
benchmarks/results/distillation.md.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor, nn

from fcompress.compress.distillation.student import Student, Way
from fcompress.compress.distillation.teacher import Closeness, Teacher, teacher_of
from fcompress.compress.options import DISTILL_EFFORT
from fcompress.forward import cost
from fcompress.forward.copying import deep_copy
from fcompress.forward.predictor import Predictor, as_predictor
from fcompress.showing.progress import Progress, Report, silent

# A step costs an example three forward passes: one forward, and two backward.
STEP_COST = 3
# Of all work, for trying rates; of the rest, for looks at the held-out part on the way.
TRIALS_SHARE, LOOKS_SHARE = 0.3, 0.1
LEAST_LOOKS, MOST_LOOKS = 5, 40
# Steps of a trial, at most, and so few that they would say nothing: then none is made. What leads
# far costs at first, so that trials of some steps are for rates that are too small.
TRIAL_STEPS, FEW_STEPS = 96, 30
# The first rate, how far the next ones are, and how many are tried at most.
FIRST_RATE, FACTOR, MOST_RATES = 1e-3, 4.0, 4
# Further trials, with the best rate times so much: moving statistics allow for larger ones.
RAISED: dict[bool, tuple[float, ...]] = {False: (), True: (1.0, 4.0)}
# Steps until a rate has its full size: the first ones of Adam know little of the gradients' sizes.
WARMING = 8
# A look that finds the divergence above that of the start, or so many times the best one, takes the
# training back to the best state, and halves the rate.
SLACK = 1.5
MOST_RETURNS = 6
# Nothing is to be won nearer than this (nats).
EXACT = 1e-9


@dataclass(frozen=True)
class Distilled:
    """A compressed network after distillation.

    Attributes:
        model: A new network: distilled, or the compressed one as it was if nothing got better.
        kept: Whether it is distilled.
        before: The compressed network on the held-out examples.
        after: `model` on them; never worse than `before`.
        examples: Examples that could be trained on.
        held_out: Examples that were not.
        effort: What was allowed, in sweeps of training over `sweep` examples.
        sweep: As how many examples an effort of 1 counts.
        rate: The learning rate that was found; None where nothing was tried.
        moving: Whether batch norms learned new statistics.
        returns: How often the training went back to an earlier state with a smaller rate.
        planned: Steps that the effort allowed for after the trials.
        steps: Steps that were done, those of the trials included.
        epochs: The same in passes over the examples.
        seconds: Wall-clock time of everything.
        stopped_by: "done" (the plan was carried out), "held-out" (nothing got better any more) or
            "time" (the limit cut the plan short).
        seed: Of the order of the examples.
    """

    model: nn.Module
    kept: bool
    before: Closeness
    after: Closeness
    examples: int
    held_out: int
    effort: float
    sweep: int
    rate: float | None
    moving: bool
    returns: int
    planned: int
    steps: int
    epochs: float
    seconds: float
    stopped_by: str
    seed: int

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values of everything but the network; None for what is not finite."""
        found = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "model"}
        for key in ("before", "after"):
            divergence = found[key].divergence
            found[key] = {
                "agreement": found[key].agreement,
                "divergence": divergence if math.isfinite(divergence) else None,
            }
        return found


def distill(
    original: nn.Module | Predictor,
    compressed: nn.Module,
    batches: Sequence[Tensor],
    *,
    held_out: Sequence[Tensor] | None = None,
    effort: float = DISTILL_EFFORT,
    seconds: float | None = None,
    seed: int = 0,
    progress: Report = silent,
) -> Distilled:
    """Teach a compressed network the original's scores on unlabelled examples.

    How much is done is counted in work, not in time: an effort of 1 is as many forward and
    backward passes of the compressed network as there are examples in `batches`, which is the work
    of three plain sweeps over them. Looks at the held-out part count too (a third of a step an
    example); the original's scores, one pass at most, do not. So the same inputs give the same
    network, whatever else the machine does, unless `seconds` cuts it short.

    Args:
        original: The network to follow. It is left as it is.
        compressed: Its thinner version, on the same device. It is left as it is.
        batches: Inputs [n, ...] as the networks take them, in any number of batches.
        held_out: Other inputs, which decide; None for the last eighth of `batches`, at most 1,024.
            A compressed network looks better than it is on the very examples that it was fitted
            to, and distillation would seem to do harm: these should be others.
        effort: Sweeps of training over the examples, above 0.
        seconds: Wall-clock limit, above 0; None for none. Where it strikes, the network depends on
            the clock, and `stopped_by` says so.
        seed: Of the order of the examples.
        progress: Told whenever the held-out part was looked at.

    Returns:
        A new network, distilled unless that made it no better on held-out examples.

    Raises:
        DataError: There are fewer than 16 examples to train on, or none held out.
        FcompressError: The networks do not give the same number of scores, or the compressed
            network has nothing to train.
        ValueError: `seconds` or `effort` is out of its range.

    Example:
        >>> wide = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> thin = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
        >>> found = distill(wide, thin, [torch.randn(256, 4)], effort=5)
        >>> found.after.divergence <= found.before.divergence
        True
    """
    teacher = teacher_of(as_predictor(original), batches, held_out)
    return distill_by(
        teacher, compressed, effort=effort, seconds=seconds, seed=seed, progress=progress
    )


def distill_by(
    teacher: Teacher,
    compressed: nn.Module,
    *,
    effort: float = DISTILL_EFFORT,
    seconds: float | None = None,
    seed: int = 0,
    progress: Report = silent,
) -> Distilled:
    """`distill` with examples that the original network has been brought together with before.

    Args:
        teacher: From `teacher_of`; it keeps the original's scores for the next network.
        compressed: As for `distill`, like all that follows.
        effort: Sweeps of training over `teacher.sweep` examples.
        seconds: Wall-clock limit.
        seed: Of the order of the examples.
        progress: Told whenever the held-out part was looked at.

    Raises:
        FcompressError: As for `distill`.
        ValueError: The same.
    """
    if seconds is not None and not 0 < seconds < math.inf:
        raise ValueError(f"seconds={seconds}: expected a finite number above 0")
    if not 0 < effort < math.inf:
        raise ValueError(f"effort={effort}: expected a finite number of sweeps above 0")
    began = time.perf_counter()
    source = teacher.original
    thin = source.of(deep_copy(compressed))
    student = Student(thin, teacher.batch * cost.count(thin, teacher.held[0]).macs)
    with source.evaluating(), student.predictor.evaluating(), _repeatable():
        deadline = None if seconds is None else began + seconds
        run = _Run(student, teacher, effort, deadline, seed, progress)
        run.train()
    model = deep_copy(compressed)
    if run.kept is not None:
        model.load_state_dict(run.kept)
    for parameter in model.parameters():
        parameter.grad = None
    return Distilled(
        model=model,
        kept=run.kept is not None,
        before=run.before,
        after=run.after,
        examples=len(teacher.rows),
        held_out=len(teacher.held_scores),
        effort=effort,
        sweep=teacher.sweep,
        rate=None if run.way is None else run.way.rate,
        moving=run.way is not None and run.way.moving,
        returns=run.returns,
        planned=run.planned,
        steps=run.steps,
        epochs=run.steps * teacher.batch / len(teacher.rows),
        seconds=time.perf_counter() - began,
        stopped_by=run.stopped_by,
        seed=seed,
    )


class _OutOfTime(Exception):
    """The limit of the caller has passed."""


@dataclass
class _Run:
    """One distillation: trials of rates, then a descent, both watched on the held-out part.

    `best` is the state of least divergence, to which the descent returns. `kept` is the one that is
    handed over: of those whose labels agree no less than at the start, that of least divergence.
    """

    student: Student
    teacher: Teacher
    effort: float
    deadline: float | None
    seed: int
    report: Report
    way: Way | None = None
    kept: dict[str, Any] | None = None
    returns: int = 0
    planned: int = 0
    steps: int = 0
    stopped_by: str = "done"
    _work: float = field(init=False, default=0.0)

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(self.seed)
        self._order = self.teacher.order(generator)
        self._step_cost = STEP_COST * self.teacher.batch
        self._work = STEP_COST * self.effort * self.teacher.sweep
        self.before = self.after = self.teacher.closeness(self.student.predictor)
        self.best, self._state = self.before.divergence, self.student.state()

    def train(self) -> None:
        """Do all that the effort allows for."""
        if self.best <= EXACT:
            self.stopped_by = "held-out"
            return
        try:
            self._try_ways()
            self._descend()
        except _OutOfTime:
            self.stopped_by = "time"
            self._look("out of time")

    def _look(self, where: str) -> float:
        """Divergence on the held-out part; the student is remembered if it is the best so far."""
        found = self.teacher.closeness(self.student.predictor)
        self._work -= len(self.teacher.held_scores)
        line = (
            f"distil: {where}, held-out agreement {found.agreement:.4f}, "
            f"divergence {found.divergence:.5f}"
        )
        self.report(Progress("distilling", self.steps, None, "steps", line))
        if found.divergence < self.best:
            self.best, self._state = found.divergence, self.student.state()
        # The divergence decides, it is the less noisy of the two; no label may be paid for it.
        better = found.divergence < self.after.divergence
        if better and found.agreement >= self.before.agreement:
            self.after, self.kept = found, self.student.state()
        return found.divergence

    def _step(self, chosen: Tensor, rate: float) -> bool:
        """One step; whether the loss before it was finite."""
        if self.deadline is not None and time.perf_counter() > self.deadline:
            raise _OutOfTime
        loss = self.student.step(*self.teacher.of(chosen), rate)
        self.steps += 1
        self._work -= self._step_cost
        return bool(loss.isfinite())

    def _try_ways(self) -> None:
        """Find the rate, and what batch norms do, from which a few steps lead furthest.

        All trials take the same examples from the same start, with a rate that falls to 0 as that
        of the descent does. The best state that any of them reached is where the descent begins.
        Where there is work for a few steps only there are none: the descent finds out for itself.
        """
        kinds = (False, True) if self.student.normed else (False,)
        further = [(moving, raise_) for moving in kinds for raise_ in RAISED[moving]]
        trials = MOST_RATES + len(further)
        looks = trials * len(self.teacher.held_scores)
        affordable = (TRIALS_SHARE * self._work - looks) / self._step_cost
        steps = min(TRIAL_STEPS, int(affordable / trials))
        start = self._state
        examples = [next(self._order) for _ in range(steps if steps >= FEW_STEPS else 0)]
        found = self._search(start, examples)
        best = min(found, key=lambda way: found[way])
        for moving, raise_ in further if examples else []:
            way = Way(moving, raise_ * best.rate)
            found[way] = self._trial(way, start, examples)
        self.way = min(found, key=lambda way: found[way])
        self.student.become(self._state)
        self.student.begin(self.way.moving)

    def _search(self, start: dict[str, Any], examples: list[Tensor]) -> dict[Way, float]:
        """Divergences at a few rates; from the first on, the search goes where it gets better."""
        if not examples:
            return {Way(False, FIRST_RATE): math.inf}
        found: dict[Way, float] = {}

        def at(power: int) -> float:
            way = Way(False, FIRST_RATE * FACTOR**power)
            if way not in found:
                if len(found) == MOST_RATES:
                    return math.inf
                found[way] = self._trial(way, start, examples)
            return found[way]

        power = 0
        for direction in (-1, 1):
            while at(power + direction) < at(power):
                power += direction
        return found

    def _trial(self, way: Way, start: dict[str, Any], examples: list[Tensor]) -> float:
        """The divergence to which the examples lead from the start, in one step each."""
        self.student.become(start)
        self.student.begin(way.moving, trial=True)
        for done, chosen in enumerate(examples):
            warm = min(1.0, (done + 1) / (WARMING + 1))
            if not self._step(chosen, way.rate * warm * (1 - done / len(examples))):
                return math.inf
        kind = "moving" if way.moving else "fixed"
        return self._look(f"{len(examples)} steps at rate {way.rate:.1e}, {kind} statistics")

    def _descend(self) -> None:
        """Spend what work is left, the rate falling linearly to 0."""
        assert self.way is not None
        look = len(self.teacher.held_scores)
        looks = int(LOOKS_SHARE * self._work / look)
        looks = min(max(looks, LEAST_LOOKS), MOST_LOOKS)
        self.planned = max(int((self._work - looks * look) / self._step_cost), 1)
        at = {math.ceil(self.planned * k / looks) for k in range(1, looks + 1)}
        rate, done, since = self.way.rate, 0, 0
        while done < self.planned:
            warm = min(1.0, (since + 1) / (WARMING + 1))
            finite = self._step(next(self._order), rate * warm * (1 - done / self.planned))
            done, since = done + 1, since + 1
            if finite and done not in at:
                continue
            found = self._look(f"step {done} of {self.planned}") if finite else math.inf
            if finite and found <= min(self.before.divergence, SLACK * self.best):
                continue
            self.returns += 1
            if self.returns > MOST_RETURNS:
                self.stopped_by = "held-out"
                return
            rate, since = rate / 2, 0
            self.student.become(self._state)
            self.student.begin(self.way.moving)


@contextmanager
def _repeatable() -> Iterator[None]:
    """The same sums in the same order on a GPU, too."""
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
        yield
