"""The network that keeps some units and some blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from fcompress.compress.blocks.chain import Choice
from fcompress.forward.running import tensors_of
from fcompress.surgery.excision import excise, kept_indices
from fcompress.surgery.skipping import drop, without
from fcompress.surgery.units import Group


@dataclass(frozen=True)
class Thin:
    """A network without some units and blocks.

    Attributes:
        network: It, no weight refitted.
        groups: Groups of the network with the blocks gone and all units in place.
        keep: Indices that stay of each (tensor, dim) (`excision.kept_indices`).
    """

    network: nn.Module
    groups: tuple[Group, ...]
    keep: Mapping[tuple[str, int], Tensor]


def thinned(
    network: nn.Module,
    groups: Sequence[Group],
    choice: Choice,
    kept: Mapping[str, Tensor],
    *,
    share: bool = False,
) -> Thin:
    """Take out the blocks that are not kept, then the units of the groups that are left.

    Args:
        network: The original network.
        groups: Its groups.
        choice: Its blocks.
        kept: Units of each group by its name, and of each block by its key: one, or none if it
            goes (`RemovalOrder.kept`).
        share: As for `excise`.
    """
    gone = choice.gone(kept)
    if gone:
        network = drop(network, gone, choice.left)
    left = without(groups, gone)
    units = {group.name: kept[group.name] for group in left if group.name in kept}
    return Thin(
        excise(network, left, units, share=share),
        left,
        kept_indices(tensors_of(network), left, units),
    )
