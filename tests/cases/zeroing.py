"""The experiment that every group has to pass, written without the package's own proof."""

import copy

import torch
from torch import Tensor, nn

from fcompress.structure.groups import Group, Structure
from fcompress.surgery.excision import excise


def zeroed(model: nn.Module, group: Group, removed: Tensor, roles: set[str]) -> nn.Module:
    """A copy in which the places of some units are 0 in all parameters of some roles."""
    model = copy.deepcopy(model)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for slot in group.slots:
            if slot.role in roles and slot.tensor in parameters:
                rows = torch.isin(slot.units, removed).nonzero().flatten()
                parameters[slot.tensor].index_fill_(slot.dim, rows, 0.0)
    return model


def without(group: Group, removed: Tensor) -> dict[str, Tensor]:
    units = torch.arange(group.size)
    return {group.name: units[~torch.isin(units, removed)]}


def subsets(group: Group, number: int, seed: int = 0) -> list[Tensor]:
    """Random sets of units to remove, from one unit to all but one."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(1, group.size, (number,), generator=generator).tolist()
    return [torch.randperm(group.size, generator=generator)[:n] for n in sizes]


def largest(difference: Tensor, scale: Tensor) -> float:
    return float(difference.abs().max() / scale.abs().max())


def assert_exact(
    model: nn.Module, group: Group, removals: list[Tensor], x: Tensor, *, through_norm: bool = False
) -> float:
    """Excising is zeroing at the consumers.

    Units that pass a local response normalisation are zeroed before it, too.

    Returns:
        The largest change of the outputs, which says that the units did something.
    """
    roles = {"consumer", "producer", "between"} if through_norm else {"consumer"}
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    changes = []
    for removed in removals:
        with torch.no_grad():
            original = model(x)
            expected = zeroed(model, group, removed, roles)(x)
            thin = excise(model, [group], without(group, removed))
            got = thin(x)
        assert got.shape == original.shape
        assert largest(got - expected, original) < 1e-10
        changes.append(largest(got - original, original))
        smaller = dict(thin.named_parameters()) | dict(thin.named_buffers())
        for slot in group.slots:
            assert smaller[slot.tensor].shape[slot.dim] < tensors[slot.tensor].shape[slot.dim]
    return max(changes)


def unaccounted(model: nn.Module, structure: Structure) -> set[str]:
    """Parameters that are in no group and not named either."""
    named = {slot.tensor for g in (*structure.groups, *structure.not_pruned) for slot in g.slots}
    return {name for name, _ in model.named_parameters()} - named - set(structure.unused)
