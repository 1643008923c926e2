"""What stands on the page of a comparison, in plain values."""

from __future__ import annotations

from typing import Any

from fcompress.comparison.result import Compared, CompareResult
from fcompress.report.compared import compare_failures, compare_lines
from fcompress.report.html.figures import percent, rounded, share


def compared(result: CompareResult) -> dict[str, Any]:
    """Everything on the page."""
    found = [row for row in result.rows if row.failed is None]
    data = result.data
    return {
        "title": f"{len(result.rows)} methods at a tolerance of {100 * result.tolerance:g}%",
        "macs": result.macs,
        "params": result.params,
        "latency": result.latency_ms,
        "test": result.test is not None,
        "confidence": f"{result.confidence:.0%}",
        "rows": [_row(row, result) for row in found],
        "failures": list(compare_failures(result)),
        "lines": list(compare_lines(result)),
        "warnings": list(result.warnings),
        "again": [
            ("Data", str(data.get("spec"))),
            ("SHA-256 of the data", str(data.get("sha256"))),
            ("Calibration examples", f"{result.calibration:,}"),
            ("Search examples", f"{result.search:,}"),
            ("Test examples", "none" if result.test is None else f"{result.test:,}"),
            ("Most networks of a method of torch-pruning", str(result.candidates)),
            ("Random seed", str(result.seed)),
            ("Device", result.device),
            *((f"Version of {name}", version) for name, version in result.versions.items()),
        ],
        "data": {"split": "search", "results": [_curve(row, result) for row in found]},
    }


def _row(row: Compared, result: CompareResult) -> dict[str, Any]:
    assert row.macs is not None and row.params is not None and row.changed is not None
    test = None if row.test is None else row.test.changed / row.test.n
    return {
        "name": row.name,
        "summary": row.summary,
        "macs": row.macs,
        "macs_kept": share(row.macs, result.macs),
        "params": row.params,
        "params_kept": share(row.params, result.params),
        "latency": row.latency_ms,
        "latency_kept": share(row.latency_ms or 0, result.latency_ms),
        "changed": row.changed / result.search,
        "changed_said": percent(row.changed / result.search),
        "test": test,
        "test_said": "" if test is None else percent(test),
        "bound": 0 if row.test is None else row.test.upper_bound,
        "bound_said": "" if row.test is None else percent(row.test.upper_bound),
        "tried": len(row.tried),
    }


def _curve(row: Compared, result: CompareResult) -> dict[str, Any]:
    macs, n = max(result.macs, 1), result.search
    made = [one for one in row.tried if one["macs"] is not None]
    made.sort(key=lambda one: -one["macs"])
    return {
        "name": row.name,
        "points": [[rounded(one["macs"] / macs), rounded(one["changed"] / n)] for one in made],
        "chosen": [rounded((row.macs or 0) / macs), rounded((row.changed or 0) / n)],
        "tolerance": result.tolerance,
    }
