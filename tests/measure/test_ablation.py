import json
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from cases.constructions import conv_constructions, mlp_constructions
from torch import nn

from fcompress.errors import UnsupportedNetworkError
from fcompress.measure import ablation
from fcompress.measure.ablation import measure_ablation, proportions, prunable_share
from fcompress.measure.hooks import ablate
from fcompress.models import build


def _measure(model, data, size=100, **options):
    return measure_ablation(model, [(x, None) for x in data.split(size)], **options)


@pytest.mark.parametrize(
    ("agreement", "tolerance", "expected"),
    [
        # 0.9 at 1/6 and 0.6 at 2/6: 0.8 is a third of the way between them.
        ([1, 0.9, 0.6, 0.5, 0.4, 0.3, 0.2], 0.2, (1 + 1 / 3) / 6),
        ([1, 0.9, 0.6, 0.5, 0.4, 0.3, 0.2], 0.45, 2.5 / 6),
        # The first fall counts, not a later one.
        ([1, 0.7, 0.9, 0.9, 0.9, 0.7, 0.1], 0.2, (2 / 3) / 6),
        # Touching 1 - tolerance is not falling below it.
        ([1, 0.8, 0.8, 0.8, 0.6, 0.1, 0.1], 0.2, 3 / 6),
        ([1, 1, 1, 1, 1, 1, 0.8], 0.2, 1.0),
        ([1, 1, 1, 1, 1, 1, 0], 0.2, 5.2 / 6),
        ([1, 1, 1, 1, 1, 1, 1], 0.2, 1.0),
        ([1, 0.99, 1, 1, 1, 1, 1], 0.0, 0.0),
        ([1, 1, 0.5, 1, 1, 1, 1], 0.0, 1 / 6),
        # Other grids: eight steps, and one.
        ([1, 0.9, 0.7, 0.5, 0.4, 0.3, 0.3, 0.2, 0.2], 0.2, 1.5 / 8),
        ([1, 0.5], 0.2, 0.4),
    ],
)
def test_prunable_share_is_interpolated_at_the_first_fall(agreement, tolerance, expected):
    assert prunable_share(agreement, tolerance) == pytest.approx(expected, abs=1e-12)


