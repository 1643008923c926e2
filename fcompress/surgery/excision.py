"""Groups of units, and physically smaller copies of a network without some of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from fcompress.forward.running import copied, tensors_of
from fcompress.models.provenance import hand_on
from fcompress.surgery.resizing import resize
from fcompress.surgery.units import Group, Number

# What modules call their number of heads, where whole heads are units.
HEADS = frozenset("num_heads n_heads heads n_head nhead num_attention_heads".split())
# Part of what they call the width of all heads together (attn_dim, inner_dim, all_head_size).
_WIDTHS = ("attn", "inner", "head")
# How many levels of modules above a tensor's own may keep a size of it.
_AROUND = 2
_NO_SIZES = frozenset(("head_dim", *vars(nn.Module())))


def excise(
    model: nn.Module, groups: Sequence[Group], kept: Mapping[str, Tensor], *, share: bool = False
) -> nn.Module:
    """A copy of `model` that holds only the kept units.

    Modules learn their new sizes (`resize`), and modules that own whole heads, as units, their
    new number of heads and the width of all heads together.

    Args:
        model: The network; left as it is.
        groups: Its groups (`structure.find_groups`).
        kept: For each group by name the sorted int64 indices of the units that stay, at least
            one. Groups that are not named keep all their units.
        share: Let the copy use the very tensors of `model` where nothing is cut: cheap, for a
            copy that is only run and thrown away.

    Returns:
        The compressed network: same classes, smaller tensors, no weight refitted.

    Raises:
        ValueError: `kept` names a group that is not there, or not some units of a group in order.

    Example:
        >>> from fcompress.surgery.units import Slot
        >>> units = torch.arange(4)
        >>> slots = (
        ...     Slot("0.weight", 0, units, "producer"),
        ...     Slot("0.bias", 0, units, "between"),
        ...     Slot("2.weight", 1, units, "consumer"),
        ... )
        >>> hidden = Group("0", 4, slots)
        >>> model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 3))
        >>> excise(model, [hidden], {"0": torch.tensor([0, 3])})
        Sequential(
          (0): Linear(in_features=2, out_features=2, bias=True)
          (1): ReLU()
          (2): Linear(in_features=2, out_features=3, bias=True)
        )
    """
    unknown = sorted(set(kept) - {g.name for g in groups})
    if unknown:
        raise ValueError(f"no group is called {unknown[0]!r}; expected names of groups in kept")
    tensors = tensors_of(model)
    keep = kept_indices(tensors, groups, kept)
    compressed = copied(model, {id(t): t for t in tensors.values()} if share else None)
    cut: dict[str, Tensor] = {}
    for (name, dim), index in keep.items():
        tensor = cut.get(name, tensors[name].detach())
        cut[name] = tensor.index_select(dim, index.to(tensor.device))
    resize(compressed, cut)
    for group in groups:
        if group.name in kept and len(kept[group.name]) < group.size:
            for owner, attribute, each in _head_counts(compressed, group):
                setattr(owner, attribute, each * len(kept[group.name]))
            for number in group.numbers:
                _lower(compressed, number, group.size - len(kept[group.name]))
    hand_on(model, compressed)
    return compressed


def kept_indices(
    tensors: Mapping[str, Tensor], groups: Sequence[Group], kept: Mapping[str, Tensor]
) -> dict[tuple[str, int], Tensor]:
    """Which indices of each (tensor, dim) stay.

    Args:
        tensors: Parameters and buffers of the network, by name.
        groups: Its groups.
        kept: For each group by name the sorted int64 indices of the units that stay, at least
            one. Groups that are not named are not cut.

    Returns:
        Sorted int64 for every (tensor, dim) of a slot of those groups; one that several groups
        share keeps what all of them keep.

    Raises:
        ValueError: `kept` is not some units of a group in order.

    Example:
        >>> from fcompress.surgery.units import Slot
        >>> units = torch.arange(4)
        >>> slots = (
        ...     Slot("0.weight", 0, units, "producer"),
        ...     Slot("0.bias", 0, units, "between"),
        ...     Slot("2.weight", 1, units, "consumer"),
        ... )
        >>> hidden = Group("0", 4, slots)
        >>> model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 3))
        >>> tensors = dict(model.named_parameters())
        >>> index = kept_indices(tensors, [hidden], {"0": torch.tensor([0, 3])})
        >>> {place: stays.tolist() for place, stays in index.items()}
        {('0.weight', 0): [0, 3], ('0.bias', 0): [0, 3], ('2.weight', 1): [0, 3]}
    """
    masks: dict[tuple[str, int], Tensor] = {}
    for group in groups:
        if group.name not in kept:
            continue
        units = kept[group.name]
        ordered = len(units) > 0 and bool((units.diff() > 0).all())
        if not ordered or units[0] < 0 or units[-1] >= group.size:
            raise ValueError(
                f"kept units of {group.name} must be sorted, different and within 0 to "
                f"{group.size - 1}, at least one; got {units.tolist()[:10]}"
            )
        stays = torch.zeros(group.size + 1, dtype=torch.bool)
        stays[units] = True
        stays[-1] = True  # index -1: places that are none of the group's units
        for slot in group.slots:
            key = (slot.tensor, slot.dim)
            size = tensors[slot.tensor].shape[slot.dim]
            masks[key] = masks.get(key, torch.ones(size, dtype=torch.bool)) & stays[slot.units]
    return {key: mask.nonzero().flatten() for key, mask in masks.items()}


def _head_counts(model: nn.Module, group: Group) -> Iterator[tuple[nn.Module, str, int]]:
    """Modules that count the units of a group as their heads, the attribute, what each adds."""
    seen: set[int] = set()
    sizes = {int((s.units >= 0).sum()) for s in group.slots if s.role != "between"}
    for slot in group.producers:
        parts = slot.tensor.split(".")[:-1]
        if int((slot.units >= 0).sum()) <= group.size:
            continue  # a head has several rows
        for depth in range(len(parts) + 1):
            owner = model.get_submodule(".".join(parts[:depth]))
            if id(owner) in seen:
                continue
            seen.add(id(owner))
            for attribute, count in list(vars(owner).items()):
                if type(count) is not int or attribute in _NO_SIZES:
                    continue
                if attribute in HEADS and count == group.size:
                    yield owner, attribute, 1
                elif count in sizes and any(part in attribute for part in _WIDTHS):
                    yield owner, attribute, count // group.size


def _lower(model: nn.Module, number: Number, units: int) -> None:
    """Let a module know that so many units are gone."""
    owner = model.get_submodule(number.module)
    value = getattr(owner, number.attribute)
    if number.position is None:
        setattr(owner, number.attribute, value - number.each * units)
        return
    items = list(value)
    items[number.position] -= number.each * units
    setattr(owner, number.attribute, type(value)(items))


def numbers_of(model: nn.Module, group: Group) -> list[Number]:
    """Sizes kept by the modules around a group that may count its units, likeliest first.

    Args:
        model: The network.
        group: One of its groups.

    Returns:
        Attributes of modules that own the group's places, and of the modules around those, whose
        value is the number of units or that of their rows, or a multiple and part of these.
    """
    sizes = {int((s.units >= 0).sum()) for s in group.slots}
    owners: dict[str, int] = {}
    for slot in group.slots:
        parts = slot.tensor.split(".")[:-1]
        for depth in range(max(0, len(parts) - _AROUND), len(parts) + 1):
            owners.setdefault(".".join(parts[:depth]), len(parts) - depth)
    known = {(id(owner), attribute) for owner, attribute, _ in _head_counts(model, group)}
    found: list[tuple[tuple[bool, int], Number]] = []
    for path, away in owners.items():
        owner = model.get_submodule(path)
        if type(owner).__module__.startswith("torch."):
            continue
        for attribute, value in vars(owner).items():
            if (id(owner), attribute) in known or attribute in _NO_SIZES:
                continue
            several = isinstance(value, (tuple, list)) and type(value) in (tuple, list)
            for position, one in enumerate(value) if several else [(None, value)]:
                if type(one) is not int or one % group.size or one < group.size:
                    continue
                exact = one == group.size or one in sizes
                if one <= max(sizes) and (exact or not several):
                    each = one // group.size
                    found.append(((not exact, away), Number(path, attribute, position, each)))
    return [number for _, number in sorted(found, key=lambda item: item[0])]
