"""How each label fares, in rows and words that fit on one screen."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from fcompress.forward.answers.asked import IN_PARTS

# For annotations only: the command line shows its help without torch.
if TYPE_CHECKING:
    from fcompress.certify.per_label import ByLabel, LabelFare

ALL = 20  # so many labels are all shown
FREQUENT = 10  # of more tokens, those that the original gives in most examples
WORST = 5  # of more, those with the largest share of changes
_ALONE = "at most"


def rounded_up(share: float) -> str:
    """A bound in percent that claims no more than is proven; two digits where it is small."""
    digits = 1 if share >= 0.01 else 2
    scale = 10 ** (digits + 2)
    # The last 1e-9 are rounding of the bound itself: a tolerance of 5% is no 5.1%.
    return f"{math.ceil(scale * share - 1e-9) / scale:.{digits}%}"


def promise_lines(found: ByLabel | None) -> Iterator[str]:
    """What is promised of every label, if anything is."""
    promise = None if found is None else found.promise
    if found is None or promise is None:
        return
    which = f"each of the {promise.labels:,} {plural(found)}"
    if found.kind == "sigmoid":
        which = f"each of the {promise.labels:,} answers (yes or no of a label)"
    if promise.too_few:
        which += " with enough examples"
    yield (
        f"At most {100 * promise.tolerance:g}% of {which} may change, for all of them at once with "
        f"{promise.confidence:.0%} confidence: every one passed a test of its own at that level."
    )


def plural(found: ByLabel) -> str:
    """What labels are called."""
    return "classes" if found.word == "class" else f"{found.word}s"


def headings(found: ByLabel) -> tuple[str, ...]:
    """Of `label_rows`."""
    if found.kind in IN_PARTS:
        return (found.word, "examples", "draws changed", _ALONE, "positions changed", "IoU")
    return (found.word, "examples", "changed", "share", _ALONE)


def label_rows(found: ByLabel) -> Iterator[tuple[str, ...]]:
    """A row for each label, in order; of many only the worst, of tokens the most frequent."""
    if len(found.labels) <= ALL:
        shown: Sequence[LabelFare] = found.labels
    elif found.kind == "tokens":
        shown = found.most_frequent()[:FREQUENT]
    else:
        shown = found.worst()[:WORST]
    for one in shown:
        yield _row(one)


def _row(one: LabelFare) -> tuple[str, ...]:
    name = str(one.label) if one.side is None else f"{one.label} {one.side}"
    counts = (name, f"{one.n:,}", f"{one.changed:,}")
    bound = rounded_up(one.bound)
    if one.iou is None:
        return (*counts, f"{one.share:.1%}", bound)
    return (*counts, bound, f"{one.share:.1%}", f"{one.iou:.3f}")


def label_lines(found: ByLabel) -> Iterator[str]:
    """What belongs under the rows."""
    shown, many = len(found.labels), plural(found)
    if shown > ALL:
        untouched = sum(not one.share for one in found.labels)
        if found.kind == "tokens":
            yield _tokens_line(found, untouched)
        else:
            yield (
                f"The {WORST} that changed most of {shown:,} {many}; of {untouched:,} nothing "
                "changed. --json has all of them."
            )
    if found.never:
        yield f"{found.never:,} more {many} are given by the original to none of the examples."
    yield (
        f'"{_ALONE}" holds with {found.confidence:.0%} confidence for one {found.word} alone, not '
        "for all at once."
    )
    if found.kind in IN_PARTS:
        yield (
            f"An example counts for each {found.word} that the original gives in it, by one "
            f"position of that {found.word}, drawn."
        )
    if found.kind != "tokens":
        for one in found.vanished[:WORST]:
            yield f"The compressed network never gives {one.name}."
    elif found.vanished:
        yield (
            f"The compressed network never gives {len(found.vanished):,} of the {many}; the "
            f"original gives the most frequent of them in {found.vanished[0].n:,} examples."
        )


def _tokens_line(found: ByLabel, untouched: int) -> str:
    """Of thousands of tokens, most of which are rare."""
    every = sum(one.positions or 0 for one in found.labels)
    frequent, rest = found.most_frequent()[:FREQUENT], found.most_frequent()[FREQUENT:]
    share = sum(one.positions or 0 for one in frequent) / every
    others = sum(one.positions or 0 for one in rest)
    lost = sum((one.positions or 0) * one.share for one in rest) / others
    return (
        f"The {FREQUENT} most frequent of {len(found.labels):,} tokens, at {share:.0%} of all "
        f"positions; at those of the others {lost:.1%} changed, and of {untouched:,} tokens "
        "nothing did. --json has all of them."
    )
