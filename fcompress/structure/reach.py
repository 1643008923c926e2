"""Coverage: how much of a network its proven groups reach, and what keeps the rest."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fcompress.errors import first_line
from fcompress.forward.outputs import output_tensors
from fcompress.forward.running import as_inputs, dtype_of, quiet_tracing
from fcompress.structure.groups import Structure, find_groups
from fcompress.surgery.excision import excise
from fcompress.surgery.preparation import Call, plainly, prepare
from fcompress.surgery.units import Group

SHARED = "belongs to no unit"
OUTPUT = "output layer"


@dataclass(frozen=True)
class CoverageResult:
    """What of a network can be reached by excision, measured.

    Attributes:
        params: Parameters of the network.
        reachable: Parameters in at least one proven group.
        both: Those of them of which neither the row nor the column belongs to a group that is not
            pruned. What the network takes and gives (its inputs, its outputs, the entries of a
            table) is no group that could go, and does not count against them.
        left: Parameters in no proven group, by reason.
        groups: Number of proven groups.
        units: Units in them.
        groups_left: Number of groups that are not pruned.
        removed: Share of the units of every proven group that were excised together.
        thin_params: Parameters of the compressed network, without these units.
        change: Largest change of the outputs by it, relative to the largest output; None if it
            did not run.
        error: Why the compressed network does not run; None if it does, with outputs of the same
            shape and no value that is not finite.
        proof: What the proof measured: units, error, change.
        seconds: Wall time of finding and proving the groups.
        cpu_seconds: The same in CPU time of this process, which other processes do not lengthen.
        seed: Chose the units.
    """

    params: int
    reachable: int
    both: int
    left: dict[str, int]
    groups: int
    units: int
    groups_left: int
    removed: float
    thin_params: int
    change: float | None
    error: str | None
    proof: dict[str, float]
    seconds: float
    cpu_seconds: float
    seed: int

    def to_dict(self) -> dict[str, Any]:
        """All fields, for JSON."""
        return asdict(self)


def coverage(
    model: nn.Module,
    example: Any,
    *,
    removed: float = 0.3,
    seed: int = 0,
    call: Call | None = None,
) -> CoverageResult:
    """Find the groups of a network, and excise a share of the units of all of them.

    Args:
        model: Any network; it is copied, never changed.
        example: A real input batch, a tensor [N, ...] or a tuple of positional inputs.
        removed: Share of the units of every group to excise, at least one unit and not all.
        seed: Chooses the units.
        call: How the network is run, as for `find_groups`; None for `module(*inputs)`.

    Returns:
        Numbers of parameters by reason, and whether the compressed network runs.

    Raises:
        UnsupportedNetworkError: The network does not run on the example.
        ValueError: `removed` is not between 0 and 1.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 3))
        >>> result = coverage(model, torch.randn(8, 2), removed=0.5)
        >>> result.params, result.reachable, result.left
        (27, 24, {'output layer': 3})
        >>> result.both
        24
        >>> result.thin_params, result.error
        (15, None)
    """
    if not 0 < removed < 1:
        raise ValueError(f"removed must be a share between 0 and 1, got {removed}")
    begin, cpu = time.perf_counter(), time.process_time()
    original = prepare(model, example, share=True, call=call).cpu().eval()
    structure = find_groups(original, example, seed=seed, call=call)
    seconds, cpu_seconds = time.perf_counter() - begin, time.process_time() - cpu
    reachable, left = shares(original, structure)
    generator = torch.Generator().manual_seed(seed)
    kept = {}
    for group in structure.groups:
        number = min(max(round(removed * group.size), 1), group.size - 1)
        order = torch.randperm(group.size, generator=generator)
        kept[group.name] = order[number:].sort().values
    inputs, call = as_inputs(example, dtype_of(original)), call or plainly
    thin_params, change, error = 0, None, None
    try:
        compressed = excise(original, structure.groups, kept, share=True)
        thin_params = sum(p.numel() for p in compressed.parameters())
        change = _change(_outputs(original, inputs, call), _outputs(compressed, inputs, call))
    except Exception as failure:  # whatever foreign code raises at another width
        error = f"{type(failure).__name__}: {first_line(failure)}"
    if change is not None and change != change:
        change, error = None, "outputs of another shape, or not finite"
    return CoverageResult(
        params=sum(p.numel() for p in original.parameters()),
        reachable=reachable,
        both=_both(dict(original.named_parameters()), structure),
        left=left,
        groups=len(structure.groups),
        units=sum(g.size for g in structure.groups),
        groups_left=len(structure.not_pruned),
        removed=removed,
        thin_params=thin_params,
        change=change,
        error=error,
        proof=dict(structure.proof),
        seconds=seconds,
        cpu_seconds=cpu_seconds,
        seed=seed,
    )


def shares(model: nn.Module, structure: Structure) -> tuple[int, dict[str, int]]:
    """Parameters in proven groups, and the others by the reason that keeps them.

    An element of a weight counts as reached if its row or its column belongs to a proven group.
    One that several reasons keep counts for the group that comes first in order of execution,
    those that a normalisation mixes last.

    Args:
        model: The network of `structure`.
        structure: Its groups.

    Returns:
        Number of reachable parameters; number of parameters by reason, largest first.
    """
    parameters = dict(model.named_parameters())
    reached = _places(parameters, structure.groups)
    total = sum(int(mask.sum()) for mask in reached.values())
    left: dict[str, int] = {}
    taken = {n: reached.get(n, torch.tensor(False)).expand(p.shape) for n, p in parameters.items()}
    for group in sorted(structure.not_pruned, key=lambda g: "mixes" in (g.reason or "")):
        reason = group.reason or ""
        for name, mask in _places(parameters, [group]).items():
            new = int((mask & ~taken[name]).sum())
            taken[name] = taken[name] | mask
            if new:
                left[reason] = left.get(reason, 0) + new
    for name, mask in taken.items():
        rest = mask.numel() - int(mask.sum())
        if rest:
            reason = structure.unused.get(name, SHARED)
            left[reason] = left.get(reason, 0) + rest
    return total, dict(sorted(left.items(), key=lambda item: -item[1]))


def _both(parameters: dict[str, nn.Parameter], structure: Structure) -> int:
    """How many elements have a row or column in a proven group, and neither in one that stays."""
    can = _places(parameters, structure.groups)
    stays = [group for group in structure.not_pruned if group.reason != OUTPUT]
    cannot = _places(parameters, stays)
    return sum(
        int((mask & ~cannot[name]).sum() if name in cannot else mask.sum())
        for name, mask in can.items()
    )


def _places(parameters: dict[str, nn.Parameter], groups: Iterable[Group]) -> dict[str, Tensor]:
    """Which elements of each parameter belong to units of some groups."""
    masks: dict[str, Tensor] = {}
    for group in groups:
        for slot in group.slots:
            if slot.tensor in parameters:
                shape = parameters[slot.tensor].shape
                view = [-1 if d == slot.dim else 1 for d in range(len(shape))]
                mine = (slot.units >= 0).view(view).expand(shape)
                old = masks.get(slot.tensor)
                masks[slot.tensor] = mine if old is None else old | mine
    return masks


def _outputs(model: nn.Module, inputs: tuple[Any, ...], call: Call) -> list[Tensor]:
    with quiet_tracing():
        leaves = output_tensors(call(model, *inputs)).values()
    return [x for x in leaves if x.is_floating_point()]


def _change(a: list[Tensor], b: list[Tensor]) -> float:
    """Largest difference relative to the largest value of `a`; nan if they cannot be compared."""
    if [x.shape for x in a] != [x.shape for x in b]:
        return float("nan")
    if not all(bool(x.isfinite().all()) for x in b):
        return float("nan")
    scale = max((float(x.abs().amax()) for x in a), default=0.0)
    gap = max((float((x - y).abs().amax()) for x, y in zip(a, b, strict=True)), default=0.0)
    return gap / max(scale, torch.finfo(torch.float32).tiny)
