"""How much of which group: units of all groups in one order of removal.

Every group comes with its units in order and with what it costs (in the method's own measure)
to keep only the first k of them. Units then go one at a time, always the one whose loss
costs least for what it saves: multiply-adds, parameters or measured time. What a unit saves
depends on how thin its neighbours are by then, so savings are kept up to date while units go.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from fcompress.forward.graph import Step, run
from fcompress.forward.predictor import Predictor, as_predictor
from fcompress.forward.recording import Recording, recordings_for
from fcompress.forward.running import now
from fcompress.structure.groups import Group

FINE_STEPS = 2000
RUNS = 5  # of a layer, to time it
DEAREST = 1e200  # stands for an infinite cost, which could not be compared with another one


@dataclass(frozen=True)
class GroupOrder:
    """Units of one group, those that stay longest first.

    Attributes:
        order: int64 [C], a permutation of the units.
        price: float64 [C], never ascending: when `order[k]` goes, among the units of all groups;
            infinite for a unit that never goes.
    """

    order: Tensor
    price: Tensor


@dataclass(frozen=True)
class RemovalOrder:
    """Nested networks: every level keeps, in each group, the head of the group's path.

    Attributes:
        groups: A path for each group by name.
        prices: Sorted float64: the prices at which some unit goes.
    """

    groups: Mapping[str, GroupOrder]
    prices: Tensor

    @classmethod
    def of(cls, groups: Mapping[str, GroupOrder]) -> RemovalOrder:
        """Join the groups of all groups by price."""
        merged = torch.cat([torch.zeros(0), *(p.price.double() for p in groups.values())])
        return cls(dict(groups), merged[merged.isfinite()].sort().values)

    def kept(self, removed: int, multiple: int = 1) -> dict[str, Tensor]:
        """Kept units of each group, sorted int64, when the first `removed` units are gone.

        Where some units of a group are gone, their number is rounded up to a multiple.
        """
        limit = float(self.prices[removed - 1]) if removed else -float("inf")
        return {
            name: path.order[: -(-int((path.price > limit).sum()) // multiple) * multiple]
            .sort()
            .values
            for name, path in self.groups.items()
        }


@dataclass(frozen=True)
class Load:
    """What one layer costs and which groups that depends on.

    Attributes:
        cost: Of the layer in the original network, in any unit that is common to all layers.
        inputs: Share of its input channels that each group holds.
        outputs: Share of its output channels that each group holds.
        weight: Name of its weight.
    """

    cost: float
    inputs: dict[str, float]
    outputs: dict[str, float]
    weight: str = ""


@dataclass(frozen=True)
class BlockCost:
    """A block that can go as a whole (`compress/blocks/`).

    Attributes:
        name: What it is called among groups.
        tensors: Names of the weights that go with it.
        groups: Groups whose units all go with it.
        blocks: Blocks inside of it.
        cost: Of its loss, in the measure of the groups' costs, when those before it are gone.
    """

    name: str
    tensors: frozenset[str]
    groups: frozenset[str]
    blocks: frozenset[str]
    cost: float


def layer_loads(
    original: nn.Module | Predictor,
    groups: Sequence[Group],
    batch: Tensor,
    objective: str = "macs",
    recordings: dict[int, Recording] | None = None,
) -> list[Load]:
    """What every layer costs, by a run; one that is used several times costs each time.

    Args:
        original: The original network, in eval mode.
        groups: Its groups.
        batch: Inputs [N, ...]; all are run for "latency", else only the first.
        objective: "macs" (multiply-adds), "params" (numbers in the weight) or "latency" (fastest of
            a few runs, in seconds).
        recordings: Recordings of the network that exist already, by batch size; more are added.
    """
    inputs = batch if objective == "latency" else batch[:1]
    recording = recordings_for(original, [inputs], recordings)[len(inputs)]
    tensors = as_predictor(original).tensors()
    values = {recording.inputs[0]: inputs.clone()}
    loads, at = [], 0
    counted: set[str] = set()
    with torch.no_grad():
        for layer in recording.maps:
            run(recording.steps[at : layer.step], values, tensors)
            at = layer.step + 1
            weight, step = tensors[layer.weight], recording.steps[layer.step]
            seconds = _fastest(step, values, tensors) if objective == "latency" else 0.0
            before = values.get(layer.places)
            run([step], values, tensors)
            places = values.get(layer.places, before)
            assert places is not None
            positions = places.numel() // places.shape[1]
            reads: dict[str, float] = {}
            writes: dict[str, float] = {}
            for group in groups:
                for slot in group.slots:
                    if slot.tensor == layer.weight and slot.role != "between":
                        share = float((slot.units >= 0).double().mean())
                        (reads if slot.role == "consumer" else writes)[group.name] = share
            costs = {"macs": weight.numel() * positions, "params": weight.numel()}
            if objective == "params" and layer.weight in counted:
                continue
            counted.add(layer.weight)
            loads.append(Load(costs.get(objective, seconds), reads, writes, layer.weight))
    return loads


def _fastest(step: Step, values: Mapping[int, Tensor], tensors: Mapping[str, Tensor]) -> float:
    """Seconds that a step takes when nothing else gets in its way."""
    device = next(iter(values.values())).device
    times = []
    for _ in range(RUNS):
        begin = now(device)
        step.call(values, tensors)
        times.append(now(device) - begin)
    return min(times)


def merge(
    orders: Mapping[str, Tensor],
    costs: Mapping[str, Tensor],
    loads: Sequence[Load],
    blocks: Sequence[BlockCost] = (),
) -> RemovalOrder:
    """Join the groups' own orders into one order of removal.

    Args:
        orders: For each group its units, those that stay longest first: int64 [C].
        costs: For each group float64 [C]: entry k is the cost when only the first k are kept.
        loads: What the layers cost.
        blocks: Blocks in the order in which they go.

    Returns:
        Prices are the places in the common order; each group keeps its first unit, unless a block
        takes it along. A block is a group of one unit.
    """
    names = list(orders)
    size = np.array([len(orders[n]) for n in names], dtype=np.float64)
    kept = size.copy()
    shape = len(loads), len(names)  # also where there is no layer at all
    reads = np.reshape([load.inputs.get(n, 0.0) for load in loads for n in names], shape)
    writes = np.reshape([load.outputs.get(n, 0.0) for load in loads for n in names], shape)
    costly = np.array([float(load.cost) for load in loads])
    marginal = [_marginal(costs[n]) for n in names]
    prices = [np.full(len(orders[n]), np.inf) for n in names]
    step = max(1, int(size.sum()) // FINE_STEPS)
    time = 0
    least = 1e-12 * max(costly.sum(), 1e-9)
    waiting, dropped = list(blocks), dict[str, float]()
    alive = np.ones(len(names), dtype=bool)
    while ((kept > 1) & alive).any() or waiting:
        gone = 1 - kept / size
        inputs, outputs = 1 - reads @ gone, 1 - writes @ gone
        saved = ((costly * outputs) @ reads + (costly * inputs) @ writes) / size
        loss = np.array([m[int(k) - 1] for m, k in zip(marginal, kept, strict=True)])
        ratio = np.where((kept > 1) & alive, loss / np.maximum(saved, least), np.inf)
        if waiting:
            block = waiting[0]
            mine = np.array([load.weight in block.tensors for load in loads], dtype=bool)
            whole = float((costly * inputs * outputs)[mine].sum())
            inside = [i for i, n in enumerate(names) if n in block.groups and alive[i]]
            # What its own units cost already is not lost once more.
            paid = sum(float(marginal[i][int(kept[i]) :].sum()) for i in inside)
            if max(block.cost - paid, 0.0) / max(whole, least) <= ratio.min(initial=np.inf):
                waiting.pop(0)
                time += 1
                dropped |= {n: time for n in (block.name, *block.blocks) if n not in dropped}
                for i in inside:
                    prices[i][: int(kept[i])] = time
                    alive[i] = False
                costly = np.where(mine, 0.0, costly)
                continue
        best = int(ratio.argmin())
        for _ in range(min(step, int(kept[best]) - 1)):
            kept[best] -= 1
            time += 1
            prices[best][int(kept[best])] = time
    found = {
        n: GroupOrder(orders[n], torch.from_numpy(p)) for n, p in zip(names, prices, strict=True)
    }
    one = torch.zeros(1, dtype=torch.int64)
    found |= {
        name: GroupOrder(one, torch.tensor([at], dtype=torch.float64))
        for name, at in dropped.items()
    }
    return RemovalOrder.of(found)


def _marginal(cost: Tensor) -> np.ndarray:
    """What losing the unit at each position costs when it is the last kept one.

    Never less than what a later position costs: units go from the end.
    """
    padded = np.append(cost.double().clamp(max=DEAREST).numpy(), 0.0)
    return np.maximum.accumulate((padded[:-1] - padded[1:])[::-1])[::-1]
