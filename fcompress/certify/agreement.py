"""Label agreement of two networks and what it proves.

Disagreement is a coin with unknown bias; that so many of n examples changed their label bounds
the bias from above (Clopper and Pearson 1934, exact, one-sided). Where an answer may change in part
(positions, tokens), an example counts by the share that changed, and what is bounded is the mean of
these shares (`bounded_mean.py`).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from fcompress.arguments.deprecation import renamed
from fcompress.arguments.numbers import real
from fcompress.certify.bounded_mean import betting_bound, mean_kept
from fcompress.certify.bounds import CONFIDENCE, upper_bound
from fcompress.certify.other_outputs import OtherOutputs, unvouched
from fcompress.certify.other_outputs import said as said_of
from fcompress.certify.per_label import ByLabel, LabelCounts
from fcompress.certify.screening import Once
from fcompress.data import as_batches
from fcompress.data.roles import one_of_each
from fcompress.errors import DataError, FcompressError, ResultWarning
from fcompress.forward.answers import parts
from fcompress.forward.answers.asked import asked
from fcompress.forward.answers.heads import Joint, answering, heads_of, main_of
from fcompress.forward.answers.resolving import resolved
from fcompress.forward.answers.scoring import Scoring
from fcompress.forward.answers.understanding import understood
from fcompress.forward.callables import Called, as_network
from fcompress.forward.draws import Draws
from fcompress.forward.predictor import Predictor
from fcompress.forward.repeats import unsteadiness
from fcompress.forward.running import runs_on
from fcompress.models.external import check_weights
from fcompress.showing.results import Shown


@dataclass(frozen=True, repr=False)
class AgreementResult(Shown):
    """How often two networks give the same label.

    Attributes:
        n: Examples compared.
        same: Examples with the same label; of answers in parts, the sum of the shares of each
            example that are the same.
        rate: same / n.
        lower_bound: With `confidence`, at least this share of all examples agrees. From `verify`
            the bound of one network that these examples had no part in choosing; from `shrink` one
            that holds however many candidates were tested on them.
        confidence: Of the bound, in (0, 1).
        largest_difference: Largest absolute difference of a logit; infinite where an output is
            not finite.
        mean_difference: Mean absolute difference of logits, the same.
        accuracy: {"before": , "after": } in [0, 1] where the data has labels, else None.
        labels: The kind of answer: "classes", "top-K", "sigmoid" (all labels of an example have
            to be the same), "positions", "tokens", or one that is no label
            (`forward/answers/scoring.py`). Of "positions" and "tokens" an example counts by the
            share of its positions that changed, and the bound is one on the mean of these shares.
        positions: Share of equal labels over all positions of all examples, where a long example
            weighs more than a short one; None for other labels.
        deviation: Standard deviation of the changed shares; None where there are no parts.
        empty: Examples without a position that counts, which are not among n.
        answer: The kind, with when two answers of it are the same: "within", "cosine" or the name
            of a "function"; "ending" is the network's last operator where that matters.
        by_label: How each of the original's labels fares; None for answers that are no labels.
        matched: Of detections the share of the boxes of an image that have a match, on average, and
            a lower bound on it for this network alone: {"share": , "lower_bound": }.
        heads: Outputs whose labels count beside the main one's: an example is the same where all
            of them are (`forward/answers/heads.py`).
        other_outputs: From `verify`: every output that the bound says nothing about, with how far
            it moved (`other_outputs.moved_outputs`).
        warnings: From `verify`: what weakens the result, in words.
    """

    n: int
    same: float
    rate: float
    lower_bound: float
    confidence: float
    largest_difference: float
    mean_difference: float
    accuracy: dict[str, float] | None
    labels: str = "classes"
    positions: float | None = None
    deviation: float | None = None
    empty: int = 0
    answer: dict[str, Any] | None = None
    by_label: ByLabel | None = None
    matched: dict[str, float] | None = None
    heads: tuple[str, ...] = ()
    other_outputs: tuple[dict[str, Any], ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def changed(self) -> float:
        """Examples whose label changed; of answers in parts the sum of the shares that did."""
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
        found["by_label"] = None if self.by_label is None else self.by_label.to_dict()
        for key in ("heads", "other_outputs", "warnings"):
            found[key] = list(found[key])
        return found


@renamed(wide="original", thin="compressed")
def verify(
    original: nn.Module | Callable[..., Any],
    compressed: nn.Module | Callable[..., Any],
    data: object,
    *,
    confidence: float = CONFIDENCE,
    output: str | int | None = None,
    labels: str | None = None,
    answer: str | None = None,
    within: float | str | None = None,
    cosine: float | None = None,
    same: Callable[[Tensor, Tensor], Tensor] | None = None,
    gallery: object | None = None,
    score: float | None = None,
    iou: float | None = None,
    threshold: float | None = None,
    pad: int | None = None,
    stochastic: bool = False,
    groups: object = None,
) -> AgreementResult:
    """Compare the answers of two networks, streaming.

    Where examples are exact copies of others, the bound is the weaker of those on all examples and
    on the distinct ones.

    An example counts as changed where either network's outputs are not finite. Networks that draw
    random numbers draw anew for each example, so that what they disagree with themselves counts.

    Args:
        original: Its labels are the reference. A network, or any callable that takes a batch of
            inputs and returns scores, as tensors or arrays: a program (`open_program`), another
            framework. A callable gets inputs as they come, floating point ones in float32.
        compressed: The other network or callable.
        data: Batches of inputs [N, ...] or of (inputs, labels), or any other kind of data that
            `data.as_batches` takes.
        confidence: Of the bound, in (0, 1).
        output: Which of the networks' outputs are the scores (`scoring.Scoring`); None for what
            a network was compressed with, or else `logits`, the first of several or the only one.
        labels: The same as `answer`.
        answer: What of the outputs counts, as for `shrink`; None for what a network was compressed
            with, or else what can be told.
        within: Of answer="regression", as for `shrink`; a share is one of the standard deviation
            on this data, unless a network was compressed with it.
        cosine: Of answer="embedding", as for `shrink`.
        same: What else decides whether two answers are the same, as for `shrink`.
        gallery: Of answer="nearest": inputs that the original embeds; needed unless a network in
            memory was compressed with one.
        score: Of answer="detections", as for `shrink`.
        iou: The same.
        threshold: Of answer="pairs", as for `shrink`.
        pad: Of answer="tokens", as for `shrink`.
        stochastic: Whether networks that draw random numbers are expected, and no warning.
        groups: Which examples belong together, as for `shrink`: each group counts by one example.

    Returns:
        Agreement with its bound, logit differences, and accuracies if there are labels.

    Warns:
        ResultWarning: What weakens the result; it stands in `warnings` of the result as well.

    Raises:
        FcompressError: The networks give outputs of different shapes, or others than the kind of
            answer needs, or it cannot be told what their outputs are.
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
    confidence = real("confidence", confidence, "a number in (0, 1)", lambda one: 0 < one < 1)
    boxes = gallery, score, iou, threshold
    said = asked(answer, labels, within, cosine, same, None, *boxes, pad)
    networks = as_network(original), as_network(compressed)
    readings = resolved(output, said, networks)
    for network, reading in zip(networks, readings, strict=True):
        check_weights(network)
        if isinstance(network, Called):
            network.output = reading.output
    batches = as_batches(data)
    if groups is not None:
        one_of_each(batches, groups)
    first = next((x for x, _ in batches if len(x)), None)  # what is packed is known from here on
    one, other = (
        Predictor(network, batches.packing, scoring)
        for network, scoring in zip(networks, readings, strict=True)
    )
    weak: list[str] = []
    moving: dict[str, bool] = {}
    if first is not None:
        one, other = _with_heads(one, other, one.place(first[:4]))
        one, other = understood_pair(one, other, batches)
        doubt = main_of(one.scoring).doubt
        weak += [] if doubt is None else [doubt]
        one, other = _repeating(one, other, one.place(first), stochastic, weak)
        moving = unvouched(one, one.place(first[:4]))
    tally, others = Tally(), OtherOutputs(moving)
    once = Once(batches)
    for inputs, truth, new in once:
        tally.compare(one, other, inputs, truth, new)
        others.compare(one, other, inputs)
    weak += once.said()
    result = tally.result(confidence)
    moved = others.result()
    line = said_of(moved)
    weak += [] if line is None else [line]
    weak += list(empty_examples(result))
    for line in weak:
        warnings.warn(line, ResultWarning, stacklevel=3)
    return replace(result, other_outputs=moved, warnings=tuple(weak))


