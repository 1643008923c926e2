"""Exports: run where fcompress cannot be imported, checked before they are kept."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cases.trained import examples, trained, weights_of
from click.testing import CliRunner
from torch import nn
from torch.nn import functional as F

import fcompress
from fcompress.cli import main
from fcompress.errors import FcompressError, ToleranceError, UnsupportedNetworkError
from fcompress.exports import exporting
from fcompress.exports.exporting import FORMATS as ENDINGS
from fcompress.exports.exporting import export
from fcompress.models import build, families
from fcompress.nn.local_response_norm import FixedLocalResponseNorm, LocalResponseNorm
from fcompress.programs import files as programs

# A .json is for cascades (test_pairs.py).
FORMATS = [ending for ending in ENDINGS if ending not in (".json", "/")]
# A process in which nothing can import this package, wherever it is installed.
WITHOUT = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "fcompress":
            raise ImportError("fcompress is not to be imported here")
sys.meta_path.insert(0, Refuse())
import torch
x = torch.load("x.pt")
with torch.no_grad():
    y = run(sys.argv[1], x)
assert not any(name.partition(".")[0] == "fcompress" for name in sys.modules)
torch.save(y, "y.pt")
"""
RUN = {
    ".pt2": "def run(path, x):\n"
    "    network = torch.export.load(path).module()\n"
    "    return torch.cat([network(x[:1]), network(x[1:])])\n",
    ".onnx": "def run(path, x):\n"
    "    import onnxruntime\n"
    "    session = onnxruntime.InferenceSession(path)\n"
    "    parts = [session.run(['logits'], {'input': part.numpy()})[0] for part in (x[:1], x[1:])]\n"
    "    return torch.cat([torch.from_numpy(part) for part in parts])\n",
    ".safetensors": "def run(path, x):\n"
    "    import json, struct\n"
    "    content = open(path, 'rb').read()\n"
    "    end = 8 + struct.unpack('<Q', content[:8])[0]\n"
    "    header = json.loads(content[8:end])\n"
    "    widths = json.loads(header['__metadata__']['fcompress'])['widths']\n"
    "    def tensor(name):\n"
    "        start, stop = header[name]['data_offsets']\n"
    "        values = torch.frombuffer(bytearray(content[end + start:end + stop]),"
    " dtype=torch.float32)\n"
    "        return values.view(header[name]['shape'])\n"
    "    x = x.flatten(1)\n"
    "    for name in ('fc1', 'fc2', 'out'):\n"
    "        assert list(tensor(name + '.weight').shape) == widths[name]\n"
    "        x = torch.nn.functional.linear(x, tensor(name + '.weight'), tensor(name + '.bias'))\n"
    "        x = x if name == 'out' else x.relu()\n"
    "    return x\n",
}


@pytest.fixture(scope="module")
def shrunk(tmp_path_factory):
    """A network trained on digits, and what a real shrink made of it, with its exports."""
    folder = tmp_path_factory.mktemp("shrunk")
    splits = fcompress.load_data("digits")
    wide = build("mlp", in_channels=1, image_size=8, classes=10, width=1.0, depth=2)
    config = fcompress.TrainConfig(epochs=12, lr=0.05, device="cpu")
    fcompress.save(fcompress.train(wide, splits, config).model, folder / "wide.pt")
    exports = [a for ending in FORMATS for a in ("--export", folder / f"thin{ending}")]
    ran = _run("shrink", folder / "wide.pt", "--tol", 0.15, "--method", "factor", "--out",
               folder / "thin.pt", *exports)  # fmt: skip
    assert ran.exit_code == 0, ran.output
    for ending in FORMATS:
        assert re.search(rf"Written: \S+thin\{ending} \(", ran.stdout)
    return folder


def _run(*arguments):
    return CliRunner().invoke(main, [str(a) for a in arguments])


