"""Networks with units that others make up for exactly, whatever the architecture.

The groups say which rows of which tensors make a unit. A unit whose rows are copies of another
one's is a duplicate, also through batch norms, depthwise convolutions and residual sums.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fcompress.compress.methods import Context
from fcompress.data.roles import batches_of
from fcompress.forward import cost
from fcompress.forward.predictor import Predictor
from fcompress.structure.groups import find_groups


class Residual(nn.Module):
    """Two residual blocks, the second one with stride and a projection."""

    def __init__(self, norm: bool) -> None:
        super().__init__()
        bias = not norm
        make = nn.BatchNorm2d if norm else nn.Identity
        self.stem, self.n0 = nn.Conv2d(2, 8, 3, padding=1, bias=bias), make(8)
        self.a, self.n1 = nn.Conv2d(8, 8, 3, padding=1, bias=bias), make(8)
        self.b, self.n2 = nn.Conv2d(8, 8, 3, padding=1, bias=bias), make(8)
        self.down, self.n3 = nn.Conv2d(8, 12, 1, stride=2, bias=False), make(12)
        self.c, self.n4 = nn.Conv2d(8, 12, 3, stride=2, padding=1, bias=False), make(12)
        self.d, self.n5 = nn.Conv2d(12, 12, 3, padding=1, bias=False), make(12)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.n0(self.stem(x)).relu()
        x = (x + self.n2(self.b(self.n1(self.a(x)).relu()))).relu()
        x = (self.n3(self.down(x)) + self.n5(self.d(self.n4(self.c(x)).relu()))).relu()
        return self.head(x.mean((2, 3)))


class PreActivation(nn.Module):
    """Norms before the convolutions, so that a norm reads the residual sum."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 8, 3, padding=1, bias=False)
        self.n1, self.a = nn.BatchNorm2d(8), nn.Conv2d(8, 6, 3, padding=1, bias=False)
        self.n2, self.b = nn.BatchNorm2d(6), nn.Conv2d(6, 8, 3, padding=1, bias=False)
        self.n3, self.head = nn.BatchNorm2d(8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.b(self.n2(self.a(self.n1(x).relu())).relu())
        return self.head(self.n3(x).relu().mean((2, 3)))


class Concatenation(nn.Module):
    """Branches side by side, pooled and flattened into one linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(2, 6, 3, padding=1)
        self.right, self.norm = nn.Conv2d(2, 8, 5, padding=2, bias=False), nn.BatchNorm2d(8)
        self.both = nn.Conv2d(14, 10, 3, stride=2)
        self.hidden, self.head = nn.Linear(14 + 90, 7), nn.Linear(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.left(x).relu(), self.norm(self.right(x)).tanh()], 1)
        x = torch.cat([x.mean((2, 3)), self.both(x).relu().flatten(1)], 1)
        return self.head(self.hidden(x).relu())


class Functional(nn.Module):
    """Bare parameters and functional calls."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel, self.shift = _parameter(8, 2, 3, 3), _parameter(8)
        self.matrix, self.rows, self.head = _parameter(8, 10), _parameter(6, 10), _parameter(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(x, self.kernel, self.shift, padding=1).relu().mean((2, 3))
        x = F.gelu(x @ self.matrix)
        return F.linear(F.silu(F.linear(x, self.rows)), self.head)


def _parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape) / shape[-1] ** 0.5)


def _plain(norm: bool) -> nn.Sequential:
    between = (lambda n: [nn.BatchNorm2d(n)]) if norm else (lambda n: [])
    return nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1),
        *between(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 10, 3, stride=2, padding=1),
        *between(10),
        nn.ReLU(inplace=True),
        nn.AvgPool2d(2),
        nn.Conv2d(10, 6, 1, bias=False),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(6, 8),
        nn.ReLU(),
        nn.Linear(8, 4, bias=False),
    )


