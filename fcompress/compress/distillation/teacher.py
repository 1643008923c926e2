"""The examples of a distillation, and what the original network says about them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fcompress.errors import DataError, FcompressError
from fcompress.forward.answers.scoring import Scoring
from fcompress.forward.predictor import Predictor

# Examples a step: few data give more steps a pass, of fewer examples each.
BATCH, LEAST_BATCH, STEPS_A_PASS = 64, 16, 64
# Of all examples, and at most so many: enough to see half a percent of the labels.
HELD_OUT_SHARE, HELD_OUT_MOST = 0.125, 1024
FEWEST = 16


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
class Teacher:
    """Unlabelled examples and the original network's scores, for any number of distillations.

    Attributes:
        original: The original network.
        rows: Inputs to train on, each without a batch dimension.
        scores: [n, classes]: the original's, filled when an example is first needed, so that a
            short distillation pays for what it uses only.
        known: bool [n]: where `scores` are filled.
        held: Held-out inputs in batches.
        held_scores: The original's, [held, classes].
        sweep: As how many examples an effort of 1 counts.
    """

    original: Predictor
    rows: list[Tensor]
    scores: Tensor
    known: Tensor
    held: list[Tensor]
    held_scores: Tensor
    sweep: int

    @property
    def batch(self) -> int:
        """Examples a step."""
        return min(BATCH, max(LEAST_BATCH, len(self.rows) // STEPS_A_PASS))

    def of(self, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs and the original's scores of some examples."""
        inputs = self.original.place(torch.stack([self.rows[i] for i in chosen.tolist()]))
        missing = ~self.known[chosen]
        if bool(missing.any()):
            self.scores[chosen] = self.original.scores(inputs)
            self.known[chosen] = True
        return inputs, self.scores[chosen]

    def order(self, generator: torch.Generator) -> Iterator[Tensor]:
        """Positions of the examples of each step, without end, shuffled for each pass.

        A last, smaller batch is left out of each pass: batch norm would not like it.
        """
        while True:
            order = torch.randperm(len(self.rows), generator=generator)
            yield from order.split(self.batch)[: len(self.rows) // self.batch]

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
        divergence = float(divergence_of(scoring, scores, self.held_scores.double()))
        return Closeness(float(same.mean()), divergence if math.isfinite(divergence) else math.inf)


def teacher_of(
    original: Predictor,
    batches: Sequence[Tensor],
    held_out: Sequence[Tensor] | None = None,
    sweep: int | None = None,
) -> Teacher:
    """Bring examples together with the network that they are to be taught by.

    Args:
        original: The network to follow.
        batches: Inputs [n, ...] as the networks take them, in any number of batches.
        held_out: Other inputs, which decide; None for the last eighth of `batches`, at most 1,024.
            A compressed network looks better than it is on the very examples that it was fitted
            to, and distillation would seem to do harm: these should be others.
        sweep: As how many examples an effort of 1 counts; None for those that are trained on.

    Raises:
        DataError: There are fewer than 16 examples to train on, or none held out.
    """
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
    with original.evaluating():
        held = [
            original.place(torch.stack(others[start : start + BATCH]))
            for start in range(0, len(others), BATCH)
        ]
        held_scores = torch.cat([original.scores(part) for part in held])
    return Teacher(
        original=original,
        rows=rows,
        scores=held_scores.new_empty(len(rows), *held_scores.shape[1:]),
        known=torch.zeros(len(rows), dtype=torch.bool),
        held=held,
        held_scores=held_scores,
        sweep=sweep or len(rows),
    )


def divergence_of(
    scoring: Scoring, scores: Tensor, reference: Tensor, temperature: float = 1.0
) -> Tensor:
    """Mean KL divergence of what scores say from what others do, in nats, times t^2.

    The square keeps the gradients of high temperatures as large as those of low ones. Both are
    divided by the temperature first.
    """
    temperature = temperature if scoring.softens else 1.0
    found, wanted = (scoring.log_probabilities(s, temperature) for s in (scores, reference))
    return scoring.divergence(found, wanted) * temperature**2
