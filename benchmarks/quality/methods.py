"""All methods of `bench quality` by name, and what kind each is."""

from benchmarks.quality.shipped import FORMS, Shipped
from benchmarks.rivals import folding as rivals_folding
from benchmarks.rivals import osscar as rivals_osscar
from benchmarks.rivals import own as rivals_own
from benchmarks.rivals import reconstruction as rivals_reconstruction
from benchmarks.rivals import torch_pruning as rivals_pruning
from benchmarks.rivals.base import Rival

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
# What is shipped of the networks of the method with the thinnest ones, and of torch-pruning's.
_BASES = ("hybrid", *(r.name for r in rivals_pruning.RIVALS if r.pruning.score != "random"))
SHIPPED = {s.name: s for form in FORMS for s in (Shipped(METHODS[b], form) for b in _BASES)}
NAMES = (*METHODS, *SHIPPED)
KIND = {r.name: kind for kind, rivals in KINDS.items() for r in rivals}
KIND |= {name: KIND[shipped.base.name] for name, shipped in SHIPPED.items()}
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
    return base if step and method not in SHIPPED else None
