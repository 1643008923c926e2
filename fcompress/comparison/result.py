"""What compare() gives back: the smallest network of each method within the tolerance."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from torch import nn

from fcompress.certify.agreement import AgreementResult

LATENCY_BATCH = 64


@dataclass(frozen=True)
class Compared:
    """One method.

    Attributes:
        name: Of the method, as in `options.NAMES`.
        summary: What it does, in one line.
        macs: Multiply-adds of its smallest network within the tolerance, for one example; None
            where there is none.
        params: Its parameters.
        latency_ms: Median milliseconds of a forward of `LATENCY_BATCH` examples, all networks
            taking turns.
        changed: Search examples whose answer it changes; of answers in parts the sum of the shares.
        test: Its agreement on the test split; None without one.
        tried: Every network that was tried: {"macs": , "changed": }, None where it could not be
            made.
        failed: Why there is no such network; None where there is one.
        model: The network.
    """

    name: str
    summary: str
    macs: int | None = None
    params: int | None = None
    latency_ms: float | None = None
    changed: float | None = None
    test: AgreementResult | None = None
    tried: tuple[dict[str, Any], ...] = ()
    failed: str | None = None
    model: nn.Module | None = field(default=None, repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values of everything but the network."""
        found = {name: value for name, value in vars(self).items() if name != "model"}
        found["test"] = None if self.test is None else self.test.to_dict()
        found["tried"] = list(self.tried)
        return found


@dataclass(frozen=True)
class CompareResult:
    """Methods side by side, on one network and one set of data.

    Attributes:
        rows: By the MACs of their networks, the smallest first; methods without one at the end.
        tolerance: Largest share of the search split's answers that may change.
        macs: Of the original network, for one example.
        params: Its parameters.
        latency_ms: Its median milliseconds for `LATENCY_BATCH` examples.
        noun: What to call many answers.
        calibration: Number of calibration examples.
        search: Number of search examples that count.
        test: Number of test examples; None without a test split.
        confidence: Of the bounds on the test split, each for itself.
        candidates: Most networks that a method of torch-pruning could try.
        data: Identity of the data.
        seed: Random seed.
        device: Where the networks ran.
        warnings: What weakens the result, in words.
        versions: Of what produced this.
    """

    rows: tuple[Compared, ...]
    tolerance: float
    macs: int
    params: int
    latency_ms: float
    noun: str
    calibration: int
    search: int
    test: int | None
    confidence: float
    candidates: int
    data: dict[str, Any]
    seed: int
    device: str
    warnings: tuple[str, ...]
    versions: dict[str, str]

    def __getitem__(self, name: str) -> Compared:
        """One method.

        Raises:
            KeyError: It is not among those that were compared.
        """
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(name)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values of everything but the networks."""
        return {
            **vars(self),
            "rows": [row.to_dict() for row in self.rows],
            "warnings": list(self.warnings),
        }

    def report(self, path: str | os.PathLike[str]) -> None:
        """Write all of this as one HTML page that needs nothing else.

        Args:
            path: The file, which is replaced.

        Raises:
            FcompressError: The file cannot be written.
        """
        # Pages stand above results, which know of them only when one is asked for.
        import_module("fcompress.report.html").write_page(path, self)
