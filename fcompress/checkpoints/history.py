"""What a file says was done to its network, checked when it is read.

A history is a list of plain values, oldest first, and anybody may write in it. Entries that
fcompress writes itself decide how answers are read, what an export promises and what `show` says
is certified; so each field of theirs that is there must be of its kind. Other entries are kept and
never read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fcompress.arguments.numbers import LARGEST
from fcompress.data.record import check_record
from fcompress.errors import CheckpointError, DataError
from fcompress.formats.schema import (
    Kind,
    either,
    flag,
    listed,
    named,
    number,
    optional,
    problem,
    table,
    text,
    whole,
)
from fcompress.forward.answers.asked import Asked

_WORD = text(1_000)
_VERSIONS = named(_WORD, most=100)
_SHARE = number(0, 1)
_SIZES = table({"before": whole(), "after": whole()})


def _known(**fields: Kind) -> Kind:
    """A table of which any field may be missing; what else it holds is not looked at."""
    return table({}, optionals=fields)


_ANSWER = table(
    {"kind": text(100)},
    optionals={
        "within": optional(either(number(above=0), text(100), listed(number(above=0), 1))),
        "cosine": optional(number(above=-1, below=1)),
        "score": optional(number(0, below=1)),
        "iou": optional(number(above=0, below=1)),
        "threshold": optional(number(above=-1, below=1)),
        "pad": optional(whole()),
    },
)
_AGREEMENT = _known(
    n=whole(1),
    same=number(0),
    rate=_SHARE,
    lower_bound=_SHARE,
    confidence=number(above=0, below=1),
    largest_difference=optional(number(0)),
    mean_difference=optional(number(0)),
    labels=_WORD,
    positions=optional(_SHARE),
    deviation=optional(number(0)),
    empty=whole(),
    answer=optional(_ANSWER),
    warnings=listed(text()),
)
_EPOCH = _known(
    epoch=whole(1),
    lr=number(0),
    loss=number(),
    train_accuracy=_SHARE,
    test_accuracy=optional(_SHARE),
    seconds=number(0),
)
# Entries by their action.
_ENTRIES = {
    "train": _known(
        config=named(either(number(), text(), flag())), epochs=listed(_EPOCH, 1, 1_000_000)
    ),
    "shrink": _known(
        method=_WORD,
        objective=_WORD,
        certified=flag(),
        void=_WORD,
        tolerance=optional(number(0, 1)),
        tol_label=optional(number(0, 1)),
        agreement=_AGREEMENT,
        params=_SIZES,
        macs=_SIZES,
        output=optional(either(whole(-LARGEST), _WORD)),
        seed=whole(),
        versions=_VERSIONS,
        certificate=_known(
            compressed=optional(_WORD), original=optional(_WORD), data=optional(_WORD)
        ),
    ),
}


def check_history(history: Sequence[Any], versions: object) -> None:
    """See that what fcompress reads of a history is of the right kind.

    Args:
        history: Plain values, oldest first, as in a file.
        versions: Versions of the programs that wrote the file.

    Raises:
        CheckpointError: A field is damaged; names the entry, the field and what was expected.

    Example:
        >>> check_history([{"action": "shrink", "tolerance": "5%"}], {})
        Traceback (most recent call last):
            ...
        fcompress.errors.CheckpointError: history[0].tolerance = '5%'; expected a finite number \
from 0 to 1, or nothing; the file is damaged
    """
    found = problem(versions, _VERSIONS, "versions")
    for number_, entry in enumerate(history):
        found = found or _wrong(entry, f"history[{number_}]")
    if found is not None:
        raise CheckpointError(f"{found}; the file is damaged")


def _wrong(entry: Any, where: str) -> str | None:
    """What is wrong with one entry, in words."""
    action = entry.get("action") if isinstance(entry, Mapping) else None
    kind = _ENTRIES.get(action) if isinstance(action, str) else None
    if kind is None:
        return None
    return problem(entry, kind, where) or _contradiction(entry, where)


def _contradiction(entry: Mapping[str, Any], where: str) -> str | None:
    """What does not fit the rest of an entry, each field of which is of its kind."""
    data = entry.get("data") or {}
    # Of data of a user's own, whose spec is None, nothing is ever read.
    own = isinstance(data, Mapping) and data.get("spec", "") is None
    try:
        check_record({} if own else data, complete=False)
    except DataError as error:
        return f"{where}: {error}"
    agreement = entry.get("agreement", {})
    if agreement.get("same", 0) > agreement.get("n", LARGEST):
        return f"{where}.agreement: {agreement['same']} of {agreement['n']} answers are the same"
    answer = agreement.get("answer")
    if answer is None:
        return None
    within = answer.get("within")
    try:
        Asked(
            answer["kind"],
            tuple(within) if isinstance(within, list) else within,
            **{name: answer.get(name) for name in ("cosine", "score", "iou", "threshold", "pad")},
        )
    except ValueError as error:
        return f"{where}.agreement.answer: {error}"
    return None
