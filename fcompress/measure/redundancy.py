"""Redundant units: how many linear directions a layer's activations really use.

Paper section 4, "Redundancy", and docs/protocol.md section 2. A unit is a neuron or a whole feature
map; spatial positions count as further examples of it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fcompress.errors import UnsupportedNetworkError
from fcompress.forward.correlating import CorrelationPicture, correlation_picture
from fcompress.forward.predictor import Predictor, as_predictor
from fcompress.measure.hooks import observe
from fcompress.measure.layers import Layer, Skipped, redundancy_layers
from fcompress.measure.moments import Moments, unit_rows
from fcompress.measure.options import REDUNDANCY_TOLERANCES
from fcompress.showing.progress import Progress, Report, silent
from fcompress.showing.results import Shown

# A unit whose standard deviation is within so many roundings of its magnitude is constant.
CONSTANT_ROUNDINGS = 4.0
# Explained shares are compared with this slack, so that ties are not decided by rounding.
SHARE_SLACK = 1e-12
QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
HISTOGRAM_BINS = 50


@dataclass(frozen=True)
class Correlations:
    """|Pearson r| of all distinct pairs of units of one layer (violins of Fig. 2c-d).

    Attributes:
        units: Units compared: those that are not constant.
        pairs: Distinct pairs of them.
        mean: Mean of |r|.
        quantiles: |r| at each of `QUANTILES`.
        histogram: Pairs in each of 50 equal bins from 0 to 1.
    """

    units: int
    pairs: int
    mean: float
    quantiles: tuple[float, ...]
    histogram: tuple[int, ...] = field(repr=False)


@dataclass(frozen=True)
class LayerRedundancy:
    """Redundancy of one layer.

    Attributes:
        name: Address of the layer.
        units: Neurons or feature maps, C.
        rows: Examples times positions that were measured.
        explained: Share of the variance that the first 1, 2, ... C principal components
            explain; empty if every unit is constant.
        dead: Units that were exactly 0 on every row.
        constant: Units that did not vary beyond rounding, the dead ones included.
        correlations: Of the units that vary; None if fewer than two do.
        picture: The matrix of their |r|, small; not among the plain values of `to_dict`.
    """

    name: str
    units: int
    rows: int
    explained: tuple[float, ...] = field(repr=False)
    dead: tuple[int, ...] = field(repr=False)
    constant: tuple[int, ...] = field(repr=False)
    correlations: Correlations | None
    picture: CorrelationPicture | None = field(default=None, repr=False, compare=False)

    def components(self, tolerance: float) -> int:
        """Leading components r that leave at most `tolerance` of the variance unexplained."""
        if not self.explained:
            return 0
        enough = np.asarray(self.explained) >= 1.0 - tolerance - SHARE_SLACK
        return int(enough.argmax()) + 1

    def redundant(self, tolerance: float) -> int:
        """Redundant units C - r."""
        return self.units - self.components(tolerance)


@dataclass(frozen=True, repr=False)
class RedundancyResult(Shown):
    """Redundant units of a network.

    Attributes:
        layers: Each layer, in order of execution.
        examples: Examples that were measured.
        tolerances: Tolerances to report, the main one first; any other can be asked for.
        rule: How the layers were chosen, in words.
        skipped: Layers that could not be measured.
    """

    layers: tuple[LayerRedundancy, ...]
    examples: int
    tolerances: tuple[float, ...]
    rule: str
    skipped: tuple[Skipped, ...]

    def share(self, tolerance: float) -> float:
        """Redundant share of the network: plain mean over layers of (C - r) / C."""
        shares = [layer.redundant(tolerance) / layer.units for layer in self.layers]
        return sum(shares) / len(shares)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        layers = [
            {
                **{k: v for k, v in asdict(layer).items() if k != "picture"},
                "redundant": {f"{t:g}": layer.redundant(t) for t in self.tolerances},
            }
            for layer in self.layers
        ]
        return {
            "examples": self.examples,
            "tolerances": list(self.tolerances),
            "rule": self.rule,
            "share": {f"{t:g}": self.share(t) for t in self.tolerances},
            "correlation_quantiles_at": list(QUANTILES),
            "layers": layers,
            "skipped": [asdict(s) for s in self.skipped],
        }


def measure_redundancy(
    model: nn.Module | Predictor,
    batches: Iterable[tuple[Tensor, Tensor | None]],
    *,
    tolerances: Sequence[float] = REDUNDANCY_TOLERANCES,
    layers: Sequence[str] | None = None,
    progress: Report = silent,
    of: int | None = None,
) -> RedundancyResult:
    """Measure the redundant units of a network in one pass over unlabelled examples.

    Args:
        model: The network; comes back as it was.
        batches: (inputs [n, ...], anything) pairs, gone through once; memory does not depend on
            how many there are.
        tolerances: Shares of the variance that may stay unexplained, in [0, 1), main one first.
        layers: Addresses of the layers; None for docs/protocol.md 2.5's.
        progress: Told after each batch.
        of: How many examples there are, where that is known.

    Raises:
        UnsupportedNetworkError: There is no layer to measure, or one gives values that are not
            finite.
        ValueError: A tolerance is outside [0, 1), or there are no examples.
    """
    for tolerance in tolerances:
        if not 0 <= tolerance < 1:
            raise ValueError(f"tolerance {tolerance} is outside [0, 1)")
    found = None
    moments: dict[str, Moments] = {}
    examples = 0
    dtype = torch.float32
    predictor = as_predictor(model)
    with predictor.evaluating():
        for batch, _ in batches:
            inputs = predictor.place(batch)
            if found is None:
                found = redundancy_layers(predictor, inputs[:2], layers)
                moments = {
                    layer.name: Moments(layer.maps, inputs.device) for layer in found.measured
                }
            with observe(predictor.network, moments) as outputs:
                predictor(inputs)
                for layer in found.measured:
                    dtype = outputs[layer.name].dtype
                    moments[layer.name].update(unit_rows(outputs.pop(layer.name), layer.axis))
            examples += len(inputs)
            progress(Progress("redundancy", examples, of, "examples"))
    if found is None:
        raise ValueError("no examples to measure redundancy on")
    return RedundancyResult(
        layers=tuple(
            layer_redundancy(layer, moments[layer.name], dtype) for layer in found.measured
        ),
        examples=examples,
        tolerances=tuple(tolerances),
        rule=found.rule,
        skipped=found.skipped,
    )


def layer_redundancy(layer: Layer, moments: Moments, dtype: torch.dtype) -> LayerRedundancy:
    """Turn the moments of one layer's units into its redundancy.

    Args:
        layer: The layer.
        moments: Of its units.
        dtype: In which the network computed them; what varies less than its rounding is constant.

    Raises:
        UnsupportedNetworkError: The layer gave a value that is not finite.
    """
    covariance = moments.covariance()
    if not torch.isfinite(covariance).all():
        raise UnsupportedNetworkError(
            f"layer {layer.name} gives values that are not finite; the network cannot be measured"
        )
    variance = covariance.diagonal().clamp_min(0)
    magnitude = variance + moments.mean.square()
    constant = variance <= (CONSTANT_ROUNDINGS * torch.finfo(dtype).eps) ** 2 * magnitude
    varying = (~constant).nonzero().flatten()
    covariance = covariance[varying][:, varying]
    return LayerRedundancy(
        name=layer.name,
        units=layer.maps,
        rows=moments.count,
        explained=explained_variance(covariance, layer.maps),
        dead=tuple((moments.largest == 0).nonzero().flatten().tolist()),
        constant=tuple(constant.nonzero().flatten().tolist()),
        correlations=correlations(covariance),
        picture=correlation_picture(covariance),
    )


def explained_variance(covariance: Tensor, units: int) -> tuple[float, ...]:
    """Share of the variance that the leading principal components explain.

    Args:
        covariance: [n, n], float64, of the units that vary.
        units: All units, C >= n; the curve is 1 from component n on.

    Returns:
        C shares, growing to 1; none if n is 0. Eigenvalues within rounding of 0 count as 0.
    """
    if not len(covariance):
        return ()
    values = torch.linalg.eigvalsh(covariance).flip(0)
    values = values.where(values > torch.finfo(values.dtype).eps * len(values) * values[0], 0.0)
    shares = (values.cumsum(0) / values.sum()).clamp_max(1.0).tolist()
    return (*shares, *[1.0] * (units - len(shares)))


def correlations(covariance: Tensor) -> Correlations | None:
    """|Pearson r| of all distinct pairs of units from their covariance [n, n], float64."""
    units = len(covariance)
    if units < 2:
        return None
    deviation = covariance.diagonal().sqrt()
    r = (covariance / deviation / deviation[:, None]).abs().clamp_max(1.0)
    pairs = r[torch.ones_like(r, dtype=torch.bool).triu(1)].cpu().numpy()
    histogram, _ = np.histogram(pairs, bins=HISTOGRAM_BINS, range=(0.0, 1.0))
    return Correlations(
        units=units,
        pairs=len(pairs),
        mean=float(pairs.mean()),
        quantiles=tuple(np.quantile(pairs, QUANTILES).tolist()),
        histogram=tuple(histogram.tolist()),
    )
