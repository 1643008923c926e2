import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fcompress.forward.graph import run
from fcompress.forward.recording import Replay, frontier_bytes, record, recordings_for
from fcompress.forward.running import quiet_tracing
from fcompress.models import build


class InPlace(nn.Module):
    """Writes into activations, into views of them and into its input."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.body, self.head = nn.Conv2d(6, 6, 3, padding=1), nn.Linear(6, 3)
        self.register_buffer("shift", torch.randn(6, 1, 1))

    def forward(self, x):
        x.mul_(0.5)
        x = F.relu(self.norm(self.stem(x)), inplace=True)
        y = self.body(x)
        x[:, :3] += y[:, 3:]
        x.add_(self.shift)
        x[:, 1].zero_()
        y += x
        return self.head(F.dropout(y, training=self.training).mean((2, 3)))


class Functional(nn.Module):
    """Bare parameters: products, functional layers, an expression, a slice."""

    def __init__(self):
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(6, 2, 3, 3))
        self.inputs_first = nn.Parameter(torch.randn(6, 5))
        self.rows = nn.Parameter(torch.randn(4, 5))
        self.shift = nn.Parameter(torch.randn(4))
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x):
        x = F.gelu(F.conv2d(x, self.kernel, stride=2)).flatten(2).mean(2)
        x = (x @ self.inputs_first) * self.scale.exp() + torch.ones(5)
        x = F.linear(x, self.rows[:, :], self.shift)
        return torch.cat([x, x.sum(1, keepdim=True)], 1)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.embed = nn.Linear(2 * 9, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = F.unfold(x, 3, stride=3).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), self.embed(x)], 1)
        return self.head(self.layer(x)[:, 0])


def _convolutions():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.LocalResponseNorm(3),
        nn.Conv2d(4, 4, 3, groups=2),
        nn.Dropout(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
    )


MODELS = {
    "convolutions": _convolutions,
    "in place": InPlace,
    "functional": Functional,
    "attention": Attention,
    "mlp": lambda: build("mlp", in_features=(2 * 9 * 9), width=0.25, classes=3, depth=2),
    "resnet20": lambda: build("resnet20", in_channels=2, image_size=9, width=0.25, classes=3),
    "alexnet": lambda: build("alexnet", in_channels=2, image_size=9, width=0.1, classes=3),
}


def _model(name):
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return model


def _batches():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(13, 2, 9, 9, generator=generator).split(5)


def _tensors(model):
    return dict(model.named_parameters()) | dict(model.named_buffers())


def _forward(model, batches):
    with quiet_tracing():  # without the fused attention, which rounds differently
        return [model(batch.clone()) for batch in batches]


@pytest.mark.parametrize("name", MODELS)
def test_a_replay_gives_what_the_forward_gives(name):
    model, batches = _model(name), _batches()
    before = [batch.clone() for batch in batches]
    recordings = recordings_for(model, batches)
    assert sorted(recordings) == [3, 5]
    for _ in range(2):
        outputs = Replay(recordings, _tensors(model), batches).finish()
        for output, expected in zip(outputs, _forward(model, batches), strict=True):
            assert torch.equal(output, expected)
    assert all(torch.equal(a, b) for a, b in zip(batches, before, strict=True))


@pytest.mark.parametrize("name", MODELS)
def test_a_replay_looks_parameters_up_anew(name):
    model, batches = _model(name), _batches()
    recordings = recordings_for(model, batches)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    outputs = Replay(recordings, _tensors(other), batches).finish()
    for output, expected in zip(outputs, _forward(other, batches), strict=True):
        assert torch.equal(output, expected)


@pytest.mark.parametrize("name", MODELS)
def test_nothing_but_the_outputs_stays_in_memory(name):
    model, batches = _model(name), _batches()
    recording = record(model, batches[0])
    values = {recording.inputs[0]: batches[0].clone()}
    with torch.no_grad():
        run(recording.steps, values, _tensors(model))
    assert set(values) - {recording.inputs[0]} == set(recording.outputs)


@pytest.mark.parametrize("name", ["convolutions", "in place", "mlp", "resnet20", "alexnet"])
def test_inputs_of_each_layer_are_what_its_module_reads(name):
    model, batches = _model(name), _batches()
    seen = {}

    def note(name):
        return lambda module, inputs, output: seen.setdefault(name, []).append(inputs[0].clone())

    for path, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(note(path))
    _forward(model, batches)
    replay = Replay(recordings_for(model, batches), _tensors(model), batches)
    seen.clear()
    _forward(model, batches)
    names = [layer.weight.removesuffix(".weight") for layer in replay.layer_list]
    assert names == list(seen)
    for index, path in enumerate(names):
        for read, expected in zip(replay.inputs(index), seen[path], strict=True):
            assert torch.equal(read, expected)


def test_a_layer_changed_on_the_way_changes_what_follows():
    model, batches = _model("mlp"), _batches()
    thin = copy.deepcopy(model)
    replay = Replay(recordings_for(thin, batches), _tensors(thin), batches)
    first = thin.get_parameter(replay.layer_list[0].weight)
    replay.inputs(0)
    with torch.no_grad():
        first.mul_(2)
    replay.inputs(1)
    for output, expected in zip(replay.finish(), _forward(thin, batches), strict=True):
        assert torch.equal(output, expected)
        assert not torch.equal(output, _forward(model, batches)[0][: len(output)])


def test_layers_are_known_by_their_tensors():
    layers = {layer.weight: layer for layer in record(_model("functional"), _batches()[0]).layers}
    # A slice of a parameter is read as the whole one, an expression of it is not a layer.
    assert set(layers) == {"kernel", "inputs_first", "rows"}
    assert layers["kernel"].convolution == ([2, 2], [0, 0], [1, 1], 1)
    assert layers["kernel"].bias is None
    assert layers["inputs_first"].inputs_first
    assert not layers["rows"].inputs_first
    assert layers["rows"].bias == "shift"
    found = record(_model("convolutions"), _batches()[0]).layers
    assert [layer.weight for layer in found] == ["0.weight", "5.weight", "9.weight"]
    assert found[0].norm is not None
    assert found[1].norm is None
    assert found[1].convolution[3] == 2


class Twice(nn.Module):
    """One weight, one bias and one batch norm used twice, and a layer whose output nobody reads."""

    def __init__(self):
        super().__init__()
        self.stem, self.shared = nn.Linear(4, 6), nn.Linear(6, 6)
        self.idle, self.left, self.right = nn.Linear(6, 2), nn.Linear(6, 5), nn.Linear(6, 5)
        self.right.bias = self.left.bias
        self.free, self.norm, self.head = nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(15, 3)

    def forward(self, x):
        x = self.stem(x).relu()
        x = self.shared(self.shared(x).relu()).relu()
        self.idle(x)
        x = torch.cat([self.norm(self.left(x)), self.norm(self.free(x)), self.right(x)], 1)
        return self.head(x)


def test_what_is_shared_is_no_layer_of_its_own():
    model = Twice().eval()
    layers = {layer.weight: layer for layer in record(model, torch.randn(3, 4)).layers}
    assert "shared.weight" not in layers
    # Two layers with one bias: what suits the one would spoil the other.
    assert set(layers) == {"stem.weight", "idle.weight", "free.weight", "head.weight"}
    assert layers["free.weight"].norm is None


def test_an_output_that_nobody_reads_is_there_for_who_asks():
    model, x = Twice().eval(), torch.randn(3, 4)
    recording = record(model, x)
    idle = recording.layer("idle.weight")
    values = {recording.inputs[0]: x.clone()}
    with torch.no_grad():
        run(recording.steps[: idle.step + 1], values, _tensors(model))
    assert values[idle.out].shape == (3, 2)


def test_a_norm_belongs_to_a_layer_only_if_it_alone_reads_it():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)

        def forward(self, x):
            y = self.conv(x)
            return (self.norm(y) + y).mean((2, 3))

    assert record(Both().eval(), torch.randn(2, 2, 3, 3)).layers[0].norm is None


def test_the_model_is_left_as_it_was():
    model = _model("in place")
    model.train()
    model.norm.eval()
    before = copy.deepcopy(model.state_dict())
    torch.manual_seed(3)
    state = torch.get_rng_state()
    x = torch.randn(2, 2, 9, 9)
    torch.set_rng_state(state)
    kept = x.clone()
    record(model, x)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(x, kept)
    assert model.training
    assert model.stem.training
    assert not model.norm.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


class Sums(nn.Module):
    """Sums after a layer: with a skip, in place, with a factor, with what comes later."""

    def __init__(self):
        super().__init__()
        for name in "stem first skipped written scaled doubled later".split():
            setattr(self, name, nn.Conv2d(3, 3, 1))
        self.norm, self.shift = nn.BatchNorm2d(3), nn.Parameter(torch.randn(3, 1, 1))
        self.head = nn.Linear(3, 2)

    def forward(self, x):
        x = self.stem(x).relu()
        x = x + self.norm(self.skipped(self.first(x).relu()))
        y = self.written(x)
        y += x
        x = torch.add(y, self.scaled(y), alpha=2)
        y = self.doubled(x)
        x = (x + y) * y  # the layer's own output is read twice
        y = self.later(x)
        return self.head((y + (x.relu() + self.shift)).mean((2, 3)))


def test_a_layer_knows_what_is_added_to_its_output():
    model, x = Sums().eval(), torch.randn(2, 3, 4, 4)
    recording = record(model, x)
    layers = {layer.weight.removesuffix(".weight"): layer for layer in recording.layers}
    joined = {name for name, layer in layers.items() if layer.joins is not None}
    assert joined == {"skipped", "written"}
    replay = Replay({2: recording}, _tensors(model), [x])
    for index, layer in enumerate(replay.layer_list):
        if layer.weight == "skipped.weight":
            replay.inputs(index)
            with torch.no_grad():
                stem = model.stem(x).relu()
            assert torch.equal(replay.joined(index)[0], stem)


def test_rectified_layers_are_those_that_a_relu_alone_reads():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 4, 1)
            self.inner = nn.Conv2d(4, 4, 1, bias=False)
            self.norm = nn.BatchNorm2d(4)
            self.outer = nn.Conv2d(4, 4, 1)
            self.shy = nn.Conv2d(4, 4, 1)
            self.soft = nn.Linear(4, 6)
            self.last = nn.Linear(6, 2)

        def forward(self, x):
            x = torch.relu(self.stem(x))
            x = torch.relu(x + self.outer(nn.functional.relu6(self.norm(self.inner(x)))))
            x = self.shy(x)
            x = x.relu() + x.tanh()
            return self.last(nn.functional.silu(self.soft(x.mean((2, 3)))))

    found = record(Block().eval(), torch.randn(2, 3, 4, 4)).layers
    assert {layer.weight.split(".")[0]: layer.rectified for layer in found} == {
        "stem": True,
        "inner": True,
        "outer": True,
        "shy": False,
        "soft": False,
        "last": False,
    }


def test_the_frontier_is_what_is_alive_at_once():
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    example = torch.randn(1, 3, 10, 10)
    # The input stays; the convolution's output and the ReLU's are there at once.
    most = frontier_bytes(model.eval(), example)
    assert 4 * (300 + 800) <= most <= 4 * (300 + 2 * 800)


class Recurrent(nn.Module):
    """A recurrent layer between linear ones; its operator returns more under gradients."""

    def __init__(self, kind, **settings):
        super().__init__()
        self.before, self.cell = nn.Linear(5, 6), kind(6, 8, batch_first=True, **settings)
        width = settings.get("proj_size", 8) * (2 if settings.get("bidirectional") else 1)
        self.after, self.head = nn.Linear(width, 12), nn.Linear(12, 3)

    def forward(self, x):
        found, _ = self.cell(torch.relu(self.before(x)))
        return self.head(torch.relu(self.after(found[:, -1])))


RECURRENT = {
    "LSTM": (nn.LSTM, {}),
    "stacked": (nn.LSTM, {"num_layers": 2}),
    "both ways": (nn.LSTM, {"bidirectional": True}),
    "projected": (nn.LSTM, {"proj_size": 4}),
    "GRU": (nn.GRU, {}),
    "RNN": (nn.RNN, {"num_layers": 2, "bidirectional": True}),
}


@pytest.mark.parametrize("kind", RECURRENT)
def test_a_recording_holds_under_gradients(kind):
    torch.manual_seed(0)
    module, settings = RECURRENT[kind]
    model, x = Recurrent(module, **settings).eval(), torch.randn(4, 7, 5)
    recording = record(model, x)
    tensors = dict(model.named_parameters())
    values = {recording.inputs[0]: x.clone()}
    run(recording.steps, values, tensors)
    found = values[recording.outputs[0]]
    torch.testing.assert_close(found, model(x))
    (ours,) = torch.autograd.grad(found.square().sum(), [tensors["before.weight"]])
    (wanted,) = torch.autograd.grad(model(x).square().sum(), [tensors["before.weight"]])
    torch.testing.assert_close(ours, wanted)


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (
            nn.Sequential(nn.Linear(30, 200), nn.ReLU(), nn.Linear(200, 200), nn.Linear(200, 3)),
            [30],
        ),
        (nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(), nn.Linear(144, 50), nn.ReLU()), [2, 8, 8]),
    ],
)
def test_the_frontier_grows_with_examples_and_not_with_weights(model, shape):
    model = model.eval()
    one, four = (frontier_bytes(model, torch.randn(n, *shape)) for n in (1, 4))
    assert four == 4 * one
    largest = max(p.numel() for p in model.parameters()) * 4
    assert one < largest
