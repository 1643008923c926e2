"""Splits, labels, specs, augmentation, and data as the Python API is handed it."""

import random

import numpy as np
import pytest
import torch
from cases.data_files import all_rows, one_line, png
from torch.utils.data import DataLoader, TensorDataset

from fcompress.data import ROLES, as_batches, datasets, load_data, reload_data
from fcompress.data.examples import random_crops, random_flips
from fcompress.data.splits import cut, official_sizes, own_sizes
from fcompress.errors import DataError, FcompressError

# --- splits ---------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1, 17])
@pytest.mark.parametrize("spec", ["digits", "gaussian:5,n=50"])
def test_splits_share_no_example_and_cover_the_data(spec, seed):
    splits = load_data(spec, seed=seed)
    rows = torch.cat(all_rows(splits))
    assert rows.unique().numel() == rows.numel() == sum(splits.info["sizes"].values())
    assert rows.numel() == len(splits.need("test").examples)
    assert set(splits.present()) == set(ROLES)


def test_cut_is_a_partition_whatever_the_sizes():
    pieces = cut(100, {"a": 30, "b": 1, "c": 60}, seed=4)
    assert [len(piece) for piece in pieces.values()] == [30, 1, 60]
    assert torch.cat(list(pieces.values())).unique().numel() == 91
    assert not torch.equal(pieces["a"], cut(100, {"a": 30}, seed=5)["a"])
    assert torch.equal(pieces["a"], cut(100, {"a": 30}, seed=4)["a"])
    for sizes in ({"a": 101}, {"a": 99, "b": 0}):
        with pytest.raises(DataError, match="100 examples are too few"):
            cut(100, sizes, seed=0)


@pytest.mark.parametrize("roles", ["all", "compress"])
def test_own_sizes_add_up(roles):
    for count in (10, 11, 37, 1000, 12345):
        sizes = own_sizes(count, roles)
        assert sum(sizes.values()) == count and min(sizes.values()) >= 1
    assert "train" in own_sizes(10, "all") and "train" not in own_sizes(10, "compress")
    assert own_sizes(1000, "compress") == {"calibration": 500, "search": 200, "certification": 300}


def test_official_sizes():
    sizes = {"train": 47808, "calibration": 8192, "search": 2000, "certification": 2000}
    assert official_sizes(60000, holdout=True) == sizes
    assert official_sizes(60000, holdout=False) == {"train": 60000}
    assert official_sizes(100, holdout=True)["train"] == 60


def test_digits():
    splits = load_data("digits")
    assert splits.info["sizes"] == {
        "train": 797, "calibration": 300, "search": 200, "certification": 300, "test": 200,
    }  # fmt: skip
    inputs, labels = next(splits.train.batches(797))
    assert inputs.shape == (797, 1, 8, 8) and inputs.dtype == torch.float32
    assert abs(float(inputs.mean())) < 1e-5 and abs(float(inputs.std()) - 1) < 1e-2
    assert labels.bincount().min() > 60
    assert splits.train.examples.values.dtype == torch.uint8
    # A different cut of the same data: same identity.
    assert load_data("digits", seed=1).info["sha256"] == splits.info["sha256"]


def test_batches_are_repeatable_and_whole():
    split = load_data("digits").search
    sizes = [len(labels) for _, labels in split.batches(64)]
    assert sizes == [64, 64, 64, 8]
    first, again = list(split.batches(64)), list(split.batches(30, limit=70))
    assert [len(labels) for _, labels in again] == [30, 30, 10]
    assert torch.equal(torch.cat([x for x, _ in first])[:70], torch.cat([x for x, _ in again]))
    assert torch.equal(torch.cat([y for _, y in first]), split.labels)


def test_loading_leaves_the_global_random_state_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    splits = load_data("gaussian:3,n=20", random_labels=1)
    splits.train.batch(torch.arange(4))
    assert torch.equal(torch.get_rng_state(), before)


# --- labels -----------------------------------------------------------------------------------


def test_random_labels_are_drawn_once_for_every_example():
    true, drawn = load_data("digits"), load_data("digits", random_labels=3)
    again, other = (
        load_data("digits", random_labels=3, seed=9),
        load_data("digits", random_labels=4),
    )
    for name, split in drawn.present().items():
        share = float((split.labels == true.present()[name].labels).double().mean())
        assert share < 0.2, name
    assert torch.cat([s.labels for s in drawn.present().values()]).bincount().min() > 120
    # The label belongs to the example, not to its place in a split.
    by_row = dict(
        zip(
            torch.cat(all_rows(drawn)).tolist(),
            torch.cat([s.labels for s in drawn.present().values()]).tolist(),
            strict=True,
        )
    )
    assert all(
        by_row[row] == label
        for row, label in zip(again.test.rows.tolist(), again.test.labels.tolist(), strict=True)
    )
    assert not torch.equal(other.train.labels, drawn.train.labels)
    assert drawn.info["sha256"] == true.info["sha256"]


