"""torch-pruning as a rival: its importances, ranked per layer or over all layers.

Used as its documentation says: one `BasePruner` step with an importance object, the output layers
ignored, `pruning_ratio` as the amount, default normalisation. In one step its `max_pruning_ratio`
caps nothing (it is looked at before the step only) and five or ten steps under a cap came out no
better (ResNet20, MLP); the library itself never takes all channels of a layer. Afterwards batch
norm is recalibrated, which it does not do itself and without which its networks collapse.

Its code runs on a copy of the network, with random states of its own, and what it prints is lost.
"""

from __future__ import annotations

import contextlib
import io
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch_pruning
from torch import Tensor, nn
from torch.nn import functional as F

from fcompress.comparison.options import SCORES
from fcompress.errors import FcompressError, UnsupportedNetworkError
from fcompress.forward.answers.heads import heads_of
from fcompress.forward.copying import deep_copy
from fcompress.forward.outputs import output_tensors
from fcompress.forward.predictor import Predictor, as_predictor
from fcompress.nn.local_response_norm import LocalResponseNorm

TRACED = 2  # examples that torch-pruning sees the network run on
# On some reshapes what torch-pruning says belongs together grows without end. A DenseNet121 has
# groups of 102 dependencies, a ResNet18 of 16.
MOST_DEPENDENCIES = 5000


@dataclass(frozen=True, eq=False)
class Given:
    """What every rival gets.

    Attributes:
        original: The original network, in eval mode; never changed.
        batches: Calibration inputs [N, ...] in batches, on the network's device; no labels.
        seed: Of what is drawn at random.
        outputs: Names of the layers that give the outputs, whose units stay; empty where only the
            network itself or its last linear layer can tell.
    """

    original: Predictor
    batches: Sequence[Tensor]
    seed: int
    outputs: tuple[str, ...] = ()

    @cached_property
    def gradients(self) -> dict[str, Tensor]:
        """What `own_label_gradients` gives, computed when it is first needed."""
        return own_label_gradients(self.original, self.batches, self.seed)

    @cached_property
    def shapes(self) -> dict[str, torch.Size]:
        """Shapes of all outputs for `TRACED` examples."""
        return _shapes(self.original, self.batches[0][:TRACED])


@dataclass(frozen=True)
class Pruning:
    """One importance of torch-pruning.

    Attributes:
        score: A key of `options.SCORES`.
        everywhere: Whether units of all layers are ranked together; else each layer loses the
            same share.
    """

    score: str
    everywhere: bool

    @property
    def name(self) -> str:
        """In tables and file names."""
        return f"tp-{self.score}-{'global' if self.everywhere else 'layer'}"

    @property
    def summary(self) -> str:
        """What it does, in one line."""
        scope = "all layers ranked together" if self.everywhere else "the same share of each layer"
        return f"torch-pruning: {SCORES[self.score]}; {scope}; batch norm recalibrated"

    def make(self, given: Given, amount: float) -> nn.Module:
        """Prune a copy.

        Args:
            given: The network and its calibration inputs; left as they are.
            amount: The `pruning_ratio`, in (0, 1).

        Returns:
            A new network in eval mode, batch norm recalibrated.

        Raises:
            Exception: Of any kind, where torch-pruning cannot do this network.
        """
        original = given.original
        thin = deep_copy(original.network).eval()
        if self.score == "bn-scale" and not _has_batch_norm(thin):
            raise UnsupportedNetworkError("the network has no batch norm")
        gradients = given.gradients if self.score == "taylor" else {}
        for name, parameter in thin.named_parameters():
            # Its graph is that of autograd, which ends at what is frozen.
            parameter.requires_grad_(parameter.is_floating_point())
            if name in gradients:
                parameter.grad = gradients[name].clone()
        norms = _stand_in(thin)
        example = given.batches[0][:TRACED]
        with _apart(given.seed, example.device), _ending(), torch.enable_grad():
            pruner = torch_pruning.pruner.BasePruner(
                thin,
                example,
                importance=self._importance(),
                global_pruning=self.everywhere,
                pruning_ratio=amount,
                ignored_layers=list(output_layers(thin, given.outputs)),
                round_to=_heads(thin),
                in_channel_groups={},  # the default dicts are shared by all pruners of a process
                out_channel_groups={},
                forward_fn=original.whole,
                output_transform=_differentiable,
            )
            pruner.step()
        _put_back(thin, norms)
        thin.zero_grad(set_to_none=True)
        made = original.of(thin)
        recalibrate(made, given.batches)
        found = _shapes(made, example)
        if found != given.shapes:
            raise UnsupportedNetworkError(
                "torch-pruning changed the shape of an output: "
                f"{_said(found)}, before {_said(given.shapes)}"
            )
        return thin

    def _importance(self) -> torch_pruning.importance.Importance:
        kinds = torch_pruning.importance
        if self.score == "taylor":
            return kinds.GroupTaylorImportance()
        if self.score == "bn-scale":
            return kinds.BNScaleImportance()
        if self.score == "random":
            return kinds.RandomImportance()
        return kinds.GroupMagnitudeImportance(p=int(self.score[1:]))


RIVALS = tuple(Pruning(score, everywhere) for score in SCORES for everywhere in (True, False))


