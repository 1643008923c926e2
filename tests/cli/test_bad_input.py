"""Bad networks and bad data: one clear line, or a result that is verified and right."""

import copy
import json
import math
import re

import numpy as np
import pytest
import torch
from cases.trained import CLASSES, examples, weights_of
from cases.trained import trained as newly_trained
from click.testing import CliRunner
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fcompress.certify.agreement import verify
from fcompress.certify.screening import screened
from fcompress.checkpoints.checkpoint import save
from fcompress.cli import main
from fcompress.compress.methods import METHODS
from fcompress.compress.pipeline import shrink
from fcompress.data import load_data
from fcompress.data.roles import roles_of
from fcompress.errors import DataError, FcompressError, ToleranceError, UnsupportedNetworkError
from fcompress.models import build

pytestmark = pytest.mark.filterwarnings("ignore::fcompress.errors.ResultWarning")
X, Y = examples()
TRAINED = newly_trained()
IMAGES = torch.randn(400, 1, 6, 6, generator=torch.Generator().manual_seed(5))


def trained() -> nn.Sequential:
    """A copy of a trained network."""
    return copy.deepcopy(TRAINED)


@pytest.fixture(params=list(METHODS))
def method(request):
    return request.param


def _refused(model, data, message, kind=FcompressError, **arguments):
    """The refusal: of one line, and of exactly the words that help."""
    before = weights_of(model) if isinstance(model, nn.Module) else None
    with pytest.raises(kind, match=message) as error:
        shrink(model, data, **{"tol": 0.1, **arguments})
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500
    assert before is None or weights_of(model) == before


def _right(model, data, **arguments):
    """Shrink, and check the result against the networks themselves."""
    before = weights_of(model)
    result = shrink(model, data, **{"tol": 0.1, **arguments})
    assert weights_of(model) == before
    assert result.certified
    assert result.agreement.upper_bound <= result.tolerance
    for name, tensor in result.model.state_dict().items():
        assert bool(tensor.isfinite().all()), name
    json.dumps(result.to_dict(), allow_nan=False)
    roles, _ = screened(roles_of(data))
    again = verify(model, result.model, roles.certification)
    assert (again.n, again.same) == (result.agreement.n, result.agreement.same)
    return result


def _changed(change, model=None):
    model = model or trained()
    with torch.no_grad():
        change(model)
    return model


def _conv():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        return nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(128, 5),
        ).eval()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("layer", ["0", "1", "6"])
def test_a_weight_that_is_no_number(method, layer, value):
    model = trained()
    model.get_submodule(layer).weight.data[..., 0] = value
    _refused(model, X, "a weight of the network is not finite", method=method)


@pytest.mark.parametrize("value", [math.nan, -1.0])
def test_a_buffer_that_makes_no_numbers(method, value):
    model = trained()
    model[1].running_var[3] = value
    _refused(model, X, "outputs are not finite for 600 of 600", method=method)


class Overflowing(nn.Module):
    """Finite weights and outputs; what `b` reads is infinite (or no number) for many examples."""

    def __init__(self, value, above):
        super().__init__()
        self.a, self.b = nn.Linear(6, 16), nn.Linear(16, 16)
        self.c, self.d = nn.Linear(16, CLASSES), nn.Linear(6, 16)
        self.value, self.above = value, above

    def forward(self, x):
        hidden = self.a(x)
        hidden = torch.where(hidden > self.above, self.value, hidden)
        side = self.b(hidden).nan_to_num(0.0, 1.0, -1.0).tanh()
        return self.c((4 * self.d(x)).relu() + side)


@pytest.mark.parametrize("above", [2.0, 0.5, -1e9], ids=["some", "most", "all"])
@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_activations_that_are_no_numbers_inside(method, value, above):
    torch.manual_seed(0)
    model = Overflowing(value, above)
    with torch.no_grad():
        assert bool(model(X).isfinite().all())
        assert len(model(X).argmax(1).unique()) == CLASSES
    _right(model, X, tol=0.3, method=method)


@pytest.mark.parametrize("scale", [1e18, 1e-15])
def test_activations_of_an_absurd_size(method, scale):
    # Squares and sums of them leave float32, but not float64.
    model = trained()
    with torch.no_grad():
        model[3].weight.mul_(scale)
        model[3].bias.mul_(scale)
        model[6].weight.div_(scale)
    _right(model, X, tol=0.2, method=method)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_inputs_that_are_no_numbers(method, value):
    x = X.clone()
    x[::100, 2] = value
    _refused(trained(), x, r"of 600 calibration examples hold values that are", method=method)


@pytest.mark.parametrize("bias", [0.0, 1.0])
def test_constant_outputs(method, bias):
    def change(model):
        model[6].weight.zero_()
        model[6].bias.fill_(bias)

    _refused(_changed(change), X, "same label, 0, to all 840 calibration and", method=method)


def test_a_network_of_one_label(method):
    model = _changed(lambda m: m[6].bias[2].add_(1e4))
    _refused(model, X, "same label, 2, to all 840 calibration and search", method=method)


