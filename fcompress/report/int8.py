"""Networks in int8 in words: what is certified, what is not in int8, bytes and times."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

# For annotations only: the command line shows its help without torch.
if TYPE_CHECKING:
    from fcompress.compress.quantized import Int8Gains


def int8_lines(int8: Int8Gains, noun: str) -> Iterator[str]:
    """What a network in int8 is, and what it costs.

    Args:
        int8: What is known of it.
        noun: What its answers are called.
    """
    yield (
        "An ONNX file in int8, run by onnxruntime, is what was certified: compression and "
        f"quantisation together. Ranges are those of {int8.ranges:,} calibration examples."
    )
    left = ", ".join(f"{name} ({count})" for name, count in int8.left_in_float.items())
    yield f"Operators left in floating point: {left or 'none'}."
    sizes, search = int8.bytes, int8.search
    yield (
        f"Bytes of ONNX: {sizes['original']:,} of the original in floating point, "
        f"{sizes['compressed']:,} compressed, {sizes['int8']:,} in int8 "
        f"({sizes['int8'] / sizes['original']:.1%})."
    )
    yield (
        f"The original in int8, with nothing removed, has {sizes['original_int8']:,} bytes and "
        f"changed {search['original_int8']:,.4g} of {search['n']:,} search {noun}; this one "
        f"changed {search['int8']:,.4g}."
    )
    many, single = int8.latency_ms, int8.latency_single_ms
    yield (
        f"Milliseconds in onnxruntime for 64 examples (for one): original {many['original']:.3g} "
        f"({single['original']:.3g}), compressed {many['compressed']:.3g} "
        f"({single['compressed']:.3g}), in int8 {many['int8']:.3g} ({single['int8']:.3g})."
    )
