"""Answers of one network on many examples, and how many of them changed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from fcompress.errors import FcompressError
from fcompress.forward.answers.parts import kept
from fcompress.forward.answers.scoring import Scoring
from fcompress.forward.draws import drawing_apart
from fcompress.forward.predictor import Predictor, as_predictor


def predicted(scores: Tensor, scoring: Scoring | None = None, first: int = 0) -> Tensor:
    """The labels that examples are compared by.

    Args:
        scores: Of a network.
        scoring: How they are read.
        first: Number of the first of these examples among all.

    Returns:
        Integers [N], or [N, labels] where an example has several; -1 where the outputs are not
        finite. Answers that are no labels: the outputs.
    """
    scoring = scoring or Scoring()
    found = scoring.compared(scoring.labels_of(scores), first)
    return (
        found.squeeze(1)
        if found.shape[1] == 1 and not (scoring.continuous or scoring.in_parts)
        else found
    )


def changed_labels(
    model: nn.Module | Predictor, batches: Iterable[Tensor], reference: Tensor
) -> tuple[float, int]:
    """How many labels differ from the reference, and of how many examples.

    Args:
        model: A network in eval mode.
        batches: Inputs, on any device.
        reference: As from `reference_labels`, of the original network in the same order.

    Returns:
        Examples whose label changed, a whole number; of answers in parts the sum of the shares that
        did.
    """
    lost = changed_shares(model, batches, reference)
    return float(lost.sum()), len(lost)


def changed_shares(
    model: nn.Module | Predictor, batches: Iterable[Tensor], reference: Tensor
) -> Tensor:
    """How much of each example's answer differs from the reference: float64 [N].

    0 or 1 but for answers in parts, of which examples without a position that counts are left out.

    Args:
        model: A network in eval mode.
        batches: Inputs, on any device.
        reference: As from `reference_labels`, of the original network in the same order.
    """
    labels = torch.cat(list(_labels(model, batches, apart=True)))
    lost = as_predictor(model).scoring.lost(reference, labels)
    return lost[~lost.isnan()]


def reference_labels(model: nn.Module | Predictor, batches: Iterable[Tensor]) -> Tensor:
    """Answers of the original network: integers [N], or [N, labels] where there are several.

    Answers that are no labels are its outputs.

    Raises:
        FcompressError: An output is not finite.
    """
    labels = torch.cat(list(_labels(model, batches)))
    _check_finite(int(as_predictor(model).scoring.broken(labels).sum()), len(labels))
    return labels


def _check_finite(broken: int, n: int) -> None:
    if broken:
        raise FcompressError(
            f"the network's outputs are not finite for {broken} of "
            f"{n} examples; repair the network or the data first"
        )


def check_labels(model: nn.Module | Predictor, *parts: Iterable[Tensor]) -> None:
    """Refuse a network whose labels say nothing.

    Args:
        model: The original network.
        parts: Inputs in batches; a part is only run if all before it got one label.

    Raises:
        FcompressError: All examples get the same label, or an output is not finite.
    """
    scoring = as_predictor(model).scoring
    n = broken = 0
    seen: set[tuple[int, ...]] = set()
    for part in parts:
        # Of dense answers every position: a rare class need not be among those that are drawn.
        for labels in _labels(model, part, every=True):
            n += len(labels)
            broken += int(scoring.broken(labels).sum())
            if scoring.in_parts:
                rows = scoring.of_main(labels).reshape(-1, 1)
                rows = rows[kept(rows)].unsqueeze(1)
            else:
                rows = labels.reshape(len(labels), -1)
            seen.update(tuple(row) for row in rows.unique(dim=0).tolist())
        _check_finite(broken, n)
        if len(seen) > 1:
            return
    if scoring.continuous:
        raise FcompressError(
            f"the network gives the same output to all {n:,} calibration and search examples, so "
            "there is nothing to keep; check its training, and that the data is prepared as the "
            "network expects"
        )
    if not seen:
        raise FcompressError(
            f"none of {n:,} calibration and search examples has a position that is no padding; "
            "check the attention_mask, or which token pad (--pad) names"
        )
    (same,) = seen
    raise FcompressError(
        f"the network gives the same label, {', '.join(map(str, same))}, to all {n:,} calibration "
        "and search examples, so there is nothing to keep; check its training, and that the data "
        "holds more than one class and is prepared as the network expects"
    )


def _labels(
    model: nn.Module | Predictor,
    batches: Iterable[Tensor],
    *,
    apart: bool = False,
    every: bool = False,
) -> Iterator[Tensor]:
    """Labels of each batch.

    Args:
        model: A network.
        batches: Inputs.
        apart: Whether a network that draws draws otherwise than without it.
        every: All labels of an example, not those that it is compared by.
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
            if every:
                yield predictor.scoring.labels_of(scores).cpu()
            else:
                yield predicted(scores, predictor.scoring, done).cpu()
            done += len(scores)
