"""From the text that names a dataset to its splits."""

import difflib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fcompress.arguments.numbers import whole
from fcompress.data.examples import (
    OnDisk,
    Raw,
    Request,
    Rescaled,
    check_batch,
)
from fcompress.data.grouping import (
    Grouping,
    cut_groups,
    cut_official,
    grouping_again,
    grouping_of,
)
from fcompress.data.kinds import OWN, Dataset, datasets
from fcompress.data.preprocess import Preprocess, from_dict
from fcompress.data.record import check_record
from fcompress.data.splits import (
    OFFICIAL_TEST,
    OFFICIAL_TRAIN,
    ROLES,
    SEEN,
    SHARES,
    UNDIVIDED,
    Split,
    Splits,
    cut,
    of_test_sizes,
)
from fcompress.data.statistics import statistics_of
from fcompress.errors import DataError, shown
from fcompress.formats.limits import as_path
from fcompress.formats.places import real_path
from fcompress.models.provenance import origin_of

_OPTIONS = re.compile(r",([a-z]+)=([^,=]*)$")


def load_data(
    spec: str,
    *,
    root: Path | None = None,
    seed: int = 0,
    random_labels: int | None = None,
    roles: str = "all",
    like: Mapping[str, Any] | None = None,
    download: bool = False,
    preprocess: Preprocess | None = None,
    seen: str | None = None,
    groups: object = None,
) -> Splits:
    """Load a dataset and cut it into disjoint splits.

    Inputs are standardised per channel (per feature for vectors) with the statistics of the
    training split, or of the calibration split where there is no training split, or with those of
    `like`. ImageNet's are the published ones; Gaussian points are standard already.

    Args:
        spec: NAME[:ARGUMENT][,option=value ...]; `datasets()` lists them.
        root: Folder in which public datasets are looked for first, in torchvision's layout.
        seed: Decides the permutation that is cut; the same for every use of one network.
        random_labels: Seed of random labels: every label of the dataset, test set included, is
            drawn anew, uniformly and once (docs/protocol.md section 4). None keeps the true ones.
        roles: How a user's own data (folder, file) is cut: "all", or "compress" for the three
            splits that compression needs and none to train on.
        like: `info` of the data that the network at hand was trained on. Its statistics and its
            shape are used; and if this is the same data, it is cut in the same way, so that what
            the network was trained on never comes up for its certificate.
        preprocess: How the network sees images, for one that does not remember any data: their
            size, mean and deviation. None: as `like` says, or measured on the data.
        download: Fetch a missing public dataset.
        seen: "train" for a network that was, or may have been, trained on the dataset's official
            training split by others: search and certification examples then come from the official
            test split, and what remains of that is the test split (`splits.of_test_sizes`). "none"
            for one trained elsewhere: they come from the official training split, as without a
            word. Data without an official test split is cut the same in each case.
        groups: Which examples belong together: one name or number for each, in their order (of a
            public dataset the official training set's, then the official test set's), or what
            `grouping.read_groups` reads. Each group then lies in one split, and counts as one
            example wherever something is counted.

    Returns:
        The splits; those that do not exist are None.

    Raises:
        DataError: Unknown, missing or damaged data, too little of it, or of another shape.

    Example:
        >>> digits = load_data("digits")
        >>> {name: len(split) for name, split in digits.present().items()}
        {'train': 797, 'calibration': 300, 'search': 200, 'certification': 300, 'test': 200}
    """
    if roles not in SHARES:
        raise ValueError(f"roles={roles!r}: expected one of {', '.join(SHARES)}")
    if seen not in (None, *SEEN):
        raise ValueError(f"seen={seen!r}: expected one of {', '.join(SEEN)}, or None")
    seed = whole("seed", seed)
    root = None if root is None else as_path(root)
    if random_labels is not None:
        random_labels = whole("random_labels", random_labels)
    if like is not None:
        check_record(like)
    kind, argument, options = parse(spec)
    if kind.name in OWN and argument:
        argument = os.path.realpath(user_path(argument))
    if options.get("tokenizer"):
        options["tokenizer"] = os.path.realpath(user_path(options["tokenizer"]))
    shape = None if like is None else tuple(like["shape"])
    if preprocess is None and like is not None:
        preprocess = from_dict(like.get("preprocess"))
    request = Request(argument, options, root, download, roles, shape, preprocess)
    raw = _rescaled(kind.read(request), preprocess)
    sizes = None
    if like is not None:
        if raw.sha256 == like["sha256"]:
            _check_seen(like, seen, spec)
            if like.get("groups") or groups is not None:
                return reload_data(like, root=root, groups=groups)
            if not _same_cut(like, options, seed, roles):
                return reload_data(like, root=root)
            seen, sizes = like.get("seen"), like.get("sizes")
        if raw.examples.shape != shape:
            raise DataError(
                f"{spec}: examples of shape {list(raw.examples.shape)}, but the network was "
                f"trained on {list(shape or ())}; choose data of that shape"
            )
    how = _How(seed, random_labels, seen, grouping_of(raw, request, kind.name, groups), sizes)
    return _cut(raw, _written(kind, argument, options), request, how, like)


