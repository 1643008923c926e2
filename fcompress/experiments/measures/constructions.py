"""The paper's three constructions on trained MLPs (section 3; docs/protocol.md section 6).

From a trained narrow network N each of them builds W, twice as wide, that computes the same:

- both: activity [u, u], outgoing weights [theta, 0];
- prunable: activity [u, v], outgoing weights [theta, 0], v orthogonal to u and to each other;
- redundant: activity [u, u], outgoing weights (theta + b) / 2 and (theta - b) / 2, b large.

The doubled units of a layer are its last half. What the paper leaves open is settled like this:

- Orthogonal means uncorrelated over the examples, which is what a PCA of centred activations
  sees: two units after a ReLU are never negative, so that their plain inner product is 0 only
  where they are never active together. v is affine in the layer before and, by its bias, above 0
  on all examples, so that its ReLU passes it on. In the span of the layer before there are as
  many directions uncorrelated with all of u as there are more dimensions than in u; where these
  do not suffice, those with the smallest correlation are taken, and the record says how large.
- All v of a layer have the variance of the last principal component of u that is not redundant.
  Much smaller ones would be redundant by their size; much larger ones would make u so.
- b differs from row to row of a weight in sign and size. One b for all rows would move all logits
  alike, which changes no label.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from fcompress.data import Splits
from fcompress.errors import UnsupportedNetworkError
from fcompress.forward.copying import deep_copy
from fcompress.forward.predictor import Predictor
from fcompress.measure.ablation import NETWORK, ORDERS
from fcompress.measure.analysis import AnalyzeResult, analyze
from fcompress.measure.hooks import ablate
from fcompress.measure.redundancy import SHARE_SLACK
from fcompress.models import Network, build
from fcompress.models.mlp import MLP
from fcompress.models.provenance import origin_of, set_origin

KINDS = ("both", "prunable", "redundant")
NARROW = "narrow"
# In the order of the figure.
NAMES = {
    NARROW: "N",
    "both": "more of both",
    "prunable": "only prunable",
    "redundant": "only redundant",
}
TOLERANCE, REDUNDANCY_TOLERANCE = 0.2, 0.05
# b of the weight balancing over the largest weight: far above any weight, and five digits of the
# weights are left in float32.
BALANCE = 32.0
# Directions in which the layer before varies less than this, relative to the strongest, are left
# out: in float32 they could not be told from rounding.
WEAKEST = 1e-3


@dataclass(frozen=True)
class Orthogonality:
    """How far the new units v of one layer of the construction "prunable" are orthogonal.

    Attributes:
        layer: Address of the layer's activation.
        directions: Dimensions in which the layer before varies.
        exact: Units v that are uncorrelated with all of u, up to rounding.
        to_u: Largest |Pearson r| of a unit v and a unit u.
        among_v: Largest |Pearson r| of two units v.
        to_span: Largest correlation of a unit v with a linear combination of all u.
    """

    layer: str
    directions: int
    exact: int
    to_u: float
    among_v: float
    to_span: float


def construct(model: nn.Module, which: str, inputs: Tensor, *, balance: float = BALANCE) -> Network:
    """Build a network twice as wide that computes the same.

    Args:
        model: A network of the family `mlp`, of any depth, as wide as it was built; it is left as
            it is.
        which: One of `KINDS`.
        inputs: [N, ...], the examples over which v is orthogonal; the other kinds do not look.
        balance: b of the kind "redundant" over the largest weight of the layer.

    Returns:
        A network of the same family with twice the width, on the CPU, in eval mode.

    Raises:
        UnsupportedNetworkError: The network is no such MLP, or its inputs vary in fewer
            dimensions than it has hidden units, so that no v exists.
        ValueError: There is no such kind.
    """
    if which not in KINDS:
        raise ValueError(f"which={which!r}: expected one of {', '.join(KINDS)}")
    weights = _weights(model)
    rows: list[tuple[Tensor, Tensor]] = []
    values = inputs.detach().cpu().flatten(1).double()  # the wide layer before
    for number, (weight, bias) in enumerate(weights):
        columns = weight if number == 0 else _columns(weight, which, balance)
        if number == len(weights) - 1:
            rows.append((columns, bias))
        elif which == "prunable":
            u = (values @ columns.T + bias).relu()
            new, shift = _uncorrelated(values, u)
            rows.append((torch.cat([columns, new]), torch.cat([bias, shift])))
            values = (values @ rows[-1][0].T + rows[-1][1]).relu()
        else:
            rows.append((torch.cat([columns, columns]), torch.cat([bias, bias])))
    return _built(model, which, rows)


def constructions(model: nn.Module, splits: Splits, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Build all three and measure what is prunable and redundant in them, on the test split.

    `prunable` counts random units at a tolerance of 0.2 of the labels (docs/protocol.md section 1).
    What is prunable by construction random orders do not find: they meet the useful half as often
    as the useless one, so that the share stays that of N. `removable` counts it: where the labels
    stay when the whole doubled half is ablated, that half and what is prunable in N; elsewhere it
    is `prunable`.

    Args:
        model: N, of the family `mlp`.
        splits: Its data.
        settings: `examples` (of the test split, None for all), `orders`, `balance`, `seed` of the
            orders; each may be missing.

    Returns:
        Plain values: of N and each W counts and shares of prunable and redundant units and what
        they are in terms of N's; how close logits and labels of N and W are; how orthogonal v is.
    """
    split = splits.test or splits.need("calibration")
    inputs = torch.cat([x for x, _ in split.batches(limit=settings.get("examples"))])
    narrow = deep_copy(model).cpu()
    networks: dict[str, nn.Module] = {NARROW: narrow}
    for which in KINDS:
        balance = settings.get("balance", BALANCE)
        networks[which] = construct(narrow, which, inputs, balance=balance)
    measured = {
        name: analyze(
            network,
            inputs,
            tolerances=(TOLERANCE,),
            redundancy_tolerances=(REDUNDANCY_TOLERANCE,),
            by_layer=False,
            orders=settings.get("orders", ORDERS),
            seed=settings.get("seed", 0),
        )
        for name, network in networks.items()
    }
    counts = {name: _counts(result) for name, result in measured.items()}
    counts[NARROW]["removable"] = counts[NARROW]["prunable"]
    for which in KINDS:
        network, own = networks[which], counts[which]
        own["labels_without_doubled"] = _without_doubled(network, inputs)
        free = own["labels_without_doubled"] == 1.0
        spare = own["units"] - counts[NARROW]["units"]
        own["removable"] = counts[NARROW]["prunable"] + spare if free else own["prunable"]
        own["ratio"] = {
            key: own[key] / counts[NARROW][key] if counts[NARROW][key] else None
            for key in ("prunable", "removable", "redundant")
        }
        own.update(_difference(narrow, network, inputs))
    return {
        "examples": len(inputs),
        "split": split.name,
        "tolerance": TOLERANCE,
        "redundancy_tolerance": REDUNDANCY_TOLERANCE,
        "balance": settings.get("balance", BALANCE),
        "networks": counts,
        "orthogonality": [asdict(o) for o in orthogonality(networks["prunable"], inputs)],
    }


