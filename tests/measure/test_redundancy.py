import gc
import json
import weakref

import numpy as np
import pytest
import torch
from cases.constructions import conv_constructions, hidden_activations, mlp_constructions
from torch import nn

from fcompress.errors import UnsupportedNetworkError
from fcompress.measure.redundancy import (
    HISTOGRAM_BINS,
    correlations,
    explained_variance,
    measure_redundancy,
)
from fcompress.models import build

TOLERANCES = (0.05, 0.1, 0.15, 0.0)
CONSTRUCTIONS = [
    pytest.param(lambda: mlp_constructions(1), id="depth1"),
    pytest.param(lambda: mlp_constructions(2, seed=1), id="depth2"),
    pytest.param(lambda: mlp_constructions(5, seed=2), id="depth5"),
    pytest.param(lambda: mlp_constructions(3, width=12, train_steps=0), id="random"),
    pytest.param(conv_constructions, id="conv"),
]


def _measure(model, data, size=100):
    return measure_redundancy(model, [(x, None) for x in data.split(size)])


def _components(spectrum, tolerance):
    """Leading eigenvalues that leave at most `tolerance` of the variance, by the definition."""
    values = np.sort(spectrum)[::-1]
    left = values.sum() - np.cumsum(values)
    return int(np.argmax(left <= (tolerance + 1e-12) * values.sum())) + 1


@pytest.mark.parametrize("make", CONSTRUCTIONS)
def test_the_constructions_are_as_redundant_as_they_must_be(make):
    made = make()
    narrow = _measure(made.narrow, made.data)
    wide = {kind: _measure(model, made.data) for kind, model in made.wide().items()}
    for index, thin in enumerate(narrow.layers):
        for kind in "ac":
            layer = wide[kind].layers[index]
            assert layer.units == 2 * thin.units
            for tolerance in TOLERANCES:
                # Half of the units, and what was redundant in N.
                assert layer.redundant(tolerance) == thin.units + thin.redundant(tolerance)
        # b: the variances of v join the spectrum of u, whatever the correlations within u.
        u = hidden_activations(made.narrow, made.data)[index].numpy()
        spectrum = np.linalg.eigvalsh(np.cov(u.T, ddof=0))
        spectrum = np.concatenate([spectrum, np.full(thin.units, made.spread**2)])
        for tolerance in TOLERANCES[:3]:
            assert wide["b"].layers[index].components(tolerance) == _components(spectrum, tolerance)
        assert wide["b"].layers[index].redundant(0.0) == thin.redundant(0.0)
        assert len(wide["b"].layers[index].constant) == len(thin.constant)


def test_correlations_of_the_constructions():
    made = mlp_constructions(2, width=8, seed=3)
    for thin, twice, orthogonal in zip(
        _measure(made.narrow, made.data).layers,
        _measure(made.a, made.data).layers,
        _measure(made.b, made.data).layers,
        strict=True,
    ):
        pairs = thin.correlations.pairs
        varying = thin.correlations.units
        # Each pair of N four times, each unit once with its duplicate (|r| = 1).
        mean = (4 * pairs * thin.correlations.mean + varying) / (4 * pairs + varying)
        assert twice.correlations.pairs == 4 * pairs + varying
        assert twice.correlations.mean == pytest.approx(mean, rel=1e-12)
        assert twice.correlations.quantiles[-1] == pytest.approx(1.0)
        assert sum(twice.correlations.histogram) == twice.correlations.pairs
        # v adds pairs, but no correlation.
        total = pairs * thin.correlations.mean
        assert orthogonal.correlations.pairs > pairs
        assert orthogonal.correlations.mean * orthogonal.correlations.pairs == pytest.approx(total)


