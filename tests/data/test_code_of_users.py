"""Whatever data of the user's raises is one line with its place, at every entry point."""

import os
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset

import fcompress
from fcompress.data import as_batches
from fcompress.data.readers import folders
from fcompress.errors import DataError

X = torch.randn(300, 6, generator=torch.Generator().manual_seed(0))


class OfItsOwn(BaseException):
    pass


class Unprintable(Exception):
    def __str__(self):
        raise ValueError("no words")


class Mine(Dataset):
    """Examples of which number 200 raises, or what else is asked for."""

    def __init__(self, error=None, at=200, length=300):
        self.error, self.at, self.length = error, at, length

    def __len__(self):
        if isinstance(self.length, BaseException):
            raise self.length
        return self.length

    def __getitem__(self, i):
        if self.error is not None and i == self.at:
            raise self.error
        return X[i]


class Endless(IterableDataset):
    def __iter__(self):
        yield X[0]
        raise KeyError("mine")


class Batched:
    def __init__(self, first=None, then=None):
        self.first, self.then = first, then

    def __iter__(self):
        if self.first is not None:
            raise self.first
        yield X
        raise self.then


class Table(Mapping):
    def __getitem__(self, key):
        raise ValueError("mine")

    def __iter__(self):
        raise ValueError("mine")

    def __len__(self):
        return 1


def generator():
    yield X
    raise ValueError("mine")


def collate(parts):
    raise ValueError("mine")


def worker(number):
    raise ValueError("mine")


class Numbers(torch.utils.data.Sampler):
    def __init__(self, error=None):
        self.error = error

    def __iter__(self):
        yield 0
        raise self.error or ValueError("mine")

    def __len__(self):
        return 300


class Dying(Mine):
    def __getitem__(self, i):
        os._exit(3)


MINE = ValueError("mine")
RAISING = {
    "an example": lambda: Mine(MINE),
    "an example, one line of several": lambda: Mine(ValueError("mine\nand more")),
    "an example that exits": lambda: Mine(SystemExit("mine")),
    "an example of its own kind": lambda: Mine(OfItsOwn("mine")),
    "too few examples": lambda: Mine(IndexError("mine"), at=299),
    "its length": lambda: Mine(length=ValueError("mine")),
    "a loader": lambda: DataLoader(Mine(MINE), batch_size=50),
    "a loader with a process": lambda: DataLoader(Mine(MINE), batch_size=50, num_workers=1),
    "what collates": lambda: DataLoader(Mine(), batch_size=50, collate_fn=collate),
    "what begins a process": lambda: DataLoader(
        Mine(), batch_size=50, num_workers=1, worker_init_fn=worker
    ),
    "a stream": lambda: DataLoader(Endless(), batch_size=50),
    "a stream in a process": lambda: DataLoader(Endless(), batch_size=50, num_workers=1),
    "a sampler": lambda: DataLoader(Mine(), batch_size=50, sampler=Numbers()),
    "an iterable that does not begin": lambda: Batched(first=MINE),
    "an iterable later": lambda: Batched(then=MINE),
    "a generator": generator,
    "an iterable of its own kind": lambda: Batched(then=OfItsOwn("mine")),
    "a table": lambda: [Table()],
}
USES = {
    "shrink": lambda net, data: fcompress.shrink(net, data, tol=0.3),
    "analyze": fcompress.analyze,
    "gain": lambda net, data: fcompress.gain([net, twice_as_wide(net)], data),
    "verify": lambda net, data: fcompress.verify(net, net, data),
    "export": lambda net, data: fcompress.export(net, "never.safetensors", data),
}


def network():
    return fcompress.build("mlp", in_features=6, classes=3, width=0.1)


def twice_as_wide(model):
    args = {**model.spec.args, "width": 2 * model.spec.args["width"]}
    return fcompress.build(model.spec.family, **args)


