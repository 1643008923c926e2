"""The record of its data that a network carries (`Splits.info`), checked before it is used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fcompress.data.preprocess import from_dict
from fcompress.data.splits import SHARES
from fcompress.errors import DataError
from fcompress.formats.schema import (
    listed,
    named,
    number,
    one_of,
    optional,
    problem,
    table,
    text,
    whole,
)

# Numbers for each feature of a vector; more than any example in use has.
_MOST_FEATURES = 10_000_000
_LARGEST_SIDE = 2**31 - 1
# What is needed to load the data again.
NEEDED = {
    "spec": text(least=1),
    "root": optional(text(least=1)),
    "seed": whole(),
    "roles": one_of(SHARES),
    "random_labels": optional(whole()),
    "sha256": text(least=1),
    "shape": listed(whole(1, _LARGEST_SIDE), most=16),
    "mean": listed(number(), most=_MOST_FEATURES),
    "std": listed(number(above=0), most=_MOST_FEATURES),
    "standardised_by": text(),
}
# What tells something about it.
TOLD = {
    "identified_by": text(),
    "classes": optional(whole(1)),
    "class_names": listed(text(), most=1_000_000),
    "sizes": named(whole()),
    "augmentation": text(),
}


def check_record(info: object, *, complete: bool = True) -> None:
    """See that a record says what it must, each thing of the right kind.

    Args:
        info: As `Splits.info`, out of a file or from the user.
        complete: Whether all must be there that loading the data again takes.

    Raises:
        DataError: It does not; names the field, what was expected and what to do.

    Example:
        >>> check_record({"spec": 3}, complete=False)
        Traceback (most recent call last):
            ...
        fcompress.errors.DataError: the record of the data: spec = 3; expected a text; name the \
data again by --data, or restore the file
    """
    kind = table(NEEDED, optionals=TOLD, whole=complete)
    found = problem(info, kind, "the record")
    if found is None and isinstance(info, Mapping):
        found = _contradiction(info)
    if found is not None:
        raise DataError(
            f"the record of the data: {found.removeprefix('the record.')}; name the data again by "
            "--data, or restore the file"
        )


def _contradiction(info: Mapping[str, Any]) -> str | None:
    """What does not fit the rest of a record, each field of which is of its kind."""
    from_dict(info.get("preprocess"))
    mean, std, shape = (info.get(key) for key in ("mean", "std", "shape"))
    if mean is None or std is None:
        return None
    lengths = {0, 1} if not shape else {0, 1, shape[0]}
    if len(mean) != len(std) or len(mean) not in lengths:
        return (
            f"mean and std hold {len(mean)} and {len(std)} numbers for examples of shape "
            f"{list(shape or ())}; expected as many of both, one for each channel or feature"
        )
    return None
