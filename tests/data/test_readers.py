"""Datasets on disk: what they hold, and what is said when they are missing or damaged."""

import io
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision
from cases.data_files import all_rows, one_line, png

from fcompress.data import load_data
from fcompress.data.readers import folders as folders_module
from fcompress.data.readers import public as sources_module
from fcompress.data.splits import own_sizes
from fcompress.errors import DataError

# --- Fashion-MNIST and CIFAR-10 ---------------------------------------------------------------


def test_fashion_keeps_its_test_set_whole(small_fashion):
    splits = load_data("fashion-mnist", root=small_fashion)
    assert splits.info["sizes"] == {
        "train": 60, "calibration": 20, "search": 10, "certification": 10, "test": 20,
    }  # fmt: skip
    assert splits.test.rows.tolist() == list(range(100, 120))
    rows = torch.cat(all_rows(splits))
    assert rows.unique().numel() == 120
    whole = load_data("fashion-mnist,holdout=0", root=small_fashion)
    assert set(whole.present()) == {"train", "test"} and whole.calibration is None
    with pytest.raises(DataError, match="no calibration split"):
        whole.need("calibration")
    # Files directly in the root are found too.
    direct = load_data("fashion-mnist", root=small_fashion / "FashionMNIST" / "raw")
    assert direct.info["sha256"] == splits.info["sha256"]


def test_fashion_missing(small_fashion, tmp_path):
    with pytest.raises(DataError, match="--data-root") as error:
        load_data("fashion-mnist", root=tmp_path / "elsewhere")
    text = one_line(error)
    assert "elsewhere" in text and "dataset-fashion-mnist" in text and "--download" in text


