"""From what was said of answers, or is known of networks, to how they are read."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from fcompress.forward.answers.asked import Asked
from fcompress.forward.answers.detections import Detections
from fcompress.forward.answers.nearest import Nearest
from fcompress.forward.answers.own import Own
from fcompress.forward.answers.pairs import Pairs
from fcompress.forward.answers.scoring import BY_SHAPE, Scoring
from fcompress.models.provenance import reading_of


def scoring_of(output: str | int | None, said: Asked) -> Scoring:
    """How answers of the kind that was said are read off an output."""
    if said.kind == "nearest":
        return Nearest(output, said.kind, gallery=said.gallery)
    if said.kind == "detections":
        return Detections(output, said.kind, score=said.score, iou=said.iou)
    if said.kind == "pairs":
        return Pairs(output, said.kind, threshold=said.threshold)
    if said.divergence is not None:
        return Own(output, said.kind, same=said.same, own=said.divergence)
    return Scoring(output, said.kind, said.within, said.cosine, said.same, said.pad)


def carried(model: nn.Module) -> Scoring | None:
    """How a network's answers were read when it was compressed; None if nobody said."""
    said = reading_of(model)
    if said is None:
        return None
    within = said.get("within")
    if isinstance(within, list):
        within = tuple(float(one) for one in within if isinstance(one, int | float))
    names = ("cosine", "same", "divergence", "gallery", "score", "iou", "threshold", "pad")
    try:
        asked = Asked(said["labels"], within, **{name: said.get(name) for name in names})
        found = scoring_of(said["output"], asked)
    except (TypeError, ValueError):  # files come from anywhere
        return Scoring(said["output"])
    if isinstance(found, Nearest):
        return replace(found, embedded=said.get("embedded"))
    return found


def resolved(
    output: str | int | None, said: Asked, models: tuple[nn.Module, ...]
) -> tuple[Scoring, ...]:
    """What was said, or else what is known of the networks, for each of them.

    Args:
        output: For all networks; None for what is known of each.
        said: The same of the answers.
        models: The networks; one of which nothing is known is read like the first other one.
    """
    known = [carried(model) for model in models]
    other = next((one for one in known if one is not None), BY_SHAPE)
    each = [one or other for one in known]
    if said.kind is None:
        main = next((one for one in each if one.labels is not None), scoring_of(None, said))
    else:
        main = scoring_of(None, said)
        # A gallery that nobody names again is the one that a network was compressed with.
        galleries = (one for one in each if isinstance(one, Nearest))
        if isinstance(main, Nearest) and said.gallery is None:
            main = next(galleries, main)
    return tuple(replace(main, output=c.output if output is None else output) for c in each)
