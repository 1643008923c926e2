"""shrink() from Python: what it gives and what it leaves alone."""

import copy
import json

import pytest
import torch
from cases.trained import CLASSES, examples, trained, weights_of
from torch import nn
from torch.nn import functional as F

from fcompress.compress.methods import METHODS
from fcompress.compress.pipeline import shrink
from fcompress.forward import cost


@pytest.fixture(scope="module")
def model():
    return trained()


@pytest.fixture(scope="module")
def result(model):
    x, y = examples()
    return shrink(model, [(x, y)], tol=0.1)


@pytest.mark.parametrize("method", list(METHODS))
def test_a_trained_network_shrinks_within_the_tolerance(model, method):
    x, y = examples()
    result = shrink(model, [(x, y)], tol=0.1, method=method)
    assert result.certified
    assert result.method == method
    assert result.agreement.upper_bound <= 0.1 == result.tolerance
    assert result.macs["after"] < 0.8 * result.macs["before"]
    assert result.params["after"] < result.params["before"]
    assert result.bytes["after"] < result.bytes["before"]
    fresh = examples(4000, seed=9)[0]
    with torch.no_grad():
        same = model(fresh).argmax(1) == result.model(fresh).argmax(1)
    assert float((~same).double().mean()) < 0.13
    assert not result.model.training
    # What the result says about the network is true of the network.
    found = cost.count(result.model, x)
    assert (found.params, found.macs) == (result.params["after"], result.macs["after"])
    for layer in result.layers:
        assert result.model.get_submodule(layer.name).out_features == layer.units_after
        assert model.get_submodule(layer.name).out_features == layer.units_before


def test_a_smaller_tolerance_leaves_more(model):
    x, _ = examples()
    macs = [shrink(model, [x], tol=tol).macs["after"] for tol in (0.3, 0.1, 0.02)]
    assert macs[0] <= macs[1] <= macs[2]
    assert macs[0] < macs[2]


def test_the_json_has_the_promised_keys(result):
    record = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert set(record) >= set(
        "tolerance method certified agreement params macs bytes latency_ms latency_single_ms "
        "objective round_to distill polish accuracy layers "
        "skipped data seed versions".split()
    )
    assert set(record["agreement"]) >= {"n", "same", "rate", "lower_bound", "confidence"}
    for key in ("params", "macs", "bytes", "latency_ms", "accuracy"):
        assert list(record[key]) == ["before", "after"]
    assert all(
        set(layer) == {"name", "units_before", "units_after", "reason"}
        for layer in record["layers"]
    )
    assert all(set(entry) == {"name", "reason"} for entry in record["skipped"])
    assert [layer["name"] for layer in record["layers"]] == ["0", "3", "6"]
    assert [layer["reason"] for layer in record["layers"]] == [None, None, "output layer"]
    assert record["layers"][2]["units_after"] == CLASSES
    assert {"name": "6", "reason": "output layer"} in record["skipped"]
    assert record["tolerance"] == 0.1
    assert record["certified"] is True
    assert record["seed"] == 0
    assert set(record["versions"]) >= {"fcompress", "torch", "python"}
    assert record["data"]["sizes"] == {"calibration": 600, "search": 240, "certification": 360}
    assert record["agreement"]["n"] == 360
    assert record["accuracy"] == record["agreement"]["accuracy"]
    assert "model" not in record


@pytest.mark.parametrize("method", list(METHODS))
def test_the_same_again_gives_the_same_again(model, method):
    x, y = examples()
    one, two = (shrink(model, [(x, y)], tol=0.1, method=method, seed=5) for _ in range(2))
    assert weights_of(one.model) == weights_of(two.model)
    records = [r.to_dict() for r in (one, two)]
    for record in records:
        del record["latency_ms"], record["latency_single_ms"]
        for layer in record["flow"]["layers"]:
            del layer["ms_before"], layer["ms_after"]
    assert records[0] == records[1]


def test_another_seed_cuts_the_data_otherwise(model):
    x, _ = examples()
    one, two = (shrink(model, [x], tol=0.1, seed=seed) for seed in (0, 1))
    assert one.candidates != two.candidates


@pytest.mark.parametrize("mode", ["train", "partly", "eval"])
@pytest.mark.parametrize("method", list(METHODS))
def test_the_caller_finds_everything_as_it_was(mode, method):
    model = trained()
    model.train(mode != "eval")
    if mode == "partly":
        model[1].eval()
    modes = [m.training for m in model.modules()]
    before = copy.deepcopy(model.state_dict())
    pointers = [p.data_ptr() for p in model.parameters()]
    x, y = examples()
    kept = x.clone()
    torch.manual_seed(1)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    torch.set_default_dtype(torch.float64)
    try:
        result = shrink(model, [(x, y)], tol=0.2, method=method)
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    assert torch.is_grad_enabled()
    assert torch.backends.mha.get_fastpath_enabled()
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(x, kept)
    assert [p.data_ptr() for p in model.parameters()] == pointers
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    # The thin network is the caller's own: nothing of it is shared, and it can be trained on.
    assert not {p.data_ptr() for p in result.model.parameters()} & set(pointers)
    assert all(p.dtype == torch.float32 and p.requires_grad for p in result.model.parameters())
    F.cross_entropy(result.model.train()(x), y).backward()


