"""Answers that are no labels: numbers, vectors, and what a function of the user's calls the same.

They are compared as they are, and how far apart two are is said by Gaussians: an output is taken
for the mean of a normal distribution with the variance that the output itself has over the
calibration examples, so that ||a - b||^2 / (2 s^2) nats lie between two, and the Fisher information
of an output is 1 / s^2. Of embeddings only the direction counts; they are brought to length 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fcompress.errors import FcompressError, code_of_users, said_by
from fcompress.forward.answers.asked import distance_of

FAINT = 1e-6  # deviations below this share of the largest are rounding


def in_rows(outputs: Tensor) -> Tensor:
    """[n] as [n, 1]; all else as it is."""
    return outputs.unsqueeze(1) if outputs.dim() == 1 else outputs


def logits_of(scores: Tensor, ending: str | None, kind: str) -> Tensor:
    """What stands before a last sigmoid or softmax, as far as the precision of the scores goes.

    Args:
        scores: What the network gives.
        ending: "sigmoid", "softmax" or None, for scores that are logits already.
        kind: What is read off them; single labels have logits of their own.
    """
    if ending is None:
        return scores
    coarse = scores.dtype in (torch.float16, torch.bfloat16)
    least = torch.finfo(scores.dtype if coarse else torch.float32).eps
    if ending == "sigmoid" or kind == "sigmoid":
        return torch.logit(scores, least)
    # Of a sum of probabilities that is 1 the logarithms are what log_softmax gives.
    return scores.clamp_min(torch.finfo(torch.float32).tiny).log()


def deviations(outputs: Tensor, kind: str) -> tuple[float, ...]:
    """Standard deviation of each output, dimension 1, over examples and all other dimensions.

    Of embeddings it is one number, that of a coordinate of their directions.

    Raises:
        FcompressError: The outputs are the same for all examples.
    """
    rows = in_rows(outputs).double()
    if kind == "embedding":
        rows = F.normalize(rows.flatten(1), dim=1)
        found = rows.var(0, unbiased=False).mean().sqrt().reshape(1)
    else:
        found = rows.movedim(1, 0).flatten(1).std(1, unbiased=False)
    largest = float(found.max())
    if not largest > FAINT * float(rows.abs().max()):
        raise FcompressError(
            "the network gives the same output to all calibration examples, so there is nothing "
            "to keep; check its training, and that the data is prepared as the network expects"
        )
    return tuple(found.clamp_min(FAINT * largest).tolist())


def scaled(outputs: Tensor, kind: str, deviation: tuple[float, ...] | None) -> Tensor:
    """Outputs in units of their standard deviations: [n, values]."""
    rows = in_rows(outputs)
    if kind == "embedding":
        rows = F.normalize(rows.flatten(1), dim=1)
    return (rows / _along(deviation or (1.0,), rows)).flatten(1)


def allowed(
    within: float | str | tuple[float, ...], kind: str, deviation: tuple[float, ...] | None
) -> tuple[float, ...]:
    """How far outputs may move, in their own units: one number, or one for each output.

    Args:
        within: As the user said it.
        kind: "regression", or "regression-norm" for the length of what all outputs move by.
        deviation: As from `deviations`; needed for shares.
    """
    distance, share = distance_of(within)
    if not share:
        return distance
    each = deviation or (1.0,)
    if kind == "regression":
        return tuple(distance[0] * one for one in each)
    return (distance[0] * math.sqrt(sum(one * one for one in each)),)


def moved(reference: Tensor, found: Tensor, kind: str, within: tuple[float, ...]) -> Tensor:
    """Which outputs are further from the reference than allowed: bool [n].

    Whatever is not finite is.
    """
    gap = (in_rows(found).double() - in_rows(reference).double()).abs()
    if kind == "regression-norm":
        return ~(gap.flatten(1).square().sum(1).sqrt() <= within[0])
    return ~(gap <= _along(within, gap)).flatten(1).all(1)


def turned(reference: Tensor, found: Tensor, cosine: float) -> Tensor:
    """Which embeddings have a smaller cosine with the reference: bool [n]."""
    one, other = (in_rows(given).double().flatten(1) for given in (reference, found))
    return ~(F.cosine_similarity(one, other, dim=1) >= cosine)


def told_apart(same: Callable[[Any, Any], Any], reference: Tensor, found: Tensor) -> Tensor:
    """Which answers a function of the user's does not call the same: bool [n].

    Raises:
        FcompressError: It fails, or gives anything but a bool for each example.
    """
    name = getattr(same, "__name__", "same")
    with code_of_users(
        lambda error: FcompressError(
            f"the function {name} of --same (same=) fails on outputs of shape "
            f"{list(reference.shape)}: {said_by(error)}"
        )
    ):
        said = torch.as_tensor(same(reference, found), device=reference.device)
    if said.dtype != torch.bool or said.shape != (len(reference),):
        raise FcompressError(
            f"the function {name} of --same (same=) gives {said.dtype} {list(said.shape)} for "
            f"{len(reference)} examples; expected a bool for each, [{len(reference)}]"
        )
    finite = (one.isfinite().reshape(len(one), -1).all(1) for one in (reference, found))
    return ~said | ~next(finite) | ~next(finite)


def top_right(answers: Tensor, truth: Tensor) -> Tensor:
    """Whether the true class [n, 1] is among those of an answer [n, k]: float64 [n]."""
    return (answers == truth).any(1).double()


def _along(each: Iterable[float], rows: Tensor) -> Tensor:
    """Numbers, one or one for each output, to be broadcast over [n, outputs, ...]."""
    found = rows.new_tensor(list(each))
    outputs = rows.shape[1] if rows.dim() > 1 else 1
    if len(found) not in (1, outputs):
        raise FcompressError(
            f"within= says {len(found)} distances, and the network has {outputs} outputs; give "
            "one distance, or one for each output"
        )
    return found.reshape(1, -1, *[1] * (rows.dim() - 2))