def understood_pair(
    original: Predictor,
    compressed: Predictor,
    batches: Iterable[tuple[Tensor, Tensor | None]],
) -> tuple[Predictor, Predictor]:
    """Two networks whose answers are of one kind, each read off its own last operator.

    The original says what the kind is, and how its outputs are spread. A file that runs elsewhere
    has no last operator that could be seen; it is read as the other is.
    """
    joint = original.scoring
    if isinstance(joint, Joint):
        ours, theirs = understood_pair(
            replace(original, scoring=joint.main),
            replace(compressed, scoring=main_of(compressed.scoring)),
            batches,
        )
        return replace(ours, scoring=joint.around(ours.scoring)), replace(
            theirs, scoring=joint.around(theirs.scoring)
        )
    ours = understood(original, batches)
    theirs = understood(replace(compressed, scoring=_as(ours, compressed)), batches, ours.scoring)
    if ours.scoring.ending is None:
        ours = understood(ours, batches, theirs.scoring)
    return ours, replace(theirs, scoring=replace(theirs.scoring, deviation=ours.scoring.deviation))


def _as(ours: Predictor, compressed: Predictor) -> Scoring:
    return replace(ours.scoring, output=compressed.scoring.output, ending=None)


def _with_heads(
    original: Predictor, compressed: Predictor, inputs: Tensor
) -> tuple[Predictor, Predictor]:
    """Both networks with all heads that count, unless an output was named."""
    if compressed.scoring.output is not None:
        return original, compressed
    with runs_on(inputs):
        original = answering(original, inputs)
    if heads_of(original.scoring):
        compressed = replace(compressed, scoring=original.scoring)
    return original, compressed


