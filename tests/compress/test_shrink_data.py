"""What shrink() takes as data, and in which roles."""

import copy

import pytest
import torch
from cases.trained import CLASSES, examples, trained, weights_of
from torch.utils.data import DataLoader, TensorDataset

import fcompress
from fcompress.compress.pipeline import shrink
from fcompress.data import load_data
from fcompress.data.roles import roles_of
from fcompress.models import build
from fcompress.training.loop import TrainConfig, train


@pytest.fixture(scope="module")
def model():
    return trained()


def _ways(x, y):
    yield "list of tensors", list(x.split(100)), False
    yield "pairs", list(zip(x.split(100), y.split(100), strict=True)), True
    yield "one pair", (x, y), True
    yield "tensor", x, False
    yield "generator", (batch for batch in x.split(100)), False
    yield "generator of pairs", zip(x.split(64), y.split(64), strict=True), True
    yield "loader", DataLoader(TensorDataset(x, y), batch_size=32), True
    yield "loader of inputs", DataLoader(x, batch_size=32), False
    yield "dataset", TensorDataset(x, y), True
    yield "arrays", [x.numpy()], False
    yield "doubles", [x.double()], False


def test_data_may_come_in_any_shape(model):
    x, y = examples()
    expected = shrink(model, [(x, y)], ratio=0.5)
    for name, data, labelled in _ways(x, y):
        result = shrink(model, data, ratio=0.5)
        assert weights_of(result.model) == weights_of(expected.model), name
        assert (result.accuracy is not None) == labelled, name
        if labelled:
            assert result.accuracy == expected.accuracy
            assert 0.5 < result.accuracy["after"] <= 1


def test_a_shuffling_loader_is_read_in_one_order(model):
    x, y = examples()
    result = shrink(model, DataLoader(TensorDataset(x, y), 64, shuffle=True), tol=0.1)
    assert result.certified


def test_labels_change_nothing_but_the_report(model):
    x, y = examples()
    right = shrink(model, [(x, y)], tol=0.1)
    wrong = shrink(model, [(x, (y + 1) % CLASSES)], tol=0.1)
    assert weights_of(right.model) == weights_of(wrong.model)
    assert right.accuracy != wrong.accuracy


@pytest.fixture(scope="module")
def digits():
    splits = load_data("digits")
    wide = build("mlp", in_features=64, classes=10, width=0.5, depth=2)
    return train(wide, splits, TrainConfig(epochs=4, lr=0.1, device="cpu")).model, splits


def test_named_splits_are_taken_as_they_are(digits, tmp_path):
    wide, splits = digits
    result = shrink(wide, splits, tol=0.15)
    assert result.agreement.n == len(splits.certification)
    assert result.calibration == len(splits.calibration)
    assert all(c["n"] == len(splits.search) for c in result.candidates)
    assert result.test.n == len(splits.test)
    assert result.accuracy == result.test.accuracy
    assert result.data == splits.info
    entry = result.model.origin["history"][-1]
    assert entry["action"] == "shrink"
    assert entry["agreement"]["n"] == len(splits.certification)
    assert result.model.spec == wide.spec
    # The same inputs give the same file, byte for byte, and the file gives the same network.
    files = [tmp_path / name for name in ("one.pt", "two.pt")]
    fcompress.save(result.model, files[0])
    fcompress.save(shrink(wide, splits, tol=0.15).model, files[1])
    assert files[0].read_bytes() == files[1].read_bytes()
    x = next(splits.test.batches())[0]
    with torch.no_grad():
        assert torch.equal(fcompress.load(files[0]).eval()(x), result.model(x))


def test_a_thin_network_can_be_shrunk_again(digits):
    wide, splits = digits
    once = shrink(wide, splits, ratio=0.6)
    twice = shrink(once.model, splits, ratio=0.5)
    assert twice.macs["before"] == once.macs["after"]
    steps = [entry["action"] for entry in twice.model.origin["history"]]
    assert steps == ["train", "shrink", "shrink"]
    assert len(once.model.origin["history"]) == 2


class Recorder:
    """A split that notes what is read from it."""

    def __init__(self, split, log):
        self.split, self.log = split, log

    def __getattr__(self, name):
        return getattr(self.split, name)

    def __len__(self):
        return len(self.split)

    def batches(self, *args, **kwargs):
        self.log.append(self.split.name)
        return self.split.batches(*args, **kwargs)


def test_no_split_is_read_before_its_turn(digits):
    wide, splits = digits
    log = []
    names = ("calibration", "search", "certification", "test")
    watched = copy.copy(splits)
    for name in names:
        object.__setattr__(watched, name, Recorder(getattr(splits, name), log))
    lines = []

    def say(line):
        lines.append((str(line), log[4:]))

    shrink(wide, watched, tol=0.15, progress=say)
    ranking, certifying, measuring = lines[1], lines[-2], lines[-1]
    assert ranking[0].startswith("hybrid: ranking")
    # All are looked through once for copies, which no network takes part in.
    assert log[:4] == list(names)
    assert set(ranking[1]) == {"calibration"}
    assert certifying[0].startswith("certifying")
    assert set(certifying[1]) == {"calibration", "search"}
    assert set(measuring[1]) == {"calibration", "certification", "search"}
    assert log[-1] == "test"
    # For copies, for the count, and for examples of what changed.
    assert log.count("test") == 3


def test_roles_of_own_data_are_disjoint():
    x = torch.arange(1000.0)[:, None].repeat(1, 3)
    y = torch.arange(1000)
    roles = roles_of([(x, y)], seed=3)
    parts = [roles.calibration, roles.search, roles.certification]
    numbers = [torch.cat([inputs[:, 0] for inputs, _ in part]) for part in parts]
    assert [len(n) for n in numbers] == [500, 200, 300] == [len(part) for part in parts]
    assert sorted(torch.cat(numbers).tolist()) == list(range(1000))
    for part in parts:
        for inputs, labels in part:
            assert torch.equal(inputs[:, 0].long(), labels)
    assert torch.equal(roles.calibration.first(7), roles.calibration.inputs[:7])
    again, other = roles_of([(x, y)], seed=3), roles_of([(x, y)], seed=4)
    assert torch.equal(again.search.inputs, roles.search.inputs)
    assert not torch.equal(other.search.inputs, roles.search.inputs)
    # The identity of the data is that of its content, not of its batches.
    cut = roles_of(list(zip(x.split(10), y.split(10), strict=True)), seed=3)
    assert cut.info == roles.info
    assert roles_of([x], seed=3).info["sha256"] != roles.info["sha256"]


def test_data_beyond_the_limit_is_said_to_be_left_out(monkeypatch):
    data = [torch.randn(20, 4) for _ in range(5)]
    assert roles_of(data).info["complete"]
    monkeypatch.setattr("fcompress.data.roles.MOST_BYTES", 3 * 20 * 4 * 4)
    cut = roles_of(data).info
    assert not cut["complete"]
    assert sum(cut["sizes"].values()) == 60
