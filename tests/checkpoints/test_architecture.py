"""Architectures of other people: built by name, saved thin, loaded again without running code."""

import subprocess
import sys

import pytest
import torch
from torch import nn

import fcompress
from fcompress.checkpoints.checkpoint import read
from fcompress.errors import ArchitectureError, CheckpointError
from fcompress.forward.predictor import Predictor
from fcompress.models.external import Architecture, build_network, parse_args
from fcompress.models.provenance import Described, describe, origin_of
from fcompress.structure.groups import find_groups
from fcompress.surgery.excision import excise
from fcompress.surgery.preparation import prepare

CODE = """
import torch
from torch import nn
import beside

class Net(nn.Module):
    def __init__(self, classes=4, width=8):
        super().__init__()
        self.conv = nn.Conv2d(1, width, 3, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.lrn = nn.LocalResponseNorm(3, alpha=0.5)
        self.head = nn.Linear(width, classes)
        self.register_buffer("scale", torch.tensor(2.0), persistent=False)

    def forward(self, x):
        return self.scale * self.head(self.lrn(self.norm(self.conv(x)).relu()).mean((2, 3)))

def make(classes=4):
    return Net(classes)

def broken():
    raise KeyError("no")

def number():
    return 3

four = 4
"""


@pytest.fixture
def code(tmp_path):
    (tmp_path / "beside.py").write_text("")
    (tmp_path / "nets.py").write_text(CODE)
    return tmp_path / "nets.py"


def thinner(model, x):
    wide = prepare(model, x).eval()
    groups = find_groups(wide, x).groups
    assert groups
    return excise(wide, groups, {g.name: torch.arange(0, g.size, 2) for g in groups}).eval()


def inputs(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("name", ["torchvision:shufflenet_v2_x0_5", "torchvision:squeezenet1_1"])
def test_a_thin_registered_network_comes_back_bit_for_bit(name, tmp_path):
    architecture = Architecture(name, {"num_classes": 5})
    model = build_network(architecture)
    describe(model, Described(architecture, {"spec": "x"}, ("made",)))
    x = inputs(2, 3, 64, 64)
    thin = thinner(model, x)
    fcompress.save(thin, tmp_path / "thin.pt")
    loaded = fcompress.load(tmp_path / "thin.pt")
    assert torch.equal(loaded(x), thin(x)) and not loaded.training
    assert origin_of(loaded) == {"data": {"spec": "x"}, "history": ["made"]}
    assert read(tmp_path / "thin.pt").architecture == architecture
    assert sum(map(torch.numel, loaded.parameters())) < sum(map(torch.numel, model.parameters()))


def test_own_code_has_to_be_named_again(code, tmp_path, monkeypatch):
    name = f"{code}:make"
    architecture = Architecture(name, {"classes": 3})
    model = build_network(architecture)
    describe(model, Described(architecture))
    x = inputs(4, 1, 6, 6)
    thin = thinner(model, x)
    fcompress.save(thin, tmp_path / "thin.pt")
    monkeypatch.setattr("fcompress.models.external._of_code", lambda *_: pytest.fail("imported"))
    with pytest.raises(CheckpointError, match="no file of fcompress holds code; name the code"):
        fcompress.load(tmp_path / "thin.pt")
    monkeypatch.undo()
    for arch in (name, lambda: build_network(architecture)):
        assert torch.equal(fcompress.load(tmp_path / "thin.pt", arch=arch)(x), thin(x))
    with pytest.raises(CheckpointError, match=r"state: .*expected at most"):
        fcompress.load(tmp_path / "thin.pt", arch=name, arch_args={"classes": 2})


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x):
        return {"logits": self.two(self.one(x).relu()), "features": x}


def test_a_class_without_any_name_is_loaded_with_its_code(tmp_path):
    x = inputs(4, 6)
    thin = thinner(Plain(), x)
    fcompress.save(thin, tmp_path / "thin.pt")
    with pytest.raises(CheckpointError, match="Plain"):
        fcompress.load(tmp_path / "thin.pt")
    loaded = fcompress.load(tmp_path / "thin.pt", arch=Plain)
    assert torch.equal(Predictor(loaded).scores(x), Predictor(thin).scores(x))
    assert loaded.one.out_features == 4


def test_building_leaves_the_random_state_alone(code):
    before = torch.get_rng_state()
    build_network(Architecture(f"{code}:Net"))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("torchvision:resnet81", {}, "did you mean resnet18"),
        ("torchvision:resnet18", {"weights": "DEFAULT"}, "'weights' would fetch"),
        ("torchvision:resnet18", {"nonsense": 1}, "check the arguments"),
        ("timm:hf-hub:someone/net", {}, "timm"),
        ("nothing", {}, "expected torchvision:NAME"),
        ("no.such.module:f", {}, "cannot be imported"),
        ("no/such/file.py:f", {}, "there is no file"),
        ("{code}:nix", {}, "has no 'nix'; it has: Net, broken, make, number"),
        ("{code}:broken", {}, "KeyError: 'no'"),
        ("{code}:number", {}, "gives a int"),
        ("{code}:four", {}, "is a int"),
        ("{code}:make", {"width": 3}, "TypeError"),
        ("pickle:wide.pt", {}, "--trust-pickle"),
    ],
)
def test_mistakes(code, name, args, message):
    with pytest.raises(ArchitectureError) as caught:
        build_network(Architecture(name.format(code=code), args))
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["[1]", "{", "3"])
def test_arguments_are_a_json_object(text):
    with pytest.raises(ArchitectureError, match="JSON"):
        parse_args(text)


def test_a_hostile_file_builds_nothing_large(tmp_path):
    architecture = Architecture("torchvision:squeezenet1_1", {"num_classes": 5})
    model = build_network(architecture)
    describe(model, Described(architecture))
    fcompress.save(model, tmp_path / "net.pt")

    def error(**changes):
        content = torch.load(tmp_path / "net.pt", weights_only=True)
        torch.save({**content, **changes}, tmp_path / "bad.pt")
        with pytest.raises(CheckpointError) as caught:
            fcompress.load(tmp_path / "bad.pt")
        return str(caught.value)

    assert "more than" in error(args={"num_classes": 10**12})
    assert "the code again" in error(family="os:system", args={"command": "true"})
    assert "numbers" in error(numbers={"features": {"heads": 10**9}})
    assert "would fetch" in error(args={"weights": "DEFAULT"})


def test_nothing_of_the_user_is_imported_in_another_process(code, tmp_path):
    architecture = Architecture("beside:make", {})
    model = Plain()
    describe(model, Described(architecture))
    fcompress.save(model, tmp_path / "net.pt")
    (tmp_path / "beside.py").write_text("raise SystemExit('imported')")
    script = "import fcompress\ntry: fcompress.load('net.pt')\nexcept Exception as e: print(e)"
    ran = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0 and "name the code again" in ran.stdout
