"""How each of the original's labels fares: counts by label, their bounds, and a promise for all.

A bound on all labels lets a rare one vanish. Here examples are counted by the label that the
original network gives them. That label does not depend on the compressed network, so that among
the examples of a label the number of changes is binomial like the number among all.

Positions (dense answers, and next tokens) are stratified: an example counts once for each class
that the original sees in it, by one of the original's positions of that class, drawn by a hash of
the example's number and the class. A rare class has as many draws as there are examples that show
it. Padding is no position.

Counts are summed as data passes; memory grows with the number of labels only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fcompress.certify.bounds import at_most, examples_needed, most_changes, upper_bound
from fcompress.errors import FcompressError
from fcompress.forward.answers.asked import IN_PARTS
from fcompress.forward.answers.parts import PADDED

Counts = NDArray[np.int64]

# A label with enough examples to prove the tolerance that changes so many times the tolerance is
# named, significant or not: a fact about a thousand examples is one, however many labels there are.
FAR = 3
NAMED = 5  # labels that a sentence names; the others are a number
INTERSECTION_UNION = (
    "every one of these labels has to pass a test of its own at the full level, and one that does "
    "not refuses the network (intersection-union test): the tolerance holds for all of them at "
    "once with this confidence"
)
_NAMES = {"classes": "label", "positions": "class", "sigmoid": "label", "tokens": "token"}
_bound = lru_cache(maxsize=1 << 16)(upper_bound)
_most = lru_cache(maxsize=1 << 16)(most_changes)


@dataclass(frozen=True)
class LabelFare:
    """What became of the examples to which the original gives one label.

    Attributes:
        label: Number of the class; for sigmoid heads of the label.
        side: "yes" or "no" for sigmoid heads, where both can be lost; None for other labels.
        n: Examples of the original with this label. Of positions: examples in which the original
            has the class, each of which counts by one drawn position of that class.
        changed: Those that have another label now.
        given: How often the compressed network gives the label: examples, or positions.
        confidence: Of the bounds, in (0, 1).
        among: How many labels share `bound_together`.
        positions: Positions of the class by the original; None unless labels are of positions.
        positions_changed: Share of those that have another class now; the same.
        iou: Positions that both networks give the class, of those that either does; the same.
        word: What one is called, "label", "class" or "token".
    """

    label: int
    side: str | None
    n: int
    changed: int
    given: int
    confidence: float
    among: int
    positions: int | None = None
    positions_changed: float | None = None
    iou: float | None = None
    word: str = "label"

    @property
    def bound(self) -> float:
        """With `confidence`, at most this share of the label changes: of this label alone."""
        return _bound(self.changed, self.n, self.confidence)

    @property
    def bound_together(self) -> float:
        """The same bound, so that those of all labels hold at once (Bonferroni)."""
        return _bound(self.changed, self.n, 1 - (1 - self.confidence) / self.among)

    @property
    def share(self) -> float:
        """Share of the label that changed; over all positions where there are several."""
        return self.changed / self.n if self.positions_changed is None else self.positions_changed

    @property
    def vanished(self) -> bool:
        """Whether the compressed network never gives the label."""
        return self.given == 0

    @property
    def name(self) -> str:
        """What to call it: "label 3", "class 3", "token 3" or 'label 3 "yes"'."""
        side = "" if self.side is None else f' "{self.side}"'
        return f"{self.word} {self.label}{side}"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, with the bounds."""
        found = asdict(self)
        del found["confidence"], found["among"], found["word"]
        return {**found, "bound": self.bound, "bound_together": self.bound_together}


@dataclass(frozen=True)
class LabelPromise:
    """A tolerance that holds for every label with enough examples.

    Attributes:
        tolerance: Largest share of each of them that may change.
        confidence: With which it holds for all of them at once.
        needed: Examples that a label needs; with fewer, nothing proves the tolerance.
        labels: How many labels have enough examples, so that the tolerance holds for them.
        too_few: The others, by name: of those nothing is promised.
        test: Why it holds for all at once.
    """

    tolerance: float
    confidence: float
    needed: int
    labels: int
    too_few: tuple[str, ...]
    test: str = INTERSECTION_UNION

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "too_few": list(self.too_few)}


