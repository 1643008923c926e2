"""A cascade as two ONNX files and a JSON, and a server that has neither torch nor fcompress."""

import json
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import torch
from cases.trained import examples, trained

import fcompress
from fcompress.cascades.network import Cascade
from fcompress.errors import CheckpointError, FcompressError, UnsupportedNetworkError
from fcompress.forward.answers.heads import Head, Joint
from fcompress.forward.answers.scoring import Scoring

ROOT = Path(__file__).parents[2]


def data():
    return examples(400, seed=9)[0]


def cascade(scoring=None, threshold=0.7):
    """A pair whose first network often is not sure."""
    small = trained(seed=2, width=8)
    made = Cascade(small, trained(), threshold, scoring or Scoring(labels="classes"))
    return made.eval()


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pair")
    model = cascade()
    entry = {"action": "shrink", "certified": True, "tolerance": 0.9}
    model.origin = {"data": None, "history": [entry]}
    result = fcompress.export(model, folder / "pair.json", data(), original=trained())
    return folder, model, result


def test_the_pair_gives_what_the_cascade_gives(written):
    folder, model, result = written
    assert {p.name for p in folder.iterdir()} == {
        "pair.json",
        "pair.compressed.onnx",
        "pair.original.onnx",
    }
    assert result.n == result.same == 400
    assert result.bytes == sum(p.stat().st_size for p in folder.iterdir())
    x = examples(1000, seed=33)[0]
    late = model.deferred(x)
    assert 30 < int(late.sum()) < 970
    opened = fcompress.open_program(folder / "pair.json")
    assert torch.allclose(opened(x), model(x), atol=1e-4)
    # The control: the compressed network alone says something else.
    alone = fcompress.open_program(folder / "pair.compressed.onnx")
    assert not torch.allclose(alone(x), model(x), atol=1e-2)
    assert fcompress.verify(model, opened, x).changed == 0


@pytest.mark.parametrize(
    "scoring",
    [Scoring(labels="sigmoid"), pytest.param(Scoring(labels="top-2"), marks=pytest.mark.slow)],
)
def test_kinds_of_answers(scoring, tmp_path):
    model = cascade(scoring, 0.5)
    result = fcompress.export(model, tmp_path / "p.json", data(), answer=scoring.labels)
    assert result.same == result.n
    said = json.loads((tmp_path / "p.json").read_text())
    assert said["answer"] == scoring.labels and said["threshold"] == 0.5


def test_a_file_that_was_changed_voids_the_certificate(written, tmp_path):
    folder = shutil.copytree(written[0], tmp_path / "copy")
    assert "void" not in fcompress.describe_file(folder / "pair.json").history[0]
    (folder / "pair.original.onnx").write_bytes((folder / "pair.compressed.onnx").read_bytes())
    history = fcompress.describe_file(folder / "pair.json").history
    assert history[0]["void"] == "the program was changed after it was exported"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"version": 9}, "upgrade"),
        ({"threshold": "high"}, "damaged"),
        ({"original": {"file": "../secret.onnx"}}, "does not name"),
        ({"compressed": {"file": "gone.onnx"}}, "does not lie beside it"),
        ({"fcompress": []}, "damaged"),
        ({"format": "else"}, "not the JSON of a cascade"),
    ],
)
def test_damaged_json_is_refused(written, change, words):
    folder, _, _ = written
    said = json.loads((folder / "pair.json").read_text())
    broken = folder / "broken.json"
    broken.write_text(json.dumps({**said, **change}))
    try:
        with pytest.raises(CheckpointError, match=words):
            fcompress.describe_file(broken)
    finally:
        broken.unlink()


def test_what_cannot_be_is_refused(tmp_path):
    for ending, words in ((".pt2", "end the name in .json"), (".onnx", "is two networks")):
        with pytest.raises(UnsupportedNetworkError, match=words):
            fcompress.export(cascade(), tmp_path / f"p{ending}", data())
    with pytest.raises(FcompressError, match=r"\.json is for cascades"):
        fcompress.export(trained(), tmp_path / "p.json", data())
    heads = Joint(labels="classes", main=Scoring(), heads=(Head("b", 2),), classes=4)
    with pytest.raises(UnsupportedNetworkError, match="several heads"):
        fcompress.export(cascade(heads), tmp_path / "p.json", data())
    (tmp_path / "p.original.onnx").write_text("mine")
    with pytest.raises(FcompressError, match="is not plainly what `fcompress export` wrote"):
        fcompress.export(cascade(), tmp_path / "p.json", data())
    assert (tmp_path / "p.original.onnx").read_text() == "mine"
    assert not (tmp_path / "p.json").exists()


def test_as_safetensors(tmp_path):
    model = Cascade(
        *(fcompress.build("mlp", in_features=6, classes=4, seed=s) for s in (1, 2)), 0.1, Scoring()
    ).eval()
    fcompress.export(model, tmp_path / "p.safetensors", data())
    again = fcompress.load(tmp_path / "p.safetensors")
    assert isinstance(again, Cascade) and torch.equal(again(data()), model(data()))


def test_a_server_without_torch(written, tmp_path):
    folder, model, _ = written
    page = (ROOT / "docs" / "deployment.md").read_text()
    script = re.search(r"```python serve.py\n(.*?)^```$", page, re.M | re.S)[1]
    blocked = "import sys\nfor name in ('torch', 'fcompress'):\n    sys.modules[name] = None\n"
    runner = tmp_path / "serve.py"
    runner.write_text(script)
    start = f"{blocked}import runpy; runpy.run_path({str(runner)!r}, run_name='__main__')"
    command = [sys.executable, "-c", start, str(folder / "pair.json"), "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path) as server:
        try:
            url = f"http://127.0.0.1:{int(server.stdout.readline())}"
            x = data()[:100]
            with urllib.request.urlopen(url, json.dumps(x.tolist()).encode(), timeout=60) as got:
                answer = json.load(got)
            assert answer["classes"] == model(x).argmax(1).tolist()
            assert answer["deferred"] == int(model.deferred(x).sum()) > 5
            assert answer["classes"] != model.compressed(x).argmax(1).tolist()
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(url, b"no json", timeout=60)
            assert refused.value.code == 400
        finally:
            server.kill()
    # The control: with the import it does not start.
    runner.write_text(f"import torch\n{script}")
    done = subprocess.run(command, capture_output=True, timeout=60, cwd=tmp_path)
    assert done.returncode != 0 and b"torch" in done.stderr