def test_random_labels_need_classes(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((30, 3), np.float32))
    with pytest.raises(DataError, match="no labels") as error:
        load_data(f"file:{tmp_path / 'x.npy'}", random_labels=0)
    one_line(error)


# --- Gaussian teacher data ---------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("dimensions", [1, 10, 300])
def test_teacher_is_balanced(dimensions, seed):
    splits = load_data(f"gaussian:{dimensions},n=500,seed={seed}")
    labels = torch.cat([split.labels for split in splits.present().values()])
    assert 0.4 <= float(labels.double().mean()) <= 0.6
    assert len(labels) == 2 * 500 + 3000 and len(splits.test) == len(splits.train) == 500
    assert splits.info["mean"] == [0.0] and splits.info["std"] == [1.0]


def test_teacher_labels_are_learnable_not_noise():
    # The labels are a function of the inputs: the same point never gets two labels, and nearby
    # points mostly agree (a coin would not).
    splits = load_data("gaussian:4,n=2000")
    (x, y), (t, u) = splits.train.batch(torch.arange(2000)), splits.test.batch(torch.arange(2000))
    nearest = torch.cdist(t, x).argmin(1)
    assert float((y[nearest] == u).double().mean()) > 0.75


def test_gaussian_options():
    first, again = load_data("gaussian:6,seed=2,n=40"), load_data("gaussian:6,n=40,seed=2")
    assert first.info["spec"] == again.info["spec"] == "gaussian:6,n=40,seed=2"
    assert first.info["sha256"] == again.info["sha256"]
    assert first.info["sha256"] != load_data("gaussian:6,n=40,seed=3").info["sha256"]


# --- specs, and data that a network remembers -----------------------------------------------


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ("fashion", "did you mean fashion-mnist"),
        ("nonsense", "expected one of digits"),
        ("digits,crop=3", "no option 'crop'"),
        ("digits:8", "expected digits"),
        ("gaussian", "expected gaussian:DIM"),
        ("gaussian:ten", "number of dimensions"),
        ("gaussian:10,n=0", "1 or more"),
        ("gaussian:10,n=-5", "whole number"),
        ("fashion-mnist,holdout=2", "0 (no) or 1 (yes)"),
        ("file:no/such.npz", "no such file"),
    ],
)
def test_specs_that_are_wrong(spec, text):
    with pytest.raises(FcompressError) as error:
        load_data(spec)
    assert text in one_line(error)


def test_datasets_are_described():
    kinds = datasets()
    assert set(kinds) == {
        "digits", "fashion-mnist", "cifar10", "imagenet", "gaussian", "folder", "text", "file",
    }  # fmt: skip
    assert all(kind.summary and kind.splits and kind.find for kind in kinds.values())


def test_reload_gives_the_same_examples():
    splits = load_data("digits", seed=3, random_labels=8)
    again = reload_data(splits.info)
    assert again.info == splits.info
    for name, split in splits.present().items():
        other = again.present()[name]
        for (x, y), (u, v) in zip(split.batches(), other.batches(), strict=True):
            assert torch.equal(x, u) and torch.equal(y, v)


def test_reload_refuses_other_data(tmp_path):
    path = tmp_path / "d.npy"
    np.save(path, np.random.default_rng(0).normal(size=(40, 3)))
    info = load_data(f"file:{path}").info
    np.save(path, np.random.default_rng(1).normal(size=(40, 3)))
    with pytest.raises(DataError, match="not the data that the network remembers") as error:
        reload_data(info)
    one_line(error)


def test_other_data_is_seen_as_the_network_was_trained_to(tmp_path):
    trained = load_data("digits")
    path = tmp_path / "d.npy"
    np.save(path, np.full((40, 8, 8), 16, np.uint8))
    other = load_data(f"file:{path}", roles="compress", like=trained.info)
    expected = (16 - trained.info["mean"][0]) / trained.info["std"][0]
    assert torch.allclose(other.search.batch(torch.arange(2))[0], torch.tensor(expected))
    np.save(path, np.zeros((40, 9, 9), np.uint8))
    with pytest.raises(DataError, match=r"\[1, 9, 9\].*\[1, 8, 8\]") as error:
        load_data(f"file:{path}", like=trained.info)
    one_line(error)
    for i in range(12):
        png(tmp_path / "images" / f"{i}.png", size=(30, 40), seed=i)
    images = load_data(f"folder:{tmp_path / 'images'}", roles="compress", like=trained.info)
    assert images.info["shape"] == [1, 8, 8]


