"""What is known of whether a network was trained on what it is certified on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from fcompress.data.splits import OFFICIAL_TRAIN
from fcompress.models.provenance import origin_of


def seen_warning(model: nn.Module, info: Mapping[str, Any]) -> str | None:
    """A warning where a network's certification examples may be among its training examples.

    Networks that fcompress trained remember their data, whose splits are disjoint.

    Args:
        model: The network.
        info: Identity of the data (`Splits.info`).
    """
    drawn = info.get("drawn_from", {}).get("certification")
    if drawn != OFFICIAL_TRAIN or info.get("seen") is not None or origin_of(model)["data"]:
        return None
    return (
        f"the certification examples are of {info['spec']}'s official training split, on which "
        "this network may have been trained; load_data(..., seen='train') takes them from the "
        "official test split, seen='none' says that it was trained elsewhere"
    )
