"""A user's own divergence beside the user's own decision (`same=`, `divergence=`).

It is used wherever answers are weighed: in ablations, measured costs and distillation as it is,
and in rankings by its Fisher information, which is its matrix of second derivatives at the
original's outputs: to second order, an error e in outputs z costs e^T H(z) e / 2 nats.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fcompress.errors import FcompressError
from fcompress.forward.answers.asked import Asked
from fcompress.forward.answers.scoring import Scoring

# Outputs of an example up to which second derivatives are taken one by one. Beyond, the Fisher
# information is that of Gaussians (`continuous.py`).
MOST_OUTPUTS = 512
# Nats below zero that are rounding.
ROUNDING = 1e-4


@dataclass(frozen=True)
class Own(Scoring):
    """Answers that a function of the user's compares, and another one weighs.

    Attributes:
        own: (original outputs, other outputs) -> nats [n].
    """

    own: Callable[[Any, Any], Any] | None = None

    @property
    def asked(self) -> Asked:
        """What was said of the answers."""
        return Asked(self.labels, same=self.same, divergence=self.own)

    @property
    def softens(self) -> bool:
        """Whether a temperature makes answers softer."""
        return False

    def noted(self) -> dict[str, Any]:
        """What a compressed network carries."""
        return {**super().noted(), "divergence": self.own}

    def described(self, scores: Tensor) -> dict[str, Any]:
        """Plain values: the kind of answer, with the names of both functions."""
        return {**super().described(scores), "divergence": self._name}

    def log_probabilities(self, scores: Tensor, temperature: float = 1.0) -> Tensor:
        """The outputs as they are: only the user knows what they mean."""
        return scores

    def divergence(self, found: Tensor, wanted: Tensor) -> Tensor:
        """Mean of the user's divergence over examples, in nats."""
        return self._nats(wanted, found).mean()

    def surprise(self, scores: Tensor, generator: torch.Generator) -> Tensor:
        """A sum whose gradient's second moment is the Fisher information.

        The gradient is H^(1/2) x with x standard normal, H being the second derivatives at the
        outputs themselves.

        Raises:
            FcompressError: The divergence has no second derivatives, or all are 0.
        """
        rows = scores.reshape(len(scores), -1)
        if rows.shape[1] > MOST_OUTPUTS:
            plain = Scoring(self.output, self.labels, same=self.same, deviation=self.deviation)
            return plain.surprise(scores, generator)
        root = self._root(scores.detach())
        drawn = torch.randn(rows.shape, generator=generator).to(root)
        return (rows * torch.einsum("nij,nj->ni", root, drawn).to(rows)).sum()

    def _root(self, wanted: Tensor) -> Tensor:
        """Square roots of the second derivatives, float64 [n, outputs, outputs]."""
        found = wanted.clone().requires_grad_()
        with torch.enable_grad():
            total = self._nats(wanted, found).sum()
            try:
                (slope,) = torch.autograd.grad(total, found, create_graph=True)
                rows = [
                    torch.autograd.grad(one, found, retain_graph=True)[0].reshape(len(found), -1)
                    for one in slope.reshape(len(found), -1).sum(0)
                ]
            except RuntimeError as error:
                raise FcompressError(
                    f"{self._says} cannot be differentiated twice: {str(error).splitlines()[0]}; "
                    "use differentiable operators of torch"
                ) from error
        curved = torch.stack(rows, 1).double()
        if not bool(curved.isfinite().all()) or not bool(curved.any()):
            raise FcompressError(
                f"{self._says} has second derivatives at equal outputs that are 0 or not finite, "
                "so that it cannot rank small changes; give one like a squared distance there"
            )
        values, vectors = torch.linalg.eigh((curved + curved.mT) / 2)
        return vectors * values.clamp_min(0).sqrt().unsqueeze(1)

    def _nats(self, wanted: Tensor, found: Tensor) -> Tensor:
        """The user's divergence, checked: [n].

        Raises:
            FcompressError: It fails, or gives anything but a number from 0 on for each example.
        """
        assert self.own is not None
        try:
            nats = self.own(wanted, found)
        except Exception as error:
            raise FcompressError(
                f"{self._says} fails on outputs of shape {list(wanted.shape)}: "
                f"{type(error).__name__}: {error}"
            ) from error
        real = isinstance(nats, Tensor) and nats.is_floating_point()
        if not real or nats.shape != (len(wanted),):
            shape = list(nats.shape) if isinstance(nats, Tensor) else type(nats).__name__
            raise FcompressError(
                f"{self._says} gives {shape} for {len(wanted)} examples; expected a tensor of "
                f"floats, one for each, [{len(wanted)}]"
            )
        finite = found.detach().isfinite().reshape(len(found), -1).all(1)
        told = nats.detach()[finite]
        if not bool(told.isfinite().all()):
            raise FcompressError(
                f"{self._says} is not finite for outputs that are; it has to be for all of them"
            )
        if len(told) and float(told.min()) < -ROUNDING:
            raise FcompressError(
                f"{self._says} gives {float(told.min()):.3g}; a divergence is 0 for equal outputs "
                "and nowhere less"
            )
        return nats

    @property
    def _name(self) -> str:
        return getattr(self.own, "__name__", "divergence")

    @property
    def _says(self) -> str:
        return f"the function {self._name} of --divergence (divergence=)"
