"""Where the units of a group stand: how much the labels listen, how much the others explain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fcompress.forward.correlating import CorrelationPicture, correlation_picture

# Of the mean variance, the least that makes the inverse: what duplicates leave unexplained is 0.
RIDGES = (1e-9, 1e-7, 1e-5, 1e-3)
MOST_EXACT = 1024  # units up to which eigenvalues are worth their time
POINTS = 48  # of a curve


@dataclass(frozen=True)
class UnitMap:
    """The units of one group on two axes (README.md section 3), and what their loss costs.

    Attributes:
        name: Of the group.
        listened: float32 [C], nats: what the labels notice when the unit falls silent and nothing
            takes its place, M_jj K_jj summed over consumers.
        explained: float32 [C] in [0, 1]: the share of that which the other units explain.
        order: int64 [C]: units, those that stay longest first.
        cost: Pairs (units kept, nats): what it costs to keep only the first so many.
        variance: Pairs (principal components, share of the variance that they explain) of the
            units as their first consumer reads them; empty where there are too many units, or their
            variances lie too far apart.
        picture: Their correlations, in that order.
        kept: How many of the first units of the order stay.
    """

    name: str
    listened: Tensor
    explained: Tensor
    order: Tensor
    cost: tuple[tuple[int, float], ...]
    variance: tuple[tuple[int, float], ...]
    picture: CorrelationPicture | None
    kept: int = 0

    def with_cost(self, cost: Tensor) -> UnitMap:
        """The same with a measured cost, float64 [C]: entry k when only the first k stay."""
        return replace(self, cost=_sampled(cost, first=0))


def unit_map(
    name: str, covariances: Sequence[Tensor], importances: Sequence[Tensor], order: Tensor
) -> UnitMap:
    """Put the units of a group on the two axes.

    Without unit j alone, what the others do not explain costs M_jj / (K^-1)_jj through a consumer;
    without anything in its place it would be M_jj K_jj.

    Args:
        name: Of the group.
        covariances: K, float64 [C, C], of the units as each consumer reads them.
        importances: M, float64 [C, C], what an error costs through each consumer, in nats.
        order: int64 [C], units, those that stay longest first.

    Example:
        Two duplicates and a unit of its own, all heard alike:

        >>> k = torch.tensor([[1.0, 1, 0], [1, 1, 0], [0, 0, 1]], dtype=torch.float64)
        >>> found = unit_map("fc", [k], [torch.eye(3).double()], torch.tensor([0, 2, 1]))
        >>> found.listened.tolist(), [round(x, 6) for x in found.explained.tolist()]
        ([1.0, 1.0, 1.0], [1.0, 1.0, 0.0])
    """
    listened = torch.zeros(len(order), dtype=torch.float64)
    alone = torch.zeros(len(order), dtype=torch.float64)
    for covariance, importance in zip(covariances, importances, strict=True):
        k, heard = covariance.double().cpu(), importance.double().cpu().diagonal().clamp(min=0)
        own = k.diagonal().clamp(min=0)
        listened += heard * own
        alone += heard * torch.minimum(_unexplained(k), own)
    explained = torch.where(listened > 0, 1 - alone / listened, 1.0).clamp(0, 1)
    first = covariances[0].double().cpu()
    return UnitMap(
        name,
        listened.float(),
        explained.float(),
        order.cpu(),
        (),
        _explained_variance(first),
        correlation_picture(first, order.cpu()),
    )


def _unexplained(covariance: Tensor) -> Tensor:
    """What of each unit's variance the others leave: 1 / (K^-1)_jj."""
    mean = float(covariance.diagonal().mean())
    for share in RIDGES:
        ridge = max(share * mean, torch.finfo(covariance.dtype).tiny)
        loaded = covariance + ridge * torch.eye(len(covariance), dtype=covariance.dtype)
        factor, failed = torch.linalg.cholesky_ex(loaded)
        if not int(failed):
            return (1 / torch.cholesky_inverse(factor).diagonal() - ridge).clamp(min=0)
    return covariance.diagonal()


def _explained_variance(covariance: Tensor) -> tuple[tuple[int, float], ...]:
    if len(covariance) > MOST_EXACT:
        return ()
    try:
        values = torch.linalg.eigvalsh(covariance).flip(0).clamp(min=0)
    except torch.linalg.LinAlgError:  # of activations of an absurd size; nothing depends on them
        return ()
    total = values.sum()
    return _sampled(values.cumsum(0) / total, first=1) if float(total) > 0 else ()


def _sampled(values: Tensor, first: int) -> tuple[tuple[int, float], ...]:
    """At most `POINTS` pairs (place, value), closer where places are few: a share each."""
    last = len(values) - 1
    places = {round(last * (i / (POINTS - 1)) ** 1.5) for i in range(POINTS)} if last else {0}
    return tuple((place + first, float(values[place])) for place in sorted(places))
