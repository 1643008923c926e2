"""Training: a checkpoint an epoch, a resume that loses nothing (docs/protocol.md section 4)."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fcompress.checkpoints import checkpoint
from fcompress.data import Split, Splits
from fcompress.errors import DataError, FcompressError, TrainingError, shown
from fcompress.formats.limits import as_path
from fcompress.formats.places import real_path
from fcompress.forward.copying import deep_copy
from fcompress.forward.running import device_of, runs_on
from fcompress.models import Network, Spec, families
from fcompress.showing.display import watched
from fcompress.showing.progress import Progress, Report
from fcompress.showing.results import Keeping
from fcompress.training.config import TrainConfig, learning_rate
from fcompress.training.resume import damaged, read_resume, restore, resume_file, write_resume

# Inception-v3's auxiliary head (Szegedy et al., "Rethinking the Inception Architecture").
AUX_WEIGHT = 0.4
MOMENTUM = 0.9


@dataclass(frozen=True)
class EpochRecord:
    """What one epoch did.

    Attributes:
        epoch: 1 for the first.
        lr: Learning rate at its start.
        loss: Mean over the training examples, each at the step that used it.
        train_accuracy: Share of training examples labelled right at the step that used them.
        test_accuracy: Share of the test split labelled right after the epoch; None without one.
        seconds: How long it took, the test included.
    """

    epoch: int
    lr: float
    loss: float
    train_accuracy: float
    test_accuracy: float | None
    seconds: float

    def line(self, epochs: int) -> str:
        """One line for a log, of so many epochs."""
        test = "" if self.test_accuracy is None else f", test {self.test_accuracy:.2%}"
        return (
            f"epoch {self.epoch}/{epochs}: loss {self.loss:.3f}, accuracy "
            f"{self.train_accuracy:.2%}{test} ({self.seconds:.1f} s)"
        )


@dataclass(frozen=True, repr=False)
class TrainResult(Keeping):
    """A trained network and how it came about.

    Attributes:
        model: The trained network, on the CPU, in evaluation mode.
        config: How it was trained.
        epochs: One record an epoch, those before a resume included.
        data: `Splits.info` of the data.
        path: Where the checkpoint is, if one was wanted.
    """

    model: nn.Module
    config: TrainConfig
    epochs: tuple[EpochRecord, ...]
    data: dict[str, Any]
    path: Path | None

    @property
    def test_accuracy(self) -> float | None:
        """Test accuracy of the trained network."""
        return self.epochs[-1].test_accuracy

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values of everything but the weights."""
        return {
            "config": asdict(self.config),
            "epochs": [asdict(record) for record in self.epochs],
            "test_accuracy": self.test_accuracy,
            "seconds": sum(record.seconds for record in self.epochs),
            "data": self.data,
            "path": None if self.path is None else str(self.path),
        }


