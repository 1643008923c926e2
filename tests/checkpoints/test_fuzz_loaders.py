"""No file makes a loader do anything but load it or say in one line what is wrong with it.

Thousands of broken and hostile files are made from good ones, with seeds. For each: no exception
but `FcompressError`, no code run, no long wait, no memory beyond what a file of its size needs.
"""

import contextlib
import gzip
import io
import os
import pickle
import random
import resource
import signal
import struct
import zipfile
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from cases.data_files import png
from cases.mutations import mutated, regzipped, reheaded, resaved, rezipped
from torch.nn import functional as F

from fcompress.checkpoints import checkpoint
from fcompress.checkpoints.weights import read_weights
from fcompress.data import load_data
from fcompress.data.readers import arrays
from fcompress.errors import FcompressError
from fcompress.exports.describe import describe_file
from fcompress.exports.exporting import export
from fcompress.models import build
from fcompress.training.resume import read_resume, restore, resume_file, write_resume

FAST, SLOW = 15, 500  # files of each kind and way to break it
PATIENCE = 60  # seconds; each file here takes milliseconds
MEMORY = 400 * 2**20  # bytes beyond what was in use before
RUN = {"family": "mlp", "epochs": 3}


def network():
    return build("mlp", in_features=12, hidden=6, depth=2, classes=3).eval()


def thin_alexnet():
    """Local response normalisation with gaps, buffers of whole numbers, convolutions."""
    model = build("alexnet", width=0.05, in_channels=1, image_size=8, classes=3).eval()
    with torch.no_grad():
        model.lrn1.positions += torch.arange(len(model.lrn1.positions)) // 2
    return model


def optimizer_of(model):
    return torch.optim.Adam(model.parameters(), lr=0.1)


def unfinished(path):
    """The state of a run that stopped after its first epoch."""
    model = network()
    optimizer = optimizer_of(model)
    F.cross_entropy(model(torch.ones(2, 12)), torch.tensor([0, 1])).backward()
    optimizer.step()
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epochs": [{}]}
    write_resume(path, RUN, state)


def idx(values):
    return (
        bytes([0, 0, 8, values.ndim])
        + struct.pack(f">{values.ndim}I", *values.shape)
        + (values.astype(np.uint8).tobytes())
    )