def reload_data(
    info: Mapping[str, Any], *, root: Path | None = None, groups: object = None
) -> Splits:
    """Load the data that an `info` describes, cut and standardised as it was then.

    Args:
        info: `Splits.info`, as a checkpoint keeps it.
        root: Where to look instead of the folder that was given then.
        groups: The groups that it was cut by then; None to read them where they were read then.

    Raises:
        DataError: It cannot be found, or is no longer the same data, or of the same groups.
    """
    check_record(info)
    kind, argument, options = parse(info["spec"])
    known_root = Path(info["root"]) if info["root"] else None
    preprocess = from_dict(info.get("preprocess"))
    request = Request(
        argument,
        options,
        root or known_root,
        roles=info["roles"],
        shape=tuple(info["shape"]),
        preprocess=preprocess,
    )
    raw = _rescaled(kind.read(request), preprocess)
    if raw.sha256 != info["sha256"]:
        raise DataError(
            f"{info['spec']} is not the data that the network remembers (sha256 "
            f"{raw.sha256[:12]}..., expected {info['sha256'][:12]}...); restore it or name other "
            "data by --data"
        )
    grouping = grouping_again(raw, request, kind.name, info, groups)
    how = _How(info["seed"], info["random_labels"], info.get("seen"), grouping, info.get("sizes"))
    return _cut(raw, info["spec"], request, how, info)


def remembered_data(model: nn.Module, *, root: Path | None = None, groups: object = None) -> Splits:
    """Load the data that a network remembers.

    Args:
        model: A network that `load` or `train` gave.
        root: As for `reload_data`.
        groups: The same.

    Raises:
        DataError: It remembers none, or `reload_data` cannot load it.
    """
    origin = origin_of(model)
    if not origin["data"]:
        raise DataError(
            "the network does not remember any data; give some (on the command line: --data)"
        )
    return reload_data(origin["data"], root=root, groups=groups)


def user_path(text: str) -> str:
    """A path as the user wrote it, `~` replaced where there is such a user."""
    # That of pathlib ends in an error where there is none.
    return os.path.expanduser(text)  # noqa: PTH111


def parse(spec: str) -> tuple[Dataset, str, dict[str, str]]:
    """Take a spec apart into the kind of dataset, its argument and its options.

    Raises:
        DataError: No such dataset or option, or an argument that is missing or too much.
    """
    known = datasets()
    if not isinstance(spec, str):
        raise DataError(
            f"{shown(spec)} is no dataset: expected a text such as 'digits' or 'folder:PATH'"
        )
    spec = spec.strip()
    name = re.split("[:,]", spec)[0]
    if name not in known:
        close = difflib.get_close_matches(name, known, 1)
        hint = f"; did you mean {known[close[0]].form}?" if close else ""
        forms = ", ".join(kind.form for kind in known.values())
        raise DataError(f"unknown dataset {name!r}: expected one of {forms}{hint}")
    kind = known[name]
    options: dict[str, str] = {}
    rest = spec
    while (match := _OPTIONS.search(rest)) is not None:
        if match[1] not in kind.options:
            if kind.name in OWN:
                break  # a path may hold commas itself
            has = ", ".join(kind.options) or "none"
            raise DataError(f"{name} has no option {match[1]!r}; it has: {has}")
        options = {match[1]: match[2], **options}
        rest = rest[: match.start()]
    argument = rest[len(name) + 1 :]
    if bool(argument) != (":" in kind.form):
        raise DataError(f"{spec}: expected {kind.form}")
    return kind, argument, options


def _written(kind: Dataset, argument: str, options: Mapping[str, str]) -> str:
    head = f"{kind.name}:{argument}" if argument else kind.name
    return head + "".join(f",{option}={value}" for option, value in sorted(options.items()))


def _same_cut(like: Mapping[str, Any], options: dict[str, str], seed: int, roles: str) -> bool:
    return (parse(like["spec"])[2], like["seed"], like["roles"]) == (options, seed, roles)


def _check_seen(like: Mapping[str, Any], seen: str | None, spec: str) -> None:
    """Refuse another word on what was seen than the network remembers."""
    remembered = like.get("seen") or "none"
    if seen is not None and seen != remembered:
        raise DataError(
            f"{spec}: seen={seen} (--seen), but the network remembers that this data was cut with "
            f"{remembered}; leave it out"
        )


@dataclass(frozen=True)
class _How:
    """How a dataset is cut; see `load_data`."""

    seed: int
    random_labels: int | None
    seen: str | None
    grouping: Grouping | None
    # Sizes of the splits when it was cut before.
    sizes: Mapping[str, int] | None = None


