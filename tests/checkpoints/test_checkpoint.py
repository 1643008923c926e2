"""The file format: exact, safe, whole or not at all."""

import copy
import io
import math
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy
import pytest
import torch
from torch import nn

from fcompress.checkpoints import checkpoint
from fcompress.errors import CheckpointError, FcompressError
from fcompress.models import build, families
from fcompress.surgery.resizing import resize


def images(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=dtype)


def lived_in(network):
    """The network as if trained: no buffer is at its first value, the mode is evaluation."""
    network.train()
    for _ in range(2):
        network(images(4, *network.spec.input_shape))
    return network.eval()


def small(family, **args):
    size = 75 if family.startswith("inception") else 8
    if family != "inception_v3_layer":
        args = {"width": 0.2, **args}
    return lived_in(build(family, image_size=size, in_channels=3, classes=5, seed=2, **args))


def thin_alexnet():
    """An AlexNet whose convolutions and fc3 lost some units, with a bias on every layer."""
    network = small("alexnet")
    state = network.state_dict()
    first, second, third = torch.tensor([0, 3, 4, 9, 15]), torch.arange(0, 50, 2), torch.arange(40)
    columns = torch.arange(51 * 4).view(51, 4)[second].flatten()
    resize(
        network,
        {
            "conv1.weight": state["conv1.weight"][first],
            "conv1.bias": state["conv1.bias"][first],
            "lrn1.positions": first,
            "conv2.weight": state["conv2.weight"][second][:, first],
            "conv2.bias": state["conv2.bias"][second],
            "lrn2.positions": second,
            "fc3.weight": state["fc3.weight"][third][:, columns],
            "fc3.bias": state["fc3.bias"][third],
            "fc4.weight": state["fc4.weight"][:, third],
        },
    )
    return network


def thin_resnet():
    """A ResNet20 whose first block lost inner units and whose consumer got a bias."""
    network = small("resnet20")
    kept = torch.tensor([1])
    names = [f"layer1.0.bn1.{key}" for key in ("weight", "bias", "running_mean", "running_var")]
    state = network.state_dict()
    resize(
        network,
        {name: state[name][kept] for name in (*names, "layer1.0.conv1.weight")}
        | {
            "layer1.0.conv2.weight": state["layer1.0.conv2.weight"][:, kept],
            "layer1.0.conv2.bias": images(3),
        },
    )
    return network


def same_state(one, other):
    assert one.state_dict().keys() == other.state_dict().keys()
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name
        assert tensor.dtype == other.state_dict()[name].dtype, name


@pytest.fixture
def saved(tmp_path):
    """A file of a thin AlexNet."""
    path = tmp_path / "thin.pt"
    checkpoint.save(thin_alexnet(), path, data={"spec": "digits"}, history=[{"step": "shrink"}])
    return path


def content_of(path):
    return torch.load(path, weights_only=True)


def changed(path, tmp_path, change):
    """A file with the content of `path` after `change` worked on it."""
    content = content_of(path)
    change(content)
    torch.save(content, tmp_path / "changed.pt")
    return tmp_path / "changed.pt"


def error_of(path):
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load(path)
    message = str(caught.value)
    assert message.startswith(str(path)) and "\n" not in message
    return message


@pytest.mark.parametrize("family", list(families()))
def test_every_family_comes_back(family, tmp_path):
    network = small(family)
    checkpoint.save(network, tmp_path / "net.pt")
    loaded = checkpoint.load(tmp_path / "net.pt")
    same_state(network, loaded)
    assert not loaded.training and loaded.spec == network.spec
    assert loaded.origin == {"data": None, "history": []}
    x = images(3, *network.spec.input_shape)
    assert torch.equal(loaded(x), network(x))
    assert all(parameter.requires_grad for parameter in loaded.parameters())


