"""In which order whole blocks would go, and what each costs on top of those before it, in nats.

Blocks are worth less together than one by one: a network does without one of ten alike, not
without five. So a block's cost is measured with those gone that go before it, which makes a chain.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fcompress.compress.ranking.allocation import BlockCost, Load
from fcompress.errors import UnsupportedNetworkError
from fcompress.forward.predictor import Predictor
from fcompress.surgery.skipping import Block, Left, drop
from fcompress.surgery.units import Group

EXAMPLES = 256
MOST_NATS = 2.0  # beyond that no label means anything
RUNS_EACH = 4  # networks that are run to place a block, on average at most


@dataclass(frozen=True)
class Choice:
    """Blocks that can go.

    Attributes:
        blocks: In order of execution.
        left: What is left of each, by name.
    """

    blocks: tuple[Block, ...] = ()
    left: Mapping[str, Left] | None = None

    def gone(self, kept: Mapping[str, Tensor]) -> list[Block]:
        """The blocks that a choice of units and blocks does without."""
        return [b for b in self.blocks if key(b) in kept and not len(kept[key(b)])]


def key(block: Block) -> str:
    """What a block is called among groups of units."""
    return f"block {block.name}"


def chain(
    original: Predictor,
    choice: Choice,
    groups: Sequence[Group],
    loads: Sequence[Load],
    inputs: Tensor,
) -> list[BlockCost]:
    """Blocks in the order in which they go, each with what it costs when those before are gone.

    The next one is always the one that costs least for what it saves. What a block costs only
    grows while others go, so a cost that was measured earlier is a lower bound: blocks are
    measured again only when they seem to be next.

    Args:
        original: The original network, in eval mode.
        choice: Its blocks.
        groups: Its groups of units.
        loads: What its layers cost.
        inputs: Examples [N, ...]; the first `EXAMPLES` are measured on, as one batch.

    Returns:
        Blocks as long as the network without them is within `MOST_NATS`.
    """
    sizes = {b.name: sum(x.cost for x in loads if x.weight in b.tensors) for b in choice.blocks}
    inputs = inputs[:EXAMPLES]
    with torch.no_grad(), original.evaluating():
        scoring = original.scoring
        reference = scoring.log_probabilities(original(inputs).double())

        def nats(blocks: Sequence[Block]) -> float:
            dropped = original.of(drop(original.network, blocks, choice.left).eval())
            try:
                outputs = scoring.log_probabilities(dropped(inputs).double())
            except UnsupportedNetworkError:  # its own code refuses other values
                return float("inf")
            return float(scoring.divergence(outputs, reference).nan_to_num(torch.inf, torch.inf))

        found: list[BlockCost] = []
        gone: list[Block] = []
        total, runs = 0.0, 0
        heap = [(-1.0, i, -1) for i, b in enumerate(choice.blocks) if sizes[b.name] > 0]
        heapq.heapify(heap)
        totals: dict[int, float] = {}
        while heap:
            _, number, measured_at = heapq.heappop(heap)
            block = choice.blocks[number]
            if measured_at < len(gone) and runs < RUNS_EACH * len(choice.blocks):
                totals[number] = nats([*gone, block])
                runs += 1
                price = max(totals[number] - total, 0.0) / sizes[block.name]
                heapq.heappush(heap, (price, number, len(gone)))
                continue
            if measured_at < len(gone):
                totals[number] = nats([*gone, block])
            if totals[number] > MOST_NATS:
                continue
            found.append(_cost(block, groups, max(totals[number] - total, 0.0), choice.blocks))
            total = max(total, totals[number])
            gone.append(block)
            # What lies in a block that is gone is gone with it.
            heap = [entry for entry in heap if not block.holds(choice.blocks[entry[1]])]
            heapq.heapify(heap)
    return found


def _cost(block: Block, groups: Sequence[Group], nats: float, blocks: Sequence[Block]) -> BlockCost:
    inside = frozenset(
        group.name for group in groups if all(slot.tensor in block.tensors for slot in group.slots)
    )
    within = frozenset(key(other) for other in blocks if block.holds(other))
    return BlockCost(key(block), block.tensors, inside, within, nats)
