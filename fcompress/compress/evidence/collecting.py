"""Everything that a report shows, collected when the compressed network is there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Protocol

from torch import Tensor

from fcompress.compress.evidence.changed import ChangedExamples, changed_examples
from fcompress.compress.evidence.evidence import Evidence
from fcompress.compress.evidence.flow import Flow, flow_of
from fcompress.compress.evidence.units import UnitMap
from fcompress.data.roles import Roles
from fcompress.errors import FcompressError
from fcompress.forward.predictor import Predictor
from fcompress.structure.groups import Structure

UNMEASURED = {
    "ablation": "ablation curves, which fcompress analyze --report measures",
    "units": "the method does not measure how much the labels listen to a unit",
    "examples": "the network draws random numbers, so that a run of its own changes other answers",
}


class Known(Protocol):
    """Of a method's context, what is shown."""

    @property
    def original(self) -> Predictor:
        """The original network."""

    @property
    def structure(self) -> Structure:
        """Its groups."""

    @property
    def maps(self) -> dict[str, UnitMap]:
        """Where the units of each group stand."""


def collected(
    context: Known,
    both: tuple[Predictor, Predictor],
    thin: Predictor,
    kept: Mapping[str, Tensor],
    roles: Roles,
    batch: Tensor,
) -> Evidence:
    """Collect what a report shows.

    What cannot be had is left out with the reason: a result never fails for the sake of its
    pictures.

    Args:
        context: What was measured on the way.
        both: The original and what was certified.
        thin: The compressed network alone, where it is part of a pair.
        kept: Kept units of each group.
        roles: The data.
        batch: Inputs [N, ...] to time layers with.
    """
    left_out = {"ablation": UNMEASURED["ablation"]}
    flow: Flow | None = None
    examples: ChangedExamples | None = None
    try:
        flow = flow_of(context.original, thin, context.structure, kept, batch)
    except FcompressError as error:
        left_out["flow"] = str(error)
    if context.original.draws:
        left_out["examples"] = UNMEASURED["examples"]
    else:
        split = "certification" if roles.test is None else "test"
        try:
            examples = changed_examples(*both, roles.test or roles.certification, split, roles.info)
        except FcompressError as error:
            left_out["examples"] = str(error)
    maps = tuple(
        replace(found, kept=len(kept.get(name, found.order)))
        for name, found in context.maps.items()
    )
    if not maps:
        left_out["units"] = UNMEASURED["units"]
    return Evidence(flow, maps, examples, left_out)