@pytest.mark.parametrize("make", [thin_alexnet, thin_resnet])
@pytest.mark.parametrize(
    "dtype", [torch.float32, pytest.param(torch.float64, marks=pytest.mark.slow)]
)
def test_thin_network_is_bit_identical_in_a_fresh_process(make, dtype, tmp_path):
    network = make().to(dtype)
    x = images(3, 3, 8, 8, dtype=dtype)
    checkpoint.save(network, tmp_path / "thin.pt", data={"spec": "x"}, history=["a"])
    torch.save(x, tmp_path / "x.pt")
    script = (
        "import sys, torch\n"
        "from fcompress.checkpoints import checkpoint\n"
        "network = checkpoint.load('thin.pt')\n"
        "assert network.origin == {'data': {'spec': 'x'}, 'history': ['a']}\n"
        "torch.save(network(torch.load('x.pt')).detach(), 'y.pt')\n"
        "print(repr(network))\n"
    )
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    y = torch.load(tmp_path / "y.pt")
    assert y.dtype == dtype and torch.equal(y, network(x))
    assert ran.stdout.strip() == repr(network)


def test_layout(saved):
    content = content_of(saved)
    assert set(content) == {"format", "version", "family", "args", "widths", "state", "data",
                            "history", "versions"}  # fmt: skip
    assert (content["format"], content["version"]) == ("fcompress", 1)
    assert content["family"] == "alexnet" and content["args"]["width"] == 0.2
    assert content["widths"] == {"conv1": [5, 3], "conv2": [25, 5], "fc3": [40, 100],
                                 "fc4": [38, 40], "fc5": [5, 38]}  # fmt: skip
    assert set(content["versions"]) == {"fcompress", "torch", "python"}
    record = checkpoint.read(saved)
    assert record.data == {"spec": "digits"} and record.history == [{"step": "shrink"}]


def test_origin_is_kept_when_saved_again(saved, tmp_path):
    network = copy.deepcopy(checkpoint.load(saved))
    checkpoint.save(network, tmp_path / "again.pt")
    assert checkpoint.load(tmp_path / "again.pt").origin == {
        "data": {"spec": "digits"},
        "history": [{"step": "shrink"}],
    }


def test_saving_changes_neither_the_network_nor_global_state(tmp_path):
    network = thin_alexnet().train()
    before, state = copy.deepcopy(network), torch.get_rng_state()
    checkpoint.save(network, tmp_path / "net.pt")
    checkpoint.load(tmp_path / "net.pt")
    same_state(network, before)
    assert network.training and torch.equal(torch.get_rng_state(), state)


def test_views_are_saved_without_the_rest_of_their_storage(tmp_path):
    network = build("mlp", in_features=4, hidden=4, classes=2)
    resize(network, {"fc1.weight": torch.randn(1000, 4)[:4], "out.bias": torch.randn(5000)[2:4]})
    checkpoint.save(network, tmp_path / "net.pt")
    assert (tmp_path / "net.pt").stat().st_size < 8000
    same_state(network, checkpoint.load(tmp_path / "net.pt"))


def test_not_a_number_is_allowed(tmp_path):
    network = build("mlp", in_features=4, classes=2)
    with torch.no_grad():
        network.fc1.weight[0, 0] = math.nan
    checkpoint.save(network, tmp_path / "net.pt")
    assert checkpoint.load(tmp_path / "net.pt").fc1.weight.isnan().sum() == 1