def _half(model, which):
    """Masks of the first (0) or the doubled (1) half of each hidden layer of a construction."""
    masks = {}
    for i, (before, layer) in enumerate(zip(model, list(model)[1:], strict=False), start=1):
        if isinstance(layer, nn.ReLU):
            units = len(before.weight)
            mask = (torch.arange(units) >= units // 2) == bool(which)
            masks[str(i)] = mask.reshape(-1, *[1] * (before.weight.dim() - 2))
    return masks


@pytest.mark.parametrize(
    "make",
    [lambda: mlp_constructions(1), lambda: mlp_constructions(4, seed=1), conv_constructions],
    ids=["depth1", "depth4", "conv"],
)
def test_the_doubled_half_of_the_constructions(make):
    made = make()
    labels = made.narrow(made.data).argmax(1)
    for kind, model in made.wide().items():
        assert torch.equal(model(made.data).argmax(1), labels)
        with ablate(model, _half(model, 1)):
            agreement = (model(made.data).argmax(1) == labels).double().mean()
        assert agreement == 1 if kind in "ab" else agreement < 0.7
        # Negative control: the other half is what the network lives on.
        with ablate(model, _half(model, 0)):
            assert (model(made.data).argmax(1) == labels).double().mean() < 0.8


@pytest.mark.parametrize("depth", [2, 4])
def test_weight_balancing_makes_the_constructions_less_prunable(depth):
    made = mlp_constructions(depth, seed=depth)
    shares = {
        kind: _measure(model, made.data).network.share(0.2) for kind, model in made.wide().items()
    }
    # Neither duplicates nor v are listened to, so a and b lose the same labels in the same order.
    assert shares["a"] == shares["b"]
    assert shares["c"] < shares["a"] / 2


def _agreement_without(model, data, ranks):
    """Curve of an MLP by zeroing the outgoing weights of ablated units, not their activity."""
    linears = [m for m in model if isinstance(m, nn.Linear)]
    labels = model(data).argmax(1)
    curve = []
    for step in range(7):
        saved = [linear.weight.clone() for linear in linears]
        for linear, rank in zip(linears[1:], ranks, strict=True):
            if rank is not None:
                linear.weight[:, rank < int(step / 6 * len(rank))] = 0
        curve.append(float((model(data).argmax(1) == labels).double().mean()))
        for linear, weight in zip(linears, saved, strict=True):
            linear.weight.copy_(weight)
    return curve


def test_curves_equal_those_of_zeroed_outgoing_weights(monkeypatch):
    made = mlp_constructions(3, width=7, seed=2)
    model = made.c
    drawn = []
    original = ablation._ranks

    def spy(*args):
        drawn.append(original(*args))
        return drawn[-1]

    monkeypatch.setattr(ablation, "_ranks", spy)
    result = _measure(model, made.data, layer_examples=None)
    ranks = np.array([r.numpy() for r in drawn]).reshape(3, 3, 14)  # [layer, order, unit]
    for order in range(3):
        own = [torch.from_numpy(ranks[layer, order]) for layer in range(3)]
        assert all(sorted(rank.tolist()) == list(range(14)) for rank in own)
        expected = _agreement_without(model, made.data, own)
        assert result.network.agreement[order] == pytest.approx(expected, abs=1e-12)
        for layer in range(3):
            alone = [rank if i == layer else None for i, rank in enumerate(own)]
            expected = _agreement_without(model, made.data, alone)
            assert result.layers[layer].agreement[order] == pytest.approx(expected, abs=1e-12)
    assert len({tuple(map(tuple, ranks[:, order])) for order in range(3)}) == 3


def test_more_steps_refine_the_same_curves():
    """The ablated sets of one order are nested, so a finer grid goes through the same points."""
    made = mlp_constructions(2, seed=5)
    coarse = _measure(made.a, made.data, layer_examples=None)
    fine = _measure(made.a, made.data, layer_examples=None, steps=24)
    assert fine.network.proportions == tuple(i / 24 for i in range(25))
    assert coarse.network.proportions == proportions()
    for one, other in zip(
        (coarse.network, *coarse.layers), (fine.network, *fine.layers), strict=True
    ):
        assert tuple(values[::4] for values in other.agreement) == one.agreement
        for tolerance in (0.2, 0.5):
            assert abs(one.share(tolerance) - other.share(tolerance)) <= 1 / 6
    assert fine.to_dict()["proportions"] == list(fine.network.proportions)
    with pytest.raises(ValueError, match="steps is 0"):
        _measure(made.a, made.data, steps=0)


@pytest.mark.slow
def test_the_best_order_counts_and_only_the_seed_decides():
    made = mlp_constructions(2, seed=5)
    result = _measure(made.a, made.data, 1000)
    for curve in (result.network, *result.layers):
        assert curve.share(0.2) == max(prunable_share(values, 0.2) for values in curve.agreement)
        assert all(values[0] == 1 for values in curve.agreement)
        assert len({values[-1] for values in curve.agreement}) == 1
    for size in (1, 33):
        again = _measure(made.a, made.data[::3], size, layer_examples=None)
        assert again == _measure(made.a, made.data[::3], 1000, layer_examples=None)
    assert _measure(made.a, made.data, seed=1).network != result.network


def test_units_are_elements_or_maps():
    made = conv_constructions(seed=1)
    elements, maps = (_measure(made.a, made.data, unit=unit) for unit in ("element", "map"))
    assert [c.units for c in elements.layers] == [12 * 64, 12 * 4, 12]
    assert [c.units for c in maps.layers] == [12, 12, 12]
    assert elements.network.units == 12 * 64 + 12 * 4 + 12
    assert maps.network.units == 36
    assert maps.unit == "map"
    # Fully connected layers have no maps: both conventions ablate the same units there.
    assert maps.layers[2].agreement == elements.layers[2].agreement
    assert maps.layers[0].agreement != elements.layers[0].agreement


def test_the_proportion_of_zeros_is_the_one_that_is_said():
    seen = []

    class Watch(nn.Module):
        def forward(self, x):
            seen.append(float((x == 0).double().mean()))
            return x

    model = nn.Sequential(nn.Conv2d(1, 6, 1), nn.Sigmoid(), Watch(), nn.Flatten(), nn.Linear(96, 2))
    for unit, n in (("element", 96), ("map", 6)):
        seen.clear()
        measure_ablation(model, [(torch.randn(3, 1, 4, 4), None)], unit=unit, orders=1)
        # First the look at the layers, then the network as it is.
        assert seen[2:] == pytest.approx([int(step * n / 6) / n for step in range(1, 7)])


@pytest.mark.slow
def test_a_network_with_sums_shared_modules_and_norms_equals_direct_ablation(monkeypatch):
    class Nothing:
        def __init__(self, model):
            pass

        def recording(self):
            return nullcontext()

        def replaying(self, layer):
            return nullcontext()

    model = build("resnet20", image_size=8, width=0.5, classes=5).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
    data = torch.randn(40, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    fast = _measure(model, data, 25, orders=2)
    monkeypatch.setattr(ablation, "Prefix", Nothing)
    assert _measure(model, data, 25, orders=2) == fast
    assert len(fast.layers) == 19
    assert fast.layers[0].name == "relu"


def test_labels_give_accuracies_and_nothing_else():
    made = mlp_constructions(2, seed=6)
    truth = made.narrow(made.data).argmax(1)
    truth[::4] = (truth[::4] + 1) % 4
    plain = _measure(made.a, made.data)
    labelled = measure_ablation(
        made.a, zip(made.data.split(100), truth.split(100), strict=True), orders=3
    )
    assert plain.accuracy is None
    assert plain.network.accuracy is None
    assert labelled.accuracy == pytest.approx(0.75)
    assert labelled.network.agreement == plain.network.agreement
    assert all(values[0] == 0.75 for values in labelled.network.accuracy)
    assert labelled.layers[0].accuracy[0] != labelled.layers[0].agreement[0]
    # Labels of some batches only are not enough for an accuracy.
    some = [(made.data[:100], truth[:100]), (made.data[100:], None)]
    assert measure_ablation(made.a, some).accuracy is None


def test_layers_may_be_measured_on_fewer_examples_or_not_at_all():
    made = mlp_constructions(2, seed=7)
    data = made.data[::2]
    everything = _measure(made.c, data, layer_examples=None)
    some = _measure(made.c, data, 100, layer_examples=130)
    assert some.network == everything.network
    assert [c.examples for c in some.layers] == [130, 130]
    assert some.layers == _measure(made.c, data[:130]).layers
    assert everything.layers[0].examples == len(data)
    assert _measure(made.c, data, by_layer=False).layers == ()
    assert _measure(made.c, data, by_layer=False).network == everything.network


def test_the_curve_of_a_lone_layer_is_the_networks():
    made = mlp_constructions(1, seed=8)
    result = _measure(made.c, made.data, layer_examples=50)
    assert result.layers[0].name == "1"
    assert result.layers[0].agreement == result.network.agreement
    assert result.layers[0].examples == len(made.data)


def test_the_network_comes_back_as_it_was_and_data_is_read_once():
    model = build("resnet20", image_size=8, width=0.25).train()
    model.bn1.eval()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    modes = [m.training for m in model.modules()]
    batches = ((torch.ones(2, 3, 8, 8) * i, None) for i in range(3))
    assert measure_ablation(model, batches, orders=1).network.examples == 6
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    assert torch.equal(random, torch.get_rng_state())
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert "forward" not in module.__dict__


def test_results_are_plain_json():
    made = mlp_constructions(2)
    result = _measure(made.a, made.data, tolerances=(0.2, 0.5))
    record = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert record["proportions"] == list(proportions())
    assert record["network"]["prunable_share"]["0.2"] == result.network.share(0.2)
    assert record["network"]["prunable"]["0.5"] == result.network.share(0.5) * 32
    assert [layer["name"] for layer in record["layers"]] == ["1", "3"]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2), nn.Unflatten(1, (2, 1))),
            "2, 2, 1",
        ),
        (nn.Linear(4, 3), "no layer to measure"),
    ],
)
def test_networks_without_labels_or_layers_are_refused(model, message):
    with pytest.raises(UnsupportedNetworkError, match=message):
        measure_ablation(model, [(torch.randn(2, 4), None)])


def test_bad_arguments_and_scores_are_refused():
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    batch = (torch.randn(2, 4), None)
    with pytest.raises(ValueError, match=r"tolerance -0.1 is outside"):
        measure_ablation(model, [batch], tolerances=(-0.1,))
    with pytest.raises(ValueError, match="no examples"):
        measure_ablation(model, [])
    with pytest.raises(ValueError, match="layer_examples is 0"):
        measure_ablation(model, [batch], layer_examples=0)
    with pytest.raises(UnsupportedNetworkError, match="not finite for examples 2 to 3"):
        measure_ablation(model, [batch, (torch.full((2, 4), torch.nan), None)])
