"""VGG, DenseNet and MobileNet: what they cost, how their units are wired, and shrinking them."""

import pytest
import torch
from cases.planted import context_of, duplicate, images, misfit, settle
from torch import nn

from fcompress.checkpoints.checkpoint import load
from fcompress.checkpoints.checkpoint import save as save_network
from fcompress.compress.methods import Factor
from fcompress.compress.pipeline import shrink
from fcompress.data import load_data
from fcompress.forward import cost
from fcompress.models import Network, build
from fcompress.structure.groups import find_groups
from fcompress.surgery.excision import excise
from fcompress.training.config import default_config
from fcompress.training.loop import train

FAMILIES = ("vgg", "densenet", "mobilenet")


def small(family: str) -> Network:
    """A narrow network in float64 whose batch norms are like those of a trained one."""
    model = build(family, in_channels=2, image_size=8, classes=4, width=0.25)
    model = model.double().eval().requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        settle(model)
    return model


@pytest.mark.parametrize(
    ("family", "macs", "layers"), [("vgg", 22_707_200, 7), ("densenet", 20_068_344, 27),
                                   ("mobilenet", 15_381_504, 17)]
)  # fmt: skip
def test_costs_at_factor_1(family, macs, layers):
    model = build(family, in_channels=1)
    assert cost.count(model, torch.zeros(1, 1, 28, 28)).macs == macs
    assert len(model.ablation_layers) == layers


def test_parameters_are_the_layouts_written_out():
    def conv(before, after, size, groups=1):
        return before // groups * after * size**2 + 2 * after  # and a batch norm

    vgg = conv(1, 32, 3) + conv(32, 64, 3) + conv(64, 128, 3) + conv(128, 128, 3)
    vgg += conv(128, 256, 3) + conv(256, 256, 3) + 256 * 257 + 257 * 10
    assert _params("vgg") == vgg

    dense, features = 24 * 9, 24
    for length in (2, 4, 6):
        for _ in range(length):
            dense += 2 * features + features * 48 + 2 * 48 + 48 * 12 * 9
            features += 12
        dense += 2 * features
        if length < 6:
            dense += features * (features // 2)
            features //= 2
    assert _params("densenet") == dense + (features + 1) * 10

    mobile = conv(1, 16, 3) + conv(16, 16, 3, groups=16) + conv(16, 16, 1)
    for before, after in ((16, 32), (32, 32), (32, 64), (64, 64), (64, 64), (64, 96), (96, 96)):
        inner = 4 * before
        mobile += conv(before, inner, 1) + conv(inner, inner, 3, inner) + conv(inner, after, 1)
    assert _params("mobilenet") == mobile + conv(96, 256, 1) + 257 * 10


def _params(family):
    with torch.device("meta"):
        network = build(family, in_channels=1)
    return sum(parameter.numel() for parameter in network.parameters())


def test_what_is_added_and_what_is_concatenated():
    def outputs_of(model, kind, x):
        found = []
        for module in model.modules():
            if isinstance(module, kind):
                module.register_forward_hook(lambda m, args, out: found.append((args[0], out)))
        model(x)
        return found

    x = images(2, 0)
    dense = small("densenet")
    layers = [m for n, m in dense.named_modules() if n.startswith("block") and n.count(".") == 1]
    found = outputs_of(dense, type(layers[0]), x)
    assert len(found) == len(layers) == 12
    for before, after in found:
        assert torch.equal(after[:, : before.shape[1]], before)
        assert after.shape[1] == before.shape[1] + 3
    mobile = small("mobilenet")
    adding = []
    for name, block in mobile.named_modules():
        if name.startswith("stage") and name.count(".") == 1:
            for tensor in (block.bn3.weight, block.bn3.bias):
                tensor.zero_()
            block.bn3.bias += 1
            channels = block.expand[0].in_channels if len(block.expand) else block.conv2.in_channels
            y = torch.randn(1, channels, 4, 4, generator=torch.Generator().manual_seed(0)).double()
            if torch.equal(block(y), y + 1 if y.shape == block(y).shape else y):
                adding.append(name)
            else:
                assert torch.equal(block(y), torch.ones_like(block(y)))
    assert adding == ["stage1.0", "stage2.1", "stage3.1", "stage3.2", "stage4.1"]
    for module in mobile.modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3):
            assert module.groups == module.in_channels == module.out_channels or (
                module is mobile.conv1
            )


@pytest.mark.parametrize(("family", "groups"), [("vgg", 7), ("densenet", 27), ("mobilenet", 12)])
def test_every_unit_is_in_a_proven_group(family, groups):
    structure = find_groups(small(family), images(3, 0))
    assert len(structure.groups) == groups
    assert [group.reason for group in structure.not_pruned] == ["output layer"]
    assert not structure.unused


@pytest.mark.parametrize("family", FAMILIES)
def test_duplicates_are_folded_into_their_twins(family, tmp_path):
    model, x = small(family), images(192, 0)
    kept = duplicate(model, x, 0)
    context = context_of(model, x)
    thin = Factor().make(context, kept)
    assert misfit(thin, model, x) < 1e-7
    # The control: without refactoring the same units leave another network.
    bare = excise(model, context.structure.groups, kept)
    assert misfit(bare, model, x) > 1e-2
    assert cost.count(thin, x).macs == cost.count(bare, x).macs < 0.6 * cost.count(model, x).macs
    save_network(thin, tmp_path / "thin.pt")
    assert torch.equal(load(tmp_path / "thin.pt")(x), thin(x))


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_barely_trained_network_shrinks(family):
    splits = load_data("digits")
    model = build(family, in_channels=1, image_size=8, width=0.25)
    config = default_config(family, epochs=2, batch_size=32)
    assert config.weight_decay > 0 and config.optimizer == "momentum"
    model = train(model, splits, config).model
    result = shrink(model, splits, tol=0.5, method="factor", calibration=200)
    assert result.method == "factor" and result.certified
    assert result.macs["after"] < result.macs["before"]
    assert all(layer.reason in (None, "output layer") for layer in result.layers)
    assert result.model.spec == model.spec
