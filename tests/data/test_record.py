"""The record of the data that a network carries is checked before it is used."""

import pytest
import torch

from fcompress import build, load, save
from fcompress.data import load_data, reload_data
from fcompress.data.record import check_record
from fcompress.errors import CheckpointError, DataError

DAMAGE = {
    "spec": [3, "", None, []],
    "root": [7, "", ["x"]],
    "seed": ["x", 10**30, -1, 1.0, True, None],
    "sha256": [5, None, ""],
    "random_labels": ["x", -1, 2**63],
    "mean": [["a"], [None], [float("nan")], 3, [0.0, 1.0], []],
    "std": [[0.0], [-1.0], ["a"], [float("inf")], []],
    "shape": [[0], ["x"], 3, [1] * 17, [2**40]],
    "roles": ["x", 3, None],
    "classes": [0, "x", 1.5],
    "class_names": [3, [3], "abc"],
    "sizes": [3, {"train": "x"}, {"train": -1}],
    "standardised_by": [3, None],
    "augmentation": [3],
    "preprocess": [3, {}, {"size": 3}],
}
CASES = [(key, value) for key, values in DAMAGE.items() for value in values]


@pytest.mark.parametrize(("key", "value"), CASES)
def test_a_damaged_field_is_named(key, value):
    info = load_data("digits").info
    check_record(info)
    with pytest.raises(
        DataError, match="preprocessing" if key == "preprocess" else "record"
    ) as caught:
        reload_data({**info, key: value})
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError):
        load_data("digits", like={**info, key: value})


@pytest.mark.parametrize("key", "spec root seed roles sha256 shape mean std".split())
def test_a_missing_field_is_named(key):
    info = dict(load_data("digits").info)
    del info[key]
    with pytest.raises(DataError, match=f"{key} is missing"):
        reload_data(info)


def test_a_file_with_a_damaged_record_is_not_opened(tmp_path):
    path = tmp_path / "m.pt"
    save(build("mlp", in_features=64, classes=10), path, data=load_data("digits").info)
    content = torch.load(path, weights_only=True)
    load(path)
    content["data"]["seed"] = "x"
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=r"m.pt: the record of the data: seed = 'x'"):
        load(path)
