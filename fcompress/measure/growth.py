"""Gain: by how much frivolous units multiply when a network's width is doubled.

Paper section 5 and docs/protocol.md section 3. Frivolous units outgrow the network exactly when
their gain is above 2.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from itertools import pairwise
from typing import Any, Protocol

import numpy as np

from fcompress.errors import FcompressError
from fcompress.measure.ablation import NETWORK, AblationResult
from fcompress.measure.redundancy import RedundancyResult
from fcompress.showing.results import Drawn

QUANTITIES = ("prunable", "non_prunable", "redundant", "non_redundant")
LAST = 3  # doublings that the authors' redundancy plots take


class Measured(Protocol):
    """What the gain is computed from: one network of a family, measured."""

    @property
    def family(self) -> str | None:
        """Name of the family in the registry."""

    @property
    def args(self) -> Mapping[str, Any]:
        """Arguments of the family, `width` among them."""

    @property
    def ablation(self) -> AblationResult:
        """Its prunable units."""

    @property
    def redundancy(self) -> RedundancyResult:
        """Its redundant units."""


@dataclass(frozen=True)
class Growth:
    """How one count of units grows with the width.

    Attributes:
        name: "network", or the address of a layer.
        quantity: One of `QUANTITIES`.
        mean: At each width, the count divided by the units at the largest width, averaged over
            networks (seeds).
        std: Sample standard deviation over networks; 0 for one network.
        ratios: Of `mean`, for each doubling; None where the smaller width has none.
        gain: Mean of the ratios, g; None if one of them is.
        gain_last: The same over the last three doublings.
    """

    name: str
    quantity: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    ratios: tuple[float | None, ...]
    gain: float | None
    gain_last: float | None


@dataclass(frozen=True)
class Range:
    """Smallest and largest gain of some curves, over all doublings and over the last three.

    Each is None if no curve has that gain.
    """

    gain_min: float | None
    gain_max: float | None
    gain_last_min: float | None
    gain_last_max: float | None


@dataclass(frozen=True, repr=False)
class GainResult(Drawn):
    """Growth of prunable and redundant units of a family of networks.

    Attributes:
        family: Name of the family.
        widths: Width factors, each twice the one before.
        networks: Networks (seeds) measured at each width.
        tolerance: Of the prunable units.
        redundancy_tolerance: Of the redundant units.
        unit: What the prunable units are: "element" or "map".
        network: Curves of the whole network, one for each of `QUANTITIES`.
        layers: Curves of each layer.
    """

    family: str
    widths: tuple[float, ...]
    networks: tuple[int, ...]
    tolerance: float
    redundancy_tolerance: float
    unit: str
    network: tuple[Growth, ...]
    layers: tuple[Growth, ...]

    def range(self, quantity: str, *, layers: bool = False) -> Range:
        """g_min and g_max of the plot of the network's curve, or of the layers' curves."""
        curves = [c for c in (self.layers if layers else self.network) if c.quantity == quantity]
        gains = [c.gain for c in curves if c.gain is not None]
        last = [c.gain_last for c in curves if c.gain_last is not None]
        return Range(
            min(gains, default=None),
            max(gains, default=None),
            min(last, default=None),
            max(last, default=None),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        record = asdict(self)
        for plot in ("network", "layers"):
            record[f"{plot}_range"] = {
                quantity: asdict(self.range(quantity, layers=plot == "layers"))
                for quantity in QUANTITIES
            }
        return record

    def report(self, path: str | os.PathLike[str]) -> None:
        """Write all of this as one HTML page that needs nothing else.

        Args:
            path: The file, which is replaced.

        Raises:
            FcompressError: The file cannot be written.
        """
        # Pages stand above results, which know of them only when one is asked for.
        import_module("fcompress.report.html").write_page(path, self)


def gain_of(
    results: Sequence[Measured],
    *,
    tolerance: float | None = None,
    redundancy_tolerance: float | None = None,
) -> GainResult:
    """Compute the gains of one family from measurements of its networks.

    Args:
        results: One for each network; several of one width are averaged.
        tolerance: Of the prunable units; None for the main one of the first result.
        redundancy_tolerance: Of the redundant units; likewise.

    Raises:
        FcompressError: The networks are not one family at successive doublings of the width, or
            were measured differently.
    """
    groups = _by_width(results)
    first = results[0]
    tolerance = first.ablation.tolerances[0] if tolerance is None else tolerance
    if redundancy_tolerance is None:
        redundancy_tolerance = first.redundancy.tolerances[0]
    widest = max(groups)
    units = {layer.name: layer.units for layer in groups[widest][0].redundancy.layers}
    values = [
        [
            {
                **_prunable(one.ablation, tolerance, width / widest),
                **_redundant(one.redundancy, redundancy_tolerance, units),
            }
            for one in group
        ]
        for width, group in groups.items()
    ]
    curves = [
        growth(name, quantity, [[one[name, quantity] for one in group] for group in values])
        for name, quantity in values[0][0]
    ]
    return GainResult(
        family=first.family or "",
        widths=tuple(groups),
        networks=tuple(len(group) for group in groups.values()),
        tolerance=tolerance,
        redundancy_tolerance=redundancy_tolerance,
        unit=first.ablation.unit,
        network=tuple(curve for curve in curves if curve.name == NETWORK),
        layers=tuple(curve for curve in curves if curve.name != NETWORK),
    )


def growth(name: str, quantity: str, values: Sequence[Sequence[float]]) -> Growth:
    """One curve from its values: for each width, narrowest first, one value for each network.

    The ratios are those of the averages over networks (docs/protocol.md section 3).
    """
    mean = [float(np.mean(own)) for own in values]
    std = [float(np.std(own, ddof=1)) if len(own) > 1 else 0.0 for own in values]
    ratios = [wide / narrow if narrow > 0 else None for narrow, wide in pairwise(mean)]
    return Growth(
        name=name,
        quantity=quantity,
        mean=tuple(mean),
        std=tuple(std),
        ratios=tuple(ratios),
        gain=_mean(ratios),
        gain_last=_mean(ratios[-LAST:]),
    )


def _mean(ratios: Sequence[float | None]) -> float | None:
    known = [ratio for ratio in ratios if ratio is not None]
    return sum(known) / len(known) if len(known) == len(ratios) else None


def _prunable(
    ablation: AblationResult, tolerance: float, scale: float
) -> dict[tuple[str, str], float]:
    """Normalised prunability of the network and its layers (docs/protocol.md 1.6).

    `scale` is the width over the largest width.
    """
    values = {}
    for curve in (ablation.network, *ablation.layers):
        share = curve.share(tolerance)
        values[curve.name, "prunable"] = share * scale
        values[curve.name, "non_prunable"] = (1 - share) * scale
    return values


def _redundant(
    redundancy: RedundancyResult, tolerance: float, widest: Mapping[str, int]
) -> dict[tuple[str, str], float]:
    """Normalised redundancy of the network, a plain mean, and its layers (docs/protocol.md 2.4).

    `widest` is the number of units of each layer at the largest width.
    """
    values = {}
    for layer in redundancy.layers:
        values[layer.name, "redundant"] = layer.redundant(tolerance) / widest[layer.name]
        values[layer.name, "non_redundant"] = layer.components(tolerance) / widest[layer.name]
    for quantity in ("redundant", "non_redundant"):
        own = [values[layer.name, quantity] for layer in redundancy.layers]
        values[NETWORK, quantity] = sum(own) / len(own)
    return values


def doublings(networks: Sequence[tuple[str | None, Mapping[str, Any]]]) -> tuple[float, ...]:
    """Check that networks can be compared, before anything is measured.

    Args:
        networks: Family (None for a network of no family) and arguments of each.

    Returns:
        Their distinct widths, narrowest first, each twice the one before.

    Raises:
        FcompressError: They are not one family at successive doublings of the width.
    """
    first_family, first_args = networks[0] if networks else (None, {})
    for family, args in networks:
        if family is None or "width" not in args:
            raise FcompressError(
                "a network that is not of a family of `fcompress models` has no width factor; "
                "gain needs networks of one family at several widths"
            )
        if family != first_family:
            raise FcompressError(
                f"gain needs networks of one family; came {first_family} and {family}"
            )
        for name in sorted({*first_args, *args} - {"width"}):
            if first_args.get(name) != args.get(name):
                raise FcompressError(
                    f"gain needs networks that differ in their width only; {name} is "
                    f"{first_args.get(name)!r} in one and {args.get(name)!r} in another"
                )
    widths = sorted({float(args["width"]) for _, args in networks})
    shown = ", ".join(f"{width:g}" for width in widths)
    if len(widths) < 2:
        raise FcompressError(
            "gain needs networks of at least two widths, each twice the one before; came: "
            f"{shown or 'none'}"
        )
    for narrow, wide in pairwise(widths):
        if abs(wide / narrow - 2) > 1e-6:
            raise FcompressError(
                f"widths {shown} are not successive doublings: after {narrow:g} comes {wide:g}; "
                f"add a network of width {2 * narrow:g} or leave some out"
            )
    return tuple(widths)


def _by_width(results: Sequence[Measured]) -> dict[float, list[Measured]]:
    """Group results by width, narrowest first, and check that they were measured alike."""
    widths = doublings([(one.family, one.args) for one in results])
    first = results[0]
    for one in results:
        units = [first.ablation.unit, one.ablation.unit]
        if units[0] != units[1]:
            raise FcompressError(
                f"prunable units were counted as {units[0]}s in one network and as {units[1]}s "
                "in another; analyze them alike"
            )
        if _layer_names(first) != _layer_names(one):
            raise FcompressError(
                "the networks were measured at different layers; analyze them alike"
            )
    return {width: [one for one in results if one.args["width"] == width] for width in widths}


def _layer_names(one: Measured) -> tuple[list[str], list[str]]:
    return [c.name for c in one.ablation.layers], [c.name for c in one.redundancy.layers]
