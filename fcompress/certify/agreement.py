"""Label agreement of two networks and what it proves.

Disagreement is a coin with unknown bias; that so many of n examples changed their label bounds
the bias from above (Clopper and Pearson 1934, exact, one-sided).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from fcompress.certify.bounds import CONFIDENCE, upper_bound
from fcompress.certify.other_outputs import OtherOutputs, said, unvouched
from fcompress.data import as_batches
from fcompress.deprecation import renamed
from fcompress.errors import DataError, FcompressError, ResultWarning
from fcompress.forward.draws import Draws, drawing_apart
from fcompress.forward.heads import answering, heads_of
from fcompress.forward.predictor import Predictor, as_predictor
from fcompress.forward.repeats import unsteadiness
from fcompress.forward.scoring import Scoring, resolved


@dataclass(frozen=True)
class AgreementResult:
    """How often two networks give the same label.

    Attributes:
        n: Examples compared.
        same: Examples with the same label.
        rate: same / n.
        lower_bound: With `confidence`, at least this share of all examples agrees. From `verify`
            the bound of one network that these examples had no part in choosing; from `shrink` one
            that holds however many candidates were tested on them.
        confidence: Of the bound, in (0, 1).
        largest_difference: Largest absolute difference of a logit; infinite where an output is
            not finite.
        mean_difference: Mean absolute difference of logits, the same.
        accuracy: {"before": , "after": } in [0, 1] where the data has labels, else None.
        labels: What a label is: "classes", "sigmoid" (all labels of an example have to be the
            same) or "positions" (`forward/scoring.py`). Of "positions" an example counts by one
            position that is drawn for it, so that the bound holds for the share of changed
            positions.
        positions: Share of equal labels over all positions of all examples; None for other labels.
        heads: Outputs whose labels count beside the main one's: an example is the same where all
            of them are (`forward/heads.py`).
        other_outputs: From `verify`: every output that the bound says nothing about, with how far
            it moved (`other_outputs.moved_outputs`).
        warnings: From `verify`: what weakens the result, in words.
    """

    n: int
    same: int
    rate: float
    lower_bound: float
    confidence: float
    largest_difference: float
    mean_difference: float
    accuracy: dict[str, float] | None
    labels: str = "classes"
    positions: float | None = None
    heads: tuple[str, ...] = ()
    other_outputs: tuple[dict[str, Any], ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def changed(self) -> int:
        """Examples whose label changed."""
        return self.n - self.same

    @property
    def upper_bound(self) -> float:
        """With `confidence`, at most this share of all labels changes."""
        return 1.0 - self.lower_bound

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; None for a difference that is not finite."""
        found = asdict(self)
        for key in ("largest_difference", "mean_difference"):
            found[key] = found[key] if math.isfinite(found[key]) else None
        for key in ("heads", "other_outputs", "warnings"):
            found[key] = list(found[key])
        return found


