import json

import pytest
import torch
from cases.constructions import mlp_constructions
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fcompress.data import load_data
from fcompress.errors import DataError, FcompressError
from fcompress.measure.analysis import analyze
from fcompress.models import build
from fcompress.report.plots import analysis_png


@pytest.fixture(scope="module")
def made():
    return mlp_constructions(2, seed=0)


def test_a_plain_network_and_a_loader_are_enough(made):
    truth = made.narrow(made.data).argmax(1)
    loader = DataLoader(TensorDataset(made.data, truth), batch_size=100, shuffle=True)
    state = torch.get_rng_state()
    result = analyze(made.a, loader)
    assert torch.equal(state, torch.get_rng_state())
    assert (result.network, result.family, result.args) == ("Sequential", None, {})
    assert result.examples == len(made.data)
    assert result.accuracy == 1
    assert result.data is None
    # Construction a: of 16 units 8 are duplicates, and their outgoing weights are 0.
    assert all(layer.redundant(0.05) >= 8 for layer in result.redundancy.layers)
    assert sum(result.groups.values()) == 32
    json.dumps(result.to_dict(), allow_nan=False)
    assert analysis_png(result).startswith(b"\x89PNG")


def test_examples_can_be_limited(made):
    phases = []
    result = analyze(
        made.a,
        made.data,
        examples=70,
        batch_size=50,
        progress=lambda now: phases.append((now.stage, now.done, now.of)),
    )
    assert phases == [
        *[("redundancy", done, 70) for done in (50, 70)],
        *[("ablation", done, 70) for done in (50, 70)],
    ]
    assert result.examples == result.ablation.network.examples == 70
    former = []
    with pytest.deprecated_call():
        analyze(
            made.a,
            made.data[:70],
            progress=lambda phase, done, of: former.append((phase, done, of)),
        )
    assert ("ablation", 70, 70) in former
    whole = analyze(made.a, made.data[:70])
    assert whole.ablation == result.ablation
    # A generator is drained once and read by both measurements.
    parts = analyze(made.a, (part for part in made.data[:70].split(50)))
    assert parts.ablation == result.ablation
    assert parts.redundancy.examples == 70


def test_costs_belong_to_layers_and_blocks():
    model = build("resnet20", image_size=8, width=0.25, in_channels=1, classes=3)
    result = analyze(model, torch.randn(3, 1, 8, 8), by_layer=False, orders=1)
    costs = result.layer_costs
    assert costs["relu"].params == 9 * 4 + 8
    assert costs["layer1.0.relu1"].params == 9 * 16 + 8
    assert costs["layer1.0.relu1"].macs == 9 * 16 * 64
    inside = [name for name in costs if name.startswith("layer1.")]
    assert len(inside) == 6
    assert costs["layer1"].params == sum(costs[name].params for name in inside)
    assert costs["layer1"].macs == 6 * 9 * 16 * 64
    layers = sum(costs[name].params for name in result.ablation.units)
    assert result.cost.params == layers + 16 * 3 + 3
    assert result.cost.params == sum(p.numel() for p in model.parameters())


def test_without_a_test_split_calibration_data_is_taken():
    splits = load_data("digits")
    model = build("mlp", in_features=64, classes=10, width=0.25)
    tested = analyze(model, splits, by_layer=False)
    assert (tested.data["split"], tested.examples) == ("test", 200)
    splits = type(splits)(splits.train, splits.calibration, None, None, None, splits.info)
    other = analyze(model, splits, by_layer=False)
    assert (other.data["split"], other.examples) == ("calibration", 300)


def test_what_cannot_be_measured_or_excised_is_in_the_report(made):
    class Tuple(nn.Module):
        """Computes with numbers taken out of its activations, which no tracer can follow."""

        def __init__(self):
            super().__init__()
            self.hidden, self.relu, self.out = nn.Linear(14, 6), nn.ReLU(), nn.Linear(6, 3)
            self.end = nn.Tanh()

        def forward(self, x):
            return self.end(self.out(torch.tensor(self.relu(self.hidden(x)).tolist())))

    result = analyze(Tuple(), made.data[:50], answer="classes")
    reasons = {s.name: s.reason for s in result.skipped}
    assert reasons["end"] == "it is the network's output"
    assert not result.groups
    assert len(reasons) > 1
    assert list(result.ablation.units) == ["relu"]


def test_mistakes_are_said(made, monkeypatch):
    with pytest.raises(DataError, match="does not remember any data"):
        analyze(made.a)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(FcompressError, match="finds no GPU here"):
        analyze(made.a, made.data, device="cuda")
    assert analyze(made.a, made.data[:20], device="auto").examples == 20
