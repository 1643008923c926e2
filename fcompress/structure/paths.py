"""Ways that a forward takes: which examples make a network execute other operators.

A network may branch on values or sizes, skip a layer, choose experts. One run shows one way; units
have to fit on all of them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, MutableMapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from fcompress.forward.copying import deep_copy
from fcompress.forward.running import quiet_tracing, tensors_in, tensors_of
from fcompress.structure.groups import Structure
from fcompress.structure.parameters import address
from fcompress.structure.rules_elementwise import is_pointwise, operator_name
from fcompress.surgery.preparation import Call, plainly

MOST_WAYS = 4
Way = tuple[tuple[str, ...], ...]
# What torch itself leaves out or puts in, as memory happens to lie: copies and views of a whole.
_LAYOUTS = frozenset(
    "clone contiguous view _unsafe_view reshape _reshape_alias alias detach expand".split()
)


def different_ways(
    model: nn.Module, batches: Iterable[Tensor], *, call: Call = plainly, most: int = MOST_WAYS
) -> tuple[list[Tensor], set[str]]:
    """One batch for each way through the forward that these batches take.

    Two runs went the same way if they executed the same operators on the same parameters, in the
    same order.

    Args:
        model: The network, in eval mode, on the device of the batches.
        batches: Inputs [N, ...].
        call: Runs the network, `call(model, inputs)`.
        most: Ways after which no more are looked for.

    Returns:
        The batches, the first one among them, and the names of the parameters that none reached.

    Example:
        >>> import torch
        >>> class Either(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.dark, self.bright, self.never = (nn.Linear(1, 1) for _ in range(3))
        ...
        ...     def forward(self, x):
        ...         return self.bright(x) if x.mean() > 0 else self.dark(x)
        >>> batches = torch.tensor([-2.0, -1, 1]).view(3, 1, 1)
        >>> ways, unreached = different_ways(Either().eval(), batches)
        >>> [float(way) for way in ways], sorted(unreached)
        ([-2.0, 1.0], ['never.bias', 'never.weight'])
    """
    left = {name for name, _ in model.named_parameters()}
    seen: set[Way] = set()
    found: list[Tensor] = []
    for batch in batches:
        way, reached = _way(model, batch, call)
        left -= reached
        if way not in seen:
            seen.add(way)
            found.append(batch)
            if len(found) == most:
                break
    return found, left


def ways_of_units(model: nn.Module, batches: Iterable[Tensor], *, call: Call = plainly) -> int:
    """How many of some ways differ in what happens to units.

    They do not where what differs is computed from the inputs alone, such as a mask that a network
    does not make where no position is padding, or is how such values meet activations elementwise.

    Args:
        model: The network, in eval mode, on the device of the batches.
        batches: Inputs [N, ...], one for each way (`different_ways`).
        call: Runs the network, `call(model, inputs)`.

    Example:
        >>> import torch
        >>> masked = lambda model, x: model(x) * (x > 0) if x.min() < 0 else model(x)
        >>> model, batches = nn.Linear(1, 1), [torch.ones(2, 1), -torch.ones(2, 1)]
        >>> len(different_ways(model, batches, call=masked)[0])
        2
        >>> ways_of_units(model, batches, call=masked)
        1
    """
    return len({_way(model, batch, call, _UnitsOnly)[0] for batch in batches})


def commonest_way(
    model: nn.Module, batches: Iterable[Tensor], *, call: Call = plainly
) -> list[Tensor]:
    """Those of some batches on which the network goes the way that most examples go.

    Args:
        model: The network, in eval mode, on the device of the batches.
        batches: Inputs [N, ...].
        call: Runs the network, `call(model, inputs)`.

    Example:
        >>> import torch
        >>> twice = lambda model, x: model(x) if x[0, 0] > 0 else model(model(x))
        >>> batches = [torch.ones(3, 1), -torch.ones(2, 1), torch.ones(1, 1)]
        >>> [len(batch) for batch in commonest_way(nn.Linear(1, 1), batches, call=twice)]
        [3, 1]
    """
    by_way: dict[Way, list[Tensor]] = {}
    for batch in batches:
        by_way.setdefault(_way(model, batch, call)[0], []).append(batch)
    return max(by_way.values(), key=lambda some: sum(len(batch) for batch in some))


def reached_in_training(model: nn.Module, batch: Tensor, *, call: Call = plainly) -> set[str]:
    """Names of the parameters that a network uses in training mode: auxiliary heads, for one.

    Args:
        model: The network; a copy of it is run.
        batch: Inputs [N, ...], on its device.
        call: Runs the network, `call(model, inputs)`.

    Returns:
        The names; none of a network that does not run in training mode.

    Example:
        >>> import torch
        >>> aside = lambda model, x: model[0](model[1](x) if model.training else x)
        >>> layers = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False))
        >>> sorted(reached_in_training(layers.eval(), torch.ones(1, 1), call=aside))
        ['0.weight', '1.weight']
    """
    copied = deep_copy(model).train()
    try:
        return _way(copied, batch, call)[1]
    except Exception:  # nobody asked whether it trains
        return set()


def spared(structure: Structure, model: nn.Module, unreached: Collection[str]) -> Structure:
    """A structure without the groups that layers which no run reached may read or write.

    What such a layer would be given nobody saw, but its weights say how wide that is: groups that
    stand somewhere in a dimension of that width are not pruned.

    Args:
        structure: Groups of the network.
        model: The network.
        unreached: Names of parameters that no run reached.

    Example:
        >>> import torch
        >>> from fcompress.structure.groups import find_groups
        >>> model = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 6), nn.Linear(6, 3))
        >>> model.never = nn.Linear(8, 4)
        >>> structure = find_groups(model, torch.ones(4, 2), call=lambda m, x: m[:4](x))
        >>> structure = spared(structure, model, ["never.weight"])
        >>> [group.name for group in structure.groups], structure.not_pruned[-1].reason[:44]
        (['2'], 'never, which no example reached, may read or')
    """
    tensors = dict(model.named_parameters())
    widths: dict[int, str] = {}
    for name in sorted(unreached):
        for size in tensors[name].shape[:2]:
            widths.setdefault(size, name.rpartition(".")[0] or name)
    kept, left = [], list(structure.not_pruned)
    for group in structure.groups:
        layer = next((widths[n] for s in group.slots if (n := len(s.units)) in widths), None)
        if layer is None:
            kept.append(group)
        else:
            reason = f"{layer}, which no example reached, may read or write its units"
            left.append(
                replace(group, reason=f"{reason}; only_seen_paths prunes them all the same")
            )
    return replace(structure, groups=tuple(kept), not_pruned=tuple(left))


def _way(
    model: nn.Module, batch: Tensor, call: Call, kind: type[_Watch] | None = None
) -> tuple[Way, set[str]]:
    """The operators of a run with the parameters that they are given, and all of the latter."""
    watch = (kind or _Watch)({id(tensor): name for name, tensor in tensors_of(model).items()})
    with quiet_tracing(), watch:
        call(model, batch)
    return tuple(watch.steps), watch.reached


class _Watch(TorchDispatchMode):
    """Notes which operators are executed on which parameters."""

    def __init__(self, names: dict[int, str]) -> None:
        super().__init__()
        self.steps: list[tuple[str, ...]] = []
        self.reached: set[str] = set()
        self._names = names

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        operands = tensors_in((args, kwargs or {}))
        if self._counts(func, operands, out):
            name = operator_name(func)
            if name == "addmm":  # which of the two torch takes depends on how memory lies
                self._note("aten.mm.default", operands[1:])
                self._note("aten.add.Tensor", operands[:1])
            elif name.startswith("_scaled_dot_product"):  # which one is a question of speed
                self._note("aten.scaled_dot_product_attention.default", operands)
            else:
                self._note(str(func), operands)
        return out

    def _counts(self, func: Any, operands: list[Tensor], out: Any) -> bool:
        return True

    def _note(self, operator: str, operands: list[Tensor]) -> None:
        used = [self._names[id(x)] for x in operands if id(x) in self._names]
        self.reached.update(used)
        if used or operator.split(".")[1] not in _LAYOUTS:
            self.steps.append((operator, *used))


class _UnitsOnly(_Watch):
    """Leaves out what is done to inputs and constants, which have no units."""

    def __init__(self, names: dict[int, str]) -> None:
        super().__init__(names)
        self._made: MutableMapping[Tensor, bool] = WeakTensorKeyDictionary()
        self._written: dict[int, Tensor] = {}

    def _counts(self, func: Any, operands: list[Tensor], out: Any) -> bool:
        of_units = [x for x in operands if self._has_units(x)]
        if not of_units:
            return False
        for result in tensors_in(out):
            self._made[result] = True
            if any(result is x for x in operands) and id(result) not in self._names:
                # Views share what is written; the tensor held keeps its address its own.
                self._written[address(result)] = result
        alone = len(of_units) == 1 and len(operands) > 1 and id(of_units[0]) not in self._names
        same = isinstance(out, Tensor) and out.shape == of_units[0].shape
        return not (alone and same and is_pointwise(func))

    def _has_units(self, x: Tensor) -> bool:
        return id(x) in self._names or x in self._made or address(x) in self._written
