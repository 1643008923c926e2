"""Channels that are normalised together go together, as whole groups."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fcompress
from fcompress.structure.groups import find_groups
from fcompress.surgery.excision import excise


class Plain(nn.Module):
    def __init__(self, groups, channels=12, affine=True):
        super().__init__()
        self.a, self.b = nn.Conv2d(2, channels, 3, padding=1), nn.Conv2d(channels, 6, 3)
        self.norm, self.o = nn.GroupNorm(groups, channels, affine=affine), nn.Linear(6, 3)

    def forward(self, x):
        return self.o(self.b(self.norm(self.a(x)).relu()).relu().mean((2, 3)))


class Stream(nn.Module):
    """A residual stream with norms of two sizes of groups."""

    def __init__(self):
        super().__init__()
        self.a, self.o = nn.Conv2d(2, 12, 3, padding=1), nn.Linear(12, 3)
        self.fine, self.coarse = nn.GroupNorm(6, 12), nn.GroupNorm(3, 12)
        self.b, self.c = nn.Conv2d(12, 8, 1), nn.Conv2d(8, 12, 1)

    def forward(self, x):
        x = self.a(x)
        x = x + self.c(self.b(self.fine(x)).relu())
        return self.o(self.coarse(x).relu().mean((2, 3)))


def build(model):
    torch.manual_seed(0)
    model = model.double().eval()
    for module in model.modules():
        if isinstance(module, nn.GroupNorm) and module.affine:
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -1, 1)
    return model, torch.randn(4, 2, 8, 8, dtype=torch.float64)


@pytest.mark.parametrize(
    ("model", "sizes", "left"),
    [
        (Plain(3), {"a": 3, "b": 6}, {}),
        (Plain(12), {"a": 12, "b": 6}, {}),
        (Plain(4, 20), {"a": 4, "b": 6}, {}),
        (Stream(), {"a": 3, "b": 8}, {"fine": (4, 8), "coarse": (2, 8)}),
    ],
)
def test_a_group_of_the_norm_is_a_unit(model, sizes, left):
    model, x = build(model)
    structure = find_groups(model, x)
    assert {g.name: g.size for g in structure.groups} == sizes
    assert structure.proof["error"] < 1e-10
    kept = {"a": torch.arange(1, sizes["a"])}
    thin = excise(model, structure.groups, kept)
    assert thin(x).shape == model(x).shape
    for name, (groups, channels) in left.items():
        norm = thin.get_submodule(name)
        assert (norm.num_groups, norm.num_channels) == (groups, channels)


def test_a_norm_over_all_channels_still_mixes_them():
    model, x = build(Plain(1))
    reasons = {g.name: g.reason for g in find_groups(model, x).not_pruned}
    assert "group normalisation mixes its channels" in reasons["a"]


def test_shrunk_saved_and_opened(tmp_path):
    torch.manual_seed(0)
    model = Plain(6, 36)
    x = torch.randn(900, 2, 8, 8)
    y = (x[:, 0].mean((1, 2)) > 0).long() + (x[:, 1, :4].mean((1, 2)) > 0).long()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(40):
        optimizer.zero_grad()
        F.cross_entropy(model(x[:300]), y[:300]).backward()
        optimizer.step()
    result = fcompress.shrink(model.eval(), x[300:], tol=0.2)
    assert result.macs["after"] < 0.6 * result.macs["before"]
    assert result.model.norm.num_groups * 6 == result.model.a.out_channels < 36
    fcompress.save(result.model, tmp_path / "small.pt")
    again = fcompress.load(tmp_path / "small.pt", arch=lambda: Plain(6, 36))
    torch.testing.assert_close(again(x[:5]), result.model(x[:5]))
