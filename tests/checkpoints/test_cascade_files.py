"""A cascade in one file: the same pair again, and no certificate for another one."""

from dataclasses import replace

import pytest
import torch
from cases.trained import examples, trained
from torch import nn

import fcompress
from fcompress.cascades.network import Cascade
from fcompress.checkpoints.checkpoint import read
from fcompress.errors import CheckpointError
from fcompress.formats.torch_zip import read_archive, write_archive
from fcompress.forward.answers.scoring import Scoring
from fcompress.models.external import Architecture, build_network
from fcompress.models.fingerprint import CHANGED, fingerprint
from fcompress.models.provenance import Described, describe, origin_of


def registry():
    parts = (fcompress.build("mlp", in_features=6, classes=4, seed=seed) for seed in (1, 2))
    return Cascade(*parts, 0.1, Scoring(labels="classes")).eval(), examples(50)[0]


def torchvision_named():
    name = Architecture("torchvision:squeezenet1_1", {"num_classes": 4})
    parts = [build_network(name) for _ in range(2)]
    for part in parts:
        describe(part, Described(name))
    return Cascade(*parts, 0.5, Scoring()).eval(), torch.randn(4, 3, 64, 64)


@pytest.mark.parametrize("make", [registry, torchvision_named])
def test_it_comes_back_bit_for_bit(make, tmp_path):
    cascade, x = make()
    cascade.origin = {"data": None, "history": ["made"]}
    fcompress.save(cascade, tmp_path / "pair.pt")
    again = fcompress.load(tmp_path / "pair.pt")
    assert isinstance(again, Cascade) and torch.equal(again(x), cascade(x))
    assert fingerprint(again) == fingerprint(cascade)
    assert again.scoring == cascade.scoring and again.threshold.dtype == torch.float64
    assert origin_of(again)["history"] == ["made"]
    fcompress.save(again, tmp_path / "twice.pt")
    assert (tmp_path / "twice.pt").read_bytes() == (tmp_path / "pair.pt").read_bytes()
    # Without this package, and without running anything in it.
    content = torch.load(tmp_path / "pair.pt", weights_only=True)
    assert content["family"] == "cascade" and content["version"] == 4


def untrained():
    layers = nn.Linear(6, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU()
    return nn.Sequential(*layers, nn.Dropout(0.2), nn.Linear(24, 4)).eval()


def test_a_certificate_is_about_both_networks_and_the_threshold(tmp_path):
    model, x = trained(), examples(1500, seed=9)[0]
    result = fcompress.shrink(model, x, tol=0.05, method="factor", cascade=True)
    path = tmp_path / "pair.pt"
    fcompress.save(result.model, path)
    with pytest.raises(CheckpointError, match="code of its own"):
        fcompress.load(path)
    again = fcompress.load(path, arch=untrained)
    assert torch.equal(again(x), result.model(x))
    entry = read(path).history[-1]
    assert "void" not in entry and entry["cascade"]["threshold"] == result.cascade.threshold
    assert entry["certificate"]["original"] == fingerprint(model)
    changes = (
        lambda m: m.original[0].bias.data.add_(1e-3),
        lambda m: m.compressed[0].bias.data.add_(1e-3),
        lambda m: m.threshold.mul_(0.5),
    )
    for change in changes:
        other = fcompress.load(path, arch=untrained)
        change(other)
        fcompress.save(other, tmp_path / "changed.pt")
        assert read(tmp_path / "changed.pt").history[-1]["void"] == CHANGED


DAMAGE = {
    "no threshold": lambda c: c["state"].pop("threshold"),
    "a vector for a threshold": lambda c: c["state"].update(threshold=torch.zeros(2)),
    "a tensor of nobody": lambda c: c["state"].update(other=torch.zeros(2)),
    "a tensor too few": lambda c: c["state"].pop("original.fc1.weight"),
    "no original": lambda c: c["args"].pop("original"),
    "a cascade within": lambda c: c["args"]["original"].update(family="cascade"),
    "no scoring": lambda c: c["args"].pop("scoring"),
    "a kind without a margin": lambda c: c["args"]["scoring"].update(labels="embedding"),
    "an unknown kind": lambda c: c["args"]["scoring"].update(labels="nonsense"),
    "another family": lambda c: c["args"]["compressed"].update(family="nonsense"),
    "a newer version": lambda c: c.update(version=5),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_files_are_refused_in_one_line(damage, tmp_path):
    cascade, _ = registry()
    path = tmp_path / "pair.pt"
    fcompress.save(cascade, path)
    content = read_archive(path)
    DAMAGE[damage](content)
    write_archive(path, content)
    with pytest.raises(CheckpointError, match=str(path)) as error:
        fcompress.load(path)
    assert len(str(error.value).splitlines()) == 1


def test_show_names_both_networks(tmp_path):
    cascade, _ = registry()
    fcompress.save(cascade, tmp_path / "pair.pt")
    found = fcompress.describe_file(tmp_path / "pair.pt")
    assert found.family == "cascade of mlp" and found.args["in_features"] == 6
    assert {"compressed.fc1", "original.fc1"} <= set(found.widths) == set(found.wide)
    assert replace(found, path="").to_dict()["kind"] == "network"
