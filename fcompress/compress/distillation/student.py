"""A network that is being distilled: how it is stepped, and how a bad step is taken back."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from fcompress.compress.distillation.teacher import divergence_of
from fcompress.errors import FcompressError
from fcompress.forward.predictor import Predictor

# Softer labels teach more in a short time: KL divergence at this temperature, times its square.
TEMPERATURE = 2.0
# The memory of Adam for squares of gradients, shorter than usual: distillations are short.
BETAS = (0.9, 0.99)


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
    """

    def __init__(self, predictor: Predictor) -> None:
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
        self._optimizer: torch.optim.Adam

    @property
    def normed(self) -> bool:
        """Whether there are batch norms whose statistics can move."""
        return bool(self._norms)

    def begin(self, moving: bool) -> None:
        """Forget all momentum; see `Way` for what moves."""
        self._moving = moving
        self._optimizer = torch.optim.Adam(self._weights, betas=BETAS)

    def step(self, inputs: Tensor, scores: Tensor, rate: float) -> Tensor:
        """One step; returns the loss before it."""
        for norm in self._norms if self._moving else []:
            norm.train()
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.zero_grad(set_to_none=True)
        with torch.enable_grad():
            found = self.predictor.scores(inputs)
            loss = divergence_of(self.predictor.scoring, found, scores, TEMPERATURE)
            loss.backward()
        self._optimizer.step()
        for norm in self._norms:
            norm.eval()
        return loss.detach()

    def state(self) -> dict[str, Any]:
        """A copy of all weights and statistics."""
        return copy.deepcopy(self.predictor.network.state_dict())

    def become(self, state: dict[str, Any]) -> None:
        """Take the weights and statistics of a copy."""
        self.predictor.network.load_state_dict(state)
