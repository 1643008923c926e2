import pytest
import torch
from torch import nn

from fcompress.errors import UnsupportedNetworkError
from fcompress.forward.predictor import Predictor
from fcompress.measure.hooks import Prefix, ablate, observe, trace_calls
from fcompress.measure.layers import (
    BY_ACTIVATION,
    BY_CALLER,
    BY_NETWORK,
    BY_WEIGHT,
    ablation_layers,
    redundancy_layers,
)
from fcompress.models import build


class Residual(nn.Module):
    """One ReLU module in place for everything, sums, a functional call."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(2, 4, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.gate = nn.Conv2d(4, 4, 1)
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        x = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(x))
        y += x
        y = self.relu(y)
        y = y * torch.sigmoid(self.gate(y))
        y = self.relu(y)
        return self.fc(y.mean((2, 3)))


def _residual():
    torch.manual_seed(0)
    model = Residual()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.bias.data.normal_()
    return model.eval(), torch.randn(5, 2, 6, 6)


def _hooks(model):
    return sum(
        len(m._forward_hooks) + len(m._forward_pre_hooks) + ("forward" in m.__dict__)
        for m in model.modules()
    )


def test_observe_sees_each_call_of_a_shared_module():
    model, x = _residual()
    with Predictor(model).evaluating(), observe(model, ["relu#0", "relu#2", "conv1"]) as outputs:
        model(x)
        first = outputs["relu#0"].clone()
        assert set(outputs) == {"relu#0", "relu#2", "conv1"}
        model(2 * x)
        assert not torch.equal(outputs["relu#0"], first)
    expected = model.bn1(model.conv1(x)).relu()
    assert torch.equal(first, expected)
    assert _hooks(model) == 0


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (["nothing"], "has no layer 'nothing'"),
        (["relu"], "relu ran 3 times .* relu#0 to relu#2"),
        (["relu#3"], "relu#3 did not run: relu ran 3 times"),
        (["relu#0", "unused"], "unused did not run: unused ran 0 times"),
        (["both"], "both gives a tuple"),
    ],
)
def test_a_layer_that_cannot_be_observed_is_an_error(layers, message):
    class Both(nn.Module):
        def forward(self, x):
            return x, x

    model, x = _residual()
    model.unused = nn.ReLU()
    model.both = Both()
    plain = model.forward
    model.forward = lambda x: plain(model.both(x)[0])
    with pytest.raises(UnsupportedNetworkError, match=message), observe(model, layers):
        model(x)
    del model.forward
    assert _hooks(model) == 0


def test_ablate_sets_to_zero_and_nothing_else():
    model, x = _residual()
    mask = torch.zeros(4, 6, 6, dtype=torch.bool)
    mask[1, 2, 3] = mask[3] = True
    with Predictor(model).evaluating():
        with observe(model, ["relu#1"]) as plain:
            model(x)
            before = plain["relu#1"].clone()
        with ablate(model, {"relu#1": mask}), observe(model, ["relu#1"]) as changed:
            model(x)
            after = changed["relu#1"].clone()
    assert torch.equal(after[:, ~mask], before[:, ~mask])
    assert (after[:, mask] == 0).all()
    assert before[:, mask].abs().sum() > 0
    assert _hooks(model) == 0


def test_a_mask_that_does_not_fit_is_an_error():
    model, x = _residual()
    for shape in ((4, 5, 6), (2, 4, 6, 6), (4,)):
        mask = torch.ones(shape, dtype=torch.bool)
        with (
            pytest.raises(UnsupportedNetworkError, match="inputs of one size"),
            ablate(model, {"relu#1": mask}),
        ):
            model(x)
    assert _hooks(model) == 0


def test_evaluating_restores_modes_gradients_and_random_state():
    model, x = _residual()
    model.train()
    model.bn1.eval()
    model.noise = nn.Dropout(0.5)
    modes = [m.training for m in model.modules()]
    state = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="stop"), Predictor(model).evaluating():
        assert not any(m.training for m in model.modules())
        assert not model(x).requires_grad
        torch.randn(10)
        raise RuntimeError("stop")
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.is_grad_enabled()


def test_inputs_take_the_dtype_of_the_network_unless_they_are_indices():
    model = nn.Linear(2, 2).double()
    assert Predictor(model).place(torch.zeros(1, 2)).dtype == torch.float64
    assert Predictor(model).place(torch.zeros(1, 2, dtype=torch.int64)).dtype == torch.int64


@pytest.mark.parametrize("layer", ["conv1", "relu#0", "bn2", "relu#1", "gate", "relu#2"])
@pytest.mark.parametrize("budget", [2**30, 5000, 0])
def test_replaying_a_prefix_changes_no_output(layer, budget):
    model, x = _residual()
    mask = torch.zeros(4, 6, 6, dtype=torch.bool)
    mask[:2, :, 1:4] = True
    prefix = Prefix(model, budget)
    with Predictor(model).evaluating():
        with ablate(model, {layer: mask}):
            expected = [model(x), model(-x)]
        for inputs, want in zip([x, -x, x], [*expected, expected[0]], strict=True):
            with prefix.recording():
                model(inputs)
            for _ in range(2):
                with prefix.replaying(layer), ablate(model, {layer: mask}):
                    assert torch.equal(model(inputs), want)
    assert _hooks(model) == 0


def test_replaying_protects_what_is_written_into_by_functional_code():
    class Written(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.gate = nn.Linear(3, 4), nn.Linear(4, 4)

        def forward(self, x):
            y = self.first(x)
            y += 1
            return y * self.gate(y)

    torch.manual_seed(0)
    model, x = Written(), torch.randn(5, 3)
    prefix = Prefix(model)
    with Predictor(model).evaluating():
        expected = model(x)
        for _ in range(3):
            with prefix.recording():
                model(x)
            for _ in range(3):
                with prefix.replaying("gate"):
                    assert torch.equal(model(x), expected)


def test_replaying_computes_nothing_before_the_layer():
    model, x = _residual()
    runs = []
    original = model.conv1._conv_forward
    model.conv1._conv_forward = lambda *args: runs.append(1) or original(*args)
    prefix = Prefix(model)
    with Predictor(model).evaluating():
        # From the first recording on it is known which outputs are written into.
        for _ in range(2):
            with prefix.recording():
                model(x)
        runs.clear()
        with prefix.replaying("relu#1"):
            model(x)
        assert not runs
        with prefix.replaying("conv1"):
            model(x)
        model(x)
    assert len(runs) == 1


def test_replaying_leaves_a_forward_of_the_callers_own():
    model, x = _residual()
    own = model.conv1.forward
    model.conv1.forward = own
    prefix = Prefix(model)
    with prefix.recording():
        model(x)
    with pytest.raises(RuntimeError, match="stop"), prefix.replaying("relu#0"):
        raise RuntimeError("stop")
    assert model.conv1.__dict__["forward"] is own
    assert "forward" not in model.conv2.__dict__


def test_trace_lists_calls_as_they_finish():
    model, x = _residual()
    calls = trace_calls(model, x)
    assert [(c.name, c.number) for c in calls if c.name == "relu"] == [
        ("relu", i) for i in (0, 1, 2)
    ]
    assert calls[0].name == "conv1"
    assert calls[0].shape == (5, 4, 6, 6)
    assert [c.name for c in calls if c.is_output] == ["fc"]


def test_layers_of_a_family_are_those_it_names():
    model = build("resnet20", image_size=8, width=0.25)
    x = torch.randn(2, 3, 8, 8)
    prunable, redundant = ablation_layers(model, x), redundancy_layers(model, x)
    assert [layer.name for layer in redundant.measured] == ["relu", "layer1", "layer2", "layer3"]
    assert [layer.maps for layer in redundant.measured] == [4, 4, 8, 16]
    assert len(prunable.measured) == 19
    assert prunable.measured[0].elements == 4 * 8 * 8
    assert prunable.rule == redundant.rule == BY_NETWORK


def test_layers_of_other_networks_are_activations_or_else_weights():
    model, x = _residual()
    found = ablation_layers(model, x)
    assert found.rule == BY_ACTIVATION
    assert [layer.name for layer in found.measured] == ["relu#0", "relu#1", "relu#2"]
    plain = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(48, 5), nn.Linear(5, 2))
    found = ablation_layers(plain, x)
    assert found.rule == BY_WEIGHT
    assert [layer.name for layer in found.measured] == ["0", "2"]
    named = redundancy_layers(model, x, ["fc", "conv2"])
    assert named.rule == BY_CALLER
    # Never the logits, though the caller asked; in order of execution.
    assert [layer.name for layer in named.measured] == ["conv2"]
    assert [(s.name, s.reason) for s in named.skipped] == [("fc", "it is the network's output")]


def test_what_cannot_be_measured_is_named():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(3, 4)
            self.relu = nn.ReLU()
            self.last = nn.Linear(4, 2)
            self.end = nn.Tanh()

        def forward(self, x):
            shared = self.relu(self.inner.weight)  # no examples in it
            return self.end(self.last(self.relu(x @ shared.T)))

    found = ablation_layers(Odd(), torch.randn(2, 3))
    assert [layer.name for layer in found.measured] == ["relu#1"]
    assert [s.name for s in found.skipped] == ["relu#0", "end"]
    assert "first dimension" in found.skipped[0].reason
    with pytest.raises(UnsupportedNetworkError, match="no layer to measure"):
        ablation_layers(nn.Linear(3, 2), torch.randn(2, 3))
    with pytest.raises(
        UnsupportedNetworkError, match=r"runs no layer 'relu#7'; it runs inner|relu"
    ):
        ablation_layers(Odd(), torch.randn(2, 3), ["relu#7"])


def test_units_lie_last_after_a_linear_layer_and_first_after_a_convolution():
    tokens = nn.Sequential(nn.Linear(3, 8), nn.GELU(), nn.Linear(8, 2))
    assert ablation_layers(tokens, torch.randn(2, 8, 3)).measured[0].axis == 1
    signal = nn.Sequential(nn.Conv1d(3, 8, 1), nn.GELU(), nn.Conv1d(8, 2, 1))
    assert ablation_layers(signal, torch.randn(2, 3, 8)).measured[0].axis == 0
    grid = nn.Sequential(nn.Linear(3, 7), nn.GELU(), nn.Linear(7, 2))
    layer = ablation_layers(grid, torch.randn(2, 7, 7, 3)).measured[0]
    assert (layer.axis, layer.maps, layer.elements) == (2, 7, 343)