@dataclass(frozen=True)
class ByLabel:
    """How each label fares that the original gives at least once.

    Attributes:
        kind: What a label is, as in `AgreementResult.labels`.
        confidence: Of each bound.
        labels: Of each label, in order.
        never: How many labels there are that the original gives to none of the examples.
        promise: The tolerance that holds for every label; None where none was asked for.
    """

    kind: str
    confidence: float
    labels: tuple[LabelFare, ...]
    never: int
    promise: LabelPromise | None = None

    @property
    def word(self) -> str:
        """What one is called, "label", "class" or "token"."""
        return _NAMES[self.kind]

    @property
    def vanished(self) -> list[LabelFare]:
        """What the compressed network never gives, most frequent first."""
        return sorted((one for one in self.labels if one.vanished), key=lambda one: -one.n)

    def worst(self) -> list[LabelFare]:
        """All labels, the one with the largest share of changes first."""
        return sorted(self.labels, key=lambda one: (-one.share, -one.n))

    def most_frequent(self) -> list[LabelFare]:
        """All labels, the one that the original gives in most examples first."""
        return sorted(self.labels, key=lambda one: (-one.n, one.label))

    def enough(self, tolerance: float) -> list[LabelFare]:
        """Labels whose number of examples can prove a tolerance."""
        return [one for one in self.labels if _most(one.n, tolerance, self.confidence) >= 0]

    def beyond(self, tolerance: float) -> list[LabelFare]:
        """Labels with enough examples for a tolerance whose bound is above it, worst first."""
        failed = [one for one in self.enough(tolerance) if one.bound > tolerance]
        return sorted(failed, key=lambda one: -one.bound)

    def holds(self, tolerance: float) -> bool:
        """Whether the tolerance is proven for every label with enough examples, and for one.

        That some label is beyond the tolerance is refuted only if the test of each is passed; if
        one is beyond, its own test passes with probability 1 - confidence at most, and so do all
        (Berger 1982, "Multiparameter Hypothesis Testing and Acceptance Sampling"). Which labels
        have enough examples depends on the original network alone.
        """
        return bool(self.enough(tolerance)) and not self.beyond(tolerance)

    def promised(self, tolerance: float) -> ByLabel:
        """The same with the promise that `holds`."""
        enough = set(self.enough(tolerance))
        promise = LabelPromise(
            tolerance=tolerance,
            confidence=self.confidence,
            needed=examples_needed(tolerance, self.confidence),
            labels=len(enough),
            too_few=tuple(one.name for one in self.labels if one not in enough),
        )
        return replace(self, promise=promise)

    def would_hold(self, tolerance: float, ratio: float) -> bool:
        """Whether a network looks as if the tolerance would hold on other examples.

        Labels of which too few examples are to be expected there cannot be promised. Taken
        together they have to stay within the tolerance here, and none may be far beyond it.

        Args:
            tolerance: For every label.
            ratio: How many examples the others are for one of these.
        """
        rest_changed = rest = 0
        for one in self.labels:
            expected = one.n * ratio
            most = _most(int(expected), tolerance, self.confidence) if expected >= 1 else -1
            if most < 0:
                rest, rest_changed = rest + one.n, rest_changed + one.changed
            elif one.changed * expected > most * one.n:
                return False
        return rest_changed <= tolerance * rest and not self.far_beyond(tolerance)

    def far_beyond(self, tolerance: float) -> list[LabelFare]:
        """Labels that change far more than a tolerance, worst first.

        Those whose share is above it with the confidence, for all of them at once (Holm 1979, "A
        Simple Sequentially Rejective Multiple Test Procedure"), and those that could prove the
        tolerance but changed more than `FAR` times as much.
        """
        chances = sorted(
            ((_at_least(one.changed, one.n, tolerance), i) for i, one in enumerate(self.labels))
        )
        found = {one for one in self.enough(tolerance) if one.share > FAR * tolerance}
        for rank, (chance, i) in enumerate(chances):
            if chance > (1 - self.confidence) / (len(chances) - rank):
                break
            found.add(self.labels[i])
        return [one for one in self.worst() if one in found]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "kind": self.kind,
            "confidence": self.confidence,
            "labels": [one.to_dict() for one in self.labels],
            "never": self.never,
            "promise": None if self.promise is None else self.promise.to_dict(),
        }


