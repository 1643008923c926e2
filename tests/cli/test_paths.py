"""No output replaces an input, another output or somebody's file."""

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from cases.small_recipe import RECIPE
from click.testing import CliRunner

from fcompress.checkpoints.checkpoint import load, save
from fcompress.cli import main
from fcompress.data import load_data
from fcompress.models import build

TRAIN = ["train", "mlp", "--data", "digits", "--epochs", "1", "--width", "0.1"]


def run(*arguments):
    ran = CliRunner().invoke(main, [str(a) for a in arguments])
    assert ran.exception is None or isinstance(ran.exception, SystemExit), ran.exception
    assert "a bug of fcompress" not in ran.stderr
    return ran


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with a network, its copy, data, code, a recipe and files of somebody."""
    monkeypatch.chdir(tmp_path)
    digits = load_data("digits").info
    torch.manual_seed(0)
    save(build("mlp", in_features=64, classes=10, width=0.1), "m.pt", data=digits)
    save(build("mlp", in_features=64, classes=10, width=0.1), "n.pt", data=digits)
    x = np.random.default_rng(0).normal(size=(400, 20)).astype("float32")
    np.savez("d.npz", x=x, y=(x[:, :3]).argmax(1))
    Path("net.py").write_text("def net(): raise ValueError\ndef same(a, b): return a == b\n")
    Path("r.toml").write_text(RECIPE)
    Path("mine.json").write_text('{"precious": 1}')
    Path("mine.txt").write_text("precious")
    Path("mine.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"precious")
    Path("images/a").mkdir(parents=True)
    Path("images/a/1.png").write_bytes(b"no picture")
    Path("to-m").symlink_to("m.pt")
    os.link("m.pt", "hard-m")
    Path("to-d.npz").symlink_to("d.npz")
    Path("loop").symlink_to("loop")
    return tmp_path


def state(folder):
    """Each file and what it holds; links as what they are."""
    return {
        str(path.relative_to(folder)): (path.is_symlink(), None if path.is_symlink() else
                                        hashlib.sha256(path.read_bytes()).hexdigest())
        for path in sorted(folder.rglob("*")) if path.is_symlink() or path.is_file()
    }  # fmt: skip


ALIASES = [
    ["analyze", "m.pt", "--json", "m.pt"],
    ["analyze", "m.pt", "--json", "./images/../m.pt"],
    ["analyze", "m.pt", "--plot", "to-m"],
    ["analyze", "to-m", "--plot", "hard-m"],
    ["analyze", "m.pt", "--json", "a", "--plot", "a"],
    ["gain", "m.pt", "n.pt", "--json", "n.pt"],
    ["show", "hard-m", "--json", "m.pt"],
    ["verify", "m.pt", "n.pt", "--json", "n.pt"],
    ["verify", "m.pt", "n.pt", "--data", "file:d.npz", "--json", "d.npz"],
    ["verify", "m.pt", "n.pt", "--same", "net.py:same", "--json", "net.py"],
    ["shrink", "m.pt", "--out", "m.pt"],
    ["shrink", "m.pt", "--out", "hard-m"],
    ["shrink", "m.pt", "--out", "x.pt", "--json", "x.pt"],
    ["shrink", "m.pt", "--json", "m.thin.pt"],
    ["shrink", "m.pt", "--out", "x.pt", "--export", "x.onnx", "--export", "./x.onnx"],
    ["shrink", "m.pt", "--arch", "net.py:net", "--out", "net.py"],
    ["shrink", "m.pt", "--data", "file:to-d.npz", "--out", "d.npz"],
    ["export", "m.pt", "--to", "m.pt2", "--json", "m.pt2"],
    ["export", "m.pt", "--original", "n.pt", "--to", "m.onnx", "--json", "n.pt"],
    [*TRAIN, "--out", "x.pt", "--json", "x.pt.resume"],
    [*TRAIN, "--out", "x.pt", "--json", "./x.pt"],
    ["train", "mlp", "--data", "file:d.npz", "--out", "d.npz"],
    ["train", "mlp", "--data", "file:d.npz", "--out", "to-d.npz"],
    ["train", "mlp", "--data", "folder:images", "--out", "images/a/1.png"],
    ["train", "mlp", "--data", "folder:images", "--out", "images/x.pt"],
    ["data", "file:d.npz", "--json", "d.npz"],
    ["recipe", "run", "r.toml", "--scale", "smoke", "--out", "o", "--json", "r.toml"],
    ["recipe", "run", "r.toml", "--scale", "smoke", "--out", "o", "--json", "o/results.json"],
]


@pytest.mark.parametrize("force", [False, True], ids=["", "force"])
@pytest.mark.parametrize("arguments", ALIASES, ids=" ".join)
def test_aliases_are_refused_before_any_work(here, arguments, force):
    before = state(here)
    ran = run(*arguments, *(["--force"] if force else []))
    assert ran.exit_code in (1, 2) and ran.stdout == ""
    assert state(here) == before


OTHERS = [
    ["analyze", "m.pt", "--json", "mine.json"],
    ["analyze", "m.pt", "--plot", "mine.png"],
    ["show", "m.pt", "--json", "mine.txt"],
    ["models", "--json", "mine.json"],
    ["data", "--json", "d.npz"],
    ["shrink", "m.pt", "--out", "n.pt"],
    ["shrink", "m.pt", "--out", "mine.txt"],
    [*TRAIN, "--out", "mine.txt"],
    [*TRAIN, "--out", "d.npz"],
    ["recipe", "list", "--json", "mine.json"],
    ["recipe", "run", "r.toml", "--scale", "smoke", "--out", "images"],
]


@pytest.mark.parametrize("arguments", OTHERS, ids=" ".join)
def test_files_of_others_are_not_replaced(here, arguments):
    before = state(here)
    ran = run(*arguments)
    assert ran.exit_code == 1 and ran.stderr.count("\n") == 1, ran.stderr
    assert state(here) == before


WRONG = [
    "loop", "no/such/x", "images", "m.pt/x", "x" * 300,
]  # fmt: skip


@pytest.mark.parametrize("place", WRONG, ids=range(len(WRONG)))
def test_places_that_cannot_be_written(here, place):
    before = state(here)
    for arguments in (
        [*TRAIN, "--out", place],
        [*TRAIN, "--out", "y.pt", "--json", place],
        ["shrink", "m.pt", "--out", place],
        ["shrink", "m.pt", "--out", "y.pt", "--plot", place],
        ["models", "--json", place],
    ):
        ran = run(*arguments)
        assert ran.exit_code in (1, 2) and ran.stdout == "", (arguments, ran.output)
        assert state(here) == before


@pytest.mark.parametrize("option", ["--out", "--trials", "--networks"])
@pytest.mark.parametrize("place", ["loop", "loop/x", "m.pt", "m.pt/x"])
def test_folders_that_cannot_be_made(here, option, place):
    folders = {"--out": "o", option: place}
    words = [word for pair in folders.items() for word in pair]
    ran = run("recipe", "run", "r.toml", "--scale", "smoke", *words)
    usage = 3 if ran.exit_code == 2 else 0  # lines that click puts before its errors
    assert ran.exit_code in (1, 2) and len(ran.stderr.splitlines()) == usage + 1, ran.stderr
    assert "bug" not in ran.stderr


def test_what_is_read_only_stays(here):
    Path("old.json").write_text("")
    Path("old.json").chmod(0o444)
    ran = run("models", "--json", "old.json", "--force")
    assert ran.exit_code == 1 and "read-only" in ran.stderr
    assert Path("old.json").read_text() == ""


def test_a_repeated_command_replaces_what_it_wrote(here):
    for arguments in (
        [*TRAIN, "--out", "t.pt", "--json", "t.json"],
        [*TRAIN, "--width", "0.2", "--out", "u.pt"],
        ["gain", "t.pt", "u.pt", "--examples", "50", "--json", "g.json", "--plot", "g.png"],
        ["analyze", "t.pt", "--examples", "50", "--json", "a.json", "--plot", "a.png"],
        ["export", "t.pt", "--to", "t.safetensors", "--json", "e.json"],
        ["verify", "t.pt", "t.pt", "--json", "v.json"],
        ["show", "t.pt", "--json", "s.json"],
        ["models", "--json", "l.json"],
        ["data", "--json", "d.json"],
        ["data", "digits", "--json", "d1.json"],
        ["recipe", "list", "--json", "r.json"],
    ):
        for _ in range(2):
            ran = run(*arguments)
            assert ran.exit_code == 0, (arguments, ran.stderr)
    # The control: not what another command wrote.
    assert run("models", "--json", "r.json").exit_code == 1
    assert run("shrink", "m.pt", "--out", "t.pt").exit_code == 1
    assert run("models", "--json", "r.json", "--force").exit_code == 0


def test_a_compressed_network_is_replaced_by_the_next(here):
    assert run(*TRAIN, "--out", "t.pt").exit_code == 0
    for _ in range(2):
        ran = run("shrink", "t.pt", "--tol", "0.5", "--method", "prune", "--json", "s.json",
                  "--plot", "s.png")  # fmt: skip
        assert ran.exit_code == 0, ran.stderr
    assert load("t.thin.pt") is not None
    assert json.loads(Path("s.json").read_text())["method"] == "prune"


def test_a_report_removes_only_what_it_wrote(here):
    assert run("recipe", "run", "r.toml", "--scale", "smoke", "--out", "o", "--workers", "1",
               "--device", "cpu").exit_code == 0  # fmt: skip
    figures = Path("o/figures")
    drawn = {path.name for path in figures.iterdir()}
    assert drawn == {"params.png", "params.svg"}
    for name in ("accuracy.csv", "layers.txt", "growth.png"):
        (figures / name).write_text("precious")
    # Another drawing than before, of the same results.
    changed = json.loads(Path("o/recipe.json").read_text())
    changed["recipe"]["draw"] = []
    Path("o/recipe.json").write_text(json.dumps(changed))
    assert run("recipe", "report", "o").exit_code == 0
    assert {p.name for p in figures.iterdir()} == {"accuracy.csv", "layers.txt", "growth.png"}
    changed["recipe"]["draw"] = ["growth"]
    Path("o/recipe.json").write_text(json.dumps(changed))
    ran = run("recipe", "report", "o")
    assert ran.exit_code == 1 and "was not written by a report" in ran.stderr
    assert (figures / "growth.png").read_text() == "precious"


def test_a_report_writes_through_no_link(here):
    assert run("recipe", "run", "r.toml", "--scale", "smoke", "--out", "o", "--workers", "1",
               "--device", "cpu").exit_code == 0  # fmt: skip
    for name in ("summary.md", "results.json"):
        Path("o", name).unlink()
        Path("o", name).symlink_to("../mine.txt")
        ran = run("recipe", "report", "o")
        assert ran.exit_code == 1 and "is a link" in ran.stderr
        Path("o", name).unlink()
    assert Path("mine.txt").read_text() == "precious"
