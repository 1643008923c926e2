"""What a network's answers are: which of its outputs count, and how answers are read off.

Answers that are labels:

    classes    scores [n, classes]: the class with the largest one
    sigmoid    scores [n, labels]: each label that has a score above 0; examples agree where all
               of them do. A single score, [n] or [n, 1], is this kind
    positions  scores [n, classes, ...]: the class with the largest one at each position; with a
               single class, whether its score is above 0. An example counts by the share of its
               positions that changed (`parts.py`)
    tokens     scores [n, positions, vocabulary]: the same, but for the order of the axes and for
               padding, which does not count (`tokens.py`)
    top-K      scores [n, classes]: the set of the K classes with the largest ones

others, in `continuous.py`: "regression", "regression-norm", "embedding" and "same"; and those that
have a class of their own: `nearest.py`, `detections.py`.

Scores are logits, or probabilities where the network ends in a sigmoid or a softmax (`ending`):
labels are then decided at 0.5, and divergences are those of the logits before it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fcompress.errors import DataError, FcompressError, UnsupportedNetworkError
from fcompress.forward.answers import continuous, parts, tokens
from fcompress.forward.answers.asked import CONTINUOUS, COSINE, IN_PARTS, Asked, noun_of, top_k
from fcompress.forward.answers.boxes import DETECTORS, are_images
from fcompress.forward.answers.continuous import in_rows

_EXPECTED = {
    "classes": "one score per class [examples, classes], at least 2 classes, so that a label is "
    "the class with the largest score",
    "sigmoid": "one score per label, [examples, labels] or [examples]",
    "positions": "one score per class and position, [examples, classes, ...]",
    "tokens": "logits [examples, positions, vocabulary]",
    "regression": "numbers for each example, [examples, outputs, ...] or [examples]",
    "regression-norm": "numbers for each example, [examples, outputs, ...] or [examples]",
    "embedding": "a vector for each example, [examples, 2 or more]",
    "nearest": "a vector for each example, [examples, 2 or more]",
    "same": "one tensor with a row for each example; say which by output= (--output)",
}


@dataclass(frozen=True)
class Scoring:
    """How answers are read off what a network returns, and when two are the same.

    Attributes:
        output: Which of the network's outputs are the scores: a key, the name of an attribute or
            the number of an item. None: the network's only output, what is called `logits`, or
            the first of several.
        labels: The kind of answer (`asked.ANSWERS`); None for "sigmoid" where there is a single
            score for each example, else "classes".
        within: How far an output may move (`asked.Asked`).
        cosine: The least cosine of embeddings that are the same; None for `asked.COSINE`.
        same: A function of the user's.
        pad: Id of the token that is padding.
        ending: "sigmoid" or "softmax" where that is the network's last operator.
        deviation: Of each output over the calibration examples (`continuous.deviations`), where
            answers are no labels; None for 1.
        doubt: What speaks against this kind of answer, in words, where nobody said it.
    """

    output: str | int | None = None
    labels: str | None = None
    within: float | str | tuple[float, ...] | None = None
    cosine: float | None = None
    same: Callable[[Any, Any], Any] | None = None
    pad: int | None = None
    ending: str | None = None
    deviation: tuple[float, ...] | None = None
    doubt: str | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        _ = self.asked

    @property
    def asked(self) -> Asked:
        """What was said of the answers."""
        return Asked(self.labels, self.within, self.cosine, self.same, pad=self.pad)

    def noted(self) -> dict[str, Any]:
        """What a compressed network carries of its kind of answer (`provenance.note_reading`)."""
        return {"cosine": self.cosine, "same": self.same, "pad": self.pad}

    def run(self, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run a network; a kind of answer may need what stands before the last steps of it."""
        return network(*args, **kwargs)

    def traced(self, network: nn.Module) -> Scoring:
        """The same answers, of outputs that are differentiable and can be recorded."""
        return self

    @property
    def continuous(self) -> bool:
        """Whether answers are numbers that are compared as they are, and no labels."""
        return self.labels in CONTINUOUS

    @property
    def in_parts(self) -> bool:
        """Whether an answer may change in part, and counts by the share that did."""
        return self.labels in IN_PARTS

    @property
    def noun(self) -> str:
        """What to call many answers."""
        return noun_of(self.labels)

    @property
    def whole(self) -> bool:
        """Whether all outputs count together, so that none is a head or left over."""
        return False

    @property
    def softens(self) -> bool:
        """Whether a temperature makes answers softer, as it does those of a softmax."""
        return True

    def described(self, scores: Tensor) -> dict[str, Any]:
        """Plain values: the kind of answer, with what it takes to read it again."""
        found: dict[str, Any] = {"kind": self.kind(scores)}
        if self.within is not None:
            distance = continuous.allowed(self.within, found["kind"], self.deviation)
            found["within"] = distance[0] if len(set(distance)) == 1 else list(distance)
            found["said"] = str(self.within) if isinstance(self.within, str) else None
        if self.labels == "embedding":
            found["cosine"] = COSINE if self.cosine is None else self.cosine
        if self.same is not None:
            found["function"] = getattr(self.same, "__name__", "same")
        if self.pad is not None:
            found["pad"] = self.pad
        if self.ending is not None:
            found["ending"] = self.ending
        return found

    def chosen(self, output: Any, counted: Tensor | None = None) -> Any:
        """The scores among what a network returned.

        Args:
            output: All that it returned.
            counted: Of tokens: which positions are not padding (`tokens.kept_positions`).

        Raises:
            UnsupportedNetworkError: There is no such output.
        """
        found = self.named(output)
        if self.labels == "tokens" and isinstance(found, Tensor) and found.dim() == 3:
            return tokens.with_padding(found, counted)
        return found

    def counted(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor | None:
        """What `chosen` takes, from the inputs of the network."""
        return tokens.kept_positions(args, kwargs, self.pad) if self.labels == "tokens" else None

    def named(self, output: Any) -> Any:
        """The output that holds the scores, as the network gives it.

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
        if whole and self._fits(in_rows(found)):
            return found if self.labels == "same" else in_rows(found)
        if are_images(found, examples):
            raise UnsupportedNetworkError(
                f"{name} gives boxes, labels and scores of each image; say --answer detections "
                f"(answer=), by which {DETECTORS}"
            )
        came = f"shape {list(found.shape)}" if isinstance(found, Tensor) else _described(found)
        hint = ""
        expected = _EXPECTED.get(self.labels or "classes") or (
            f"one score per class [examples, classes], more than {top_k(str(self.labels))} classes"
        )
        if self.labels is None and isinstance(found, Tensor) and found.dim() > 2:
            hint = '; for a label at every position say labels="positions" (--labels positions)'
        if self.output is None and not isinstance(found, Tensor) and _named_outputs(found):
            hint = "; say which output by output= (--output)"
        raise UnsupportedNetworkError(f"{name} gives {came}; expected {expected}{hint}")

    def _fits(self, scores: Tensor) -> bool:
        if not scores[0:1].numel() and len(scores):
            return False
        if self.continuous:
            return self.labels not in ("embedding", "nearest") or scores[0:1].numel() != 1
        if self.labels == "tokens":
            return scores.dim() == 3 and scores.shape[1] > 2
        if self.labels == "positions":
            return scores.dim() > 2
        least = 2 if self.labels == "classes" else 1
        if str(self.labels).startswith("top-"):
            least = top_k(str(self.labels)) + 1
        return scores.dim() == 2 and scores.shape[1] >= least

    def kind(self, scores: Tensor) -> str:
        """Which kind of answer these scores give."""
        if self.labels is not None:
            return self.labels
        return "sigmoid" if in_rows(scores).shape[1] == 1 else "classes"

    def labels_of(self, scores: Tensor) -> Tensor:
        """All labels of each example, or what else its answer is.

        Args:
            scores: As from `checked`.

        Returns:
            Integers [n, places]: one place for classes, one for each label, position or member of
            the top K otherwise; -1 in all of them where a score of the example is not finite, but
            `parts.PADDED` where a position does not count.
            Answers that are no labels: the scores.
        """
        if self.continuous:
            return scores
        if self.labels == "tokens":
            return tokens.chosen_tokens(scores)
        scores = in_rows(scores)
        finite = scores.isfinite().flatten(1).all(1, keepdim=True)
        least = 0 if self.ending is None else 0.5
        kind = self.kind(scores)
        if kind == "sigmoid":
            found = (scores > least).to(torch.int8)
        elif kind.startswith("top-"):
            found = scores.topk(top_k(kind), dim=1).indices.sort(1).values
        else:
            found = _by_position(scores)
            found = (found > least).long()[:, 0] if found.shape[1] == 1 else found.argmax(1)
        return torch.where(finite, found, -1)

    def of_main(self, labels: Tensor) -> Tensor:
        """The labels of the scores, where other heads' labels stand beside them (`heads.py`)."""
        return labels

    def outcomes(self, scores: Tensor) -> int:
        """How many classes, or labels of a sigmoid head, there are."""
        return scores.shape[1] - (self.labels == "tokens")  # which have a row beside the classes

    def broken(self, given: Tensor) -> Tensor:
        """Where answers are not finite: bool [n]."""
        rows = given.reshape(len(given), -1)
        return ~rows.isfinite().all(1) if self.continuous else (rows == -1).any(1)

    def changed(self, reference: Tensor, found: Tensor) -> Tensor:
        """Which answers are not the same: bool [n].

        Args:
            reference: Answers of the original network, [n, ...]: what `labels_of` gives, or
                `compared` of it.
            found: Those of the other network; what is not finite is the same as nothing.
        """
        if self.labels == "same":
            if self.same is None:
                raise FcompressError(
                    "what counts as the same answer was said by a function, which no file holds; "
                    "name it again: same= (--same file.py:FUNCTION)"
                )
            return continuous.told_apart(self.same, reference, found)
        if self.labels == "embedding":
            return continuous.turned(
                reference, found, COSINE if self.cosine is None else self.cosine
            )
        if self.within is not None:
            distance = continuous.allowed(self.within, str(self.labels), self.deviation)
            return continuous.moved(reference, found, str(self.labels), distance)
        differ = (reference != found).reshape(len(reference), -1).any(1)
        return differ | self.broken(reference)

    def compared(self, labels: Tensor, first: int = 0) -> Tensor:
        """What an example's agreement is decided on.

        Args:
            labels: [n, places], as from `labels_of`.
            first: Number of the first of these examples among all; the others follow.

        Returns:
            [n, 1], or [n, labels] for sigmoid heads, [n, K], some positions, or outputs.
        """
        return parts.drawn(labels, first) if self.in_parts else labels

    def matched(self, reference: Tensor, found: Tensor) -> Tensor | None:
        """How much of an answer that is one whole stays all the same: float64 [n], or None.

        Nothing is promised of it; it stands beside `changed`, whose arguments it has.
        """
        return None

    def lost(self, reference: Tensor, found: Tensor) -> Tensor:
        """How much of each example's answer changed, as a certificate counts it: float64 [n].

        It is 0 or 1 but for answers in parts; nan where no position counts.

        Args:
            reference: As for `changed`.
            found: The same.
        """
        if self.in_parts:
            return 1.0 - parts.same_share(reference, found)
        return self.changed(reference, found).double()

    def shares(self, reference: Tensor, found: Tensor) -> Tensor:
        """How much of each example's answer is the same: float64 [n].

        It is 0 or 1 but for answers in parts, and 0 where the reference is not finite.
        """
        if self.in_parts:
            return parts.same_share(reference, found).nan_to_num(1.0)
        return (~self.changed(reference, found)).double()

    def right(self, given: Tensor, truth: Tensor) -> Tensor:
        """How much of each example's answer is true: float64 [n]; nan where nothing is known.

        Args:
            given: As from `labels_of`.
            truth: As from `truth`.
        """
        if str(self.labels).startswith("top-"):
            return continuous.top_right(given, truth)
        if self.in_parts:
            return parts.right_share(given, truth)
        return (given == truth).all(1).double()

    def truth(self, labels: Tensor, places: int) -> Tensor:
        """True labels [n] or [n, ...] as [n, places], as `labels_of` has them.

        Args:
            labels: Labels of the data; not to be asked for where answers are no labels.
            places: Of the network's answers.

        Raises:
            DataError: They are of another shape.
        """
        if str(self.labels).startswith("top-"):
            places = 1
        found = labels.reshape(len(labels), -1) if len(labels) else labels.reshape(0, places)
        if found.shape[1] != places:
            what = {
                "sigmoid": f"{places} labels (0 or 1) an input",
                "positions": f"{places} class indices an input, one a position",
                "tokens": f"{places} next tokens an input, one a position (-100 for none)",
            }.get(self.labels or "classes", "one class index an input")
            raise DataError(
                f"labels of shape {list(labels.shape)}: expected {what}; several inputs are handed "
                "over as a dict, or as a pair ((first, second), labels)"
            )
        return found

    def log_probabilities(self, scores: Tensor, temperature: float = 1.0) -> Tensor:
        """Logarithms of what the network says of each outcome: [n, outcomes, places].

        Answers that are no labels: outputs in units of their deviations, [n, values].
        """
        if self.continuous:
            return continuous.scaled(scores, str(self.labels), self.deviation) / temperature
        if self.labels == "tokens":
            return tokens.log_probabilities(scores, temperature, self.ending)
        kind = self.kind(scores)
        scores = in_rows(continuous.logits_of(scores, self.ending, kind)) / temperature
        if kind == "sigmoid":
            return torch.stack([F.logsigmoid(-scores), F.logsigmoid(scores)], 1)
        found = _by_position(scores)
        if found.shape[1] == 1:
            return torch.cat([F.logsigmoid(-found), F.logsigmoid(found)], 1)
        return found.log_softmax(1)

    def divergence(self, found: Tensor, wanted: Tensor) -> Tensor:
        """Mean Kullback-Leibler divergence of `found` from `wanted` over examples, in nats.

        That of an example is summed over labels, and averaged over positions. Answers that are no
        labels are means of Gaussians (`continuous.py`).

        Args:
            found: As from `log_probabilities`.
            wanted: The same of the network that is the reference.
        """
        if self.continuous:
            return (found - wanted).square().sum(1).mean() / 2
        if self.in_parts:
            each = F.kl_div(found, wanted, reduction="none", log_target=True).sum((1, 2))
            return (each / tokens.places_of(wanted)).mean()
        return F.kl_div(found, wanted, reduction="batchmean", log_target=True)

    def surprise(self, scores: Tensor, generator: torch.Generator) -> Tensor:
        """-log of the probability of answers that are drawn from what the network says.

        Its gradient's second moment is the Fisher information of the labels. Over positions it
        is scaled so that it belongs to their mean: E[g g^T] of independent draws adds up.

        Returns:
            Sum over examples.
        """
        log = self.log_probabilities(scores)
        if self.continuous:
            noise = torch.randn(log.shape, generator=generator).to(log)
            return (log.detach() + noise - log).square().sum() / 2
        rows = log.movedim(1, -1).reshape(-1, log.shape[1])
        drawn = torch.multinomial(rows.detach().exp().cpu(), 1, generator=generator)
        each = -rows.gather(1, drawn.to(rows.device)).reshape(len(log), -1).sum(1)
        return (each / tokens.places_of(log).sqrt() if self.in_parts else each).sum()


BY_SHAPE = Scoring()


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