@pytest.mark.parametrize("method", list(METHODS))
@pytest.mark.parametrize("ratio", [1.0, 0.5, 0.2])
def test_a_size_can_be_asked_for(model, method, ratio):
    x, _ = examples()
    result = shrink(model, [x], method=method, ratio=ratio)
    assert result.macs["after"] <= ratio * result.macs["before"]
    # As many units as fit: one more of any group would not.
    assert result.macs["after"] > ratio * result.macs["before"] - 2 * 24 - 10
    assert result.tolerance is None
    assert not result.certified
    assert result.agreement.n == 360
    assert len(result.candidates) == 1
    same = shrink(model, [x], method=method, max_macs=result.macs["after"])
    assert weights_of(same.model) == weights_of(result.model)
    if ratio == 1:
        assert result.agreement.rate == 1


def test_of_ratio_and_macs_the_smaller_counts(model):
    x, _ = examples()
    assert shrink(model, [x], ratio=0.5, max_macs=100).macs["after"] <= 100
    assert shrink(model, [x], ratio=0.2, max_macs=10**9).macs["after"] <= 0.2 * 816


class Mixed(nn.Module):
    """One layer is used twice, one is read by a transposed convolution, the rest is plain."""

    def __init__(self):
        super().__init__()
        self.stem, self.up = nn.Conv2d(2, 8, 3, padding=1), nn.ConvTranspose2d(8, 6, 2, stride=2)
        self.twice, self.last = nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 12, 3, stride=2)
        self.head = nn.Linear(12, CLASSES)

    def forward(self, x):
        x = self.up(self.stem(x).relu()).relu()
        x = self.twice(self.twice(x).relu()).relu()
        return self.head(self.last(x).relu().mean((2, 3)))


def test_what_a_method_cannot_use_stays_and_is_named():
    torch.manual_seed(0)
    model, x = Mixed(), torch.randn(400, 2, 6, 6)
    with torch.no_grad():
        model.head.bias -= model(x).mean(0)  # all labels occur
    result = shrink(model, [x], tol=0.3)
    units = {layer.name: (layer.units_before, layer.units_after) for layer in result.layers}
    reasons = {layer.name: layer.reason for layer in result.layers}
    assert reasons["stem"] is None and reasons["last"] is None
    assert units["stem"][1] < 8 or units["last"][1] < 12
    factor = shrink(model, [x], tol=0.3, method="factor")
    units = {layer.name: (layer.units_before, layer.units_after) for layer in factor.layers}
    reasons = {layer.name: layer.reason for layer in factor.layers}
    assert units["stem"] == (8, 8)
    assert reasons["stem"] == "one of its consumers cannot be refitted"
    assert units["last"][1] < 12
    assert reasons["last"] is None
    assert {"name": "stem", "reason": reasons["stem"]} in factor.skipped
    assert shrink(model, [x], tol=0.3, method="prune").layers[0].reason is None


def test_attention_counts_and_shrinks():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(20, 8)
            self.layer = nn.TransformerEncoderLayer(8, 2, 32, batch_first=True)
            self.head = nn.Linear(8, 3)

        def forward(self, x):
            return self.head(self.layer(self.embed(x)).mean(1))

    torch.manual_seed(0)
    result = shrink(Tokens(), [torch.randint(20, (600, 5))], tol=0.3)
    assert result.macs["before"] == 5 * (4 * 64 + 2 * 256) + 24
    assert result.macs["after"] < result.macs["before"]


def test_networks_that_write_into_themselves_are_only_run_as_copies():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = trained()
            self.register_buffer("runs", torch.zeros(1))

        def forward(self, x):
            self.runs += 1
            return self.body(x)

    counting = Counting()
    shrink(counting, [examples()[0]], tol=0.2)
    assert int(counting.runs) == 0


def test_progress_is_told(model):
    events = []
    shrink(model, [examples()[0]], tol=0.1, progress=events.append)
    lines = [str(event) for event in events]
    searched = [event for event in events if event.stage == "searching"]
    assert [event.done for event in searched] == list(range(1, len(searched) + 1))
    assert any("ranking units" in line for line in lines)
    assert sum("labels changed" in line for line in lines) >= 5
    assert any("certifying on 360 examples" in line for line in lines)


def test_nothing_is_printed(model, capfd):
    shrink(model, [examples()[0]], tol=0.1)
    assert capfd.readouterr() == ("", "")
