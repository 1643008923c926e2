"""What does not fit in memory, and what is no file, is refused before it is taken."""

import os

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from fcompress import load
from fcompress.checkpoints.weights import load_weights, read_weights
from fcompress.data import load_data
from fcompress.errors import CheckpointError, DataError
from fcompress.exports.describe import describe_file
from fcompress.exports.opening import open_program
from fcompress.formats import limits


@pytest.mark.parametrize("read", [load, read_weights, describe_file, open_program])
def test_devices_pipes_and_folders_are_no_files(read, tmp_path):
    pipe = tmp_path / "pipe.pt"
    os.mkfifo(pipe)
    link = tmp_path / "zero.pt"
    link.symlink_to("/dev/zero")
    for path in (pipe, link, tmp_path):
        with pytest.raises(CheckpointError, match=r"device or a pipe|Is a directory"):
            read(path)


@pytest.mark.parametrize(
    "spec",
    ["gaussian:100000,n=10000000", "gaussian:10,n=900000000000"],
)
def test_points_that_do_not_fit(spec):
    with pytest.raises(DataError, match=r"takes .* of memory, and [\d,]+ can be used"):
        load_data(spec)


@pytest.mark.parametrize("number", ["9" * 5000, "-1", "x", "1e3", "٣"])
def test_numbers_of_options(number):
    with pytest.raises(DataError):
        load_data(f"gaussian:10,n={number}")


def test_images_that_do_not_fit(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        for i in range(10):
            Image.new("RGB", (8, 8)).save(tmp_path / name / f"{i}.png")
    with pytest.raises(DataError, match="a batch of 256 examples of 3 x 100000 x 100000"):
        load_data(f"folder:{tmp_path},size=100000")
    assert load_data(f"folder:{tmp_path},size=16").info["shape"] == [3, 16, 16]


def test_the_limit_is_what_is_free(monkeypatch, tmp_path):
    np.savez(tmp_path / "d.npz", x=np.zeros((100, 4), np.float32), y=np.arange(100) % 2)
    load_data(f"file:{tmp_path}/d.npz")
    monkeypatch.setattr(limits, "available", lambda: 1000)
    with pytest.raises(DataError, match="800 can be used"):
        load_data(f"file:{tmp_path}/d.npz")


def network():
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))


@pytest.mark.parametrize("dtype", [torch.complex64, torch.int8, torch.uint64, torch.bool])
def test_weights_of_another_kind_are_refused(dtype, tmp_path):
    state = {k: v.to(dtype) for k, v in network().state_dict().items()}
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match="floating point \\(float32\\) in the architecture"):
        load_weights(network(), read_weights(tmp_path / "w.pt"), "w.pt")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_precision_are_taken(dtype, tmp_path):
    state = {k: v.to(dtype) for k, v in network().state_dict().items()}
    torch.save(state, tmp_path / "w.pt")
    load_weights(network(), read_weights(tmp_path / "w.pt"), "w.pt")


@pytest.mark.parametrize("label", [2**63, 2**64 - 1, 10**12])
def test_labels_that_wrap_are_refused(label, tmp_path):
    labels = np.zeros(100, np.uint64)
    labels[0] = label
    np.savez(tmp_path / "d.npz", x=np.zeros((100, 4), np.float32), y=labels)
    with pytest.raises(DataError, match=r"above 2\^63 - 1|a label of"):
        load_data(f"file:{tmp_path}/d.npz")
