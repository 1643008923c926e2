"""Methods side by side, in words and rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

# For annotations only: the command line shows its help without torch.
if TYPE_CHECKING:
    from fcompress.comparison.result import Compared, CompareResult

HEADINGS = ("method", "MACs", "kept", "parameters", "kept", "ms", "changed")


def compare_headings(result: CompareResult) -> tuple[str, ...]:
    """Of `compare_rows`."""
    return (*HEADINGS, "on test") if result.test is not None else HEADINGS


def compare_rows(result: CompareResult) -> Iterator[tuple[str, ...]]:
    """The original, and each method that has a network within the tolerance."""
    size = (f"{result.macs:,}", "", f"{result.params:,}", "", f"{result.latency_ms:.3g}")
    yield ("original", *size, *[""] * (len(compare_headings(result)) - 6))
    for row in result.rows:
        if row.failed is None:
            yield _cells(row, result)


def _cells(row: Compared, result: CompareResult) -> tuple[str, ...]:
    assert row.macs is not None and row.params is not None and row.changed is not None
    cells = [row.name, f"{row.macs:,}", f"{row.macs / max(result.macs, 1):.1%}"]
    cells += [f"{row.params:,}", f"{row.params / max(result.params, 1):.1%}"]
    cells += [f"{row.latency_ms:.3g}", f"{row.changed / result.search:.1%}"]
    if row.test is not None:
        cells.append(f"{row.test.changed / row.test.n:.1%}")
    return tuple(cells)


def compare_failures(result: CompareResult) -> Iterator[tuple[str, str]]:
    """Methods without a network, with the reason; those with the same reason together."""
    reasons: dict[str, list[str]] = {}
    for row in result.rows:
        if row.failed is not None:
            reasons.setdefault(row.failed, []).append(row.name)
    for reason, names in reasons.items():
        yield ", ".join(names), reason


def compare_lines(result: CompareResult) -> Iterator[str]:
    """What the numbers are about."""
    test = "There is no test split, so nothing says how the networks fare on other examples."
    if result.test is not None:
        test = f"On test: the same of {result.test:,} test examples, which nothing was chosen on."
    yield (
        f"Each method's smallest network that changes at most {100 * result.tolerance:g}% of the "
        f"{result.noun} of {result.search:,} search examples; ms for 64 examples. {test}"
    )
    yield (
        "Nothing here is certified, and the certification split was not used: "
        "fcompress shrink certifies on it."
    )