def elsewhere(path, x):
    """What a file gives in a process that cannot import this package."""
    torch.save(x, path.parent / "x.pt")
    script = RUN[path.suffix] + WITHOUT
    subprocess.run(
        [sys.executable, "-I", "-c", script, path], cwd=path.parent, check=True, timeout=300
    )
    return torch.load(path.parent / "y.pt")


@pytest.mark.parametrize("ending", list(FORMATS))
def test_runs_where_fcompress_cannot_be_imported(shrunk, ending):
    thin = fcompress.load(shrunk / "thin.pt")
    x = fcompress.load_data("digits").test.batch(torch.arange(50))[0]
    with torch.no_grad():
        expected = thin(x)
    found = elsewhere(shrunk / f"thin{ending}", x)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(found.argmax(1), expected.argmax(1))
    # The negative control: another network's outputs are not close.
    with torch.no_grad():
        other = fcompress.load(shrunk / "wide.pt")(x)
    assert not torch.allclose(found, other, rtol=1e-2, atol=1e-2)


def test_safetensors_load_as_the_network(shrunk):
    thin, again = (fcompress.load(shrunk / f"thin.{e}") for e in ("pt", "safetensors"))
    assert weights_of(thin) == weights_of(again)
    assert again.spec == thin.spec and again.origin == thin.origin


def test_the_same_export_has_the_same_bytes(shrunk, tmp_path):
    for ending in FORMATS:
        ran = _run("export", shrunk / "thin.pt", "--to", tmp_path / f"a{ending}")
        assert ran.exit_code == 0, ran.output
        before = (shrunk / f"thin{ending}").read_bytes()
        assert (tmp_path / f"a{ending}").read_bytes() == before, ending


def test_files_say_nothing_of_this_machine(shrunk):
    root = str(Path(fcompress.__file__).parent).encode()
    for ending in FORMATS:
        assert root not in (shrunk / f"thin{ending}").read_bytes(), ending


def small(family):
    """A network with statistics of its own, so that normalisations are not the identity."""
    size = {"inception_v3": 75, "inception_v3_layer": 75}.get(family, 32)
    width = {} if family == "inception_v3_layer" else {"width": 0.1}
    model = build(family, image_size=size, in_channels=3, classes=5, seed=1, **width)
    generator = torch.Generator().manual_seed(2)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            shape = module.running_mean.shape
            module.running_mean.copy_(torch.randn(shape, generator=generator) * 0.1)
            module.running_var.copy_(torch.rand(shape, generator=generator) + 0.5)
    if family == "alexnet":  # as after excision: the channels left stand apart
        for norm in (model.lrn1, model.lrn2):
            norm.positions += torch.arange(len(norm.positions)) // 3
    return model.eval()


@pytest.mark.parametrize("family", ["alexnet", "resnet20"])  # all of them below, slowly
def test_families_as_programs(family, tmp_path):
    model = small(family)
    x = torch.randn(3, *model.spec.input_shape, generator=torch.Generator().manual_seed(3))
    result = export(model, tmp_path / "net.pt2", x)
    assert result.n == result.same == 3
    with torch.no_grad():
        assert result.largest_difference <= 1e-5 * max(1.0, float(model(x).abs().max()))


@pytest.mark.slow
@pytest.mark.parametrize("family", list(families()))
def test_every_family_everywhere(family, tmp_path):
    model = small(family)
    x = torch.randn(5, *model.spec.input_shape, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        expected = model(x)
    for ending in (".pt2", ".onnx"):
        export(model, tmp_path / f"net{ending}", x)
        found = elsewhere(tmp_path / f"net{ending}", x)
        scale = float(expected.abs().max())
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * scale)


