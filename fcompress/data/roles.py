"""Data for compression in three disjoint roles: calibration, search, certification."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fcompress.data import Batches, Split, Splits, as_batches
from fcompress.data.examples import sha256_of
from fcompress.data.grouping import Grouping, cut_groups, drawn, grouped
from fcompress.data.packing import Packing
from fcompress.data.splits import cut, own_sizes
from fcompress.errors import DataError, code_of_users, said_by

BATCH = 64
WIDE_BATCH = 256
MOST_BYTES = 2 << 30


@dataclass(frozen=True)
class Examples:
    """Examples of one role, read again whenever they are iterated over.

    Attributes:
        inputs: [N, ...] in memory, or None.
        labels: [N], or None.
        split: What to read batches from instead, or None.
        keep: bool [N], which of the examples count; None for all.
    """

    inputs: Tensor | None
    labels: Tensor | None
    split: Split | None = None
    keep: Tensor | None = None

    def __len__(self) -> int:
        if self.keep is not None:
            return int(self.keep.sum())
        return len(self.split) if self.split is not None else len(self._held)

    @property
    def _held(self) -> Tensor:
        assert self.inputs is not None
        return self.inputs

    def only(self, keep: Tensor) -> Examples:
        """Some of these examples, still read batch by batch; `keep` is bool [N], N before."""
        assert self.keep is None
        return replace(self, keep=keep)

    def most(self, count: int) -> Examples:
        """The first `count` of these examples, all if there are fewer; no more are read."""
        if count >= len(self):
            return self
        rows = len(self.split) if self.split is not None else len(self._held)
        keep = torch.ones(rows, dtype=torch.bool) if self.keep is None else self.keep
        return replace(self, keep=keep & (keep.cumsum(0) <= count))

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        start = 0
        last = None
        if self.keep is not None:
            last = int(self.keep.nonzero().max()) if self.keep.any() else -1
        for inputs, labels in self._batches():
            if self.keep is not None and last is not None:
                chosen = self.keep[start : start + len(inputs)]
                start += len(inputs)
                inputs, labels = inputs[chosen], None if labels is None else labels[chosen]
            if len(inputs):
                yield inputs, labels
            if last is not None and start > last:
                return

    def _batches(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        if self.split is not None:
            yield from self.split.batches(WIDE_BATCH)
            return
        for start in range(0, len(self._held), WIDE_BATCH):
            part = slice(start, start + WIDE_BATCH)
            yield self._held[part], None if self.labels is None else self.labels[part]

    def first(self, count: int) -> Tensor:
        """The first `count` inputs, or all if there are fewer: [n, ...]."""
        found: list[Tensor] = []
        for inputs, _ in self:
            found.append(inputs)
            if sum(len(f) for f in found) >= count:
                break
        return torch.cat(found)[:count]


@dataclass(frozen=True)
class Roles:
    """The three roles, and a test set where there is one.

    Attributes:
        calibration: What statistics are taken from.
        search: What the amount is searched on.
        certification: What the certificate rests on; nothing else reads it.
        test: What nothing but the final report reads, or None.
        info: Identity of the data, plain values.
        packing: How several inputs lie in one tensor; None for a single input.
        unlabelled: Further inputs that nothing but distillation reads; nothing is chosen on them.
    """

    calibration: Examples
    search: Examples
    certification: Examples
    test: Examples | None
    info: dict[str, Any]
    packing: Packing | None = None
    unlabelled: tuple[Examples, ...] = ()


def with_further(roles: Roles, data: object, more: object = None) -> Roles:
    """Roles with further inputs to distil on, whose labels nothing looks at.

    Args:
        roles: Of `data`; not changed.
        data: As for `roles_of`. Of named splits the training split is taken, where there is one.
        more: Other data, like `data` or as `as_batches` takes it; of named splits all are taken.

    Raises:
        DataError: The further inputs are not like those of the data, or are the data itself.
    """
    found = []
    if isinstance(data, Splits) and data.train is not None:
        found.append(Examples(None, None, data.train))
    if isinstance(more, Splits):
        if more.info["sha256"] == roles.info["sha256"]:
            raise DataError(
                "the further data to distil on is the data itself, certification examples "
                "included; give other data, or leave it out"
            )
        found += [Examples(None, None, split) for split in more.present().values()]
    elif more is not None:
        batches = as_batches(more)
        inputs, _, _ = _gather(batches)
        if batches.packing != roles.packing:
            raise DataError(
                f"the further data to distil on has inputs {batches.packing or 'of one tensor'}, "
                f"but the data has {roles.packing or 'one tensor'}; give inputs of the same names"
            )
        found.append(Examples(inputs, None))
    example = roles.calibration.first(1)
    for examples in found:
        one = examples.first(1)
        if one.shape != example.shape or one.is_floating_point() != example.is_floating_point():
            raise DataError(
                f"further examples to distil on of shape {list(one.shape[1:])}, but those of the "
                f"data are {list(example.shape[1:])}; give inputs like those of the data"
            )
    return replace(roles, unlabelled=tuple(found))


def roles_of(data: object, *, seed: int = 0, groups: object = None) -> Roles:
    """Bring what a user hands over into roles.

    Named splits are taken as they are. Anything else (`data.as_batches` lists the kinds) is read
    once into memory, up to 2 GiB of inputs (`info["complete"]` says whether that was all), and cut
    by one seeded permutation: half for calibration, a fifth for the search, the rest for the
    certificate. So it does not matter if it would come out otherwise at a second pass, which
    `info["repeats"]` says as far as its first batch shows.

    Args:
        data: `Splits`, or batches of inputs or of (inputs, labels).
        seed: Decides the permutation.
        groups: Which group each example is of (`grouping.grouped`), in the data's order; of a
            DataLoader that reads by number, in the order of its dataset. None for no groups.

    Raises:
        DataError: A split that is needed does not exist, there are too few examples or groups, or
            the groups do not fit the examples.
    """
    if isinstance(data, Splits):
        if groups is not None:
            raise DataError(
                "groups belong to the cutting of splits: give them to load_data(..., groups=)"
            )
        held = {
            name: Examples(None, None, data.need(name))
            for name in ("calibration", "search", "certification")
        }
        test = None if data.test is None else Examples(None, None, data.test)
        return Roles(
            calibration=held["calibration"],
            search=held["search"],
            certification=held["certification"],
            test=test,
            info=dict(data.info),
            packing=data.packing,
        )
    batches = as_batches(data)
    inputs, labels, complete = _gather(batches)
    sizes = own_sizes(len(inputs), "compress")
    if min(sizes.values()) < 2:
        raise DataError(
            f"{len(inputs)} examples are too few to calibrate, search and certify on; "
            "bring at least 20, and some hundreds for a useful bound"
        )
    grouping = None if groups is None else _in_order(groups, batches, len(inputs))
    if grouping is None:
        pieces = cut(len(inputs), sizes, seed)
    else:
        pieces = cut_groups(grouping, "compress", seed)
        sizes = {name: len(rows) for name, rows in pieces.items()}
    info = {
        "spec": None,
        "complete": complete,
        "repeats": batches.repeats(),
        "drawn_again": batches.again,
        "sha256": sha256_of([inputs, labels]),
        "seed": seed,
        "sizes": sizes,
        "shape": list(inputs.shape[1:]) if batches.packing is None else str(batches.packing),
    }
    if grouping is not None:
        info["groups"] = grouping.to_dict()
    held = {
        name: Examples(inputs[rows], None if labels is None else labels[rows])
        for name, rows in pieces.items()
    }
    return Roles(
        calibration=held["calibration"],
        search=held["search"],
        certification=held["certification"],
        test=None,
        info=info,
        packing=batches.packing,
    )


def uncertified(roles: Roles) -> Roles:
    """The same roles without a certification example, for what must not meet them."""
    return replace(roles, certification=Examples(torch.empty(0), None))


def gallery_apart(roles: Roles, share: int = 4, most: int = 1024) -> tuple[Roles, Examples]:
    """Set a part of the calibration examples aside, which nothing else then reads.

    Args:
        roles: The roles; not changed.
        share: One of so many calibration examples is taken.
        most: But no more than so many.

    Returns:
        The same roles with fewer calibration examples, and those that were taken.
    """
    taken = torch.arange(len(roles.calibration)) % share == 0
    taken &= taken.cumsum(0) <= most
    rest = replace(roles, calibration=roles.calibration.only(~taken))
    return rest, roles.calibration.only(taken)


def one_of_each(batches: Batches, groups: object, *, seed: int = 0) -> None:
    """Let one example of each group come out of batches, drawn by the seed.

    Args:
        batches: Changed; that groups and examples are as many is seen when they are read.
        groups: As for `roles_of`.
        seed: Of the draws.

    Raises:
        DataError: They are no groups.
    """
    found = _in_order(groups, batches, None)
    batches.keep = torch.zeros(len(found.codes), dtype=torch.bool)
    batches.keep[drawn(found, seed)] = True


def _in_order(groups: object, batches: Batches, count: int | None) -> Grouping:
    """The groups of examples in the order in which these come; `count` of them, if known."""
    order = batches.order
    if order is not None:
        codes = grouped(groups, batches.examples).codes
        return grouped(codes[torch.tensor(order[:count])], len(order[:count]))
    if count is None:
        if not isinstance(groups, Sized):
            with code_of_users(lambda error: DataError(f"groups cannot be read: {said_by(error)}")):
                groups = list(groups) if isinstance(groups, Iterable) else []
        count = len(groups)
    return grouped(groups, count)


def _gather(batches: Any) -> tuple[Tensor, Tensor | None, bool]:
    """Inputs and labels in memory, up to `MOST_BYTES`, and whether that is all of the data."""
    inputs: list[Tensor] = []
    labels: list[Tensor] = []
    size = 0
    complete = True
    for x, y in batches:
        if not len(x):
            continue
        if size >= MOST_BYTES:
            complete = False
            break
        inputs.append(x.detach().cpu())
        if y is not None:
            labels.append(y.detach().cpu())
        size += x.numel() * x.element_size()
    if not inputs:
        raise DataError("the data holds no example; expected at least 20")
    if len({x.shape[1:] for x in inputs}) > 1:
        shapes = sorted({str(list(x.shape[1:])) for x in inputs})
        raise DataError(f"examples of different shapes: {', '.join(shapes)}; expected one shape")
    whole = torch.cat(inputs)
    known = torch.cat(labels) if sum(len(y) for y in labels) == len(whole) else None
    return whole, known, complete


def batches_of(inputs: Tensor, size: int = BATCH) -> Sequence[Tensor]:
    """Inputs [N, ...] in batches of `size`."""
    return list(inputs.split(size))
