"""Networks of others, handed over in Python as they are: nothing said about them."""

import pytest
import torch
import torchvision
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fcompress import analyze, shrink, verify

SIDE = 32


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x):
        n, tokens, _ = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(n, tokens, 3, self.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        found = nn.functional.scaled_dot_product_attention(q, k, v)
        x = x + self.out(found.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


class SmallViT(nn.Module):
    """A vision transformer with a class token and position embeddings."""

    def __init__(self, width=32, depth=2, heads=4):
        super().__init__()
        self.patches = nn.Conv2d(3, width, 8, 8)
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.places = nn.Parameter(torch.randn(1, 1 + (SIDE // 8) ** 2, width))
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.places
        return self.head(self.norm(self.blocks(x))[:, 0])


NETWORKS = {
    "resnet18": lambda: torchvision.models.resnet18(num_classes=10),
    "vit": SmallViT,
}


@pytest.mark.parametrize("name", [pytest.param("resnet18", marks=pytest.mark.slow), "vit"])
def test_a_network_as_it_is(name):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, x = NETWORKS[name](), torch.randn(240, 3, SIDE, SIDE)
        model(x[:64])  # statistics of batch norms that are not those of a fresh network
        with torch.no_grad():
            # A random network gives most of its labels to one class; this one is even-handed.
            last = [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
            last.bias -= model.eval()(x).mean(0)
    loader = DataLoader(TensorDataset(x), batch_size=40)
    result = shrink(model, loader, 0.7, calibration=64, method="factor")
    assert result.certified and result.macs["after"] < result.macs["before"]
    assert type(result.model) is type(model)
    checked = verify(model, result.model, loader)
    with torch.no_grad():
        same = model(x).argmax(1) == result.model.eval()(x).argmax(1)
    assert checked.same == int(same.sum())
    found = analyze(model, x[:40], orders=1, by_layer=False)
    assert found.groups and found.cost.macs == result.macs["before"]