def test_a_network_whose_units_are_all_dead(method):
    model = _changed(lambda m: (m[3].weight.zero_(), m[3].bias.fill_(-1)))
    _refused(model, X, "nothing to keep; check its training", method=method)


def test_one_label_on_the_calibration_examples_only_is_no_reason():
    # Sorted data, cut without care: the search split knows better.
    splits = load_data("digits")
    wide = build("mlp", in_features=64, classes=10, width=0.3, depth=2, seed=0).eval()
    with torch.no_grad():
        x = torch.cat([x for x, _ in splits.calibration.batches()])
        wide.out.bias.sub_(wide(x).mean(0))
        labels = wide(x).argmax(1)
    one = splits.calibration.rows[labels == labels.mode().values]
    object.__setattr__(splits.calibration, "rows", one)
    object.__setattr__(splits.calibration, "labels", torch.zeros(len(one), dtype=torch.int64))
    assert shrink(wide, splits, tol=0.5, method="prune").certified


def test_a_single_class_in_the_data(method):
    with torch.no_grad():
        same = trained()(X).argmax(1) == 2
    _refused(trained(), X[same], "that the data holds more than one class", method=method)
    # Labels are never looked at: those given may say what they like.
    _right(trained(), [(X, torch.zeros(len(X), dtype=torch.int64))], method=method)


@pytest.mark.parametrize(
    ("model", "data"),
    [
        (trained, torch.randn(500, 5)),
        (trained, torch.randn(500, 6, 2)),
        (trained, torch.randn(500, 1, 6, 6)),
        (_conv, torch.randn(500, 6)),
        (_conv, torch.randn(500, 3, 6, 6)),
        (_conv, torch.randn(500, 1, 9, 9)),
    ],
    ids=["width", "rank", "images", "vectors", "channels", "size"],
)
def test_data_of_the_wrong_shape(model, data, method):
    _refused(model(), data, r"does not run on an example of shape", method=method)


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8])
def test_data_of_the_wrong_type(method, dtype):
    data = (IMAGES * 40 + 128).clamp(0, 255).to(dtype)
    name = str(dtype).removeprefix("torch.")
    _refused(_conv(), data, rf"on an example of shape .*\({name}\)", method=method)


@pytest.mark.parametrize(
    "data", [X.half().float().half(), X.double(), X.clone().requires_grad_(), X.T.contiguous().T]
)
def test_data_of_another_type_that_will_do(method, data):
    _right(trained(), data.detach(), method=method)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "no batch"),
        (X[:0], "no example"),
        ([X[:0], X[:0]], "no example"),
        (iter(()), "no batch"),
        (X[:1], "1 examples are too few"),
        (torch.tensor(3.0), r"shape \[\]: expected real numbers"),
        ([torch.tensor(3.0)], r"shape \[\]: expected real numbers"),
        (X.to(torch.complex64), "torch.complex64"),
        (X.to_sparse(), "expected a dense one"),
        (X.to("meta"), "expected a dense one"),
        (np.array(["a", "b"]), "expected numbers"),
        (None, "the network does not remember any data; give some"),
        ([None], "a batch of type NoneType"),
        ([1, 2, 3], "a batch of type int"),
        ([(X, Y, Y)], "a batch of type tuple"),
        ([{"x": 3}], "input 'x' of a batch is a int"),
        ([(X, Y[:5])], "with labels of shape"),
        ([X, X[:, :5]], "different shapes"),
    ],
)
def test_data_that_is_no_data(data, message, method):
    _refused(trained(), data, message, DataError, method=method)


@pytest.mark.parametrize("model", ["wide.pt", None, trained().state_dict(), nn.Linear])
def test_a_model_that_is_none(model):
    with pytest.raises(TypeError, match=r"a model of type \w+: expected a torch.nn.Module"):
        shrink(model, X)


def test_networks_without_layers_or_with_one():
    for model in (nn.ReLU(), nn.Identity()):
        _refused(model, X, "nothing in this network can be excised: it has no layers")
    _refused(nn.Linear(6, 4), X, "can be excised: output layer", UnsupportedNetworkError)


def test_layers_of_one_unit(method):
    model = nn.Sequential(nn.Linear(6, 1), nn.ReLU(), nn.Linear(1, 4))
    with torch.no_grad():
        model[2].weight.copy_(torch.tensor([[1.0], [2.0], [3.0], [-4.0]]))
        model[2].bias.copy_(torch.tensor([0.5, 0.0, -0.5, 0.7]))
    _refused(model, X, "a single unit", UnsupportedNetworkError, method=method)
    # Among others it stays, and the others go.
    model = nn.Sequential(
        nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 1), nn.Linear(1, 24), nn.ReLU(), nn.Linear(24, 4)
    )
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(6).repeat(4, 1))
        model[2].weight.fill_(1 / 24)
        model[3].weight.copy_(torch.linspace(-1, 1, 24)[:, None])
        model[3].bias.zero_()
        model[5].bias.zero_()
        model[5].weight.copy_(torch.eye(4).repeat(1, 6))
        model[2].bias -= model[:3](X).mean()
    units = {layer.name: layer.units_after for layer in _right(model, X, method=method).layers}
    assert units["2"] == 1
    assert units["3"] < 24


