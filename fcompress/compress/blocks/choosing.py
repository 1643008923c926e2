"""Which blocks of a network may go at all."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fcompress.compress.blocks.chain import Choice
from fcompress.compress.blocks.remainders import remainders
from fcompress.errors import UnsupportedNetworkError
from fcompress.forward.predictor import Predictor
from fcompress.structure.blocks import find_blocks
from fcompress.structure.groups import Structure

FITTED_ON = 2048  # examples


def blocks_of(
    original: Predictor, structure: Structure, batches: Sequence[Tensor], *, seed: int = 0
) -> Choice:
    """The blocks of a network with what is left of each.

    Args:
        original: The original network, in eval mode.
        structure: Its groups.
        batches: Calibration inputs, on its device.
        seed: Of the experiments that prove the blocks.

    Returns:
        None of a network that draws random numbers, which cannot be compared with itself, or of
        one whose own code refuses what the experiments hand it.
    """
    if original.draws:
        return Choice()
    some = list(batches[: max(1, FITTED_ON // len(batches[0]))])
    try:
        blocks = find_blocks(original, batches[0][:4], structure.groups, seed=seed)
        left = remainders(original, blocks.found, some)
    except UnsupportedNetworkError:
        return Choice()
    return Choice(tuple(b for b in blocks.found if b.name in left), left)
