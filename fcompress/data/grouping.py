"""Examples that belong together (a video, a patient, a speaker), kept in one split.

The bound of a certificate rests on independent examples, and examples of one group are not. So a
group lies in one split as a whole, and wherever something is counted it stands with one example,
drawn without a look at any network. What is counted then is one independent trial a group, as
without groups; `drawn` is where a bound that uses all examples of a group would begin.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fcompress.data.examples import Raw, Request
from fcompress.data.splits import SHARES, of_test_sizes, official_sizes, own_sizes
from fcompress.errors import DataError, code_of_users, said_by
from fcompress.formats.places import real_path

# Roles in which all examples of a group are of use, since nothing is counted there.
WHOLE = ("train", "calibration")
FEWEST = 2  # groups in each split
MOST_BYTES = 1 << 30


@dataclass(frozen=True, eq=False)
class Grouping:
    """Which group each example is of.

    Attributes:
        codes: [N], int64: groups are numbered from 0 in the order in which they come up.
        count: How many groups there are.
        source: The file or array that said so, or None.
    """

    codes: Tensor
    count: int
    source: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values that identify it."""
        digest = hashlib.sha256(self.codes.numpy().tobytes()).hexdigest()
        return {
            "from": self.source,
            "groups": self.count,
            "examples": len(self.codes),
            "sha256": digest,
        }


def grouped(groups: object, examples: int, source: str | None = None) -> Grouping:
    """Number the groups of examples.

    Args:
        groups: A sequence, array or tensor of one name or number for each example.
        examples: How many examples there are.
        source: Where the groups are from, for errors.

    Raises:
        DataError: Not one group for each example, one without a group, or a single group.
    """
    where = f"groups{f' of {source}' if source else ''}"
    if isinstance(groups, Tensor):
        groups = groups.detach().cpu().numpy()
    if isinstance(groups, np.ndarray):
        if groups.ndim != 1:
            raise DataError(f"{where}: an array of shape {list(groups.shape)}; expected [examples]")
        groups = groups.tolist()
    if isinstance(groups, str | bytes) or not isinstance(groups, Iterable):
        raise DataError(
            f"{where}: {type(groups).__name__}; expected one group for each example in their order"
        )
    with code_of_users(lambda error: DataError(f"{where} cannot be read: {said_by(error)}")):
        names = list(groups)
    if len(names) != examples:
        raise DataError(
            f"{where}: {len(names):,} for {examples:,} examples; expected one for each, in the "
            "data's order"
        )
    numbers: dict[Any, int] = {}
    codes = []
    for row, name in enumerate(names):
        if isinstance(name, Tensor | np.generic):
            name = name.item()
        # A NaN is no name: it is not even the same as itself.
        if name is None or name == "" or name != name:
            raise DataError(f"{where}: example {row} has none; give each example a group")
        try:
            codes.append(numbers.setdefault(name, len(numbers)))
        except TypeError as error:
            raise DataError(
                f"{where}: example {row} has a {type(name).__name__}; expected names or numbers"
            ) from error
    if len(numbers) < 2:
        raise DataError(
            f"{where}: all {examples:,} examples are of one group, which counts as one example; "
            "bring data of some hundreds of groups, or leave out the groups if they are none"
        )
    return Grouping(torch.tensor(codes, dtype=torch.int64), len(numbers), source)


def grouping_of(raw: Raw, request: Request, kind: str, groups: object) -> Grouping | None:
    """The groups that a user gave for a dataset.

    Args:
        raw: The dataset.
        request: What was asked for.
        kind: Its kind, the word before the colon.
        groups: What `read_groups` reads, or one group for each example; None for no groups.

    Raises:
        DataError: They do not fit the data.
    """
    if groups is None:
        return None
    if isinstance(groups, str | Path):
        data = request.argument if kind == "file" else ""
        return read_groups(str(groups), len(raw.examples), data)
    return grouped(groups, len(raw.examples))


