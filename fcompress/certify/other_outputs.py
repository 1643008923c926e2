"""Outputs that no certificate speaks of: how far they moved, measured and said.

A certificate is about labels: of the scores, and of all other heads unless `output=` named one
(`forward/answers/heads.py`). What else a network returns keeps its shape, but not its values.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from fcompress.forward.answers.heads import heads_of, sorted_outputs
from fcompress.forward.draws import Draws
from fcompress.forward.outputs import is_scores, output_tensors
from fcompress.forward.predictor import Predictor

# Names that a sentence lists.
_MOST_NAMES = 5
# A smaller relative difference is none.
_ROUNDING = 1e-5


def unvouched(original: Predictor, inputs: Tensor) -> dict[str, bool]:
    """The outputs that a comparison of labels says nothing about.

    Left out are the scores, heads that count, what follows from these, and inputs.

    Args:
        original: The network, as it is compared.
        inputs: A small batch, as from `Predictor.place`.

    Returns:
        For each, by name, whether it looks like class scores: it is a head, or follows from one.
    """
    if original.scoring.whole:
        return {}
    with original.evaluating():
        whole = original.whole(original.network, inputs)
        named = output_tensors(whole)
        main = getattr(original.scoring, "main", original.scoring).named(whole)
    if len(named) < 2:
        return {}
    outputs = sorted_outputs(original, inputs)
    mine = {id(tensor) for tensor in output_tensors(main).values()}
    counted = {*heads_of(original.scoring), *(n for n, t in named.items() if id(t) in mine)}
    follows = {name for name, source in outputs.following.items() if source in counted}
    scores = {head.name for head in outputs.heads} | set(outputs.following)
    return {n: n in scores for n in named if n not in counted | follows | outputs.given}


class OtherOutputs:
    """How far some outputs of two networks are apart, summed over batches.

    Args:
        names: Which outputs, and whether they look like class scores.
    """

    def __init__(self, names: Mapping[str, bool]) -> None:
        self._sums = {name: _Moved(scores) for name, scores in names.items()}
        self._draws = Draws()

    def compare(self, original: Predictor, compressed: Predictor, inputs: Tensor) -> None:
        """Run both networks on one batch."""
        if not self._sums or not len(inputs):
            return
        with ExitStack() as stack:
            for network in (original, compressed):
                stack.enter_context(network.evaluating())
            stack.enter_context(self._draws.going_on(original.network, compressed.network))
            inputs = original.place(inputs)
            before, after = (
                output_tensors(one.whole(one.network, inputs)) for one in (original, compressed)
            )
            for name, sums in self._sums.items():
                sums.add(before.get(name), after.get(name), len(inputs))

    def result(self) -> tuple[dict[str, Any], ...]:
        """What was summed.

        Returns:
            For each output {"name", "shape" of an example, "rms": root mean square of the
            difference over that of the original's output, None for whole numbers; "changed": share
            of examples whose largest score is another one, where it looks like scores; of numbers
            that differ, where they are whole; else None}.
        """
        return tuple({"name": name, **sums.to_dict()} for name, sums in self._sums.items())


def moved_outputs(
    original: Predictor,
    compressed: Predictor,
    some: Tensor,
    batches: Iterable[tuple[Tensor, Tensor | None]],
) -> tuple[dict[str, Any], ...]:
    """How far the outputs that nobody vouches for are apart (`OtherOutputs.result`).

    Args:
        original: The reference, as its labels were compared.
        compressed: The other network.
        some: A few inputs that tell which outputs these are.
        batches: (inputs, labels or None) pairs; not read where there are no such outputs.
    """
    names = unvouched(original, original.place(some))
    others = OtherOutputs(names)
    for inputs, _ in batches if names else ():
        others.compare(original, compressed, inputs)
    return others.result()


class _Moved:
    """Sums over batches for one output, which may look like class scores."""

    def __init__(self, scores: bool) -> None:
        self._scores = scores
        self._shape: list[int] | None = None
        self._gap = self._size = 0.0
        self._changed = self._n = 0
        self._real = False

    def add(self, before: Tensor | None, after: Tensor | None, examples: int) -> None:
        """Add a batch; an output that is missing or of another shape has moved without bound."""
        if before is None:
            return
        batched = before.dim() > 0 and len(before) == examples
        self._shape = list(before.shape[1:] if batched else before.shape)
        self._real = before.is_floating_point() or before.is_complex()
        if after is None or before.shape != after.shape:
            self._gap = float("inf")
        elif self._real:
            gap = (before.double() - after.double()).square().sum()
            self._gap += float(gap.nan_to_num(torch.inf, torch.inf))
            self._size += float(before.double().square().nan_to_num(0, 0, 0).sum())
            if self._scores and is_scores(before, examples):
                self._changed += int((before.argmax(1) != after.argmax(1)).sum())
                self._n += examples
        else:
            self._changed += int((before != after).sum())
            self._n += before.numel()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; rms None as well where it is not finite."""
        rms = None
        if self._real and self._gap < float("inf"):
            rms = (self._gap / self._size) ** 0.5 if self._size else float(self._gap > 0)
        changed = self._changed / self._n if self._n else None
        return {"shape": self._shape, "rms": rms, "changed": changed}


def has_moved(one: dict[str, Any]) -> bool:
    """Whether an output of `moved_outputs` is more than rounding away from what it was."""
    rms, changed = one["rms"], one["changed"]
    return bool(changed) or (rms > _ROUNDING if rms is not None else changed is None)


def said(moved: Sequence[dict[str, Any]]) -> str | None:
    """One line that names the outputs that moved and that nobody vouches for; None if none did."""
    words = []
    for one in moved:
        if not has_moved(one):
            continue
        far = [] if one["rms"] is None else [f"moved by {one['rms']:.1%}"]
        if one["changed"] is not None:
            what = "largest scores" if one["rms"] is not None else "numbers"
            far.append(f"{one['changed']:.1%} other {what}")
        words.append(f"{one['name']} ({', '.join(far) or 'not comparable'})")
    if not words:
        return None
    more = f" and {len(words) - _MOST_NAMES} more" if len(words) > _MOST_NAMES else ""
    several = len(words) > 1
    return (
        f"the certificate does not vouch for the output{'s' if several else ''} "
        f"{', '.join(words[:_MOST_NAMES])}{more}: shapes stay, values do not have to"
    )
