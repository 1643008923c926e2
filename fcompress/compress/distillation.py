"""Distil a compressed network: a short, label-free training towards the original's logits.

Hinton et al. 2015, "Distilling the Knowledge in a Neural Network", with the calibration inputs
only: what is taught is the original network's softmax, so that no label is needed. A part of the
inputs is held out, decides whether and which of the states on the way is kept, and is the
reason why distillation never makes a network worse there. Each choice was measured:
benchmarks/results/polish.md.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fcompress.errors import DataError, FcompressError
from fcompress.forward.answers.scoring import Scoring
from fcompress.forward.predictor import Predictor, as_predictor
from fcompress.forward.running import copied, now
from fcompress.progress import Progress, Report, silent

EPOCHS = 60
BATCH = 64
# Softer labels teach more in a short time: KL divergence at this temperature, times its square.
TEMPERATURE = 4.0
# Batch norms make a network indifferent to the size of its weights, and then descent with momentum
# gets further than Adam in the same time; without them it diverged.
MOMENTUM, MOMENTUM_RATE = 0.9, 0.03
ADAM_RATE = 1e-3
# Full rates are for networks as far as this from the original (nats); closer ones start gentler in
# proportion, or the first steps would lose more than the rest can win back.
ROUGH = 0.1
# Of all examples, and at most so many: enough to see half a percent of the labels.
HELD_OUT_SHARE, HELD_OUT_MOST = 0.125, 1024
FEWEST = 16
# Looks at the held-out part, evenly spread over the steps.
CHECKS = 5
# Of the time limit; the rest is for what the plan does not know of.
PLANNED_SHARE = 0.9
TIMED_STEPS = 4


@dataclass(frozen=True)
class Closeness:
    """How close a compressed network is to the original on the held-out examples.

    Attributes:
        agreement: Share of equal labels, in [0, 1].
        divergence: Mean Kullback-Leibler divergence of the compressed network's softmax from the
            original's, in nats; infinite where an output is not finite.
    """

    agreement: float
    divergence: float


@dataclass(frozen=True)
class Distilled:
    """A compressed network after distillation.

    Attributes:
        model: A new network: distilled, or the compressed one as it was if nothing got better.
        kept: Whether it is distilled.
        before: The compressed network on the held-out examples.
        after: `model` on them; never worse than `before`.
        examples: Examples that were trained on.
        held_out: Examples that were not.
        planned: Steps that the plan had.
        steps: Steps that were done.
        epochs: The same in passes over the examples.
        seconds: Wall-clock time of everything.
        stopped_by: "done" (the plan was carried out), "held-out" (nothing got better any more, or
            the loss was no longer finite) or "time" (the limit cut the plan short).
        seed: Of the order of the examples.
    """

    model: nn.Module
    kept: bool
    before: Closeness
    after: Closeness
    examples: int
    held_out: int
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
    seconds: float = 60.0,
    epochs: int = EPOCHS,
    seed: int = 0,
    progress: Report = silent,
) -> Distilled:
    """Teach a compressed network the original's scores on unlabelled examples.

    The plan (how many steps, and with it the learning rate of each) is made once: as many steps
    as `epochs` allows, or fewer where these would take longer than `seconds`. The time of a step
    is taken from a few trial steps, the shortest of them rounded up to a power of two of a
    second, so that a clock that jitters does not change the plan (unless it crosses a power of
    two). The same plan gives the same network. If a plan still takes longer than `seconds`, it is
    cut short there and `stopped_by` says so.

    Args:
        original: The network to follow. It is left as it is.
        compressed: Its thinner version, on the same device. It is left as it is.
        batches: Inputs [n, ...] as the networks take them, in any number of batches.
        held_out: Other inputs, which decide; None for the last eighth of `batches`, at most 1,024.
            A compressed network looks better than it is on the very examples that it was fitted
            to, and distillation would seem to do harm: these should be others.
        seconds: Wall-clock limit of everything together, above 0.
        epochs: Most passes over the examples, at least 1.
        seed: Of the order of the examples.
        progress: Told whenever the held-out part was looked at.

    Returns:
        A new network, distilled unless that made it no better on held-out examples.

    Raises:
        DataError: There are fewer than 16 examples to train on, or none held out.
        FcompressError: The networks do not give the same number of scores, or the compressed
            network has nothing to train.
        ValueError: `seconds` or `epochs` is out of its range.
    """
    if not 0 < seconds < math.inf:
        raise ValueError(f"seconds={seconds}: expected a finite number above 0")
    if epochs < 1:
        raise ValueError(f"epochs={epochs}: expected at least 1")
    began = time.perf_counter()
    generator = torch.Generator().manual_seed(seed)
    source = as_predictor(original)
    student = _Student(source.of(copied(compressed)))
    with source.evaluating(), student.predictor.evaluating(), _repeatable():
        teacher = _teacher(source, batches, held_out)
        start = time.perf_counter()
        before = teacher.closeness(student.predictor)
        # A last look at the held-out part must fit in, too.
        deadline = began + seconds - (time.perf_counter() - start)
        planned = _plan(student.predictor, teacher, epochs, seconds)
        tally = _train(student, teacher, planned, deadline, generator, before, progress)
    model = copied(compressed)
    if tally.state is not None:
        model.load_state_dict(tally.state)
    for parameter in model.parameters():
        parameter.grad = None
    return Distilled(
        model=model,
        kept=tally.state is not None,
        before=before,
        after=tally.best,
        examples=len(teacher.rows),
        held_out=len(teacher.held_scores),
        planned=planned,
        steps=tally.steps,
        epochs=tally.steps / teacher.steps_an_epoch,
        seconds=time.perf_counter() - began,
        stopped_by=tally.stopped_by,
        seed=seed,
    )


@dataclass(frozen=True)
class _Teacher:
    """The examples and what the original network says about them.

    Attributes:
        original: The original network, in eval mode.
        rows: Inputs to train on, each without a batch dimension.
        scores: [n, classes]: the original's, filled when a batch is first needed, so that a
            limit that allows less than one pass pays for what it uses only.
        known: bool [n]: where `scores` are filled.
        held: Held-out inputs in batches.
        held_scores: The original's, [held, classes].
        seconds_a_batch: Of the original network.
    """

    original: Predictor
    rows: list[Tensor]
    scores: Tensor
    known: Tensor
    held: list[Tensor]
    held_scores: Tensor
    seconds_a_batch: float

    @property
    def batch(self) -> int:
        """Examples a step."""
        return min(BATCH, len(self.rows))

    @property
    def steps_an_epoch(self) -> int:
        """A last, smaller batch is left out of each pass: batch norm would not like it."""
        return len(self.rows) // self.batch

    def of(self, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs and the original's scores of some examples."""
        inputs = self.original.place(torch.stack([self.rows[i] for i in chosen.tolist()]))
        if not bool(self.known[chosen].all()):
            self.scores[chosen] = self.original.scores(inputs)
            self.known[chosen] = True
        return inputs, self.scores[chosen]

    def order(self, generator: torch.Generator) -> Iterator[Tensor]:
        """Positions of the examples of each step, without end, shuffled for each pass."""
        while True:
            order = torch.randperm(len(self.rows), generator=generator)
            yield from order.split(self.batch)[: self.steps_an_epoch]

    def closeness(self, compressed: Predictor) -> Closeness:
        """`compressed`, in eval mode, on the held-out examples.

        Raises:
            FcompressError: It has another number of classes.
        """
        scores = torch.cat([compressed.scores(part) for part in self.held]).double()
        if scores.shape != self.held_scores.shape:
            raise FcompressError(
                f"the networks give {self.held_scores.shape[1]} and {scores.shape[1]} scores; "
                "distil a network with the classes of the original one"
            )
        scoring = self.original.scoring
        same = scoring.shares(scoring.labels_of(self.held_scores), scoring.labels_of(scores))
        divergence = float(_divergence(scoring, scores, self.held_scores.double()))
        return Closeness(float(same.mean()), divergence if math.isfinite(divergence) else math.inf)