def orthogonality(wide: nn.Module, inputs: Tensor) -> tuple[Orthogonality, ...]:
    """Measure, in float64, how orthogonal the last half of each hidden layer is to the first.

    Args:
        wide: What `construct` built of the kind "prunable".
        inputs: [N, ...].
    """
    found = []
    values = inputs.flatten(1).double()
    for number, (weight, bias) in enumerate(_weights(wide)[:-1], start=1):
        before = _basis(values)[0]
        values = (values @ weight.T + bias).relu()
        u, v = values.tensor_split(2, dim=1)
        basis, unit = _basis(u)[0], _standardised(v)
        spans = (basis.T @ unit / len(values) ** 0.5).norm(dim=0)
        among = unit.T @ unit / len(values)
        found.append(
            Orthogonality(
                layer=f"relu{number}",
                directions=before.shape[1],
                exact=int((spans < 1e-3).sum()),
                to_u=float((_standardised(u).T @ unit / len(values)).abs().max()),
                among_v=float((among - torch.diag(among.diagonal())).abs().max()),
                to_span=float(spans.max()),
            )
        )
    return tuple(found)


def figure(records: Sequence[Mapping[str, Any]], title: str = "") -> Figure:
    """Draw the units of N and of the three W: prunable on the left, redundant on the right.

    Args:
        records: What `constructions` gave for one or more networks (seeds) of one size; bars are
            means, lines sample standard deviations.
        title: Above the picture.
    """
    drawn = Figure(figsize=(11, 4.6), layout="constrained")
    left, right = drawn.subplots(1, 2)
    _bars(left, records, "removable", "lightgrey", "doubled half first, then at random")
    _bars(left, records, "prunable", "black", "at random (tolerance 0.2 of labels)")
    _bars(right, records, "redundant", "black", "redundant (tolerance 0.05 of variance)")
    for axes, quantity in ((left, "prunable"), (right, "redundant")):
        narrow = _values(records, NARROW, quantity)[0]
        axes.axhline(2 * narrow, color="grey", linestyle=":", label="twice as many as in N")
        units = [_values(records, name, "units")[0] for name in NAMES]
        said = [f"{name}\n{n:g} units" for name, n in zip(NAMES.values(), units, strict=True)]
        axes.set_xticks(range(len(said)), said, fontsize=8)
        axes.set_ylim(0, 1.3 * axes.get_ylim()[1])  # room for the legend
        axes.set_ylabel(f"{quantity} units")
        axes.legend(fontsize=8, loc="upper left")
    drawn.suptitle(title)
    return drawn


