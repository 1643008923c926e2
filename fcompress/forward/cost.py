"""What a network costs: parameters and multiply-adds.

MACs are counted for one example over convolutions and linear maps (matrix products with a
weight); one multiply-add counts 1, biases, norms, nonlinearities and attention products 0.
Torch's own operator counter does the counting.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fcompress.forward.predictor import Predictor, as_predictor
from fcompress.forward.running import quiet_tracing, step_by_step
from fcompress.showing.results import Shown

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


@dataclass(frozen=True, repr=False)
class Cost(Shown):
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
