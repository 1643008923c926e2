"""Frivolous blocks: how many labels stay when a whole block of layers is skipped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fcompress.errors import UnsupportedNetworkError
from fcompress.forward.cost import count
from fcompress.forward.predictor import Predictor
from fcompress.measure.layers import Skipped
from fcompress.structure.blocks import find_blocks
from fcompress.structure.groups import Group
from fcompress.surgery.skipping import drop

FOUND_ON = 4  # examples on which blocks are found and proven


@dataclass(frozen=True)
class BlockAblation:
    """What a network is without one of its blocks, whose branch then adds 0 to the stream.

    Attributes:
        name: The module that holds the layers of the block, or the largest of them.
        agreement: Share of examples whose label stays, in [0, 1].
        examples: How many were measured.
        params: Parameters that the network has less without it.
        macs: Multiply-adds for one example that it needs less.
    """

    name: str
    agreement: float
    examples: int
    params: int
    macs: int

    def frivolous(self, tolerance: float) -> bool:
        """Whether at most this share of labels changes when the block is skipped."""
        return self.agreement >= 1 - tolerance

    def to_dict(self, tolerances: Sequence[float]) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            **vars(self),
            "frivolous": {f"{t:g}": self.frivolous(t) for t in tolerances},
        }


def measure_blocks(
    predictor: Predictor, groups: Sequence[Group], batches: Iterable[tuple[Tensor, Any]]
) -> tuple[tuple[BlockAblation, ...], tuple[Skipped, ...]]:
    """Skip each block alone and count labels that stay.

    Args:
        predictor: The network, as `surgery.prepare` made it.
        groups: Its proven groups of units.
        batches: (inputs [n, ...], anything) pairs, gone through once.

    Returns:
        The blocks in order of execution, and those that cannot be skipped with the reason.

    Example:
        >>> from fcompress import build
        >>> network = build("resnet20", in_channels=1, image_size=8, classes=4)
        >>> found, kept = measure_blocks(Predictor(network), (), [(torch.randn(5, 1, 8, 8), None)])
        >>> [block.name for block in found][-1], found[-1].examples, kept
        ('layer3.2', 5, ())
    """
    found, without = None, []
    total, same = 0, torch.zeros(0)
    with predictor.evaluating():
        for inputs, _ in batches:
            inputs = predictor.place(inputs)
            if found is None:
                found = find_blocks(predictor, inputs[:FOUND_ON], groups)
                same = torch.zeros(len(found.found), dtype=torch.float64)
                without = [predictor.of(drop(predictor.network, [b]).eval()) for b in found.found]
                whole, thin = count(predictor, inputs), [count(one, inputs) for one in without]
            if not without:
                break
            labels = predictor.labels(inputs)
            total += len(labels)
            for number, one in enumerate(without):
                same[number] += float(predictor.scoring.shares(labels, one.labels(inputs)).sum())
    if found is None:
        raise UnsupportedNetworkError("no examples to skip blocks on; give some")
    return tuple(
        BlockAblation(
            block.name, kept / total, total, whole.params - less.params, whole.macs - less.macs
        )
        for block, kept, less in zip(found.found, same.tolist(), thin, strict=True)
    ), tuple(Skipped(name, reason) for name, reason in found.kept.items())
