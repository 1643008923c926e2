"""What a network's answers are where the user does not say: found where it can be, never guessed.

A network ends in class scores unless something says otherwise: its last operator, labels of the
data, or the outputs themselves. What is refused without a word of the user:

- one output that is no probability, with no labels of 0 and 1 in the data: the sign of a number is
  no label;
- labels of the data that are numbers, and no classes;
- outputs of one length (normalised, or from a layer normalisation) or from a last tanh, which are
  directions or values, and no scores;
- many outputs of a trained network that lie around zero and of which none prevails, as those of
  embeddings: a classifier that is hardly more sure than chance has learnt nothing.

Networks of the registry are classifiers. A classifier that is unsure, or was never trained, may
look like an embedding. Such outputs are taken for class scores, with a warning (`Scoring.doubt`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice

import torch
from torch import Tensor, nn

from fcompress.data import as_batches
from fcompress.errors import DataError, UnsupportedNetworkError
from fcompress.forward.answers.continuous import deviations, in_rows
from fcompress.forward.answers.detections import Detections, check_boxes
from fcompress.forward.answers.heads import Joint
from fcompress.forward.answers.nearest import Nearest
from fcompress.forward.answers.scoring import Scoring
from fcompress.forward.graph import Value
from fcompress.forward.predictor import Predictor
from fcompress.forward.recording import record
from fcompress.forward.running import runs_on
from fcompress.models import Network

EXAMPLES = 1024  # enough for a standard deviation to 2%
LOOK = 128  # and to see what outputs look like
FEWEST = 8  # outputs are not judged by fewer examples
ALIKE = 1e-3  # of a length: relative spread below which all are called one
APART = 1e-2  # of the outputs' variance in their mean square: above, they do differ
# Outputs whose softmax is less sure than this, on average over examples, and that vary more than
# this share of their mean square, look like an embedding (tests/forward/test_doubts.py has the
# kinds of networks).
SURE, VARIED = 0.25, 0.6
# They are one if there are so many, and they vary more than this share, and the softmax is no surer
# than so many times chance. The mean of the largest probabilities of a classifier is about its
# accuracy, which is more than that if it has learnt anything.
MANY, CENTRED, CHANCE = 16, 0.8, 1.7
ROUNDED = 0.03  # by how much probabilities, also of half precision, may miss a sum of 1
WIDE = 4  # outputs; of fewer the largest is always as sure as that
# What all outputs have in common does not change a softmax, and so is not trained. Fewer than so
# many outputs whose mean varies more than this, where 1 is as much as independent outputs would,
# are no class scores. With more classes than that, Adam trains it by rescaling.
FEW, TOGETHER = 8, 0.5
CHOICES = "--answer regression|sigmoid|embedding|classes (answer= in Python)"

_ENDINGS = {"sigmoid": "sigmoid", "sigmoid_": "sigmoid", "_softmax": "softmax"} | {
    "_log_softmax": "log-softmax",
    "tanh": "tanh",
    "tanh_": "tanh",
}
_COPIES = frozenset("clone contiguous _to_copy alias detach lift_fresh".split())
_MOVES = frozenset(
    "view _unsafe_view reshape squeeze unsqueeze flatten select slice permute transpose t".split()
)


def understood(
    predictor: Predictor,
    batches: Iterable[tuple[Tensor, Tensor | None]],
    also: Scoring | None = None,
) -> Predictor:
    """A predictor that knows how its network's answers are read.

    Args:
        predictor: With what the user said, if anything.
        batches: Inputs and labels or None; the first `EXAMPLES` are looked at.
        also: How another network with the same outputs is read, which is believed where this one
            does not tell (a file that runs elsewhere has no recording).

    Returns:
        The same with a kind of answer, the last operator and the deviation of outputs, as needed.

    Raises:
        UnsupportedNetworkError: It cannot be told, or the outputs do not fit what was said.
    """
    if isinstance(predictor.scoring, Joint):
        main = understood(replace(predictor, scoring=predictor.scoring.main), batches, also)
        return replace(main, scoring=predictor.scoring.around(main.scoring))
    scoring = predictor.scoring
    if isinstance(scoring, Detections):
        return _with_boxes(predictor, scoring, batches)
    if isinstance(scoring, Nearest):
        return _with_gallery(predictor, scoring, batches)
    spread = scoring.continuous and scoring.deviation is None
    needed = EXAMPLES if spread else LOOK if scoring.labels is None else 2
    truths: list[Tensor] = []
    found: list[Tensor] = []
    first, seen = None, 0
    with predictor.evaluating():
        for inputs, truth in batches:
            if not len(inputs):
                continue
            if seen < needed:
                placed = predictor.place(inputs[: needed - seen])
                first = placed[:2] if first is None else first
                with runs_on(placed):
                    found.append(predictor.scores(placed))
            if truth is not None:
                truths.append(truth.cpu())
            seen += len(inputs)
            if seen >= (needed if truth is None or scoring.labels else EXAMPLES):
                break
        if first is None:
            return predictor
        ending = _ending(predictor, first, found[0])
    outputs = torch.cat(found)
    truth = torch.cat(truths) if sum(map(len, truths)) == seen else None
    if ending is None and also is not None:
        ending = also.ending
    if scoring.labels is None:
        kind = "classes" if _is_classifier(predictor, outputs) else None
        by_shape = kind is None and truth is None and not ending
        kind = kind or _told(outputs, truth, ending, predictor.name)
        doubt = _doubt(outputs, predictor) if by_shape and kind == "classes" else None
        scoring = replace(scoring, labels=kind, doubt=doubt)
    if spread:
        scoring = replace(scoring, deviation=deviations(_finite(outputs), str(scoring.labels)))
    ending = ending if ending in ("sigmoid", "softmax") else None
    return replace(predictor, scoring=replace(scoring, ending=ending))


def _with_gallery(
    predictor: Predictor, scoring: Nearest, batches: Iterable[tuple[Tensor, Tensor | None]]
) -> Predictor:
    """A network that has embedded its gallery, unless another one did."""
    if scoring.embedded is not None or scoring.gallery is None:
        _ = scoring.known
        return predictor
    gallery = as_batches(scoring.gallery)
    entries = (inputs for inputs, _ in gallery if len(inputs))
    first = next((inputs for inputs, _ in gallery if len(inputs)), None)
    packed = replace(predictor, packing=gallery.packing)
    queries = (inputs[:LOOK] for inputs, _ in islice(batches, 1))
    if first is None:
        raise DataError("the gallery holds no entry; expected at least two")
    filled = scoring.filled(_scores(packed, entries), _scores(predictor, queries))
    return replace(predictor, scoring=filled)


def _scores(predictor: Predictor, batches: Iterable[Tensor]) -> Iterator[Tensor]:
    with predictor.evaluating():
        for inputs in batches:
            placed = predictor.place(inputs)
            with runs_on(placed):
                yield predictor.scores(placed)


def _with_boxes(
    predictor: Predictor, scoring: Detections, batches: Iterable[tuple[Tensor, Tensor | None]]
) -> Predictor:
    """A detector of which is known how boxes are made of its heads' outputs."""
    inputs = next((x for x, _ in batches if len(x)), None)
    if inputs is None:
        return predictor
    images = predictor.place(inputs[:LOOK])
    with predictor.evaluating(), runs_on(images):
        bound = replace(predictor, scoring=scoring.bound(predictor.network, images))
        check_boxes(bound.labels(images), scoring.least[0])
    return bound


