"""Kinds of answers that need particulars, on the command line."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

from fcompress.cli import main

CODE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 6))

    def forward(self, x):
        return self.body(x)

def near(ours, theirs):
    return (ours - theirs).norm(dim=1) < 0.3

def nats(ours, theirs):
    return (ours - theirs).square().sum(1) * 5

def negative(ours, theirs):
    return (ours - theirs).square().sum(1) - 1

class Boxes(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 24))

    def forward(self, x):
        raw = self.body(x).view(-1, 6, 4)
        places = 20 + 4 * raw[:, :4].tanh()
        return torch.cat([places, (4 * raw[:, 4:]).sigmoid()], 1)

class Twins(Net):
    def forward(self, x):
        return self.body(x.reshape(-1, 10)).unflatten(0, (-1, 2))

class Reader(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Embedding(9, 10), nn.Linear(10, 32), nn.ReLU())
        self.head = nn.Linear(32, 9)

    def forward(self, x):
        return self.head(self.body(x))
"""


def run(*arguments):
    return CliRunner().invoke(main, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("answers")
    (folder / "nets.py").write_text(CODE)
    generator = torch.Generator().manual_seed(0)
    np.save(folder / "x.npy", torch.randn(600, 10, generator=generator).numpy())
    np.save(folder / "twins.npy", torch.randn(600, 2, 10, generator=generator).numpy())
    np.save(folder / "ids.npy", torch.randint(9, (600, 7), generator=generator).numpy())
    np.save(folder / "gallery.npy", torch.randn(60, 10, generator=generator).numpy())
    space: dict = {"__name__": "nets"}
    exec(CODE, space)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for name in ("Net", "Boxes", "Twins", "Reader"):
            made: nn.Module = space[name]()
            torch.save(made.state_dict(), folder / f"{name}.pth")
    return folder


def shrunk(folder, name, *how):
    own = ("--arch", f"{folder / 'nets.py'}:{name}", "--data", f"file:{folder / 'x.npy'}")
    out = folder / f"{name}.pt"
    ran = run("shrink", folder / f"{name}.pth", *own, *how, "--out", out, "--json", "-")
    return ran, (folder / f"{name}.pth", out, *own)


def test_nearest_neighbours(folder):
    gallery = ("--gallery", f"file:{folder / 'gallery.npy'}")
    ran, both = shrunk(folder, "Net", *gallery, "--tol", 0.4)
    assert ran.exit_code == 0, ran.output
    record = json.loads(ran.stdout)
    assert record["certified"] and record["agreement"]["answer"]["gallery"]["entries"] == 60
    checked = run("verify", *both, *gallery, "--json", "-")
    assert checked.exit_code == 0, checked.output
    assert json.loads(checked.stdout)["labels"] == "nearest"
    said = run("verify", *both, *gallery)
    assert "kept their nearest entry of the gallery" in said.output
    refused = run("verify", *both)
    assert refused.exit_code == 1 and "needs a gallery" in refused.output
    refused, _ = shrunk(folder, "Net", "--gallery", f"file:{folder / 'x.npy'}")
    assert refused.exit_code == 1 and "is the data itself" in refused.output
    ran, _ = shrunk(folder, "Net", "--answer", "nearest", "--tol", 0.4)
    assert json.loads(ran.stdout)["agreement"]["answer"]["gallery"]["entries"] == 75
    refused, _ = shrunk(folder, "Net", *gallery, "--answer", "embedding")
    assert refused.exit_code == 2 and "belongs to answer='nearest'" in refused.output


def test_detections(folder):
    ran, both = shrunk(folder, "Boxes", "--score", 0.7, "--iou", 0.4, "--tol", 0.4)
    assert ran.exit_code == 0, ran.output
    answer = {"kind": "detections", "score": 0.7, "iou": 0.4}
    assert json.loads(ran.stdout)["agreement"]["answer"] == answer
    # The file says how it is read.
    checked = run("verify", *both, "--json", "-")
    assert checked.exit_code == 0, checked.output
    assert json.loads(checked.stdout)["answer"] == answer
    said = run("verify", *both)
    assert "kept every box (score from 0.7, overlap from 0.4" in said.output
    assert "Outputs differ by" in said.output
    assert "of the boxes of an image had a match on average" in said.output
    refused, _ = shrunk(folder, "Boxes", "--score", 2)
    assert refused.exit_code == 2 and "expected a number in the range 0<=x<1" in refused.output


def test_a_divergence_of_the_users(folder):
    own = f"{folder / 'nets.py'}:"
    same = ("--same", own + "near", "--tol", 0.4)
    ran, _ = shrunk(folder, "Net", *same, "--divergence", own + "nats")
    assert ran.exit_code == 0, ran.output
    assert json.loads(ran.stdout)["agreement"]["answer"]["divergence"] == "nats"
    refused, _ = shrunk(folder, "Net", *same, "--divergence", own + "negative")
    assert refused.exit_code == 1 and "gives -1; a divergence is 0" in refused.output
    refused, _ = shrunk(folder, "Net", "--divergence", own + "nats")
    assert refused.exit_code == 2 and "belongs to same=" in refused.output


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("Net", ("--gallery", "gallery")),
        ("Net", ("--within", "10%")),
        ("Net", ("--cosine", 0.9)),
        ("Net", ("--same", "near")),
        ("Net", ("--answer", "top-2")),
        ("Boxes", ("--score", 0.7, "--iou", 0.4)),
        ("Twins", ("--threshold", 0.2)),
        ("Reader", ("--answer", "tokens", "--pad", 3)),
    ],
)
def test_every_command_takes_every_kind(folder, name, how, tmp_path):
    """What `shrink` takes, `verify`, `analyze` and `export` do."""
    kinds = {"Twins": "twins", "Reader": "ids"}
    data = f"file:{folder / kinds.get(name, 'x')}.npy" + (",raw=1" if name == "Reader" else "")
    names = {"gallery": f"file:{folder / 'gallery.npy'}", "near": f"{folder / 'nets.py'}:near"}
    said = [names.get(str(word), word) for word in how]
    weights = folder / f"{name}.pth"
    own = ("--arch", f"{folder / 'nets.py'}:{name}", "--data", data, *said)
    checked = run("verify", weights, weights, *own, "--json", "-")
    assert checked.exit_code == 0, checked.output
    kind = json.loads(checked.stdout)["labels"]
    found = run("analyze", weights, *own, "--no-layers", "--examples", 60, "--json", "-")
    if name == "Twins":  # two rows for each example
        assert found.exit_code == 1 and "does not have the examples as first" in found.output
    else:
        assert found.exit_code == 0, found.output
        assert json.loads(found.stdout)["labels"] == kind
    program = tmp_path / "small.pt2"
    written = run("export", weights, "--to", program, "--original", weights, *own, "--json", "-")
    assert written.exit_code == 0, written.output
    assert json.loads(written.stdout)[0]["labels"] == kind
    refused = run("analyze", weights, *own, "--divergence", f"{folder / 'nets.py'}:nats")
    assert refused.exit_code == 2
    assert "--divergence has no effect here" in refused.output


def test_a_file_is_shown_in_the_words_of_its_answers(folder):
    for name, how, words in (
        ("Net", ("--within", "20%"), "stayed within"),
        ("Net", ("--cosine", 0.9), "kept a cosine of at least 0.9"),
        ("Boxes", ("--score", 0.7), "kept every box (score from 0.7"),
    ):
        ran, (_, out, *_) = shrunk(folder, name, *how, "--tol", 0.4, "--force")
        assert ran.exit_code == 0, ran.output
        said = run("show", out)
        assert words in said.output and "label" not in said.output.replace("same label", "")
