"""What is left of a block: a scale and a shift per channel that add about what it added.

Both are solved by least squares against the original network. The layers behind are refitted
anyway and make up for more; but what a ReLU or a norm makes of the stream depends on its level.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fcompress.forward.predictor import Predictor
from fcompress.nn.skipped import Remainder
from fcompress.surgery.skipping import Block, Left, drop


class _Told(nn.Module):
    """Stands in for a remainder, returns what the block did, and notes what it was given."""

    def __init__(self, remainder: Remainder) -> None:
        super().__init__()
        self.remainder = remainder
        self.batch_first = remainder.batch_first
        self.in_proj_bias = None
        self.wanted: Tensor | None = None
        self.sums: Tensor | None = None

    def forward(self, *inputs: Any, **named: Any) -> Any:
        given = next(x for x in (*inputs, *named.values()) if isinstance(x, Tensor))
        assert self.wanted is not None
        self.note(given, self.wanted)
        returns = self.remainder.returns
        return (self.wanted, *[None] * (returns - 1)) if returns else self.wanted

    def note(self, given: Tensor, wanted: Tensor) -> None:
        """Add up what is needed of each channel: counts, x, y, x x and x y."""
        if given.shape != wanted.shape:  # a scale and a shift cannot make the one of the other
            self.sums = torch.full((5, self.remainder.scale.numel()), torch.nan)
            return
        x, y = (t.transpose(0, self.remainder.dim).flatten(1).double() for t in (given, wanted))
        count = torch.full((len(x),), float(x.shape[1]), dtype=x.dtype, device=x.device)
        sums = torch.stack([count, x.sum(1), y.sum(1), (x * x).sum(1), (x * y).sum(1)])
        self.sums = sums if self.sums is None else self.sums + sums

    def left(self) -> Left:
        """The least-squares scale and shift; no scale where the input never varies."""
        assert self.sums is not None
        count, x, y, xx, xy = self.sums
        spread = xx / count - (x / count) ** 2
        together = xy / count - x * y / count**2
        able = spread > 1e-9 * (xx / count).clamp(min=1e-300)
        scale = torch.where(able, together / torch.where(able, spread, 1.0), 0.0)
        return Left(scale, (y - scale * x) / count)


def remainders(
    original: Predictor, blocks: Sequence[Block], batches: Sequence[Tensor]
) -> dict[str, Left]:
    """What is left of each block when it alone goes.

    Args:
        original: The original network, in eval mode.
        blocks: Its blocks.
        batches: Calibration inputs, on its device; two runs of each, more for nested blocks.

    Returns:
        By the name of the block; a block is left out whose last layer, with those before it gone,
        would be given something that is not finite or of another shape than it returned.

    Example:
        >>> from fcompress import build
        >>> from fcompress.structure.blocks import find_blocks
        >>> _ = torch.manual_seed(0)
        >>> network = Predictor(build("resnet20", in_channels=1, image_size=8, classes=4).eval())
        >>> x = torch.randn(4, 1, 8, 8)
        >>> blocks = find_blocks(network, x).found
        >>> remainders(network, blocks, [x])["layer1.0"].scale.shape
        torch.Size([16])
    """
    found: dict[str, Left] = {}
    with original.evaluating():
        for apart in _apart(blocks):
            told = _told(original, apart)
            for batch in batches:
                _sweep(original, told, apart, batch)
            for block in apart:
                left = told.network.get_submodule(block.end).left()  # type: ignore[operator]
                if bool(left.scale.isfinite().all() and left.shift.isfinite().all()):
                    found[block.name] = left
    return found


def _apart(blocks: Sequence[Block]) -> Iterator[list[Block]]:
    """The blocks in sets of which none lies in another one."""
    waiting = list(blocks)
    while waiting:
        now = [b for b in waiting if not any(other.holds(b) for other in waiting)]
        yield now
        waiting = [b for b in waiting if b not in now]


def _told(original: Predictor, blocks: Sequence[Block]) -> Predictor:
    """The network without the blocks, whose remainders are told what to return."""
    network = drop(original.network, blocks)
    for block in blocks:
        remainder = network.get_submodule(block.end)
        assert isinstance(remainder, Remainder)
        network.set_submodule(block.end, _Told(remainder))
    return original.of(network.eval())


def _sweep(original: Predictor, told: Predictor, blocks: Sequence[Block], batch: Tensor) -> None:
    """One batch through the original network, then through the one that is told its blocks."""
    hooks = []
    for block in blocks:
        place = told.network.get_submodule(block.end)

        def tell(module: nn.Module, args: Any, out: Any, place: nn.Module = place) -> None:
            place.wanted = (out if isinstance(out, Tensor) else out[0]).clone()  # type: ignore

        hooks.append(original.network.get_submodule(block.end).register_forward_hook(tell))
    try:
        original(batch)
    finally:
        for hook in hooks:
            hook.remove()
    told(batch)
    for block in blocks:
        told.network.get_submodule(block.end).wanted = None  # type: ignore[assignment]