def _is_classifier(predictor: Predictor, outputs: Tensor) -> bool:
    return isinstance(predictor.network, Network) and in_rows(outputs).shape[1] > 1


def _told(outputs: Tensor, truth: Tensor | None, ending: str | None, name: str) -> str:
    """The kind of answer that something other than the shape says.

    Args:
        outputs: [n, outputs].
        truth: The data's labels, or None.
        ending: The last operator.
        name: What to call the network.

    Raises:
        UnsupportedNetworkError: Nothing does, or something says that they are no labels.
    """
    width = outputs.shape[1]
    said = None if truth is None or not len(truth) else _labels_say(truth, width)
    if said in ("classes", "sigmoid"):
        return said
    ask = f"say which answers have to stay: {CHOICES}"
    if ending == "sigmoid":
        return "sigmoid"
    if width == 1:
        raise UnsupportedNetworkError(
            f"{name} gives one output for each example, and nothing says whether it is a number or "
            f"the score of a yes or no; {ask}"
        )
    if said == "numbers":
        raise UnsupportedNetworkError(
            f"the labels of the data are numbers and no classes, so the outputs of {name} may be, "
            f"too; {ask}"
        )
    if ending in ("softmax", "log-softmax"):
        return "classes"
    if ending == "tanh":
        raise UnsupportedNetworkError(
            f"{name} ends in a tanh, so its {width} outputs look like no class scores; {ask}"
        )
    if _of_one_length(outputs):
        raise UnsupportedNetworkError(
            f"the {width} outputs of {name} have the same length for all examples, as embeddings "
            f"do and class scores do not; {ask}"
        )
    return "classes"


def _labels_say(truth: Tensor, width: int) -> str | None:
    """What labels of the data tell of outputs of a width: classes, sigmoid, numbers or nothing."""
    values = truth.double()
    binary = bool(((values == 0) | (values == 1)).all())
    rows = truth.reshape(len(truth), -1)
    if rows.shape[1] == 1:
        if width == 1:
            return "sigmoid" if binary else None
        if bool((values != values.round()).any()):
            return "numbers"
        return "classes" if bool((values < width).all()) else None
    if rows.shape[1] == width:
        if not binary:
            return "numbers" if truth.is_floating_point() else None
        one_each = bool((rows.sum(1) == 1).all())  # a class as a row of zeros and a one
        return "classes" if one_each else "sigmoid"
    return None


