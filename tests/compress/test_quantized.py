"""Int8 under the certificate: what is judged, certified and shipped is one file."""

import sys
from dataclasses import replace

import onnx
import pytest
import torch
from cases.trained import examples, trained
from click.testing import CliRunner
from torch import nn

import fcompress
from fcompress.cli import main
from fcompress.compress.options import ShrinkOptions
from fcompress.errors import FcompressError, UnsupportedNetworkError
from fcompress.forward.predictor import Predictor
from fcompress.programs import quantizing
from fcompress.programs.quantizing import Quantized, check_quantizable, quantized
from fcompress.report.text import verdict

TOLERANCE = 0.1


def data():
    return examples(2400, seed=3)


def in_int8(network, x):
    return quantized(Predictor(network.eval()), [x[:256]])


@pytest.fixture(scope="module")
def shrunk(tmp_path_factory):
    """A network, its int8 file, and the result."""
    folder = tmp_path_factory.mktemp("int8")
    model = trained()
    result = fcompress.shrink(model, data(), TOLERANCE, method="prune", quantize="int8")
    fcompress.export(result.model, folder / "net.onnx", data(), original=model)
    return folder / "net.onnx", model, result


@pytest.mark.slow
def test_the_file_is_what_was_certified(shrunk):
    path, model, result = shrunk
    assert result.certified and result.agreement.upper_bound <= TOLERANCE
    assert isinstance(result.model, Quantized)
    # The file alone gives what was certified, example for example.
    opened = fcompress.open_program(path)
    x = examples(600, seed=77)[0]
    assert torch.equal(opened(x), result.model(x))
    assert fcompress.verify(model, opened, x).changed <= TOLERANCE * 600
    found = fcompress.describe_file(path)
    entry = found.history[-1]
    assert entry["certified"] is True and entry.get("void") is None
    assert entry["certificate"]["compressed"] == result.model.fingerprint()
    assert entry["quantized"] == {"scheme": "int8", "left_in_float": {}}
    # Candidates are judged as files: their network in floating point is another one.
    assert not torch.equal(result.model.network(x), result.model(x))


def test_its_weights_are_int8_by_channel_of_seven_bits(made):
    proto = made.proto
    made = {n.output[0]: n for n in proto.graph.node}
    stored = {one.name: one for one in proto.graph.initializer}
    layers = [n for n in proto.graph.node if n.op_type in ("Gemm", "MatMul")]
    assert len(layers) == 2
    for layer in layers:
        assert made[layer.input[0]].op_type == "DequantizeLinear"
        weight = made[layer.input[1]]
        assert weight.op_type == "DequantizeLinear"
        values = onnx.numpy_helper.to_array(stored[weight.input[0]])
        scales = onnx.numpy_helper.to_array(stored[weight.input[1]])
        assert values.dtype == "int8" and abs(values.astype(int)).max() <= 64  # 7 bits
        assert scales.size in values.shape and scales.size > 1


@pytest.mark.slow
def test_sizes_and_words(shrunk):
    path, _, result = shrunk
    gains = result.quantized
    assert gains.bytes["int8"] == result.bytes["after"] == len(result.model.content)
    # So small a network has more bytes of scales than it saves (`test_bytes_of_a_larger_one`).
    assert gains.bytes["compressed"] < gains.bytes["original"]
    assert gains.bytes["int8"] < gains.bytes["original_int8"]
    assert gains.bytes["int8"] < path.stat().st_size  # which says what it is, too
    assert result.params["after"] == sum(p.numel() for p in result.model.network.parameters())
    assert result.macs["after"] < result.macs["before"]
    text = "\n".join(verdict(result))
    assert "run by onnxruntime, is what was certified" in text
    assert "Operators left in floating point: none." in text
    changed = replace(gains, left_in_float={"Softmax": 2})
    assert "floating point: Softmax (2)." in "\n".join(verdict(replace(result, quantized=changed)))
    assert result.to_dict()["quantized"]["bytes"] == gains.bytes


@pytest.mark.slow
def test_another_file_voids_the_certificate(shrunk, tmp_path):
    proto = onnx.load(shrunk[0])
    for one in proto.graph.initializer:
        if one.data_type == onnx.TensorProto.INT8 and len(one.dims) == 2:
            one.raw_data = bytes(len(one.raw_data))
            break
    onnx.save(proto, tmp_path / "zeroed.onnx")
    entry = fcompress.describe_file(tmp_path / "zeroed.onnx").history[-1]
    assert entry["void"] == "the program was changed after it was exported"


