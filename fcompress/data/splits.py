"""Named splits that cannot share an example, and batches out of them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fcompress.data.examples import Examples
from fcompress.data.packing import Packing
from fcompress.errors import DataError

ROLES = ("train", "calibration", "search", "certification", "test")
HOLDOUT = {"calibration": 8192, "search": 2000, "certification": 2000}
# A small stand-in in ImageNet's layout still leaves most of its images to training.
HOLDOUT_SHARE = {"calibration": 0.2, "search": 0.1, "certification": 0.1}
# What an official test set gives away where it has to certify. Of 10,000 images, 5,000 allow 0.76%
# changed labels at a tolerance of 1%, where 2,000 allow 0.6%; how many are used, work decides.
TEST_SHARE = {"search": 0.3, "certification": 0.5}
SEEN = ("train", "none")
# Where the examples of a split come from, in words.
OFFICIAL_TRAIN, OFFICIAL_TEST = "official training split", "official test split"
UNDIVIDED = "the data"
SHARES = {
    "all": {
        "train": 0.4,
        "calibration": 0.2,
        "search": 0.1,
        "certification": 0.15,
        "test": 0.15,
    },
    "compress": {"calibration": 0.5, "search": 0.2, "certification": 0.3},
}


def cut(count: int, sizes: Mapping[str, int], seed: int) -> dict[str, Tensor]:
    """Cut one random permutation of 0 ... count - 1 into consecutive named pieces.

    No two pieces can share an index, whatever the sizes: each index occurs once in the
    permutation.

    Args:
        count: How many examples there are.
        sizes: Name -> size of each piece, in order; at most `count` together.
        seed: Decides the permutation.

    Returns:
        Name -> [size], int64.

    Raises:
        DataError: A piece would be empty, or there are not enough examples.
    """
    if sum(sizes.values()) > count or min(sizes.values(), default=1) < 1:
        wanted = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise DataError(
            f"{count} examples are too few for the splits ({wanted}): each split needs at "
            "least one example of its own; bring more examples"
        )
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    rest = count - sum(sizes.values())
    pieces = order.split([*sizes.values(), rest])
    return dict(zip(sizes, pieces, strict=False))


def official_sizes(pool: int, holdout: bool) -> dict[str, int]:
    """Sizes of the splits that an official training set of `pool` examples is cut into.

    Calibration 8,192, search 2,000, certification 2,000 (at most 20, 10 and 10% of the set), the
    rest for training; without `holdout` everything is for training.
    """
    if not holdout:
        return {"train": pool}
    held = {role: min(n, int(HOLDOUT_SHARE[role] * pool)) for role, n in HOLDOUT.items()}
    return {"train": pool - sum(held.values()), **held}


def of_test_sizes(count: int, known: Mapping[str, int] | None = None) -> dict[str, int]:
    """Sizes of search, certification and test where an official test set has to give all three.

    30% for the search, 50% for the certificate, the rest stays the test split.

    Args:
        count: Examples of the official test set.
        known: Sizes into which the same data was cut before, by any version; taken if they fit.

    Example:
        >>> of_test_sizes(10_000)
        {'search': 3000, 'certification': 5000, 'test': 2000}
    """
    taken = {role: int(share * count) for role, share in TEST_SHARE.items()}
    sizes = {**taken, "test": count - sum(taken.values())}
    before = {role: (known or {}).get(role, 0) for role in sizes}
    return before if sum(before.values()) == count and min(before.values()) else sizes


def own_sizes(count: int, roles: str) -> dict[str, int]:
    """Sizes of the splits of a user's own `count` examples.

    Args:
        count: Number of examples.
        roles: "all" (train 40%, calibration 20%, search 10%, certification 15%, test 15%) or
            "compress" (calibration 50%, search 20%, certification 30%).
    """
    bounds, total = [0], 0.0
    for share in SHARES[roles].values():
        total += share
        bounds.append(round(total * count))
    return {role: bounds[i + 1] - bounds[i] for i, role in enumerate(SHARES[roles])}


@dataclass(frozen=True, eq=False)
class Split:
    """Some examples of a dataset, standardised when they are handed out.

    Attributes:
        name: One of `ROLES`.
        examples: The whole dataset, shared by all splits.
        rows: [n], int64: which of the examples are in this split, in the split's order.
        labels: [n], int64, or None.
        mean: [C] (images), [D] (vectors) or [1], float32, in raw values.
        std: The standard deviations belonging to `mean`.
        packing: How several inputs lie in one example; None for a single one.
    """

    name: str
    examples: Examples
    rows: Tensor
    labels: Tensor | None
    mean: Tensor
    std: Tensor
    packing: Packing | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def has_labels(self) -> bool:
        """Whether batches come with labels."""
        return self.labels is not None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one example: [C, H, W] for images, [D] for vectors."""
        return self.examples.shape

    def batch(
        self,
        positions: Tensor,
        *,
        augment: torch.Generator | None = None,
        device: torch.device | str = "cpu",
    ) -> tuple[Tensor, Tensor | None]:
        """Take chosen examples out.

        Args:
            positions: [b], int64, positions within this split.
            augment: Draws the random augmentation; None for the examples as they are.
            device: Where the batch is wanted; bytes travel there before they become floats.

        Returns:
            Inputs [b, *shape], float32 and standardised; labels [b], int64, or None. Integer
            values of a `raw` tensor file stay what they are.
        """
        values = self.examples.take(self.rows[positions], augment).to(device)
        labels = None if self.labels is None else self.labels[positions].to(device)
        return standardised(values, self.mean, self.std), labels

    def batches(
        self, size: int = 256, limit: int | None = None
    ) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Go through the split once, in its own order, which is the same each time.

        Args:
            size: Examples a batch; the last batch may be smaller.
            limit: Stop after that many examples (a random subset: the order is a permutation).

        Yields:
            Inputs [b, *shape], float32, standardised; labels [b], int64, or None.
        """
        count = len(self) if limit is None else min(limit, len(self))
        for start in range(0, count, size):
            yield self.batch(torch.arange(start, min(start + size, count)))


def standardised(values: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Bring [b, C, H, W] or [b, D] to mean 0 and standard deviation 1 per channel or feature.

    An empty `mean` means that the values are the network's own business: they are returned as
    they are.
    """
    if not len(mean):
        return values
    shape = [-1] + [1] * (values.dim() - 2)
    mean, std = (t.to(values.device).view(shape) for t in (mean, std))
    return (values.to(torch.float32) - mean) / std


