"""A network that is being distilled: how it is stepped, and how a bad step is taken back."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from fcompress.compress.distillation.rotated import PASSES, RotatedAdam
from fcompress.compress.distillation.teacher import divergence_of
from fcompress.errors import FcompressError
from fcompress.forward.predictor import Predictor

# Softer labels teach more in a short time: KL divergence at this temperature, times its square.
TEMPERATURE = 2.0


@dataclass(frozen=True)
class Way:
    """How to descend.

    Attributes:
        moving: Whether batch norms take the statistics of each batch and learn new ones; else they
            stay as they are. The first is better far from the original and worse near it.
        rate: The learning rate at the beginning; it falls to 0.
    """

    moving: bool
    rate: float


class Student:
    """A network with its optimizer.

    Args:
        predictor: The network, in eval mode. It is changed.
        macs: What a step takes, in multiply-adds of its forward.

    Raises:
        FcompressError: It has no weights.
    """

    def __init__(self, predictor: Predictor, macs: float) -> None:
        self.predictor = predictor
        model = predictor.network
        # All else stays in eval mode: dropout would only slow the teaching down.
        self._norms = [
            m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats
        ]
        self._weights = [p for p in model.parameters() if p.is_floating_point()]
        if not self._weights:
            raise FcompressError(
                f"{type(model).__name__} has no weights: there is nothing to distil; leave it out"
            )
        for weight in self._weights:
            weight.requires_grad_(True)
            weight.grad = None
        self._moving = False
        self._optimizer = RotatedAdam(self._weights, PASSES * macs)

    @property
    def normed(self) -> bool:
        """Whether there are batch norms whose statistics can move."""
        return bool(self._norms)

    def begin(self, moving: bool, *, trial: bool = False) -> None:
        """Forget all momentum, in a trial all that the optimizer knows, so that trials compare.

        See `Way` for what moves.
        """
        self._moving = moving
        self._optimizer.forget(axes=trial)

    def step(self, inputs: Tensor, scores: Tensor, rate: float) -> Tensor:
        """One step, unless the loss or a gradient is not finite; returns the loss before it."""
        for norm in self._norms if self._moving else []:
            norm.train()
        with torch.enable_grad():
            found = self.predictor.scores(inputs)
            loss = divergence_of(self.predictor.scoring, found, scores, TEMPERATURE)
            loss.backward()
        for norm in self._norms:
            norm.eval()
        loss = loss.detach()
        if not all(bool(w.grad.isfinite().all()) for w in self._weights if w.grad is not None):
            loss = torch.full_like(loss, torch.inf)
        if bool(loss.isfinite()):
            self._optimizer.step(rate)
        for weight in self._weights:
            weight.grad = None
        return loss

    def state(self) -> dict[str, Any]:
        """A copy of all weights and statistics."""
        return copy.deepcopy(self.predictor.network.state_dict())

    def become(self, state: Mapping[str, Tensor]) -> None:
        """Take the weights and statistics of a copy."""
        self.predictor.network.load_state_dict(state)
