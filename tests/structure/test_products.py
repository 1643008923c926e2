"""Operators with several readers at once: bilinear maps, deformable convolutions."""

import pytest
import torch
from torch import nn

from fcompress.structure.groups import find_groups
from fcompress.surgery.excision import excise


class Pair(nn.Module):
    """A bilinear map of two hidden layers, or of one with itself."""

    def __init__(self, *, same=False, positions=False):
        super().__init__()
        self.a, self.b = nn.Linear(9, 6), nn.Linear(9, 6 if same else 5)
        self.product, self.head = nn.Bilinear(6, 6 if same else 5, 4), nn.Linear(4, 3)
        self.same, self.positions = same, positions

    def forward(self, x):
        x = x.flatten(1)
        x = x[:, None].expand(-1, 2, -1) if self.positions else x
        a = torch.relu(self.a(x))
        found = torch.relu(self.product(a, a if self.same else torch.relu(self.b(x))))
        return self.head(found.sum(1) if self.positions else found)


@pytest.mark.parametrize("positions", [False, True])
def test_a_bilinear_map_reads_two_inputs_and_writes_its_rows(positions):
    model = Pair(positions=positions).eval()
    structure = find_groups(model, torch.randn(4, 3, 3))
    assert {g.name: g.size for g in structure.groups} == {"a": 6, "b": 5, "product": 4}
    kept = {"a": torch.arange(4), "b": torch.arange(2), "product": torch.arange(3)}
    thin = excise(model, structure.groups, kept)
    assert thin.product.weight.shape == (3, 4, 2)
    assert thin(torch.randn(2, 3, 3)).shape == (2, 3)


def test_a_bilinear_map_of_units_with_themselves_loses_rows_and_columns_of_each():
    structure = find_groups(Pair(same=True).eval(), torch.randn(4, 3, 3))
    assert {g.name for g in structure.groups} == {"a", "product"}
    columns = [s.dim for s in structure.group("a").consumers]
    assert columns == [1, 2]


class Deforms(nn.Module):
    """A deformable convolution between plain ones."""

    def __init__(self, *, groups=1, parts=1, masked=False):
        super().__init__()
        ops = pytest.importorskip("torchvision.ops")
        self.front, self.places = (
            nn.Conv2d(1, 8, 3, padding=1),
            nn.Conv2d(1, 18 * parts, 3, padding=1),
        )
        self.weights = nn.Conv2d(1, 9 * parts, 3, padding=1) if masked else None
        self.deform = ops.DeformConv2d(8, 6, 3, padding=1, groups=groups)
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        mask = None if self.weights is None else torch.sigmoid(self.weights(x))
        found = self.deform(torch.relu(self.front(x)), self.places(x), mask)
        return self.head(torch.relu(found).mean((2, 3)))


@pytest.mark.parametrize(
    ("settings", "fronts", "rows"),
    [
        ({}, 8, 6),
        ({"masked": True}, 8, 6),
        ({"parts": 2}, 4, 6),  # the channels of both parts stay equal in number
        ({"groups": 2}, 4, 3),
    ],
)
def test_a_deformable_convolution_is_one_in_its_channels(settings, fronts, rows):
    torch.manual_seed(0)
    model = Deforms(**settings).eval()
    structure = find_groups(model, torch.randn(4, 1, 6, 6))
    assert {g.name: g.size for g in structure.groups} == {"front": fronts, "deform": rows}
    left = {g.name: g.reason for g in structure.not_pruned}
    assert left["places"] == "offsets of a deformable convolution"
    kept = {"front": torch.arange(2), "deform": torch.arange(2)}
    thin = excise(model, structure.groups, kept)
    assert thin(torch.randn(3, 1, 6, 6)).shape == (3, 3)
    weight = thin.deform.weight
    assert thin.deform.out_channels == len(weight)
    assert thin.deform.in_channels == weight.shape[1] * thin.deform.groups
