"""Which examples certify a network that somebody else trained on a named dataset."""

import json
import warnings

import pytest
import torch
from click.testing import CliRunner
from torch import nn

import fcompress
from fcompress.cli import main
from fcompress.data import load_data, reload_data
from fcompress.data.seen import seen_warning
from fcompress.data.splits import of_test_sizes
from fcompress.errors import DataError

NET = """
from torch import nn

def make():
    return nn.Sequential(nn.Flatten(), nn.Linear({inputs}, 12), nn.ReLU(), nn.Linear(12, {classes}))
"""


def run(*arguments):
    return CliRunner().invoke(main, [str(a) for a in arguments])


def _rows(splits):
    return {name: set(split.rows.tolist()) for name, split in splits.present().items()}


def _spec(name, request):
    if name == "gaussian:6,n=300":
        return name, None, 300 + 3000
    root = request.getfixturevalue(
        {"fashion-mnist": "small_fashion", "cifar10": "small_cifar"}[name]
    )
    return name, root, 100


@pytest.mark.parametrize("seed", [0, 5])
@pytest.mark.parametrize("name", ["fashion-mnist", "cifar10", "gaussian:6,n=300"])
def test_what_was_trained_on_does_not_certify(name, seed, request):
    spec, root, training = _spec(name, request)
    plain = load_data(spec, root=root, seed=seed)
    splits = load_data(spec, root=root, seed=seed, seen="train")
    rows = _rows(splits)
    whole = _rows(plain)["test"]
    assert min(rows["search"] | rows["certification"] | rows["test"]) >= training
    assert rows["search"] | rows["certification"] | rows["test"] == whole
    assert sum(len(rows[n]) for n in ("search", "certification", "test")) == len(whole)
    assert max(rows["calibration"]) < training
    # The control: without a word it comes from the training split.
    assert max(_rows(plain)["certification"]) < training
    assert _rows(load_data(spec, root=root, seed=seed, seen="none")) == _rows(plain)
    # The statistics are the same, and so are the examples that are cut again.
    assert splits.info["mean"] == plain.info["mean"]
    assert _rows(reload_data(splits.info, root=root)) == rows
    assert _rows(load_data(spec, root=root, like=splits.info, roles="compress")) == rows
    assert splits.info["drawn_from"]["certification"] == "official test split"
    assert plain.info["drawn_from"]["certification"] == "official training split"


def test_the_seed_decides_the_cut_of_the_test_split(small_fashion):
    one, other = (
        load_data("fashion-mnist", root=small_fashion, seed=s, seen="train") for s in (0, 1)
    )
    assert _rows(one)["certification"] != _rows(other)["certification"]


@pytest.mark.parametrize(
    ("count", "sizes"), [(10_000, (3000, 5000, 2000)), (1000, (300, 500, 200)), (20, (6, 10, 4))]
)
def test_how_much_of_it_is_taken(count, sizes):
    assert tuple(of_test_sizes(count).values()) == sizes


def test_data_is_cut_as_it_was_cut_by_an_earlier_version(small_fashion):
    """Sizes of the splits have changed; what a file remembers has not."""
    info = load_data("fashion-mnist", root=small_fashion, seen="train").info
    sizes = {role: info["sizes"][role] for role in ("search", "certification", "test")}
    total = sum(sizes.values())
    old = {"search": total // 5, "certification": total // 5, "test": total - 2 * (total // 5)}
    assert old != sizes
    known = {**info, "sizes": {**info["sizes"], **old}}
    for again in (
        reload_data(known, root=small_fashion),
        load_data("fashion-mnist", root=small_fashion, like=known),
    ):
        assert {role: len(getattr(again, role)) for role in old} == old
        assert again.info["sizes"] == known["sizes"]
    # Sizes that do not fit the data are not taken.
    for wrong in ({"search": 0, "certification": total, "test": 0}, {"test": total}, {}):
        assert of_test_sizes(total, wrong) == sizes
    assert of_test_sizes(total, old) == old


@pytest.mark.parametrize("seen", ["train", "none"])
def test_data_without_an_official_split_is_cut_the_same(seen):
    assert _rows(load_data("digits", seen=seen)) == _rows(load_data("digits"))


def test_what_is_no_word_is_refused(small_fashion):
    with pytest.raises(ValueError, match="seen='all': expected one of train, none"):
        load_data("digits", seen="all")
    info = load_data("fashion-mnist", root=small_fashion, seen="train").info
    with pytest.raises(DataError, match=r"seen=none .* was cut with train"):
        load_data("fashion-mnist", root=small_fashion, like=info, seen="none")


def test_python_is_warned_of_networks_of_unknown_training(small_fashion):
    data = {
        s: load_data("fashion-mnist", root=small_fashion, seen=s) for s in (None, "train", "none")
    }
    foreign = nn.Linear(3, 2)
    assert "seen='train'" in seen_warning(foreign, data[None].info)
    assert seen_warning(foreign, data["train"].info) is None
    assert seen_warning(foreign, data["none"].info) is None
    assert seen_warning(foreign, load_data("digits").info) is None
    own = fcompress.build("mlp", in_features=64, classes=10)
    assert seen_warning(own, data[None].info) is not None
    own.origin = {"data": data[None].info, "history": []}
    assert seen_warning(own, data[None].info) is None


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "net.py").write_text(NET.format(inputs=4, classes=2))
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 12), nn.ReLU(), nn.Linear(12, 2))
    torch.save(network.state_dict(), tmp_path / "w.pth")
    return tmp_path


def _shrink(folder, *more):
    arguments = ("--arch", f"{folder / 'net.py'}:make", "--data", "gaussian:4", "--tol", 0.4)
    found = run(
        "shrink", folder / "w.pth", *arguments, "--out", folder / "o.pt", "--json", "-", *more
    )
    assert found.exit_code == 0, found.output
    return found.stderr, json.loads(found.stdout)


def test_the_command_takes_the_test_split_and_says_so(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        said, record = _shrink(folder)
    assert record["data"]["seen"] == "train"
    assert record["data"]["drawn_from"]["search"] == "official test split"
    assert record["agreement"]["n"] == record["independent"] == 500
    assert "300 and 500 of gaussian's official test split" in said and "--seen none" in said
    # What it was certified on is not what it is compared on.
    arch = ("--arch", f"{folder / 'net.py'}:make")
    checked = run("verify", folder / "w.pth", folder / "o.pt", *arch, "--json", "-")
    checked = json.loads(checked.stdout)
    assert (checked["split"], checked["n"]) == ("test", 200)
    said, record = _shrink(folder, "--seen", "none")
    assert record["data"]["drawn_from"]["search"] == "official training split"
    assert record["agreement"]["n"] == 1000 and "official" not in said
    refused = run("verify", folder / "w.pth", folder / "o.pt", *arch, "--seen", "train")
    assert refused.exit_code == 1 and "was cut with none" in refused.output


def test_own_networks_know_what_they_were_trained_on(tmp_path):
    from fcompress.training.loop import TrainConfig, train

    splits = load_data("gaussian:4")
    model = fcompress.build("mlp", in_features=4, classes=2, width=0.25)
    fcompress.save(
        train(model, splits, TrainConfig(epochs=1, device="cpu")).model, tmp_path / "m.pt"
    )
    found = run("shrink", tmp_path / "m.pt", "--tol", 0.4, "--json", "-", "--data", "gaussian:4")
    assert json.loads(found.stdout)["data"] == splits.info
