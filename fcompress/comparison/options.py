"""The methods that can be compared, by name.

Nothing here needs torch, so that the command line can show its help without it.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from fcompress.compress.options import METHODS

# What torch-pruning can rank units by.
SCORES: Mapping[str, str] = MappingProxyType(
    {
        "l1": "L1 norm of the group's weights",
        "l2": "L2 norm of the group's weights",
        "taylor": (
            "first-order Taylor, gradient of the cross-entropy towards the network's own labels "
            "(no true labels) summed over the calibration inputs"
        ),
        "bn-scale": "scale of batch norm (network slimming)",
        "random": "random",
    }
)
TORCH_PRUNING = tuple(f"tp-{score}-{scope}" for score in SCORES for scope in ("global", "layer"))
NAMES = (*METHODS, *TORCH_PRUNING)
DISTILLED = "+distill"  # behind the name of a method whose networks are distilled
