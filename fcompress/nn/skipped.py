"""What is left where a block of a network was taken out: nothing, or a scale and a shift."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Skipped(nn.Module):
    """Stands where a layer was and hands its first input on.

    Args:
        returns: Items of the tuple that the layer returned, with what it hands on first and None
            for the others; 0 for a layer that returned a tensor.
        batch_first: Of an attention layer: torch's encoder asks for it.

    Example:
        >>> x = torch.ones(2, 3)
        >>> Skipped()(x) is x
        True
        >>> Skipped(2)(x, x, x, need_weights=False)[1] is None
        True
    """

    # Torch's encoder layers take their fused path only where they find a bias here.
    in_proj_bias = None

    def __init__(self, returns: int = 0, *, batch_first: bool = True) -> None:
        super().__init__()
        self.returns, self.batch_first = returns, batch_first

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """Maps any inputs to the first tensor among them."""
        found = self.left(next(x for x in (*inputs, *named.values()) if isinstance(x, Tensor)))
        return (found, *[None] * (self.returns - 1)) if self.returns else found

    def left(self, x: Tensor) -> Tensor:
        """What is handed on."""
        return x


class Remainder(Skipped):
    """Stands where a block ended: all that is left of it is a scale and a shift per channel.

    Args:
        channels: Number of channels C.
        dim: The dimension along which they lie.
        returns: As for `Skipped`.
        batch_first: As for `Skipped`.

    Attributes:
        scale: [C], 0 at first.
        shift: [C], 0 at first: nothing is left.

    Example:
        >>> left = Remainder(3, 1)
        >>> left(torch.ones(1, 3)).tolist()
        [[0.0, 0.0, 0.0]]
        >>> _ = left.shift.data.add_(2)
        >>> left(torch.ones(1, 3, 1)).flatten().tolist()
        [2.0, 2.0, 2.0]
    """

    def __init__(
        self, channels: int, dim: int, returns: int = 0, *, batch_first: bool = True
    ) -> None:
        super().__init__(returns, batch_first=batch_first)
        self.dim = dim
        self.scale = nn.Parameter(torch.zeros(channels))
        self.shift = nn.Parameter(torch.zeros(channels))

    def left(self, x: Tensor) -> Tensor:
        """`x` [..., C at `dim`, ...], scaled and shifted."""
        shape = [-1 if d == self.dim else 1 for d in range(x.dim())]
        return x * self.scale.view(shape) + self.shift.view(shape)

    def extra_repr(self) -> str:
        """The number of channels, as `nn.Module` prints it."""
        return f"{len(self.scale)}, dim={self.dim}"
