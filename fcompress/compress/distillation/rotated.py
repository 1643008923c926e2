"""Adam in rotated coordinates, in which gradients of different weights are hardly correlated.

Vyas et al. 2024, "SOAP: Improving and Stabilizing Shampoo using Adam". Adam gives every number a
step of its own size, but takes them to be independent. The gradient of a weight [out, in, taps] is
correlated along each of its dimensions; in the eigenvectors of its second moments there it is not,
and Adam comes near a second-order step. benchmarks/results/distillation.md has what it gains.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

# The memory of Adam for squares of gradients, shorter than usual: distillations are short.
BETAS = (0.9, 0.99)
# Of the second moments of gradients, and when the axes follow them: soon, then now and then.
MEMORY = 0.97
RENEWALS, LATER = (1, 3, 7, 15, 30, 60), 100
# What rotations may cost, beside the passes of a step; larger dimensions keep their axes.
SHARE, LARGEST = 0.25, 1024
PASSES = 6  # operations of a step for each multiply-add of a forward: two each of three passes
# Operations a step: products with axes for each number and axis, and eigenvectors now and then.
PRODUCTS, EIGENVECTORS = 8, 0.6
TINY = 1e-10


@dataclass
class _Rotated:
    """A weight with the axes of its dimensions.

    Attributes:
        weight: The parameter, stepped in place.
        shape: As [out, in, taps] or [out, in].
        moments: For some dimensions the second moments of gradients, [size, size].
        axes: For the same ones their eigenvectors, [size, size].
    """

    weight: Tensor
    shape: tuple[int, ...]
    moments: dict[int, Tensor] = field(default_factory=dict)
    axes: dict[int, Tensor] = field(default_factory=dict)
    mean: Tensor = field(init=False)
    square: Tensor = field(init=False)

    def straighten(self) -> None:
        for moments, axes in zip(self.moments.values(), self.axes.values(), strict=True):
            moments.zero_()
            axes.copy_(torch.eye(len(axes)))

    def forget(self) -> None:
        kind = torch.promote_types(self.weight.dtype, torch.float32)
        self.mean = torch.zeros(self.shape, dtype=kind, device=self.weight.device)
        self.square = torch.zeros_like(self.mean)

    def follow(self, gradient: Tensor, first: bool) -> None:
        for dim, moments in self.moments.items():
            flat = gradient.movedim(dim, 0).flatten(1)
            moments.lerp_(flat @ flat.T, 1.0 if first else 1 - MEMORY)

    def renew(self) -> None:
        mean = _turned(self.mean, {dim: axes.T for dim, axes in self.axes.items()})
        for dim, moments in self.moments.items():
            try:
                self.axes[dim].copy_(torch.linalg.eigh(moments)[1])
            except torch.linalg.LinAlgError:  # these axes are as good as any: they stay
                continue
        self.mean = _turned(mean, self.axes)

    def step(self, rate: float, done: int) -> None:
        assert self.weight.grad is not None
        gradient = self.weight.grad.reshape(self.shape).to(self.mean.dtype)
        turned = _turned(gradient, self.axes)
        self.mean.lerp_(turned, 1 - BETAS[0])
        self.square.lerp_(turned * turned, 1 - BETAS[1])
        spread = (self.square / (1 - BETAS[1] ** done)).sqrt_().add_(TINY)
        change = _turned(
            (self.mean / (1 - BETAS[0] ** done)) / spread,
            {dim: axes.T for dim, axes in self.axes.items()},
        )
        self.weight.sub_(change.reshape(self.weight.shape).to(self.weight.dtype), alpha=rate)


class RotatedAdam:
    """An optimizer like Adam, for a few hundred steps.

    Args:
        weights: Parameters; those of two dimensions and more are rotated where that is cheap.
        operations: Of one step's passes, in multiplications and additions: what rotations cost is
            kept small beside it. Dimensions whose rotation costs least come first.

    Example:
        >>> weight = torch.zeros(3, 2, requires_grad=True)
        >>> optimizer = RotatedAdam([weight], operations=1e6)
        >>> for _ in range(200):
        ...     weight.grad = 2 * (weight.detach() - 1)
        ...     optimizer.step(0.05)
        >>> bool((weight - 1).abs().max() < 0.1)
        True
    """

    def __init__(self, weights: Iterable[Tensor], operations: float) -> None:
        weights = list(weights)
        found = [_Rotated(w, _matrix(w.shape)) for w in weights if w.dim() > 1]
        costs = sorted(
            (PRODUCTS * one.weight.numel() * size + EIGENVECTORS * size**3, index, dim)
            for index, one in enumerate(found)
            for dim, size in enumerate(one.shape)
            if 1 < size <= LARGEST
        )
        left = SHARE * operations
        for cost, index, dim in costs:
            left -= cost
            if left < 0:
                break
            one, size = found[index], found[index].shape[dim]
            kind = torch.promote_types(one.weight.dtype, torch.float32)
            one.moments[dim] = torch.zeros(size, size, dtype=kind, device=one.weight.device)
            one.axes[dim] = torch.zeros_like(one.moments[dim])
        self._rotated = [one for one in found if one.axes]
        mine = {id(one.weight) for one in self._rotated}
        self._others = [w for w in weights if id(w) not in mine]
        self.forget()

    def forget(self, *, axes: bool = True) -> None:
        """Begin anew; the axes may stay where the weights are about the same."""
        self._done = 0
        if axes:
            self._seen = 0
            for one in self._rotated:
                one.straighten()
        self._adam = torch.optim.Adam(self._others, betas=BETAS) if self._others else None
        for one in self._rotated:
            one.forget()

    def step(self, rate: float) -> None:
        """Take a step by the gradients, which have to be finite."""
        self._done += 1
        if self._adam is not None:
            for group in self._adam.param_groups:
                group["lr"] = rate
            self._adam.step()
        with torch.no_grad():
            self._turn()
            for one in self._rotated:
                if one.weight.grad is not None:
                    one.step(rate, self._done)

    def _turn(self) -> None:
        """Take the gradients into the second moments, and let the axes follow at times."""
        self._seen += 1
        due = self._seen in RENEWALS or self._seen % LATER == 0
        for one in self._rotated:
            if one.weight.grad is None:
                continue
            one.follow(one.weight.grad.reshape(one.shape).to(one.mean.dtype), self._seen == 1)
            if due:
                one.renew()


def _matrix(shape: Sequence[int]) -> tuple[int, ...]:
    """A weight's shape with all dimensions behind the first two as one."""
    taps = 1
    for size in shape[2:]:
        taps *= size
    return (*shape[:2], taps) if len(shape) > 2 else tuple(shape)


def _turned(values: Tensor, axes: Mapping[int, Tensor]) -> Tensor:
    """Values [sizes] with some dimensions in other coordinates, axes [size, coordinates]."""
    for dim, turn in axes.items():
        values = torch.tensordot(values, turn, dims=([dim], [0])).movedim(-1, dim)
    return values