def test_training_rows_cannot_come_back_as_certification(tmp_path):
    # The same file under another name, another seed, other roles: cut as it was for training.
    for name in ("a", "b"):
        np.savez(tmp_path / f"{name}.npz", x=np.arange(200.0).reshape(100, 2), y=np.arange(100) % 2)
    trained = load_data(f"file:{tmp_path / 'a.npz'}")
    again = load_data(f"file:{tmp_path / 'b.npz'}", roles="compress", seed=7, like=trained.info)
    assert torch.equal(again.certification.rows, trained.certification.rows)
    assert not set(again.certification.rows.tolist()) & set(trained.train.rows.tolist())


# --- augmentation -------------------------------------------------------------------------------


def test_random_crops_are_windows_of_the_padded_image():
    images = torch.arange(1, 33, dtype=torch.uint8).view(2, 1, 4, 4).repeat(50, 1, 1, 1)
    crops = random_crops(images, (4, 4), 1, torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(images, [1] * 4)
    seen = set()
    for image, crop in zip(padded, crops, strict=True):
        places = [
            (i, j) for i in range(3) for j in range(3)
            if torch.equal(crop, image[:, i : i + 4, j : j + 4])
        ]  # fmt: skip
        assert len(places) == 1
        seen.add(places[0])
    assert len(seen) == 9 and crops.dtype == torch.uint8


def test_random_flips_mirror_about_half():
    images = torch.arange(6.0).view(1, 1, 2, 3).repeat(400, 1, 1, 1)
    flipped = random_flips(images, torch.Generator().manual_seed(0))
    mirrored = (flipped == images.flip(-1)).flatten(1).all(1)
    assert (mirrored | (flipped == images).flatten(1).all(1)).all()
    assert 150 < int(mirrored.sum()) < 250


def test_augmentation_follows_its_generator():
    split = load_data("digits").train
    draws = [
        split.batch(torch.arange(20), augment=torch.Generator().manual_seed(s))[0]
        for s in (1, 1, 2)
    ]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


# --- what the Python API is handed ----------------------------------------------------------------

X, Y = torch.randn(10, 3, generator=torch.Generator().manual_seed(0)), torch.arange(10) % 2


@pytest.mark.parametrize(
    ("data", "labelled"),
    [
        (X, False),
        (X.numpy(), False),
        ((X, Y), True),
        ([X[:4], X[4:]], False),
        ([(X[:4], Y[:4]), (X[4:], Y[4:])], True),
        ([[X[:4]], [X[4:]]], False),
        (TensorDataset(X, Y), True),
        (DataLoader(TensorDataset(X, Y), batch_size=4), True),
        (DataLoader(TensorDataset(X), batch_size=None), False),
        (iter([(X[:4], Y[:4]), (X[4:], Y[4:])]), True),
    ],
    ids=lambda data: type(data).__name__,
)
def test_as_batches(data, labelled):
    batches = as_batches(data, size=4)
    if isinstance(data, DataLoader) and data.batch_size is None:
        with torch.no_grad():
            assert torch.equal(torch.stack([x for x, _ in batches]), X)
        return
    for _ in range(2):
        pairs = list(batches)
        assert torch.equal(torch.cat([x for x, _ in pairs]), X)
        assert all((y is not None) == labelled for _, y in pairs)
        if labelled:
            assert torch.equal(torch.cat([y for _, y in pairs]), Y)


class Noisy(torch.utils.data.Dataset):
    """A dataset with random transforms from all three global generators."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, i: int):
        noise = random.random() + np.random.rand()  # noqa: NPY002
        return torch.cat([X[i], torch.rand(1), torch.tensor([noise]).float()]), int(Y[i])


@pytest.mark.parametrize("own", [False, True])
def test_a_shuffling_loader_repeats_itself(own):
    generator = torch.Generator().manual_seed(3) if own else None
    loader = DataLoader(Noisy(), batch_size=4, shuffle=True, generator=generator)
    batches = as_batches(loader)
    passes = []
    for _ in range(2):
        seen = []
        for x, _ in batches:
            torch.rand(7)  # the consumer's own draws do not matter
            seen.append(x)
        passes.append(torch.cat(seen))
    assert torch.equal(*passes) and passes[0][:, 3].unique().numel() == 10
    assert sorted(passes[0][:, 0].tolist()) == sorted(X[:, 0].tolist())


def test_a_loader_leaves_the_random_states_alone():
    def states():
        return torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002

    before = states()
    for _ in as_batches(DataLoader(Noisy(), batch_size=4, shuffle=True)):
        now = states()
        assert torch.equal(now[0], before[0]) and now[1] == before[1]
        assert np.array_equal(now[2], before[2])
    assert torch.equal(torch.get_rng_state(), before[0])


@pytest.mark.parametrize(
    "data", [3, "digits", [], [None], [{"x": "words"}], [(X, Y[:3])], iter([]), [torch.tensor(1.0)]]
)
def test_as_batches_refuses(data):
    with pytest.raises(DataError) as error:
        list(as_batches(data))
    one_line(error)