def grouping_again(
    raw: Raw, request: Request, kind: str, info: Mapping[str, Any], groups: object
) -> Grouping | None:
    """The groups by which a dataset was cut before.

    Args:
        raw: The dataset.
        request: What was asked for.
        kind: Its kind, the word before the colon.
        info: What is remembered of it (`Splits.info`).
        groups: As for `grouping_of`; None to read them where they were read then.

    Raises:
        DataError: They are others, or cannot be had.
    """
    known = info.get("groups")
    if known is None:
        if groups is not None:
            raise DataError(
                f"{info['spec']} was cut without groups when the network was made, so that "
                "examples of one group are in several splits; make it with the groups (--groups)"
            )
        return None
    if groups is None and known["from"] is None:
        raise DataError(
            f"{info['spec']} was cut by groups that were given in Python; give them again (groups)"
        )
    found = grouping_of(raw, request, kind, known["from"] if groups is None else groups)
    if found is None or found.to_dict()["sha256"] != known["sha256"]:
        raise DataError(
            f"{info['spec']}: other groups than those that it was cut by; give the same again"
        )
    return found


def read_groups(source: str, examples: int, data: str = "") -> Grouping:
    """The groups that a user named on the command line.

    Args:
        source: A text file with a group a line, in the data's order; a .csv with one column, or
            FILE.csv:COLUMN (a first line names columns); a .npy; or the name of an array in
            the .npz that holds the data.
        examples: How many examples there are.
        data: Path of the data's own file, if it is one.

    Raises:
        DataError: No such file or array, one that cannot be read, or as for `grouped`.
    """
    path, column = Path(source).expanduser(), None
    head, _, tail = source.rpartition(":")
    if not path.is_file() and head.lower().endswith(".csv"):
        path, column = Path(head).expanduser(), tail
    if path.is_file():
        named = str(real_path(path)) + (f":{column}" if column else "")
        return grouped(_from_file(path, column, examples), examples, named)
    if Path(data).suffix == ".npz":
        with np.load(data, allow_pickle=False) as arrays:
            if source in arrays:
                try:
                    return grouped(arrays[source], examples, source)
                except ValueError as error:
                    raise DataError(
                        f"groups {source} of {data}: an array of objects; save names or numbers"
                    ) from error
            raise DataError(
                f"groups {source}: neither a file nor an array of {data}, which has "
                f"{', '.join(sorted(arrays)[:20])}"
            )
    raise DataError(
        f"groups {source}: there is no such file; expected a text file with a group a line, or, "
        "where the data is an .npz, the name of an array in it"
    )


def _from_file(path: Path, column: str | None, examples: int) -> Any:
    if path.stat().st_size > MOST_BYTES:
        raise DataError(f"groups of {path}: more than {MOST_BYTES:,} bytes; expected one line each")
    try:
        if path.suffix == ".npy":
            return np.load(path, allow_pickle=False)
        with path.open(encoding="utf-8-sig", newline="") as file:
            if path.suffix.lower() == ".csv":
                return _column(path, list(csv.reader(file)), column, examples)
            return [line.strip() for line in file.read().splitlines()]
    except (UnicodeDecodeError, ValueError, OSError, EOFError, csv.Error) as error:
        raise DataError(
            f"groups of {path} cannot be read ({error}); expected text in UTF-8, a group a line"
        ) from error


def _column(path: Path, rows: list[list[str]], column: str | None, examples: int) -> list[str]:
    rows = [row for row in rows if row]
    width = max((len(row) for row in rows), default=0)
    if column is not None:
        if not rows or column not in rows[0]:
            names = ", ".join(rows[0][:20]) if rows else "none"
            raise DataError(f"groups of {path}: no column {column!r}; it has {names}")
        chosen, rows = rows[0].index(column), rows[1:]
    elif width > 1:
        raise DataError(f"groups of {path}: {width} columns; say which, as in {path}:{rows[0][-1]}")
    else:
        chosen = 0
        rows = rows[1:] if len(rows) == examples + 1 else rows
    return [row[chosen].strip() if len(row) > chosen else "" for row in rows]


