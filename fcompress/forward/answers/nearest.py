"""Embeddings whose answer is the nearest neighbour among a gallery.

The original network embeds the gallery, once. Both networks' embeddings are looked up in it, as in
a search index that was built before and is now queried by the compressed network: the answer is
the number of the entry with the largest cosine. Entries whose embeddings are equal are one.

How far apart two answers are is said by the softmax over the cosines, at a temperature that is the
gallery's own (`Gallery.temperature`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor

from fcompress.errors import FcompressError
from fcompress.forward.answers.asked import Asked
from fcompress.forward.answers.continuous import in_rows
from fcompress.forward.answers.scoring import Scoring

_CLASSES = Scoring(None, "classes")


@dataclass(frozen=True, eq=False)
class Gallery:
    """What embeddings are looked up in.

    Attributes:
        rows: Directions of the entries, float64 [entries, values], on the CPU.
        first: int64 [entries]: the number of the first entry with the same direction.
        temperature: Cosines divided by it are the scores of the entries.
    """

    rows: Tensor
    first: Tensor
    temperature: float = 1.0

    def similarities(self, outputs: Tensor) -> Tensor:
        """Cosines of outputs [n, ...] with all entries, [n, entries], in the outputs' type."""
        return _directions(outputs) @ self.rows.to(outputs).T

    def to_dict(self) -> dict[str, Any]:
        """Plain values that tell it from another."""
        digest = sha256(self.rows.float().contiguous().numpy().tobytes()).hexdigest()
        return {"entries": len(self.rows), "sha256": digest}


def gallery_of(embeddings: Iterable[Tensor]) -> Gallery:
    """A gallery of a network's outputs.

    Args:
        embeddings: Outputs [n, ...] of the original network, in batches.

    Raises:
        FcompressError: An entry is not finite or has no direction, or no two differ.
    """
    found = torch.cat([in_rows(one).detach().cpu().double().flatten(1) for one in embeddings])
    lengths = found.norm(dim=1)
    broken = int((~(lengths.isfinite() & (lengths > 0))).sum())
    if broken:
        raise FcompressError(
            f"the embeddings of {broken} of {len(found)} entries of the gallery are zero or not "
            "finite, so they have no direction; leave these entries out, or repair the network"
        )
    rows = _directions(found)
    # Rounded: the same direction comes out a little different for another length.
    _, group = (rows * 2**30).round().unique(dim=0, return_inverse=True)
    numbers = torch.arange(len(rows))
    first = torch.full((int(group.max()) + 1,), len(rows)).scatter_reduce(0, group, numbers, "amin")
    first = first[group]
    if len(first.unique()) < 2:
        raise FcompressError(
            f"all {len(rows)} entries of the gallery have the same embedding, so every example has "
            "the same nearest neighbour; give a gallery of entries that differ"
        )
    return Gallery(rows, first)


@dataclass(frozen=True)
class Nearest(Scoring):
    """The number of the nearest neighbour among a gallery.

    Attributes:
        gallery: Inputs that the original network embeds, as any data that `as_batches` takes; not
            needed once `embedded` is there.
        embedded: What it made of them.
    """

    gallery: Any = field(default=None, compare=False, repr=False)
    embedded: Gallery | None = field(default=None, compare=False, repr=False)

    @property
    def asked(self) -> Asked:
        """What was said of the answers."""
        return Asked(self.labels, gallery=self.gallery)

    def noted(self) -> dict[str, Any]:
        """What a compressed network carries: a file holds no gallery, memory does."""
        return {"embedded": self.embedded}

    def described(self, scores: Tensor) -> dict[str, Any]:
        """Plain values: the kind of answer, and which gallery."""
        return {**super().described(scores), "gallery": self.known.to_dict()}

    @property
    def known(self) -> Gallery:
        """What embeddings are looked up in.

        Raises:
            FcompressError: Nobody said.
        """
        if self.embedded is None:
            raise FcompressError(
                'answer="nearest" needs a gallery, which no file holds: gallery= (--gallery SPEC)'
            )
        return self.embedded

    def filled(self, embeddings: Iterable[Tensor], queries: Iterable[Tensor]) -> Nearest:
        """The same with a gallery.

        Args:
            embeddings: Outputs of the original network for the entries, in batches.
            queries: Its outputs for other examples, which the temperature is taken from.
        """
        found = gallery_of(embeddings)
        spread = [found.similarities(in_rows(one).double()).std(1) for one in queries]
        width = torch.cat(spread).nanmedian() if spread else torch.tensor(1.0)
        temperature = max(TEMPERATURE * float(width), 1e-6)
        return replace(self, embedded=replace(found, temperature=temperature))

    def labels_of(self, scores: Tensor) -> Tensor:
        """The number of the nearest entry, [n, 1]; -1 for outputs without a direction."""
        known = self.known
        found = known.similarities(in_rows(scores).detach().double()).cpu()
        # Of equal cosines the first entry counts, whatever the order in which a device compares.
        numbers = known.first[found.argmax(1)]
        return torch.where(found.isfinite().all(1), numbers, -1).unsqueeze(1).to(scores.device)

    def broken(self, given: Tensor) -> Tensor:
        """Where answers are not finite: bool [n]."""
        return (given < 0).any(1)

    def changed(self, reference: Tensor, found: Tensor) -> Tensor:
        """Which neighbours are others: bool [n]."""
        return (reference != found).any(1) | self.broken(reference)

    def log_probabilities(self, scores: Tensor, temperature: float = 1.0) -> Tensor:
        """Logarithms of the softmax over entries: [n, entries, 1]."""
        return _CLASSES.log_probabilities(self._logits(scores), temperature)

    def divergence(self, found: Tensor, wanted: Tensor) -> Tensor:
        """Mean Kullback-Leibler divergence of `found` from `wanted`, in nats."""
        return _CLASSES.divergence(found, wanted)

    def surprise(self, scores: Tensor, generator: torch.Generator) -> Tensor:
        """-log of the probability of entries that are drawn from the softmax."""
        return _CLASSES.surprise(self._logits(scores), generator)

    def _logits(self, scores: Tensor) -> Tensor:
        known = self.known
        return known.similarities(in_rows(scores)) / known.temperature


# Of the median spread of an example's cosines over the gallery.
TEMPERATURE = 0.25


def _directions(outputs: Tensor) -> Tensor:
    rows = in_rows(outputs).flatten(1)
    # Not `normalize`: it gives a zero vector, which has no direction, the cosine 0 with all.
    return rows / rows.norm(dim=1, keepdim=True)
