"""What a network's labels are: which of its outputs are the scores, and how labels are read off.

Three kinds of labels:

    classes    scores [n, classes]: the class with the largest one
    sigmoid    scores [n, labels]: each label that has a score above 0; examples agree where all
               of them do. A single score, [n] or [n, 1], is this kind
    positions  scores [n, classes, ...]: the class with the largest one at each position; with a
               single class, whether its score is above 0. A bound on changed labels needs trials
               that are independent and alike, which the positions of one example are not: each
               example stands with one position, drawn by a hash of its number
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, is_dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fcompress.errors import DataError, UnsupportedNetworkError
from fcompress.models.provenance import reading_of

LABELS = ("classes", "sigmoid", "positions")
_EXPECTED = {
    "classes": "one score per class [examples, classes], at least 2 classes, so that a label is "
    "the class with the largest score",
    "sigmoid": "one score per label, [examples, labels] or [examples]",
    "positions": "one score per class and position, [examples, classes, ...]",
}


@dataclass(frozen=True)
class Scoring:
    """How labels are read off what a network returns.

    Attributes:
        output: Which of the network's outputs are the scores: a key, the name of an attribute or
            the number of an item. None: the network's only output, what is called `logits`, or
            the first of several.
        labels: One of `LABELS`; None for "sigmoid" where there is a single score for each
            example, else "classes".
    """

    output: str | int | None = None
    labels: str | None = None

    def __post_init__(self) -> None:
        if self.labels is not None and self.labels not in LABELS:
            raise ValueError(f"labels={self.labels!r}: expected one of {', '.join(LABELS)}")

    def chosen(self, output: Any) -> Any:
        """The scores among what a network returned.

        Raises:
            UnsupportedNetworkError: There is no such output.
        """
        if self.output is None:
            if isinstance(output, Mapping) and "logits" in output:
                return output["logits"]
            if hasattr(output, "logits"):  # a data class, or a named tuple as Inception's
                return output.logits
            if isinstance(output, tuple | list) and output and isinstance(output[0], Tensor):
                return output[0]
            return output
        named = _named_outputs(output)
        if str(self.output) not in named:
            came = f"it gives {', '.join(named)}" if named else "it gives a single output"
            raise UnsupportedNetworkError(
                f"the network has no output {str(self.output)!r}: {came}; name one that there is"
            )
        return named[str(self.output)]

    def checked(self, found: Any, name: str, examples: int) -> Tensor:
        """Scores of the shape that the kind of labels needs.

        Args:
            found: What `chosen` gave.
            name: What to call the network in an error.
            examples: How many examples it was given.

        Returns:
            [n, classes], [n, labels] or [n, classes, ...].

        Raises:
            UnsupportedNetworkError: They are not of the shape that the kind of labels needs.
        """
        whole = isinstance(found, Tensor) and found.dim() and len(found) == examples
        if whole and self._fits(_in_rows(found)):
            return _in_rows(found)
        came = f"shape {list(found.shape)}" if isinstance(found, Tensor) else _described(found)
        hint = ""
        if self.labels is None and isinstance(found, Tensor) and found.dim() > 2:
            hint = '; for a label at every position say labels="positions" (--labels positions)'
        if self.output is None and not isinstance(found, Tensor) and _named_outputs(found):
            hint = "; say which output by output= (--output)"
        raise UnsupportedNetworkError(
            f"{name} gives {came}; expected {_EXPECTED[self.labels or 'classes']}{hint}"
        )

    def _fits(self, scores: Tensor) -> bool:
        if not scores[0:1].numel() and len(scores):
            return False
        if self.labels == "positions":
            return scores.dim() > 2
        least = 2 if self.labels == "classes" else 1
        return scores.dim() == 2 and scores.shape[1] >= least

    def kind(self, scores: Tensor) -> str:
        """Which of `LABELS` these scores give."""
        if self.labels is not None:
            return self.labels
        return "sigmoid" if _in_rows(scores).shape[1] == 1 else "classes"

    def labels_of(self, scores: Tensor) -> Tensor:
        """All labels of each example.

        Args:
            scores: As from `checked`.

        Returns:
            Integers [n, places]: one place for classes, one for each label or position otherwise;
            -1 in all of them where a score of the example is not finite.
        """
        scores = _in_rows(scores)
        finite = scores.isfinite().flatten(1).all(1, keepdim=True)
        if self.kind(scores) == "sigmoid":
            found = (scores > 0).to(torch.int8)
        else:
            found = _by_position(scores)
            found = (found > 0).long()[:, 0] if found.shape[1] == 1 else found.argmax(1)
        return torch.where(finite, found, -1)

    def compared(self, labels: Tensor, first: int = 0) -> Tensor:
        """What an example's agreement is decided on.

        Args:
            labels: [n, places], as from `labels_of`.
            first: Number of the first of these examples among all; the others follow.

        Returns:
            [n, 1], or [n, labels] for sigmoid heads.
        """
        if self.labels != "positions":
            return labels
        drawn = drawn_positions(first, len(labels), labels.shape[1]).to(labels.device)
        return labels.gather(1, drawn.unsqueeze(1))

    def shares(self, one: Tensor, other: Tensor) -> Tensor:
        """How much of each example's labels is the same: float64 [n]; 0 or 1 but for positions."""
        same = one == other
        return (same.double().mean(1) if self.labels == "positions" else same.all(1)).double()

    def truth(self, labels: Tensor, places: int) -> Tensor:
        """True labels [n] or [n, ...] as [n, places], as `labels_of` has them.

        Raises:
            DataError: They are of another shape.
        """
        found = labels.reshape(len(labels), -1) if len(labels) else labels.reshape(0, places)
        if found.shape[1] != places:
            what = {
                "sigmoid": f"{places} labels (0 or 1) an input",
                "positions": f"{places} class indices an input, one a position",
            }.get(self.labels or "classes", "one class index an input")
            raise DataError(
                f"labels of shape {list(labels.shape)}: expected {what}; several inputs are handed "
                "over as a dict, or as a pair ((first, second), labels)"
            )
        return found

    def log_probabilities(self, scores: Tensor, temperature: float = 1.0) -> Tensor:
        """Logarithms of what the network says of each outcome: [n, outcomes, places]."""
        scores = _in_rows(scores) / temperature
        if self.kind(scores) == "sigmoid":
            return torch.stack([F.logsigmoid(-scores), F.logsigmoid(scores)], 1)
        found = _by_position(scores)
        if found.shape[1] == 1:
            return torch.cat([F.logsigmoid(-found), F.logsigmoid(found)], 1)
        return found.log_softmax(1)

    def divergence(self, found: Tensor, wanted: Tensor) -> Tensor:
        """Mean Kullback-Leibler divergence of `found` from `wanted` over examples, in nats.

        That of an example is summed over labels, and averaged over positions.

        Args:
            found: As from `log_probabilities`.
            wanted: The same of the network that is the reference.
        """
        total = F.kl_div(found, wanted, reduction="batchmean", log_target=True)
        return total / wanted.shape[2] if self.labels == "positions" else total

    def surprise(self, scores: Tensor, generator: torch.Generator) -> Tensor:
        """-log of the probability of labels that are drawn from what the network says.

        Its gradient's second moment is the Fisher information of the labels. Over positions it
        is scaled so that it belongs to their mean: E[g g^T] of independent draws adds up.

        Returns:
            Sum over examples.
        """
        log = self.log_probabilities(scores)
        rows = log.movedim(1, -1).reshape(-1, log.shape[1])
        drawn = torch.multinomial(rows.detach().exp().cpu(), 1, generator=generator)
        total = -rows.gather(1, drawn.to(rows.device)).sum()
        return total / math.sqrt(log.shape[2]) if self.labels == "positions" else total


