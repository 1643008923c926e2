"""How much of what a group's removal costs is made up for by solving everything behind it again.

Folding a group into what reads it, which `divergence.py` measures, is less than what is done to
the network in the end: all layers behind are solved again on what they then read. What remains is
a tenth to a third of the cost of folding, most where little of the network follows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from fcompress.compress.refitting.reconstruct import refit_network
from fcompress.compress.refitting.samples import Target
from fcompress.forward.predictor import Predictor, as_predictor
from fcompress.structure.groups import Group
from fcompress.surgery.excision import excise, kept_indices

SHARE = 0.8  # of a group's units, with which it is refitted
LEAST, MOST = 0.01, 1.0  # of a cost that can remain; what is beyond is noise
TINY = 1e-12


def compensated_costs(
    original: nn.Module | Predictor,
    groups: Sequence[Group],
    orders: Mapping[str, Tensor],
    costs: Mapping[str, Tensor],
    targets: Mapping[str, Target],
    batches: Sequence[Tensor],
    inputs: Tensor,
) -> dict[str, Tensor]:
    """Scale the costs of each group by what is left of them behind a refit.

    Each group alone is cut to `SHARE` of its units, the network refitted, and its divergence
    compared with the cost at that size.

    Args:
        original: The original network, in eval mode.
        groups: The groups.
        orders: The units of each group, those that stay longest first: int64 [C].
        costs: For each group float64 [C]: entry k is the cost, in nats, when only the first k stay.
        targets: Rows of the original network on `batches`.
        batches: Inputs [N, ...] to refit on.
        inputs: Other examples [N, ...], on which the divergence is measured.

    Returns:
        For each group float64 [C], in nats.
    """
    predictor = as_predictor(original)
    scoring, tensors = predictor.scoring, predictor.tensors()
    scaled = dict(costs)
    with torch.no_grad():
        reference = scoring.log_probabilities(predictor(inputs).double())
    for group in groups:
        size = min(max(1, round(SHARE * group.size)), group.size - 1)
        cost = float(costs[group.name][size]) if size else 0.0
        if not TINY < cost < float("inf"):
            continue
        kept = {group.name: orders[group.name][:size].sort().values}
        thin = excise(predictor.network, groups, kept)
        keep = kept_indices(tensors, groups, kept)
        refit_network(predictor, thin, groups, keep, targets, batches)
        with torch.no_grad():
            found = scoring.log_probabilities(predictor.of(thin)(inputs).double())
        left = float(scoring.divergence(found, reference)) / cost
        scaled[group.name] = costs[group.name] * min(max(left, LEAST), MOST)
    return scaled
