"""Local response normalisation that stays exact when channels are excised.

Ordinary local response normalisation divides a channel by the energy of its neighbours *by
index*. Excising a channel moves the others closer together, so each would be divided by the
energy of channels that were not its neighbours before: excising a unit is then not the same as
zeroing it. This module remembers the position that each channel had in the original network and
sums over neighbours by position. A removed channel leaves a gap, and a gap holds zero energy,
which is exactly what zeroing gives.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class FixedLocalResponseNorm(nn.Module):
    """A `LocalResponseNorm` whose positions no longer change, in static operators.

    Export to other programs needs shapes that do not depend on the values of a buffer.

    Args:
        norm: The normalisation; it is not changed.

    Example:
        >>> norm = LocalResponseNorm(3, alpha=1.0, beta=0.5, k=1.0, channels=4)
        >>> x = torch.randn(2, 4, 5, 5)
        >>> torch.allclose(FixedLocalResponseNorm(norm)(x), norm(x))
        True
    """

    sources: Tensor

    def __init__(self, norm: LocalResponseNorm) -> None:
        super().__init__()
        self.size, self.alpha, self.beta, self.k = norm.size, norm.alpha, norm.beta, norm.k
        positions = norm._closed_up()
        slots = int(positions[-1]) + 1
        sources = torch.full((slots,), len(positions))
        sources[positions] = torch.arange(len(positions))
        # Which channel lies in each slot; gaps point behind the last channel, where zeros are.
        self.register_buffer("sources", sources)
        self.register_buffer("positions", positions)
        self.has_gaps = slots != len(positions)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `x` [N, C, *spatial]; returns the same shape."""
        energy = x.flatten(2).square()
        if self.has_gaps:
            energy = F.pad(energy, (0, 0, 0, 1)).index_select(1, self.sources)
        energy = F.pad(energy, (0, 0, self.size // 2, (self.size - 1) // 2))
        energy = F.avg_pool2d(energy.unsqueeze(1), (self.size, 1), stride=1).squeeze(1)
        if self.has_gaps:
            energy = energy.index_select(1, self.get_buffer("positions"))
        return x / (self.k + self.alpha * energy.view_as(x)).pow(self.beta)


class LocalResponseNorm(nn.Module):
    """`torch.nn.LocalResponseNorm` over channels with remembered positions.

    With all channels in place the result equals `torch.nn.LocalResponseNorm(size, alpha, beta, k)`
    (Krizhevsky et al. 2012, section 3.3; `alpha` is divided by `size` as in torch).

    Args:
        size: Number of neighbouring positions summed over.
        alpha: Factor of the summed energy.
        beta: Exponent.
        k: Constant under the exponent.
        channels: Number of channels C.

    Attributes:
        positions: int64 [C], strictly increasing: the position of each channel.

    Example:
        Without its middle channel, the others are normalised as if it were zero:

        >>> norm = LocalResponseNorm(3, alpha=1.0, beta=1.0, k=1.0, channels=3)
        >>> zeroed = norm(torch.tensor([[[1.0], [0.0], [2.0]]]))
        >>> norm.positions = norm.positions[[0, 2]]
        >>> torch.equal(norm(torch.tensor([[[1.0], [2.0]]])), zeroed[:, [0, 2]])
        True
    """

    positions: Tensor

    def __init__(self, size: int, alpha: float, beta: float, k: float, channels: int) -> None:
        super().__init__()
        self.size, self.alpha, self.beta, self.k = size, alpha, beta, k
        self.register_buffer("positions", torch.arange(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `x` [N, C, *spatial]; returns the same shape."""
        if x.shape[1] != len(self.positions):
            raise ValueError(
                f"expected {len(self.positions)} channels, got {x.shape[1]}: "
                "give the module one position for each channel"
            )
        positions = self._closed_up()
        slots = int(positions[-1]) + 1
        energy = x.flatten(2).square()
        if slots != x.shape[1]:
            energy = x.new_zeros(x.shape[0], slots, energy.shape[2]).index_copy(
                1, positions, energy
            )
        # The window of torch: size // 2 below, (size - 1) // 2 above, zeros beyond the ends.
        energy = F.pad(energy, (0, 0, self.size // 2, (self.size - 1) // 2))
        energy = F.avg_pool2d(energy.unsqueeze(1), (self.size, 1), stride=1).squeeze(1)
        if slots != x.shape[1]:
            energy = energy.index_select(1, positions)
        return x / (self.k + self.alpha * energy.view_as(x)).pow(self.beta)

    def _closed_up(self) -> Tensor:
        """Positions with every gap shortened to one window, which no sum can tell apart."""
        steps = self.positions.diff(prepend=self.positions[:1]).clamp(max=self.size)
        return steps.cumsum(0)

    def extra_repr(self) -> str:
        """The settings, as `nn.Module` prints them."""
        return f"{self.size}, alpha={self.alpha}, beta={self.beta}, k={self.k}"
