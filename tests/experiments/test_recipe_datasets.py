"""Recipes at paper scale on tiny files in the datasets' own formats.

What the paper's data goes through is run as it is; only widths, epochs and sizes are smaller.
"""

import json

import pytest
import torch
from cases.data_files import png
from click.testing import CliRunner

from fcompress.cli import main
from fcompress.data import load_data
from fcompress.experiments import recipe as recipes
from fcompress.experiments.trials.trial import trials_of


@pytest.fixture
def small_imagenet(tmp_path):
    """ImageNet's folders: train/ and val/, one folder a class, images of many sizes."""
    root = tmp_path / "imagenet"
    for i in range(12):
        png(root / "train" / f"n0{i % 3}" / f"{i}.JPEG", (300 - 5 * i, 240), seed=i)
    for i in range(6):
        png(root / "val" / f"n0{i % 3}" / f"{i}.JPEG", (240, 260 + i), seed=100 + i)
    return root


def run(name, out, root, *changes, code=0):
    arguments = ["recipe", "run", name, "--scale", "paper", "--workers", "1", "--out", str(out)]
    arguments += [] if root is None else ["--data-root", str(root)]
    for change in changes:
        arguments += ["--set", change]
    result = CliRunner().invoke(main, [*arguments, "--device", "cpu"])
    assert result.exit_code == code, (result.output, result.exception)
    return result


def records(name, out, *changes):
    """Of all trials, which must be those of the recipe with the changes."""
    content = json.loads((out / "results.json").read_text())
    wanted = {trial.id for trial in trials_of(recipes.read(name, "paper", changes))}
    assert {one["id"] for one in content["trials"]} == wanted
    assert not [one for one in content["trials"] if "failed" in one]
    return {one["curve"]: one for one in content["trials"]}


def test_cifar10(small_cifar, tmp_path):
    out = tmp_path / "out"
    small = ["widths=[0.0625]", "seeds=1", "train.epochs=1", "measure.analyze.orders=1"]
    run("fig4c", out, small_cifar, *small)
    found = records("fig4c", out, *small)
    assert set(found) == {"Glorot", "He", "LeCun"}
    for record in found.values():
        assert record["data"]["spec"] == "cifar10,crop=28,holdout=0"
        # All training images train, all test images measure.
        assert record["data"]["sizes"]["train"] == 100 and record["data"]["sizes"]["test"] == 20
        assert record["data"]["shape"] == [3, 28, 28] and record["data"]["classes"] == 10
        assert record["work"]["train"]["lr"] == 0.01 and record["measure"]["analyze"]["ablation"]
    page = (out / "summary.md").read_text()
    assert "cifar10,crop=28,holdout=0 (" in page and "train 100" in page
    assert "--scale paper --set 'widths=[0.0625]' --set seeds=1 " in page


def test_cifar10_with_random_labels_and_augmentation(small_cifar, tmp_path):
    out = tmp_path / "out"
    small = ["widths=[0.0625]", "seeds=1", "measure.analyze.orders=1"]
    small += [f'curves."{name}{label}".train.epochs=1' for name in ("AlexNet", "ResNet56")
              for label in ("", ", random labels")]  # fmt: skip
    small.append("measure.analyze.by_layer=false")
    run("fig4a", out, small_cifar, *small)
    found = records("fig4a", out, *small)
    drawn = {name: one["data"]["random_labels"] for name, one in found.items()}
    assert list(drawn.values()) == [0 if "random" in name else None for name in drawn]
    assert found["ResNet56"]["work"]["train"]["augment"]
    assert not found["ResNet56, random labels"]["work"]["train"].get("augment")


def test_images_are_contiguous(small_imagenet):
    """Images with the channels last make torch 2.15 write outside its memory; see `take`."""
    train = load_data("imagenet,size=75,holdout=0", root=small_imagenet).train
    for augment in (None, torch.Generator().manual_seed(0)):
        inputs, _ = train.batch(torch.arange(6), augment=augment)
        assert inputs.shape == (6, 3, 75, 75) and inputs.is_contiguous()


@pytest.mark.slow
def test_imagenet(small_imagenet, tmp_path):
    out = tmp_path / "out"
    small = [
        "widths=[0.125]",
        "curves.Inception-v3.widths=[0.125]",
        "curves.Inception-v3-layer.widths=[0.25]",
        "curves.Inception-v3.data=imagenet,size=75,holdout=0",
        "curves.Inception-v3-layer.data=imagenet,size=75,holdout=0",
        "train.epochs=1",
        "train.batch_size=6",
        "measure.analyze.orders=1",
    ]
    run("fig3ab", out, small_imagenet, *small)
    found = records("fig3ab", out, *small)
    shapes = {name: one["data"]["shape"] for name, one in found.items()}
    assert shapes == {
        "ResNet18": [3, 224, 224],
        "Inception-v3": [3, 75, 75],
        "Inception-v3-layer": [3, 75, 75],
    }
    for record in found.values():
        assert record["data"]["sizes"]["train"] == 12 and record["data"]["sizes"]["test"] == 6
        assert record["data"]["classes"] == 3 and record["work"]["train"]["augment"]
    optimizers = {name: one["work"]["train"].get("optimizer") for name, one in found.items()}
    assert optimizers == {
        "ResNet18": None,
        "Inception-v3": "rmsprop",
        "Inception-v3-layer": "rmsprop",
    }
    assert (out / "figures" / "accuracy.svg").exists()


@pytest.mark.slow
def test_inception_layer_by_layer(small_imagenet, tmp_path):
    out = tmp_path / "out"
    small = [
        "data=imagenet,size=75,holdout=0",
        "widths=[0.125, 0.25]",
        "train.epochs=1",
        "train.batch_size=6",
        "measure.analyze.orders=1",
        'measure.analyze.layers=["Conv2d_1a_3x3.relu", "Mixed_7c.branch1x1.relu"]',
    ]
    run("inception_layers", out, small_imagenet, *small)
    (found,) = records("inception_layers", out, *small).values()
    measured = found["measure"]["analyze"]
    assert len(measured["ablation"]["layers"]) == 2
    assert len(measured["redundancy"]["layers"]) == 16
    assert {path.stem for path in (out / "figures").iterdir()} == {"layers", "growth"}
    content = json.loads((out / "results.json").read_text())
    assert [row["quantity"] for row in content["compared"]][:2] == ["prunable", "non_prunable"]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("fig4c", ["cifar-10-batches-py", "--data-root"]),
        ("fig3ab", ["ImageNet", "train/", "--data-root"]),
        ("inception_layers", ["ImageNet", "train/", "--data-root"]),
    ],
)
def test_missing_data_is_one_line(name, said, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "data").mkdir()
    for root in (None, tmp_path / "data"):
        result = run(name, tmp_path / "out", root, code=1)
        assert result.stdout == "" and result.stderr.startswith("error: ")
        assert len(result.stderr.splitlines()) == 1
        assert all(part in result.stderr for part in said), result.stderr
