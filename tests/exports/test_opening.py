"""What people ship is compared like a network: ONNX, .pt2, quantised, any callable."""

import copy
import functools
import json
import pickle
import zipfile

import numpy as np
import pytest
import torch
from cases.trained import CLASSES, examples, trained
from click.testing import CliRunner
from torch import nn

import fcompress
from fcompress.cli import main
from fcompress.errors import CheckpointError, FcompressError, UnsupportedNetworkError
from fcompress.exports.opening import is_program, open_program
from fcompress.models.fingerprint import CHANGED, REWRITTEN

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")


def run(*arguments):
    return CliRunner().invoke(main, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A network of digits and a compressed one, in all formats, and a quantised ONNX."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    folder = tmp_path_factory.mktemp("shipped")
    splits = fcompress.load_data("digits")
    wide = fcompress.build("mlp", in_channels=1, image_size=8, classes=10, width=0.5, depth=2)
    config = fcompress.TrainConfig(epochs=8, lr=0.05, device="cpu")
    fcompress.save(fcompress.train(wide, splits, config).model, folder / "wide.pt")
    wide = fcompress.load(folder / "wide.pt")
    result = fcompress.shrink(wide, splits, tol=0.2, method="factor")
    fcompress.save(result.model, folder / "thin.pt")
    for network, name in ((wide, "wide"), (result.model, "thin")):
        for ending in ("onnx", "pt2", "safetensors"):
            fcompress.export(network, folder / f"{name}.{ending}", splits.test)
    quantize_dynamic(folder / "thin.onnx", folder / "quantised.onnx", weight_type=QuantType.QUInt8)
    return folder


@pytest.fixture(scope="module")
def wanted(files):
    """What the two networks of fcompress agree on."""
    return agreement("wide.pt", "thin.pt", files)


def agreement(one, other, files, *more):
    ran = run("verify", files / one, files / other, "--json", "-", *more)
    assert ran.exit_code == 0, ran.output
    return json.loads(ran.stdout)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("wide.pt", "thin.onnx"),
        ("wide.pt", "thin.pt2"),
        ("wide.pt", "thin.safetensors"),
        ("wide.onnx", "thin.pt"),
        ("wide.pt2", "thin.onnx"),
        ("wide.onnx", "thin.pt2"),
    ],
)
def test_verify_takes_programs_on_either_side(files, wanted, one, other):
    found = agreement(one, other, files, "--trust-pickle")
    assert (found["n"], found["same"], found["split"]) == (wanted["n"], wanted["same"], "test")
    assert found["accuracy"] == wanted["accuracy"] and found["data"] == wanted["data"]
    assert found["certificate"] == "holds"
    assert found["largest_difference"] == pytest.approx(wanted["largest_difference"], rel=1e-3)


def test_a_quantised_network_has_lost_its_certificate(files):
    ran = run("verify", files / "wide.pt", files / "quantised.onnx")
    assert ran.exit_code == 0, ran.output
    (line,) = [line for line in ran.stdout.splitlines() if line.startswith("The certificate in")]
    assert f"is void: {REWRITTEN}; measured afresh: at most " in line
    found = agreement("wide.pt", "quantised.onnx", files)
    assert found["certificate"] == f"void: {REWRITTEN}" and found["rate"] > 0.5
    shown = run("show", files / "quantised.onnx")
    assert f"certificate void: {REWRITTEN}" in shown.stdout
    assert "certified for" in run("show", files / "thin.onnx").stdout
    assert "certified for" in run("show", files / "thin.pt2").stdout


def test_verify_says_what_a_certificate_is_worth(files, tmp_path):
    assert agreement("wide.pt", "thin.pt", files)["certificate"] == "holds"
    assert "certificate in" not in run("verify", files / "wide.pt", files / "thin.pt").stdout
    other = fcompress.load(files / "wide.pt")
    with torch.no_grad():
        other.fc1.bias.add_(0.01)
    fcompress.save(other, tmp_path / "other.pt")
    found = agreement(tmp_path / "other.pt", "thin.pt", files)
    assert found["certificate"] == "about another original network than this one"
    tuned = fcompress.load(files / "thin.pt")
    with torch.no_grad():
        tuned.out.bias.add_(0.01)
    fcompress.save(tuned, tmp_path / "tuned.pt")
    assert agreement("wide.pt", tmp_path / "tuned.pt", files)["certificate"] == f"void: {CHANGED}"
    ran = run("verify", files / "wide.pt", tmp_path / "tuned.pt")
    assert f"is void: {CHANGED}; measured afresh: at most" in ran.stdout
    assert agreement("thin.pt", "wide.pt", files)["certificate"] is None