def examples(count=40):
    generator = np.random.default_rng(0)
    return generator.normal(size=(count, 3, 4)).astype(np.float32), np.arange(count) % 5


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A good file for each loader, by name."""
    folder = tmp_path_factory.mktemp("good")
    history = [{"action": "train", "epochs": [{"train_accuracy": 0.5, "test_accuracy": None}]}]
    checkpoint.save(network(), folder / "mlp.pt", history=history)
    checkpoint.save(thin_alexnet(), folder / "alexnet.pt")
    inputs = torch.randn(5, 12, generator=torch.Generator().manual_seed(0))
    for ending in ("safetensors", "pt2"):
        export(network(), folder / f"mlp.{ending}", inputs)
    unfinished(folder / "run.pt")
    torch.save({"state_dict": network().state_dict(), "epoch": 3}, folder / "state.pt")
    torch.save(network().state_dict(), folder / "old.pth", _use_new_zipfile_serialization=False)
    x, y = examples()
    np.savez(folder / "plain.npz", x=x, y=y)
    np.savez_compressed(folder / "packed.npz", x=x, y=y)
    np.save(folder / "x.npy", x)
    torch.save({"x": torch.from_numpy(x), "y": torch.from_numpy(y)}, folder / "data.pt")
    torch.save((torch.from_numpy(x), torch.from_numpy(y)), folder / "old_data.pt",
               _use_new_zipfile_serialization=False)  # fmt: skip
    pixels = np.random.default_rng(1).integers(0, 256, (30, 28, 28))
    (folder / "images.idx").write_bytes(idx(pixels))
    (folder / "images.idx.gz").write_bytes(gzip.compress(idx(pixels), 1))
    (folder / "labels.idx").write_bytes(idx(np.arange(30) % 10))
    png(folder / "image.png")
    return folder


def all_of(splits):
    """Take every example out, as a command would."""
    for split in splits.present().values():
        for inputs, labels in split.batches(64):
            assert len(inputs) and (labels is None or len(labels) == len(inputs))


def from_file(path):
    all_of(load_data(f"file:{path}", roles="compress"))


def from_file_raw(path):
    all_of(load_data(f"file:{path},raw=1", roles="compress"))


def from_idx(kind, path):
    """The other three files of Fashion-MNIST are good ones."""
    root, good = path.parent / "FashionMNIST" / "raw", path.parent / "good"
    root.mkdir(parents=True, exist_ok=True)
    for part in ("train", "t10k"):
        for name in ("images-idx3", "labels-idx1"):
            for ending in ("", ".gz"):
                (root / f"{part}-{name}-ubyte{ending}").unlink(missing_ok=True)
            what = name.partition("-")[0]
            (root / f"{part}-{name}-ubyte").write_bytes((good / f"{what}.idx").read_bytes())
    target = root / f"train-{kind}-ubyte"
    target.unlink()
    target.with_name(target.name + ("" if path.suffix == ".idx" else ".gz")).write_bytes(
        path.read_bytes()
    )
    all_of(load_data("fashion-mnist", root=path.parent))


def from_images(path):
    folder = path.parent / "images"
    folder.mkdir(exist_ok=True)
    for i in range(9):
        (folder / f"{i}.png").write_bytes((path.parent / "good" / "image.png").read_bytes())
    (folder / "0.png").write_bytes(path.read_bytes())
    all_of(load_data(f"folder:{folder},size=8", roles="compress"))


def resume(path):
    out = path.with_name("resumed.pt")
    resume_file(out).write_bytes(path.read_bytes())
    state = read_resume(out, RUN, True)
    model = network()
    optimizer = optimizer_of(model)
    restore(out, state, model, optimizer)
    F.cross_entropy(model(torch.ones(2, 12)), torch.tensor([0, 1])).backward()
    optimizer.step()


# Good file, loaders, ways to break it.
CASES = {
    "checkpoint": ("mlp.pt", (checkpoint.load, describe_file), (mutated, rezipped, resaved)),
    "alexnet": ("alexnet.pt", (checkpoint.load,), (rezipped, resaved)),
    "safetensors": ("mlp.safetensors", (checkpoint.load, describe_file), (mutated, reheaded)),
    "program": ("mlp.pt2", (describe_file,), (mutated, rezipped)),
    "resume": ("run.pt.resume", (resume,), (mutated, rezipped, resaved)),
    "state": ("state.pt", (read_weights, describe_file), (mutated, rezipped, resaved)),
    "old state": ("old.pth", (read_weights, describe_file), (mutated,)),
    "npz": ("plain.npz", (from_file,), (mutated, rezipped)),
    "packed npz": ("packed.npz", (from_file_raw,), (mutated, rezipped)),
    "npy": ("x.npy", (from_file,), (mutated,)),
    "tensors": ("data.pt", (from_file, from_file_raw), (mutated, rezipped, resaved)),
    "old tensors": ("old_data.pt", (from_file,), (mutated,)),
    "idx": ("images.idx", (lambda path: from_idx("images-idx3", path),), (mutated,)),
    "idx.gz": ("images.idx.gz", (lambda path: from_idx("images-idx3", path),),
               (mutated, regzipped)),
    "idx labels": ("labels.idx", (lambda path: from_idx("labels-idx1", path),), (mutated,)),
    "image": ("image.png", (from_images,), (mutated,)),
}  # fmt: skip


def attempt(load, path):
    """What became of one file: "loaded" or "refused"."""
    try:
        load(path)
        return "loaded"
    except FcompressError as error:
        text = str(error)
        assert len(text) < 5000, text[:300]
        assert len(text.splitlines()) == 1, repr(text)
        assert text.isprintable(), repr(text)
        return "refused"


@contextlib.contextmanager
def bounded():
    """A hang is an error, and so is memory beyond the bound."""

    def late(signum, frame):
        raise TimeoutError(f"a loader took more than {PATIENCE} s")

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    handler = signal.signal(signal.SIGALRM, late)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    assert grown < MEMORY, f"memory grew by {grown:,} bytes"


def fuzz(case, good, folder, count, seed):
    """Break one good file in many ways; how often that was noticed."""
    name, loads, ways = CASES[case]
    (folder / "good").symlink_to(good)
    whole = (good / name).read_bytes()
    path = folder / name
    outcomes = Counter()
    for load in loads:
        path.write_bytes(whole)
        assert attempt(load, path) == "loaded", f"the good {name}"
    with bounded():
        for way in ways:
            for number in range(count):
                rng = random.Random(f"{case} {way.__name__} {number} {seed}")
                path.write_bytes(way(whole, rng))
                for load in loads:
                    signal.alarm(PATIENCE)
                    try:
                        outcomes[attempt(load, path)] += 1
                    except BaseException as error:
                        error.add_note(f"{case}, {way.__name__}, number {number}, seed {seed}")
                        raise
                outcomes["files"] += 1
    return outcomes


@pytest.mark.parametrize("case", list(CASES))
def test_broken_files_are_refused_in_one_line(case, good, tmp_path):
    outcomes = fuzz(case, good, tmp_path, FAST, 0)
    assert outcomes["refused"] > 0.3 * (outcomes["refused"] + outcomes["loaded"])


@pytest.mark.slow
def test_ten_thousand_broken_files(good, tmp_path):
    total = Counter()
    for case in CASES:
        (tmp_path / case).mkdir()
        total += fuzz(case, good, tmp_path / case, SLOW, 1)
    assert total["files"] >= 10_000
    assert total["refused"] > 5_000


# --- files that somebody made to harm -----------------------------------------------------------


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


LOADERS = (checkpoint.load, describe_file, read_weights, from_file, from_file_raw, resume)


@pytest.mark.parametrize("ending", [".pt", ".npy", ".npz", ".safetensors", ".pt2", ".pth"])
def test_no_pickle_is_ever_run(ending, tmp_path):
    trap = Trap(tmp_path / "ran")
    plain = pickle.dumps(trap)
    as_zip, as_torch, as_npz = io.BytesIO(), io.BytesIO(), io.BytesIO()
    torch.save(trap, as_torch)
    torch.save({"state_dict": {"a": torch.ones(2)}, "x": trap}, as_npz)
    with zipfile.ZipFile(as_zip, "w") as archive:
        for name in ("x/data.pkl", "data.pkl", "x.npy", "x/extra/fcompress.json", "x/version"):
            archive.writestr(name, plain)
    array = io.BytesIO()
    np.save(array, np.array([trap], dtype=object), allow_pickle=True)
    path = tmp_path / f"hostile{ending}"
    for content in (plain, as_zip.getvalue(), as_torch.getvalue(), as_npz.getvalue(),
                    array.getvalue()):  # fmt: skip
        path.write_bytes(content)
        for load in LOADERS:
            attempt(load, path)
    assert not trap.path.exists()
    pickle.loads(plain)  # the trap itself works
    assert trap.path.exists()


def test_cifar_pickles_are_not_opened(tmp_path):
    trap = Trap(tmp_path / "ran")
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch", "batches.meta"]
    for name in names:
        (folder / name).write_bytes(pickle.dumps({"data": trap}))
    with pytest.raises(FcompressError, match="wrong MD5 sum"):
        load_data("cifar10", root=tmp_path)
    assert not trap.path.exists()


def bomb(name, size):
    """A zip archive of a thousandth of the size that unfolds to `size` bytes."""
    made = io.BytesIO()
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "|u1", "fortran_order": False, "shape": (size // 64, 64)}
    )
    with (
        zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive,
        archive.open(name, "w", force_zip64=True) as entry,
    ):
        entry.write(header.getvalue())
        for _ in range(size // 2**24):
            entry.write(bytes(2**24))
    return made.getvalue()


def test_bombs_do_not_unfold(tmp_path, monkeypatch):
    monkeypatch.setattr(arrays, "UNPACKED_BYTES", 2**20)  # quicker to make than a gigabyte
    (tmp_path / "x.npz").write_bytes(bomb("x.npy", 2**26))
    assert (tmp_path / "x.npz").stat().st_size < 2**17
    for ending in (".pt", ".pt2"):
        (tmp_path / f"x{ending}").write_bytes(bomb("x/data.pkl", 2**26))
    deflate = zlib.compressobj(9, zlib.DEFLATED, 31)
    parts = [deflate.compress(bytes(2**24)) for _ in range(8)] + [deflate.flush()]
    (tmp_path / "x.gz").write_bytes(b"".join(parts))
    good = idx(np.arange(30) % 10), idx(np.ones((30, 28, 28)))
    for part in ("train", "t10k"):
        (tmp_path / f"{part}-labels-idx1-ubyte").write_bytes(good[0])
        (tmp_path / f"{part}-images-idx3-ubyte").write_bytes(good[1])
    (tmp_path / "train-images-idx3-ubyte").rename(tmp_path / "aside")
    (tmp_path / "x.gz").rename(tmp_path / "train-images-idx3-ubyte.gz")
    with bounded():
        with pytest.raises(FcompressError, match="unfolds to"):
            from_file(tmp_path / "x.npz")
        with pytest.raises(FcompressError, match="unfolds to"):
            load_data("fashion-mnist", root=tmp_path)
        for load in LOADERS:
            assert attempt(load, tmp_path / "x.pt") == "refused"
        assert attempt(describe_file, tmp_path / "x.pt2") == "refused"


def claiming(width, height):
    """A PNG file of some bytes that says it holds so many pixels."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def test_an_image_that_claims_too_many_pixels(good, tmp_path):
    (tmp_path / "good").symlink_to(good)
    for side in (9000, 12_000, 40_000, 2**31 - 1):
        (tmp_path / "image.png").write_bytes(claiming(side, side))
        with bounded():
            assert attempt(from_images, tmp_path / "image.png") == "refused"


