"""Folders of transformers, texts and several inputs on the command line."""

import json

import numpy as np
import pytest
import torch
from cases.huggingface import trained, unseen, write_tokenizer
from click.testing import CliRunner

import fcompress
from fcompress.cli import main

pytest.importorskip("transformers")


def run(*arguments: object):
    return CliRunner().invoke(main, list(map(str, arguments)))


@pytest.mark.slow
def test_texts_from_a_folder_to_a_folder(tmp_path, monkeypatch):
    """shrink, export, verify and show of a trained BERT, the second time over the first."""
    from cases.huggingface import texts

    monkeypatch.chdir(tmp_path)
    trained("bert").save_pretrained("bert")
    write_tokenizer(tmp_path / "bert")
    lines = [json.dumps({"text": text, "label": topic}) for text, topic in texts(1000, 5)]
    (tmp_path / "texts.jsonl").write_text("\n".join(lines))
    for _ in range(2):
        found = run(
            *("shrink", "bert", "--data", "text:texts.jsonl", "--tol", "0.05", "--export", "small"),
            *("--calibration", 200, "--json", "small.json"),
        )
        assert found.exit_code == 0, found.output
    result = json.loads((tmp_path / "small.json").read_text())
    assert result["agreement"]["lower_bound"] >= 0.95
    assert result["accuracy"]["before"] > 0.8
    assert abs(result["accuracy"]["after"] - result["accuracy"]["before"]) <= 0.05
    thin = fcompress.load("bert.thin.pt")
    inputs, _ = unseen("bert", 50)
    with torch.no_grad():
        expected = thin(**inputs).logits
        assert torch.equal(fcompress.load("small")(**inputs).logits, expected)
    found = run("verify", "bert", "small", "--data", "text:texts.jsonl,tokenizer=bert")
    assert found.exit_code == 0, found.output
    assert run("show", "small").exit_code == 0
    named = {name: value.numpy() for name, value in inputs.items()}
    np.savez("tokens.npz", **named, labels=np.zeros(50, dtype=np.int64))
    found = run("verify", "bert", "bert.thin.pt", "--data", "file:tokens.npz,raw=1")
    assert found.exit_code == 0, found.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["shrink", "nowhere", "--data", "digits"], "nowhere"),
        (["shrink", "empty", "--data", "digits"], "is a directory"),
        (["shrink", "net.pt", "--arch", "hf:empty", "--data", "digits"], "config.json"),
    ],
)
def test_folders_that_are_none(arguments, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "net.pt").write_bytes(b"")
    found = run(*arguments)
    assert found.exit_code != 0 and said in found.output