# --- in Python ----------------------------------------------------------------------------------


@functools.cache
def network_of(seed=0):
    """A trained network, which no test changes."""
    return trained(seed)


def exported(model):
    """A program for any number of examples."""
    return torch.export.export(
        model, (torch.zeros(2, 6),), dynamic_shapes=({0: torch.export.Dim("n")},)
    )


# The same network as callables of all kinds.
KINDS = {
    "function": lambda model: lambda x: model(x),
    "partial": lambda model: functools.partial(nn.Module.__call__, model),
    "array": lambda model: lambda x: model(x).detach().numpy(),
    "array in a list": lambda model: lambda x: [model(x).detach().numpy()],
    "tuple of one": lambda model: lambda x: (model(x),),
    "read-only array": lambda model: (
        lambda x: np.broadcast_to(model(x).detach().numpy(), (len(x), CLASSES))
    ),
    "logits": lambda model: lambda x: {"logits": model(x), "other": 3},
    "exported program": exported,
    "its module": lambda model: exported(model).module(),
    "script": torch.jit.script,
}


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("side", [0, 1])
def test_callables_on_either_side(kind, side):
    one, other = network_of(), network_of(1)
    x, y = examples(300, seed=5)
    expected = fcompress.verify(one, other, (x, y))
    pair = [one, other]
    pair[side] = KINDS[kind](pair[side])
    found = fcompress.verify(*pair, (x, y))
    assert (found.n, found.same, found.accuracy) == (300, expected.same, expected.accuracy)
    assert 0 < found.changed < 300
    assert found.largest_difference == pytest.approx(expected.largest_difference, rel=1e-5)


def test_callables_on_both_sides_in_single_precision():
    seen = []

    def scores(x):
        seen.append(x.dtype)
        return x.numpy()[:, :3]

    found = fcompress.verify(scores, scores, torch.randn(50, 6, dtype=torch.float64))
    assert found.changed == 0 and set(seen) == {torch.float32}


def test_networks_of_two_precisions_are_compared():
    model = network_of()
    found = fcompress.verify(model, copy.deepcopy(network_of()).half(), examples(300)[0])
    assert found.rate > 0.9 and found.largest_difference > 0


def test_a_single_output_is_the_one_that_is_asked_for():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = network_of()

        def forward(self, x):
            return {"embedding": x, "scores": self.inner(x)}

    network = Two()
    found = fcompress.verify(network, network.inner.__call__, examples(50)[0], output="scores")
    assert found.changed == 0 and found.n == 50


def test_what_cannot_be_called_is_refused(tmp_path):
    with pytest.raises(TypeError, match="open_program"):
        fcompress.verify(network_of(), "thin.onnx", examples(10)[0])
    with pytest.raises(FcompressError, match="outputs of shape"):
        fcompress.verify(network_of(), lambda x: x, examples(10)[0])
    with pytest.raises(UnsupportedNetworkError, match="<lambda> gives"):
        fcompress.verify(network_of(), lambda x: "yes", examples(10)[0])
    with pytest.raises(FcompressError, match="does not run on an example of shape"):
        fcompress.verify(network_of(), lambda x: 1 / 0, examples(10)[0])


def fixed(folder):
    """Programs of the network that take three examples at a time, by others' tools."""
    model, x = network_of(), torch.zeros(3, 6)
    torch.export.save(torch.export.export(model, (x,)), folder / "fixed.pt2")
    torch.onnx.export(model, (x,), folder / "fixed.onnx", dynamo=True, external_data=False,
                      verbose=False)  # fmt: skip
    return model


def test_programs_of_one_batch_size_take_any(tmp_path):
    model = fixed(tmp_path)
    x = examples(301)[0]
    for name in ("fixed.pt2", "fixed.onnx"):
        program = open_program(tmp_path / name, trust_pickle=True)
        torch.testing.assert_close(program(x), model(x), rtol=1e-4, atol=1e-4)
        found = fcompress.verify(program, model, x)
        assert (found.n, found.changed) == (301, 0)