def cut_groups(grouping: Grouping, roles: str, seed: int) -> dict[str, Tensor]:
    """Rows of each split, every group in one of them only.

    Groups are cut by a seeded permutation into the shares of `splits.own_sizes`. Of the training
    and the calibration split all examples are in; of the others one of each group.

    Args:
        grouping: The groups.
        roles: "all" or "compress".
        seed: Decides both permutation and draws.

    Returns:
        Name -> rows, int64.

    Raises:
        DataError: There are too few groups.
    """
    sizes = own_sizes(grouping.count, roles)
    if min(sizes.values()) < FEWEST:
        share = SHARES[roles]["certification"]
        raise DataError(f"{_too_few(grouping, sizes)}, of which {share:.0%} are; bring more")
    return _cut_into(grouping, sizes, seed)


def _too_few(grouping: Grouping, sizes: Mapping[str, int]) -> str:
    return (
        f"{grouping.count} groups are too few to cut into {', '.join(sizes)}: a group counts as "
        "one example. A tolerance of 5% takes at least 59 groups in the certification split"
    )


def _cut_into(grouping: Grouping, sizes: Mapping[str, int], seed: int) -> dict[str, Tensor]:
    """`cut_groups` for so many groups in each split, all of them together."""
    if min(sizes.values()) < FEWEST:
        raise DataError(f"{_too_few(grouping, sizes)}; bring more")
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(grouping.count, generator=generator)
    single = drawn(grouping, seed)
    rows = {}
    for name, groups in zip(sizes, order.split(list(sizes.values())), strict=True):
        if name in WHOLE:
            every = torch.isin(grouping.codes, groups).nonzero()[:, 0]
            # Those of one group would lie together, and the first so many be of few groups.
            rows[name] = every[torch.randperm(len(every), generator=generator)]
        else:
            rows[name] = single[groups]
    return rows


def cut_official(
    grouping: Grouping, pool: int, sizes: Mapping[str, int], seed: int, *, of_test: bool
) -> dict[str, Tensor]:
    """`cut_groups` of a named dataset, whose last examples may be an official test set.

    Args:
        grouping: The groups of all examples.
        pool: Examples before the official test set, if there is one.
        sizes: Of the splits that the pool is cut into, in examples.
        seed: As for `cut_groups`.
        of_test: Whether search and certification examples are of the official test set
            (`splits.of_test_sizes`).

    Raises:
        DataError: There are too few groups, or one lies on both sides of the official division.
    """
    before, after = _part(grouping, 0, pool), _part(grouping, pool, len(grouping.codes))
    if not len(after.codes):
        return _cut_into(before, _shared(before.count, sizes), seed)
    both = int(torch.isin(after.codes.unique(), before.codes.unique()).sum())
    if both:
        raise DataError(
            f"groups: {both:,} of them have examples in both the official training and the "
            "official test split, which are not cut anew; bring the data as folder: or file:"
        )
    before, after = _renumbered(before), _renumbered(after)
    held = official_sizes(before.count, "certification" in sizes)
    rows = _cut_into(before, held, seed)
    tested = of_test_sizes(after.count) if of_test else {"test": after.count}
    return rows | {name: pool + one for name, one in _cut_into(after, tested, seed).items()}


def _part(grouping: Grouping, start: int, stop: int) -> Grouping:
    codes = grouping.codes[start:stop]
    return Grouping(codes, len(codes.unique()), grouping.source)


def _renumbered(grouping: Grouping) -> Grouping:
    _, codes = grouping.codes.unique(return_inverse=True)
    return Grouping(codes, grouping.count, grouping.source)


def _shared(groups: int, sizes: Mapping[str, int]) -> dict[str, int]:
    """So many groups in the shares of sizes: name -> groups, all of them together."""
    bounds, total = [0], 0
    for size in sizes.values():
        total += size
        bounds.append(round(groups * total / sum(sizes.values())))
    return {name: bounds[i + 1] - bounds[i] for i, name in enumerate(sizes)}


def drawn(grouping: Grouping, seed: int) -> Tensor:
    """One example of each group, every one of it as likely: [groups], int64, rows of the data."""
    # Another stream than the permutation's, whose first numbers would come up again.
    digest = hashlib.sha256(f"one of each group {seed}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    sizes = torch.bincount(grouping.codes, minlength=grouping.count)
    by_group = torch.argsort(grouping.codes, stable=True)
    share = torch.rand(grouping.count, generator=generator, dtype=torch.float64)
    offset = (share * sizes).long().clamp(max=sizes - 1)
    return by_group[sizes.cumsum(0) - sizes + offset]