class LabelCounts:
    """Counts by label, summed over batches; nothing for answers that are no labels."""

    def __init__(self) -> None:
        self._kind: str | None = None
        # Rows: examples (or draws), changed, given; and of positions: all, changed.
        self._sums: Counts = np.zeros((5, 0), dtype=np.int64)

    def add(self, kind: str, ours: Tensor, theirs: Tensor, outcomes: int, first: int) -> None:
        """Count one batch.

        Args:
            kind: What a label is; other kinds than those of `_NAMES` have no labels.
            ours: The original's, [n, places], -1 where it has none.
            theirs: The compressed network's, the same.
            outcomes: Classes, or labels of a sigmoid head.
            first: Number of the first of these examples among all.
        """
        if kind not in _NAMES:
            return
        outcomes = max(outcomes, 2) if kind != "sigmoid" else 2 * outcomes
        if self._kind is None:
            self._kind, self._sums = kind, np.zeros((5, outcomes), dtype=np.int64)
        if kind in IN_PARTS:
            small = np.int16 if outcomes < 1 << 15 else np.int64  # sorted in linear time
            pairs = zip(ours.cpu().numpy(), theirs.cpu().numpy(), strict=True)
            for number, (one, other) in enumerate(pairs, first):
                self._add_positions(one.astype(small), other.astype(small), number)
            return
        one, other = (side.long().cpu().numpy() for side in (ours, theirs))
        known, valid = one >= 0, other >= 0
        if kind == "sigmoid":
            offset = 2 * np.arange(one.shape[1])
            one, other = one + offset, other + offset
        for row, chosen in enumerate((one[known], one[known & (one != other)], other[valid])):
            self._sums[row] += self._count(chosen)

    def _add_positions(self, one: NDArray[Any], other: NDArray[Any], number: int) -> None:
        """One example, positions in a row."""
        counted = one != PADDED
        one, other = one[counted], other[counted]
        if len(other) and other[0] >= 0:
            self._sums[2] += self._count(other)
        if not len(one) or one[0] < 0:
            return
        sizes = self._count(one)
        self._sums[3] += sizes
        self._sums[4] += self._count(one[one != other])
        order = np.argsort(one, kind="stable")
        seen = np.flatnonzero(sizes)
        starts = np.cumsum(sizes[seen]) - sizes[seen]
        drawn = order[starts + (drawn_shares(number, seen) * sizes[seen]).astype(np.int64)]
        self._sums[0][seen] += 1
        self._sums[1][seen] += other[drawn] != seen

    def _count(self, labels: NDArray[Any]) -> Counts:
        return np.bincount(labels.ravel(), minlength=self._sums.shape[1])

    def result(self, confidence: float) -> ByLabel | None:
        """What was counted; None for answers that are no labels."""
        if self._kind is None:
            return None
        return by_label(self._kind, self._sums, confidence)


def check_labelled(kind: str) -> None:
    """Refuse a tolerance for every label where answers have none.

    Args:
        kind: Of the answers, as in `AgreementResult.labels`.

    Raises:
        FcompressError: They have none.
    """
    if kind not in _NAMES:
        raise FcompressError(
            f"a tolerance for every label needs labels, and answers of the kind {kind} have none; "
            "leave per_label and tol_label out"
        )


