"""Verification: whether two inputs are of the same kind, by the cosine of their embeddings.

An example is a pair: the network takes two inputs and gives two embeddings. The answer is yes where
their cosine is above a threshold. Pairs that share an input are no independent trials.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, stack

from fcompress.errors import UnsupportedNetworkError
from fcompress.forward.answers.asked import Asked
from fcompress.forward.answers.scoring import Scoring

# Cosines this near to the threshold are unsure: the scale of the logit that costs are taken from.
UNSURE = 0.1
_YES_OR_NO = Scoring(None, "sigmoid")


@dataclass(frozen=True)
class Pairs(Scoring):
    """Whether the cosine of two embeddings is above a threshold.

    Attributes:
        threshold: In (-1, 1).
    """

    threshold: float | None = None

    @property
    def asked(self) -> Asked:
        """What was said of the answers."""
        return Asked(self.labels, threshold=self.threshold)

    @property
    def whole(self) -> bool:
        """Whether all outputs count together, so that none is a head or left over."""
        return self.output is None

    def noted(self) -> dict[str, Any]:
        """What a compressed network carries."""
        return {"threshold": self.threshold}

    def described(self, scores: Tensor) -> dict[str, Any]:
        """Plain values: the kind of answer and the threshold."""
        return {**super().described(scores), **self.noted()}

    def chosen(self, output: Any, counted: Tensor | None = None) -> Any:
        """Two embeddings as one tensor [n, 2, values]; what is none of that as it is."""
        if self.output is not None:
            return super().chosen(output)
        both = list(output.values()) if isinstance(output, Mapping) else output
        if not isinstance(both, tuple | list) or len(both) != 2:
            return output
        one, other = both
        if not (isinstance(one, Tensor) and isinstance(other, Tensor) and one.dim() > 1):
            return output
        return stack([one, other], 1).flatten(2) if one.shape == other.shape else output

    def checked(self, found: Any, name: str, examples: int) -> Tensor:
        """Two embeddings of each example, [n, 2, values].

        Raises:
            UnsupportedNetworkError: They are anything else.
        """
        whole = isinstance(found, Tensor) and found.dim() == 3 and len(found) == examples
        if whole and found.shape[1] == 2 and found.shape[2] > 1:
            return found
        came = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise UnsupportedNetworkError(
            f"{name} gives {came}; expected two embeddings for each pair of inputs, (first, "
            "second) or [pairs, 2, values]"
        )

    def labels_of(self, scores: Tensor) -> Tensor:
        """1 where the cosine is above the threshold, else 0; -1 without two directions: [n, 1]."""
        cosines = _cosines(scores.double())
        found = (cosines > self._least).long()
        return found.where(cosines.isfinite(), found.new_tensor(-1)).unsqueeze(1)

    def log_probabilities(self, scores: Tensor, temperature: float = 1.0) -> Tensor:
        """Logarithms of the probabilities of no and yes: [n, 2, 1]."""
        return _YES_OR_NO.log_probabilities(self._logits(scores), temperature)

    def divergence(self, found: Tensor, wanted: Tensor) -> Tensor:
        """Mean Kullback-Leibler divergence of the decisions, in nats."""
        return _YES_OR_NO.divergence(found, wanted)

    def surprise(self, scores: Tensor, generator: Any) -> Tensor:
        """-log of the probability of decisions drawn from the logits."""
        return _YES_OR_NO.surprise(self._logits(scores), generator)

    @property
    def _least(self) -> float:
        return 0.0 if self.threshold is None else self.threshold

    def _logits(self, scores: Tensor) -> Tensor:
        return ((_cosines(scores) - self._least) / UNSURE).unsqueeze(1)


def _cosines(scores: Tensor) -> Tensor:
    one, other = scores.unbind(1)
    lengths = one.norm(dim=1) * other.norm(dim=1)
    return (one * other).sum(1) / lengths
