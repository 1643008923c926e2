"""Recurrent classifiers from end to end: shrunk, certified, saved, opened again, exported."""

import pytest
import torch
from cases.recurrent import Rows
from torch import nn

import fcompress
from fcompress.surgery.excision import excise

STEPS = 4


def sequences(count, seed):
    """Which of three channels has the largest sum over the steps, of eight that are given."""
    x = torch.randn(count, STEPS, 8, generator=torch.Generator().manual_seed(seed))
    return x, x[..., :3].sum(1).argmax(1)


def trained(kind, **settings):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Rows(kind, states=20, **settings)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        x, y = sequences(2000, 1)
        for _ in range(120):
            rows = torch.randint(len(x), (64,))
            loss = nn.functional.cross_entropy(model(x[rows]), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval()


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (nn.GRU, {}),
        pytest.param(nn.LSTM, {}, marks=pytest.mark.slow),
        pytest.param(nn.LSTM, {"bidirectional": True}, marks=pytest.mark.slow),
        pytest.param(nn.GRU, {"num_layers": 2, "reads": "last states"}, marks=pytest.mark.slow),
    ],
)
def test_a_recurrent_classifier_from_end_to_end(kind, settings, tmp_path):
    model = trained(kind, **settings)
    x, y = sequences(600, 2)
    assert float((model(x).argmax(1) == y).float().mean()) > 0.6
    result = fcompress.shrink(model, list(x.split(100)), tol=0.1)
    thin = result.model
    assert result.certified
    # What is said of single labels depends on the draw; of the code nothing is to be said.
    assert not [said for said in result.warnings if "ways through" in said or "reached" in said]
    assert thin.cell.hidden_size < 20
    assert type(thin.cell) is kind
    assert result.macs["after"] < 0.9 * result.macs["before"]
    share = thin.cell.weight_hh_l0.numel() / model.cell.weight_hh_l0.numel()
    assert share == pytest.approx((thin.cell.hidden_size / 20) ** 2)
    path = tmp_path / "thin.pt"
    fcompress.save(thin, path)
    again = fcompress.load(path, arch=lambda: Rows(kind, states=20, **settings))
    torch.testing.assert_close(again(x[:9]), thin(x[:9]))


@pytest.mark.slow
@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM])
@pytest.mark.parametrize("ending", ["pt2", "onnx"])
def test_a_thin_recurrent_layer_is_exported(kind, ending, tmp_path):
    model, x = Rows(kind, states=9, num_layers=2).eval(), sequences(200, 3)[0]
    structure = fcompress.find_groups(model, x[:4])
    thin = excise(model, structure.groups, {"cell": torch.arange(4), "front": torch.arange(3)})
    if ending == "onnx":
        pytest.importorskip("onnxscript")
        pytest.importorskip("onnxruntime")
    written = fcompress.export(thin, tmp_path / f"thin.{ending}", [x])
    assert written.same == written.n == 200
