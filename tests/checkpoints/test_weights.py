"""Weights of other people's networks: every usual wrapper, and nothing run that a file holds."""

import pickle

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from fcompress.checkpoints.weights import load_weights, read_weights
from fcompress.errors import CheckpointError


class Net(nn.Module):
    def __init__(self, classes=3):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.head = nn.Linear(4, classes)

    def forward(self, x):
        return self.head(self.features(x).mean((2, 3)))


def net(seed=0, **args):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = Net(**args).train()
        made(torch.randn(4, 1, 5, 5))  # so that the statistics are not those of a fresh network
        return made.eval()


def prefixed(prefix, state):
    return {prefix + name: tensor for name, tensor in state.items()}


STATE = net().state_dict()
WRAPPED = {
    "plain": STATE,
    "state_dict": {"state_dict": STATE, "epoch": 3, "best": 0.5},
    "model": {"model": STATE, "optimizer": {"lr": 0.1}},
    "model_state_dict": {"model_state_dict": STATE, "rng": torch.get_rng_state()},
    "twice": {"model": {"state_dict": STATE}},
    "parallel": {"state_dict": prefixed("module.", STATE)},
    "compiled": prefixed("_orig_mod.", STATE),
    "both": prefixed("_orig_mod.module.", STATE),
    "compiled inside": {n.replace("features.", "features._orig_mod."): t for n, t in STATE.items()},
    "averaged": {**prefixed("module.", STATE), "n_averaged": torch.tensor(7)},
    "lightning": {"state_dict": {**prefixed("net.", STATE), "loss.weight": torch.ones(3)}},
    "without counters": {n: t for n, t in STATE.items() if not n.endswith("num_batches_tracked")},
}


@pytest.mark.parametrize("wrapper", WRAPPED)
@pytest.mark.parametrize("zipped", [True, False])
def test_every_wrapper(wrapper, zipped, tmp_path):
    torch.save(WRAPPED[wrapper], tmp_path / "w", _use_new_zipfile_serialization=zipped)
    other = net(1)
    load_weights(other, read_weights(tmp_path / "w"), "w")
    for name, tensor in other.state_dict().items():
        assert torch.equal(tensor, STATE[name]) or name.endswith("num_batches_tracked"), name


def test_safetensors_of_the_library_whatever_its_name(tmp_path):
    save_file(STATE, tmp_path / "w.bin")
    other = net(1)
    load_weights(other, read_weights(tmp_path / "w.bin"), "w")
    assert all(torch.equal(t, STATE[n]) for n, t in other.state_dict().items())


def test_the_key_can_be_chosen(tmp_path):
    averaged = {name: 0 * tensor for name, tensor in STATE.items()}
    torch.save({"model": STATE, "ema": averaged}, tmp_path / "w.pt")
    found = read_weights(tmp_path / "w.pt")
    assert (found.key, found.others) == ("model", ("ema",))
    chosen = read_weights(tmp_path / "w.pt", key="ema")
    assert not chosen.state["head.weight"].any()
    with pytest.raises(CheckpointError, match="has no key 'x'; it has: model, ema"):
        read_weights(tmp_path / "w.pt", key="x")


def test_double_precision_stays(tmp_path):
    torch.save(net().double().state_dict(), tmp_path / "w.pt")
    other = net(1)
    load_weights(other, read_weights(tmp_path / "w.pt"), "w")
    assert other.head.weight.dtype == torch.float64
    torch.save(net().half().state_dict(), tmp_path / "w.pt")
    other = net(1)
    load_weights(other, read_weights(tmp_path / "w.pt"), "w")
    assert other.head.weight.dtype == torch.float32


class Evil:
    def __reduce__(self):
        return eval, ("__import__('pathlib').Path('ran').write_text('x')",)


@pytest.mark.parametrize("zipped", [True, False])
def test_no_pickle_runs_unless_trusted(zipped, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "w.pt"
    torch.save({"state_dict": STATE, "x": Evil()}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match="--trust-pickle") as caught:
        read_weights(path)
    assert "\n" not in str(caught.value) and not (tmp_path / "ran").exists()
    read_weights(path, trust_pickle=True)
    assert (tmp_path / "ran").exists()


def test_a_whole_module_only_if_trusted(tmp_path):
    path = tmp_path / "w.pt"
    torch.save(net(), path)
    with pytest.raises(CheckpointError, match="--trust-pickle"):
        read_weights(path)
    module = read_weights(path, trust_pickle=True).module
    assert torch.equal(module.head.weight, STATE["head.weight"])
    torch.save({"model": net()}, path)
    assert isinstance(read_weights(path, trust_pickle=True).module, Net)


def test_code_that_is_not_there_is_said(tmp_path):
    path = tmp_path / "w.pt"
    torch.save(net(), path)
    data = path.read_bytes()
    path.write_bytes(data.replace(b"Net", b"Nix"))
    with pytest.raises(CheckpointError, match="the code of the network is not found"):
        read_weights(path, trust_pickle=True)


def test_programs_are_refused_with_what_to_give_instead(tmp_path):
    example = torch.zeros(2, 1, 5, 5)
    torch.jit.trace(net(), example).save(tmp_path / "script.pt")
    torch.export.save(torch.export.export(net(), (example,)), tmp_path / "program.pt2")
    for name, kind in (("script.pt", "TorchScript program"), ("program.pt2", "torch.export")):
        for trusted in (False, True):
            with pytest.raises(CheckpointError, match=f"{kind}.*give a state dict .* and --arch"):
                read_weights(tmp_path / name, trust_pickle=trusted)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read"),
        (b"hello, world" * 9, "cannot be read"),
        (b"PK\x03\x04" + b"x" * 50, "truncated or damaged"),
        (pickle.dumps([1, 2, 3]), "it was not opened"),
    ],
)
def test_other_files(content, message, tmp_path):
    (tmp_path / "w.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_weights(tmp_path / "w.pt")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [[1], {"a": 1}, {"optimizer": {}}, {"loss": torch.tensor(1.0)}])
def test_files_without_weights(content, tmp_path):
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match="expected a state dict"):
        read_weights(tmp_path / "w.pt")


def test_what_does_not_fit_is_named(tmp_path):
    def error(state):
        torch.save(state, tmp_path / "w.pt")
        with pytest.raises(CheckpointError) as caught:
            load_weights(net(), read_weights(tmp_path / "w.pt"), "w.pt and net")
        return str(caught.value)

    message = error(net(classes=5).state_dict())
    assert "head.weight is [5, 4] in the file, but [3, 4]" in message and "--arch-args" in message
    assert "lacks head.bias" in error({n: t for n, t in STATE.items() if n != "head.bias"})
    assert "has besides extra" in error({**STATE, "extra": torch.ones(2)})
