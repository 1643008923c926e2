"""Cascade: the module that runs a pair of networks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fcompress.cascades.margins import check_margins, margins
from fcompress.cascades.merging import merged, rows_of
from fcompress.errors import UnsupportedNetworkError
from fcompress.forward.answers.scoring import Scoring
from fcompress.forward.running import own_copies, tensors_in
from fcompress.models.base import Remembering

FAMILY = "cascade"  # what its files call it
NEAR = 1e-4  # of a margin: as far as scores of single precision may be apart in two programs


class Cascade(Remembering):
    """A compressed network that answers where it is sure, and the original for all other examples.

    It takes and returns what the two networks take and return. Only the rows whose margin
    (`margins.margins`) is below the threshold, or not a number, go to the original; their rows
    of every output replace those of the compressed network.

    Attributes:
        compressed: Answers every example first.
        original: Answers those that are deferred.
        threshold: The least margin with which the compressed network's answer stays, float64 [].
            A buffer, so that a certificate is about it too.
        scoring: How answers are read off the outputs.
        origin: {"data": , "history": } of the pair, as of a network of the registry.

    Example:
        >>> from fcompress.forward.answers.scoring import Scoring
        >>> small, large = nn.Linear(2, 2), nn.Linear(2, 2)
        >>> cascade = Cascade(small, large, 0.5, Scoring())
        >>> x = torch.randn(6, 2)
        >>> sure = ~cascade.deferred(x)
        >>> torch.equal(cascade(x)[sure], small(x)[sure])
        True
    """

    threshold: Tensor

    def __init__(
        self, compressed: nn.Module, original: nn.Module, threshold: float, scoring: Scoring
    ) -> None:
        """Put two networks together.

        Args:
            compressed: Answers first.
            original: Answers the rest.
            threshold: Of the margin, at least 0; above 1 every example is deferred.
            scoring: How answers are read.

        Raises:
            UnsupportedNetworkError: Answers of the kind have no margin.
        """
        super().__init__()
        check_margins(scoring)
        self.compressed, self.original = compressed, original
        self.register_buffer("threshold", torch.tensor(threshold, dtype=torch.float64))
        self.scoring = scoring
        self.origin = {"data": None, "history": []}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the compressed network returns, with the rows of the original where it defers.

        Raises:
            UnsupportedNetworkError: An output has no row for each example.
        """
        first = self._first(args, kwargs)
        rows, n = self._rows(first, args, kwargs)
        if not len(rows):
            return first
        if len(rows) == n:
            return self.original(*args, **kwargs)
        args, kwargs = rows_of((args, kwargs), rows, n)
        return merged(first, self.original(*args, **kwargs), rows, n)

    def deferred(self, *args: Any, **kwargs: Any) -> Tensor:
        """Which examples the original answers: bool [n]. Only the compressed network runs."""
        first = self._first(args, kwargs)
        rows, n = self._rows(first, args, kwargs)
        return torch.zeros(n, dtype=torch.bool, device=rows.device).index_fill(0, rows, True)

    def undecided(self, *args: Any, **kwargs: Any) -> Tensor:
        """Where the margin is so near to the threshold that rounding may decide: bool [n]."""
        first = self._first(args, kwargs)
        sure, _ = self._margins(first, args, kwargs)
        return (sure - self.threshold.to(sure.device)).abs() <= NEAR

    def _first(self, args: Any, kwargs: Any) -> Any:
        """What the compressed network returns; it may work in place on what it is given."""
        args, kwargs = own_copies((args, kwargs))
        return self.compressed(*args, **kwargs)

    def _rows(self, output: Any, args: Any, kwargs: Any) -> tuple[Tensor, int]:
        """Numbers of the deferred examples, of how many there are."""
        sure, n = self._margins(output, args, kwargs)
        return (~(sure >= self.threshold.to(sure.device))).nonzero().flatten(), n  # nan is not sure

    def _margins(self, output: Any, args: Any, kwargs: Any) -> tuple[Tensor, int]:
        n = _examples(args, kwargs)
        scores = self.scoring.chosen(output, self.scoring.counted(args, kwargs))
        return margins(
            self.scoring, self.scoring.checked(scores, type(self.compressed).__name__, n)
        ), n


def _examples(args: Any, kwargs: Any) -> int:
    """How many examples the inputs hold."""
    found = next((t for t in tensors_in((args, kwargs)) if t.dim()), None)
    if found is None:
        raise UnsupportedNetworkError(
            "a cascade needs inputs with a row for each example, and no input is such a tensor"
        )
    return len(found)


def check_alone(model: nn.Module) -> None:
    """Refuse a cascade where one network is needed.

    Raises:
        UnsupportedNetworkError: It is one.

    Example:
        >>> check_alone(nn.Linear(2, 1))
    """
    if isinstance(model, Cascade):
        raise UnsupportedNetworkError(
            "this is a cascade, two networks that answer as one, and not a network that could be "
            "taken apart; give the original that it was made from"
        )
