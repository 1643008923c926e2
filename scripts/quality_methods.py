"""All methods of `bench quality` by name, and what kind each is."""

import rivals_folding
import rivals_osscar
import rivals_own
import rivals_pruning
import rivals_reconstruction
from rivals import Rival

KINDS: dict[str, tuple[Rival, ...]] = {
    "torch-pruning": rivals_pruning.RIVALS,
    "reconstruction": (
        *rivals_reconstruction.RIVALS,
        *rivals_folding.RIVALS,
        *rivals_osscar.RIVALS,
    ),
    "fcompress": (*rivals_own.RIVALS, *rivals_own.POLISHED),
}
METHODS: dict[str, Rival] = {r.name: r for kind in KINDS.values() for r in kind}
KIND = {r.name: kind for kind, rivals in KINDS.items() for r in rivals}
QUICK = (
    "tp-l1-global",
    "tp-l2-layer",
    "id-uniform",
    "gram-compensation",
    "folding",
    "prune",
    "factor",
    "hybrid",
)


def base_of(method: str) -> str | None:
    """The method whose networks this one polishes; None for a method that makes its own."""
    base, _, step = method.partition("+")
    return base if step else None
