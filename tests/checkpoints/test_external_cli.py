"""A network of somebody's own, from its weights to a thin file, by the command line."""

import json

import numpy as np
import pytest
import torch
import torchvision
from click.testing import CliRunner
from PIL import Image
from torch import nn
from torchvision.transforms import functional as TF

import fcompress
from fcompress.cli import main
from fcompress.data.examples import decode
from fcompress.data.preprocess import Preprocess, of_name, of_numbers

CODE = """
from torch import nn

def make(classes=10, width=16):
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(width * 16, 32), nn.ReLU(), nn.Linear(32, classes),
    )
"""


def run(*arguments):
    return CliRunner().invoke(main, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Digits as a folder of images, and the weights of a network trained on them."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "nets.py").write_text(CODE)
    digits = fcompress.load_data("digits")
    values = digits.train.examples.values.float()
    images = (values * (255 / values.max())).round().to(torch.uint8)
    for number, image in enumerate(images):
        name = folder / "photos" / f"{number:04}.png"
        name.parent.mkdir(exist_ok=True)
        Image.fromarray(image[0].numpy()).save(name)
    space: dict = {}
    exec(CODE, space)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = space["make"]()
        x = (images.float() / 255 - 0.5) / 0.25
        rows, labels = digits.train.rows, digits.train.labels
        optimizer = torch.optim.Adam(network.parameters(), 3e-3)
        for _ in range(12):
            for batch in torch.arange(len(rows)).split(64):
                loss = nn.functional.cross_entropy(network(x[rows[batch]]), labels[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    torch.save({"state_dict": network.eval().state_dict()}, folder / "weights.pth")
    torch.save(network, folder / "whole.pt")
    return folder


SEEN = ("--mean", "0.5", "--std", "0.25", "--input-shape", "1,8,8")


def test_from_weights_to_a_thin_file_and_back(folder, tmp_path):
    arch = f"{folder / 'nets.py'}:make"
    thin, report = tmp_path / "thin.pt", tmp_path / "thin.json"
    ran = run(
        *("shrink", folder / "weights.pth", "--arch", arch, "--method", "factor", "--tol", 0.3),
        *("--data", f"folder:{folder / 'photos'}", *SEEN, "--out", thin, "--json", report),
    )
    assert ran.exit_code == 0, ran.output
    record = json.loads(report.read_text())
    assert record["certified"] and record["macs"]["after"] < record["macs"]["before"]
    assert record["data"]["standardised_by"] == "numbers given"
    # The thin network remembers its data; its code has to be named.
    refused = run("verify", folder / "weights.pth", thin)
    assert refused.exit_code == 1 and "--arch" in refused.output
    checked = run("verify", folder / "weights.pth", thin, "--arch", arch, "--json", "-")
    assert checked.exit_code == 0, checked.output
    assert json.loads(checked.stdout)["same"] == record["agreement"]["same"]
    loaded = fcompress.load(thin, arch=arch)
    assert sum(p.numel() for p in loaded.parameters()) == record["params"]["after"]


def test_a_trusted_pickle_stands_for_its_code(folder, tmp_path):
    whole, thin = folder / "whole.pt", tmp_path / "thin.pt"
    ran = run(
        *("shrink", whole, "--trust-pickle", "--method", "prune", "--ratio", 0.7, "--out", thin),
        *("--data", f"folder:{folder / 'photos'}", *SEEN),
    )
    assert ran.exit_code == 0, ran.output
    again = ("verify", whole, thin, "--arch", f"pickle:{whole}")
    assert "--trust-pickle" in run(*again).output
    checked = run(*again, "--trust-pickle")
    assert checked.exit_code == 0, checked.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("weights.pth",), "needs its architecture: --arch"),
        (("whole.pt",), "expected a network saved with fcompress.save"),
        (("whole.pt", "--arch", "NETS:make"), "--trust-pickle"),
        (("weights.pth", "--arch", "NETS:make", "--arch-args", '{"classes": 3}'), "--arch-args"),
        (("weights.pth", "--arch", "NETS:make", "--mean", "0.5"), "mean and std belong together"),
        (("weights.pth", "--arch", "NETS:make", "--transform", "x"), "expected torchvision:"),
        (("weights.pth", "--trust-pickle"), "name its architecture by --arch"),
        (("weights.pth", "--arch-args", "{}"), "--arch-args needs --arch"),
    ],
)
def test_mistakes_are_one_line(folder, arguments, message, tmp_path):
    places = {"NETS": str(folder / "nets.py")}
    given = [places["NETS"] + a[4:] if a.startswith("NETS") else a for a in arguments]
    given[0] = folder / given[0]
    out = tmp_path / "thin.pt"
    ran = run("shrink", *given, "--data", f"folder:{folder / 'photos'}", "--out", out)
    if message == "expected a network saved with fcompress.save":
        message = "could run code"
    assert ran.exit_code != 0 and message in ran.output and not out.exists()
    assert "Traceback" not in ran.output


@pytest.mark.parametrize("size", [(90, 60), (60, 90), (300, 280), (33, 33)])
def test_images_are_scaled_as_torchvision_does(size, tmp_path):
    weights = torchvision.models.ResNet18_Weights.IMAGENET1K_V1
    generator = np.random.default_rng(0)
    for number in range(20):
        pixels = generator.integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number:02}.png")
    splits = fcompress.load_data(
        f"folder:{tmp_path}",
        roles="compress",
        preprocess=of_name("torchvision:ResNet18_Weights.IMAGENET1K_V1"),
    )
    found, _ = splits.search.batch(torch.arange(len(splits.search)))
    rows = splits.search.rows.tolist()
    images = [decode(tmp_path / f"{row:02}.png", 3) for row in rows]
    expected = torch.stack([weights.transforms()(image) for image in images])
    assert found.shape[1:] == (3, 224, 224)
    assert (found - expected).abs().max() < 1e-5
    assert TF.to_tensor(images[0]).shape[1:] == size


def test_numbers_over_a_preset_keep_its_proportion():
    preset = of_name("torchvision:ResNet50_Weights.IMAGENET1K_V2")
    assert (preset.resize, preset.size) == ((232,), (224, 224))
    half = of_numbers(size=(112, 112), base=preset)
    assert half.resize == (116,) and half.mean == preset.mean
    assert of_numbers() is None
    assert of_numbers(input_shape=(1, 8, 9)) == Preprocess("numbers given", channels=1, size=(8, 9))