def by_label(kind: str, sums: Sequence[Sequence[int]] | Counts, confidence: float) -> ByLabel:
    """How labels fare, from counts.

    Args:
        kind: What a label is.
        sums: For each label examples, changed, given, and of positions all and changed: rows of
            [5, labels]; the last two may be left out where there are none.
        confidence: Of the bounds.
    """
    rows = [[int(value) for value in row] for row in sums]
    among = sum(n > 0 for n in rows[0])
    found = []
    for i, (n, changed, given) in enumerate(zip(*rows[:3], strict=True)):
        if not n:
            continue
        label, side = (i // 2, ("no", "yes")[i % 2]) if kind == "sigmoid" else (i, None)
        fare = LabelFare(label, side, n, changed, given, confidence, max(among, 1))
        fare = replace(fare, word=_NAMES[kind])
        if kind in IN_PARTS:
            every, lost = rows[3][i], rows[4][i]
            fare = replace(
                fare,
                positions=every,
                positions_changed=lost / every,
                iou=(every - lost) / (lost + given),
            )
        found.append(fare)
    return ByLabel(kind, confidence, tuple(found), len(rows[0]) - among)


def warnings_by_label(found: ByLabel | None, tolerance: float | None) -> Iterator[str]:
    """What labels say against a result, in words.

    Args:
        found: How labels fare; None for answers that are no labels.
        tolerance: Largest share of all labels that may change; None where a size was asked for.
    """
    if found is None:
        return
    vanished, promise = found.vanished, found.promise
    if found.kind == "tokens":
        # Among thousands there are always some that the original gives once, and nobody again.
        some = () if tolerance is None else found.far_beyond(tolerance)
        vanished = [one for one in vanished if one in some]
    if vanished:
        listed = named(vanished, lambda one: f"{one.name} ({_lost(one)})")
        yield f"the compressed network never gives {listed}, which the original gives"
    gone = {one.name for one in vanished}
    far = [] if tolerance is None else found.far_beyond(tolerance)
    far = [one for one in far if one.name not in gone]
    if far:
        listed = named(far, lambda one: f"{one.name} ({_lost(one)})")
        hint = "; per_label (--per-label) holds the tolerance for every label with enough examples"
        yield (
            f"{listed} {'changes' if len(far) == 1 else 'change'} far more than the tolerance of "
            f"{tolerance:g}{'' if promise else hint}"
        )
    if promise is not None and promise.too_few:
        listed = named(promise.too_few, str)
        yield (
            f"nothing is promised of {listed}: a tolerance of {promise.tolerance:g} for a label "
            f"takes {promise.needed:,} certification examples of it"
        )


def named(found: Sequence[Any], say: Any) -> str:
    """The first few in words, and how many more there are."""
    told = [say(one) for one in found[:NAMED]]
    more = len(found) - len(told)
    return ", ".join(told) + (f" and {more:,} more" if more else "")


def _lost(one: LabelFare) -> str:
    if one.positions is not None:
        return f"{one.share:.1%} of its {one.positions:,} positions changed, IoU {one.iou:.2f}"
    return f"{one.changed:,} of its {one.n:,} examples changed, {one.share:.1%}"


def _at_least(k: int, n: int, p: float) -> float:
    """P(X >= k) for X binomial (n, p)."""
    if k == 0:
        return 1.0
    return 1.0 - at_most(k - 1, n, p) if p > 0 else 0.0


def drawn_shares(number: int, classes: NDArray[np.int64]) -> NDArray[np.float64]:
    """For each class a number in [0, 1) that depends on the example's number and the class alone.

    SplitMix64, as in `scoring.drawn_positions`.
    """
    step = np.uint64(0x9E3779B97F4A7C15)
    with np.errstate(over="ignore"):
        z = _mixed(np.array([number + 1], dtype=np.uint64) * step)
        z = _mixed(z + (classes.astype(np.uint64) + np.uint64(1)) * step)
    return (z >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mixed(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
