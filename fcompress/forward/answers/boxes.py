"""Boxes of detectors as one tensor, and which of two images' boxes match.

Boxes stand in a tensor float32 [n, MOST, 6] with x1, y1, x2, y2, score, label in a row, those with
the largest scores first, and rows of `NONE` behind them. An image that has an output that is not
finite is all NaN.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fcompress.errors import FcompressError, UnsupportedNetworkError

# Boxes of an image; torchvision's and ultralytics' detectors give at most 300.
MOST = 300
NONE = -1.0
# Overlap above which, of one label, the box with the smaller score goes: what ultralytics does.
SUPPRESSED = 0.7


def overlaps(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes [a, 4] and [b, 4] (x1, y1, x2, y2): [a, b]."""
    low = np.maximum(ours[:, None, :2], theirs[None, :, :2])
    high = np.minimum(ours[:, None, 2:], theirs[None, :, 2:])
    both = (high - low).clip(0).prod(2)
    areas = [(one[:, 2:] - one[:, :2]).clip(0).prod(1) for one in (ours, theirs)]
    return both / (areas[0][:, None] + areas[1][None] - both).clip(1e-12)


def encoded(images: Sequence[Mapping[str, Any]], score: float) -> Tensor:
    """What a detector gives for a batch as one tensor, without boxes below a score.

    Args:
        images: For each image "boxes" [k, 4], "labels" [k] and "scores" [k].
        score: The least.

    Raises:
        FcompressError: An image has more than `MOST` boxes above the score.
    """
    found = np.full((len(images), MOST, 6), NONE, np.float32)
    for row, image in zip(found, images, strict=True):
        boxes, scores, labels = (_array(image[key]) for key in KEYS)
        if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
            row[:] = np.nan
            continue
        order = np.argsort(-scores, kind="stable")
        order = order[scores[order] >= score]
        if len(order) > MOST:
            raise FcompressError(
                f"an image has {len(order)} boxes with scores from {score:g} on, and at most "
                f"{MOST} are compared; take a larger --score (score=)"
            )
        count = len(order)
        row[:count, :4], row[:count, 4] = boxes[order].reshape(count, 4), scores[order]
        row[:count, 5] = labels[order]
    return torch.from_numpy(found)


def _array(tensor: Any) -> np.ndarray:
    return torch.as_tensor(tensor).detach().cpu().float().numpy()


KEYS = ("boxes", "scores", "labels")
DETECTORS = (
    "detectors of one stage (SSD, RetinaNet, FCOS, YOLO) are compressed, and any are compared by "
    "verify"
)


def are_images(output: Any, examples: int) -> bool:
    """Whether an output is a list of dicts as torchvision's detectors give it."""
    return (
        isinstance(output, tuple | list)
        and len(output) == examples
        and all(isinstance(one, Mapping) and all(key in one for key in KEYS) for one in output)
    )


def suppressed(output: Tensor, score: float) -> list[dict[str, np.ndarray]]:
    """Boxes of detectors that leave suppression to others, one label each, as ultralytics'.

    Args:
        output: [n, 4 + classes, anchors]: center x, center y, width, height, then a probability
            for each class.
        score: The least.

    Returns:
        As from torchvision's detectors.
    """
    images = []
    for image in _array(output):
        if not np.isfinite(image).all():
            nothing = np.full(1, np.nan, np.float32)
            images.append({"boxes": nothing, "scores": nothing, "labels": nothing})
            continue
        keep = (image[4:].max(0) >= score).nonzero()[0]
        scores, labels = image[4:, keep].max(0), image[4:, keep].argmax(0)
        center, size = image[:2, keep].T, image[2:4, keep].T
        boxes = np.concatenate([center - size / 2, center + size / 2], 1)
        order = np.argsort(-scores, kind="stable")
        scores, labels, boxes = scores[order], labels[order], boxes[order]
        near = overlaps(boxes, boxes) > SUPPRESSED
        near &= labels[:, None] == labels[None]
        stays = np.ones(len(order), bool)
        for number in range(len(order)):
            if stays[number]:
                stays[number + 1 :] &= ~near[number, number + 1 :]
        images.append({"boxes": boxes[stays], "scores": scores[stays], "labels": labels[stays]})
    return images


def matched(ours: np.ndarray, theirs: np.ndarray, iou: float) -> tuple[int, int, int]:
    """How many boxes of two images match one to one, as many as can.

    Args:
        ours: [MOST, 6].
        theirs: The same of the other network.
        iou: The least overlap of two boxes of one label that match.

    Returns:
        Matches, boxes of ours, boxes of theirs.
    """
    ours, theirs = (one[one[:, 4] != NONE].astype(np.float64) for one in (ours, theirs))
    may = (overlaps(ours[:, :4], theirs[:, :4]) >= iou) & (ours[:, 5, None] == theirs[None, :, 5])
    partners = [row.nonzero()[0].tolist() for row in may]
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
    for one, other in zip(_array(reference), _array(found), strict=True):
        if not (np.isfinite(one[:, 4]).all() and np.isfinite(other[:, 4]).all()):
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