@pytest.mark.parametrize("name", RAISING)
def test_what_raises_is_one_line_with_its_place(name):
    with pytest.raises(DataError, match="mine") as caught:
        list(as_batches(RAISING[name]()))
    text = str(caught.value)
    assert "\n" not in text and "and more" not in text
    assert "test_code_of_users.py, line" in text
    assert any(kind in text for kind in ("Error: ", "SystemExit: ", "OfItsOwn: "))


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("name", ["an example", "a loader", "an iterable later", "a generator"])
def test_every_entry_point_says_it(name, use, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"test_code_of_users\.py, line .*ValueError: mine"):
        USES[use](network(), RAISING[name]())
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore")
def test_other_ends():
    with pytest.raises(DataError, match="ends after 4 of 6 batches"):
        list(as_batches(DataLoader(Mine(StopIteration()), batch_size=50)))
    with pytest.raises(DataError, match="no message"):
        list(as_batches(Mine(Unprintable())))
    with pytest.raises(DataError, match="exited unexpectedly"):
        list(as_batches(DataLoader(Dying(), batch_size=50, num_workers=1)))
    with pytest.raises(KeyboardInterrupt):
        list(as_batches(Mine(KeyboardInterrupt())))
    # What its reader raises between two batches is the reader's own.
    with pytest.raises(ZeroDivisionError):
        for _ in as_batches(Mine()):
            raise ZeroDivisionError
    assert len(list(as_batches(Mine()))) == 2


def arrays():
    plain = X.numpy()
    yield plain[::-1], plain[::-1].copy()
    yield plain.astype(">f4"), plain
    fixed = plain.copy()
    fixed.setflags(write=False)
    yield fixed, plain
    yield np.ma.masked_array(plain, mask=False), plain
    yield np.asfortranarray(plain), plain
    yield plain.view(np.recarray), plain
    yield plain[:, ::-1], plain[:, ::-1].copy()


@pytest.mark.filterwarnings("error")
def test_arrays_of_every_layout_are_read():
    for given, expected in arrays():
        (first, _), *_ = as_batches(given, size=400)
        assert (first.numpy() == expected).all()


REFUSED = {
    "masked": np.ma.masked_array(X.numpy(), mask=X.numpy() > 0),
    "without an axis": np.array(3.0),
    "complex": X.numpy().astype(complex),
    "objects": np.array([[object()]]),
    "texts": np.array([["a", "b"]]),
    "dates": np.zeros((3, 2), "datetime64[s]"),
    "records": np.zeros(3, [("a", "f4"), ("b", "f4")]),
    "long doubles": np.zeros((3, 2), np.longdouble),
    "a number": 3,
    "a text": "digits",
    "nothing": None,
    "a class": Mine,
    "a list of numbers": [1.0, 2.0],
    "no batch": [],
}


@pytest.mark.parametrize("name", REFUSED)
def test_data_of_no_kind_is_refused(name):
    with pytest.raises(DataError) as caught:
        list(as_batches(REFUSED[name]))
    assert "\n" not in str(caught.value)


def test_files_that_vanish_are_named(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    for name in "ab":
        (tmp_path / name).mkdir()
        for i in range(40):
            pixels = rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{i}.png")
    monkeypatch.setattr(folders, "IN_MEMORY", 0)  # as of many: they are read batch by batch
    splits = fcompress.load_data(f"folder:{tmp_path},size=8")
    model = fcompress.build("mlp", in_features=192, classes=2, width=0.1)
    for path in tmp_path.glob("*/*.png"):
        path.unlink()
    for name, use in USES.items():
        data = splits if name in ("shrink", "analyze", "gain") else splits.test
        with pytest.raises(DataError, match=r"\.png.*(no such file|No such file)") as caught:
            use(model, data)
        assert "\n" not in str(caught.value)
    with pytest.raises(DataError):
        fcompress.train(model, splits, fcompress.TrainConfig(epochs=1, device="cpu"))
    with pytest.raises(DataError):
        fcompress.load_data(f"folder:{tmp_path},size=8")


def test_the_line_is_short():
    with pytest.raises(DataError) as caught:
        list(as_batches(Mine(ValueError("x" * 10**6))))
    assert len(str(caught.value)) < 5000
