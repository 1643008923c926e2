"""Physically thinner copies of a network: the units that go are cut out of every tensor."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fcompress.models.lrn import LocalResponseNorm
from fcompress.resize import resize

if TYPE_CHECKING:
    from fcompress.groups import Group


def excise(
    model: nn.Module, groups: Sequence[Group], kept: Mapping[str, Tensor], *, share: bool = False
) -> nn.Module:
    """A copy of `model` that holds only the kept units.

    Args:
        model: The network; left as it is.
        groups: Its groups (`groups.find_groups`).
        kept: For each group by name the sorted int64 indices of the units that stay, at least
            one. Groups that are not named keep all their units.
        share: Let the copy use the very tensors of `model` where nothing is cut: cheap, for a
            copy that is only run and thrown away.

    Returns:
        The thin network: same classes, smaller tensors, nothing refactored.
    """
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    keep = kept_indices(tensors, groups, kept)
    thin = copy.deepcopy(model, {id(t): t for t in tensors.values()} if share else None)
    cut: dict[str, Tensor] = {}
    for (name, dim), index in keep.items():
        tensor = cut.get(name, tensors[name].detach())
        cut[name] = tensor.index_select(dim, index.to(tensor.device))
    resize(thin, cut)
    return thin


def kept_indices(
    tensors: Mapping[str, Tensor], groups: Sequence[Group], kept: Mapping[str, Tensor]
) -> dict[tuple[str, int], Tensor]:
    """Which indices of each (tensor, dim) stay: sorted int64, for every slot that is cut."""
    masks: dict[tuple[str, int], Tensor] = {}
    for group in groups:
        if group.name not in kept:
            continue
        stays = torch.zeros(group.size + 1, dtype=torch.bool)
        stays[kept[group.name]] = True
        stays[-1] = True  # index -1: places that are none of the group's units
        for slot in group.slots:
            key = (slot.tensor, slot.dim)
            size = tensors[slot.tensor].shape[slot.dim]
            masks[key] = masks.get(key, torch.ones(size, dtype=torch.bool)) & stays[slot.units]
    return {key: mask.nonzero().flatten() for key, mask in masks.items()}


def exact_normalisation(model: nn.Module) -> nn.Module:
    """A copy in which every `nn.LocalResponseNorm` remembers positions (`models/lrn.py`).

    Args:
        model: Any network; left as it is.

    Returns:
        The copy, or `model` itself where there is nothing to replace.
    """
    found = [n for n, m in model.named_modules() if isinstance(m, nn.LocalResponseNorm)]
    return copy.deepcopy(model) if not found else model


__all__ = ["LocalResponseNorm", "exact_normalisation", "excise", "kept_indices"]