def _planted():
    """Conv net with batch norm; after its ReLU units 1 and 3 are dead, 2 is constant, 5 is 4."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 3)
    )
    conv, norm = model[0], model[1]
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    norm.bias.data.normal_()
    norm.bias.data[1] = -1000.0
    norm.weight.data[2] = 0.0
    norm.bias.data[2] = 0.7
    norm.weight.data[3] = norm.bias.data[3] = 0.0
    for tensor in (conv.weight.data, conv.bias.data, norm.weight.data, norm.bias.data):
        tensor[5] = tensor[4]
    norm.running_mean[5], norm.running_var[5] = norm.running_mean[4], norm.running_var[4]
    return model, torch.randn(50, 2, 6, 6)


def test_dead_constant_and_duplicate_units_are_found():
    model, x = _planted()
    layer = _measure(model, x, 16).layers[0]
    assert layer.dead == (1, 3)
    assert layer.constant == (1, 2, 3)
    assert layer.rows == 50 * 36
    assert layer.correlations.units == 5
    assert layer.correlations.pairs == 10
    assert layer.correlations.quantiles[-1] == pytest.approx(1.0)
    # Five units vary, two of them alike.
    assert layer.redundant(0.0) == 4
    model[0].weight.data[5] *= -1
    assert _measure(model, x, 16).layers[0].redundant(0.0) == 3


def test_a_unit_with_a_large_mean_is_constant_only_up_to_rounding():
    class Shifted(nn.Module):
        def __init__(self, spread):
            super().__init__()
            self.hidden, self.relu, self.out = nn.Linear(1, 3), nn.ReLU(), nn.Linear(3, 2)
            self.hidden.weight.data.copy_(torch.tensor([[1.0], [spread], [0.0]]))
            self.hidden.bias.data.copy_(torch.tensor([0.0, 1000.0, 1000.0]))

        def forward(self, x):
            return self.out(self.relu(self.hidden(x)))

    x = torch.rand(256, 1)
    assert _measure(Shifted(0.1), x).layers[0].constant == (2,)
    # Two or three different numbers, neighbours in float32.
    assert _measure(Shifted(1e-4), x).layers[0].constant == (1, 2)
    assert _measure(Shifted(1e-4).double(), x).layers[0].constant == (2,)


def test_a_layer_of_constant_units_is_wholly_redundant():
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    model[0].weight.data.zero_()
    layer = _measure(model, torch.randn(20, 4)).layers[0]
    assert layer.redundant(0.05) == layer.redundant(0.0) == 6
    assert layer.explained == ()
    assert layer.correlations is None


def test_share_is_the_plain_mean_over_layers():
    made = mlp_constructions(3, seed=4)
    result = _measure(made.a, made.data)
    shares = [layer.redundant(0.05) / layer.units for layer in result.layers]
    assert result.share(0.05) == pytest.approx(np.mean(shares))
    assert all(0 < share < 1 for share in shares)


def test_batching_does_not_matter_and_data_is_read_once():
    made = conv_constructions(seed=5)
    whole = _measure(made.c, made.data, 1000)
    for size in (1, 7, 128):
        other = measure_redundancy(made.c, ((x, None) for x in made.data.split(size)))
        assert other.examples == whole.examples == len(made.data)
        for a, b in zip(whole.layers, other.layers, strict=True):
            assert (a.dead, a.constant, a.rows) == (b.dead, b.constant, b.rows)
            assert np.allclose(a.explained, b.explained, atol=1e-12)
            assert a.correlations.mean == pytest.approx(b.correlations.mean, rel=1e-12)


def test_no_batch_and_no_activation_is_kept():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    references = []
    model[1].register_forward_hook(lambda *args: references.append(weakref.ref(args[2])))
    alive = []

    def batches():
        for _ in range(200):
            batch = torch.randn(16, 4)
            references.append(weakref.ref(batch))
            yield batch, None
            del batch
            alive.append(sum(reference() is not None for reference in references))

    measure_redundancy(model, batches())
    gc.collect()
    assert len(references) == 401  # each batch and its activation, and those of the first look
    assert max(alive) <= 3
    assert not any(reference() is not None for reference in references)


def test_the_network_comes_back_as_it_was():
    model, x = _planted()
    model.train()
    model[1].eval()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    _measure(model, x)
    assert [m.training for m in model] == [True, False, True, True, True]
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    assert torch.equal(random, torch.get_rng_state())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_explained_variance_of_known_spectra():
    even = torch.eye(20, dtype=torch.float64)
    curve = explained_variance(even, 25)
    assert np.allclose(curve[:20], np.arange(1, 21) / 20)
    assert curve[20:] == (1.0,) * 5
    rotation = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64)).Q
    spectrum = torch.tensor([6.0, 3.0, 1.0, 0.0], dtype=torch.float64)
    curve = explained_variance(rotation @ spectrum.diag() @ rotation.T, 4)
    assert np.allclose(curve, [0.6, 0.9, 1.0, 1.0])
    assert curve[-1] == 1.0
    assert explained_variance(torch.zeros(0, 0, dtype=torch.float64), 4) == ()


def test_correlations_equal_numpys():
    rows = np.random.default_rng(0).normal(size=(500, 6)) @ np.diag([1, 2, 3, 1e3, 1e-3, 1])
    rows[:, 5] = -2 * rows[:, 0]
    found = correlations(torch.from_numpy(np.cov(rows.T)))
    expected = np.abs(np.corrcoef(rows.T)[np.triu_indices(6, 1)])
    assert found.pairs == 15
    assert found.mean == pytest.approx(expected.mean())
    assert found.quantiles == pytest.approx(
        np.quantile(expected, (0, 0.05, 0.25, 0.5, 0.75, 0.95, 1))
    )
    assert found.histogram[-1] == 1
    assert len(found.histogram) == HISTOGRAM_BINS
    assert correlations(torch.eye(1).double()) is None


def test_a_family_is_measured_at_its_blocks_and_the_result_is_plain_json():
    model = build("resnet20", image_size=8, width=0.25)
    result = _measure(model, torch.randn(12, 3, 8, 8))
    assert [layer.name for layer in result.layers] == ["relu", "layer1", "layer2", "layer3"]
    assert [layer.rows for layer in result.layers] == [12 * n for n in (64, 64, 16, 4)]
    record = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert record["layers"][0]["redundant"]["0.05"] == result.layers[0].redundant(0.05)
    assert set(record["share"]) == {"0.05", "0.1", "0.15"}


def test_bad_arguments_and_activations_are_refused():
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    with pytest.raises(ValueError, match=r"tolerance 1.0 is outside"):
        measure_redundancy(model, [(torch.zeros(2, 4), None)], tolerances=(1.0,))
    with pytest.raises(ValueError, match="no examples"):
        measure_redundancy(model, [])
    with pytest.raises(UnsupportedNetworkError, match=r"layer 1 .* not finite"):
        measure_redundancy(model, [(torch.full((2, 4), torch.inf), None)])