@pytest.mark.parametrize("damage", ["truncated gzip", "truncated", "not gzip", "magic", "missing"])
def test_fashion_damaged(small_fashion, damage):
    folder = small_fashion / "FashionMNIST" / "raw"
    name = (
        "t10k-labels-idx1-ubyte"
        if damage in ("truncated", "magic")
        else ("t10k-images-idx3-ubyte.gz")
    )
    path = folder / name
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "not gzip":
        path.write_bytes(b"<html>not found</html>")
    elif damage == "magic":
        path.write_bytes(b"\x01" + content[1:])
    else:
        path.write_bytes(content[: len(content) * 2 // 3])
    with pytest.raises(DataError) as error:
        load_data("fashion-mnist", root=small_fashion)
    assert name in one_line(error)


def test_cifar10(small_cifar):
    splits = load_data("cifar10", root=small_cifar)
    assert splits.info["shape"] == [3, 32, 32] and splits.info["class_names"][3] == "class 3"
    assert len(splits.test) == 20 and splits.test.rows.min() == 100
    window = load_data("cifar10,crop=28", root=small_cifar)
    assert window.info["shape"] == [3, 28, 28]
    rows = splits.train.rows[:5]
    raw = splits.train.examples.take(rows)
    assert torch.equal(window.train.examples.take(rows), raw[..., 2:30, 2:30])
    moved = window.train.examples.take(rows, torch.Generator().manual_seed(0))
    assert moved.shape == (5, 3, 28, 28) and not torch.equal(moved, raw[..., 2:30, 2:30])


def test_cifar10_missing_and_damaged(small_cifar, tmp_path):
    with pytest.raises(DataError, match="cifar-10-batches-py") as error:
        load_data("cifar10", root=tmp_path / "no")
    assert "--data-root" in one_line(error)
    path = small_cifar / "cifar-10-batches-py" / "data_batch_3"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match="data_batch_3") as error:
        load_data("cifar10", root=small_cifar)
    one_line(error)
    path.unlink()
    with pytest.raises(DataError, match="data_batch_3 is missing"):
        load_data("cifar10", root=small_cifar)


# --- folders and ImageNet -----------------------------------------------------------------------


def test_imagenet_stays_on_disk(tmp_path):
    for i in range(40):
        png(tmp_path / "train" / f"n0{i % 2}" / f"{i}.JPEG", (40, 30), seed=i)
    for i in range(4):
        png(tmp_path / "val" / f"n0{i % 2}" / f"{i}.JPEG", (30, 50), seed=100 + i)
    splits = load_data("imagenet,size=24", root=tmp_path)
    assert splits.info["shape"] == [3, 24, 24] and splits.info["identified_by"] == "file list"
    assert splits.info["sizes"]["train"] == 24 and splits.info["sizes"]["test"] == 4
    inputs, labels = splits.test.batch(torch.arange(4))
    assert inputs.shape == (4, 3, 24, 24) and labels.tolist() == [0, 0, 1, 1]
    generator = torch.Generator().manual_seed(0)
    changed, _ = splits.test.batch(torch.arange(4), augment=generator)
    assert changed.shape == inputs.shape and not torch.equal(changed, inputs)
    # A file that goes bad later is named when it is read.
    victim = tmp_path / splits.test.examples.names[int(splits.test.rows[0])]
    victim.write_bytes(victim.read_bytes()[:300])
    with pytest.raises(DataError, match=victim.name):
        list(splits.test.batches())


def test_imagenet_missing(tmp_path):
    for root in (None, tmp_path):
        with pytest.raises(DataError, match="train/") as error:
            load_data("imagenet", root=root)
        one_line(error)


def test_folder_with_classes(tmp_path):
    pixels = {}
    for i in range(30):
        name = f"{'cat' if i % 3 else 'dog'}/{i}.png"
        pixels[name] = png(tmp_path / name, seed=i)
    splits = load_data(f"folder:{tmp_path}")
    assert splits.info["classes"] == 2 and splits.info["class_names"] == ["cat", "dog"]
    assert splits.info["shape"] == [3, 6, 8]
    assert sum(splits.info["sizes"].values()) == 30
    # Decoding is exact, and labels stay with their images.
    names = sorted(pixels)
    for split in splits.present().values():
        for row, label in zip(split.rows.tolist(), split.labels.tolist(), strict=True):
            assert label == names[row].startswith("dog")
            value = split.examples.take(torch.tensor([row]))[0]
            assert np.array_equal(value.permute(1, 2, 0).numpy(), pixels[names[row]])
    flat = load_data(f"folder:{tmp_path},labels=0", roles="compress")
    assert flat.train is None and flat.test is None and not flat.calibration.has_labels
    assert flat.info["classes"] is None
    assert [y for _, y in flat.search.batches()] == [None]


def test_folder_sizes_and_channels(tmp_path):
    for i in range(12):
        png(tmp_path / f"{i}.png", size=(10 + i, 20), seed=i, mode="L")
    with pytest.raises(DataError, match="size=") as error:
        load_data(f"folder:{tmp_path}")
    one_line(error)
    splits = load_data(f"folder:{tmp_path},size=16")
    assert splits.info["shape"] == [1, 16, 16] and not splits.train.has_labels
    assert load_data(f"folder:{tmp_path},size=16,channels=3").info["shape"] == [3, 16, 16]
    with pytest.raises(DataError, match="channels=2"):
        load_data(f"folder:{tmp_path},size=16,channels=2")


def test_folder_identity_is_its_content_not_its_place(tmp_path):
    for place in ("one", "two"):
        for i in range(12):
            png(tmp_path / place / f"{i}.png", seed=i)
    one, two = (load_data(f"folder:{tmp_path / place}") for place in ("one", "two"))
    assert one.info["sha256"] == two.info["sha256"] and one.info["spec"] != two.info["spec"]
    png(tmp_path / "two" / "3.png", seed=99)
    assert load_data(f"folder:{tmp_path / 'two'}").info["sha256"] != one.info["sha256"]


def test_folder_mistakes(tmp_path):
    def refused(text: str) -> str:
        with pytest.raises(DataError) as error:
            load_data(f"folder:{tmp_path}")
        assert text in one_line(error)
        return str(error.value)

    with pytest.raises(DataError, match="no such folder"):
        load_data(f"folder:{tmp_path / 'no'}")
    refused("no images")
    for i in range(12):
        png(tmp_path / "train" / f"{i}.png", seed=i)
        png(tmp_path / "test" / f"{i}.png", seed=i)
    refused("no classes")
    png(tmp_path / "stray.png")
    refused("beside and inside")
    (tmp_path / "stray.png").unlink()
    (tmp_path / "test" / "5.png").write_bytes((tmp_path / "test" / "5.png").read_bytes()[:120])
    with pytest.raises(DataError, match=r"5\.png"):
        load_data(f"folder:{tmp_path / 'test'}")
    (tmp_path / "test" / "5.png").write_text("no image")
    with pytest.raises(DataError, match=r"5\.png") as error:
        load_data(f"folder:{tmp_path / 'test'}")
    one_line(error)


# --- tensors in files -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["npz", "npy", "pt", "pt pair", "pt dict"])
def test_file(tmp_path, kind):
    draw = np.random.default_rng(0)
    x, y = draw.normal(3, 2, (50, 4)).astype(np.float32), np.arange(50) % 3
    path = tmp_path / f"d,a=b.{kind[:3].strip()}"
    if kind == "npz":
        np.savez(path, images=x, labels=y)
    elif kind == "npy":
        np.save(path, x)
    else:
        tensors = torch.from_numpy(x), torch.from_numpy(y)
        content = {
            "pt": tensors[0],
            "pt pair": tensors,
            "pt dict": {"x": tensors[0], "y": tensors[1]},
        }
        torch.save(content[kind], path)
    splits = load_data(f"file:{path}")
    assert splits.info["shape"] == [4] and len(splits.info["mean"]) == 4
    assert splits.info["sizes"] == own_sizes(50, "all")
    labelled = kind not in ("npy", "pt")
    assert splits.info["classes"] == (3 if labelled else None)
    inputs, labels = splits.train.batch(torch.arange(20))
    assert torch.allclose(inputs.mean(0), torch.zeros(4), atol=1e-5)
    raw = load_data(f"file:{path},raw=1").train.batch(torch.arange(20))[0]
    assert torch.equal(raw, torch.from_numpy(x)[splits.train.rows])
    if labelled:
        assert torch.equal(labels, torch.from_numpy(y)[splits.train.rows])


def test_file_images_get_their_channel_axis(tmp_path):
    path = tmp_path / "d.npz"
    for shape, expected in (
        ((20, 8, 8), [1, 8, 8]), ((20, 8, 8, 3), [3, 8, 8]), ((20, 3, 8, 8), [3, 8, 8]),
    ):  # fmt: skip
        np.savez(path, x=np.zeros(shape, np.uint8))
        splits = load_data(f"file:{path}")
        assert splits.info["shape"] == expected
        assert splits.train.examples.values.dtype == torch.uint8
        # A constant channel becomes 0, not NaN.
        assert float(splits.train.batch(torch.arange(3))[0].abs().max()) == 0


class Hostile:
    def __reduce__(self):
        return (print, ("code ran",))


@pytest.mark.parametrize("ending", ["npz", "npy", "pt"])
def test_file_damaged_or_hostile(tmp_path, ending, capsys):
    good, path = tmp_path / f"good.{ending}", tmp_path / f"bad.{ending}"
    x = np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32)
    hostile = np.array([Hostile()] * 3, dtype=object)
    if ending == "npz":
        np.savez_compressed(good, x=x)
        np.savez(path, x=hostile)
    elif ending == "npy":
        np.save(good, x)
        np.save(path, hostile, allow_pickle=True)
    else:
        torch.save(torch.from_numpy(x), good)
        torch.save({"x": Hostile()}, path)
    load_data(f"file:{good}")
    content = good.read_bytes()
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 0xFF
    for damaged in (None, content[: len(content) // 2], content[:3], b"", b"hello"):
        if damaged is not None:
            path.write_bytes(damaged)
        with pytest.raises(DataError) as error:
            load_data(f"file:{path}")
        assert path.name in one_line(error)
    assert "code ran" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ({"z": np.zeros((20, 2))}, "found z"),
        ({"x": np.zeros((20, 2)), "y": np.zeros(19, int)}, "19 labels"),
        ({"x": np.zeros((20, 2)), "y": np.eye(20)}, "one class index"),
        ({"x": np.zeros((20, 2)), "y": np.arange(20) - 1}, "below 0"),
        ({"x": np.full((20, 2), np.nan)}, "not finite"),
        ({"x": np.zeros(20)}, "[20]"),
        ({"x": np.zeros((20, 2, 3, 4, 5))}, "raw=1"),
        ({"x": np.array(["a", "b"])}, "array of numbers"),
        ({"x": np.zeros((3, 2))}, "3 examples are too few"),
    ],
)
def test_file_of_wrong_content(tmp_path, content, text):
    np.savez(tmp_path / "d.npz", **content)
    with pytest.raises(DataError) as error:
        load_data(f"file:{tmp_path / 'd.npz'}")
    assert text in one_line(error)