def _rows(raw: Raw, request: Request, how: _How, spec: str) -> tuple[dict[str, Tensor], set[str]]:
    """Rows of each split, and the names of those that are of the official test set."""
    if how.grouping is not None:
        return _rows_of_groups(raw, request, how, spec)
    pool = len(raw.examples) - raw.official_test
    rows = cut(pool, raw.sizes, how.seed)
    first = request.number("train", 0, least=1)
    if first:
        rows["train"] = _first(rows["train"], first, spec)
    if not raw.official_test:
        return rows, set()
    if how.seen == "train":
        pieces = cut(raw.official_test, of_test_sizes(raw.official_test, how.sizes), how.seed)
        rows |= {name: pool + piece for name, piece in pieces.items()}
        return rows, set(pieces)
    return {**rows, "test": torch.arange(pool, len(raw.examples))}, {"test"}


def _rows_of_groups(
    raw: Raw, request: Request, how: _How, spec: str
) -> tuple[dict[str, Tensor], set[str]]:
    """`_rows` where whole groups are cut."""
    assert how.grouping is not None
    if parse(spec)[0].name in OWN:
        return cut_groups(how.grouping, request.roles, how.seed), set()
    if "train" in request.options:
        raise DataError(
            f"{spec}: option train= takes single examples, and groups (--groups) are kept whole; "
            "leave one of them out"
        )
    pool, of_test = len(raw.examples) - raw.official_test, how.seen == "train"
    rows = cut_official(how.grouping, pool, raw.sizes, how.seed, of_test=of_test)
    if not raw.official_test:
        return rows, set()
    return rows, {"search", "certification", "test"} if of_test else {"test"}


def _cut(
    raw: Raw,
    spec: str,
    request: Request,
    how: _How,
    like: Mapping[str, Any] | None,
) -> Splits:
    check_batch(raw.examples.shape)
    rows, of_test = _rows(raw, request, how, spec)
    random_labels = how.random_labels
    labels = raw.labels if random_labels is None else _redrawn(raw, spec, random_labels)
    mean, std, source = statistics_of(raw, rows, like, request.preprocess)
    splits = {
        name: Split(
            name=name,
            examples=raw.examples,
            rows=chosen,
            labels=None if labels is None else labels[chosen],
            mean=torch.tensor(mean, dtype=torch.float32),
            std=torch.tensor(std, dtype=torch.float32),
            packing=raw.packing,
        )
        for name, chosen in rows.items()
    }
    info = {
        "spec": spec,
        "root": str(real_path(request.root)) if request.root else None,
        "seed": how.seed,
        "roles": request.roles,
        "random_labels": random_labels,
        "sha256": raw.sha256,
        "identified_by": raw.identified_by,
        "shape": list(raw.examples.shape),
        "classes": raw.classes,
        "class_names": list(raw.class_names),
        "sizes": {name: len(split) for name, split in splits.items()},
        "mean": mean,
        "std": std,
        "standardised_by": source,
        "augmentation": raw.examples.augmentation,
        "inputs": None if raw.packing is None else str(raw.packing),
        "seen": how.seen,
        "drawn_from": {name: _origin(raw, name in of_test) for name in splits},
    }
    if how.grouping is not None:
        info["groups"] = how.grouping.to_dict()
    if request.preprocess is not None:
        info["preprocess"] = request.preprocess.to_dict()
    return Splits(**{role: splits.get(role) for role in ROLES}, info=info)


def _origin(raw: Raw, of_test: bool) -> str:
    if not raw.official_test:
        return UNDIVIDED
    return OFFICIAL_TEST if of_test else OFFICIAL_TRAIN


def _first(rows: Tensor, count: int, spec: str) -> Tensor:
    """The first rows of the training split: of a permutation, so a random subset (`train=N`)."""
    if count > len(rows):
        raise DataError(
            f"{spec}: option train={count}, but the training split has {len(rows)} examples; take "
            "fewer, or leave the option out"
        )
    return rows[:count]


def _redrawn(raw: Raw, spec: str, seed: int) -> Tensor:
    if raw.labels is None or raw.classes is None:
        raise DataError(f"{spec} has no labels, so the number of random classes is not known")
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(raw.classes, raw.labels.shape, generator=generator)


def _rescaled(raw: Raw, preprocess: Preprocess | None) -> Raw:
    """The dataset with images as a network wants to see them."""
    if preprocess is None:
        return raw
    shape = raw.examples.shape
    if isinstance(raw.examples, OnDisk):
        examples = replace(
            raw.examples,
            preprocess=preprocess,
            size=preprocess.size or raw.examples.size,
            channels=preprocess.channels or raw.examples.channels,
        )
        return replace(raw, examples=examples)
    channels, size = preprocess.channels, preprocess.size
    wanted = (channels or shape[0], *(size or shape[1:])) if len(shape) == 3 else shape
    if wanted == shape:
        return raw
    if raw.examples.take(torch.arange(1)).dtype != torch.uint8 or shape[0] not in (1, 3):
        raise DataError(
            f"examples of shape {list(shape)} are no 8-bit images, which alone can be brought to "
            f"{list(wanted)}; bring data of that shape, or leave out --size and --transform"
        )
    made = Rescaled(raw.examples, (wanted[1], wanted[2]), wanted[0], preprocess)
    return replace(raw, examples=made, statistics=None)
