"""A network with several outputs and labels, from its weights to an exported program."""

import json

import numpy as np
import torch
from click.testing import CliRunner
from torch import nn
from torch.nn import functional as F

from fcompress.cli import main

CODE = """
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 3))
        self.side = nn.Linear(10, 5)

    def forward(self, x):
        return {"side": self.side(x), "tags": self.body(x)}
"""


def run(*arguments):
    return CliRunner().invoke(main, [str(a) for a in arguments])


def test_several_outputs_from_weights_to_a_program(tmp_path):
    (tmp_path / "nets.py").write_text(CODE)
    x = torch.randn(600, 10, generator=torch.Generator().manual_seed(0))
    y = (x[:, :3] + 0.3 * x[:, 3:6] > 0).float()
    np.save(tmp_path / "x.npy", x.numpy())
    space: dict = {"__name__": "nets"}
    exec(CODE, space)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: nn.Module = space["Net"]()
        optimizer = torch.optim.Adam(model.parameters(), 5e-3)
        for _ in range(120):
            rows = torch.randint(600, (64,))
            optimizer.zero_grad()
            F.binary_cross_entropy_with_logits(model(x[rows])["tags"], y[rows]).backward()
            optimizer.step()
    weights, thin, program = (tmp_path / name for name in ("w.pth", "thin.pt", "thin.pt2"))
    torch.save(model.state_dict(), weights)
    own = ("--arch", f"{tmp_path / 'nets.py'}:Net")
    data = ("--data", f"file:{tmp_path / 'x.npy'}")
    refused = run("shrink", weights, *own, *data, "--labels", "sigmoid", "--out", thin)
    assert refused.exit_code == 1 and "dict with side, tags" in refused.output
    how = ("--output", "tags", "--labels", "sigmoid")
    report = tmp_path / "thin.json"
    ran = run(
        *("shrink", weights, *own, *data, *how, "--method", "factor", "--tol", 0.4),
        *("--out", thin, "--json", report),
    )
    assert ran.exit_code == 0, ran.output
    record = json.loads(report.read_text())
    assert record["certified"] and record["agreement"]["labels"] == "sigmoid"
    # The compressed file knows how its labels are read, and the original is read like it.
    checked = run("verify", weights, thin, *own)
    assert checked.exit_code == 0, checked.output
    assert "at least one of their labels" in checked.output
    same = record["agreement"]["same"]
    agreed = json.loads(run("verify", weights, thin, *own, "--json", "-").stdout)
    assert agreed["same"] == same and agreed["labels"] == "sigmoid"
    analysed = run("analyze", weights, *own, *data, *how, "--no-layers", "--json", "-")
    assert analysed.exit_code == 0, analysed.output
    written = run("export", thin, *own, "--to", program, "--original", weights, "--json", "-")
    assert written.exit_code == 0, written.output
    (result,) = json.loads(written.stdout)
    assert result["agreement"]["same"] == same and result["same"] == result["n"]
    scores = torch.export.load(program).module()(x[:5])
    assert scores.shape == (5, 3)


LANGUAGE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.up, self.down = nn.Embedding(9, 8), nn.Linear(8, 40), nn.Linear(40, 9)

    def forward(self, ids):
        return self.down(torch.relu(self.up(self.embed(ids).cumsum(1))))
"""


def test_tokens_from_a_file(tmp_path):
    (tmp_path / "language.py").write_text(LANGUAGE)
    generator = torch.Generator().manual_seed(0)
    kept = torch.arange(12) < torch.randint(6, 13, (900, 1), generator=generator)
    ids = torch.randint(1, 9, (900, 12), generator=generator) * kept
    np.save(tmp_path / "ids.npy", ids.numpy())
    space: dict = {"__name__": "language"}
    exec(LANGUAGE, space)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: nn.Module = space["Net"]()
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        for _ in range(60):
            optimizer.zero_grad()
            F.cross_entropy(model(ids)[kept], ids[kept]).backward()
            optimizer.step()
    weights, small = tmp_path / "w.pth", tmp_path / "small.pt"
    torch.save(model.state_dict(), weights)
    own = ("--arch", f"{tmp_path / 'language.py'}:Net")
    data = ("--data", f"file:{tmp_path / 'ids.npy'},raw=1")
    refused = run("shrink", weights, *own, *data, "--answer", "classes", "--pad", 0, "--out", small)
    assert refused.exit_code == 2 and "pad=0 (--pad)" in refused.output
    how = ("--answer", "tokens", "--pad", 0, "--tol", 0.2)
    ran = run("shrink", weights, *own, *data, *how, "--out", small)
    assert ran.exit_code == 0, ran.output
    assert "At most 20% of the next tokens of an example may change" in ran.output
    shown = run("show", small)
    assert "% of the next tokens of an example changed on average" in shown.output
    report = tmp_path / "again.json"
    again = run("verify", weights, small, *own, *data, "--json", report)
    assert again.exit_code == 0, again.output
    record = json.loads(report.read_text())
    assert record["labels"] == "tokens" and record["answer"]["pad"] == 0
    assert record["lower_bound"] >= 0.8 and record["deviation"] > 0
