"""Texts as data, and several inputs in one file."""

import json

import numpy as np
import pytest
import torch
from cases.huggingface import CLS, MASK, PAD, SEP, VOCABULARY, ids_of, write_tokenizer

import fcompress
from fcompress.errors import DataError

pytest.importorskip("tokenizers")
LINES = [f"w{i % 7} w{i % 5} w{i % 3}" + " w9" * (i % 4) for i in range(40)]


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "tokenizer"
    place.mkdir()
    write_tokenizer(place)
    return place


def spec(path, folder, options=""):
    return f"text:{path}{options},tokenizer={folder}"


def written(path, lines):
    path.write_text("\n".join(lines) + "\n")
    return path


def rows(splits) -> dict[str, torch.Tensor]:
    """All inputs of splits by name, in no order."""
    packed = torch.cat([x for part in splits.present().values() for x, _ in part.batches()])
    return splits.packing.unpack(packed, None)[1]


def as_lists(ids, mask) -> list[list[int]]:
    return sorted(row[: int(m.sum())].tolist() for row, m in zip(ids, mask, strict=True))


def test_lines_become_token_ids_padded_at_the_end(tmp_path, folder):
    path = written(tmp_path / "a.txt", [*LINES, "", "  "])
    splits = fcompress.load_data(spec(path, folder))
    found = rows(splits)
    assert list(found) == ["input_ids", "attention_mask"]
    assert as_lists(found["input_ids"], found["attention_mask"]) == sorted(map(ids_of, LINES))
    assert bool((found["input_ids"][found["attention_mask"] == 0] == PAD).all())
    assert "input_ids [8] int64" in splits.info["inputs"]
    again = fcompress.load_data(spec(path, folder), like=splits.info)
    assert torch.equal(rows(again)["input_ids"], found["input_ids"])


def test_what_is_too_long_keeps_its_end_mark(tmp_path, folder):
    path = written(tmp_path / "a.txt", LINES)
    found = rows(fcompress.load_data(spec(path, folder, ",length=5")))["input_ids"]
    assert found.shape == (40, 5)
    assert bool((found[:, 0] == CLS).all()) and bool((found == SEP).any(1).all())


def test_labels_by_name_are_numbered_as_the_network_does(tmp_path, folder):
    names = ["zebra", "ant", "mole"]
    lines = [json.dumps({"text": t, "label": names[i % 3]}) for i, t in enumerate(LINES)]
    path = written(tmp_path / "a.jsonl", lines)
    assert fcompress.load_data(spec(path, folder)).info["class_names"] == sorted(names)
    (folder / "config.json").write_text(json.dumps({"label2id": {"zebra": 0, "ant": 1, "mole": 2}}))
    splits = fcompress.load_data(spec(path, folder))
    assert splits.info["class_names"] == names
    found = torch.cat([y for part in splits.present().values() for _, y in part.batches()])
    assert found.bincount().tolist() == [14, 13, 13]


def test_pairs_and_words(tmp_path, folder):
    pairs = [json.dumps({"text": t, "text_pair": "w1 w2"}) for t in LINES]
    found = rows(fcompress.load_data(spec(written(tmp_path / "a.jsonl", pairs), folder)))
    assert found["token_type_ids"].sum(1).tolist() == [3] * 40
    words = [json.dumps({"tokens": t.split()}) for t in LINES]
    found = rows(fcompress.load_data(spec(written(tmp_path / "b.jsonl", words), folder)))
    assert as_lists(found["input_ids"], found["attention_mask"]) == sorted(map(ids_of, LINES))


def test_masked_tokens_are_drawn_once_and_never_special(tmp_path, folder):
    path = written(tmp_path / "a.txt", LINES)
    plain = rows(fcompress.load_data(spec(path, folder)))["input_ids"]
    found = rows(fcompress.load_data(spec(path, folder, ",mask=50")))["input_ids"]
    again = rows(fcompress.load_data(spec(path, folder, ",mask=50")))["input_ids"]
    assert torch.equal(found, again)
    masked = found == MASK
    assert 0.3 < float(masked.sum() / (plain > VOCABULARY["[MASK]"]).sum()) < 0.7
    assert torch.equal(found[~masked], plain[~masked])
    assert bool((plain[masked] > VOCABULARY["[MASK]"]).all())


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.csv", "x", "ending in .txt or .jsonl"),
        ("a.txt", "\n\n", "holds no text"),
        ("a.jsonl", "{", "line 1: no JSON"),
        ("a.jsonl", '{"words": "x"}', 'expected an object with "text"'),
        ("a.jsonl", '{"text": 3}', '"text" is a text'),
        ("a.jsonl", '{"text": "w1", "label": 0.5}', '"label" is a class index'),
        ("a.jsonl", '{"text": "w1", "label": 0}\n{"text": "w2"}', "of another kind, or none"),
        ("a.jsonl", '{"text": "w1", "label": -1}', "below 0"),
    ],
)
def test_files_that_are_no_good(tmp_path, folder, name, text, said):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=said):
        fcompress.load_data(spec(tmp_path / name, folder))


def test_what_is_missing_is_named(tmp_path, folder):
    path = written(tmp_path / "a.txt", LINES)
    with pytest.raises(DataError, match="needs a tokeniser"):
        fcompress.load_data(f"text:{path}")
    with pytest.raises(DataError, match=r"has no tokenizer\.json"):
        fcompress.load_data(spec(path, tmp_path))
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match="no tokeniser, or damaged"):
        fcompress.load_data(spec(path, folder))


def test_several_arrays_of_a_file_go_by_their_names(tmp_path):
    ids = np.arange(200).reshape(50, 4)
    mask = np.ones((50, 4), dtype=np.int64)
    np.savez(tmp_path / "a.npz", input_ids=ids, attention_mask=mask, labels=np.arange(50) % 2)
    with pytest.raises(DataError, match="add ,raw=1"):
        fcompress.load_data(f"file:{tmp_path / 'a.npz'}")
    splits = fcompress.load_data(f"file:{tmp_path / 'a.npz'},raw=1")
    found = rows(splits)
    assert sorted(found["input_ids"].flatten().tolist()) == list(range(200))
    assert found["attention_mask"].shape == (50, 4) and splits.info["classes"] == 2
    np.savez(tmp_path / "b.npz", input_ids=ids, attention_mask=mask[:40])
    with pytest.raises(DataError, match="hold 50, 40 examples"):
        fcompress.load_data(f"file:{tmp_path / 'b.npz'},raw=1")
