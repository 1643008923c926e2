"""The networks of `bench quality`: how each is trained, and the data that its methods see."""

import hashlib
import io
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fcompress
from benchmarks.rivals.base import Setting

BATCH = 64
SEED = 0
CLASSES = 10
# Examples by what a network costs, the same for all of its methods: as many as these multiply-
# adds allow, within bounds.
CALIBRATION_MACS, CALIBRATION_LEAST, CALIBRATION_MOST = 6e10, 1024, 8192
SEARCH_MACS, SEARCH_LEAST, SEARCH_MOST = 5e10, 1000, 2000
TEST_MACS, TEST_LEAST, TEST_MOST = 1e11, 3000, 10_000


@dataclass(frozen=True)
class Net:
    """One network of the comparison.

    Attributes:
        family: In the registry of fcompress.
        args: Of the family.
        data: What it is trained and measured on.
        epochs: Of training.
        size: Side of its images.
    """

    family: str
    args: dict[str, Any]
    data: str
    epochs: int
    size: int


def _fashion(family: str, **args: Any) -> Net:
    return Net(family, args, "fashion-mnist", 4, 28)


NETWORKS = {
    "mlp": _fashion("mlp", hidden=1024, depth=2),
    "alexnet": _fashion("alexnet", width=0.5),
    "resnet20": _fashion("resnet20"),
    "resnet56": _fashion("resnet56"),
    "vgg": _fashion("vgg"),
    "densenet": _fashion("densenet"),
    "mobilenet": _fashion("mobilenet"),
    "digits-mlp-4x": Net("mlp", {"width": 4.0}, "digits", 30, 8),
    "digits-resnet20-4x": Net("resnet20", {"width": 4.0}, "digits", 20, 8),
    "digits-alexnet-4x": Net("alexnet", {"width": 4.0}, "digits", 8, 8),
}
QUICK = ("mlp", "digits-mlp-4x", "digits-resnet20-4x")


@dataclass(frozen=True, eq=False)
class Case:
    """A trained network with the data of its comparison.

    Attributes:
        setting: What the methods get.
        search: Inputs of the search split in batches.
        test: Inputs and labels that only the chosen networks meet.
        search_labels: The wide network's labels, int64 [n].
        test_labels: The same on the test inputs.
        macs: Of the wide network.
        params: Of the wide network.
        accuracy: Of the wide network on the test inputs.
        facts: What identifies all this, plain values.
    """

    setting: Setting
    search: tuple[Tensor, ...]
    test: tuple[tuple[Tensor, Tensor], ...]
    search_labels: Tensor
    test_labels: Tensor
    macs: int
    params: int
    accuracy: float
    facts: dict[str, Any]


def trained(name: str, work: Path, root: Path | None) -> Path:
    """The network's file, trained first where it is missing (a killed training goes on)."""
    net, path = NETWORKS[name], work / f"{name}.pt"
    unfinished = path.with_name(path.name + ".resume").exists()
    if not path.exists() or unfinished:
        splits = fcompress.load_data(net.data, root=root)
        model = fcompress.build(
            net.family, in_channels=1, image_size=net.size, classes=CLASSES, **net.args
        )
        config = fcompress.default_config(net.family, epochs=net.epochs)
        fcompress.train(model, splits, config, out=path, resume=unfinished)
    return path


@lru_cache(maxsize=1)
def case_of(name: str, work: Path, root: Path | None) -> Case:
    """Load a trained network and its data; what the wide network says is kept in `work`."""
    path = trained(name, work, root)
    wide: Any = fcompress.load(path).eval()  # one of the registry
    wide.drop_training_parts()
    splits = fcompress.load_data(NETWORKS[name].data, root=root, like=wide.origin["data"])
    cost = fcompress.count(wide, next(splits.need("calibration").batches(2))[0])
    pool = [x for x, _ in splits.need("calibration").batches(BATCH)]
    wanted = _within(CALIBRATION_MACS / cost.macs, CALIBRATION_LEAST, CALIBRATION_MOST)
    batches = pool[: max(wanted // BATCH, 1)]
    most = _within(SEARCH_MACS / cost.macs, SEARCH_LEAST, SEARCH_MOST)
    search = tuple(x for x, _ in splits.need("search").batches(BATCH, limit=most))
    most = _within(TEST_MACS / cost.macs, TEST_LEAST, TEST_MOST)
    test = tuple(_test_batches(splits, most))
    facts = {
        "network": name,
        "checkpoint": hashlib.sha256(path.read_bytes()).hexdigest(),
        "calibration": sum(map(len, batches)),
        "pool": sum(map(len, pool)),
        "search": sum(map(len, search)),
        "test": sum(len(y) for _, y in test),
        "seed": SEED,
        **{k: v for k, v in asdict(NETWORKS[name]).items() if k != "size"},
    }
    answers = _remembered(work / f"{name}.answers.pt", wide, search, test, facts)
    found = torch.cat([y for _, y in test])
    structure = fcompress.find_groups(wide, batches[0][:4], seed=SEED)
    return Case(
        setting=Setting(wide, structure, batches, SEED, pool, search),
        search=search,
        test=test,
        search_labels=answers["search"],
        test_labels=answers["test"],
        macs=cost.macs,
        params=cost.params,
        accuracy=float((answers["test"] == found).double().mean()),
        facts=facts,
    )


def labels_of(model: nn.Module, batches: Sequence[Tensor], classes: int = CLASSES) -> Tensor:
    """The label of each example, int64 [n]; -1 where an output is not finite.

    Raises:
        ValueError: The network does not give one score for each class.
    """
    found = []
    with torch.no_grad():
        for batch in batches:
            scores = model(batch)
            if scores.shape != (len(batch), classes):
                raise ValueError(f"outputs {list(scores.shape)}, not [{len(batch)}, {classes}]")
            found.append(torch.where(scores.isfinite().all(1), scores.argmax(1), -1))
    return torch.cat(found)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that is either there as a whole or not at all."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_bytes(content)
    part.replace(path)


def _remembered(
    path: Path,
    wide: nn.Module,
    search: tuple[Tensor, ...],
    test: tuple[tuple[Tensor, Tensor], ...],
    facts: dict[str, Any],
) -> dict[str, Tensor]:
    """The wide network's labels on both splits, computed once for all methods."""
    if path.exists():
        saved = torch.load(path, weights_only=True)
        if saved["facts"] == facts:
            return saved
    inputs = tuple(x for x, _ in test)
    saved = {"search": labels_of(wide, search), "test": labels_of(wide, inputs), "facts": facts}
    content = io.BytesIO()
    torch.save(saved, content)
    write_whole(path, content.getvalue())
    return saved


def _test_batches(splits: fcompress.Splits, most: int) -> list[tuple[Tensor, Tensor]]:
    """The test split; with the certification split, which nothing else reads here, if small."""
    names = ("test",) if len(splits.need("test")) >= TEST_LEAST else ("test", "certification")
    batches = (b for name in names for b in splits.need(name).batches(BATCH, limit=most))
    return [(x, y) for x, y in batches if y is not None]


def _within(value: float, least: int, most: int) -> int:
    return int(min(max(value, least), most))