def test_units_without_variance(method):
    def change(model):
        model[1].weight[:12] = 0  # constant after the normalisation: dead, or always on
        model[1].bias[:6], model[1].bias[6:12] = -1, 2
        model[3].weight[:10], model[3].bias[:10] = 0, 5

    result = _right(_changed(change), X, method=method)
    units = {layer.name: layer.units_after for layer in result.layers}
    # Dead ones cost nothing; constant ones go into biases where layers are refactored.
    assert units["0"] <= (18 if method == "prune" else 12)
    if method != "prune":
        assert units["3"] <= 14


def test_inputs_that_do_not_vary(method):
    flat = torch.cat([X[:, :3], torch.zeros(len(X), 3)], 1)
    line = X[:, :1] * torch.ones(1, 6)
    for data in (flat, line):
        _right(trained(), data, method=method)


def test_fewer_examples_than_units(method):
    wide = newly_trained(width=80)
    _right(wide, X[:150], tol=0.3, method=method)
    assert _right(wide, X, calibration=2, method=method).calibration == 2


def test_examples_that_are_all_alike(method):
    _refused(trained(), X[:1].repeat(1000, 1), "remove copies from the data", method=method)
    nearly = X[:1] + 1e-4 * X
    _refused(trained(), nearly, "the network gives the same label", method=method)


def test_batches_of_one_and_of_none(method):
    expected = weights_of(_right(trained(), X, method=method).model)
    single = DataLoader(TensorDataset(X), batch_size=1)
    for data in (list(X.split(1)), [X[:1], X[1:7], X[7:7], X[7:]]):
        assert weights_of(shrink(trained(), data, tol=0.1, method=method).model) == expected
    with pytest.raises(DataError, match="a batch of type list"):
        # The loader gives lists of one tensor, which is taken; of nothing, not.
        shrink(trained(), [[]], tol=0.1, method=method)
    assert weights_of(shrink(trained(), single, tol=0.1, method=method).model) == expected
    _right(_conv(), list(IMAGES.split(1)), tol=0.3, method=method)


def test_a_tolerance_no_network_reaches(method):
    message = "no thinner network could be certified within a tolerance of 0.03"
    _refused(_conv(), IMAGES, message, ToleranceError, tol=0.03, method=method)
    message = "cannot prove a tolerance of 1e-09 .*: 2995732273 are needed"
    _refused(trained(), X, message, ToleranceError, tol=1e-9, method=method)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Networks that are no good, and data that is none."""
    folder = tmp_path_factory.mktemp("bad")
    info = load_data("digits").info

    def stored(name, change):
        model = build("mlp", in_features=64, classes=10, width=0.05)
        with torch.no_grad():
            change(model)
        save(model, folder / f"{name}.pt", data=info)

    stored("nan", lambda m: m.fc1.weight[0, 0].fill_(math.nan))
    stored("one_label", lambda m: m.out.bias[3].fill_(1e6))
    stored("untrained", lambda m: None)
    x = np.random.default_rng(0).normal(size=(400, 64)).astype(np.float32)
    np.save(folder / "vectors.npy", x)
    np.save(folder / "nan.npy", np.where(x > 2, np.nan, x).reshape(400, 8, 8))
    np.save(folder / "empty.npy", x[:0].reshape(0, 8, 8))
    np.save(folder / "same.npy", np.ones((400, 8, 8), dtype=np.float32))
    np.save(folder / "few.npy", x[:5].reshape(5, 8, 8))
    return folder


@pytest.mark.parametrize(
    ("model", "data", "message"),
    [
        ("nan", "digits", "not finite"),
        ("one_label", "digits", "the network gives the same label, 3, to all 500"),
        ("untrained", "vectors.npy", "but the network was trained on"),
        ("untrained", "nan.npy", "values are not finite"),
        ("untrained", "empty.npy", "expected"),
        ("untrained", "same.npy", "120 of 120 certification examples also stand"),
        ("untrained", "few.npy", "14 are needed"),
    ],
)
def test_the_command_says_so_in_one_line(folder, model, data, message, method):
    spec = f"file:{folder / data}" if data.endswith(".npy") else data
    out = folder / "thin.pt"
    arguments = ["shrink", folder / f"{model}.pt", "--data", spec, "--method", method, "--out", out]
    arguments += ["--tol", "0.2"]
    ran = CliRunner().invoke(main, [str(a) for a in arguments])
    assert ran.exit_code == 1
    assert isinstance(ran.exception, SystemExit)
    (line,) = [x for x in ran.stderr.splitlines() if x.startswith("error: ")]
    assert re.search(message, line)
    assert ran.stdout == ""
    assert not out.exists()