def train(
    model: nn.Module,
    splits: Splits,
    config: TrainConfig,
    *,
    out: Path | None = None,
    resume: bool = False,
    progress: Report | bool | None = None,
) -> TrainResult:
    """Fit a copy of a network to the training split.

    After each epoch the checkpoint `out` is replaced, and beside it, until training is complete,
    lies `out.resume` with all that is needed to go on. Shuffling, augmentation and dropout are
    functions of the seed and the epoch alone, so that a resumed run ends with the same weights
    as one that was never interrupted (on the same machine).

    Args:
        model: Maps [N, *shape] to logits [N, classes], or, in training mode, to a pair of logits
            and auxiliary logits. It is left as it is.
        splits: Data with a labelled training split.
        config: How to train.
        out: File for the checkpoint; None keeps everything in memory.
        resume: Continue from `out.resume`; from the start if nothing was saved yet.
        progress: Told after every step, and with a line after every epoch; or as for `shrink`.

    Returns:
        The trained copy and its record.

    Raises:
        TrainingError: The loss is no longer finite (the last good checkpoint stays), the data
            cannot be trained on, or there is nothing to resume, or something else than asked for.

    Example:
        >>> from fcompress import build, default_config, load_data
        >>> config = default_config("mlp", epochs=1, device="cpu")
        >>> digits = load_data("digits")
        >>> result = train(build("mlp", in_features=64, classes=10), digits, config)
        >>> len(result.epochs), result.test_accuracy > 0.5
        (1, True)
    """
    for given, kind, what in (
        (model, nn.Module, "a torch.nn.Module to train"),
        (splits, Splits, "splits, as of load_data"),
        (config, TrainConfig, "a TrainConfig"),
    ):
        if not isinstance(given, kind):
            raise TrainingError(f"{shown(given)}: expected {what}")
    out = None if out is None else as_path(out)
    data = trainable(splits, config)
    if isinstance(model, Network):
        check_fits(model.spec, splits.info)
    device = device_of(config.device)
    if out is not None:
        _check_can_save(model, out)
    run = _run(model, splits, config)
    state = None if out is None else read_resume(out, run, resume)
    earlier = list(model.origin.get("history", [])) if isinstance(model, Network) else []
    model = deep_copy(model).to(device).train()
    optimizer = _optimizer(model, config)
    records: list[EpochRecord] = []
    if out is not None and state is not None:
        try:
            done = restore(out, state, model, optimizer)
            records = [EpochRecord(**record) for record in done]
        except TypeError as error:
            raise damaged(out) from error
        # The run may have been killed after it wrote this state and before its checkpoint.
        remember(model, splits, earlier, config, records)
        checkpoint.save(model, out)
    with _own_random_state(device), watched(progress) as report:
        while len(records) < config.epochs:
            record = _epoch(model, optimizer, data, splits.test, config, out, report, records)
            records.append(record)
            remember(model, splits, earlier, config, records)
            if out is not None:
                state = {
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "epochs": [asdict(record) for record in records],
                }
                write_resume(out, run, state)
                checkpoint.save(model, out)
            line = record.line(config.epochs)
            report(Progress("training", len(records), config.epochs, "epochs", line))
    if out is not None:
        resume_file(out).unlink(missing_ok=True)
    return TrainResult(model.cpu().eval(), config, tuple(records), dict(splits.info), out)


