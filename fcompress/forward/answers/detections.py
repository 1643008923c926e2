"""Detectors: an image keeps its answer if its boxes match those of the original.

Every box from `score` on needs a box of the same label in the other network's, with an overlap of
`iou` or more, one to one and both ways (`boxes.py`).

What can be compressed is what stands before suppression, since nothing else can be differentiated
or recorded:

    heads   one-stage detectors as torchvision's (SSD, RetinaNet, FCOS): their own forward is run
            up to `postprocess_detections`. The scores are what the heads give,
            [n, anchors, 4 + extra + classes]; the network's own post-processing makes boxes of it
    tensor  one tensor [n, 4 + classes, anchors] as ultralytics' give it

Where networks are only compared (`verify`) they are run as they are ("whole").

Two answers are so far apart as the classes of all anchors (Kullback-Leibler), and the places and
sizes of boxes, as Gaussians of a tenth of their size, as likely as there is something at all.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fcompress.errors import FcompressError, UnsupportedNetworkError
from fcompress.forward.answers import boxes
from fcompress.forward.answers.asked import IOU, SCORE, Asked
from fcompress.forward.answers.continuous import logits_of
from fcompress.forward.answers.scoring import Scoring

# What a box may be off by, as a share of its size, for half a nat.
OFF = 0.1
_HEADS = ("bbox_regression", "bbox_ctrness", "cls_logits")  # in this order in the scores


@dataclass(frozen=True, eq=False)
class Heads:
    """What a one-stage detector needs beside its heads' outputs to make boxes of them.

    Attributes:
        process: Its `postprocess_detections`.
        anchors: Of one image, as it takes them: a tensor, or one for each level.
        levels: How many anchors each level has; None where they are not divided.
        size: Of the images that go through the network.
        softmax: Whether one of all classes holds at an anchor, the first being none.
        extra: Values between the four of a box and those of the classes.
        units: What a box may be off by in each of its four values.
    """

    process: Callable[..., Any]
    anchors: Any
    levels: tuple[int, ...] | None
    size: tuple[int, int]
    softmax: bool
    extra: int
    units: tuple[float, ...]

    def images(self, scores: Tensor) -> list[dict[str, Tensor]]:
        """Boxes, labels and scores of each image."""
        at = 4 + self.extra
        parts = [scores[..., :4], scores[..., 4:at], scores[..., at:]]
        outputs: dict[str, Any] = {
            name: part if self.levels is None else list(part.split(self.levels, 1))
            for name, part in zip(_HEADS, parts, strict=True)
            if part.shape[2]
        }
        count = len(scores)
        found = self.process(outputs, [self.anchors] * count, [self.size] * count)
        broken = ~scores.isfinite().flatten(1).all(1)
        for image, is_broken in zip(found, broken.tolist(), strict=True):
            if is_broken:
                nothing = torch.full((1,), torch.nan)
                image |= {"boxes": nothing.expand(1, 4), "scores": nothing, "labels": nothing}
        return list(found)


def is_one_stage(network: object) -> bool:
    """Whether a network is a detector that can be run up to its heads."""
    needed = ("backbone", "head", "transform", "anchor_generator", "box_coder")
    processes = callable(getattr(network, "postprocess_detections", None))
    return isinstance(network, nn.Module) and processes and all(hasattr(network, n) for n in needed)


def before_boxes(network: nn.Module, images: Tensor) -> tuple[Tensor, Heads]:
    """Run a one-stage detector up to its post-processing.

    Args:
        network: It is left as it is.
        images: [n, channels, height, width].

    Returns:
        What its heads give, [n, anchors, values], and what makes boxes of it.
    """
    taken: list[tuple[Any, Any, Any]] = []

    def take(outputs: Any, anchors: Any, sizes: Any) -> list[Any]:
        taken.append((outputs, anchors, sizes))
        return []

    # A copy that shares all modules: whatever its forward does before and after stays its business.
    running = copy.copy(network)
    running.__dict__["postprocess_detections"] = take
    running.__dict__["transform"] = _Together(network.transform, images)
    running.__dict__["training"] = False
    running(images[:1])
    ((outputs, anchors, sizes),) = taken
    parts = [outputs[name] for name in _HEADS if name in outputs]
    divided = not isinstance(parts[0], Tensor)
    levels = tuple(level.shape[1] for level in parts[0]) if divided else None
    whole = torch.cat([torch.cat(list(p), 1) if divided else p for p in parts], 2)
    coder = getattr(network.box_coder, "weights", None) or (1.0,) * 4
    heads = Heads(
        process=network.postprocess_detections,  # type: ignore[arg-type]
        anchors=anchors[0],
        levels=levels,
        size=tuple(sizes[0]),
        softmax=any(kind.__name__ == "SSD" for kind in type(network).__mro__),
        extra=whole.shape[2] - 4 - _width(outputs["cls_logits"]),
        units=tuple(OFF * float(weight) for weight in coder),
    )
    return whole, heads


class _Together:
    """A detector's transform that does the same to a whole batch, not to image after image.

    Whatever is recorded must not have more steps for more images.
    """

    def __init__(self, transform: Any, images: Tensor) -> None:
        self._transform, self._images = transform, images

    def __call__(self, one: Any, targets: Any = None) -> tuple[Any, Any]:
        alone, _ = self._transform([self._images[0]])
        (size,), padded = alone.image_sizes, alone.tensors.shape[-2:]
        batch = self._transform.normalize(self._images)
        if batch.shape[-2:] != size:
            batch = F.interpolate(batch, size=size, mode="bilinear", align_corners=False)
        batch = F.pad(batch, (0, padded[1] - size[1], 0, padded[0] - size[0]))
        return type(alone)(batch, [size]), targets

    def postprocess(self, found: Any, sizes: Any, originals: Any) -> Any:
        """Nothing: there are no boxes yet."""
        return found


def _width(part: Tensor | Sequence[Tensor]) -> int:
    return int((part if isinstance(part, Tensor) else part[0]).shape[2])


@dataclass(frozen=True)
class Detections(Scoring):
    """Boxes that match.

    Attributes:
        score: Boxes below it do not count; None for `asked.SCORE`.
        iou: The least overlap of boxes that match; None for `asked.IOU`.
        form: "whole", "heads" or "tensor".
        heads: Of "heads", once it is known (`bound`).
    """

    score: float | None = None
    iou: float | None = None
    form: str = "whole"
    heads: Heads | None = field(default=None, compare=False, repr=False)

    @property
    def asked(self) -> Asked:
        """What was said of the answers."""
        return Asked(self.labels, score=self.score, iou=self.iou)

    @property
    def least(self) -> tuple[float, float]:
        """The score and the overlap that count."""
        return SCORE if self.score is None else self.score, IOU if self.iou is None else self.iou

    @property
    def whole(self) -> bool:
        """Whether all outputs count together, so that none is a head or left over."""
        return self.output is None

    @property
    def softens(self) -> bool:
        """Whether a temperature makes answers softer."""
        return False

    def noted(self) -> dict[str, Any]:
        """What a compressed network carries."""
        return dict(zip(("score", "iou"), self.least, strict=True))

    def described(self, scores: Tensor) -> dict[str, Any]:
        """Plain values: the kind of answer, the score and the overlap."""
        return {**super().described(scores), **self.noted()}

    def traced(self, network: nn.Module) -> Detections:
        """The same answers, made of what stands before suppression.

        Raises:
            UnsupportedNetworkError: The network is a detector of two stages.
        """
        if hasattr(network, "roi_heads"):
            raise UnsupportedNetworkError(
                f"{type(network).__name__} is a detector of two stages, which decides midway which "
                f"boxes go on; {boxes.DETECTORS}"
            )
        return replace(self, form="heads" if is_one_stage(network) else "tensor")

    def bound(self, network: nn.Module, images: Tensor) -> Detections:
        """The same, knowing how a network makes boxes of what its heads give."""
        if self.form != "heads":
            return self
        return replace(self, heads=before_boxes(network, images[:1])[1])

    def run(self, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run a network up to its heads, or all of it."""
        if self.form == "heads" and isinstance(network, nn.Module):
            return before_boxes(network, args[0])[0]
        return network(*args, **kwargs)

    def checked(self, found: Any, name: str, examples: int) -> Tensor:
        """What stands before suppression, or boxes as one tensor (`boxes.py`).

        Raises:
            UnsupportedNetworkError: It is neither.
        """
        is_tensor = isinstance(found, Tensor) and found.dim() == 3 and len(found) == examples
        if self.form == "heads" and is_tensor:
            return found
        if is_tensor and found.shape[1] > 4:
            return found if self.form == "tensor" else self._boxes(found)
        if not boxes.are_images(found, examples):
            boxes.check_images(found, name)
        if self.form == "tensor":
            raise UnsupportedNetworkError(
                f"{name} gives boxes behind suppression, which cannot be differentiated; give a "
                "detector of torchvision's with one stage, or one that gives one tensor "
                "[images, 4 + classes, anchors]"
            )
        return boxes.encoded(found, self.least[0])

    def labels_of(self, scores: Tensor) -> Tensor:
        """Boxes of each image, as one tensor (`boxes.py`)."""
        return scores if self.form == "whole" else self._boxes(scores)

    def broken(self, given: Tensor) -> Tensor:
        """Where an output is not finite: bool [n]."""
        return ~given.flatten(1).isfinite().all(1)

    def changed(self, reference: Tensor, found: Tensor) -> Tensor:
        """Which images have a box without a match: bool [n]."""
        return self.matched(reference, found) < 1

    def matched(self, reference: Tensor, found: Tensor) -> Tensor:
        """Share of matched boxes among those of both networks, for each image: float64 [n].

        It is 1 where neither network gives a box.
        """
        return boxes.shares(reference, found, self.least[1])

    def log_probabilities(self, scores: Tensor, temperature: float = 1.0) -> Tensor:
        """What `divergence` compares: [n, anchors, 4 + extra + classes], classes as logits.

        Raises:
            FcompressError: The boxes are behind suppression.
        """
        if self.form == "whole":
            raise FcompressError("boxes behind suppression can only be compared")
        if self.form == "heads":
            return scores
        rows = scores.movedim(1, 2)
        logits = logits_of(rows[..., 4:], "sigmoid", "sigmoid")
        # Of boxes places and sizes in units of a tenth of the size that they have themselves.
        size = rows[..., 2:4].clamp_min(1e-6)
        return torch.cat([rows[..., :2], size.log() / OFF, logits], 2)

    def divergence(self, found: Tensor, wanted: Tensor) -> Tensor:
        """Mean divergence over images, summed over anchors, in nats."""
        at, softmax = self._layout()
        ours, theirs = wanted[..., at:], found[..., at:]
        if softmax:
            logs = theirs.log_softmax(2), ours.log_softmax(2)
            total = F.kl_div(*logs, reduction="sum", log_target=True)
        else:
            total = _yes_or_no(theirs, ours).sum()
        there = self._there(wanted)
        off = (self._places(found, wanted) - self._places(wanted, wanted)).square().sum(2)
        total = total + (there * off).sum() / 2
        if at > 4:
            total = total + (there * _yes_or_no(found[..., 4:at], wanted[..., 4:at]).sum(2)).sum()
        return total / len(wanted)

    def surprise(self, scores: Tensor, generator: torch.Generator) -> Tensor:
        """-log of the probability of classes and boxes drawn from what the heads say, summed."""
        outputs = self.log_probabilities(scores)
        at, softmax = self._layout()
        logits = outputs[..., at:]
        if softmax:
            rows = logits.reshape(-1, logits.shape[2]).log_softmax(1)
            drawn = torch.multinomial(rows.detach().exp().cpu(), 1, generator=generator)
            total = -rows.gather(1, drawn.to(rows.device)).sum()
        else:
            total = _drawn_yes_or_no(logits, generator).sum()
        there = self._there(outputs.detach())
        places = self._places(outputs, outputs.detach()) * there.sqrt().unsqueeze(2)
        noise = torch.randn(places.shape, generator=generator).to(places)
        total = total + (places.detach() + noise - places).square().sum() / 2
        if at > 4:
            extra = _drawn_yes_or_no(outputs[..., 4:at], generator)
            total = total + (there.sqrt().unsqueeze(2) * extra).sum()
        return total

    def _boxes(self, scores: Tensor) -> Tensor:
        if self.form != "heads":
            return boxes.encoded(boxes.suppressed(scores, self.least[0]), self.least[0])
        assert self.heads is not None
        return boxes.encoded(self.heads.images(scores.detach().float()), self.least[0])

    def _layout(self) -> tuple[int, bool]:
        """Where the classes begin, and whether they exclude each other."""
        return (4, False) if self.heads is None else (4 + self.heads.extra, self.heads.softmax)

    def _there(self, wanted: Tensor) -> Tensor:
        """How likely there is anything at an anchor: [n, anchors]."""
        at, softmax = self._layout()
        logits = wanted[..., at:]
        return 1 - logits.softmax(2)[..., 0] if softmax else logits.sigmoid().amax(2)

    def _places(self, outputs: Tensor, wanted: Tensor) -> Tensor:
        """The four values of each box in units of what they may be off by."""
        if self.heads is not None:
            return outputs[..., :4] / outputs.new_tensor(self.heads.units)
        size = (wanted[..., 2:4] * OFF).exp()
        return torch.cat([outputs[..., :2] / (OFF * size), outputs[..., 2:4]], 2)


def _yes_or_no(found: Tensor, wanted: Tensor) -> Tensor:
    """Kullback-Leibler divergences of single probabilities that are given as logits."""
    yes = wanted.sigmoid() * (F.logsigmoid(wanted) - F.logsigmoid(found))
    return yes + (-wanted).sigmoid() * (F.logsigmoid(-wanted) - F.logsigmoid(-found))


def _drawn_yes_or_no(logits: Tensor, generator: torch.Generator) -> Tensor:
    drawn = torch.rand(logits.shape, generator=generator).to(logits) < logits.detach().sigmoid()
    return -F.logsigmoid(torch.where(drawn, logits, -logits))


def check_boxes(found: Tensor, least: float) -> None:
    """Refuse a score above which there is nothing to compare.

    Args:
        found: Boxes of some images, as one tensor.
        least: The score.

    Raises:
        FcompressError: No image has a box.
    """
    if not bool((found[..., 4] >= max(least, 0)).any()):
        raise FcompressError(
            f"no box has a score from {least:g} on in the first {len(found)} images, so there is "
            "nothing to keep; take a smaller --score (score=), or see how images are prepared"
        )
