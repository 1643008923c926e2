"""Which pairs (size, threshold) meet the certificate, mildest first, by the search split alone."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from fcompress.certify.fixed_sequence import Candidate
from fcompress.compress.cascade.sizes import Size

# Shares of changed answers that pairs are made for. The first is so mild that of all certification
# examples one sixteenth is expected to change; below one they double, and from there on two steps
# double them.
MILDEST = 1 / 16
FIRST_STEP, STEP = 2.0, 2.0**0.5
LAST = 0.5
# Before them two pairs that are milder still: of the examples that the compressed network answers
# in the first one they leave it so many. The regression may be wrong about the surest ones.
KEPT = (1 / 4, 1 / 2)
# MACs, as a share of the original's, by which a pair has to be cheaper than all before it.
CHEAPER = 0.002


@dataclass(frozen=True)
class Pair(Candidate):
    """A compressed network with a threshold, as one candidate.

    `changed`, `n` and `deviation` are those of the pair; `macs` are those of the compressed
    network alone, `model` is the pair as a network, once it is made.

    Attributes:
        place: Its number in the sequence.
        threshold: The least margin with which the compressed network's answer stays.
        deferred: Share of the search examples that the original answers.
    """

    place: int = 0
    threshold: float = 0.0
    deferred: float = 0.0

    @property
    def rank(self) -> int:
        """Each pair is cheaper than those before it."""
        return self.place

    def average(self, original: int) -> float:
        """Multiply-adds for one example on average, with an original of so many."""
        return self.macs + self.deferred * original


def shares(n: int) -> Iterator[float]:
    """Shares of changed answers to make pairs for, ascending.

    Args:
        n: Certification examples.
    """
    share = MILDEST / n
    while share <= LAST:
        yield share
        share *= FIRST_STEP if share * n < 1 else STEP


def pairs(sizes: Sequence[Size], original: int, n: int) -> list[tuple[Size, Pair]]:
    """The cheapest pair for each share of changed answers, mildest first.

    Nothing here looks at the tolerance, so that the sequence for a tighter one is the beginning
    of the sequence for a looser one.

    Args:
        sizes: Compressed networks.
        original: Multiply-adds of the original.
        n: Certification examples.
    """
    found: list[tuple[Size, Pair]] = []
    cheapest = float(original)
    for share in shares(n):
        size, at = min(
            ((one, _first(one, share)) for one in sizes),
            key=lambda each: _average(each[0], each[1], original),
        )
        first = [_milder(size, at, kept) for kept in KEPT] if not found else []
        for number in [*first, at]:
            cost = _average(size, number, original)
            if cost > cheapest - CHEAPER * original:
                continue
            cheapest = cost
            found.append((size, _pair(size, number, len(found))))
    return found


def _first(size: Size, share: float) -> int:
    """Number of the least threshold at which no more than a share of the answers changes."""
    return int((size.changes > share).sum())


def _milder(size: Size, at: int, kept: float) -> int:
    """Number of the threshold that leaves the compressed network a share of its answers."""
    wanted = 1 - kept * (1 - float(size.deferred[at]))
    return min(int((size.deferred < wanted).sum()), len(size.thresholds) - 1)


def _average(size: Size, at: int, original: int) -> float:
    return size.candidate.macs + float(size.deferred[at]) * original


def _pair(size: Size, at: int, place: int) -> Pair:
    threshold = float(size.thresholds[at])
    lost = size.at(threshold)
    one = size.candidate
    in_parts = one.deviation is not None
    changed = float(lost.sum())
    return Pair(
        removed=one.removed,
        kept=one.kept,
        model=one.model,
        macs=one.macs,
        changed=changed if in_parts else int(changed),
        n=len(lost),
        deviation=float(lost.std(unbiased=False)) if in_parts else None,
        distill=one.distill,
        place=place,
        threshold=threshold,
        deferred=float(size.deferred[at]),
    )


def until(
    sequence: Sequence[tuple[Size, Pair]], beyond: Callable[[Pair], bool]
) -> list[tuple[Size, Pair]]:
    """The pairs before the first that is beyond what is allowed."""
    return list(itertools.takewhile(lambda each: not beyond(each[1]), sequence))


def still_cheaper(size: Size, best: dict[float, float], original: int, n: int) -> bool:
    """Whether a size is the cheapest so far for any share of changed answers.

    Args:
        size: A size.
        best: Share of changed answers -> least average MACs so far; updated.
        original: Multiply-adds of the original.
        n: Certification examples.
    """
    cheaper = False
    for share in shares(n):
        cost = _average(size, _first(size, share), original)
        if cost < best.get(share, float(original)):
            best[share], cheaper = cost, True
    return cheaper
