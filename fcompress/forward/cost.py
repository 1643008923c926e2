"""What a network costs: parameters, multiply-adds, time.

MACs are counted for one example over convolutions and linear maps (matrix products with a
weight); one multiply-add counts 1, biases, norms, nonlinearities and attention products 0.
Torch's own operator counter does the counting.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fcompress.forward.predictor import Predictor, as_predictor
from fcompress.forward.running import now, quiet_tracing, step_by_step

COUNTED = ("convolution", "addmm", "mm")


@dataclass(frozen=True)
class LayerCost:
    """Cost of one module with weights of its own.

    Attributes:
        params: Numbers in its parameters.
        macs: Multiply-adds for one example.
    """

    params: int
    macs: int


@dataclass(frozen=True)
class Cost:
    """Cost of a network.

    Attributes:
        params: Numbers in all parameters, shared ones once.
        macs: Multiply-adds for one example.
        layers: The same for each module that has parameters, by name.
    """

    params: int
    macs: int
    layers: dict[str, LayerCost]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def count(model: nn.Module | Predictor, example: Tensor) -> Cost:
    """Count parameters and MACs.

    Args:
        model: The network; it runs once in eval mode.
        example: Inputs [N, ...]; the first one is used.

    Returns:
        Totals and a share for each module with parameters.

    Example:
        >>> import torch
        >>> network = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> cost = count(network, torch.zeros(1, 8))
        >>> cost.params, cost.macs
        (46, 40)
    """
    counter = FlopCounterMode(display=False)
    predictor = as_predictor(model)
    model = predictor.network
    with predictor.evaluating(), quiet_tracing(), step_by_step(model), counter:
        predictor(predictor.place(example[:1]))
    counts = counter.get_flop_counts()

    def macs(key: str) -> int:
        found = counts.get(key, {})
        return sum(n for op, n in found.items() if str(op).split(".")[-1] in COUNTED) // 2

    layers = {}
    prefix = type(model).__name__
    for name, module in model.named_modules():
        own = sum(p.numel() for p in module.parameters(recurse=False))
        if own:
            layers[name] = LayerCost(own, macs(f"{prefix}.{name}" if name else prefix))
    return Cost(sum(p.numel() for p in model.parameters()), macs("Global"), layers)


def latency(
    models: Sequence[nn.Module | Predictor],
    example: Tensor,
    *,
    runs: int = 30,
    seconds: float = 2.0,
) -> list[float]:
    """Median milliseconds of one forward, the networks taking turns.

    Args:
        models: Networks to compare, on one device.
        example: The batch that each run gets.
        runs: Most runs of each network.
        seconds: Stop after about this long (at least five runs of each).

    Returns:
        Median milliseconds a forward for each network.
    """
    times: list[list[float]] = [[] for _ in models]
    predictors = [as_predictor(model) for model in models]
    example = predictors[0].place(example)
    start = time.perf_counter()
    for turn in range(runs + 2):
        for predictor, mine in zip(predictors, times, strict=True):
            with predictor.evaluating():
                begin = now(example.device)
                predictor(example)
                elapsed = now(example.device) - begin
            if turn >= 2:  # the first runs warm up
                mine.append(1e3 * elapsed)
        if turn >= 7 and time.perf_counter() - start > seconds:
            break
    return [sorted(mine)[len(mine) // 2] for mine in times]
