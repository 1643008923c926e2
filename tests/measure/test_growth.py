import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from cases.measured import measured_network
from torch import nn

from fcompress.errors import FcompressError
from fcompress.measure.analysis import analyze, gain
from fcompress.measure.growth import QUANTITIES, doublings, gain_of, growth
from fcompress.models import build
from fcompress.report.plots import gain_png
from fcompress.showing.progress import Progress

PNG = b"\x89PNG\r\n\x1a\n"


def _by_name(curves):
    return {(curve.name, curve.quantity): curve for curve in curves}


def test_growth_of_hand_made_counts():
    curve = growth("network", "prunable", [[1.0], [3.0], [6.0], [18.0], [36.0]])
    assert curve.ratios == (3.0, 2.0, 3.0, 2.0)
    assert curve.gain == 2.5
    assert curve.gain_last == pytest.approx(7 / 3)
    assert curve.std == (0.0,) * 5


def test_ratios_are_those_of_the_averages_over_seeds():
    curve = growth("network", "prunable", [[1.0, 3.0], [6.0, 2.0, 4.0]])
    assert curve.mean == (2.0, 4.0)
    assert curve.gain == 2.0  # the mean of the networks' own ratios would be 2.67
    assert curve.std == pytest.approx((np.sqrt(2), 2.0))


def test_a_width_without_frivolous_units_leaves_the_gain_undefined():
    curve = growth("network", "redundant", [[0.0], [0.5], [1.0], [2.0], [4.0]])
    assert curve.ratios == (None, 2.0, 2.0, 2.0)
    assert curve.gain is None
    assert curve.gain_last == 2.0


def test_gains_of_hand_made_networks():
    shares = {0.5: 0.25, 1.0: 0.4, 2.0: 0.6, 4.0: 0.8}
    kept = {0.5: (2, 4), 1.0: (2, 8), 2.0: (4, 8), 4.0: (8, 8)}
    # In any order of the networks.
    order = (4.0, 0.5, 2.0, 1.0)
    result = gain_of([measured_network(w, shares[w], kept[w]) for w in order])
    assert result.widths == (0.5, 1.0, 2.0, 4.0)
    assert result.networks == (1, 1, 1, 1)
    assert (result.tolerance, result.redundancy_tolerance) == (0.2, 0.05)
    network, layers = _by_name(result.network), _by_name(result.layers)
    prunable = [0.25 / 8, 0.4 / 4, 0.6 / 2, 0.8]
    assert network["network", "prunable"].mean == pytest.approx(prunable)
    assert network["network", "prunable"].gain == pytest.approx((3.2 + 3 + 8 / 3) / 3)
    others = [0.75 / 8, 0.6 / 4, 0.4 / 2, 0.2]
    assert network["network", "non_prunable"].mean == pytest.approx(others)
    # relu0 has 4, 8, 16, 32 units and relu1 8, 16, 32, 64; both count alike.
    relu0 = [2 / 32, 6 / 32, 12 / 32, 24 / 32]
    relu1 = [4 / 64, 8 / 64, 24 / 64, 56 / 64]
    assert layers["relu0", "redundant"].mean == pytest.approx(relu0)
    assert layers["relu1", "redundant"].mean == pytest.approx(relu1)
    assert network["network", "redundant"].mean == pytest.approx(np.mean([relu0, relu1], 0))
    complement = np.array([1, 2, 4, 8]) / 8 - np.mean([relu0, relu1], 0)
    assert network["network", "non_redundant"].mean == pytest.approx(complement)
    assert layers["relu0", "redundant"].gain == pytest.approx((3 + 2 + 2) / 3)
    assert layers["relu1", "redundant"].gain == pytest.approx((2 + 3 + 7 / 3) / 3)
    plot = result.range("redundant", layers=True)
    assert (plot.gain_min, plot.gain_max) == pytest.approx((7 / 3, 22 / 9))
    one = result.range("redundant")
    assert one.gain_min == one.gain_max == network["network", "redundant"].gain


def test_the_last_three_of_four_doublings():
    shares = dict(zip((0.25, 0.5, 1.0, 2.0, 4.0), (0.1, 0.4, 0.55, 0.6, 0.7), strict=True))
    result = gain_of(
        [measured_network(w, p, (1, 2), units=(16, 16)) for w, p in shares.items()], tolerance=0.2
    )
    curve = _by_name(result.network)["network", "prunable"]
    ratios = (8.0, 2.75, 24 / 11, 7 / 3)
    assert curve.ratios == pytest.approx(ratios)
    assert curve.gain == pytest.approx(np.mean(ratios))
    assert curve.gain_last == pytest.approx(np.mean(ratios[1:]))