@pytest.mark.parametrize("gap", [0, 1, 7])
def test_fixed_normalisation_equals_the_one_with_positions(gap):
    norm = LocalResponseNorm(5, 0.1, 0.75, 2.0, 9)
    norm.positions += gap * (torch.arange(9) // 4)
    x = torch.randn(2, 9, 4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(FixedLocalResponseNorm(norm)(x), norm(x))


class Foreign(nn.Module):
    """A network that fcompress has no name for."""

    def __init__(self):
        super().__init__()
        self.body = trained()

    def forward(self, x):
        return self.body(x)


@pytest.mark.parametrize("ending", list(FORMATS))
def test_networks_that_are_nobodys(ending, tmp_path):
    model, (x, y) = Foreign().train(), examples(200, seed=9)
    before, state = weights_of(model), torch.get_rng_state()
    result = export(model, tmp_path / f"net{ending}", [(x, y)], original=model.body, tol=0.0)
    assert weights_of(model) == before and model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert (result.n, result.same) == (200, 200)
    assert result.agreement.rate == 1 and result.agreement.accuracy["after"] > 0.9
    assert result.bytes == (tmp_path / f"net{ending}").stat().st_size
    assert json.loads(json.dumps(result.to_dict()))["format"] == ending
    found = fcompress.describe_file(tmp_path / f"net{ending}")
    assert found.family is None and found.widths["body.0"] == [24, 6]
    assert found.params == sum(p.numel() for p in model.parameters())


def test_examples_are_bounded_and_of_any_batch(tmp_path):
    x = examples(500)[0]
    assert export(trained(), tmp_path / "a.pt2", x, examples=130).n == 130
    assert export(trained(), tmp_path / "a.pt2", x[:1]).n == 1
    assert export(trained(), tmp_path / "a.pt2", [x[:3], x[3:4]]).n == 4


@pytest.mark.parametrize("ending", list(FORMATS))
def test_a_file_that_differs_is_not_kept(ending, tmp_path, monkeypatch):
    path = tmp_path / f"net{ending}"
    path.write_bytes(b"what was there")
    opener = {".pt2": "run_program", ".onnx": "run_onnx"}.get(ending)
    where = exporting if opener is None else programs
    opened = getattr(where, opener or "_run_weights")

    def off(*arguments):
        run = opened(*arguments)
        return lambda x: run(x) * 1.01

    monkeypatch.setattr(where, opener or "_run_weights", off)
    with pytest.raises(ToleranceError, match="differs from the network by"):
        export(trained(), path, examples(50)[0])
    assert path.read_bytes() == b"what was there"
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_file_that_breaks_the_promise_is_not_kept(tmp_path):
    with pytest.raises(ToleranceError, match="labels of the original network, more than"):
        export(trained(0), tmp_path / "a.pt2", examples(200)[0], original=_other(), tol=0.001)
    assert not list(tmp_path.iterdir())
    found = export(trained(0), tmp_path / "a.pt2", examples(200)[0], original=_other())
    assert found.tolerance is None and found.agreement.rate < 0.999


def _other():
    return trained(seed=3)


class Bound(nn.Module):
    """Its code knows one size of batch only."""

    def forward(self, x):
        return x.view(2, 6)[:, :3] * 2


class Branching(nn.Module):
    """Its path depends on the values."""

    def forward(self, x):
        return x[:, :2] if float(x.sum()) > 0 else x[:, 1:3]


class Nms(nn.Module):
    """Uses an operator of torchvision."""

    def forward(self, x):
        import torchvision

        kept = torchvision.ops.nms(x[:, :4], x[:, 0], 0.5)
        return x[:, :2] + F.one_hot(kept[:1] * 0, 2)


@pytest.mark.parametrize("model", [Bound(), Branching(), Nms()])
def test_what_cannot_be_a_program_is_said_in_one_line(model, tmp_path, capfd):
    x = examples(2)[0]
    with pytest.raises(UnsupportedNetworkError) as caught:
        export(model, tmp_path / "a.pt2", x)
    assert "\n" not in str(caught.value) and "save it as .safetensors" in str(caught.value)
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr().err == ""


def test_without_onnx_it_is_said_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(FcompressError, match=r"pip install 'fcompress\[onnx\]'"):
        export(trained(), tmp_path / "a.onnx", examples(2)[0])
    export(trained(), tmp_path / "a.pt2", examples(2)[0])


def test_onnx_refuses_a_type_that_its_runtime_lacks(tmp_path):
    with pytest.raises(FcompressError, match="a network in bfloat16 does not run"):
        export(trained().bfloat16(), tmp_path / "a.onnx", examples(2)[0])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_other_precisions(dtype, tmp_path):
    for ending in FORMATS:
        found = export(trained().to(dtype), tmp_path / f"a{ending}", examples(20)[0])
        assert found.largest_difference <= found.allowed_difference


# --- the commands -------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [".pt", *FORMATS])
def test_show_says_what_was_done(shrunk, ending):
    ran = _run("show", shrunk / f"thin{ending}")
    assert ran.exit_code == 0, ran.output
    text = " ".join(ran.stdout.split())
    assert "mlp (width=1.0" in text
    assert "certified for a tolerance of 15.0%" in text
    assert "with 95% confidence at most" in text
    assert "trained for 12 epochs" in text
    record = json.loads(_run("show", shrunk / f"thin{ending}", "--json", "-").stdout)
    thin = fcompress.load(shrunk / "thin.pt")
    assert record["widths"]["fc1"] == [thin.fc1.out_features, 64]
    assert record["wide"]["fc1"] == [128, 64]
    assert record["params"] == sum(p.numel() for p in thin.parameters())
    assert record["history"] == thin.origin["history"]
    assert f"{record['params']:,} parameters" in text


def test_show_knows_the_files_of_others(tmp_path):
    torch.save({"model": trained().state_dict(), "epoch": 3}, tmp_path / "state.pt")
    torch.save(trained(), tmp_path / "module.pt")
    torch.jit.save(torch.jit.trace(trained(), examples(2)[0]), tmp_path / "script.pt")
    program = torch.export.export(trained(), (examples(2)[0],))
    torch.export.save(program, tmp_path / "program.pt2")
    for name, kind, words in (
        ("state.pt", "state dict", "under 'model'"),
        ("module.pt", "pickle", "torch.nn.modules.container.Sequential"),
        ("script.pt", "torchscript", "no longer be changed"),
        ("program.pt2", "program", "not written by fcompress"),
    ):
        found = fcompress.describe_file(tmp_path / name)
        assert found.kind == kind and words in " ".join(found.notes), name
        assert _run("show", tmp_path / name).exit_code == 0
    (tmp_path / "text").write_text("no network")
    for name in ("text", "none"):
        ran = _run("show", tmp_path / name)
        assert ran.exit_code == 1 and ran.stderr.startswith("error: ")
        assert len(ran.stderr.splitlines()) == 1


def test_export_command_compares_with_the_wide_network(shrunk, tmp_path):
    target = tmp_path / "a.safetensors"
    ran = _run("export", shrunk / "thin.pt", "--to", target, "--wide", shrunk / "wide.pt",
               "--json", "-")  # fmt: skip
    assert ran.exit_code == 0, ran.output
    (record,) = json.loads(ran.stdout)
    history = fcompress.load(shrunk / "thin.pt").origin["history"][-1]
    # The examples of the certificate: the file changes what the certificate says.
    assert record["agreement"]["n"] == history["agreement"]["n"] == 300
    assert record["agreement"]["same"] == history["agreement"]["same"]
    assert record["tolerance"] == 0.15


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{f}/thin.pt", "--to", "{t}/a.tflite"], "unknown format"),
        (["{t}/none.pt", "--to", "{t}/a.pt2"], "there is no such file"),
        (["{f}/thin.pt", "--to", "{t}/a.pt2", "--data", "gaussian:9"], "choose data of that"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(shrunk, tmp_path, arguments, message):
    ran = _run("export", *(a.format(f=shrunk, t=tmp_path) for a in arguments))
    assert ran.exit_code == 1, ran.output
    assert message in ran.stderr.splitlines()[-1]
    assert "Traceback" not in ran.output
    assert not list(tmp_path.iterdir())