def test_one_value_that_claims_to_be_many(tmp_path):
    spread = torch.ones(1, 1).expand(10**7, 10**4)
    for content in ({"x": spread}, spread, (spread, torch.ones(1).expand(10**7))):
        torch.save(content, tmp_path / "x.pt")
        with bounded():
            assert attempt(from_file, tmp_path / "x.pt") == "refused"
            assert attempt(from_file_raw, tmp_path / "x.pt") == "refused"


def test_names_of_files_are_only_names(tmp_path):
    """Neither a folder that leads back to itself nor a strange name does harm."""
    for number in range(12):
        png(tmp_path / "images" / f"{number}.png", seed=number)
    for link in ("a", "b", "c"):
        (tmp_path / "images" / link).symlink_to(tmp_path / "images")
    with bounded():
        signal.alarm(PATIENCE)
        splits = load_data(f"folder:{tmp_path / 'images'},labels=0", roles="compress")
    assert sum(len(split) for split in splits.present().values()) == 12
    strange = tmp_path / "strange"
    strange.mkdir()
    for number in range(12):
        png(tmp_path / "x.png", seed=number)
        target = os.fsencode(strange) + b"/\xff" + str(number).encode() + b".png"
        Path(os.fsdecode(target)).write_bytes((tmp_path / "x.png").read_bytes())
    all_of(load_data(f"folder:{strange}", roles="compress"))
    os.mkfifo(strange / "pipe.png")
    with pytest.raises(FcompressError, match=r"pipe\.png is no file"):
        load_data(f"folder:{strange}", roles="compress")


def test_texts_of_others_reach_no_terminal(tmp_path):
    """What a file calls things is shown without the characters that steer a terminal."""
    hostile = {"\x1b[2J\nx": torch.ones(2), "fc1.weight": torch.ones(2, 2)}
    torch.save({"format": "fcompress", "state": hostile}, tmp_path / "a.pt")
    torch.save({"z\x1b[2J": np.float64}, tmp_path / "b.pt")
    torch.save({"\x1b[2J\n": torch.ones(2)}, tmp_path / "c.pt")
    for name in ("a.pt", "b.pt", "c.pt"):
        for load in (checkpoint.load, from_file):
            assert attempt(load, tmp_path / name) == "refused"