def test_seeds_of_one_width_are_averaged_and_other_tolerances_can_be_asked_for():
    networks = [
        measured_network(1.0, 0.2, (2, 4)),
        measured_network(1.0, 0.4, (2, 6)),
        measured_network(2.0, 0.6, (4, 8)),
    ]
    result = gain_of(networks)
    assert result.networks == (2, 1)
    curve = _by_name(result.network)["network", "prunable"]
    assert curve.mean == pytest.approx((0.15, 0.6))
    assert curve.std[0] == pytest.approx(np.std([0.1, 0.2], ddof=1))
    assert curve.std[1] == 0
    looser = gain_of(networks, tolerance=0.5, redundancy_tolerance=0.1)
    assert looser.tolerance == 0.5
    assert _by_name(looser.network)["network", "prunable"].mean > curve.mean
    # The hand-made layers reach 90% with their first component.
    kept = _by_name(looser.layers)["relu1", "non_redundant"].mean
    assert kept == pytest.approx((1 / 32, 1 / 32))


@pytest.mark.parametrize(
    ("networks", "message"),
    [
        ([], "at least two widths, .* came: none"),
        ([("mlp", {"width": 1.0})], "at least two widths, .* came: 1"),
        ([("mlp", {"width": 1.0}), ("mlp", {"width": 1.0})], "at least two widths"),
        (
            [("mlp", {"width": w}) for w in (4.0, 0.5, 1.0)],
            "widths 0.5, 1, 4 .* after 1 comes 4; add a network of width 2",
        ),
        ([("mlp", {"width": 1.0}), ("alexnet", {"width": 2.0})], "came mlp and alexnet"),
        (
            [("mlp", {"width": 1.0, "depth": 1}), ("mlp", {"width": 2.0, "depth": 2})],
            "width only; depth is 1 in one and 2 in another",
        ),
        ([(None, {}), ("mlp", {"width": 1.0})], "no width factor"),
    ],
)
def test_networks_that_cannot_be_compared(networks, message):
    with pytest.raises(FcompressError, match=message):
        doublings(networks)


def test_networks_that_were_measured_differently():
    a, b = measured_network(1.0, 0.2, (2, 4)), measured_network(2.0, 0.2, (2, 4))
    by_map = replace(b, ablation=replace(b.ablation, unit="map"))
    with pytest.raises(FcompressError, match="as elements in one network and as maps"):
        gain_of([a, by_map])
    without = replace(b, ablation=replace(b.ablation, layers=()))
    with pytest.raises(FcompressError, match="at different layers"):
        gain_of([a, without])


def test_plain_json_and_picture():
    result = gain_of([measured_network(w, 0.3, (2, 4)) for w in (1.0, 2.0, 4.0)])
    record = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert set(record["network_range"]) == set(record["layers_range"]) == set(QUANTITIES)
    assert record["network"][0]["gain"] == pytest.approx(2.0)
    assert gain_png(result).startswith(PNG)


def test_networks_are_measured_or_taken_as_measured():
    data = torch.randn(60, 12, generator=torch.Generator().manual_seed(0))
    networks = [build("mlp", width=w, in_features=12, classes=3, depth=2) for w in (0.25, 0.125)]
    numbers = []
    result = gain(
        [analyze(networks[0], data), networks[1]],
        data,
        progress=numbers.append,
    )
    assert result.widths == (0.125, 0.25)
    assert result.family == "mlp"
    assert {event.stage.partition(":")[0] for event in numbers} == {"network 2 of 2"}
    assert Progress("network 2 of 2: ablation", 60, 60, "examples") in numbers
    former = []
    with pytest.deprecated_call():
        gain(
            [analyze(networks[0], data), networks[1]],
            data,
            progress=lambda number, phase, done, of: former.append((number, phase, done, of)),
        )
    assert {number for number, *_ in former} == {1} and (1, "ablation", 60, 60) in former
    again = gain([analyze(network, data) for network in networks])
    assert again == result


def test_nothing_is_measured_before_the_networks_are_known_to_fit():
    class Untouchable:
        def __iter__(self):
            raise AssertionError("read")

    networks = [build("mlp", width=w, in_features=12) for w in (1.0, 4.0)]
    with pytest.raises(FcompressError, match="successive doublings"):
        gain(networks, Untouchable())
    with pytest.raises(FcompressError, match="no width factor"):
        gain([nn.Linear(2, 2), nn.Linear(2, 2)], Untouchable())


@pytest.mark.slow
def test_of_a_family_with_one_wide_layer_only_that_is_measured():
    data = torch.randn(2, 3, 75, 75, generator=torch.Generator().manual_seed(0))
    networks = [
        build(
            "inception_v3_layer",
            width=width,
            layer="Mixed_5b",
            image_size=75,
            classes=3,
            aux=False,
        )
        for width in (0.25, 0.5)
    ]
    result = gain(networks, data, orders=1, by_layer=False)
    redundant = [c.name for c in result.layers if c.quantity == "redundant"]
    assert redundant == ["Mixed_5b"]
    measured = analyze(
        networks[0], data, orders=1, by_layer=False, layers=["Mixed_5b.branch1x1.relu"]
    )
    assert list(measured.ablation.units) == ["Mixed_5b.branch1x1.relu"]
