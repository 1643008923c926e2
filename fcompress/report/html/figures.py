"""Numbers as they stand on a page, and small pictures as text."""

from __future__ import annotations

import base64
import math
import struct
import zlib
from typing import Any

from torch import Tensor

_STEPS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def short(number: float) -> str:
    """A count in three digits: 40.4 M.

    Example:
        >>> short(40_409_600), short(999), short(0)
        ('40.4 M', '999', '0')
    """
    for step, letter in _STEPS:
        if abs(number) >= step * 0.9995:
            return f"{number / step:.3g} {letter}" if number < 999.5 * step else f"{number:.3g}"
    return f"{number:g}" if float(number).is_integer() else f"{number:.3g}"


def share(part: float, whole: float) -> str:
    """A share in percent with two or three digits; a dash of nothing.

    Example:
        >>> share(1, 53), share(0, 0), share(1, 10_000)
        ('1.9%', '-', '0.01%')
    """
    return percent(part / whole) if whole else "-"


def percent(value: float) -> str:
    """The same of a share."""
    if not math.isfinite(value):
        return "-"
    return f"{value:.1%}" if abs(value) >= 0.001 or not value else f"{100 * value:.2g}%"


def rounded(value: float | None, digits: int = 4) -> float | None:
    """A number with fewer digits, for data that is drawn; None where it is not finite."""
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.{digits}g}")


def png(values: Tensor) -> str:
    """A picture as a data URI.

    Args:
        values: uint8 [height, width, 1 or 3].
    """
    height, width, channels = values.shape
    rows = values.reshape(height, -1).tolist()
    raw = b"".join(b"\0" + bytes(row) for row in rows)
    header = struct.pack(">IIBBBBB", width, height, 8, 0 if channels == 1 else 2, 0, 0, 0)

    def chunk(name: bytes, content: bytes) -> bytes:
        checked = name + content
        return struct.pack(">I", len(content)) + checked + struct.pack(">I", zlib.crc32(checked))

    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(raw, 9)) + chunk(b"IEND", b"")
    encoded = base64.b64encode(b"\x89PNG\r\n\x1a\n" + content).decode()
    return f"data:image/png;base64,{encoded}"


def packed(cells: bytes) -> str:
    """Bytes as text."""
    return base64.b64encode(cells).decode()


def pair(name: str, before: float, after: float, form: str = "short") -> dict[str, Any]:
    """One size before and after, as it is shown."""
    return {
        "name": name,
        "before": _written(before, form),
        "after": _written(after, form),
        "exact": f"{_exact(before, form)} before, {_exact(after, form)} after",
        "kept": share(after, before),
        "part": min(1.0, after / before) if before else 0.0,
        "plain": form == "percent",
    }


def _written(value: float, form: str) -> str:
    if form == "percent":
        return f"{value:.2%}"
    return f"{value:.3g} ms" if form == "ms" else short(value)


def _exact(value: float, form: str) -> str:
    if form == "short":
        return f"{value:,.0f}"
    return f"{value:.4g}"
