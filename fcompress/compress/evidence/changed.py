"""A few examples whose answer changed, small enough to be kept and shown.

They are looked for on the test split, without one on the certification split when its bound is
known: nothing is chosen by them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fcompress.cascades.margins import check_margins, margins
from fcompress.data.roles import Examples
from fcompress.errors import UnsupportedNetworkError
from fcompress.forward.answers.heads import main_of
from fcompress.forward.predictor import Predictor

MOST = 24  # examples that are kept
LOOKED_AT = 2000  # examples that are run to find them
SIDE = 64  # pixels on the longer side of a kept image
VALUES = 64  # numbers or tokens of an example that are kept
NAMED = 6  # labels or numbers of an answer that are written out


@dataclass(frozen=True)
class ChangedExample:
    """One example.

    Attributes:
        number: Its place in the split, from 0.
        before: The original's answer, in words.
        after: The compressed network's.
        note: Where the answers differ, of answers in parts.
        truth: The true label, where the data has one.
        margin_before: How sure the original was, in [0, 1]; None for answers without a margin.
        margin_after: The same of the compressed network.
        changed: How much of the answer changed, in (0, 1].
        kind: "image", "tokens" or "numbers".
        shape: Of the whole example.
        values: Of an image uint8 [height, width, 1 or 3]; else the first numbers.
    """

    number: int
    before: str
    after: str
    note: str
    truth: str | None
    margin_before: float | None
    margin_after: float | None
    changed: float
    kind: str
    shape: tuple[int, ...]
    values: Tensor


@dataclass(frozen=True)
class ChangedExamples:
    """What was found.

    Attributes:
        split: "test" or "certification".
        looked_at: Examples that were run.
        shown: Those that changed, in the order of the split; at most `MOST`.
    """

    split: str
    looked_at: int
    shown: tuple[ChangedExample, ...]


def changed_examples(
    original: Predictor,
    compressed: Predictor,
    examples: Examples,
    split: str,
    info: Mapping[str, Any],
) -> ChangedExamples:
    """Run both networks until enough examples changed their answer.

    Args:
        original: The original network.
        compressed: The compressed one.
        examples: To look at, in order.
        split: What they are called.
        info: Identity of the data: names of classes, and how images were standardised.
    """
    found: list[ChangedExample] = []
    done = 0
    names = [str(name) for name in info.get("class_names") or ()]
    with original.evaluating(), compressed.evaluating():
        for inputs, truth in examples.most(LOOKED_AT):
            scores = [one.scores(one.place(inputs)) for one in (original, compressed)]
            before, after = scores[0], scores[1].to(scores[0].device)
            scoring = original.scoring
            ours, theirs = scoring.labels_of(before), compressed.scoring.labels_of(after)
            lost = scoring.lost(ours, theirs).nan_to_num(0.0)
            rows = (lost > 0).nonzero().flatten()[: MOST - len(found)]
            if len(rows):
                sure = _margins(original, before[rows]), _margins(compressed, after[rows])
                main = scoring.of_main(ours[rows]), compressed.scoring.of_main(theirs[rows])
                kind = str(main_of(scoring).kind(before))
                pictures = _shown(original, inputs[rows.cpu()], info)
                for place, row in enumerate(rows.tolist()):
                    words = _words(kind, main[0][place].cpu(), main[1][place].cpu(), names)
                    label = None if truth is None else truth[row]
                    form, shape, values = pictures[place]
                    found.append(
                        ChangedExample(
                            number=done + row,
                            before=words[0],
                            after=words[1],
                            note=words[2],
                            truth=None if label is None else _named(label, names),
                            margin_before=None if sure[0] is None else float(sure[0][place]),
                            margin_after=None if sure[1] is None else float(sure[1][place]),
                            changed=float(lost[row]),
                            kind=form,
                            shape=shape,
                            values=values,
                        )
                    )
            done += len(inputs)
            if len(found) >= MOST:
                break
    return ChangedExamples(split, done, tuple(found))


def _margins(predictor: Predictor, scores: Tensor) -> Tensor | None:
    try:
        check_margins(predictor.scoring)
    except UnsupportedNetworkError:
        return None
    return margins(predictor.scoring, scores).nan_to_num(0.0)


def _named(label: Tensor, names: Sequence[str]) -> str:
    if label.dim():
        return "" if label.numel() > NAMED else " ".join(f"{v:g}" for v in label.tolist())
    value = label.item()
    whole = int(value) if float(value).is_integer() else None
    if whole is not None and 0 <= whole < len(names):
        return names[whole]
    return f"{value:g}"


def _words(kind: str, before: Tensor, after: Tensor, names: Sequence[str]) -> tuple[str, str, str]:
    """Both answers, as short as they can be told apart, and where they differ."""

    def name(number: int) -> str:
        return names[number] if 0 <= number < len(names) else str(number)

    if kind == "classes":
        return name(int(before[0])), name(int(after[0])), ""
    if kind.startswith("top-"):
        ours, theirs = set(before.tolist()), set(after.tolist())
        only = sorted(ours - theirs)[:NAMED], sorted(theirs - ours)[:NAMED]
        return ", ".join(map(name, only[0])), ", ".join(map(name, only[1])), ""
    if kind == "sigmoid":
        flips = (before != after).nonzero().flatten().tolist()[:NAMED]
        yes = [[bool(one[i] > 0) for i in flips] for one in (before, after)]
        said = [
            ", ".join(
                f"{name(i)} {'yes' if up else 'no'}" for i, up in zip(flips, one, strict=True)
            )
            for one in yes
        ]
        return said[0], said[1], ""
    if kind in ("positions", "tokens"):
        places = (before != after).flatten().nonzero().flatten()
        first = int(places[0]) if len(places) else 0
        return (
            name(int(before.flatten()[first])),
            name(int(after.flatten()[first])),
            f"at position {first}, the first of {len(places):,} of {before.numel():,} that differ",
        )
    return _numbers(before), _numbers(after), ""


def _numbers(answer: Tensor) -> str:
    """The first numbers of an answer."""
    said = ", ".join(f"{value:.3g}" for value in answer.flatten()[:NAMED].tolist())
    return said if answer.numel() <= NAMED else f"{said}, ..."


def _shown(
    predictor: Predictor, inputs: Tensor, info: Mapping[str, Any]
) -> list[tuple[str, tuple[int, ...], Tensor]]:
    """What of each example is kept: kind, shape, values."""
    first = inputs
    if predictor.packing is not None:
        args, kwargs = predictor.unpacked(predictor.network, inputs)
        first = next(iter((*args, *kwargs.values())))
    found = []
    for example in first.detach().cpu():
        shape = tuple(example.shape)
        if example.dim() == 3 and shape[0] in (1, 3) and min(shape[1:]) > 1:
            found.append(("image", shape, _image(example, info)))
        elif example.is_floating_point() or example.dim() != 1:
            found.append(("numbers", shape, example.flatten()[:VALUES].clone()))
        else:
            found.append(("tokens", shape, example[:VALUES].clone()))
    return found


def _image(example: Tensor, info: Mapping[str, Any]) -> Tensor:
    """uint8 [height, width, channels], in the values of before it was standardised if known."""
    image = example.double()
    mean, std = (torch.tensor(info.get(key) or [], dtype=torch.float64) for key in ("mean", "std"))
    if len(mean) in (1, len(image)) and len(std) == len(mean):
        image = image * std.view(-1, 1, 1) + mean.view(-1, 1, 1)
    low, high = float(image.min()), float(image.max())
    # How bright pictures of this data get tells shares from bytes; what is neither is stretched.
    bright = float((mean + 3 * std).max()) if len(std) else high
    if low >= -1e-6 and high <= 1 + 1e-6 and bright <= 4:
        image = 255 * image
    elif low < -1e-6 or not 48 < high <= 255:
        image = 255 * (image - low) / max(high - low, 1e-12)
    longest = max(image.shape[1:])
    if longest > SIDE:
        size = [max(1, round(s * SIDE / longest)) for s in image.shape[1:]]
        image = F.interpolate(image[None], size, mode="area")[0]
    return image.clamp(0, 255).round().to(torch.uint8).permute(1, 2, 0).contiguous()
