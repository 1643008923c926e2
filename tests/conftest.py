"""Fixtures of several folders of tests."""

import gzip
import pickle

import numpy as np
import pytest
import torchvision

from fcompress.data.readers import public as sources_module


def write_idx(path, array: np.ndarray) -> None:
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes()
    content = header + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


@pytest.fixture
def small_fashion(tmp_path, monkeypatch):
    """Fashion-MNIST's four files with 100 + 20 images, and no other copy to be found."""
    monkeypatch.setattr(sources_module, "DEBIAN_FASHION", tmp_path / "no-such")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "root" / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    draw = np.random.default_rng(0)
    for part, count in (("train", 100), ("t10k", 20)):
        images = draw.integers(0, 256, (count, 28, 28))
        write_idx(folder / f"{part}-images-idx3-ubyte.gz", images)
        write_idx(folder / f"{part}-labels-idx1-ubyte", np.arange(count) % 10)
    return tmp_path / "root"


@pytest.fixture
def small_cifar(tmp_path, monkeypatch):
    """CIFAR-10's files with 20 images each and the MD5 sums that belong to them."""
    import hashlib

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    dataset = torchvision.datasets.CIFAR10
    folder = tmp_path / dataset.base_folder
    folder.mkdir()
    draw = np.random.default_rng(0)
    listed = {}
    for name, _ in [*dataset.train_list, *dataset.test_list]:
        content = {
            "data": draw.integers(0, 256, (20, 3072), dtype=np.uint8),
            "labels": [i % 10 for i in range(20)],
        }
        (folder / name).write_bytes(pickle.dumps(content))
        listed[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()
    meta = pickle.dumps({"label_names": [f"class {i}" for i in range(10)]})
    (folder / "batches.meta").write_bytes(meta)
    monkeypatch.setattr(dataset, "train_list", [[n, listed[n]] for n, _ in dataset.train_list])
    monkeypatch.setattr(dataset, "test_list", [[n, listed[n]] for n, _ in dataset.test_list])
    monkeypatch.setattr(dataset, "meta", {**dataset.meta, "md5": hashlib.md5(meta).hexdigest()})
    return tmp_path