def test_checksums_do_not_follow_the_setting_of_the_process(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        checkpoint.save(build("mlp", in_features=4), tmp_path / "net.pt")
        assert not torch.serialization.get_crc32_options()
    finally:
        torch.serialization.set_crc32_options(True)
    checkpoint.load(tmp_path / "net.pt")


def test_missing_file_and_folder(tmp_path):
    assert "there is no such file" in error_of(tmp_path / "none.pt")
    assert "cannot be read: Is a directory" in error_of(tmp_path)


@pytest.mark.parametrize("share", [0.0, 0.0001, 0.02, 0.3, 0.7, 0.99, 0.99999])
def test_truncated(saved, share):
    whole = saved.read_bytes()
    saved.write_bytes(whole[: int(share * len(whole))])
    message = error_of(saved)
    assert "is empty" in message or "not a file written" in message or "truncated" in message
    if share > 0.01:
        assert "truncated" in message


@pytest.mark.parametrize("part", [b"archive/data/0", b"archive/data.pkl"])
def test_one_flipped_bit(saved, part):
    whole = bytearray(saved.read_bytes())
    whole[whole.index(part) + 200] ^= 1
    saved.write_bytes(whole)
    assert "damaged" in error_of(saved)


def test_foreign_files(tmp_path):
    path = tmp_path / "file.pt"
    path.write_text("PK? no, a text")
    assert "not a file written by fcompress" in error_of(path)
    torch.save(nn.Linear(2, 2).state_dict(), path)
    assert "a state dict needs its architecture: --arch" in error_of(path)
    torch.save(torch.ones(2), path)
    assert "holds no network of fcompress" in error_of(path)
    torch.save({"format": "fcompress", "version": 1}, path, _use_new_zipfile_serialization=False)
    assert "not a file written by fcompress" in error_of(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("word/document.xml", "<xml/>")
    assert "is a zip archive, but not one written by fcompress" in error_of(path)


def test_newer_version(saved, tmp_path):
    message = error_of(changed(saved, tmp_path, lambda content: content.update(version=5)))
    assert "format version 5, newer than 4; upgrade fcompress" in message
    assert "damaged" in error_of(changed(saved, tmp_path, lambda c: c.update(version="1")))


class Hostile:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("where", ["all", "data", "state"])
def test_hostile_pickle_never_runs(where, saved, tmp_path):
    trap = Hostile(tmp_path / "ran")
    content = trap if where == "all" else {**content_of(saved), where: trap}
    path = tmp_path / "hostile.pt"
    torch.save(content, path)
    assert "could run code when opened" in error_of(path)
    path.write_bytes(pickle.dumps(content))
    assert "not a file written by fcompress" in error_of(path)
    assert not trap.path.exists()
    pickle.loads(pickle.dumps(trap))  # the trap itself works
    assert trap.path.exists()


def test_whole_module_is_not_opened(tmp_path):
    torch.save(nn.Linear(2, 2), tmp_path / "module.pt")
    assert "could run code" in error_of(tmp_path / "module.pt")


def rezip(source, target, edit, packed=False):
    """Copy an archive entry by entry; `edit` maps (name, bytes) to bytes."""
    method = zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", method) as new:
        for name in old.namelist():
            new.writestr(name, edit(name, old.read(name)))


def test_sizes_are_checked_before_anything_is_allocated(saved, tmp_path):
    path = tmp_path / "bomb.pt"
    rezip(saved, path, lambda name, data: data)
    checkpoint.load(path)  # copying alone is fine
    # A packed entry of zeros would unfold to a thousand times the size of the file.
    rezip(saved, path, lambda name, data: data + bytes(10**7), packed=True)
    assert "is a zip archive, but not one written by fcompress" in error_of(path)
    # conv1.bias has 5 values, written as K\x05: say 2^31 - 1 instead.
    claimed = b"J\xff\xff\xff\x7f"
    rezip(saved, path, lambda name, data: data.replace(b"K\x05tq", claimed + b"tq"))
    assert "damaged" in error_of(path)


def drop(key):
    return lambda content: content["state"].pop(key)


def put(key, **changes):
    return lambda content: content[key].update(
        {k.replace("__", "."): v for k, v in changes.items()}
    )


NEST: list = []
for _ in range(200):
    NEST = [NEST]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop("fc4.bias"), "state: 'fc4.bias' is missing"),
        (drop("lrn1.positions"), "state: 'lrn1.positions' is missing"),
        (put("state", extra=torch.ones(1)), "state: 'extra' is not part of alexnet"),
        (put("state", conv1__scale=torch.ones(1)), "state: 'conv1.scale' is not part of"),
        (put("state", fc4__bias=torch.ones(7)), "Linear fc4: its bias has shape [7]"),
        (put("state", fc4__bias=torch.ones(38, 1)), "state: 'fc4.bias' is float32 [38, 1]"),
        (put("state", fc4__bias=torch.ones(38).int()), "state: 'fc4.bias' is int32 [38]"),
        (put("state", conv1__weight=torch.ones(5, 3, 3, 3)), "'conv1.weight' is float32 [5, 3, 3"),
        (put("state", fc4__bias=[1.0]), "state: 'fc4.bias' is not a dense tensor"),
        (put("state", fc4__bias=torch.ones(1).expand(38)), "'fc4.bias' is not a dense tensor"),
        (put("state", fc4__bias=nn.Parameter(torch.ones(38))), "'fc4.bias' is not a dense tensor"),
        (put("state", fc4__weight=torch.ones(38, 39)), "widths: 'fc4' is said to be [38, 40]"),
        (put("widths", fc4=[38, 41]), "widths: 'fc4' is said to be [38, 41]"),
        (put("widths", fc9=[1, 1]), "widths: 'fc9' is said to be [1, 1], but its tensors are None"),
        (put("widths", fc4=38), "widths: 'fc4' must be [units out, units in]"),
        (lambda c: c["widths"].pop("fc4"), "widths: 'fc4' is said to be None"),
        (lambda c: c.update(family="alexnt"), "no network family 'alexnt'; did you mean 'alexnet'"),
        (lambda c: c.update(family="resnet20"), "resnet20 has no argument 'dropout'"),
        (lambda c: c.update(family=None), "family must be a str"),
        (put("args", width=-1), "width must be a number above 0"),
        (put("args", width=1e300), "alexnet: a network of this size cannot be built"),
        (put("args", seed=1), "args: seed and family are not arguments"),
        (put("args", image_size=32), "its layers do not fit each other"),
        (put("args", classes=6), "logits of shape [5], expected 6"),
        (lambda c: c.update(history={}), "history must be a list"),
        (lambda c: c.update(data=[1]), "data must be a dict or None"),
        (lambda c: c.pop("data"), "data must be a dict or None"),
        (lambda c: c.update(data={"a": {1: 2}}), "data['a'] has the key 1; expected a str"),
        (lambda c: c.update(history=NEST), "nests deeper than"),
        (lambda c: c.update(history=[[0] * 1000] * 2000), "holds more than 1000000 values"),
        (lambda c: c.update(history=[torch.ones(1)]), "history[0] is a Tensor"),
        (lambda c: c["state"].update({"lrn1.positions": torch.arange(4)}), "do not fit each other"),
    ],
)  # fmt: skip
def test_content_that_does_not_fit(change, message, saved, tmp_path):
    assert message in error_of(changed(saved, tmp_path, change))