@pytest.fixture(scope="module")
def made():
    """A network of 512 units in int8."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 512), nn.ReLU(), nn.Linear(512, 100))
    return in_int8(network, data()[0])


def test_bytes_and_scores_of_a_larger_one(made):
    assert len(made.content) < 0.35 * len(made.float_content)
    x = data()[0][300:400]
    with torch.no_grad():
        scores, near = made.network(x), made(x)
        assert torch.allclose(made.in_float()(x), scores, atol=1e-5)
    assert 0 < float((near - scores).abs().max()) < 0.1 * float(scores.abs().max())
    # Scores are not rounded to 256 values, which would make ties.
    assert near.unique().numel() > 0.9 * near.numel()
    assert not [*made.parameters()] and made.left_in_float == {}


@pytest.mark.slow
def test_the_same_again_gives_the_same_file(made):
    assert in_int8(made.network, data()[0]).content == made.content


class Kept(nn.Module):
    """What the quantiser does not know stays in floating point."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x):
        return self.last(torch.erf(self.first(x)).cumsum(1))


def test_operators_that_stay_in_floating_point_are_named():
    torch.manual_seed(0)
    x = data()[0]
    made = in_int8(Kept(), x)
    assert made.left_in_float == {"Erf": 1}
    with torch.no_grad():
        assert torch.allclose(made(x[:50]), made.network(x[:50]), atol=0.3)


@pytest.mark.slow
def test_a_network_in_another_precision_is_quantised_from_single():
    double = in_int8(trained().double(), data()[0].double())
    assert double(data()[0][:5].double()).dtype == torch.float32


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"quantize": "int4"}, "quantize='int4': expected one of int8, or None"),
        ({"quantize": "int8", "cascade": True}, "a tolerance for one network"),
        ({"quantize": "int8", "ratio": 0.5}, "a size promises no tolerance"),
    ],
)
def test_what_does_not_go_together_is_refused(more, words):
    with pytest.raises(ValueError, match=words):
        ShrinkOptions(**more)


def test_without_the_quantiser_it_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime.quantization", None)
    with pytest.raises(FcompressError, match=r"pip install 'fcompress\[onnx\]'"):
        fcompress.shrink(nn.Linear(6, 4), data(), quantize="int8", method="prune")


def test_networks_that_no_such_file_holds_are_refused():
    predictor = Predictor(nn.Linear(6, 4))
    check_quantizable(predictor)
    with pytest.raises(UnsupportedNetworkError, match="draws random numbers"):
        check_quantizable(replace(predictor, draws=True))


def test_what_the_quantiser_raises_is_one_line(monkeypatch):
    tool, _ = quantizing._quantiser()

    class Failing:
        def quant_pre_process(self, *args, **kwargs):
            raise RuntimeError("no such\nkernel")

    monkeypatch.setattr(quantizing, "_quantiser", lambda: (tool, Failing()))
    with pytest.raises(UnsupportedNetworkError, match=r"cannot quantise .*no such.*leave quantize"):
        in_int8(nn.Linear(6, 4), data()[0])


def test_only_onnx_holds_it(made, tmp_path):
    for ending in (".pt2", ".safetensors"):
        with pytest.raises(FcompressError, match=r"is an ONNX file; end the name in \.onnx"):
            fcompress.export(made, tmp_path / f"n{ending}", data())


def run(*arguments):
    return CliRunner().invoke(main, [str(a) for a in arguments])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "width", "epochs", "tol", "bytes_kept"),
    [("mlp", 2, 20, 0.05, 0.35), ("resnet20", 1, 8, 0.1, 0.5)],
)
def test_from_the_command_line(family, width, epochs, tol, bytes_kept, tmp_path):
    model, net = tmp_path / "model.pt", tmp_path / "model.thin.onnx"
    training = "--data", "digits", "--epochs", epochs, "--width", width
    done = run("train", family, *training, "--out", model)
    assert done.exit_code == 0, done.output
    done = run("shrink", model, "--tol", tol, "--quantize", "int8")
    assert done.exit_code == 0, done.output
    assert "in int8, run by onnxruntime" in done.output and f"Written: {net}" in done.output
    assert net.stat().st_size < bytes_kept * model.stat().st_size
    done = run("verify", model, net)
    assert done.exit_code == 0 and "test examples" in done.output, done.output
    assert "certificate" not in done.output  # it holds
    shown = run("show", net)
    assert shown.exit_code == 0 and f"tolerance of {tol:.1%}" in shown.output
    timed = run("bench", model, net, "--seconds", 0.1, "--no-memory", "--batch", 8)
    assert timed.exit_code == 0 and "onnxruntime" in timed.output
    wrong = run("shrink", model, "--quantize", "int8", "--out", tmp_path / "x.pt")
    assert wrong.exit_code == 2 and "in .onnx" in wrong.output
