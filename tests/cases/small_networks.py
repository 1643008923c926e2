"""Small networks whose groups are known in advance, one for each way that units are wired.

`build` makes a network with seeded random weights in double precision, `example` a batch for it.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NETWORKS: dict[str, type[nn.Module]] = {}
_SHAPES: dict[str, tuple[int, ...] | None] = {}


def network(*shape: int):
    """Register a network whose input is [8, *shape]; without a shape it takes tokens."""

    def register(cls):
        NETWORKS[cls.__name__] = cls
        _SHAPES[cls.__name__] = shape or None
        return cls

    return register


def build(name: str, seed: int = 0) -> nn.Module:
    """A network in eval mode, nothing of it zero or one."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = NETWORKS[name]().double().eval()
        wake(model)
    return model


def wake(model: nn.Module) -> None:
    """Random values for whatever a fresh module sets to 0 or 1."""
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            if tensor.is_floating_point() and tensor.numel() and tensor.unique().numel() == 1:
                tensor.copy_(0.5 + torch.rand_like(tensor))


def example(name: str) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    shape = _SHAPES[name]
    if shape is None:
        return torch.randint(0, 11, (8, 6), generator=generator)
    return torch.randn(8, *shape, generator=generator, dtype=torch.float64)


def conv(inputs: int, outputs: int, size: int = 3, **kwargs) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, padding=size // 2, **kwargs)


def head(features: int) -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(features, 5))


@network(7)
class Mlp(nn.Sequential):
    def __init__(self):
        super().__init__(
            nn.Linear(7, 9), nn.ReLU(), nn.Linear(9, 6, bias=False), nn.Tanh(), nn.Linear(6, 5)
        )