# --- what is refused ----------------------------------------------------------------------------


def refused(*arguments):
    ran = run("verify", *arguments)
    assert ran.exit_code == 1 and ran.stderr.startswith("error: "), ran.output
    assert len(ran.stderr.strip().splitlines()) == 1
    return ran.stderr


def test_a_program_is_only_unpickled_when_it_is_trusted(files):
    message = refused(files / "wide.pt", files / "thin.pt2")
    assert "--trust-pickle" in message and "thin.pt2" in message
    with pytest.raises(CheckpointError, match="trust_pickle=True"):
        fcompress.open_program(files / "thin.pt2")


def test_only_archives_of_torch_export_are_opened(files, tmp_path):
    class Evil:
        def __reduce__(self):
            return (print, ("run",))

    (tmp_path / "pickle.pt2").write_bytes(pickle.dumps(Evil()))
    torch.jit.save(torch.jit.script(network_of()), tmp_path / "script.pt2")
    torch.save(network_of(), tmp_path / "module.pt2")
    (tmp_path / "empty.pt2").write_bytes(b"")
    (tmp_path / "text.onnx").write_text("no network")
    whole = (files / "thin.pt2").read_bytes()
    (tmp_path / "cut.pt2").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "cut.onnx").write_bytes((files / "thin.onnx").read_bytes()[:500])
    with (
        zipfile.ZipFile(files / "thin.pt2") as archive,
        zipfile.ZipFile(tmp_path / "compiled.pt2", "w") as copied,
    ):
        for name in archive.namelist():
            copied.writestr(name, archive.read(name))
        copied.writestr(f"{archive.namelist()[0].partition('/')[0]}/data/aotinductor/m/a.so", b"")
    names = ["pickle.pt2", "script.pt2", "module.pt2", "empty.pt2", "text.onnx", "cut.pt2",
             "cut.onnx", "compiled.pt2", "none.onnx", "none.pt2"]  # fmt: skip
    for name in names:
        message = refused(files / "wide.pt", tmp_path / name, "--trust-pickle")
        assert name in message, message


def test_tensors_outside_the_folder_are_not_read(tmp_path):
    fixed(tmp_path)
    folder = tmp_path / "model"
    folder.mkdir()
    proto = onnx.load(tmp_path / "fixed.onnx")
    onnx.save_model(proto, folder / "a.onnx", save_as_external_data=True, location="w.bin",
                    size_threshold=0)  # fmt: skip
    x = examples(3)[0]
    torch.testing.assert_close(open_program(folder / "a.onnx")(x), network_of()(x))
    (folder / "w.bin").rename(tmp_path / "w.bin")
    with pytest.raises(CheckpointError, match="not there"):
        open_program(folder / "a.onnx")
    (folder / "w.bin").symlink_to(tmp_path / "w.bin")
    with pytest.raises(CheckpointError, match="outside its folder"):
        open_program(folder / "a.onnx")
    proto = onnx.load(folder / "a.onnx", load_external_data=False)
    for place in ("../w.bin", str(tmp_path / "w.bin")):
        for tensor in proto.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = place
        (folder / "b.onnx").write_bytes(proto.SerializeToString())
        with pytest.raises(CheckpointError, match="outside its folder"):
            open_program(folder / "b.onnx")


def test_inputs_of_another_shape_are_one_line(files, tmp_path):
    fixed(tmp_path)
    for name in ("fixed.onnx", "fixed.pt2"):
        message = refused(files / "wide.pt", tmp_path / name, "--trust-pickle")
        assert f"{name}: does not run on inputs of shape" in message
    message = refused(tmp_path / "fixed.onnx", tmp_path / "fixed.onnx")
    assert "does not remember its data" in message


def test_programs_are_known_by_what_they_hold(files, tmp_path):
    (tmp_path / "renamed.pt").write_bytes((files / "thin.pt2").read_bytes())
    assert is_program(tmp_path / "renamed.pt")
    assert not is_program(files / "thin.pt") and not is_program(files / "thin.safetensors")
    found = agreement("wide.pt", tmp_path / "renamed.pt", files, "--trust-pickle")
    assert found["certificate"] == "holds"
    assert "--trust-pickle" in refused(files / "wide.pt", tmp_path / "renamed.pt")