def fitting(
    family: str, info: Mapping[str, Any], given: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The arguments that make a network of a family fit the data that `Splits.info` describes.

    Args:
        family: Name of the family.
        info: Of the data.
        given: Further arguments, from the user.

    Returns:
        Those that the data asks for, and the given ones.

    Raises:
        DataError: The data has no labels.
        FcompressError: The family labels images, and the examples are none; or what was given
            contradicts the data or is no argument of a family.
    """
    given = dict(given or {})
    for name in ("family", "seed"):
        if name in given:
            raise FcompressError(f"{name} is no argument of a network family; leave it out of them")
    args = {**_asked_by(family, info), **given}
    known = families().get(family)
    if known is not None:
        check_fits(Spec(family, known.resolve(args)), info)
    return args


def check_fits(spec: Spec, info: Mapping[str, Any]) -> None:
    """See that a network of the registry can be trained on data.

    Args:
        spec: How it was built.
        info: Of the data.

    Raises:
        FcompressError: It takes other inputs, or has too few outputs.
    """
    wanted, shape = spec.input_shape, tuple(info["shape"])
    alike = wanted == shape if len(wanted) == len(shape) == 3 else prod(wanted) == prod(shape)
    if not alike:
        raise FcompressError(
            f"{spec.family} takes examples of shape {list(wanted)}, but those of {info['spec']} "
            f"have {list(shape)}; leave out the arguments of the shape, or take other data"
        )
    classes = info["classes"]
    if classes is not None and spec.args["classes"] < classes:
        raise FcompressError(
            f"{spec.family} has {spec.args['classes']} outputs, but {info['spec']} has {classes} "
            "classes; leave out classes, or take other data"
        )


def _asked_by(family: str, info: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that the data asks for."""
    if info["classes"] is None:
        raise DataError(f"{info['spec']} has no labels; training needs labelled examples")
    shape = info["shape"]
    if len(shape) == 3:
        height, width = shape[1:]
        size = height if height == width else [height, width]
        return {"in_channels": shape[0], "image_size": size, "classes": info["classes"]}
    known = families().get(family)
    if known is not None and "in_features" not in known.arguments:
        raise FcompressError(
            f"{family} labels images, but the examples of {info['spec']} have the shape {shape}; "
            "take mlp, or other data"
        )
    return {"in_features": prod(shape), "classes": info["classes"]}


@torch.no_grad()
def accuracy(model: nn.Module, split: Split) -> float:
    """Share of a labelled split that the network labels right, in evaluation mode.

    The network is on one device, and comes back in the mode it was in.
    """
    assert split.labels is not None
    was_training = model.training
    device = next(model.parameters()).device
    model.eval()
    try:
        right = 0
        for positions in torch.arange(len(split)).split(256):
            inputs, labels = split.batch(positions, device=device)
            right += int((model(inputs).argmax(1) == labels).sum())
        return right / len(split)
    finally:
        model.train(was_training)


def _epoch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    data: Split,
    test: Split | None,
    config: TrainConfig,
    out: Path | None,
    report: Report,
    before: list[EpochRecord],
) -> EpochRecord:
    started = time.perf_counter()
    epoch = len(before)
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(epoch_seed(config.seed, epoch, "data"))
    _seed_dropout(device, epoch_seed(config.seed, epoch, "dropout"))
    steps = steps_of(len(data), config.batch_size, generator)
    loss_sum, right, seen = 0.0, 0, 0
    for step, positions in enumerate(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, epoch + step / len(steps))
        inputs, labels = data.batch(
            positions, augment=generator if config.augment else None, device=device
        )
        assert labels is not None
        loss, step_right = _step(model, optimizer, inputs, labels, config)
        if not math.isfinite(loss):
            raise diverged(
                f"the loss is {loss} at step {step + 1} of epoch {epoch + 1}", out, epoch
            )
        seen += len(labels)
        loss_sum += loss * len(labels)
        right += step_right
        stage = (
            f"epoch {epoch + 1}/{config.epochs}: loss {loss_sum / seen:.3f}, "
            f"accuracy {right / seen:.1%}"
        )
        done = epoch * len(steps) + step + 1
        report(Progress(stage, done, config.epochs * len(steps), "steps"))
    if not all(bool(torch.isfinite(tensor).all()) for tensor in model.state_dict().values()):
        raise diverged(f"weights are not finite after epoch {epoch + 1}", out, epoch)
    return EpochRecord(
        epoch=epoch + 1,
        lr=learning_rate(config, epoch),
        loss=loss_sum / seen,
        train_accuracy=right / seen,
        test_accuracy=accuracy(model, test) if test is not None and test.has_labels else None,
        seconds=time.perf_counter() - started,
    )


def _step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    inputs: Tensor,
    labels: Tensor,
    config: TrainConfig,
) -> tuple[float, int]:
    """One step of descent; returns the loss and how many labels were right before it."""
    with runs_on(inputs):
        try:
            output = model(inputs)
            logits, aux_logits = output if isinstance(output, tuple) else (output, None)
            loss = F.cross_entropy(logits, labels)
            total = loss
            if aux_logits is not None:
                total = loss + AUX_WEIGHT * F.cross_entropy(aux_logits, labels)
            optimizer.zero_grad(set_to_none=True)
            total.backward()
            optimizer.step()
            return float(total.detach()), int((logits.detach().argmax(1) == labels).sum())
        except torch.OutOfMemoryError as error:
            raise TrainingError(
                f"the GPU has too little memory for batches of {config.batch_size}; take smaller "
                "ones or device cpu"
            ) from error


def diverged(what: str, out: Path | None, epochs_done: int) -> TrainingError:
    """The error of a loss or weight (`what`) that is no longer finite."""
    kept = "nothing was written"
    if out is not None:
        resume_file(out).unlink(missing_ok=True)  # resumed, it would diverge again
        if epochs_done:
            kept = f"{out} keeps the network after epoch {epochs_done}"
    return TrainingError(f"training diverged: {what}; {kept}; take a smaller learning rate")


