"""torch-pruning as a rival: its importances, ranked per layer or over all layers.

Used as its documentation says: one `BasePruner` step with an importance object, the output layer
ignored, `pruning_ratio` as the amount, default normalisation. In one step its `max_pruning_ratio`
caps nothing (it is looked at before the step only) and five or ten steps under a cap came out no
better (ResNet20, MLP); the library itself never takes all channels of a layer. Afterwards batch
norm is recalibrated, which it does not do itself and without which its networks collapse.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch_pruning
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.rivals.base import Setting, recalibrate
from fcompress.nn.local_response_norm import LocalResponseNorm

SCORES = {
    "l1": "L1 norm of the group's weights",
    "l2": "L2 norm of the group's weights",
    "taylor": (
        "first-order Taylor, gradient of the cross-entropy towards the network's own labels "
        "(no true labels) summed over the calibration inputs"
    ),
    "bn-scale": "scale of batch norm (network slimming)",
    "random": "random",
}


@dataclass(frozen=True)
class Pruning:
    """One importance of torch-pruning.

    Attributes:
        score: A key of `SCORES`.
        everywhere: Whether units of all layers are ranked together; else each layer loses the
            same share.
    """

    score: str
    everywhere: bool

    @property
    def name(self) -> str:
        return f"tp-{self.score}-{'global' if self.everywhere else 'layer'}"

    @property
    def summary(self) -> str:
        scope = "all layers ranked together" if self.everywhere else "the same share of each layer"
        return f"torch-pruning: {SCORES[self.score]}; {scope}; batch norm recalibrated"

    def make(self, setting: Setting, amount: float) -> nn.Module:
        """Prune a copy: `amount` is the `pruning_ratio`."""
        thin = copy.deepcopy(setting.model).eval()
        if self.score == "bn-scale" and not _has_batch_norm(thin):
            raise ValueError("the network has no batch norm")
        if self.score == "taylor":
            gradients = own_label_gradients(setting)
            for name, parameter in thin.named_parameters():
                parameter.grad = gradients[name].clone()
        norms = _stand_in(thin)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(setting.seed)  # the random importance draws from the global state
            pruner = torch_pruning.pruner.BasePruner(
                thin,
                setting.batches[0][:2],
                importance=self._importance(),
                global_pruning=self.everywhere,
                pruning_ratio=amount,
                ignored_layers=list(output_layers(thin)),
                in_channel_groups={},  # the default dicts are shared by all pruners of a process
                out_channel_groups={},
            )
            pruner.step()
        _put_back(thin, norms)
        thin.zero_grad(set_to_none=True)
        recalibrate(thin, setting.batches)
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


@lru_cache(maxsize=1)
def own_label_gradients(setting: Setting) -> dict[str, Tensor]:
    """Gradient of the cross-entropy towards the network's own labels, for each parameter.

    Labels are the network's own answers (argmax). The divergence from its own softmax would not
    do: its gradient is zero.
    """
    model = copy.deepcopy(setting.model).eval()
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    with torch.enable_grad():
        for batch in setting.batches:
            scores = model(batch)
            F.cross_entropy(scores, scores.argmax(1), reduction="sum").backward()
    return {
        name: torch.zeros_like(p) if p.grad is None else p.grad
        for name, p in model.named_parameters()
    }


def output_layers(model: nn.Module) -> Sequence[nn.Module]:
    """The layers that give the scores: what the network says, else its last linear layer."""
    named = getattr(model, "output_layers", None)
    if named:
        return [model.get_submodule(name) for name in named]
    return [m for m in model.modules() if isinstance(m, nn.Linear)][-1:]


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


def _has_batch_norm(model: nn.Module) -> bool:
    return any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())


RIVALS = tuple(Pruning(score, everywhere) for score in SCORES for everywhere in (True, False))