def _repeating(
    original: Predictor, compressed: Predictor, inputs: Tensor, stochastic: bool, weak: list[str]
) -> tuple[Predictor, Predictor]:
    """Both networks with draws of their own if one of them draws.

    Args:
        original: The reference.
        compressed: The other network.
        inputs: Of the first batch.
        stochastic: Whether draws are expected.
        weak: Warnings are added to it.
    """
    draws = False
    for network in (original, compressed):
        placed = network.place(inputs)
        with runs_on(placed):
            found = unsteadiness(network, placed)
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
    tally = Tally()
    for inputs, truth in batches:
        tally.compare(original, compressed, inputs, truth)
    return tally.result(confidence)


class Tally:
    """Counts of equal and of right labels, summed over batches."""

    def __init__(self) -> None:
        self._n = self._changed = self._count = self._empty = 0
        self._with_truth = self._labelled = 0
        self._right_before = self._right_after = 0.0
        self._places = self._same_places = 0
        # Of answers in parts, the share of each example that changed.
        self._shares: list[NDArray[np.float64]] | None = None
        self._largest = self._total = 0.0
        self._kind = "classes"
        self._answer: dict[str, Any] = {"kind": "classes"}
        self._by_label = LabelCounts()
        self._heads: tuple[str, ...] = ()
        self._draws = Draws()
        self._distinct: list[np.ndarray] = []
        self._missed: list[np.ndarray] = []

    def compare(
        self,
        original: Predictor,
        compressed: Predictor,
        inputs: Tensor,
        truth: Tensor | None,
        new: Tensor | None = None,
    ) -> None:
        """Run both networks on one batch; `new` marks what is no copy of an earlier example."""
        if not len(inputs):
            return
        if original.draws and len(inputs) > 1:
            for row, one in enumerate(inputs.split(1)):
                label = None if truth is None else truth[[row]]
                self.compare(original, compressed, one, label, None if new is None else new[[row]])
            return
        with ExitStack() as stack:
            for network in (original, compressed):
                stack.enter_context(network.evaluating())
            stack.enter_context(self._draws.going_on(original.network, compressed.network))
            before = _scores(original, inputs)
            after = _scores(compressed, inputs).to(before.device)
        if before.shape != after.shape:
            raise FcompressError(
                f"the networks give outputs of shape {list(before.shape[1:])} and "
                f"{list(after.shape[1:])}; compare networks with the same classes"
            )
        self._add(original.scoring, compressed.scoring, before, after, truth, new)

    def _add(
        self,
        scoring: Scoring,
        others: Scoring,
        before: Tensor,
        after: Tensor,
        truth: Tensor | None,
        new: Tensor | None,
    ) -> None:
        """Compare scores of one batch, each read off in its own way."""
        difference = (before.double() - after.double()).abs().nan_to_num(math.inf, math.inf)
        self._largest = max(self._largest, float(difference.max()))
        self._total += float(difference.sum())
        self._count += difference.numel()
        self._kind, self._answer = scoring.kind(before), scoring.described(before)
        self._heads = heads_of(scoring)
        ours, theirs = scoring.labels_of(before), others.labels_of(after)
        lost = scoring.lost(ours, theirs)
        matched = scoring.matched(ours, theirs)
        if matched is not None:
            self._missed.append((1 - matched).cpu().numpy())
        distinct = lost if new is None else lost[new.to(lost.device)]
        self._distinct.append(distinct[~distinct.isnan()].cpu().numpy())
        if scoring.in_parts:
            valid = ~lost.isnan()
            self._empty += int((~valid).sum())
            self._shares = self._shares or []
            self._shares.append(lost[valid].cpu().numpy())
            mine, others_labels = scoring.of_main(ours), others.of_main(theirs)
            self._places += int(parts.kept(mine).sum())
            self._same_places += int(((mine == others_labels) & (mine >= 0)).sum())
        else:
            self._changed += int(lost.sum())
        labels = scoring.of_main(ours), others.of_main(theirs)
        self._by_label.add(self._kind, *labels, scoring.outcomes(before), self._n)
        self._n += len(before)
        if truth is not None and not scoring.continuous:
            right = scoring.truth(truth.to(ours.device), ours.shape[1])
            before_right, after_right = scoring.right(ours, right), scoring.right(theirs, right)
            self._right_before += float(before_right.nansum())
            self._right_after += float(after_right.nansum())
            self._with_truth += len(truth)
            self._labelled += int((~before_right.isnan()).sum())

    def result(self, confidence: float) -> AgreementResult:
        """What was counted."""
        n = self._n - self._empty
        if n == 0:
            what = " with a position that is no padding" if self._empty else ""
            raise DataError(f"no examples{what} to compare the networks on; expected at least one")
        accuracy = None
        if self._with_truth == self._n and self._labelled:
            right = self._right_before, self._right_after
            accuracy = {
                k: r / self._labelled for k, r in zip(("before", "after"), right, strict=True)
            }
        same: float = n - self._changed
        deviation = None
        distinct = np.concatenate(self._distinct)
        if self._shares is None:
            bound = upper_bound(self._changed, n, confidence)
            fewer = upper_bound(int(distinct.sum()), len(distinct), confidence)
        else:
            shares = np.concatenate(self._shares)
            same, deviation = n - float(shares.sum()), float(shares.std())
            bound, fewer = (betting_bound(some, confidence) for some in (shares, distinct))
        # Copies may be how often such examples come, or one example taken again and again.
        bound = bound if len(distinct) == n else max(bound, fewer)
        return AgreementResult(
            n=n,
            same=same,
            rate=same / n,
            lower_bound=1.0 - bound,
            confidence=confidence,
            largest_difference=self._largest,
            mean_difference=self._total / self._count,
            accuracy=accuracy,
            labels=self._kind,
            positions=self._same_places / self._places if self._places else None,
            deviation=deviation,
            empty=self._empty,
            answer=self._answer,
            by_label=self._by_label.result(confidence),
            matched=mean_kept(self._missed, confidence),
            heads=self._heads,
        )


def empty_examples(result: AgreementResult) -> Iterator[str]:
    """A line on examples that do not count, if there are any."""
    if result.empty:
        yield (
            f"{result.empty:,} of {result.n + result.empty:,} examples have no position that is no "
            "padding; they do not count"
        )


def _scores(predictor: Predictor, inputs: Tensor) -> Tensor:
    """Scores of a batch, of a network that may not run on it at all."""
    placed = predictor.place(inputs)
    with runs_on(placed):
        return predictor.scores(placed)


def with_upper_bound(result: AgreementResult, bound: float) -> AgreementResult:
    """The same counts with another bound on the share of changed labels, never rounded up."""
    lower = 1.0 - bound
    while 1.0 - lower > bound:
        lower = math.nextafter(lower, 1.0)
    return replace(result, lower_bound=lower)