@contextlib.contextmanager
def _apart(seed: int, device: torch.device) -> Iterator[None]:
    """Random states of its own (the random importance draws from the global one), in silence."""
    devices = [device] if device.type == "cuda" else []
    with (
        torch.random.fork_rng(devices=devices),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        yield


@contextlib.contextmanager
def _ending() -> Iterator[None]:
    """Let the search for what belongs together come to an end."""
    kind = torch_pruning.dependency.Group
    has = kind.has_pruning_op

    def bounded(group: Any, *args: Any) -> bool:
        if len(group) > MOST_DEPENDENCIES:
            raise UnsupportedNetworkError(
                f"torch-pruning finds more than {MOST_DEPENDENCIES:,} dependencies of one layer"
            )
        return bool(has(group, *args))

    kind.has_pruning_op = bounded
    try:
        yield
    finally:
        kind.has_pruning_op = has


def recalibrate(network: nn.Module | Predictor, batches: Sequence[Tensor]) -> None:
    """Measure the statistics of every batch-norm layer again, in place.

    The new statistics are the plain mean over the batches of each batch's mean and (unbiased)
    variance (torch's cumulative average, momentum None); no label, no gradient. Every other layer
    stays in eval mode, and all are in eval mode afterwards.

    Args:
        network: A compressed network.
        batches: Calibration inputs [N, ...].

    Example:
        >>> norm = nn.BatchNorm1d(2)
        >>> recalibrate(norm, [torch.tensor([[0.0, 2.0], [4.0, 2.0]])])
        >>> norm.running_mean
        tensor([2., 2.])
    """
    predictor = as_predictor(network)
    model = predictor.network
    norms = [
        m
        for m in model.modules()
        if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.running_mean is not None
    ]
    model.eval()
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None
            norm.train()
        with torch.no_grad():
            for batch in batches:
                predictor.whole(model, batch)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        model.eval()


def own_label_gradients(
    original: Predictor, batches: Sequence[Tensor], seed: int = 0
) -> dict[str, Tensor]:
    """Gradient of the cross-entropy towards the network's own labels, for each parameter.

    Labels are the network's own answers (argmax). The divergence from its own softmax would not
    do: its gradient is zero. Where answers are no classes, labels are drawn from what the network
    says (`Scoring.surprise`).

    Args:
        original: A network in eval mode.
        batches: Calibration inputs [N, ...].
        seed: Draws labels.

    Returns:
        Name -> a tensor of the shape of the parameter, summed over examples.
    """
    network = deep_copy(original.network).eval()
    copied, scoring = original.of(network), original.scoring
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    with torch.enable_grad():
        for batch in batches:
            scores = copied.scores(batch)
            if scoring.kind(scores) == "classes" and not heads_of(scoring):
                logs = scoring.log_probabilities(scores)
                loss = F.nll_loss(logs, logs.argmax(1), reduction="sum")
            else:
                loss = scoring.surprise(scores, generator)
            loss.backward()
    return {
        name: torch.zeros_like(p) if p.grad is None else p.grad
        for name, p in network.named_parameters()
    }


def output_layers(model: nn.Module, known: Sequence[str] = ()) -> Sequence[nn.Module]:
    """The layers that give the outputs.

    Args:
        model: A network.
        known: Their names, where they are known; otherwise what the network says, else its last
            linear layer.
    """
    named = known or getattr(model, "output_layers", None)
    if named:
        return [model.get_submodule(name) for name in named]
    return [m for m in model.modules() if isinstance(m, nn.Linear)][-1:]


def _differentiable(output: Any) -> list[Tensor]:
    """Outputs that autograd knows where they come from, unlike an argmax."""
    return [one for one in output_tensors(output).values() if one.grad_fn is not None]


def reason_of(error: Exception) -> str:
    """Why a network cannot be made, in one line of some 200 characters: what went wrong first."""
    while isinstance(error.__cause__, Exception):
        error = error.__cause__
    message = " ".join(str(error).split())[:200]
    return message if isinstance(error, FcompressError) else f"{type(error).__name__}: {message}"


def _stand_in(model: nn.Module) -> dict[str, LocalResponseNorm]:
    """Replace every local response normalisation by a layer that torch-pruning understands.

    Its graph does not get through ours (minutes without end on the reshapes inside). A PReLU has
    one number for each channel, is cut with the channels and counts in no importance: here the
    numbers are the channels' places. Values do not matter while the graph is built.
    """
    found = {n: m for n, m in model.named_modules() if isinstance(m, LocalResponseNorm)}
    for name, norm in found.items():
        places = nn.PReLU(len(norm.positions))
        places.weight = nn.Parameter(norm.positions.float())
        model.set_submodule(name, places)
    return found


def _put_back(model: nn.Module, norms: Mapping[str, LocalResponseNorm]) -> None:
    """Give the normalisations back, with the places of the channels that are left."""
    for name, norm in norms.items():
        places: Any = model.get_submodule(name)
        norm.positions = places.weight.detach().long()
        model.set_submodule(name, norm)


def _heads(model: nn.Module) -> int | None:
    """Of what the widths have to be a multiple, for attention to split into its heads."""
    found = [m.num_heads for m in model.modules() if isinstance(m, nn.MultiheadAttention)]
    return math.lcm(*found) if found else None


def _has_batch_norm(model: nn.Module) -> bool:
    return any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())


def _shapes(predictor: Predictor, inputs: Tensor) -> dict[str, torch.Size]:
    with predictor.evaluating():
        output = predictor.whole(predictor.network, inputs)
    return {name: tensor.shape for name, tensor in output_tensors(output).items()}


def _said(shapes: Mapping[str, torch.Size]) -> str:
    return ", ".join(str(list(shape)) for shape in shapes.values())
