"""Networks with several heads: which outputs are heads, and their labels as those of one network.

An output is a *head* where a rule can say so (docs/certificate.md):

- it is floats [n, classes] with at least two classes;
- a layer (a linear map or a convolution) writes it; what stands between only moves numbers or
  averages over positions, or is a softmax or log-softmax at the end;
- no other layer reads it, or what it is made from, on the way to that output or another;
- it is not called an embedding, features or hidden states.

What is only a softmax, log-softmax or argmax of the scores or of another head says nothing of its
own: it *follows* from it.

`Joint` reads the scores and all heads as one tensor, so that whoever ranks, distils, searches,
certifies or verifies by a `Scoring` sees all heads without knowing of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fcompress.forward.answers.scoring import Scoring
from fcompress.forward.graph import Named, Step, Value
from fcompress.forward.outputs import is_scores, output_tensors
from fcompress.forward.predictor import Predictor
from fcompress.forward.recording import record

_LAYERS = frozenset(("convolution", "addmm", "mm", "bmm", "baddbmm"))
_CLOSING = frozenset(("_softmax", "_log_softmax"))
_FOLLOWING = frozenset((*_CLOSING, "argmax", "max", "sigmoid"))
_MOVING = frozenset(
    (
        "view _unsafe_view reshape squeeze unsqueeze select slice permute transpose t alias detach "
        "clone expand contiguous _to_copy mean adaptive_avg_pool2d _adaptive_avg_pool2d split "
        "split_with_sizes unbind chunk avg_pool2d"
    ).split()
)
_NOT_SCORES = ("embed", "feature", "hidden", "latent", "representation")
# The logarithm of the probability of an outcome that cannot be; finite, since 0 * inf is nan.
_NEVER = -1e4


@dataclass(frozen=True)
class Head:
    """An output whose largest score is a label.

    Attributes:
        name: Path of the output, as `outputs.output_tensors` has it.
        classes: How many scores.
        probabilities: Whether they are behind a softmax, so that their logarithm is the score.
    """

    name: str
    classes: int
    probabilities: bool = False


@dataclass(frozen=True)
class Outputs:
    """What a network returns, sorted.

    Attributes:
        heads: Outputs that are heads, in order.
        following: Outputs that are a softmax or argmax of another output: that other one's name.
        given: Outputs that are an input, unchanged.
        names: All outputs.
    """

    heads: tuple[Head, ...]
    following: Mapping[str, str]
    given: frozenset[str]
    names: tuple[str, ...]


@dataclass(frozen=True)
class _All(Scoring):
    """No choice: every output, by name, in one dict."""

    def chosen(self, output: Any, counted: Tensor | None = None) -> Any:
        return output_tensors(output)


@dataclass(frozen=True)
class Joint(Scoring):
    """The labels of several heads as one tensor of scores: those of the main one, then the others'.

    An example keeps its label where every head does. What is said of accuracy and of positions is
    about the main head alone, which `output` and `labels` are about, too.

    Attributes:
        main: How the main head is read.
        heads: The others.
        classes: Scores of the main head, at each position if it has positions.
    """

    main: Scoring = field(default_factory=Scoring)
    heads: tuple[Head, ...] = ()
    classes: int = 1

    def chosen(self, output: Any, counted: Tensor | None = None) -> Any:
        """All scores side by side: [n, scores of the main head and of the others]."""
        main = self.main.chosen(output, counted)
        if not isinstance(main, Tensor) or not main.dim():
            return main
        named = output_tensors(output)
        parts = [main.flatten(1) if main.dim() > 1 else main.unsqueeze(1)]
        for head in self.heads:
            if head.name not in named or named[head.name].shape != (len(main), head.classes):
                return main  # of another network; its shape tells
            scores = named[head.name]
            if head.probabilities:
                scores = scores.clamp_min(torch.finfo(scores.dtype).tiny).log()
            parts.append(scores)
        return torch.cat(parts, 1)

    def checked(self, found: Any, name: str, examples: int) -> Tensor:
        """Scores of all heads, as `chosen` gives them."""
        whole = isinstance(found, Tensor) and found.dim() == 2 and len(found) == examples
        if not whole or found.shape[1] <= self._others:
            return self.main.checked(found, name, examples)
        self.main.checked(self._of_main(found), name, examples)
        return found

    def kind(self, scores: Tensor) -> str:
        """The kind of the main head's labels."""
        return self.main.kind(self._of_main(scores))

    def labels_of(self, scores: Tensor) -> Tensor:
        """Labels of the main head, then one of each other head."""
        found = [self.main.labels_of(self._of_main(scores)).long()]
        for part in self._parts(scores):
            finite = part.isfinite().all(1)
            found.append(torch.where(finite, part.argmax(1), -1).unsqueeze(1))
        return torch.cat(found, 1)

    def compared(self, labels: Tensor, first: int = 0) -> Tensor:
        """What the main head is compared by, and every other head."""
        main, others = self._split(labels)
        return torch.cat([self.main.compared(main, first), others], 1)

    def around(self, main: Scoring) -> Scoring:
        """The same heads beside a main one that is read otherwise; alone if it gives no labels."""
        if main.continuous:
            return main
        return replace(self, labels=main.labels, main=main)

    def changed(self, reference: Tensor, found: Tensor) -> Tensor:
        """Where the main head's answer is another one, or the label of any other head."""
        (main, others), (theirs, their_others) = self._split(reference), self._split(found)
        differ = (others != their_others).any(1) | (others < 0).any(1)
        return self.main.changed(main, theirs) | differ

    def counted(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor | None:
        """Of the main head."""
        return self.main.counted(args, kwargs)

    def broken(self, given: Tensor) -> Tensor:
        """Where a score of any head is not finite."""
        main, others = self._split(given)
        return self.main.broken(main) | (others < 0).any(1)

    def lost(self, reference: Tensor, found: Tensor) -> Tensor:
        """Of the main head's answer, and all of it where any other head's label changed."""
        (main, others), (theirs, their_others) = self._split(reference), self._split(found)
        differ = (others != their_others).any(1) | (others < 0).any(1)
        return torch.where(differ, 1.0, self.main.lost(main, theirs))

    def described(self, scores: Tensor) -> dict[str, Any]:
        """Of the main head."""
        return self.main.described(self._of_main(scores))

    def shares(self, reference: Tensor, found: Tensor) -> Tensor:
        """Of the main head's labels."""
        return self.main.shares(self._split(reference)[0], self._split(found)[0])

    def right(self, given: Tensor, truth: Tensor) -> Tensor:
        """Of the main head's labels."""
        return self.main.right(self._split(given)[0], self._split(truth)[0])

    def of_main(self, labels: Tensor) -> Tensor:
        """The main head's labels."""
        return self._split(labels)[0]

    def outcomes(self, scores: Tensor) -> int:
        """How many classes, or labels of a sigmoid head, the main head has."""
        return self.main.outcomes(self._of_main(scores))

    def truth(self, labels: Tensor, places: int) -> Tensor:
        """True labels are the main head's."""
        found = self.main.truth(labels, places - len(self.heads))
        return torch.cat([found, found.new_zeros(len(found), len(self.heads))], 1)

    def log_probabilities(self, scores: Tensor, temperature: float = 1.0) -> Tensor:
        """Of the main head's outcomes, then of each other's as one more place."""
        found = [self.main.log_probabilities(self._of_main(scores), temperature)]
        for part in self._parts(scores):
            found.append((part / temperature).log_softmax(1).unsqueeze(2))
        most = max(part.shape[1] for part in found)
        padded = [F.pad(part, (0, 0, 0, most - part.shape[1]), value=_NEVER) for part in found]
        return torch.cat(padded, 2)

    def divergence(self, found: Tensor, wanted: Tensor) -> Tensor:
        """The sum over heads."""
        places = found.shape[2] - len(self.heads)
        total = self.main.divergence(found[:, :, :places], wanted[:, :, :places])
        others = found[:, :, places:], wanted[:, :, places:]
        return total + F.kl_div(*others, reduction="batchmean", log_target=True)

    def surprise(self, scores: Tensor, generator: torch.Generator) -> Tensor:
        """The sum over heads, whose labels are drawn independently."""
        total = self.main.surprise(self._of_main(scores), generator)
        for part in self._parts(scores):
            total = total + Scoring(None, "classes").surprise(part, generator)
        return total

    @property
    def _others(self) -> int:
        return sum(head.classes for head in self.heads)

    def _split(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        places = labels.shape[1] - len(self.heads)
        return labels[:, :places], labels[:, places:]

    def _of_main(self, scores: Tensor) -> Tensor:
        main = scores[:, : scores.shape[1] - self._others]
        return main.unflatten(1, (self.classes, -1)) if self.in_parts else main

    def _parts(self, scores: Tensor) -> Iterator[Tensor]:
        at = scores.shape[1] - self._others
        for head in self.heads:
            yield scores[:, at : at + head.classes]
            at += head.classes


def heads_of(scoring: Scoring) -> tuple[str, ...]:
    """Names of the outputs whose labels count beside the main one's."""
    return tuple(head.name for head in scoring.heads) if isinstance(scoring, Joint) else ()


def main_of(scoring: Scoring) -> Scoring:
    """How the scores are read, or the main head where there are several."""
    return scoring.main if isinstance(scoring, Joint) else scoring


def answering(predictor: Predictor, inputs: Tensor) -> Predictor:
    """The same network with all its heads counting, if it was not said which output is meant.

    The main head is what `Scoring.chosen` takes; where it takes none, because outputs come by name
    and none is called logits, the first head is the main one.

    Args:
        predictor: A network.
        inputs: A small batch, as from `Predictor.place`.

    Raises:
        UnsupportedNetworkError: The main head's scores are not of the shape of its labels.
    """
    scoring = predictor.scoring
    if scoring.output is not None or isinstance(scoring, Joint) or scoring.whole:
        return predictor
    with predictor.evaluating():
        whole = predictor.whole(predictor.network, inputs)
        named = output_tensors(whole)
        main, own = scoring.chosen(whole), scoring.named(whole)
    if len(named) < 2 or isinstance(whole, Tensor):
        return predictor
    heads = list(sorted_outputs(predictor, inputs).heads)
    if not isinstance(main, Tensor):
        if not heads or scoring.labels not in (None, "classes"):
            return predictor
        scoring = replace(scoring, output=_top(whole, heads[0].name))
        main = own = named[heads[0].name]
        if scoring.output is None:
            return predictor
    heads = [head for head in heads if named[head.name] is not own]
    if not heads or not main.dim():
        return predictor
    scoring.checked(main, predictor.name, len(inputs))
    classes = main.shape[1] if main.dim() > 1 else 1
    joint = Joint(labels=scoring.labels, main=scoring, heads=tuple(heads), classes=classes)
    return replace(predictor, scoring=joint)


def _top(output: Any, name: str) -> str | None:
    """The name if it is one that `Scoring.output` can choose by: not of something nested."""
    return name if isinstance(output, Mapping) and name in map(str, output) else None


def sorted_outputs(predictor: Predictor, inputs: Tensor) -> Outputs:
    """Which outputs of a network are heads, which follow from others, and which are inputs.

    Args:
        predictor: A network; recorded once.
        inputs: A small batch, as from `Predictor.place`.
    """
    everything = replace(predictor, scoring=_All())
    with predictor.evaluating():
        named = everything(inputs)
        try:
            recording = record(everything, inputs)
        except Exception:  # what cannot be recorded has no head that a rule could find
            return Outputs((), {}, frozenset(), tuple(named))
    if len(recording.outputs) != len(named):
        return Outputs((), {}, frozenset(), tuple(named))
    slots = dict(zip(named, recording.outputs, strict=True))
    graph = _Graph(recording.steps)
    heads: list[Head] = []
    following: dict[str, str] = {}
    # A network works on copies of its inputs of its own (`Predictor.whole`).
    inside = {
        slot
        for step in recording.steps
        if _name(step) == "clone" and set(_read(step)) <= set(recording.inputs)
        for slot in step.outs
    }.union(recording.inputs)
    given = frozenset(name for name, slot in slots.items() if slot in inside)
    taken: dict[int, str] = {}
    for name, slot in slots.items():
        if slot in taken:
            following[name] = taken[slot]
            continue
        taken[slot] = name
        source = graph.followed(slot, {s: n for n, s in slots.items() if n != name})
        if source is not None:
            following[name] = source
        elif (
            slot not in inside
            and is_scores(named[name], len(inputs))
            and not any(word in name.lower() for word in _NOT_SCORES)
        ):
            written = graph.written_by_layer(slot)
            if written is not None:
                heads.append(Head(name, named[name].shape[1], written == "_softmax"))
    return Outputs(tuple(heads), following, given, tuple(named))


class _Graph:
    """Who writes and who reads each slot of a recording."""

    def __init__(self, steps: Sequence[Step]) -> None:
        self._steps = steps
        self._writer: dict[int, int] = {}
        self._readers: dict[int, list[int]] = {}
        for index, step in enumerate(steps):
            for slot in _read(step):
                self._readers.setdefault(slot, []).append(index)
            for slot in step.outs:
                self._writer[slot] = index  # the last one, where it is written in place

    def followed(self, slot: int, others: Mapping[int, str]) -> str | None:
        """The output that this one is only a function of, by a softmax or an argmax."""
        index = self._writer.get(slot)
        if index is None or _name(self._steps[index]) not in _FOLLOWING:
            return None
        return next((others[s] for s in _read(self._steps[index]) if s in others), None)

    def written_by_layer(self, slot: int) -> str | None:
        """The last operator before a slot, if a layer wrote it and no other layer reads that."""
        closing = ""
        while True:
            index = self._writer.get(slot)
            if index is None or self._is_learned_from(slot, index):
                return None
            step, name = self._steps[index], _name(self._steps[index])
            if name in _LAYERS:
                return (closing or name) if self._has_weight(step) else None
            read = _read(step)
            if len(read) != 1 or not (name in _MOVING or (name in _CLOSING and not closing)):
                return None
            closing = name if name in _CLOSING else closing
            slot = read[0]

    def _is_learned_from(self, slot: int, since: int) -> bool:
        """Whether a parameter is met by what is computed from a slot further on."""
        reached, todo = {slot}, [slot]
        while todo:
            for index in self._readers.get(todo.pop(), ()):
                step = self._steps[index]
                if index <= since:
                    continue
                if self._has_weight(step):
                    return True
                for out in step.outs:
                    if out not in reached:
                        reached.add(out)
                        todo.append(out)
        return False

    def _has_weight(self, step: Step) -> bool:
        """Whether an operand is a parameter, or only a view of one."""
        if any(isinstance(leaf, Named) for leaf in step.leaves):
            return True
        for slot in _read(step):
            writer = self._writer.get(slot)
            if writer is None or _name(self._steps[writer]) not in _MOVING:
                continue
            if any(isinstance(leaf, Named) for leaf in self._steps[writer].leaves):
                return True
        return False


def _read(step: Step) -> list[int]:
    return [leaf.slot for leaf in step.leaves if isinstance(leaf, Value)]


def _name(step: Step) -> str:
    return str(step.func.overloadpacket.__name__)
