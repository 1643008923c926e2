"""What distillation changed on one network, carried on to a thinner one of the same nested family.

Both were refitted against the original alone. What the first has learned beyond that is of use to
the second, too: so the work on the networks of a search adds up, instead of beginning anew at each.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

Keep = Mapping[tuple[str, int], Tensor]


@dataclass(frozen=True)
class Learned:
    """A network before and after its distillation.

    Attributes:
        removed: How many units it does without.
        keep: Indices that stay of each (tensor, dim) of the original network.
        before: Its weights and statistics as they were refitted.
        after: The same after distillation.
    """

    removed: int
    keep: Keep
    before: Mapping[str, Tensor]
    after: Mapping[str, Tensor]


def carried(learned: Learned, refitted: Mapping[str, Tensor], keep: Keep) -> dict[str, Tensor]:
    """The weights of a thinner network, with what a larger one has learned added to them.

    Args:
        learned: The larger network.
        refitted: Weights and statistics of the thinner one, by the same names.
        keep: Indices that stay of its tensors, each among those of `learned.keep`.

    Returns:
        All of `refitted`. A tensor that the larger network does not have, or has in another form,
        is as it was.

    Example:
        >>> weight = torch.zeros(1, 3)
        >>> larger = Learned(1, {("weight", 1): torch.tensor([0, 2, 3])}, {"weight": weight},
        ...                  {"weight": weight + torch.tensor([[1.0, 2.0, 3.0]])})
        >>> keep = {("weight", 1): torch.tensor([0, 3])}
        >>> carried(larger, {"weight": torch.ones(1, 2)}, keep)["weight"]
        tensor([[2., 4.]])
    """
    found = {}
    for name, tensor in refitted.items():
        found[name] = tensor
        before, after = learned.before.get(name), learned.after.get(name)
        if before is None or after is None or not tensor.is_floating_point():
            continue
        change = after - before
        for dim in range(tensor.dim()):
            places = _places(name, dim, learned.keep, keep)
            if places is not None:
                change = change.index_select(dim, places.to(change.device))
        if change.shape == tensor.shape:
            found[name] = tensor + change
    return found


def _places(name: str, dim: int, wide: Keep, thin: Keep) -> Tensor | None:
    """Where in the larger network's tensor the indices of the thinner one's are."""
    key = name, dim
    if key not in thin and name.endswith(".bias"):
        # A bias that refitting added is of the units that its weight writes.
        key = name.removesuffix("bias") + "weight", dim
    stays = thin.get(key)
    if stays is None:
        return None
    held = wide.get(key)
    return stays if held is None else torch.searchsorted(held.contiguous(), stays.contiguous())
