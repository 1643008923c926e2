"""Networks without some of their blocks in files: what is left of them comes back, nothing else."""

import pytest
import torch
from cases.blocks import Encoder, build, inputs

from fcompress import load, save
from fcompress.checkpoints.checkpoint import SKIPPING_VERSION, VERSION, read
from fcompress.errors import CheckpointError
from fcompress.forward.predictor import Predictor
from fcompress.models import build as of_registry
from fcompress.models.external import Architecture, build_network
from fcompress.models.provenance import Described, describe
from fcompress.structure.blocks import find_blocks
from fcompress.surgery.preparation import prepare
from fcompress.surgery.skipping import Left, drop


def without_blocks(network, x, count):
    """The network without its last blocks, with something left of each."""
    network = prepare(network, x).eval()
    blocks = find_blocks(Predictor(network), x).found[-count:]
    assert len(blocks) == count
    left = {b.name: Left(torch.rand(b.channels), torch.rand(b.channels)) for b in blocks}
    return drop(network, blocks, left), blocks


def resnet():
    x = torch.randn(2, 1, 4, 4)
    return without_blocks(of_registry("resnet20", in_channels=1, image_size=4, classes=3), x, 2), x


def test_a_network_of_the_registry_comes_back(tmp_path):
    (thin, blocks), x = resnet()
    save(thin, tmp_path / "thin.pt")
    again = load(tmp_path / "thin.pt")
    assert torch.equal(again(x), thin(x))
    assert {n for n, _ in again.named_parameters()} == {n for n, _ in thin.named_parameters()}
    content = read(tmp_path / "thin.pt")
    assert set(content.skipped) == {path for block in blocks for path in block.layers}
    assert not set(content.state) & blocks[0].tensors
    assert torch.load(tmp_path / "thin.pt", weights_only=True)["version"] == SKIPPING_VERSION


def test_files_of_whole_networks_stay_as_they_were(tmp_path):
    save(of_registry("mlp", in_features=4, classes=3), tmp_path / "net.pt")
    content = torch.load(tmp_path / "net.pt", weights_only=True)
    assert content["version"] == VERSION and "skipped" not in content


def test_a_registered_architecture_comes_back(tmp_path):
    architecture = Architecture("torchvision:mobilenet_v2", {"num_classes": 3, "width_mult": 0.1})
    network = build_network(architecture)
    describe(network, Described(architecture))
    x = torch.randn(2, 3, 32, 32)
    thin, _ = without_blocks(network, x, 3)
    save(thin, tmp_path / "thin.pt")
    assert torch.equal(load(tmp_path / "thin.pt")(x), thin(x))


def test_code_of_the_users_own_comes_back(tmp_path):
    x = inputs(Encoder)
    thin, blocks = without_blocks(build(Encoder), x, 2)
    save(thin, tmp_path / "thin.pt")
    again = load(tmp_path / "thin.pt", arch=Encoder)
    assert torch.equal(again(x), thin(x))
    assert not blocks[0].tensors & {n for n, _ in again.named_parameters()}


def _changed(path, change):
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda c: c["skipped"].update({"layer9.conv1": [0]}), "no layer of the architecture"),
        (lambda c: c["skipped"].update({"": [0]}), "no layer of the architecture"),
        (lambda c: c["skipped"].update({"layer3.2.bn2": [0, -1]}), "no layer of the architecture"),
        (lambda c: c["skipped"].update({"layer3.2.bn2": [10**9, 1]}), "no layer of the arch"),
        (lambda c: c["skipped"].update({"layer3.2.bn2": []}), "no layer of the architecture"),
        (lambda c: c["skipped"].update({"layer3.2.bn2": "zero"}), "expected a list"),
        (lambda c: c.update(skipped=[1]), "skipped must be a dict"),
        (lambda c: c["skipped"].pop("layer3.2.bn2"), "is missing"),
        (lambda c: c["state"].pop("layer3.2.bn2.scale"), "is missing"),
        (lambda c: c["skipped"].update({"fc": [0]}), "is not part of resnet20"),
    ],
)
def test_a_damaged_record_is_refused(tmp_path, change, reason):
    (thin, _), _ = resnet()
    path = tmp_path / "thin.pt"
    save(thin, path)
    load(path)  # the control: it is whole before
    _changed(path, change)
    with pytest.raises(CheckpointError, match=reason):
        load(path)
