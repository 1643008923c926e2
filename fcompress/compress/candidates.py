"""Candidates of a search in a state to be saved, for whoever wants to keep them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from fcompress.certify.fixed_sequence import Candidate
from fcompress.compress.search import CandidateBuilder
from fcompress.forward.copying import deep_copy
from fcompress.models.fingerprint import judged
from fcompress.models.provenance import hand_on, origin_of, set_origin, versions


def watching(
    model: nn.Module, builder: CandidateBuilder, watch: Callable[[Candidate, nn.Module], None]
) -> Callable[[Candidate], None]:
    """What hands each candidate on with a copy of its network that knows where it comes from.

    Args:
        model: The caller's network.
        builder: Makes the candidates.
        watch: Is given them.
    """
    scoring, context = builder.context.original.scoring, builder.context
    answer: dict[str, Any] = {}

    def told(found: Candidate) -> None:
        if not answer:
            original = context.original
            answer.update(scoring.described(original.scores(context.batches[0][:2])))
        copied = deep_copy(found.model)
        hand_on(found.model, copied)
        hand_on(model, copied)
        origin = origin_of(copied)
        entry = {
            "action": "candidate",
            "removed": found.removed,
            "distilled": found.distill is not None,
            "macs": {"before": context.macs, "after": found.macs},
            "changed": found.changed,
            "n": found.n,
            "output": scoring.output,
            "agreement": {"answer": dict(answer)},
            "seed": context.seed,
            "data": builder.roles.info,
            "versions": versions(),
        }
        entry["method"] = type(builder.method).__name__.lower()
        set_origin(copied, origin["data"], [*judged(origin["history"], model), entry])
        watch(found, copied.cpu())

    return told
