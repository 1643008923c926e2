"""What `shrink` can be asked for, checked in one place.

Nothing here needs torch, so that the command line can show its help without it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from fcompress.arguments.numbers import LEAST, MOST_BATCH, real, whole
from fcompress.certify.bounds import CONFIDENCE
from fcompress.forward.answers.asked import Asked, asked_of

METHODS: Mapping[str, str] = MappingProxyType(
    {
        "prune": "excise units by the measured effect of ablating each; nothing is refitted",
        "factor": "excise units that others explain linearly and refit what reads them",
        "hybrid": (
            "excise units by what labels notice of them beyond what others explain, and refit"
        ),
    }
)
OBJECTIVES = ("macs", "params", "latency")
SIZES = ("ratio", "max_macs", "max_params", "max_bytes", "max_latency")
QUANTIZE = ("int8",)
BATCH = 64  # examples whose latency counts, unless another number is said
TOLERANCE = 0.05  # of `shrink`, where neither a tolerance nor a size is asked for
# For each network that is distilled, in plain sweeps over calibration and search examples.
DISTILL_EFFORT = 8.0
# Of a size there is one network, which may take what several take in a search.
ALONE = 6


# Numbers: what is expected, and how to tell.
_REALS: dict[str, tuple[str, Callable[[float], bool]]] = {
    "tol": ("a share of labels in [0, 1)", lambda one: 0 <= one < 1),
    "tol_label": ("a share of labels in (0, 1)", lambda one: 0 < one < 1),
    "ratio": ("a share in (0, 1]", lambda one: 0 < one <= 1),
    "max_latency": ("milliseconds above 0", lambda one: one >= LEAST),
    "confidence": ("a number in (0, 1)", lambda one: 0 < one < 1),
    "distill_effort": (
        "a number of sweeps above 0 (to distil nothing leave distill out)",
        lambda one: one >= LEAST,
    ),
    "distill_seconds": ("a number above 0", lambda one: one >= LEAST),
}


@dataclass(frozen=True)
class ShrinkOptions:
    """How to look for the compressed network; see `shrink` for each in full.

    Attributes:
        tol: Largest share of labels that may change, in [0, 1); None for `TOLERANCE`, or with a
            size.
        method: One of `METHODS`.
        objective: What removing units is to save, one of `OBJECTIVES`.
        round_to: Keep multiples of so many units; "auto" for the largest that costs no time.
        distill: Whether to train candidates on towards the original, without labels.
        distill_effort: Work to distil one candidate with, in plain sweeps over the calibration and
            search examples, above 0; `ALONE` times as much for a size.
        distill_seconds: Most seconds for that; None for no limit.
        distill_data: Further inputs to distil on.
        ratio: Instead of a tolerance: at most this share of what the objective counts, in (0, 1].
        max_macs: Instead of a tolerance: at most this many MACs.
        max_params: Instead of a tolerance: at most this many parameters.
        max_bytes: Instead of a tolerance: at most so many bytes of parameters and buffers.
        max_latency: Instead of a tolerance: at most so many milliseconds for a batch.
        batch: Examples of a batch whose latency counts.
        calibration: Most calibration examples; None for as many as are cheap.
        confidence: Of the certificate, in (0, 1).
        seed: Random seed.
        output: Which of several outputs are the scores; None for what the network carries.
        answer: What of the outputs counts, a key of `asked.ANSWERS`; None for what the network
            carries, or else what can be told.
        labels: The same, by its older name.
        within: Of regression: how far an output may move.
        cosine: Of embeddings: the least cosine of two that are the same.
        same: A function of the user's that says which answers are.
        divergence: Another one that says how far apart they are, beside `same`.
        gallery: Of nearest neighbours: the inputs that are looked up in.
        score: Of detections: boxes below it do not count.
        iou: Of detections: the least overlap of boxes that match.
        threshold: Of pairs: the cosine above which two inputs are of one kind.
        pad: Of tokens: the id of padding.
        per_label: Whether `tol` has to hold for every label of the original with enough examples.
        tol_label: Another tolerance than `tol` to hold for every label, in (0, 1).
        stochastic: Whether a network that draws random numbers is welcome.
        balance: Whether calibration listens to all labels alike.
        keep_depth: Whether all blocks stay, so that only their units go.
        only_seen_paths: Whether units go that layers which no example reached may read or write.
        cascade: Whether the original answers where the compressed network is unsure.
        quantize: One of `QUANTIZE`, in which candidates are judged and the network is given; None
            for the network in torch.

    Raises:
        ValueError: One of them is out of its range, or a tolerance and a size are asked for.
    """

    tol: float | None = None
    method: str = "hybrid"
    objective: str = "macs"
    round_to: int | str = 1
    distill: bool = False
    distill_effort: float = DISTILL_EFFORT
    distill_seconds: float | None = None
    distill_data: object | None = None
    ratio: float | None = None
    max_macs: int | None = None
    max_params: int | None = None
    max_bytes: int | None = None
    max_latency: float | None = None
    batch: int = BATCH
    calibration: int | None = None
    confidence: float = CONFIDENCE
    seed: int = 0
    output: str | int | None = None
    labels: str | None = None
    answer: str | None = None
    within: float | str | None = None
    cosine: float | None = None
    same: Callable[[Any, Any], Any] | None = None
    divergence: Callable[[Any, Any], Any] | None = None
    gallery: object | None = None
    score: float | None = None
    iou: float | None = None
    threshold: float | None = None
    pad: int | None = None
    per_label: bool = False
    tol_label: float | None = None
    stochastic: bool = False
    balance: bool = False
    keep_depth: bool = False
    only_seen_paths: bool = False
    cascade: bool = False
    quantize: str | None = None

    def __post_init__(self) -> None:
        for name, (expected, fits) in _REALS.items():
            if getattr(self, name) is not None:
                object.__setattr__(self, name, real(name, getattr(self, name), expected, fits))
        self._check_aim()
        _ = self.asked
        object.__setattr__(self, "seed", whole("seed", self.seed))
        object.__setattr__(self, "batch", whole("batch", self.batch, 1, MOST_BATCH))
        counts = ("calibration", 2), ("max_macs", 1), ("max_params", 1), ("max_bytes", 1)
        for name, least in counts:
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, whole(name, value, least))
        if self.round_to != "auto":
            try:
                object.__setattr__(self, "round_to", whole("", self.round_to, 1, MOST_BATCH))
            except ValueError as error:
                raise ValueError(
                    f'round_to={self.round_to!r}: expected a whole number from 1 on, or "auto"'
                ) from error
        if self.method not in tuple(METHODS):
            raise ValueError(f"method={self.method!r}: expected one of {', '.join(METHODS)}")
        if self.objective not in OBJECTIVES:
            choices = ", ".join(OBJECTIVES)
            raise ValueError(f"objective={self.objective!r}: expected one of {choices}")
        if self.quantize is not None and self.quantize not in QUANTIZE:
            expected = ", ".join(QUANTIZE)
            raise ValueError(f"quantize={self.quantize!r}: expected one of {expected}, or None")
        if self.distill_data is not None and not self.distill:
            raise ValueError("distill_data has no effect without distill=True")

    def _check_aim(self) -> None:
        for name in SIZES:
            if self.tol is not None and getattr(self, name) is not None:
                raise ValueError(
                    f"tol={self.tol:g} and {name}={getattr(self, name)} contradict each other: "
                    "ask for a tolerance or for a size"
                )
        if self.by_size and self.cascade:
            raise ValueError(
                "cascade is about a tolerance: sizes and thresholds are chosen for the least "
                "average cost within it, and a size promises none; give one of them"
            )
        if self.quantize is not None and (self.by_size or self.cascade):
            raise ValueError(
                "quantize is about a tolerance for one network: a size promises no tolerance, and "
                "of a cascade, which is two networks, the original would be lost; give one of them"
            )
        if self.by_size and (self.per_label or self.tol_label is not None):
            raise ValueError(
                f"per_label and tol_label are about a tolerance, and a size ({', '.join(SIZES)}) "
                "promises none; give one of them"
            )

    @property
    def asked(self) -> Asked:
        """What was said of the answers."""
        return asked_of(self)

    @property
    def by_size(self) -> bool:
        """Whether a size is asked for instead of a tolerance."""
        return any(getattr(self, name) is not None for name in SIZES)

    @property
    def network_effort(self) -> float:
        """Work to distil one network with."""
        return self.distill_effort * (ALONE if self.by_size else 1)

    @property
    def tolerance(self) -> float | None:
        """What is to be certified; None where a size is asked for."""
        if self.by_size:
            return None
        return TOLERANCE if self.tol is None else self.tol

    @property
    def label_tolerance(self) -> float | None:
        """What is to be certified of every label; None where nothing is."""
        return self.tol_label or (self.tolerance if self.per_label else None)