@dataclass(frozen=True, eq=False)
class Splits:
    """A dataset in disjoint parts, each for one purpose.

    Attributes:
        train: What the network is fitted to.
        calibration: Unlabelled statistics for compression.
        search: What the amount of compression is chosen on.
        certification: Touched once, for the certificate.
        test: Accuracy for the reader's information.
        info: Identity of the data in plain values; `reload_data(info)` cuts the same again.
            Keys: spec, root, seed, roles, random_labels, sha256, identified_by, shape, classes,
            class_names, sizes, mean, std, standardised_by, augmentation, seen (what the network was
            said to have been trained on, None if nothing was said), drawn_from (where the examples
            of each split come from, in words), inputs (names, shapes and types of several, or
            None), and groups where it was cut by groups.
    """

    train: Split | None
    calibration: Split | None
    search: Split | None
    certification: Split | None
    test: Split | None
    info: dict[str, Any]

    def present(self) -> dict[str, Split]:
        """The splits that exist, by name."""
        splits = {role: getattr(self, role) for role in ROLES}
        return {role: split for role, split in splits.items() if split is not None}

    @property
    def packing(self) -> Packing | None:
        """How several inputs lie in one example; None for a single one."""
        return next((split.packing for split in self.present().values()), None)

    def need(self, role: str) -> Split:
        """Return a split.

        Raises:
            DataError: This dataset was cut without it.
        """
        split = self.present().get(role)
        if split is None:
            raise DataError(
                f"{self.info['spec']} has no {role} split (it has "
                f"{', '.join(self.present())}); choose other data or leave out holdout=0"
            )
        return split