def _of_one_length(outputs: Tensor) -> bool:
    """Whether outputs that differ have the same norm.

    Two outputs can have that by saturating, as those of a constant network do by being the same.
    """
    rows = _finite(outputs).double().flatten(1)
    if len(rows) < FEWEST or rows.shape[1] < 3:
        return False
    norms = rows.norm(dim=1)
    spread = rows.var(0, unbiased=False).sum() / rows.square().sum(1).mean()
    return bool(norms.std() < ALIKE * norms.mean()) and float(spread) > APART


def _doubt(outputs: Tensor, predictor: Predictor) -> str | None:
    """A warning about outputs that are taken for class scores and look like something else.

    Raises:
        UnsupportedNetworkError: They look so much like one that they are not taken for scores.
    """
    rows = _finite(outputs).double().flatten(1)
    if len(rows) < FEWEST:
        return None
    which = f"the {rows.shape[1]} outputs of {predictor.name}"
    sure = float(rows.softmax(1).amax(1).mean())
    apart = float(rows.var(0, unbiased=False).sum() / rows.square().sum(1).mean())
    if rows.shape[1] < WIDE or sure >= SURE or apart <= VARIED:
        if not _together(rows) or _as_made(predictor):
            return None
        return (
            f"{which} are taken for class scores, but rise and fall together, which those of a "
            "trained classifier do not; if they are numbers, say so by --answer regression "
            "(answer= in Python)"
        )
    why = f"the softmax of the largest is {sure:.2g} on average"
    is_one = rows.shape[1] >= MANY and apart > CENTRED and sure * rows.shape[1] < CHANCE
    if is_one and not _as_made(predictor):
        raise UnsupportedNetworkError(
            f"{which} look like an embedding and not like class scores: {why}, hardly more than "
            f"chance; say which answers have to stay: {CHOICES}"
        )
    return (
        f"{which} are taken for class scores, but look more like an embedding: {why}; if they are "
        "one, say so by --answer embedding (answer= in Python)"
    )


def _together(rows: Tensor) -> bool:
    """Whether the mean of a few outputs [n, outputs] varies as if they were independent."""
    outputs = rows.shape[1]
    if outputs >= FEW:
        return False
    each = rows.var(0, unbiased=False).mean()
    return float(rows.mean(1).var(unbiased=False)) * outputs > TOGETHER * float(each)


def _as_made(predictor: Predictor) -> bool:
    """Whether all layers have weights within the bounds in which torch draws them.

    Training leaves them at once: some of many weights lie at the very bound. A network without
    layers counts as made, too.
    """
    found = [
        module.weight.detach().abs().amax() * module.weight[0].numel() ** 0.5
        for module in predictor.network.modules()
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)
    ]
    return all(float(most) <= 1 + ALIKE for most in found)


def _finite(outputs: Tensor) -> Tensor:
    rows = outputs.reshape(len(outputs), -1)
    return outputs[rows.isfinite().all(1)]


def _ending(predictor: Predictor, inputs: Tensor, scores: Tensor) -> str | None:
    """The last operator of a network, as far as it says how its outputs are read; "" for others.

    Args:
        predictor: The network; None for one that cannot be recorded.
        inputs: A few examples.
        scores: Of the first examples; a softmax has to be one over their classes.
    """
    tokens = predictor.scoring.labels == "tokens"
    # What is recorded is the network's own output: that of tokens is handed on with another row.
    plain = replace(predictor, scoring=Scoring(predictor.scoring.output)) if tokens else predictor
    scores = scores[:, :-1] if tokens else in_rows(scores)
    try:
        recording = record(plain, inputs)
    except Exception:  # of any framework's
        return None
    makers = {slot: step for step in recording.steps for slot in step.outs}
    if not recording.outputs:
        return None
    slot = recording.outputs[0]
    while (step := makers.get(slot)) is not None:
        name = step.func.overloadpacket.__name__
        if name in _ENDINGS:
            kind = _ENDINGS[name]
            return "" if kind.endswith("softmax") and not _over_classes(scores, kind) else kind
        if name not in _MOVES | _COPIES or not isinstance(step.leaves[0], Value):
            return ""
        slot = step.leaves[0].slot
    return ""


def _over_classes(scores: Tensor, kind: str) -> bool:
    """Whether a last softmax, wherever its outputs were moved since, is one over the classes.

    Args:
        scores: [n, classes, ...]; 0 at padding.
        kind: "softmax" or "log-softmax".
    """
    values = _finite(scores).double()
    sums = (values if kind == "softmax" else values.exp()).sum(1)
    one, padding = (sums - 1).abs() < ROUNDED, (values == 0).all(1)
    return bool((one | padding).all()) and bool(one.any())