@network(3, 8, 8)
class ConvFlatten(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = conv(3, 6, bias=False), nn.BatchNorm2d(6)
        self.conv2 = conv(6, 7, stride=2)
        self.fc1, self.fc2 = nn.Linear(7 * 2 * 2, 9), nn.Linear(9, 5)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        return self.fc2(F.relu(self.fc1(x.flatten(1))))


@network(3, 6, 4)
class PermuteFlatten(nn.Module):
    """Rows before channels when flattened: the columns of a channel lie scattered."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc = conv(3, 5), nn.Linear(5 * 6 * 4, 4)

    def forward(self, x):
        return self.fc(F.relu(self.conv(x)).permute(0, 2, 1, 3).flatten(1))


@network(3, 8, 8)
class Residual(nn.Module):
    """One block with an identity shortcut, one with a projection."""

    def __init__(self):
        super().__init__()
        self.stem, self.bn = conv(3, 6), nn.BatchNorm2d(6)
        self.a1, self.a2 = conv(6, 9), conv(9, 6)
        self.b1, self.b2, self.project = conv(6, 7, stride=2), conv(7, 8), conv(6, 8, 1, stride=2)
        self.head = head(8)

    def forward(self, x):
        x = F.relu(self.bn(self.stem(x)))
        x = F.relu(x + self.a2(F.relu(self.a1(x))))
        return self.head(F.relu(self.project(x) + self.b2(F.relu(self.b1(x)))))


@network(3, 8, 8)
class PaddedShortcut(nn.Module):
    """Option A of the ResNet paper: new channels of the shortcut are zeros."""

    def __init__(self):
        super().__init__()
        self.stem, self.b1, self.b2 = conv(3, 4), conv(4, 7, stride=2), conv(7, 8)
        self.head = head(8)

    def forward(self, x):
        x = F.relu(self.stem(x))
        new = self.b2.weight.shape[0] - x.shape[1]
        shortcut = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, new // 2, new - new // 2))
        return self.head(F.relu(shortcut + self.b2(F.relu(self.b1(x)))))


@network(3, 8, 8)
class Dense(nn.Module):
    """Concatenations of concatenations."""

    def __init__(self):
        super().__init__()
        self.stem = conv(3, 4)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(n), nn.ReLU(), conv(n, 3)) for n in (4, 7, 10)
        )
        self.head = head(13)

    def forward(self, x):
        x = self.stem(x)
        for layer in self.layers:
            x = torch.cat([x, layer(x)], 1)
        return self.head(x)


@network(3, 6, 6)
class Halves(nn.Module):
    """Chunked, the halves treated differently and multiplied."""

    def __init__(self):
        super().__init__()
        self.conv1, self.branch, self.head = conv(3, 10), conv(5, 6), head(6)

    def forward(self, x):
        a, b = self.conv1(x).chunk(2, 1)
        return self.head(self.branch(F.relu(a) * torch.sigmoid(b)))


@network(3, 6, 6)
class Slices(nn.Module):
    """Halves by slicing, concatenated in the other order."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2, self.head = conv(3, 8), conv(8, 6), head(6)

    def forward(self, x):
        x = self.conv1(x)
        half = x.shape[1] // 2
        return self.head(self.conv2(torch.cat([F.relu(x[:, half:]), x[:, :half].tanh()], 1)))


@network(3, 6, 6)
class Shuffle(nn.Module):
    """A channel shuffle between a depthwise convolution and a pointwise one."""

    def __init__(self):
        super().__init__()
        self.conv1, self.depthwise = conv(3, 12), conv(12, 12, groups=12)
        self.conv2, self.head = conv(12, 7, 1), head(7)

    def forward(self, x):
        x = F.relu(self.conv1(x))
        n, c, h, w = x.shape
        x = x.view(n, 3, c // 3, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.head(F.relu(self.conv2(self.depthwise(x))))


@network(3, 6, 6)
class Depthwise(nn.Module):
    """Depthwise with two outputs for each channel, then with one."""

    def __init__(self):
        super().__init__()
        self.conv1, self.twice, self.bn = conv(3, 4), conv(4, 8, groups=4), nn.BatchNorm2d(8)
        self.single, self.point, self.head = conv(8, 8, groups=8), conv(8, 7, 1), head(7)

    def forward(self, x):
        x = self.single(F.relu(self.bn(self.twice(F.relu(self.conv1(x))))))
        return self.head(F.relu(self.point(x)))


@network(3, 6, 6)
class Grouped(nn.Module):
    """Grouped convolutions: one channel of each convolution group goes at a time."""

    def __init__(self):
        super().__init__()
        self.conv1, self.grouped = conv(3, 12), conv(12, 8, groups=4)
        self.point, self.head = conv(8, 7, 1), head(7)

    def forward(self, x):
        return self.head(F.relu(self.point(F.relu(self.grouped(F.relu(self.conv1(x)))))))


@network(3, 6, 6)
class SqueezeExcite(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.down, self.up = conv(3, 8), conv(8, 3, 1), conv(3, 8, 1)
        self.conv2, self.head = conv(8, 6), head(6)

    def forward(self, x):
        x = self.conv1(x)
        gate = torch.sigmoid(self.up(F.relu(self.down(x.mean((2, 3), keepdim=True)))))
        return self.head(F.relu(self.conv2(x * gate)))


@network(3, 6, 6)
class SigmoidNet(nn.Module):
    """What lies between does not map 0 to 0."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2, self.head = conv(3, 8), conv(8, 6), head(6)

    def forward(self, x):
        return self.head(torch.relu(self.conv2(torch.sigmoid(self.conv1(x)))))


class Attention(nn.Module):
    """Heads of a fixed size, as many as the weights have, read from shapes."""

    def __init__(self, width: int, heads: int, size: int, fused: bool):
        super().__init__()
        self.size, self.fused = size, fused
        self.qkv = nn.Linear(width, 3 * heads * size)
        self.out = nn.Linear(heads * size, width)
        self.bias = nn.Parameter(torch.randn(heads, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        n, tokens, _ = x.shape
        qkv = self.qkv(x).view(n, tokens, 3, -1, self.size).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        if self.fused:
            bias = self.bias.expand(n, -1, tokens, tokens)
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        else:
            scores = q @ k.transpose(-2, -1) / math.sqrt(self.size) + self.bias
            y = scores.softmax(-1) @ v
        return self.out(y.transpose(1, 2).reshape(n, tokens, -1))


class Transformer(nn.Module):
    """Patches, a class token, position embeddings, attention without normalisation."""

    def __init__(self, fused: bool):
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 2, stride=2)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.positions = nn.Parameter(torch.randn(1, 10, 8))
        self.attention = Attention(8, 4, 3, fused)
        self.fc1, self.fc2, self.classify = nn.Linear(8, 11), nn.Linear(11, 8), nn.Linear(8, 5)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.positions
        x = x + self.attention(x)
        x = x + self.fc2(F.gelu(self.fc1(x)))
        return self.classify(x[:, 0])


@network(3, 6, 6)
class MatmulTransformer(Transformer):
    def __init__(self):
        super().__init__(fused=False)


@network(3, 6, 6)
class FusedTransformer(Transformer):
    def __init__(self):
        super().__init__(fused=True)


@network(7)
class Functional(nn.Module):
    """No modules at all: bare parameters and functional calls."""

    def __init__(self):
        super().__init__()
        self.w1, self.b1 = nn.Parameter(torch.randn(9, 7)), nn.Parameter(torch.randn(9))
        self.w2, self.b2 = nn.Parameter(torch.randn(9, 12)), nn.Parameter(torch.randn(12))
        self.kernel = nn.Parameter(torch.randn(6, 3, 2, 2))
        self.last = nn.Parameter(torch.randn(5, 6))

    def forward(self, x):
        x = F.relu(F.linear(x, self.w1, self.b1))
        x = (x @ self.w2 + self.b2).view(-1, 3, 2, 2)
        x = F.relu(F.conv2d(x, self.kernel)).flatten(1)
        return x @ self.last.t()


@network()
class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.fc1 = nn.Embedding(11, 6), nn.Linear(6, 8)
        self.scale = nn.Parameter(torch.randn(8))
        self.fc2 = nn.Linear(8, 5)

    def forward(self, tokens):
        return self.fc2(F.relu(self.fc1(self.table(tokens)) * self.scale).mean(1))


@network(3, 8, 8)
class Normalised(nn.Module):
    """torch's own local response normalisation; `prepare` makes it exact."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = conv(3, 9), conv(9, 7)
        self.norm1 = nn.LocalResponseNorm(4, alpha=0.7, beta=0.6, k=1.5)
        self.norm2 = nn.LocalResponseNorm(5, alpha=0.4)
        self.head = head(7)

    def forward(self, x):
        x = F.max_pool2d(self.norm1(F.relu(self.conv1(x))), 2)
        return self.head(self.norm2(F.relu(self.conv2(x))))


@network(3, 4, 4)
class Transposed(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.up = conv(3, 6), nn.ConvTranspose2d(6, 8, 2, stride=2)
        self.grouped = nn.ConvTranspose2d(8, 6, 2, stride=2, groups=2)
        self.conv2, self.head = conv(6, 7), head(7)

    def forward(self, x):
        x = F.relu(self.grouped(F.relu(self.up(F.relu(self.conv1(x))))))
        return self.head(F.relu(self.conv2(x)))


@network(3, 6, 6)
class SliceWrites(nn.Module):
    """Two branches written into one preallocated tensor."""

    def __init__(self):
        super().__init__()
        self.left, self.right = conv(3, 4), conv(3, 5)
        self.conv2, self.head = conv(9, 7), head(7)

    def forward(self, x):
        a, b = self.left(x), self.right(x)
        both = x.new_zeros(len(x), a.shape[1] + b.shape[1], *x.shape[2:])
        both[:, : a.shape[1]] = a
        both[:, a.shape[1] :] += F.relu(b)
        return self.head(self.conv2(both))


@network(3, 6, 6)
class Mixer(nn.Module):
    """Token mixing of an MLP-Mixer: it mixes positions, each channel on its own."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 2, stride=2)
        self.mix1, self.mix2 = nn.Linear(9, 4), nn.Linear(4, 9)
        self.fc1, self.fc2 = nn.Linear(8, 11), nn.Linear(11, 8)
        self.classify = nn.Linear(8, 5)

    def forward(self, x):
        x = self.patches(x).flatten(2)
        x = x + self.mix2(F.gelu(self.mix1(x)))
        x = x.transpose(1, 2)
        x = x + self.fc2(F.gelu(self.fc1(x)))
        return self.classify(x.mean(1))


@network(3, 6, 6)
class InstanceNorms(nn.Module):
    """Normalisations of each channel on its own."""

    def __init__(self):
        super().__init__()
        self.conv1, self.norm1 = conv(3, 8), nn.GroupNorm(8, 8)
        self.conv2, self.norm2 = conv(8, 7), nn.InstanceNorm2d(7, affine=True)
        self.head = head(7)

    def forward(self, x):
        x = F.relu(self.norm1(self.conv1(x)))
        return self.head(F.relu(self.norm2(self.conv2(x))))


@network(3, 6, 6)
class SpatialGate(nn.Module):
    """One unit multiplied with all units of another layer, and a sum with the input's mean."""

    def __init__(self):
        super().__init__()
        self.conv1, self.gate = conv(3, 8), conv(3, 1)
        self.conv2, self.head = conv(8, 6), head(6)

    def forward(self, x):
        mean = x.mean(1, keepdim=True)
        x = F.relu(self.conv1(x)) * torch.sigmoid(self.gate(x))
        return self.head(torch.tanh(self.conv2(x) + mean))


@network(7, 5)
class Masked(nn.Module):
    """Inputs standardised by buffers, positions masked, attention pooling over positions."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.randn(5))
        self.register_buffer("std", torch.rand(5) + 0.5)
        self.fc1, self.fc2, self.score = nn.Linear(5, 9), nn.Linear(9, 8), nn.Linear(9, 1)
        self.classify = nn.Linear(8, 4)

    def forward(self, x):
        mask = (x.sum(-1, keepdim=True) > 0).to(x.dtype)
        x = F.relu(self.fc1((x - self.mean) / self.std)) * mask
        weights = self.score(x).masked_fill(mask == 0, -9.0).softmax(1)
        return self.classify((self.fc2(x) * weights).sum(1))


@network(3, 6, 6)
class Gated(nn.Module):
    """`glu` and pixel shuffle: units of several channels each."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = conv(3, 10), conv(5, 12)
        self.prelu, self.conv3, self.head = nn.PReLU(12), conv(3, 7), head(7)

    def forward(self, x):
        x = self.prelu(self.conv2(F.glu(self.conv1(x), 1)))
        return self.head(F.relu(self.conv3(F.pixel_shuffle(x, 2))))