def test_layers_that_do_not_fit_each_other(tmp_path):
    checkpoint.save(thin_resnet(), tmp_path / "thin.pt")

    def change(content):
        content["state"]["layer1.0.conv2.weight"] = torch.ones(3, 2, 3, 3)
        content["widths"]["layer1.0.conv2"] = [3, 2]

    message = error_of(changed(tmp_path / "thin.pt", tmp_path, change))
    assert "its layers do not fit each other" in message


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"data": {"root": Path("x")}}, "data['root'] is a PosixPath"),
        ({"history": [{"loss": numpy.float64(0.5)}]}, "history[0]['loss'] is a float64"),
        ({"history": [{"seed": numpy.int64(5)}]}, "history[0]['seed'] is a int64"),
    ],
)
def test_only_plain_values_are_saved(given, message, tmp_path):
    with pytest.raises(CheckpointError) as caught:
        checkpoint.save(build("mlp", in_features=2), tmp_path / "net.pt", **given)
    assert message in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_network_that_could_not_be_loaded_is_not_saved(tmp_path):
    with pytest.raises(CheckpointError, match="a dict cannot be saved; expected a network"):
        checkpoint.save(dict(nn.Linear(2, 2).state_dict()), tmp_path / "net.pt")
    network = build("mlp", in_features=2)
    network.extra = nn.Linear(2, 2)
    with pytest.raises(CheckpointError, match=r"'extra\.weight' is not part of mlp"):
        checkpoint.save(network, tmp_path / "net.pt")
    with pytest.raises(FcompressError, match="there is no folder"):
        checkpoint.save(build("mlp", in_features=2), tmp_path / "none" / "net.pt")
    assert list(tmp_path.iterdir()) == []


def test_failure_while_writing_keeps_the_old_file(saved, monkeypatch):
    before = saved.read_bytes()

    def fail(content, file):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(build("mlp", in_features=2), saved)
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


def test_opens_with_torch_alone(saved):
    content = torch.load(io.BytesIO(saved.read_bytes()), weights_only=True)
    assert content["state"]["conv1.weight"].shape == (5, 3, 5, 5)
