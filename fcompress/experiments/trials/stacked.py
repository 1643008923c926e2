"""Many small MLPs of one shape, trained as one batched program on stacked parameters.

One network of 32 units on batches of 128 keeps a processor busy with the calling of operators
rather than with arithmetic. Here every operator works on all networks at once, and what comes
out is, to rounding, what `fcompress.train` gives for each of them.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fcompress.data import Split, Splits
from fcompress.errors import TrainingError
from fcompress.experiments.trials.stacked_weights import (
    Dense,
    FirstLayer,
    Rule,
    Spanned,
    Stream,
    finite,
)
from fcompress.forward.copying import deep_copy
from fcompress.forward.running import device_of
from fcompress.models import Network
from fcompress.models.mlp import MLP
from fcompress.training.config import TrainConfig, learning_rate
from fcompress.training.loop import (
    MOMENTUM,
    EpochRecord,
    TrainResult,
    accuracy,
    diverged,
    epoch_seed,
    remember,
    steps_of,
    trainable,
)

OWN_SETTINGS = ("seed", "lr")  # that networks of one stack may differ in


@dataclass(frozen=True)
class Run:
    """One network to train, as `fcompress.train` takes it.

    Attributes:
        model: Of the family mlp; it is left as it is.
        splits: Data with a labelled training split. Runs that share one object share its memory.
        config: How to train.
    """

    model: Network
    splits: Splits
    config: TrainConfig


def train_stacked(
    runs: Sequence[Run], progress: Callable[[int], object] = lambda epochs: None
) -> list[TrainResult | TrainingError]:
    """Train several MLPs of one shape at once, each as `fcompress.train` would.

    Shuffling, learning rates and the mathematics of the optimizer are those of `train`; only the
    order of summation differs. Each epoch's `seconds` is the network's share of the stack's. The
    test accuracy is measured after the last epoch only; the records before have None.

    Args:
        runs: They have the sizes of all layers, the number of training examples and all settings
            but `OWN_SETTINGS` in common; data and initial weights are each network's own.
        progress: Called with the number of epochs done after each.

    Returns:
        For each run its trained network, on the CPU; or, where the loss or a weight was no longer
        finite, the error that `train` raises. That disturbs none of the others.

    Raises:
        TrainingError: The runs cannot be stacked, or some data cannot be trained on.
    """
    if not runs:
        return []
    splits = [trainable(run.splits, run.config) for run in runs]
    _check_alike(runs, splits)
    order = sorted(range(len(runs)), key=lambda i: _stream_key(runs[i]))
    stack = _Stack([runs[i] for i in order], [splits[i] for i in order])
    for epoch in range(runs[0].config.epochs):
        stack.epoch()
        progress(epoch + 1)
    results = dict(zip(order, stack.results(), strict=True))
    return [results[i] for i in range(len(runs))]


class _Stack:
    """All networks in training; those of one stream lie side by side."""

    def __init__(self, runs: Sequence[Run], splits: Sequence[Split]) -> None:
        self._runs = runs
        self._config = runs[0].config
        self._device = device_of(self._config.device)
        self._records: list[list[EpochRecord]] = [[] for _ in runs]
        self._errors: list[TrainingError | None] = [None] * len(runs)
        names = [name for name, _ in runs[0].model.named_parameters()]
        moved: dict[int, Tensor] = {}  # a parameter that several runs start from, once

        def start(run: Run, name: str) -> Tensor:
            parameter = run.model.get_parameter(name)
            if id(parameter) not in moved:
                moved[id(parameter)] = parameter.detach().to(self._device)
            return moved[id(parameter)]

        # The first weight is on its own: what it reads is the data, which networks share.
        self._name, *self._names = names
        weights = [start(run, self._name) for run in runs]
        self._streams = _streams(runs, splits, weights[0])
        self._first = _first_layer(weights, self._streams, self._config)
        self._tensors = [torch.stack([start(run, name) for run in runs]) for name in self._names]
        self._rules = [
            Rule(self._config.optimizer, self._config.weight_decay if tensor.dim() > 2 else 0.0)
            for tensor in self._tensors
        ]

    def epoch(self) -> None:
        """Go through the training examples once."""
        started = time.perf_counter()
        epoch = len(self._records[0])
        batches = list(zip(*(self._order(stream, epoch) for stream in self._streams), strict=True))
        losses, rights = [], []
        for number, batch in enumerate(batches):
            done = epoch + number / len(batches)
            rates = [learning_rate(run.config, done) for run in self._runs]
            loss, right = self._step(batch, torch.tensor(rates, dtype=torch.float64))
            losses.append(loss)
            rights.append(right)
        sizes = torch.tensor([len(batch[0]) for batch in batches], dtype=torch.float64)
        self._note_divergence(epoch, torch.stack(losses).cpu())
        mean_loss = (torch.stack(losses).cpu().double().T @ sizes) / sizes.sum()
        share_right = torch.stack(rights).sum(0).cpu() / sizes.sum()
        seconds = (time.perf_counter() - started) / len(self._runs)
        for i, run in enumerate(self._runs):
            self._records[i].append(
                EpochRecord(
                    epoch=epoch + 1,
                    lr=learning_rate(run.config, epoch),
                    loss=float(mean_loss[i]),
                    train_accuracy=float(share_right[i]),
                    test_accuracy=None,
                    seconds=seconds,
                )
            )

    def _order(self, stream: Stream, epoch: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(epoch_seed(stream.seed, epoch, "data"))
        steps = steps_of(len(stream.inputs), self._config.batch_size, generator)
        return [positions.to(self._device) for positions in steps]

    def _step(self, batch: Sequence[Tensor], rates: Tensor) -> tuple[Tensor, Tensor]:
        """One step of descent of all; each network's loss and right labels before it, [N]."""
        labels = torch.cat(
            [
                stream.labels[rows].expand(stream.count, -1)
                for stream, rows in zip(self._streams, batch, strict=True)
            ]
        )
        first = self._first.outputs(batch).requires_grad_()
        tensors = [tensor.requires_grad_() for tensor in self._tensors]
        with torch.enable_grad():
            bias, *deeper = tensors
            logits = first + bias.unsqueeze(1)
            for weight, bias in zip(deeper[::2], deeper[1::2], strict=True):
                logits = torch.baddbmm(bias.unsqueeze(1), logits.relu(), weight.transpose(1, 2))
            each = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
            losses = each.view_as(labels).mean(1)
            slope, *slopes = torch.autograd.grad(losses.sum(), [first, *tensors])
        with torch.no_grad():
            rates = rates.to(first)
            self._first.step(batch, slope, rates)
            for tensor, rule, gradient in zip(tensors, self._rules, slopes, strict=True):
                rule.step(tensor, gradient, rates)
        return losses.detach(), (logits.detach().argmax(2) == labels).sum(1)

    def _note_divergence(self, epoch: int, losses: Tensor) -> None:
        """Keep the error of each network that went wrong in this epoch; `losses` [steps, N]."""
        sound = self._first.finite()
        for tensor in self._tensors:
            sound = sound & finite(tensor)
        for i in range(len(self._runs)):
            if self._errors[i] is not None:
                continue
            strange = (~losses[:, i].isfinite()).nonzero()
            if len(strange):
                step = int(strange[0])
                where = f"at step {step + 1} of epoch {epoch + 1}"
                self._errors[i] = diverged(f"the loss is {float(losses[step, i])} {where}", None, 0)
            elif not sound[i]:
                what = f"weights are not finite after epoch {epoch + 1}"
                self._errors[i] = diverged(what, None, 0)

    def results(self) -> list[TrainResult | TrainingError]:
        """What became of each network."""
        return [error or self._result(i) for i, error in enumerate(self._errors)]

    @torch.no_grad()
    def _result(self, i: int) -> TrainResult:
        run = self._runs[i]
        model = deep_copy(run.model).eval()
        model.get_parameter(self._name).copy_(self._first.weight(i))
        for name, tensor in zip(self._names, self._tensors, strict=True):
            model.get_parameter(name).copy_(tensor[i])
        records = self._records[i]
        test = run.splits.test
        if test is not None and test.has_labels:
            records[-1] = replace(records[-1], test_accuracy=accuracy(model, test))
        earlier = list(model.origin.get("history", []))
        remember(model, run.splits, earlier, run.config, records)
        return TrainResult(model, run.config, tuple(records), dict(run.splits.info), None)