BY_SHAPE = Scoring()


def carried(model: nn.Module) -> Scoring | None:
    """How a network's labels were read when it was compressed; None if nobody said."""
    said = reading_of(model)
    return None if said is None else Scoring(said["output"], said["labels"])


def resolved(
    output: str | int | None, labels: str | None, models: tuple[nn.Module, ...]
) -> tuple[Scoring, ...]:
    """What was said, or else what is known of the networks, for each of them.

    Args:
        output: For all networks; None for what is known of each.
        labels: The same.
        models: The networks; one of which nothing is known is read like the first other one.
    """
    known = [carried(model) for model in models]
    other = next((one for one in known if one is not None), BY_SHAPE)
    each = [one or other for one in known]
    kind = labels or next((c.labels for c in each if c.labels is not None), None)
    return tuple(Scoring(c.output if output is None else output, kind) for c in each)


def drawn_positions(first: int, count: int, places: int) -> Tensor:
    """The position that each example stands with: int64 [count], in [0, places).

    Uniform, and a function of the example's number alone (SplitMix64; Steele, Lea and Flood
    2014, "Fast Splittable Pseudorandom Number Generators"), so that it cannot depend on a network.
    """
    with np.errstate(over="ignore"):
        z = (np.arange(first, first + count, dtype=np.uint64) + np.uint64(1)) * np.uint64(
            0x9E3779B97F4A7C15
        )
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    share = (z >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return torch.from_numpy((share * places).astype(np.int64))


def _in_rows(scores: Tensor) -> Tensor:
    return scores.unsqueeze(1) if scores.dim() == 1 else scores


def _by_position(scores: Tensor) -> Tensor:
    """[n, classes, positions]; one position for scores [n, classes]."""
    return scores.flatten(2) if scores.dim() > 2 else scores.unsqueeze(2)


def _named_outputs(output: Any) -> dict[str, Any]:
    """Outputs by key, name and number."""
    if isinstance(output, Mapping):
        return {str(key): value for key, value in output.items()}
    found: dict[str, Any] = {}
    if isinstance(output, tuple | list):
        found = {str(number): value for number, value in enumerate(output)}
        found |= {name: getattr(output, name) for name in getattr(output, "_fields", ())}
    elif is_dataclass(output):
        found = dict(vars(output))
    return found


def _described(output: Any) -> str:
    named = _named_outputs(output)
    kind = type(output).__name__
    return f"{kind} with {', '.join(named)}" if named else kind