@renamed(wide="original", thin="compressed")
def verify(
    original: nn.Module,
    compressed: nn.Module,
    data: object,
    *,
    confidence: float = CONFIDENCE,
    output: str | int | None = None,
    labels: str | None = None,
    stochastic: bool = False,
) -> AgreementResult:
    """Compare the labels of two networks, streaming.

    An example counts as changed where either network's outputs are not finite. Networks that draw
    random numbers draw anew for each example, so that what they disagree with themselves counts.

    Args:
        original: Its labels are the reference.
        compressed: The other network, on the same device.
        data: Batches of inputs [N, ...] or of (inputs, labels), or any other kind of data that
            `data.as_batches` takes.
        confidence: Of the bound, in (0, 1).
        output: Which of the networks' outputs are the scores (`scoring.Scoring`); None for what
            a network was compressed with, or else `logits`, the first of several or the only one.
        labels: What a label is: "classes", "sigmoid" or "positions"; None for what a network was
            compressed with, or else by the shape of the scores.
        stochastic: Whether networks that draw random numbers are expected, and no warning.

    Returns:
        Agreement with its bound, logit differences, and accuracies if there are labels.

    Warns:
        ResultWarning: What weakens the result; it stands in `warnings` of the result as well.

    Raises:
        FcompressError: The networks give outputs of different shapes, or no class scores.
        DataError: There are no examples, or true labels of another shape than the networks'.
        ValueError: The confidence is out of its range, or there is no such kind of label.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> original = nn.Linear(4, 3)
        >>> compressed = nn.Linear(4, 3)
        >>> compressed.load_state_dict(original.state_dict())
        <All keys matched successfully>
        >>> result = verify(original, compressed, torch.randn(300, 4))
        >>> result.n, result.changed, round(result.upper_bound, 4)
        (300, 0, 0.0099)
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence}: expected a number in (0, 1)")
    readings = resolved(output, labels, (original, compressed))
    batches = as_batches(data)
    tally = _Tally()
    pair: tuple[Predictor, Predictor] | None = None
    others = OtherOutputs({})
    weak: list[str] = []
    for inputs, truth in batches:
        if pair is None and len(inputs):
            one, other = (
                Predictor(network, batches.packing, scoring)
                for network, scoring in zip((original, compressed), readings, strict=True)
            )
            pair = _as_compared(one, other, inputs, stochastic, weak)
            others = OtherOutputs(unvouched(pair[0], pair[0].place(inputs[:4])))
        if pair is not None:
            tally.compare(*pair, inputs, truth)
            others.compare(*pair, inputs)
    result = tally.result(confidence)
    moved = others.result()
    line = said(moved)
    weak += [] if line is None else [line]
    for line in weak:
        warnings.warn(line, ResultWarning, stacklevel=3)
    return replace(result, other_outputs=moved, warnings=tuple(weak))


def _as_compared(
    original: Predictor, compressed: Predictor, inputs: Tensor, stochastic: bool, weak: list[str]
) -> tuple[Predictor, Predictor]:
    """Both networks with all heads that count, and with draws of their own if they draw.

    Args:
        original: The reference.
        compressed: The other network.
        inputs: Of the first batch.
        stochastic: Whether draws are expected.
        weak: Warnings are added to it.
    """
    inputs = original.place(inputs)
    if compressed.scoring.output is None:
        original = answering(original, inputs[:4])
        if heads_of(original.scoring):
            compressed = replace(compressed, scoring=original.scoring)
    draws = False
    for network in (original, compressed):
        found = unsteadiness(network, inputs)
        if found is None:
            continue
        draws = draws or found.draws
        if found.draws and not stochastic and f"{found}" not in weak:
            weak.append(f"{found}; each example has draws of its own, so that this counts")
            break
        if not found.draws:
            weak.append(f"{found}; the bound holds for batches like these only")
            break
    return replace(original, draws=draws), replace(compressed, draws=draws)


def compare(
    original: Predictor,
    compressed: Predictor,
    batches: Iterable[tuple[Tensor, Tensor | None]],
    confidence: float,
) -> AgreementResult:
    """`verify` for networks of which it is known how they are run.

    Args:
        original: Its labels are the reference.
        compressed: The other network.
        batches: (inputs, labels or None) pairs.
        confidence: Of the bound.
    """
    tally = _Tally()
    for inputs, truth in batches:
        tally.compare(original, compressed, inputs, truth)
    return tally.result(confidence)


class _Tally:
    """Counts of equal and of right labels, summed over batches."""

    def __init__(self) -> None:
        self._n = self._same = self._labelled = self._count = 0
        self._right_before = self._right_after = self._positions = 0.0
        self._largest = self._total = 0.0
        self._kind = "classes"
        self._heads: tuple[str, ...] = ()
        self._draws = Draws()

    def compare(
        self, original: Predictor, compressed: Predictor, inputs: Tensor, truth: Tensor | None
    ) -> None:
        """Run both networks on one batch."""
        if not len(inputs):
            return
        if original.draws and len(inputs) > 1:
            for row, one in enumerate(inputs.split(1)):
                self.compare(original, compressed, one, None if truth is None else truth[[row]])
            return
        with ExitStack() as stack:
            for network in (original, compressed):
                stack.enter_context(network.evaluating())
            stack.enter_context(self._draws.going_on(original.network, compressed.network))
            inputs = original.place(inputs)
            before, after = original.scores(inputs), compressed.scores(inputs)
        if before.shape != after.shape:
            raise FcompressError(
                f"the networks give outputs of shape {list(before.shape[1:])} and "
                f"{list(after.shape[1:])}; compare networks with the same classes"
            )
        self.add(original.scoring, before, after, truth)

    def add(self, scoring: Scoring, before: Tensor, after: Tensor, truth: Tensor | None) -> None:
        """Compare scores of one batch."""
        difference = (before.double() - after.double()).abs().nan_to_num(math.inf, math.inf)
        self._largest = max(self._largest, float(difference.max()))
        self._total += float(difference.sum())
        self._count += difference.numel()
        self._kind, self._heads = scoring.kind(before), heads_of(scoring)
        ours, theirs = scoring.labels_of(before), scoring.labels_of(after)
        changed = differing(scoring.compared(ours, self._n), scoring.compared(theirs, self._n)) | (
            ours < 0
        ).any(1)
        self._same += int((~changed).sum())
        self._positions += float(scoring.shares(ours, torch.where(ours < 0, -2, theirs)).sum())
        self._n += len(before)
        if truth is not None:
            right = scoring.truth(truth.to(ours.device), ours.shape[1])
            self._right_before += float(scoring.shares(ours, right).sum())
            self._right_after += float(scoring.shares(theirs, right).sum())
            self._labelled += len(truth)

    def result(self, confidence: float) -> AgreementResult:
        """What was counted."""
        n, same = self._n, self._same
        if n == 0:
            raise DataError("no examples to compare the networks on; expected at least one")
        accuracy = None
        if self._labelled == n:
            accuracy = {"before": self._right_before / n, "after": self._right_after / n}
        return AgreementResult(
            n=n,
            same=same,
            rate=same / n,
            lower_bound=1.0 - upper_bound(n - same, n, confidence),
            confidence=confidence,
            largest_difference=self._largest,
            mean_difference=self._total / self._count,
            accuracy=accuracy,
            labels=self._kind,
            positions=self._positions / n if self._kind == "positions" else None,
            heads=self._heads,
        )


def with_upper_bound(result: AgreementResult, bound: float) -> AgreementResult:
    """The same counts with another bound on the share of changed labels, never rounded up."""
    lower = 1.0 - bound
    while 1.0 - lower > bound:
        lower = math.nextafter(lower, 1.0)
    return replace(result, lower_bound=lower)


def predicted(scores: Tensor, scoring: Scoring | None = None, first: int = 0) -> Tensor:
    """The labels that examples are compared by.

    Args:
        scores: Of a network.
        scoring: How they are read.
        first: Number of the first of these examples among all.

    Returns:
        Integers [N], or [N, labels] where an example has several; -1 where the outputs are not
        finite.
    """
    scoring = scoring or Scoring()
    found = scoring.compared(scoring.labels_of(scores), first)
    return found.squeeze(1) if found.shape[1] == 1 else found


def differing(one: Tensor, other: Tensor) -> Tensor:
    """Which examples have other labels: bool [N]."""
    return (one != other).reshape(len(one), -1).any(1)


def changed_labels(
    model: nn.Module | Predictor, batches: Iterable[Tensor], reference: Tensor
) -> tuple[int, int]:
    """How many labels differ from the reference, and of how many examples.

    Args:
        model: A network in eval mode.
        batches: Inputs, on any device.
        reference: As from `reference_labels`, of the original network in the same order.
    """
    labels = torch.cat(list(_labels(model, batches, apart=True)))
    return int(differing(labels, reference).sum()), len(labels)


def reference_labels(model: nn.Module | Predictor, batches: Iterable[Tensor]) -> Tensor:
    """Labels of the original network: integers [N], or [N, labels] where there are several.

    Raises:
        FcompressError: An output is not finite.
    """
    labels = torch.cat(list(_labels(model, batches)))
    broken = int((labels < 0).reshape(len(labels), -1).any(1).sum())
    if broken:
        raise FcompressError(
            f"the network's outputs are not finite for {broken} of "
            f"{len(labels)} examples; repair the network or the data first"
        )
    return labels


def check_labels(model: nn.Module | Predictor, *parts: Iterable[Tensor]) -> None:
    """Refuse a network whose labels say nothing.

    Args:
        model: The original network.
        parts: Inputs in batches; a part is only run if all before it got one label.

    Raises:
        FcompressError: All examples get the same label, or an output is not finite.
    """
    n = 0
    seen: set[tuple[int, ...]] = set()
    for part in parts:
        labels = reference_labels(model, part)
        n += len(labels)
        seen.update(tuple(row) for row in labels.reshape(len(labels), -1).unique(dim=0).tolist())
        if len(seen) > 1:
            return
    (same,) = seen
    raise FcompressError(
        f"the network gives the same label, {', '.join(map(str, same))}, to all {n:,} calibration "
        "and search examples, so there is nothing to keep; check its training, and that the data "
        "holds more than one class and is prepared as the network expects"
    )


def _labels(
    model: nn.Module | Predictor, batches: Iterable[Tensor], *, apart: bool = False
) -> Iterator[Tensor]:
    """Labels of each batch.

    Args:
        model: A network.
        batches: Inputs.
        apart: Whether a network that draws draws otherwise than without it.
    """
    predictor = as_predictor(model)
    done = 0
    with predictor.evaluating():
        if predictor.draws:
            batches = (one for batch in batches for one in batch.split(1))
            if apart:
                drawing_apart(predictor.network)
        for batch in batches:
            scores = predictor.scores(predictor.place(batch))
            yield predicted(scores, predictor.scoring, done).cpu()
            done += len(scores)
