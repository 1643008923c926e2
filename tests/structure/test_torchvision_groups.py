"""Groups of torchvision's networks: all found, proven, and every parameter accounted for."""

from collections import Counter

import pytest
import torch
from cases.small_networks import wake
from cases.zeroing import assert_exact, subsets, unaccounted
from torchvision import models

from fcompress.structure.groups import Structure, find_groups
from fcompress.surgery.preparation import prepare

NORM = "layer normalisation mixes its channels"


def network(name: str, **settings):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        make = getattr(models, name)
        model = make(**settings) if name == "DenseNet" else make(weights=None, **settings)
        # In eval mode statistics of fresh batch norm hardly normalise; make them differ.
        wake(model)
    return model.eval()


def structure_of(model, size: int) -> Structure:
    x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    model = prepare(model, x)
    structure = find_groups(model, x)
    assert not unaccounted(model, structure)
    assert structure.proof["error"] < 1e-10
    assert structure.proof["change"] > 1e-6
    return structure


def check(structure: Structure, groups: int, units: int, left: dict[str, int]) -> None:
    assert (len(structure.groups), sum(g.size for g in structure.groups)) == (groups, units)
    reasons = Counter((g.reason or "").partition(" (")[0] for g in structure.not_pruned)
    assert reasons == {"output layer": 1, **left}


@pytest.mark.parametrize(
    ("name", "settings", "groups", "units", "left"),
    [
        ("resnet18", {}, 12, 2880, {}),
        # Shuffles tie all channels of a stage of 24 together.
        ("shufflenet_v2_x0_5", {}, 20, 1927, {"a single unit": 1}),
        ("mobilenet_v3_small", {}, 27, 4872, {}),
        ("squeezenet1_1", {}, 25, 2944, {}),
        (
            "DenseNet",
            {"growth_rate": 8, "block_config": (3, 3), "num_init_features": 16},
            14,
            276,
            {},
        ),
    ],
)
def test_small_ones(name, settings, groups, units, left):
    model = network(name, **settings)
    structure = structure_of(model, 64)
    check(structure, groups, units, left)
    assert all(g.zero_through for g in structure.groups)
    assert not structure.unused


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5"])
def test_excising_them_is_exact(name):
    model = network(name).double()
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1)).double()
    groups = structure_of(model, 64).groups
    for number in (0, len(groups) // 2, len(groups) - 1):
        assert_exact(model, groups[number], subsets(groups[number], 1), x)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size", "groups", "units", "left"),
    [
        ("resnet152", 96, 105, 27840, {}),
        ("densenet121", 64, 120, 10240, {}),
        ("resnext50_32x4d", 64, 37, 4376, {}),
        ("convnext_tiny", 64, 18, 26496, {NORM: 4}),
        ("regnet_y_400mf", 64, 53, 2048, {}),
        ("efficientnet_b0", 64, 40, 11404, {}),
        ("mnasnet0_5", 64, 25, 5744, {}),
        # Hidden units, and heads that hold queries, keys and values.
        ("vit_b_16", 64, 24, 36864 + 12 * 12, {NORM: 1}),
        ("swin_t", 64, 24, 17664 + 138, {NORM: 4}),
        ("swin_v2_t", 64, 36, 23808 + 138, {NORM: 4}),
        ("maxvit_t", 224, 69, 33568 + 168, {NORM: 4}),
    ],
)
def test_large_ones(name, size, groups, units, left):
    settings = {"image_size": size} if name.startswith("vit") else {}
    check(structure_of(network(name, **settings), size), groups, units, left)
