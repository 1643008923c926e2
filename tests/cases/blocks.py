"""Small networks of every kind with blocks, and kinds that look like it and have none."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class _Branch(nn.Sequential):
    """Two convolutions with batch norms, a bottleneck of another width between them."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__(
            nn.Conv2d(channels, hidden, 3, padding=1, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )


class _Head(nn.Sequential):
    def __init__(self, channels: int) -> None:
        super().__init__(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 4))


class Residual(nn.Module):
    """ReLU after the sum, which is in place; its layers are called one by one."""

    shape = (2, 8, 8)
    blocks = ("first", "second")

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 6, 3, padding=1)
        self.first, self.second = _Branch(6, 8), _Branch(6, 5)
        self.down, self.third = nn.Conv2d(6, 9, 1, 2), nn.Conv2d(6, 9, 3, 2, 1)
        self.head = _Head(9)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        for block in (self.first, self.second):
            y = x
            for layer in block:
                y = layer(y)
            y += x
            x = F.relu(y)
        # Both summands are functions of the stream, neither of the other one.
        return self.head(F.relu(self.down(x) + self.third(x)))

    def end(self, block: str) -> nn.Parameter:
        """The last scale in a block."""
        return self.get_submodule(block)[-1].weight


class PreActivation(nn.Module):
    """Norm and ReLU at the beginning of the branch; the stream goes on as it is."""

    shape = (2, 8, 8)
    blocks = ("a", "b")

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 6, 3, padding=1)
        for name in self.blocks:
            branch = nn.Sequential(
                nn.BatchNorm2d(6),
                nn.ReLU(),
                nn.Conv2d(6, 7, 3, padding=1),
                nn.BatchNorm2d(7),
                nn.ReLU(),
                nn.Conv2d(7, 6, 1),
            )
            self.add_module(name, branch)
        self.norm, self.head = nn.BatchNorm2d(6), _Head(6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for name in self.blocks:
            x = x + self.get_submodule(name)(x)
        return self.head(F.relu(self.norm(x)))

    def end(self, block: str) -> nn.Parameter:
        return self.get_submodule(block)[-1].weight


class InvertedBottleneck(nn.Module):
    """Widen, filter channels apart, narrow; add without a nonlinearity."""

    shape = (2, 8, 8)
    blocks = ("one", "two")

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 5, 3, padding=1)
        for name in self.blocks:
            self.add_module(
                name,
                nn.Sequential(
                    nn.Conv2d(5, 15, 1, bias=False),
                    nn.BatchNorm2d(15),
                    nn.ReLU6(),
                    nn.Conv2d(15, 15, 3, padding=1, groups=15, bias=False),
                    nn.BatchNorm2d(15),
                    nn.ReLU6(),
                    nn.Conv2d(15, 5, 1, bias=False),
                    nn.BatchNorm2d(5),
                ),
            )
        self.head = _Head(5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for name in self.blocks:
            x = x + self.get_submodule(name)(x)
        return self.head(x)

    def end(self, block: str) -> nn.Parameter:
        return self.get_submodule(block)[-1].weight


class ConvNeXt(nn.Module):
    """A depthwise convolution, then linear layers with channels last, scaled by a parameter that
    is of the network itself, added in place.
    """

    shape = (2, 8, 8)
    blocks = ("layers.0", "layers.1")

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 6, 2, 2)
        self.scale = nn.Parameter(0.5 + torch.rand(2, 6, 1, 1))
        self.layers = nn.ModuleList(
            nn.ModuleDict(
                {
                    "filter": nn.Conv2d(6, 6, 3, padding=1, groups=6),
                    "norm": nn.LayerNorm(6),
                    "widen": nn.Linear(6, 12),
                    "narrow": nn.Linear(12, 6),
                }
            )
            for _ in range(2)
        )
        self.head = _Head(6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for layer, scale in zip(self.layers, self.scale, strict=True):
            y = layer["norm"](layer["filter"](x).permute(0, 2, 3, 1))
            y = layer["narrow"](F.gelu(layer["widen"](y))).permute(0, 3, 1, 2)
            y = scale * y
            y += x
            x = y
        return self.head(x)

    def end(self, block: str) -> nn.Parameter:
        return self.get_submodule(block)["narrow"].weight


class Encoder(nn.Module):
    """Torch's own encoder layer: attention and MLP are blocks of their own."""

    shape = (5, 6)
    blocks = ("layer.self_attn", "layer.linear1")

    def __init__(self) -> None:
        super().__init__()
        self.lift = nn.Linear(6, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 12, 0.0, batch_first=True, norm_first=True)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(self.lift(x)).mean(1))

    def end(self, block: str) -> nn.Parameter:
        layer = self.layer
        return layer.self_attn.out_proj.weight if "attn" in block else layer.linear2.weight