def _streams(runs: Sequence[Run], splits: Sequence[Split], weight: Tensor) -> list[Stream]:
    """Who sees what; `weight` says where, and in which dtype."""
    data: dict[int, tuple[Tensor, Tensor]] = {}
    streams = []
    for (key, seed), group in groupby(range(len(runs)), lambda i: _stream_key(runs[i])):
        members = list(group)
        if key not in data:
            inputs, labels = splits[members[0]].batch(torch.arange(len(splits[members[0]])))
            assert labels is not None
            data[key] = inputs.flatten(1).to(weight), labels.to(weight.device)
        streams.append(Stream(slice(members[0], members[-1] + 1), *data[key], seed))
    return streams


def _stream_key(run: Run) -> tuple[int, int]:
    return id(run.splits), run.config.seed


def _first_layer(
    weights: Sequence[Tensor], streams: Sequence[Stream], config: TrainConfig
) -> FirstLayer:
    """The cheaper form of the first layers that is right for the optimizer."""
    examples, features = streams[0].inputs.shape
    linear = config.optimizer in ("sgd", "momentum") and not config.weight_decay
    if linear and examples < features:
        return Spanned(weights, streams, MOMENTUM if config.optimizer == "momentum" else 0.0)
    return Dense(weights, streams, Rule(config.optimizer, config.weight_decay))


def _check_alike(runs: Sequence[Run], splits: Sequence[Split]) -> None:
    """Networks, amounts of data and settings must be of one kind."""

    def kind(i: int) -> dict[str, Any]:
        model = runs[i].model
        if not isinstance(model, MLP):
            raise TrainingError(
                f"stacked training is for networks of the family mlp; run {i} has a "
                f"{type(model).__name__}: use fcompress.train"
            )
        settings = {k: v for k, v in asdict(runs[i].config).items() if k not in OWN_SETTINGS}
        if settings["augment"]:
            raise TrainingError("stacked training does not augment; use fcompress.train")
        shapes = [tuple(p.shape) for p in model.parameters()]
        dtype = next(model.parameters()).dtype
        return {"shapes": shapes, "dtype": dtype, "training examples": len(splits[i]), **settings}

    first = kind(0)
    for i in range(1, len(runs)):
        for name, value in kind(i).items():
            if value != first[name]:
                raise TrainingError(
                    f"runs of one stack must have their {name} in common; run 0 has "
                    f"{first[name]}, run {i} has {value}; train them in stacks of their own"
                )