def _weights(model: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """Weight [out, in] and bias [out] of each layer, float64, on the CPU."""
    if not isinstance(model, MLP):
        raise UnsupportedNetworkError(
            f"{type(model).__name__}: the constructions are for networks of the family mlp; "
            "build one with fcompress.build('mlp', ...)"
        )
    layers = [model.get_submodule(f"fc{i}") for i in range(1, model.depth + 1)] + [model.out]
    return [
        (layer.weight.detach().cpu().double(), layer.bias.detach().cpu().double())
        for layer in layers
        if isinstance(layer, nn.Linear)
    ]


def _columns(weight: Tensor, which: str, balance: float) -> Tensor:
    """Outgoing weights [out, 2 * in] of a doubled layer from those of N [out, in]."""
    if which != "redundant":
        return torch.cat([weight, torch.zeros_like(weight)], dim=1)
    row = torch.arange(len(weight), dtype=weight.dtype)
    levels = (1.0 - 2.0 * (row % 2)) * (row + 1.0) / len(row)  # 1/n, -2/n, 3/n, ...
    b = (balance * weight.abs().max() * levels).unsqueeze(1)
    return torch.cat([(weight + b) / 2, (weight - b) / 2], dim=1)


def _uncorrelated(values: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """Incoming weights and biases of units that are uncorrelated with u and with each other.

    Args:
        values: [N, before], the layer before.
        u: [N, units], the layer itself.

    Returns:
        Weights [units, before] and biases [units]: as many new units as there are in u.
    """
    whitened, back = _basis(values)
    directions, units = whitened.shape[1], u.shape[1]
    if directions < units:
        raise UnsupportedNetworkError(
            f"the layer before {units} hidden units varies in {directions} dimensions only; "
            f"{units} units that are orthogonal to each other do not exist: take a narrower "
            "network, more examples or other data"
        )
    # Canonical correlations (Hotelling 1936): the left singular vectors, ordered by how strongly
    # a direction of the layer before is correlated with the span of u; the last have none.
    turned = torch.linalg.svd(whitened.T @ _basis(u)[0], full_matrices=True).U
    weight = turned[:, -units:].T @ back
    weight = weight * _spread(u)
    v = values @ weight.T
    return weight, _spread(u) - v.amin(0)


def _basis(values: Tensor) -> tuple[Tensor, Tensor]:
    """Orthonormal columns [N, r] that span the centred values [N, units].

    The second tensor [r, units] takes values to sqrt(N) times the columns, up to their means:
    to uncorrelated directions of variance 1.
    """
    centred = values - values.mean(0)
    columns, sizes, rows = torch.linalg.svd(centred, full_matrices=False)
    strong = sizes > WEAKEST * sizes[0]
    back = rows[strong] / sizes[strong].unsqueeze(1) * len(values) ** 0.5
    return columns[:, strong], back


def _standardised(values: Tensor) -> Tensor:
    """Columns [N, units] with mean 0 and variance 1; columns that do not vary are left out."""
    centred = values - values.mean(0)
    deviation = centred.square().mean(0).sqrt()
    varying = deviation > WEAKEST * deviation.max()
    return centred[:, varying] / deviation[varying]


def _spread(u: Tensor) -> float:
    """Standard deviation of the last principal component of u [N, units] that is not redundant."""
    variances = torch.linalg.svdvals(u - u.mean(0)).square() / len(u)
    if not variances[0] > 0:
        return 1.0
    shares = variances.cumsum(0) / variances.sum()
    last = int((shares >= 1.0 - REDUNDANCY_TOLERANCE - SHARE_SLACK).int().argmax())
    return float(variances[last].sqrt())


def _built(model: nn.Module, which: str, rows: Sequence[tuple[Tensor, Tensor]]) -> Network:
    """A network of twice the width with these weights."""
    assert isinstance(model, MLP)
    args = {**model.spec.args, "width": 2 * model.spec.args["width"]}
    wide = build("mlp", **args)
    tensors = [tensor for pair in rows for tensor in pair]
    parameters = list(wide.parameters())
    if [p.shape for p in parameters] != [t.shape for t in tensors]:
        raise UnsupportedNetworkError(
            "the network is not as wide as its family builds it (it was shrunk, or half a unit was "
            "rounded); take a network that was only trained"
        )
    with torch.no_grad():
        for parameter, tensor in zip(parameters, tensors, strict=True):
            parameter.copy_(tensor)
    origin = origin_of(model)
    entry = {"action": "construct", "kind": which}
    set_origin(wide, origin["data"], [*origin["history"], entry])
    return wide.eval()


def _counts(result: AnalyzeResult) -> dict[str, Any]:
    """Units of a network and how many of them are prunable and redundant."""
    curve, layers = result.ablation.network, result.redundancy.layers
    assert curve.name == NETWORK
    redundant = sum(layer.redundant(REDUNDANCY_TOLERANCE) for layer in layers)
    return {
        "units": curve.units,
        "prunable": curve.prunable(TOLERANCE),
        "prunable_share": curve.share(TOLERANCE),
        "redundant": redundant,
        "redundant_share": redundant / sum(layer.units for layer in layers),
    }


@torch.no_grad()
def _without_doubled(wide: nn.Module, inputs: Tensor) -> float:
    """Share of labels that stay when the last half of every hidden layer is ablated."""
    assert isinstance(wide, MLP)
    masks = {}
    for name, (weight, _) in zip(wide.ablation_layers, _weights(wide)[:-1], strict=True):
        masks[name] = torch.arange(len(weight)) >= len(weight) // 2
    with Predictor(wide).evaluating():
        labels = wide(inputs).argmax(1)
        with ablate(wide, masks):
            return float((wide(inputs).argmax(1) == labels).double().mean())


@torch.no_grad()
def _difference(narrow: nn.Module, wide: nn.Module, inputs: Tensor) -> dict[str, float]:
    """Largest difference of a logit over the largest logit, and the share of equal labels."""
    with Predictor(narrow).evaluating(), Predictor(wide).evaluating():
        before, after = narrow(inputs), wide(inputs)
    return {
        "logit_difference": float((before - after).abs().max() / before.abs().max()),
        "same_labels": float((before.argmax(1) == after.argmax(1)).double().mean()),
    }


def _values(records: Sequence[Mapping[str, Any]], name: str, quantity: str) -> tuple[float, float]:
    """Mean and sample standard deviation over networks."""
    values = [record["networks"][name][quantity] for record in records]
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def _bars(
    axes: Axes, records: Sequence[Mapping[str, Any]], quantity: str, colour: str, label: str
) -> None:
    means, deviations = zip(*(_values(records, name, quantity) for name in NAMES), strict=True)
    lines = deviations if len(records) > 1 else None
    axes.bar(range(len(means)), means, yerr=lines, color=colour, ecolor="grey", label=label)
