"""Answers that are sequences of tokens: the next token at every position, padding left out.

A language model gives logits [n, positions, vocabulary], the axis of classes last. They are handed
on as [n, vocabulary + 1, positions], like those of any network with a class at every position, with
a last row that says where a position counts: 1, and 0 where it is padding. Whoever reads scores
thus knows of padding without being told of the inputs.

Which positions are padding is read off the inputs: a mask called `attention_mask` among inputs that
go by name; or else a token id that the user named, where it stands in whole-numbered inputs; or
else nothing is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fcompress.errors import DataError
from fcompress.forward.answers.continuous import logits_of
from fcompress.forward.answers.parts import PADDED

MASKS = ("decoder_attention_mask", "attention_mask")
IDS = ("decoder_input_ids", "input_ids")


def kept_positions(
    args: Sequence[Any], kwargs: Mapping[str, Any], pad: int | None
) -> Tensor | None:
    """Where positions count, as the inputs of a network say.

    Args:
        args: Inputs by position.
        kwargs: Inputs by name.
        pad: Id of the token that is padding; None for none.

    Returns:
        bool [n, positions], or None where all count.

    Raises:
        DataError: A token is named, and no input holds whole numbers [n, positions].
    """
    for name in MASKS:
        if isinstance(kwargs.get(name), Tensor) and kwargs[name].dim() == 2:
            return kwargs[name] != 0
    if pad is None:
        return None
    given = [kwargs[name] for name in IDS if name in kwargs] + [*args, *kwargs.values()]
    for one in given:
        whole = isinstance(one, Tensor) and not one.is_floating_point()
        if whole and one.dim() == 2 and one.dtype != torch.bool:
            return one != pad
    raise DataError(
        f"pad={pad} (--pad) names a token, and the inputs hold no whole numbers [examples, "
        "positions]; leave it out, or give an attention_mask among inputs that go by name"
    )


def with_padding(logits: Tensor, counted: Tensor | None) -> Tensor:
    """Logits with the row that says which positions count.

    Args:
        logits: [n, positions, vocabulary].
        counted: As from `kept_positions`.

    Returns:
        [n, vocabulary + 1, positions]; logits of padding, which need not be finite, are 0.

    Raises:
        DataError: They are of different lengths.
    """
    if counted is None:
        counted = torch.ones_like(logits[..., 0], dtype=torch.bool)
    if counted.shape != logits.shape[:2]:
        raise DataError(
            f"a mask of shape {list(counted.shape)} for logits of {logits.shape[1]} positions: "
            "expected one entry for each position of the logits"
        )
    counted = counted.unsqueeze(2)
    logits = torch.where(counted, logits, torch.zeros_like(logits))
    return torch.cat([logits, counted.to(logits.dtype)], 2).movedim(2, 1)


def counts(scores: Tensor) -> Tensor:
    """Where positions count, of scores as from `with_padding`: bool [n, positions]."""
    return scores[:, -1] > 0.5


def chosen_tokens(scores: Tensor) -> Tensor:
    """The token with the largest logit: int64 [n, positions], `PADDED` where none is asked for.

    -1 at all other positions of an example if a logit at one of them is not finite.
    """
    logits, counted = scores[:, :-1], counts(scores)
    finite = logits.isfinite().flatten(1).all(1, keepdim=True)
    return torch.where(counted, torch.where(finite, logits.argmax(1), -1), PADDED)


def log_probabilities(scores: Tensor, temperature: float, ending: str | None = None) -> Tensor:
    """Logarithms of the probability of each token: [n, vocabulary, positions].

    0 at padding, where there is nothing to be said, of whichever network.

    Args:
        scores: As from `with_padding`.
        temperature: Logits are divided by it.
        ending: "softmax" where they are probabilities (`Scoring.ending`).
    """
    logits = logits_of(scores[:, :-1], ending, "tokens")
    found = (logits / temperature).log_softmax(1)
    return torch.where(counts(scores).unsqueeze(1), found, torch.zeros_like(found))


def places_of(log: Tensor) -> Tensor:
    """How many positions of each example count, at least 1, of log probabilities: [n]."""
    return (log.detach() != 0).any(1).sum(1).clamp_min(1)