def _teacher(
    original: Predictor, batches: Sequence[Tensor], held_out: Sequence[Tensor] | None
) -> _Teacher:
    rows = [row for batch in batches for row in batch]
    if held_out is None:
        cut = len(rows) - min(HELD_OUT_MOST, math.ceil(HELD_OUT_SHARE * len(rows)))
        rows, others = rows[:cut], rows[cut:]
    else:
        others = [row for batch in held_out for row in batch]
    if len(rows) < FEWEST or not others:
        raise DataError(
            f"{len(rows)} examples to distil with and {len(others)} held out are too few; bring "
            f"at least {FEWEST} and 1, better some thousands (labels are not needed)"
        )
    held, scores, times = [], [], []
    for start in range(0, len(others), BATCH):
        held.append(original.place(torch.stack(others[start : start + BATCH])))
        begin = now(held[-1].device)
        scores.append(original.scores(held[-1]))
        times.append(now(held[-1].device) - begin)
    held_scores = torch.cat(scores)
    return _Teacher(
        original=original,
        rows=rows,
        scores=held_scores.new_empty(len(rows), *held_scores.shape[1:]),
        known=torch.zeros(len(rows), dtype=torch.bool),
        held=held,
        held_scores=held_scores,
        seconds_a_batch=sorted(times)[len(times) // 2],
    )


def _plan(student: Predictor, teacher: _Teacher, epochs: int, seconds: float) -> int:
    """How many steps to do.

    Times are rounded up to powers of two, so that a plan fits into the limit and does not follow
    every jitter of the clock.
    """
    spare = _Student(student.of(copied(student.network)))
    inputs, scores = teacher.of(torch.arange(teacher.batch))
    times = []
    for _ in range(TIMED_STEPS):
        begin = now(inputs.device)
        spare.step(inputs, scores, 0.0)
        times.append(now(inputs.device) - begin)
    step, lookup = _power_of_two(min(times)), _power_of_two(teacher.seconds_a_batch)
    first = teacher.steps_an_epoch
    fit = PLANNED_SHARE * seconds / (step + lookup)
    if fit > first:
        fit = (PLANNED_SHARE * seconds - first * lookup) / step
    # A look at the held-out part is a forward pass only.
    fit -= CHECKS * len(teacher.held) / 4
    return max(1, min(epochs * first, int(fit)))


class _Student:
    """A network with its optimizer."""

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor
        model = predictor.network
        # All else stays in eval mode: dropout would only slow the teaching down.
        self._norms = [m for m in model.modules() if isinstance(m, _BatchNorm)]
        weights = [p for p in model.parameters() if p.is_floating_point()]
        if not weights:
            raise FcompressError(
                f"{type(model).__name__} has no weights: there is nothing to distil; leave it out"
            )
        for weight in weights:
            weight.requires_grad_(True)
            weight.grad = None
        self._optimizer: torch.optim.Optimizer
        if self._norms:
            self._optimizer = torch.optim.SGD(
                weights, lr=MOMENTUM_RATE, momentum=MOMENTUM, nesterov=True
            )
        else:
            self._optimizer = torch.optim.Adam(weights, lr=ADAM_RATE)
        self._rate = self._optimizer.param_groups[0]["lr"]

    def step(self, inputs: Tensor, scores: Tensor, share: float) -> float:
        """One step, at a share of the learning rate; returns the loss before it."""
        for norm in self._norms:
            norm.train()
        for group in self._optimizer.param_groups:
            group["lr"] = self._rate * share
        self._optimizer.zero_grad(set_to_none=True)
        with torch.enable_grad():
            found = self.predictor.scores(inputs)
            loss = _divergence(self.predictor.scoring, found, scores, TEMPERATURE)
            loss.backward()
        self._optimizer.step()
        for norm in self._norms:
            norm.eval()
        return float(loss.detach())


@dataclass(frozen=True)
class _Tally:
    """How a training went: the best state, or None if the network was best as it was."""

    state: dict[str, Any] | None
    best: Closeness
    steps: int
    stopped_by: str


def _train(
    student: _Student,
    teacher: _Teacher,
    planned: int,
    deadline: float,
    generator: torch.Generator,
    before: Closeness,
    report: Report,
) -> _Tally:
    best, state, stopped_by = before, None, "done"
    looks = {math.ceil(planned * k / CHECKS) for k in range(1, CHECKS + 1)}
    gentle = min(1.0, before.divergence / ROUGH)
    done = looked = 0

    def look() -> None:
        nonlocal best, state, looked
        found, looked = teacher.closeness(student.predictor), done
        line = (
            f"distil: step {done} of {planned}, held-out agreement {found.agreement:.4f}, "
            f"divergence {found.divergence:.4f}"
        )
        report(Progress("distilling", done, planned, "steps", line))
        # The divergence decides, it is the less noisy of the two; no label may be paid for it.
        if found.agreement >= before.agreement and found.divergence < best.divergence:
            best, state = found, copy.deepcopy(student.predictor.network.state_dict())

    for chosen in islice(teacher.order(generator), planned):
        if time.perf_counter() > deadline:
            stopped_by = "time"
            break
        loss = student.step(*teacher.of(chosen), gentle * (1 - done / planned))
        done += 1
        if not math.isfinite(loss):
            stopped_by = "held-out"
            break
        if done in looks:
            look()
    if stopped_by == "time" and done > looked:
        look()
    return _Tally(state, best, done, stopped_by)


def _divergence(
    scoring: Scoring, scores: Tensor, reference: Tensor, temperature: float = 1.0
) -> Tensor:
    """Mean KL divergence of what scores say from what others do, in nats, times t^2.

    The square keeps the gradients of high temperatures as large as those of low ones. Both are
    divided by the temperature first.
    """
    found, wanted = (scoring.log_probabilities(s, temperature) for s in (scores, reference))
    return scoring.divergence(found, wanted) * temperature**2


def _power_of_two(seconds: float) -> float:
    """The next power of two."""
    return 2.0 ** math.ceil(math.log2(max(seconds, 1e-6)))


@contextmanager
def _repeatable() -> Iterator[None]:
    """The same sums in the same order on a GPU, too."""
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
        yield
