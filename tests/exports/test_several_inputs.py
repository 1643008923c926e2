"""Programs of networks that take several inputs, by name or by position."""

import pytest
import torch
from torch import nn

import fcompress


class Bag(nn.Module):
    """Token ids and a mask to the scores of their mean, in a dict as many libraries give them."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(11, 6), nn.Linear(6, 3)

    def forward(self, ids, weights):
        words = self.table(ids) * weights[..., None]
        return {"logits": self.head(words.sum(1)), "sum": weights.sum(1)}


@pytest.fixture(scope="module")
def model():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Bag().eval()


def inputs(length: int = 7) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(11, (20, length), generator=generator)
    return {"ids": ids, "weights": (torch.rand(20, length, generator=generator) < 0.8).long()}


@pytest.mark.parametrize("ending", [".pt2", ".onnx", ".safetensors"])
@pytest.mark.parametrize("named", [True, False])
def test_files_take_what_the_network_takes(model, ending, named, tmp_path):
    if ending == ".onnx":
        pytest.importorskip("onnxruntime")
    path, given = tmp_path / f"net{ending}", inputs()
    data = [given] if named else [((*given.values(),), None)]
    result = fcompress.export(model, path, data, original=model)
    assert (result.n, result.same, result.agreement.changed) == (20, 20, 0)
    if ending == ".safetensors":
        return
    program = fcompress.open_program(path, trust_pickle=True)
    shorter = inputs(4)
    with torch.no_grad():
        expected = model(**shorter)["logits"]
    found = program(**shorter) if named else program(*shorter.values())
    torch.testing.assert_close(found, expected)
    if ending == ".onnx" and named:
        import onnx

        graph = onnx.load(path).graph
        axes = {i.name: [d.dim_param for d in i.type.tensor_type.shape.dim] for i in graph.input}
        assert axes == {name: ["batch", "sequence"] for name in shorter}


def test_a_file_of_other_weights_is_not_kept(model, tmp_path, monkeypatch):
    """The control: the comparison sees a program that computes something else."""
    from fcompress.programs import files as programs

    honest = programs.run_program

    def wrong(path):
        run = honest(path)
        return lambda *args, **kwargs: run(*args, **kwargs).flip(1)

    monkeypatch.setattr(programs, "run_program", wrong)
    with pytest.raises(fcompress.ToleranceError, match="differs from the network"):
        fcompress.export(model, tmp_path / "net.pt2", [inputs()])
    assert not (tmp_path / "net.pt2").exists()
