"""What a user can say of a network's answers, checked in one place.

Nothing here needs torch, so that the command line can show its help without it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, Protocol

from fcompress.arguments.numbers import OutOfRange, real, short, whole

# What can be asked for by name; of top-K the K is a number. A function of the user's is "same".
ANSWERS = {
    "classes": "the class with the largest score",
    "top-K": "the set of the K classes with the largest scores, as in top-5",
    "sigmoid": "each label of a sigmoid or multi-label head, yes or no",
    "positions": "the class at every position",
    "tokens": "the next token at every position of a language model, padding left out",
    "regression": "each output stays within --within of the original's",
    "regression-norm": "the whole output, as a vector, does",
    "embedding": "the cosine with the original's output is at least --cosine",
    "nearest": "the number of the nearest embedding of --gallery, by cosine",
    "pairs": "whether the cosine of two embeddings is above --threshold",
    "detections": "every box above --score has a match of its label above --iou, both ways",
}
NAMES = ", ".join(ANSWERS)
IN_PARTS = ("positions", "tokens")
CONTINUOUS = ("regression", "regression-norm", "embedding", "same", "nearest", "detections")
# An angle of 18 degrees. Unrelated embeddings of many numbers are near 90, and pairs are commonly
# told apart at 45 to 70, so that few decisions hang on such a turn.
COSINE = 0.95
SCORE, IOU = 0.5, 0.5  # of detections
# Numbers: what is expected, and how to tell.
_REALS: dict[str, tuple[str, Callable[[float], bool]]] = {
    "cosine": ("a number between -1 and 1", lambda one: -1 < one < 1),
    "threshold": ("a number between -1 and 1", lambda one: -1 < one < 1),
    "score": ("a number in [0, 1)", lambda one: 0 <= one < 1),
    "iou": ("a number between 0 and 1", lambda one: 0 < one < 1),
}
_BELONGS = {
    "gallery": "nearest",
    "score": "detections",
    "iou": "detections",
    "divergence": "same",
    "threshold": "pairs",
}


@dataclass(frozen=True)
class Asked:
    """What counts of a network's outputs, as the user said it.

    Attributes:
        kind: A key of `ANSWERS` with a number for K, or "same"; None for what can be told.
        within: Of "regression": how far an output may move: a number in the units of the output,
            one for each output, or a share of its standard deviation, as "10%".
        cosine: Of "embedding": the least cosine of two answers that are the same, in (-1, 1).
        same: Of "same": (original outputs, compressed outputs) -> bool [n].
        divergence: Of "same": (original outputs, compressed outputs) -> nats [n], differentiable.
        gallery: Of "nearest": inputs, as any data that `as_batches` takes.
        score: Of "detections": boxes below it do not count, in [0, 1).
        iou: Of "detections": the least overlap of two boxes that match, in (0, 1).
        threshold: Of "pairs": the cosine above which two inputs are of one kind, in (-1, 1).
        pad: Of "tokens": id of the token that is padding, where no attention_mask says so.

    Raises:
        ValueError: There is no such kind, or its particulars do not belong to it.
    """

    kind: str | None = None
    within: float | str | tuple[float, ...] | None = None
    cosine: float | None = None
    same: Callable[[Any, Any], Any] | None = None
    divergence: Callable[[Any, Any], Any] | None = None
    gallery: Any = field(default=None, compare=False, repr=False)
    score: float | None = None
    iou: float | None = None
    threshold: float | None = None
    pad: int | None = None

    def __post_init__(self) -> None:
        for name, (expected, fits) in _REALS.items():
            if getattr(self, name) is not None:
                object.__setattr__(self, name, real(name, getattr(self, name), expected, fits))
        if self.pad is not None:
            object.__setattr__(self, "pad", whole("pad", self.pad))
        if self.kind is not None and self.kind not in tuple(ANSWERS) and self.kind != "same":
            top_k(self.kind)
        regression = self.kind in ("regression", "regression-norm")
        if self.within is not None:
            if not regression:
                raise ValueError(f"within={self.within}: belongs to answer='regression'")
            # One for each output, from wherever it comes: a list, an array, a tensor.
            if getattr(self.within, "ndim", 0) or isinstance(self.within, list):
                object.__setattr__(self, "within", tuple(self.within))  # type: ignore[arg-type]
            distance_of(self.within)
        elif regression:
            raise ValueError(
                f"answer={self.kind!r} needs within= (--within): how far an output may move, as "
                "0.1, or as a share of its standard deviation, as 10%"
            )
        if self.cosine is not None and self.kind != "embedding":
            raise ValueError(f"cosine={self.cosine}: belongs to answer='embedding'")
        if self.pad is not None and self.kind != "tokens":
            raise ValueError(f"pad={self.pad} (--pad): expected a token id, with answer='tokens'")
        if self.same is not None and (self.kind != "same" or not callable(self.same)):
            raise ValueError(
                "same=: expected a function (original, compressed) -> bool [n], and no answer="
            )
        for name, kind in _BELONGS.items():
            if getattr(self, name) is not None and self.kind != kind:
                owner = "same=" if kind == "same" else f"answer={kind!r}"
                raise ValueError(f"{name}= (--{name}) belongs to {owner}")
        if self.divergence is not None and not callable(self.divergence):
            raise ValueError(
                "divergence=: expected a function (original, compressed) -> nats [n] of outputs"
            )
        if self.kind == "pairs" and self.threshold is None:
            raise ValueError(
                "answer='pairs' needs threshold= (--threshold): the cosine above which two inputs "
                "are of one kind, between -1 and 1"
            )


def noun_of(kind: str | None) -> str:
    """What to call many answers of a kind; None is of labels."""
    others = {
        "nearest": "nearest neighbours",
        "pairs": "decisions",
        "detections": "images",
        "positions": "positions",
        "tokens": "next tokens",
    }
    return others.get(str(kind), "outputs" if kind in CONTINUOUS else "labels")


def asked(
    answer: str | None = None,
    labels: str | None = None,
    within: float | str | None = None,
    cosine: float | None = None,
    same: Callable[[Any, Any], Any] | None = None,
    divergence: Callable[[Any, Any], Any] | None = None,
    gallery: object | None = None,
    score: float | None = None,
    iou: float | None = None,
    threshold: float | None = None,
    pad: int | None = None,
) -> Asked:
    """What the arguments say together; particulars imply their kind.

    Args:
        answer: The kind.
        labels: The same, by its older name.
        within: See `Asked`.
        cosine: The same.
        same: The same.
        divergence: The same.
        gallery: The same.
        score: The same.
        iou: The same.
        threshold: The same.
        pad: The same.

    Raises:
        ValueError: They contradict each other.
    """
    if answer is not None and labels is not None and answer != labels:
        raise ValueError(f"answer={answer!r} and labels={labels!r}: say one of them")
    kind = answer if answer is not None else labels
    if kind is not None and kind not in tuple(ANSWERS):
        name = "labels" if answer is None else "answer"
        top_k(kind, name)
    if kind is None:
        kind = (
            "same"
            if same is not None
            else "regression"
            if within is not None
            else "embedding"
            if cosine is not None
            else "nearest"
            if gallery is not None
            else "detections"
            if score is not None or iou is not None
            else "pairs"
            if threshold is not None
            else "tokens"
            if pad is not None
            else None
        )
    return Asked(kind, within, cosine, same, divergence, gallery, score, iou, threshold, pad)


class Answered(Protocol):
    """Options of a command or a function that say what an answer is, by these names."""

    @property
    def answer(self) -> str | None:
        """The kind."""


def asked_of(options: Answered) -> Asked:
    """What options say of answers together: the one place that knows their names.

    Args:
        options: An object with `answer` and the attributes of `Asked`; what it does not have was
            not said. `labels` is the older name of `answer`.

    Raises:
        ValueError: They contradict each other.
    """
    names = [one.name for one in fields(Asked) if one.name != "kind"]
    said = {name: getattr(options, name, None) for name in names}
    return asked(options.answer, getattr(options, "labels", None), **said)


def top_k(kind: str, argument: str = "answer") -> int:
    """The K of "top-K".

    Raises:
        ValueError: It is no such name.
    """
    found = re.fullmatch(r"top-([1-9]\d{0,5})", kind, re.ASCII) if isinstance(kind, str) else None
    if found is None:
        raise OutOfRange(f"{argument}={short(repr(kind))}: expected one of {NAMES}")
    return int(found[1])


def distance_of(within: float | str | tuple[float, ...]) -> tuple[tuple[float, ...], bool]:
    """How far outputs may move, and whether it is a share of their standard deviations.

    Raises:
        ValueError: It says neither.
    """
    if isinstance(within, tuple):
        found = [real("within", one, "distances above 0", lambda one: one > 0) for one in within]
        if not found:
            raise OutOfRange("within=(): expected distances above 0")
        return tuple(found), False
    if not isinstance(within, str):
        return (real("within", within, "a distance above 0", lambda one: one > 0),), False
    text = within.strip()
    share = text.endswith("%")
    try:
        number = float(text.removesuffix("%"))
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise OutOfRange(f"within={short(text)}: expected a distance above 0, as 0.1 or as 10%")
    return (number / 100 if share else number,), share
