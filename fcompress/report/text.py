"""Results in words and rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from fcompress.forward.answers.asked import CONTINUOUS, IN_PARTS, noun_of
from fcompress.report.cascade import cascade_lines, cascade_rows
from fcompress.report.int8 import int8_lines
from fcompress.report.labels import promise_lines, rounded_up

# For annotations only: the command line shows its help without torch.
if TYPE_CHECKING:
    from fcompress.certify.agreement import AgreementResult
    from fcompress.compress.result import ShrinkResult
    from fcompress.exports.exporting import ExportResult


def agreement_sentence(result: AgreementResult, where: str) -> str:
    """What an agreement proves, in words.

    Args:
        result: The agreement.
        where: What it was measured on, for example "certification examples".
    """
    stays = _stays(result.answer or {"kind": result.labels})
    if stays is not None:
        return (
            f"On {result.n:,} {where} the outputs of {result.same:,} {stays} and those of "
            f"{result.changed:,} did not ({result.changed / result.n:.1%}), so with "
            f"{result.confidence:.0%} confidence at most {rounded_up(result.upper_bound)} of "
            f"examples do not.{_matched_sentence(result)}"
        )
    if result.deviation is not None:
        return _parts_sentence(result, where)
    if result.labels.startswith("top-"):
        of_set = f"the set of their {result.labels.removeprefix('top-')} largest scores"
        changed, subject, after = of_set, "of examples ", " theirs"
    else:
        changed, subject, after = _LABELS_IN_WORDS[result.labels]
    if result.heads:
        changed += f" or that of another head ({', '.join(result.heads)})"
        subject, after = "of examples ", " a label"
    sentence = (
        f"On {result.n:,} {where} {result.changed:,} changed {changed} "
        f"({result.changed / result.n:.1%}), so with {result.confidence:.0%} confidence at most "
        f"{rounded_up(result.upper_bound)} {subject}change{after}."
    )
    return sentence


def history_sentence(agreement: Mapping[str, Any], where: str) -> str:
    """`agreement_sentence` of what a network's history remembers (`AgreementResult.to_dict`).

    Args:
        agreement: Plain values; files of earlier versions lack some.
        where: As for `agreement_sentence`.

    Raises:
        KeyError: It lacks what all versions have.
        TypeError: A value is of another type.
    """
    n, same = agreement["n"], agreement["same"]
    remembered: Any = SimpleNamespace(
        n=n,
        same=same,
        changed=n - same,
        confidence=agreement["confidence"],
        upper_bound=1 - agreement["lower_bound"],
        labels=agreement.get("labels", "classes"),
        deviation=agreement.get("deviation"),
        positions=agreement.get("positions"),
        answer=agreement.get("answer"),
        heads=agreement.get("heads", ()),
        matched=agreement.get("matched"),
    )
    return agreement_sentence(remembered, where)


def changing(kind: str, tolerance: str) -> str:
    """What of answers of a kind may change, as "20% of the labels".

    Args:
        kind: As in `AgreementResult.labels`.
        tolerance: The share, as it is to be written.
    """
    whole = {"positions": " of an example", "tokens": " of an example"}.get(kind, "")
    return f"{tolerance} of the {noun_of(kind)}{whole}"


def _parts_sentence(result: AgreementResult, where: str) -> str:
    """Of answers that change in part."""
    changed = noun_of(result.labels)
    other = ""
    if result.heads:
        other = f" (all of them where another head, {', '.join(result.heads)}, changed its label)"
    sentence = (
        f"On {result.n:,} {where} {result.changed / result.n:.1%} of the {changed} of an example "
        f"changed on average{other}, so with {result.confidence:.0%} confidence at most "
        f"{rounded_up(result.upper_bound)} change."
    )
    if result.positions is not None and result.labels == "tokens":
        sentence += f" Over all their positions {1 - result.positions:.1%} changed."
    return sentence


def _stays(answer: Mapping[str, Any]) -> str | None:
    """What outputs do whose answer stays; None for answers that are labels."""
    kind = answer["kind"]
    if kind in ("regression", "regression-norm"):
        within, said = answer.get("within"), answer.get("said")
        if isinstance(within, list):
            how_far = f"{min(within):.3g} to {max(within):.3g}"
        else:
            how_far = "what is allowed" if within is None else f"{within:.3g}"
        share = f" ({said} of their standard deviation)" if said else ""
        vector = " as vectors" if kind == "regression-norm" else ""
        return f"stayed within {how_far}{share} of the original's{vector}"
    if kind == "embedding":
        return f"kept a cosine of at least {answer.get('cosine', 0):g} with the original's"
    if kind == "same":
        return f"stayed the same by {answer.get('function', 'the given function')}"
    if kind == "nearest":
        return "kept their nearest entry of the gallery"
    if kind == "detections":
        score, iou = answer.get("score", 0), answer.get("iou", 0)
        return f"kept every box (score from {score:g}, overlap from {iou:g}, same label)"
    return None


def _matched_sentence(result: AgreementResult) -> str:
    """Of detections, what stays of an image on average."""
    if result.matched is None:
        return ""
    return (
        f" {result.matched['share']:.1%} of the boxes of an image had a match on average, at least "
        f"{100 - float(rounded_up(1 - result.matched['lower_bound']).rstrip('%')):.1f}% with the "
        "same confidence for this network alone."
    )


# What changed of an example, what the bound is about, and in what way.
_LABELS_IN_WORDS = {
    "classes": ("their label", "", ""),
    "pairs": ("their decision", "of pairs ", " theirs"),
    "sigmoid": ("at least one of their labels", "of examples ", " any"),
}


def verdict(result: ShrinkResult) -> Iterator[str]:
    """The tolerance, what was proven, and on what."""
    if result.tolerance is not None:
        kind = result.agreement.labels
        what = {
            "sigmoid": "examples may change any of their labels",
            "positions": "positions of an example may change their label, on average",
            "tokens": "next tokens of an example may change, on average",
            "classes": "labels may change",
        }.get(kind, "examples may change their answer")
        yield f"At most {100 * result.tolerance:g}% of the {what}."
        yield from promise_lines(result.agreement.by_label)
    else:
        bound = rounded_up(result.agreement.upper_bound)
        yield f"Size target: no tolerance is certified (bound {bound})."
        yield from target_lines(result.target)
    grouped = "groups" in result.data
    what = "certification groups, by one drawn example of each," if grouped else ""
    yield agreement_sentence(result.agreement, what or "certification examples")
    drawn = result.data.get("drawn_from", {}).get("certification", "")
    if drawn.startswith("official"):
        yield f"Search and certification examples are of the {drawn} of {result.data['spec']}."
    if result.cascade is not None:
        yield from cascade_lines(result.cascade, result.agreement.confidence)
    if result.quantized is not None:
        yield from int8_lines(result.quantized, noun_of(result.agreement.labels))
    if result.tested > 1:
        yield (f"{result.tested} candidates were tested on this split; the bound accounts for it.")
    if result.distill is not None:
        yield distill_sentence(result.distill, result.agreement.labels)
    near = result.copies.near
    if result.copies.left_out:
        yield (
            f"{result.copies.left_out:,} more certification examples do not count: "
            f"{result.copies.shared:,} also stand in the calibration or search data, "
            f"{result.copies.repeated:,} are copies of others"
            + (f", {near:,} are nearly the same as others." if near else ".")
        )
    for warning in result.warnings:
        yield f"Warning: {warning}."
    if result.test is not None:
        yield agreement_sentence(result.test, "test examples, which nothing else touched,")
    if result.accuracy is not None:
        yield (
            f"Accuracy: {result.accuracy['before']:.2%} before, "
            f"{result.accuracy['after']:.2%} after."
        )
    if result.blocks:
        yield f"Dropped as a whole: {', '.join(result.blocks)}."
    if result.folded:
        yield f"Computed at every call before, plain weights now: {', '.join(result.folded)}."
    for left in result.skipped:
        yield f"Not pruned: {left['name']}: {left['reason']}."


def target_lines(target: Mapping[str, Any] | None) -> Iterator[str]:
    """What was limited, and what was reached (`FoundOfSize.target`)."""
    for name, most in ({} if target is None else target["limits"]).items():
        unit, form = _TARGETS[name]
        of = f" for a batch of {target['batch']}" if name == "latency" and target else ""
        has = target["reached"][name] if target else 0
        yield f"Asked for at most {most:{form}} {unit}{of}; it has {has:{form}}."


# What is limited, in words, and the form of its numbers.
_TARGETS = {
    "macs": ("MACs", ",.0f"),
    "params": ("parameters", ",.0f"),
    "bytes": ("bytes of parameters and buffers", ",.0f"),
    "latency": ("ms", ".3g"),
}


def distill_sentence(distilled: Mapping[str, Any], kind: str = "classes") -> str:
    """What distilling did (`Distilled.to_dict`), to answers of a kind."""
    if not distilled["kept"]:
        return "Distilling made it no better and was undone."
    before, after = distilled["before"]["agreement"], distilled["after"]["agreement"]
    noun = noun_of(kind)
    cut = " (cut short by the time limit)" if distilled["stopped_by"] == "time" else ""
    return (
        f"Distilled on {distilled['examples']:,} unlabelled examples for {distilled['steps']:,} "
        f"steps{cut}: {before:.1%} of {noun} agreed on {distilled['held_out']:,} held-out search "
        f"examples before, {after:.1%} after."
    )


def export_lines(results: Sequence[ExportResult]) -> Iterator[str]:
    """What was written and how it was checked."""
    for result in results:
        what = "outputs" if result.labels in CONTINUOUS else "scores"
        yield (
            f"Written: {result.path} ({result.bytes:,} bytes). Run on {result.n:,} examples: "
            f"{result.same:,} {_alike(result.labels)} as in memory, {what} differ by "
            f"{result.largest_difference:.2g} at most ({result.allowed_difference:.2g} allowed)."
        )
        agreement = result.agreement
        if agreement is not None:
            allowed = "" if result.tolerance is None else f" ({result.tolerance:.1%} allowed)"
            share = f"{agreement.changed / agreement.n:.1%}"
            noun = noun_of(agreement.labels)
            differ = f"{agreement.changed:,} of {agreement.n:,} {noun} differ", f" ({share})"
            if agreement.deviation is not None:
                differ = f"{share} of the {noun} of {agreement.n:,} examples differ", ""
            yield f"  {differ[0]} from the original network's{differ[1]}{allowed}."


def _alike(kind: str) -> str:
    """What examples of an export were counted by."""
    return "examples' labels" if kind in IN_PARTS else noun_of(kind)


def change_rows(result: ShrinkResult) -> Iterator[tuple[str, str, str, str]]:
    """Rows of name, before, after, share kept."""
    counts: Iterable[tuple[str, dict[str, Any]]]
    counts = ("parameters", result.params), ("MACs", result.macs)
    if result.cascade is not None:
        counts = cascade_rows(result)
    for name, pair in counts:
        yield name, f"{pair['before']:,}", f"{pair['after']:,}", _share(pair)
    size = result.bytes
    yield "file, bytes", f"{size['before']:,}", f"{size['after']:,}", _share(size)
    one = "with one example" if result.cascade is None else "with one example, on average"
    times = (("for 64 examples", result.latency_ms), (one, result.latency_single_ms))
    for batch, time in times:
        yield (
            f"latency, ms {batch}",
            f"{time['before']:.3g}",
            f"{time['after']:.3g}",
            _share(time),
        )


def _share(pair: dict[str, int] | dict[str, float]) -> str:
    if not pair["before"]:
        return "-"
    share = pair["after"] / pair["before"]
    return f"{share:.1%}" if share >= 0.001 else f"{100 * share:.2g}%"