WITH_BLOCKS: dict[str, type] = {
    kind.__name__: kind for kind in (Residual, PreActivation, InvertedBottleneck, ConvNeXt, Encoder)
}


class Plain(nn.Module):
    """No sums at all."""

    shape = (2, 8, 8)
    kept = ()

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3), _Head(6))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Dense(nn.Module):
    """Concatenation hands the stream on, too; nothing is added to it."""

    shape = (2, 8, 8)
    kept = ()

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.grow = nn.Conv2d(2, 6, 3, padding=1), nn.Conv2d(6, 4, 3, padding=1)
        self.head = _Head(10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        return self.head(torch.cat([x, F.relu(self.grow(x))], 1))


class Twice(nn.Module):
    """One block, applied twice: no single application of it can go."""

    shape = (2, 8, 8)
    kept = ("are used elsewhere",)

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block, self.head = nn.Conv2d(2, 6, 3), _Branch(6, 7), _Head(6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for _ in range(2):
            x = F.relu(x + self.block(x))
        return self.head(x)


class Tied(nn.Module):
    """Two blocks with layers of their own and one weight."""

    shape = (2, 8, 8)
    kept = ("are used elsewhere",) * 2

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(2, 6, 3), _Head(6)
        self.a, self.b = nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = F.relu(x + self.a(x))
        return self.head(F.relu(x + self.b(x)))


class Outputs(nn.Module):
    """What every block adds is an output, too."""

    shape = (2, 8, 8)
    kept = ("is an output of the network",) * 2

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(2, 6, 3), _Head(6)
        self.a, self.b = nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = self.stem(x)
        a = self.a(x)
        x = F.relu(x + a)
        b = self.b(x)
        return self.head(F.relu(x + b)), a, b


class Elsewhere(nn.Module):
    """What a block adds is read a second time, behind the sum."""

    shape = (2, 8, 8)
    kept = ("is read elsewhere",)

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.head = nn.Conv2d(2, 6, 3), nn.Conv2d(6, 6, 1), _Head(6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        a = self.a(x)
        return self.head(F.relu(x + a) * a)


class Inline(nn.Module):
    """The sum is of two layers' outputs that cannot both leave a remainder."""

    shape = (2, 8, 8)
    kept = ("are added up at its end",)

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(2, 6, 3), _Head(6)
        self.a, self.b = nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(F.relu(x + (self.a(x) * self.b(x))))


WITHOUT_BLOCKS: dict[str, type] = {
    kind.__name__: kind for kind in (Plain, Dense, Twice, Tied, Outputs, Elsewhere, Inline)
}


def build(kind: type, seed: int = 0) -> nn.Module:
    """A network in eval mode with seeded weights, no norm of which is at its start."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = kind()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                for tensor in (module.weight, module.running_var):
                    tensor.copy_(0.5 + torch.rand_like(tensor))
                for tensor in (module.bias, module.running_mean):
                    tensor.copy_(0.3 * torch.randn_like(tensor))
        for block in getattr(kind, "blocks", ()):
            model.end(block).mul_(0.5)
    return model.eval()


def inputs(kind: type, count: int = 4, seed: int = 1) -> Tensor:
    """A batch for a network."""
    return torch.randn(count, *kind.shape, generator=torch.Generator().manual_seed(seed))