def test_npz_bytes_are_not_taken_for_an_image(tmp_path):
    buffer = io.BytesIO()
    np.savez(buffer, x=np.zeros((4, 4)))
    for i in range(12):
        (tmp_path / f"{i}.png").write_bytes(buffer.getvalue())
    with pytest.raises(DataError, match="cannot be read as an image"):
        load_data(f"folder:{tmp_path}")


def test_a_folder_too_large_for_memory_stays_on_disk(tmp_path, monkeypatch):
    for i in range(20):
        png(tmp_path / f"{i}.png", seed=i)
    stored = load_data(f"folder:{tmp_path}")
    monkeypatch.setattr(folders_module, "IN_MEMORY", 0)
    on_disk = load_data(f"folder:{tmp_path}")
    same = {key: value for key, value in stored.info.items() if key != "augmentation"}
    assert same == {key: value for key, value in on_disk.info.items() if key != "augmentation"}
    for (one, _), (other, _) in zip(stored.train.batches(), on_disk.train.batches(), strict=True):
        assert torch.equal(one, other)
    monkeypatch.setattr(folders_module, "HASHED_CONTENT", 0)
    assert load_data(f"folder:{tmp_path}").info["identified_by"] == "file list"


@pytest.mark.parametrize("name", ["fashion-mnist", "cifar10"])
def test_a_download_that_fails(tmp_path, monkeypatch, name):
    monkeypatch.setattr(sources_module, "DEBIAN_FASHION", tmp_path / "no-such")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    asked = []

    def offline(self, root, **options):
        asked.append(root)
        raise URLError("no route to host")

    for dataset in (torchvision.datasets.FashionMNIST, torchvision.datasets.CIFAR10):
        monkeypatch.setattr(dataset, "__init__", offline)
    with pytest.raises(DataError, match="not here"):
        load_data(name)
    assert not asked  # nothing is fetched unless the user says so
    with pytest.raises(DataError, match="no route to host") as error:
        load_data(name, download=True)
    assert name in one_line(error) and len(asked) == 1
