"""Rivals that fold removed units into the next layer by one linear map between channels.

Both use the wide network's activations only: nothing is solved again on the thin network, and no
bias is refitted.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn

from benchmarks.rivals.base import Setting
from benchmarks.rivals.channels import (
    as_matrix,
    fold_and_excise,
    same_share,
    unit_rows,
    wide_of,
)
from fcompress.comparison.torch_pruning import recalibrate
from fcompress.compress.ranking.allocation import GroupOrder, RemovalOrder
from fcompress.compress.refitting.samples import consumers_of, unit_columns


@dataclass(frozen=True)
class Interpolative:
    """Interpolative decomposition of every layer's activations.

    Follows Chee, Flynn, Damle and De Sa, "Model Preserving Compression for Neural Networks"
    (NeurIPS 2022): QR with column pivoting of the activations (a row for each example and
    position, a column for each neuron or channel) chooses the units, the interpolation matrix
    that gives all columns by the chosen ones is multiplied into the next layer. With `threshold`,
    one accuracy for all layers decides how many units each keeps, by the decay of the pivots
    |r_kk| / |r_11|; otherwise every layer keeps the same share.

    Different here: a group that several layers read (a residual stream) is chosen on the stacked
    activations of all readers, each scaled to norm 1, and each reader gets its own matrix;
    positions are sampled. Batch norm is recalibrated, which the paper does not do: agreement of
    ResNet20 on Fashion-MNIST at 48% of MACs 0.937, without it 0.887.

    Attributes:
        threshold: Whether one accuracy decides the sizes.
        recalibrated: Whether batch norms are recalibrated afterwards.
    """

    threshold: bool = False
    recalibrated: bool = True

    @property
    def name(self) -> str:
        return "id-threshold" if self.threshold else "id-uniform"

    @property
    def summary(self) -> str:
        sizes = "one accuracy for all layers" if self.threshold else "same share of every layer"
        return f"interpolative decomposition of each layer's activations (Chee et al.), {sizes}"

    def make(self, setting: Setting, amount: float) -> nn.Module:
        """The thin network: `amount` is the share of units removed, per group or in all."""
        pivots = pivots_of(setting)
        if self.threshold:
            removal_order = RemovalOrder.of(pivots)
            kept = removal_order.kept(round(amount * len(removal_order.prices)))
        else:
            kept = same_share({name: path.order for name, path in pivots.items()}, amount)
        thin = fold_and_excise(setting, kept, ridge=0.0)
        if self.recalibrated:
            recalibrate(thin, setting.batches)
        return thin


@dataclass(frozen=True)
class GramCompensation:
    """Selection by norm, then one ridge regression from the kept to all channels.

    Follows Tang, Wang, Thiele and Saukh, "GRAIL: Post-hoc Compensation by Linear Reconstruction
    for Compressed Networks" (2026): Gram matrices of the original network's hidden activations are
    collected once, before anything is removed; units are chosen by a plain criterion; the ridge
    solution that reconstructs all channels from the kept ones is multiplied into the consumer. No
    bias is refitted and nothing is sequential.

    Different here: residual streams are narrowed too, each of their readers with its own Gram
    matrix; a consumer of a concatenation has one Gram matrix over all it reads. Settled on ResNet20
    on Fashion-MNIST at 48% of MACs: batch norm recalibrated (agreement 0.932) or not (0.900),
    magnitude instead (0.920), ridge 1e-2 (0.927) or 1e-4 (0.931).

    Attributes:
        wanda: Choose by the norm of a unit's activation times that of the consumer weights that
            read it (structured Wanda) instead of the norm of the producer's weights.
        ridge: Relative to the mean diagonal of the Gram matrix.
        recalibrated: Whether batch norms are recalibrated afterwards.
    """

    wanda: bool = True
    ridge: float = 1e-3
    recalibrated: bool = True

    @property
    def name(self) -> str:
        return "gram-compensation"

    @property
    def summary(self) -> str:
        by = "Wanda-like norm" if self.wanda else "magnitude"
        return f"units chosen by {by}, post-hoc channel-level least squares (GRAIL-like)"

    def make(self, setting: Setting, amount: float) -> nn.Module:
        """The thin network: `amount` is the share of units removed from every group."""
        scores = (wanda_scores if self.wanda else magnitudes)(setting)
        orders = {n: s.argsort(descending=True, stable=True) for n, s in scores.items()}
        thin = fold_and_excise(setting, same_share(orders, amount), self.ridge)
        if self.recalibrated:
            recalibrate(thin, setting.batches)
        return thin


def pivoted_qr(columns: Tensor) -> tuple[Tensor, Tensor]:
    """QR with column pivoting (Businger and Golub), by orthogonalising what is left each step.

    Args:
        columns: float64 [rows, n].

    Returns:
        order int64 [n] of the columns, and |r_kk| float64 [n], never ascending; exactly 0 beyond
        the numerical rank.
    """
    left = columns.clone()
    size = left.shape[1]
    diagonal = torch.zeros(size, dtype=left.dtype)
    free = torch.ones(size, dtype=torch.bool)
    order = torch.empty(size, dtype=torch.int64)
    for step in range(size):
        norms = torch.where(free, left.norm(dim=0), -1.0)
        best = int(norms.argmax())
        tiny = torch.finfo(left.dtype).eps * size * (diagonal[0] if step else 0.0)
        if norms[best] <= tiny:
            order[step:] = free.nonzero().flatten()
            break
        order[step], diagonal[step], free[best] = best, norms[best], False
        direction = left[:, best] / norms[best]
        left -= torch.outer(direction, direction @ left)
    return order, diagonal.cummin(0).values  # rounding may let a later one exceed by an ulp


@lru_cache(maxsize=1)
def pivots_of(setting: Setting) -> dict[str, GroupOrder]:
    """Pivoted order of each group, priced by |r_kk| / |r_11|; the first unit never goes."""
    wide = wide_of(setting)
    found = {}
    for group in wide.groups:
        stacked = []
        for slot, target in consumers_of(group, wide.targets) or ():
            columns = unit_columns(target.layer, slot)
            assert columns is not None
            # The triangular factor has the same Gram matrix, so the same pivots, as the rows.
            factor = torch.linalg.qr(unit_rows(target, columns), mode="r").R
            stacked.append(factor / factor.norm().clamp(min=torch.finfo(factor.dtype).tiny))
        order, diagonal = pivoted_qr(torch.cat(stacked))
        price = diagonal / diagonal[0].clamp(min=torch.finfo(diagonal.dtype).tiny)
        price[0] = torch.inf
        found[group.name] = GroupOrder(order, price)
    return found


@lru_cache(maxsize=1)
def wanda_scores(setting: Setting) -> dict[str, Tensor]:
    """Norm of each unit's activation times the norm of the weights that read it.

    The scores of several consumers are added, each relative to its mean.
    """
    wide = wide_of(setting)
    scores = {}
    for group in wide.groups:
        total = torch.zeros(group.size, dtype=torch.float64)
        for slot, target in consumers_of(group, wide.targets) or ():
            columns = unit_columns(target.layer, slot)
            assert columns is not None
            loud = unit_rows(target, columns).square().mean(0).sqrt()
            read = unit_norms(as_matrix(wide.tensors[slot.tensor], target.layer), 1, slot.units)
            score = loud * read
            total += score / score.mean().clamp(min=torch.finfo(score.dtype).tiny)
        scores[group.name] = total
    return scores


def magnitudes(setting: Setting) -> dict[str, Tensor]:
    """Norm of the weights that write each unit, those of several producers added relatively."""
    wide = wide_of(setting)
    scores = {}
    for group in wide.groups:
        total = torch.zeros(group.size, dtype=torch.float64)
        for slot in group.producers:
            norms = unit_norms(wide.tensors[slot.tensor].detach(), slot.dim, slot.units)
            total += norms / norms.mean().clamp(min=torch.finfo(norms.dtype).tiny)
        scores[group.name] = total
    return scores


def unit_norms(tensor: Tensor, dim: int, units: Tensor) -> Tensor:
    """Euclidean norm of what belongs to each unit along a dimension: float64 [units]."""
    squares = tensor.detach().double().movedim(dim, 0).flatten(1).square().sum(1)
    inside = units >= 0
    total = squares.new_zeros(int(units.max()) + 1)
    return total.index_add(0, units[inside], squares[inside]).sqrt()


RIVALS = (Interpolative(), Interpolative(threshold=True), GramCompensation())
