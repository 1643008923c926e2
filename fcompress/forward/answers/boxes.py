"""Boxes of detectors as one tensor, and which of two images' boxes match.

Boxes stand in a tensor float32 [n, MOST, 6] with x1, y1, x2, y2, score, label in a row, those with
the largest scores first, and rows of `NONE` behind them. An image that has an output that is not
finite is all NaN.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fcompress.errors import FcompressError, UnsupportedNetworkError

# Boxes of an image; torchvision's and ultralytics' detectors give at most 300.
MOST = 300
NONE = -1.0
# Overlap above which, of one label, the box with the smaller score goes: what ultralytics does.
SUPPRESSED = 0.7


def overlaps(ours: Tensor, theirs: Tensor) -> Tensor:
    """Intersection over union of boxes [a, 4] and [b, 4] (x1, y1, x2, y2): [a, b]."""
    low = torch.maximum(ours[:, None, :2], theirs[None, :, :2])
    high = torch.minimum(ours[:, None, 2:], theirs[None, :, 2:])
    both = (high - low).clamp_min(0).prod(2)
    areas = [(one[:, 2:] - one[:, :2]).clamp_min(0).prod(1) for one in (ours, theirs)]
    return both / (areas[0][:, None] + areas[1][None] - both).clamp_min(1e-12)


def encoded(images: Sequence[Mapping[str, Any]], score: float) -> Tensor:
    """What a detector gives for a batch as one tensor, without boxes below a score.

    Args:
        images: For each image "boxes" [k, 4], "labels" [k] and "scores" [k].
        score: The least.

    Raises:
        FcompressError: An image has more than `MOST` boxes above the score.
    """
    found = torch.full((len(images), MOST, 6), NONE)
    for row, image in zip(found, images, strict=True):
        boxes, scores, labels = (image[key].detach().float() for key in KEYS)
        if not all(bool(one.isfinite().all()) for one in (boxes, scores)):
            row.fill_(torch.nan)
            continue
        order = scores.argsort(descending=True, stable=True)
        order = order[scores[order] >= score]
        if len(order) > MOST:
            raise FcompressError(
                f"an image has {len(order)} boxes with scores from {score:g} on, and at most "
                f"{MOST} are compared; take a larger --score (score=)"
            )
        count = len(order)
        row[:count, :4] = boxes[order].cpu()
        row[:count, 4], row[:count, 5] = scores[order].cpu(), labels[order].cpu()
    return found


KEYS = ("boxes", "scores", "labels")


def are_images(output: Any, examples: int) -> bool:
    """Whether an output is a list of dicts as torchvision's detectors give it."""
    return (
        isinstance(output, tuple | list)
        and len(output) == examples
        and all(isinstance(one, Mapping) and all(key in one for key in KEYS) for one in output)
    )


def suppressed(output: Tensor, score: float) -> list[dict[str, Tensor]]:
    """Boxes of detectors that leave suppression to others, one label each, as ultralytics'.

    Args:
        output: [n, 4 + classes, anchors]: center x, center y, width, height, then a probability
            for each class.
        score: The least.

    Returns:
        As from torchvision's detectors.
    """
    images = []
    for image in output.detach().float().cpu():
        if not bool(image.isfinite().all()):
            nothing = torch.full((1,), torch.nan)
            images.append({"boxes": nothing.expand(1, 4), "scores": nothing, "labels": nothing})
            continue
        scores, labels = image[4:].max(0)
        keep = scores >= score
        center, size = image[:2, keep].T, image[2:4, keep].T
        boxes = torch.cat([center - size / 2, center + size / 2], 1)
        scores, labels = scores[keep], labels[keep]
        order = scores.argsort(descending=True, stable=True)
        near = overlaps(boxes[order], boxes[order]) > SUPPRESSED
        near &= labels[order][:, None] == labels[order][None]
        stays = torch.ones(len(order), dtype=torch.bool)
        for number in range(len(order)):
            if stays[number]:
                stays[number + 1 :] &= ~near[number, number + 1 :]
        order = order[stays]
        images.append({"boxes": boxes[order], "scores": scores[order], "labels": labels[order]})
    return images


def matched(ours: Tensor, theirs: Tensor, iou: float) -> tuple[int, int, int]:
    """How many boxes of two images match one to one, as many as can.

    Args:
        ours: [MOST, 6].
        theirs: The same of the other network.
        iou: The least overlap of two boxes of one label that match.

    Returns:
        Matches, boxes of ours, boxes of theirs.
    """
    ours, theirs = (one[one[:, 4] != NONE].double() for one in (ours, theirs))
    may = (overlaps(ours[:, :4], theirs[:, :4]) >= iou) & (ours[:, 5, None] == theirs[None, :, 5])
    partners = [row.nonzero().flatten().tolist() for row in may]
    taken: dict[int, int] = {}

    def finds(one: int, tried: set[int]) -> bool:
        """Whether a box finds a partner, if need be by others taking another (Kuhn 1955)."""
        for other in partners[one]:
            if other not in tried:
                tried.add(other)
                if other not in taken or finds(taken[other], tried):
                    taken[other] = one
                    return True
        return False

    count = sum(finds(one, set()) for one in range(len(partners)))
    return count, len(ours), len(theirs)


def shares(reference: Tensor, found: Tensor, iou: float) -> Tensor:
    """Share of matched boxes among those of either network, for each image: float64 [n].

    It is 1 where neither has a box, and 0 where an output is not finite.
    """
    shares = []
    for one, other in zip(reference.cpu(), found.cpu(), strict=True):
        if not bool(one.isfinite().all() and other.isfinite().all()):
            shares.append(0.0)
            continue
        count, ours, theirs = matched(one, other, iou)
        shares.append(2 * count / (ours + theirs) if ours + theirs else 1.0)
    return torch.tensor(shares, dtype=torch.float64)


def check_images(output: Any, name: str) -> None:
    """Refuse what is no output of a detector.

    Raises:
        UnsupportedNetworkError: Always; it says what was expected.
    """
    came = f"shape {list(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
    raise UnsupportedNetworkError(
        f"{name} gives {came}; expected what detectors give in eval mode: a list with a dict of "
        "boxes, labels and scores for each image, or one tensor [images, 4 + classes, anchors]"
    )
