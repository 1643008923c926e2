"""Measured networks with chosen numbers of prunable and redundant units."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from fcompress.measure.ablation import AblationCurve, AblationResult
from fcompress.measure.redundancy import LayerRedundancy, RedundancyResult


@dataclass(frozen=True)
class Measured:
    """A measured network with chosen numbers."""

    args: dict[str, Any]
    ablation: AblationResult
    redundancy: RedundancyResult
    family: str | None = "mlp"


def curve_with(name, share, units):
    """A curve that falls from 1 to 0 in one straight line from p* = share on: exactly p*."""
    grid = np.arange(7) / 6
    # Agreement 0.8 at p*, linear between grid points on both sides of it.
    step = int(np.searchsorted(grid, share))
    below = grid[step - 1]
    low = 1 - 0.2 * (grid[step] - below) / (share - below)
    values = tuple([1.0] * step + [low] * (7 - step))
    return AblationCurve(name, units, 100, (values, (1.0, *[0.0] * 6)), None)


def layer_with(name, units, components):
    """A layer with exactly so many components above 95% of the variance."""
    explained = [1.0] * units
    explained[: components - 1] = [0.9] * (components - 1)
    return LayerRedundancy(name, units, 100, tuple(explained), (), (), None)


def measured_network(width, share, kept, *, units=(8, 16), **args):
    scaled = [int(n * width) for n in units]
    layers = [
        layer_with(f"relu{i}", n, k) for i, (n, k) in enumerate(zip(scaled, kept, strict=True))
    ]
    return Measured(
        args={"width": width, "depth": 2, **args},
        ablation=AblationResult(
            network=curve_with("network", share, sum(scaled)),
            layers=tuple(curve_with(f"relu{i}", share / 2, n) for i, n in enumerate(scaled)),
            unit="element",
            units={f"relu{i}": n for i, n in enumerate(scaled)},
            accuracy=None,
            tolerances=(0.2, 0.5),
            seed=0,
            rule="",
            skipped=(),
        ),
        redundancy=RedundancyResult(tuple(layers), 100, (0.05, 0.1), "", ()),
    )
