"""All that a report shows beyond a result's numbers, in one record."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from fcompress.compress.evidence.changed import ChangedExamples
from fcompress.compress.evidence.flow import Flow
from fcompress.compress.evidence.units import UnitMap


@dataclass(frozen=True)
class Evidence:
    """What was seen on the way to a compressed network.

    Attributes:
        flow: Both networks along the data flow; None if they could not be followed.
        units: A map for each group that has one, in order of execution.
        examples: Some whose answer changed; None where answers could not be shown.
        left_out: What is not here, with the reason.
    """

    flow: Flow | None = None
    units: tuple[UnitMap, ...] = ()
    examples: ChangedExamples | None = None
    left_out: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any] | None:
        """Plain JSON values of the flow: maps of single units and examples stay in memory."""
        return None if self.flow is None else self.flow.to_dict()