def _flattened(norm: bool) -> nn.Sequential:
    """A feature map flattened: several columns for each unit, more columns than examples."""
    return nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=2, dilation=2),
        nn.LeakyReLU(),
        nn.Flatten(),
        nn.Linear(8 * 64, 9),
        nn.BatchNorm1d(9) if norm else nn.Identity(),
        nn.GELU(),
        nn.Linear(9, 4),
    )


def _depthwise() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU6(),
        nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU6(),
        nn.Conv2d(8, 10, 1, bias=False),
        nn.BatchNorm2d(10),
        nn.ReLU6(),
        nn.Conv2d(10, 10, 3, stride=2, groups=10),
        nn.ReLU(),
        nn.Conv2d(10, 8, 3, groups=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    )


ARCHITECTURES = {
    "plain": lambda: _plain(False),
    "plain, norm": lambda: _plain(True),
    "flattened": lambda: _flattened(False),
    "flattened, norm": lambda: _flattened(True),
    "residual": lambda: Residual(False),
    "residual, norm": lambda: Residual(True),
    "pre-activation": PreActivation,
    "concatenation": Concatenation,
    "depthwise and grouped": _depthwise,
    "functional": Functional,
}


def network(name: str, seed: int) -> nn.Module:
    """An architecture in float64 and eval mode, with statistics that are not those of any data."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ARCHITECTURES[name]().double().eval().requires_grad_(False)
        settle(model)
    return model


def settle(model: nn.Module) -> None:
    """Random batch norms, from the global generator, that leave no unit dead."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.running_mean.normal_().mul_(0.5)
            module.running_var.uniform_(0.5, 2)
            module.weight.uniform_(0.5, 1.5)
            module.bias.uniform_(0, 1)


def images(count: int, seed: int) -> Tensor:
    """Inputs [count, 2, 8, 8] for the architectures."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 2, 8, 8, generator=generator, dtype=torch.float64)


def context_of(model: nn.Module, x: Tensor, seed: int = 0) -> Context:
    """What a method works with."""
    macs = cost.count(model, x[:1]).macs
    return Context(
        Predictor(model), find_groups(model, x[:4], seed=seed), batches_of(x), seed, macs
    )


def duplicate(model: nn.Module, x: Tensor, seed: int, share: float = 0.5) -> dict[str, Tensor]:
    """Turn a share of every group's units into copies of the others, in place.

    Returns:
        For each group the units that are no copies, sorted.
    """
    generator = torch.Generator().manual_seed(seed)
    kept = {}
    for group in find_groups(model, x[:4]).groups:
        shuffled = torch.randperm(group.size, generator=generator)
        stay = max(1, round((1 - share) * group.size))
        kept[group.name] = shuffled[:stay].sort().values
        for index, copy in enumerate(shuffled[stay:].tolist()):
            overwrite(model, group, copy, int(shuffled[index % stay]))
    return kept


def overwrite(model, group, unit: int, source: int | None, factor: float = 1.0) -> None:
    """Make one unit a copy of another, or dead (source None), by its rows."""
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    for slot in group.slots:
        if slot.role == "consumer" or not tensors[slot.tensor].is_floating_point():
            continue  # whole numbers are places, which stay what they are
        to = (slot.units == unit).nonzero().flatten()
        tensor = tensors[slot.tensor]
        rows = torch.zeros_like(tensor.index_select(slot.dim, to))
        if source is not None:
            rows = tensor.index_select(slot.dim, (slot.units == source).nonzero().flatten())
        elif slot.tensor.endswith("running_var"):
            rows = rows + 1
        tensor.index_copy_(slot.dim, to, factor * rows)


def misfit(thin: nn.Module, wide: nn.Module, x: Tensor) -> float:
    """Largest difference of the outputs, relative to the largest output."""
    with torch.no_grad():
        wanted = wide(x.clone())
        return float((thin(x.clone()) - wanted).abs().max() / wanted.abs().max())
