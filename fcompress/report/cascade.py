"""Cascades in words: the average beside the worst case, and the memory of both networks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from fcompress.report.labels import rounded_up

# For annotations only: the command line shows its help without torch.
if TYPE_CHECKING:
    from fcompress.compress.cascade.gains import CascadeGains
    from fcompress.compress.result import ShrinkResult


def cascade_lines(cascade: CascadeGains, confidence: float) -> Iterator[str]:
    """What a cascade is, how many examples it defers, and what it costs.

    Args:
        cascade: What is known of it.
        confidence: Of each bound.
    """
    deferred, macs = cascade.deferred, cascade.macs
    yield (
        "A cascade of two networks: the compressed one answers where its margin (the difference of "
        f"its two largest probabilities) is at least {cascade.threshold:.6g}, the original answers "
        "the rest."
    )
    yield (
        f"It deferred {deferred['count']:,} of {deferred['n']:,} certification examples "
        f"({deferred['share']:.1%}), so with {confidence:.0%} confidence at most "
        f"{rounded_up(deferred['upper_bound'])} of all are. Each bound holds with {confidence:.0%} "
        f"confidence by itself, both together with at least {cascade.confidence_of_both:.0%}."
    )
    yield (
        f"MACs for an example: {macs['average']:,.0f} on average (at most "
        f"{macs['average_at_most']:,.0f} by that bound), {macs['compressed']:,} where the "
        f"compressed network answers, {macs['worst']:,} where the original does, which alone "
        f"takes {macs['original']:,}. Both networks have to be in memory."
    )
    if not deferred["count"]:
        yield (
            "Warning: nothing was deferred, so the compressed network alone would do; without "
            "cascade (--cascade) the original needs no memory."
        )


def cascade_rows(result: ShrinkResult) -> Iterator[tuple[str, dict[str, Any]]]:
    """What is counted of a cascade: name, {"before": , "after": }.

    Args:
        result: One with a cascade.
    """
    assert result.cascade is not None
    macs = result.cascade.macs
    yield "parameters, of both networks", result.params
    yield "MACs, on average", result.macs
    yield "MACs, at worst", {"before": macs["original"], "after": macs["worst"]}


def cascade_sizes(entry: Mapping[str, Any]) -> str:
    """Sizes in a history's entry about a cascade, in words."""
    macs, deferred = entry["cascade"]["macs"], entry["cascade"]["deferred"]
    params = entry["params"]
    return (
        f"a cascade with the original network, parameters of both {params['before']:,} -> "
        f"{params['after']:,}, MACs on average {macs['original']:,} -> {macs['average']:,.0f}, at "
        f"worst {macs['worst']:,}; {deferred['count']:,} of {deferred['n']:,} certification "
        f"examples deferred, at most {rounded_up(deferred['upper_bound'])} of all"
    )
