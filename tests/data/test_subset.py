"""Less data for small machines: `train=N` and `size=N` of the public datasets."""

import json

import pytest
import torch
from cases.data_files import all_rows, one_line
from click.testing import CliRunner

from fcompress.cli.main import main
from fcompress.data import load_data, reload_data
from fcompress.errors import DataError


@pytest.mark.parametrize("name", ["fashion-mnist", "cifar10,crop=28"])
def test_train_takes_the_first_of_the_training_split_only(name, request):
    cifar = name.startswith("cifar")
    root = request.getfixturevalue("small_cifar" if cifar else "small_fashion")
    whole = load_data(name, root=root, seed=3)
    part = load_data(f"{name},train=17", root=root, seed=3)
    assert part.train.rows.tolist() == whole.train.rows[:17].tolist()
    assert torch.equal(part.train.labels, whole.train.labels[:17])
    for role in ("calibration", "search", "certification", "test"):
        assert torch.equal(getattr(part, role).rows, getattr(whole, role).rows)
    assert part.info["sizes"] == {**whole.info["sizes"], "train": 17}
    rows = torch.cat(all_rows(part))
    assert rows.unique().numel() == rows.numel()
    assert part.info["sha256"] == whole.info["sha256"]
    alone = load_data(f"{name},train=17,holdout=0", root=root, seed=3)
    assert len(alone.train) == 17 and set(alone.present()) == {"train", "test"}


def test_statistics_are_those_of_the_examples_trained_on(small_fashion):
    part = load_data("fashion-mnist,train=9", root=small_fashion)
    values = part.train.examples.take(part.train.rows).double()
    assert part.info["mean"] == pytest.approx([float(values.mean())])
    assert part.info["std"] == pytest.approx([float(values.std(correction=0))])
    whole = load_data("fashion-mnist", root=small_fashion)
    assert part.info["mean"] != pytest.approx(whole.info["mean"], rel=1e-6)


def test_random_labels_do_not_depend_on_the_subset(small_fashion):
    whole = load_data("fashion-mnist", root=small_fashion, random_labels=5)
    part = load_data("fashion-mnist,train=9", root=small_fashion, random_labels=5)
    assert torch.equal(part.train.labels, whole.train.labels[:9])
    assert torch.equal(part.test.labels, whole.test.labels)


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("train=61", "60 examples"),
        ("train=0", "1 or more"),
        ("train=many", "whole number"),
        ("size=300", "at most 299"),
        ("size=0", "1 or more"),
    ],
)
def test_what_cannot_be_is_said(small_fashion, option, said):
    with pytest.raises(DataError, match=said) as error:
        load_data(f"fashion-mnist,{option}", root=small_fashion)
    assert option in one_line(error)


def test_data_without_the_options_refuses_them():
    with pytest.raises(DataError, match="has no option 'train'"):
        load_data("digits,train=9")
    with pytest.raises(DataError, match="has no option 'size'"):
        load_data("cifar10,size=14")


def test_size_takes_means_of_pixels(small_fashion):
    whole = load_data("fashion-mnist", root=small_fashion)
    small = load_data("fashion-mnist,size=14", root=small_fashion)
    assert small.info["shape"] == [1, 14, 14]
    rows = whole.test.rows
    images = whole.test.examples.take(rows).double()
    means = images.view(-1, 1, 14, 2, 14, 2).mean((3, 5))
    taken = small.test.examples.take(rows)
    assert taken.dtype == torch.uint8
    assert (taken.double() - means).abs().max() <= 0.5
    uneven = load_data("fashion-mnist,size=9", root=small_fashion)
    assert uneven.info["shape"] == [1, 9, 9]
    same = load_data("fashion-mnist,size=28", root=small_fashion)
    assert torch.equal(same.test.examples.take(rows).double(), images)


def test_size_enlarges_when_images_are_taken(small_fashion):
    whole = load_data("fashion-mnist", root=small_fashion)
    large = load_data("fashion-mnist,size=75", root=small_fashion)
    assert large.info["shape"] == [1, 75, 75]
    rows = whole.test.rows
    taken = large.test.examples.take(rows)
    assert taken.dtype == torch.uint8 and taken.shape == (len(rows), 1, 75, 75)
    images = whole.test.examples.take(rows).float()
    expected = torch.nn.functional.interpolate(images, (75, 75), mode="bilinear")
    assert (taken - expected).abs().max() < 1.01
    assert large.info["augmentation"] == whole.info["augmentation"]
    assert large.info["sha256"] == whole.info["sha256"]
    assert reload_data(large.info).info == large.info


def test_small_images_move_by_less(small_fashion):
    small = load_data("fashion-mnist,size=14", root=small_fashion)
    assert small.info["augmentation"] == "random crop with 2-pixel padding and horizontal flip"
    moved = small.train.examples.take(small.train.rows, torch.Generator().manual_seed(0))
    assert moved.shape[1:] == (1, 14, 14)
    whole = load_data("fashion-mnist", root=small_fashion)
    assert whole.info["augmentation"] == "random crop with 4-pixel padding and horizontal flip"


def test_what_a_network_remembers_is_cut_again(small_fashion):
    part = load_data("fashion-mnist,train=9,size=14", root=small_fashion, seed=2)
    again = reload_data(part.info)
    assert again.info == part.info
    assert torch.equal(again.train.rows, part.train.rows)
    # The same data without options, for a network that saw the subset: its subset, its size.
    like = load_data("fashion-mnist", root=small_fashion, like=part.info)
    assert like.info == part.info


def test_statistics_of_a_subset_of_small_images(small_fashion):
    part = load_data("fashion-mnist,train=9,size=14", root=small_fashion)
    inputs, _ = next(part.train.batches(9))
    assert inputs.mean().item() == pytest.approx(0, abs=1e-5)
    assert inputs.std(correction=0).item() == pytest.approx(1, abs=1e-5)


def test_data_command_documents_them(tmp_path):
    result = CliRunner().invoke(main, ["data", "--json", str(tmp_path / "data.json")])
    assert result.exit_code == 0
    kinds = {kind["name"]: kind for kind in json.loads((tmp_path / "data.json").read_text())}
    assert {"train", "size"} <= set(kinds["fashion-mnist"]["options"])
    assert "train" in kinds["cifar10"]["options"]
