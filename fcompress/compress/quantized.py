"""Candidates in int8: what is judged, certified and shipped is the file, run by onnxruntime."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fcompress.compress.search import CandidateBuilder
from fcompress.forward.predictor import Predictor
from fcompress.forward.timing import latency
from fcompress.programs.quantizing import Quantized, check_quantizable, quantized

RANGES = 1024  # calibration inputs at most that set the ranges of activations


@dataclass(frozen=True)
class Quantizer:
    """Makes the file of each candidate.

    Attributes:
        batches: Calibration inputs.
        alone: The original network in int8, nothing else changed.
    """

    batches: Sequence[Tensor]
    alone: Quantized

    def __call__(self, predictor: Predictor) -> Quantized:
        """A network in int8."""
        return quantized(predictor, self.batches)


def quantizer(original: Predictor, batches: Sequence[Tensor]) -> Quantizer:
    """What makes files of candidates; that it can is tried with the original network.

    Args:
        original: The original network.
        batches: Calibration inputs.

    Raises:
        FcompressError: It cannot be exported or quantised, or a package is missing.
    """
    check_quantizable(original)
    chosen: list[Tensor] = []
    for batch in batches:
        wanted = RANGES - sum(map(len, chosen))
        if wanted > 0:
            chosen.append(batch[:wanted])
    return Quantizer(chosen, quantized(original, chosen))


@dataclass(frozen=True)
class Int8Gains:
    """What is known of a network in int8 beside its certificate.

    Attributes:
        scheme: "int8".
        ranges: How many calibration inputs set the ranges of activations.
        left_in_float: Operators that compute in floating point, with how many of each there are.
        bytes: Of ONNX files: {"original": in single precision, "compressed": the same of the
            compressed network, "int8": as it is shipped, "original_int8": the original network
            quantised and nothing else}.
        latency_ms: Median milliseconds of 64 examples in onnxruntime, of the first three.
        latency_single_ms: The same for one example.
        search: Changed answers on the search split: {"original_int8": of the original network
            quantised and nothing else, "int8": of this one, "n": }.
    """

    scheme: str
    ranges: int
    left_in_float: dict[str, int]
    bytes: dict[str, int]
    latency_ms: dict[str, float]
    latency_single_ms: dict[str, float]
    search: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return dict(vars(self))


def int8_gains(
    builder: CandidateBuilder, found: Quantized, changed: float, example: Tensor
) -> Int8Gains:
    """What was gained by quantising.

    Args:
        builder: Where it was made.
        found: The network.
        changed: Answers that it changes on the search split.
        example: Inputs of a batch.
    """
    maker = builder.quantizer
    assert isinstance(maker, Quantizer)
    original = builder.context.original
    names = ("original", "compressed", "int8")
    sessions = [original.of(n) for n in (maker.alone.in_float(), found.in_float(), found)]
    alone = builder.changed(original.of(maker.alone))
    return Int8Gains(
        scheme="int8",
        ranges=sum(map(len, maker.batches)),
        left_in_float=found.left_in_float,
        bytes={
            "original": len(maker.alone.float_content),
            "compressed": len(found.float_content),
            "int8": len(found.content),
            "original_int8": len(maker.alone.content),
        },
        latency_ms=dict(zip(names, latency(sessions, example), strict=True)),
        latency_single_ms=dict(zip(names, latency(sessions, example[:1]), strict=True)),
        search={"original_int8": alone, "int8": changed, "n": len(builder.roles.search)},
    )
