"""Whatever code of the user's raises is one line, and never an exit code."""

import sys
import threading

import pytest
import torch
from torch import nn

import fcompress
from fcompress.errors import ArchitectureError, FcompressError, UnsupportedNetworkError
from fcompress.models.external import Architecture, build_network

X = torch.randn(600, 16, generator=torch.Generator().manual_seed(0))


class OfItsOwn(BaseException):
    pass


class Unprintable(Exception):
    def __str__(self):
        raise ValueError("no words")


class Raising(nn.Module):
    def __init__(self, error=None):
        super().__init__()
        self.first, self.last = nn.Linear(16, 32), nn.Linear(32, 5)
        self.error = error

    def forward(self, x):
        if self.error is not None:
            raise self.error
        return self.last(self.first(x).relu())


ERRORS = {
    "exit": SystemExit(4),
    "exit with words": SystemExit("I am done"),
    "of its own": OfItsOwn("mine"),
    "interrupt with words": KeyboardInterrupt("not Ctrl-C"),
    "end of a generator": GeneratorExit(),
    "end of an iterator": StopIteration(),
    "several lines": ValueError("one\ntwo"),
    "without words": Unprintable(),
    "recursion": RecursionError("too deep"),
    "memory": MemoryError(),
}
USES = {
    "shrink": lambda network: fcompress.shrink(network, X, tol=0.3),
    "analyze": lambda network: fcompress.analyze(network, X),
    "verify": lambda network: fcompress.verify(network, network, X),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("name", ERRORS)
def test_a_forward_that_raises_is_one_line_with_its_place(name, use):
    with pytest.raises(UnsupportedNetworkError, match=r"test_code_of_users\.py, line") as caught:
        USES[use](Raising(ERRORS[name]))
    assert "\n" not in str(caught.value)
    assert type(ERRORS[name]).__name__ in str(caught.value)


def test_ctrl_c_goes_on():
    with pytest.raises(KeyboardInterrupt):
        fcompress.verify(Raising(), Raising(KeyboardInterrupt()), X)


def locked():
    network = Raising()
    network.lock = threading.Lock()
    return network


UNUSABLE = {
    "lock": (locked, "cannot be copied"),
    "lazy": (lambda: nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.LazyLinear(5)), "0.weight"),
    "meta": (lambda: Raising().to("meta"), "device meta"),
    "scripted": (lambda: torch.jit.script(nn.Sequential(nn.Linear(16, 5))), "TorchScript"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", UNUSABLE)
def test_networks_that_cannot_be_used_say_why(name):
    make, said = UNUSABLE[name]
    with pytest.raises(UnsupportedNetworkError, match=said):
        fcompress.shrink(make(), X, tol=0.3)


@pytest.mark.parametrize("seed", [-1, 2**63, 1.5, "x", None, True, float("nan")])
def test_seeds_out_of_range(seed):
    for use in (fcompress.shrink, fcompress.analyze):
        with pytest.raises(FcompressError, match=r"seed=.*: expected a whole number"):
            use(Raising(), X, seed=seed)


def test_a_seed_too_long_to_show():
    with pytest.raises(FcompressError, match="thousands of digits"):
        fcompress.shrink(Raising(), X, seed=10**5000)


CODE = """
import os, sys, warnings
import torch
from torch import nn
def net(): return nn.Linear(2, 1)
def exits(): sys.exit(7)
def closes():
    sys.stdout.close()
    return net()
def settings():
    torch.set_default_dtype(torch.float64); os.chdir("/"); warnings.simplefilter("error")
    torch.set_grad_enabled(False)
    return net()
def number(): return 3
def scripted(): return torch.jit.script(net())
def lazy(): return nn.LazyLinear(2)
class Evil(nn.Module):
    def train(self, mode=True): raise SystemExit(3)
def __getattr__(name): raise SystemExit(5)
"""
WRONG = {
    "exits": "SystemExit: 7",
    "number": "gives a int",
    "scripted": "TorchScript",
    "lazy": "does not exist before",
    "Evil": "SystemExit: 3",
    "missing": "SystemExit: 5",
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", WRONG)
def test_builders_that_fail(name, tmp_path):
    (tmp_path / "n.py").write_text(CODE)
    with pytest.raises(FcompressError, match=WRONG[name]) as caught:
        build_network(Architecture(f"{tmp_path}/n.py:{name}"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("code", ["raise SystemExit(3)", "exit()", "1 +", "import no_such_thing"])
def test_files_that_cannot_be_imported(code, tmp_path):
    (tmp_path / "n.py").write_text(code)
    with pytest.raises(ArchitectureError, match="cannot be imported"):
        build_network(Architecture(f"{tmp_path}/n.py:net"))


def test_a_builder_that_closes_stdout(tmp_path, monkeypatch):
    (tmp_path / "n.py").write_text(CODE)
    with (tmp_path / "out").open("w") as file:
        monkeypatch.setattr(sys, "stdout", file)
        with pytest.raises(ArchitectureError, match="closed stdout"):
            build_network(Architecture(f"{tmp_path}/n.py:closes"))


def test_what_a_builder_sets_comes_back(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "n.py").write_text(CODE)
    build_network(Architecture("n.py:settings"))
    assert torch.get_default_dtype() == torch.float32
    assert torch.is_grad_enabled()
    assert torch.tensor(1.0).device.type == "cpu"
    build_network(Architecture("n.py:net"))  # found: the folder is the same again