def steps_of(count: int, size: int, generator: torch.Generator) -> list[Tensor]:
    """The positions of each step's examples: every example once, in random order."""
    steps = list(torch.randperm(count, generator=generator).split(size))
    if len(steps) > 1 and len(steps[-1]) == 1:
        # Batch norm cannot normalise a batch of one.
        steps[-2:] = [torch.cat(steps[-2:])]
    return steps


def trainable(splits: Splits, config: TrainConfig) -> Split:
    """The training split.

    Raises:
        TrainingError: There is none, or it cannot be trained on as `config` says.
    """
    spec = splits.info["spec"]
    if splits.train is None or not splits.train.has_labels:
        lack = "training split" if splits.train is None else "labels"
        raise TrainingError(f"{spec} has no {lack}; training needs labelled examples")
    if len(splits.train) < 2:
        raise TrainingError(f"{spec} has one training example; training needs at least two")
    if config.augment and not splits.train.examples.augmentation:
        raise TrainingError(
            f"{spec} cannot be augmented: its examples are no images; train without augmentation"
        )
    return splits.train


def _optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if config.optimizer == "adam":
        return torch.optim.Adam(groups, lr=config.lr)
    if config.optimizer == "rmsprop":
        return torch.optim.RMSprop(groups, lr=config.lr, alpha=0.9, momentum=MOMENTUM)
    momentum = MOMENTUM if config.optimizer == "momentum" else 0.0
    return torch.optim.SGD(groups, lr=config.lr, momentum=momentum)


def epoch_seed(seed: int, epoch: int, purpose: str) -> int:
    """A seed for one purpose in one epoch; hashed, so that neighbours are unrelated."""
    digest = hashlib.sha256(f"{seed} {epoch} {purpose}".encode()).digest()
    return int.from_bytes(digest[:7], "big")


def _seed_dropout(device: torch.device, seed: int) -> None:
    # torch.manual_seed would also reset the generators of GPUs that are not ours.
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)


@contextmanager
def _own_random_state(device: torch.device) -> Iterator[None]:
    """Let dropout draw from a private state; leave the caller's as it was."""
    cuda = device.type == "cuda"
    number = torch.cuda.current_device() if cuda and device.index is None else device.index
    devices = [number] if cuda else []
    repeatable = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True)
    with torch.random.fork_rng(devices=devices), repeatable:
        yield


def _run(model: nn.Module, splits: Splits, config: TrainConfig) -> dict[str, Any]:
    """What a run must have in common with the one that it continues, in plain values."""
    settings = asdict(config)
    del settings["device"]
    spec = getattr(model, "spec", None)
    network = {"network": None} if spec is None else {"network": spec.family, **spec.args}
    data = {key: splits.info[key] for key in ("sha256", "seed", "roles", "random_labels")}
    return {
        **settings,
        **network,
        "data": splits.info["spec"],
        **{f"data {key}": value for key, value in data.items()},
    }


def _check_can_save(model: nn.Module, out: Path) -> None:
    """Find out before the first epoch, not after it, that nothing could be written."""
    if not isinstance(model, Network):
        raise TrainingError(
            f"a {type(model).__name__} has no file format here: train it without a file and save "
            "its state_dict with torch.save, or build it with fcompress.models.build"
        )
    if out.is_dir() or not real_path(out).parent.is_dir():
        raise TrainingError(f"cannot write {out}: expected a file in a folder that exists")


def remember(
    model: nn.Module,
    splits: Splits,
    earlier: list[Any],
    config: TrainConfig,
    records: list[EpochRecord],
) -> None:
    """Let a network of the registry know its data and what was done to it."""
    if isinstance(model, Network):
        done = {
            "action": "train",
            "config": asdict(config),
            "epochs": [asdict(record) for record in records],
        }
        model.origin = {"data": splits.info, "history": [*earlier, done]}
