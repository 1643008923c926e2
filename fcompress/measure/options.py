"""What `analyze` can be asked for, checked in one place, with the protocol's values as defaults.

Nothing here needs torch, so that the command line can show its help without it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fcompress.arguments.numbers import (
    LARGEST,
    MOST_BATCH,
    MOST_STEPS,
    OutOfRange,
    real,
    short,
    whole,
)
from fcompress.forward.answers.asked import Asked, asked_of

Unit = Literal["element", "map"]
UNITS = ("element", "map")

TOLERANCES = (0.2, 0.3, 0.4, 0.5)
REDUNDANCY_TOLERANCES = (0.05, 0.10, 0.15)
BATCH_SIZE = 256
STEPS = 6  # proportions 0, 1/6, ... 1 (docs/protocol.md 1.3)
ORDERS = 3
# A layer's curve costs half as much as the network's, and there are many layers: with so many
# examples its agreement is known to 0.018 (one standard deviation at an agreement of 0.8).
LAYER_EXAMPLES = 500


@dataclass(frozen=True)
class AnalyzeOptions:
    """How to measure a network; see `analyze` for each in full.

    Attributes:
        tolerances: Shares of labels that may change, in [0, 1), main one first.
        redundancy_tolerances: Shares of variance that may stay unexplained, main one first.
        unit: What is ablated: single elements of a feature map, or whole maps.
        by_layer: Whether to measure each layer's own ablation curve.
        layer_examples: Measure the layers' own curves on the first so many examples; None for all.
        examples: Measure everything on the first so many examples only; None for all.
        steps: Steps from nothing to everything ablated.
        orders: Random orders of ablation.
        seed: Random seed of the orders.
        layers: Addresses of the layers to ablate; None for the protocol's.
        redundancy_layers: Addresses of the layers to analyse for redundancy; None as before.
        groups: Whether to find what can be excised.
        device: Where to compute, "auto" for a GPU if there is one; None for where the network is.
        batch_size: Examples at a time, where the data is not in batches yet.
        output: Which of several outputs are the scores.
        answer: What of the outputs counts, a key of `asked.ANSWERS`; None for what the network
            carries, or else what can be told.
        labels: The same, by its older name.
        within: Of regression: how far an output may move.
        cosine: Of embeddings: the least cosine of two that are the same.
        same: A function of the user's that says which answers are.
        gallery: Of nearest neighbours: the inputs that are looked up in.
        score: Of detections: boxes below it do not count.
        iou: Of detections: the least overlap of boxes that match.
        threshold: Of pairs: the cosine above which two inputs are of one kind.
        pad: Of tokens: the id of padding.

    Raises:
        ValueError: One of them is out of its range.
    """

    tolerances: Sequence[float] = TOLERANCES
    redundancy_tolerances: Sequence[float] = REDUNDANCY_TOLERANCES
    unit: Unit = "element"
    by_layer: bool = True
    layer_examples: int | None = LAYER_EXAMPLES
    examples: int | None = None
    steps: int = STEPS
    orders: int = ORDERS
    seed: int = 0
    layers: Sequence[str] | None = None
    redundancy_layers: Sequence[str] | None = None
    groups: bool = True
    device: Any = None
    batch_size: int = BATCH_SIZE
    output: str | int | None = None
    labels: str | None = None
    answer: str | None = None
    within: float | str | None = None
    cosine: float | None = None
    same: Callable[[Any, Any], Any] | None = None
    gallery: object | None = None
    score: float | None = None
    iou: float | None = None
    threshold: float | None = None
    pad: int | None = None

    def __post_init__(self) -> None:
        _ = self.asked
        for name in ("tolerances", "redundancy_tolerances"):
            given = getattr(self, name)
            if isinstance(given, str | bytes) or not isinstance(given, Iterable):
                raise OutOfRange(f"{name}={short(given)}: expected a list of numbers in [0, 1)")
            taken = [real("tolerance", one, "[0, 1)", lambda one: 0 <= one < 1) for one in given]
            object.__setattr__(self, name, tuple(taken))
        if self.unit not in UNITS:
            raise ValueError(f"unit={self.unit!r}: expected one of {', '.join(UNITS)}")
        for name, least, most in (
            ("layer_examples", 1, LARGEST),
            ("examples", 1, LARGEST),
            ("steps", 1, MOST_STEPS),
            ("orders", 1, MOST_STEPS),
            ("batch_size", 1, MOST_BATCH),
            ("seed", 0, LARGEST),
        ):
            value = getattr(self, name)
            if value is not None or name not in ("layer_examples", "examples"):
                object.__setattr__(self, name, whole(name, value, least, most))

    @property
    def asked(self) -> Asked:
        """What was said of the answers."""
        return asked_of(self)
