"""How sure a network is of an answer: the difference of its two largest probabilities.

    classes    the largest probability less the second largest
    top-K      the K-th largest less the next one
    sigmoid    the smallest margin of its labels, each |p - (1 - p)|
    positions  the smallest margin of its positions
    tokens     the same, padding left out; 1 where no position counts
    heads      the smallest margin of all heads

Margins are in double precision: a network that is trained well is surer than single precision can
tell from certainty. Where a score is not finite the margin is nan, which is below every threshold.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fcompress.errors import CheckpointError, UnsupportedNetworkError
from fcompress.forward.answers.asked import top_k
from fcompress.forward.answers.detections import Detections
from fcompress.forward.answers.heads import Head, Joint, heads_of, main_of
from fcompress.forward.answers.pairs import Pairs
from fcompress.forward.answers.scoring import Scoring

# Answers that have no margin, with what they are.
_WITHOUT = {
    "regression": "numbers",
    "regression-norm": "numbers",
    "embedding": "vectors",
    "nearest": "neighbours in a gallery",
    "same": "compared by a function of yours",
    "pairs": "decisions on two embeddings",
    "detections": "sets of boxes",
}
_ENDINGS = (None, "sigmoid", "softmax")


def check_margins(scoring: Scoring) -> None:
    """Refuse a kind of answer that has no margin.

    Args:
        scoring: How a network's answers are read.

    Raises:
        UnsupportedNetworkError: Answers of the kind are no labels with probabilities.

    Example:
        >>> check_margins(Scoring())
        >>> check_margins(Scoring(labels="embedding"))
        Traceback (most recent call last):
        ...
        fcompress.errors.UnsupportedNetworkError: a cascade (--cascade) decides by the difference \
of two probabilities, and answers of the kind embedding are vectors; leave cascade out
    """
    kind = str(main_of(scoring).labels)
    own = isinstance(scoring, Pairs | Detections)
    if kind in _WITHOUT or own or scoring.continuous:
        raise UnsupportedNetworkError(
            "a cascade (--cascade) decides by the difference of two probabilities, and answers of "
            f"the kind {kind} are {_WITHOUT.get(kind, 'no labels')}; leave cascade out"
        )


def margins(scoring: Scoring, scores: Tensor) -> Tensor:
    """How sure a network is of each example's answer: float64 [n] in [0, 1], or nan.

    Args:
        scoring: How its answers are read.
        scores: As from `Scoring.checked`.

    Example:
        >>> margins(Scoring(), torch.tensor([[0.0, 0.0], [0.0, 3.0], [0.0, torch.nan]]))
        tensor([0.0000, 0.9051,    nan], dtype=torch.float64)
    """
    kind = scoring.kind(scores)
    if kind == "classes" and scores.dim() == 2 and type(scoring) is Scoring and not scoring.ending:
        # The same as below in a third of the operators: a batch of one waits for each.
        best = scores.double().softmax(1).topk(2, dim=1).values
        finite = scores.isfinite().all(1)
        return (best[:, 0] - best[:, 1]).masked_fill(~finite, torch.nan)
    log = scoring.log_probabilities(scores.double())
    places = log.shape[2] - len(heads_of(scoring))
    largest = top_k(kind) if kind.startswith("top-") else 1
    main = _gaps(log[:, :, :places], largest)
    if kind == "tokens":
        # Nothing is said at padding: its logarithms are 0.
        main = main.masked_fill((log[:, :, :places] == 0).all(1), 1.0)
    found = torch.cat([main, _gaps(log[:, :, places:], 1)], 1)
    finite = scores.isfinite().flatten(1).all(1)
    return torch.where(finite, found.amin(1), torch.nan)


def _gaps(log: Tensor, largest: int) -> Tensor:
    """How far apart the probabilities at the edge of the answer are, at each place."""
    best = log.topk(largest + 1, dim=1).values.exp()
    return best[:, largest - 1] - best[:, largest]


def record_of(scoring: Scoring) -> dict[str, Any]:
    """Plain values that say how answers are read, for a file."""
    main = main_of(scoring)
    found: dict[str, Any] = {
        "labels": main.labels,
        "output": main.output,
        "ending": main.ending,
        "pad": main.pad,
        "heads": [],
        "classes": 1,
    }
    if isinstance(scoring, Joint):
        found["classes"] = scoring.classes
        found["heads"] = [[head.name, head.classes, head.probabilities] for head in scoring.heads]
    return found


def scoring_from(record: Mapping[str, Any]) -> Scoring:
    """How answers are read, from what `record_of` gave.

    Raises:
        CheckpointError: It says something else.
    """
    kinds: dict[str, tuple[type, ...]] = {
        "labels": (str, type(None)),
        "output": (str, int, type(None)),
        "pad": (int, type(None)),
        "heads": (list,),
        "classes": (int,),
    }
    fits = all(type(record.get(key, ...)) in types for key, types in kinds.items())
    if not fits or record.get("ending", ...) not in _ENDINGS or record["classes"] < 1:
        raise CheckpointError("how the cascade's answers are read is not said; file is damaged")
    for head in record["heads"]:
        if type(head) is not list or [type(part) for part in head] != [str, int, bool]:
            raise CheckpointError(f"the cascade's head {head!r} is not one; the file is damaged")
    try:
        main = Scoring(
            record["output"], record["labels"], pad=record["pad"], ending=record["ending"]
        )
    except ValueError as error:
        raise CheckpointError(f"how the cascade's answers are read: {error}") from error
    check_margins(main)
    if not record["heads"]:
        return main
    heads = tuple(Head(*head) for head in record["heads"])
    return Joint(labels=main.labels, main=main, heads=heads, classes=record["classes"])
