"""The three constructions of the paper's section 3 ("Relating Prunable and Redundant Units").

From a narrow network N each of them builds W, twice as wide, with the same function, so that
what every measurement and every excision must answer is known in advance:

- a: activity [u, u], outgoing weights [theta, 0]: half the units are prunable and redundant;
- b: activity [u, v], outgoing weights [theta, 0]: the half v is prunable, nothing is redundant
  that was not redundant in N;
- c: activity [u, u], outgoing weights [(theta + b) / 2, (theta - b) / 2]: half the units are
  redundant, none of them prunable.

Unit j and unit n + j of a wide layer are the pair (u_j, u_j) or (u_j, v_j): the doubled half is
always the last half. All weights are float64, all networks plain `nn.Sequential`s.

Two choices that the paper leaves open:

- "Orthogonal" in b means zero covariance over the data, which is what a PCA of centred
  activations sees (two units after a ReLU are never negative, so their plain inner product is 0
  only where they are never active together). It holds exactly: N ignores the last `spare` input
  features, these run through a two-level Hadamard design that is crossed with every base
  example, and v_j passes spare feature j on from layer to layer.
- The constant b of c differs from row to row of a weight, in sign and size. One constant for all
  rows would add the same offset to every logit, which changes no label.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Constructions:
    """N, its three wide versions, and the data over which their properties hold.

    Attributes:
        narrow: N.
        a: more prunable and more redundant.
        b: only more prunable.
        c: only more redundant.
        data: inputs [N, features] or [N, channels, height, width], float64.
        spread: standard deviation of every v unit of `b` over the data (each has the same).
    """

    narrow: nn.Sequential
    a: nn.Sequential
    b: nn.Sequential
    c: nn.Sequential
    data: Tensor
    spread: float

    def wide(self) -> dict[str, nn.Sequential]:
        """The three wide networks by their letter."""
        return {"a": self.a, "b": self.b, "c": self.c}


def mlp_constructions(
    depth: int = 2,
    *,
    width: int = 8,
    inputs: int = 6,
    classes: int = 4,
    balance: float = 64.0,
    spread: float = 1.0,
    base: int = 64,
    seed: int = 0,
    train_steps: int = 60,
) -> Constructions:
    """Constructions from a fully connected network of `depth` hidden layers of `width` units.

    Args:
        depth: hidden layers.
        width: units of every hidden layer of N; W has twice as many.
        inputs: input features that N reads; the data have `width` spare ones after them.
        classes: outputs.
        balance: the largest constant b of construction c.
        spread: standard deviation of the v units of construction b.
        base: examples before the crossing with the Hadamard design.
        seed: of weights and data.
        train_steps: steps of Adam towards a random teacher's labels; 0 leaves N random.
    """
    generator = torch.Generator().manual_seed(seed)
    sizes = [inputs, *[width] * depth]
    hidden: list[nn.Module] = []
    for before, after in pairwise(sizes):
        hidden += [_linear(before, after, generator), nn.ReLU()]
    narrow = nn.Sequential(*hidden, _linear(sizes[-1], classes, generator))
    examples = _normal([base, inputs], generator)
    _train(narrow, examples, train_steps, generator)
    _ignore_spare_inputs(narrow, width)
    return _construct(narrow, _crossed(examples, width), balance, spread)


def conv_constructions(
    *,
    width: int = 6,
    channels: int = 2,
    size: int = 8,
    hidden: int = 6,
    classes: int = 4,
    balance: float = 64.0,
    spread: float = 1.0,
    base: int = 16,
    seed: int = 0,
    train_steps: int = 40,
) -> Constructions:
    """Constructions from a plain convolutional network without normalisation.

    N is conv 3x3 (padded), ReLU, max pool, conv 3x3 with stride 2 (padded), ReLU, flatten,
    linear, ReLU, linear. `hidden` (units of the fully connected layer) must not exceed `width`.
    """
    generator = torch.Generator().manual_seed(seed)
    flat = width * (size // 4) ** 2
    narrow = nn.Sequential(
        _conv(channels, width, generator, stride=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        _conv(width, width, generator, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        _linear(flat, hidden, generator),
        nn.ReLU(),
        _linear(hidden, classes, generator),
    )
    examples = _normal([base, channels, size, size], generator)
    _train(narrow, examples, train_steps, generator)
    _ignore_spare_inputs(narrow, width)
    return _construct(narrow, _crossed(examples, width), balance, spread)


def hidden_activations(model: nn.Sequential, data: Tensor) -> list[Tensor]:
    """Output of every ReLU, positions as rows: a list of [rows, units]."""
    values = []
    with torch.no_grad():
        for layer in model:
            data = layer(data)
            if isinstance(layer, nn.ReLU):
                values.append(data.movedim(1, -1).reshape(-1, data.shape[1]))
    return values


def _construct(narrow: nn.Sequential, data: Tensor, balance: float, spread: float) -> Constructions:
    return Constructions(
        narrow=narrow,
        a=_double(narrow, "a", balance, spread),
        b=_double(narrow, "b", balance, spread),
        c=_double(narrow, "c", balance, spread),
        data=data,
        spread=spread,
    )


def _double(narrow: nn.Sequential, kind: str, balance: float, spread: float) -> nn.Sequential:
    """Twice the hidden units of `narrow`, the same function, by construction `kind`."""
    weighted = [layer for layer in narrow if isinstance(layer, nn.Linear | nn.Conv2d)]
    wide: list[nn.Module] = []
    hidden_before = 0  # hidden units of N that the weight layer reads; 0 for the first layer
    for layer in narrow:
        if not isinstance(layer, nn.Linear | nn.Conv2d):
            wide.append(layer)
            continue
        weight, bias = layer.weight.detach(), layer.bias.detach()
        rows = _double_columns(weight, kind, balance) if hidden_before else weight
        if layer is not weighted[-1]:
            if kind == "b":
                v_rows = _v_rows(weight, hidden_before, spread)
                rows, bias = torch.cat([rows, v_rows]), torch.cat([bias, torch.zeros_like(bias)])
            else:
                rows, bias = torch.cat([rows, rows]), torch.cat([bias, bias])
        hidden_before = weight.shape[0]
        wide.append(_like(layer, rows, bias))
    return nn.Sequential(*wide)


def _double_columns(weight: Tensor, kind: str, balance: float) -> Tensor:
    """Outgoing weights [out, 2 * in, ...] of a doubled layer from those of N [out, in, ...]."""
    if kind != "c":
        return torch.cat([weight, torch.zeros_like(weight)], dim=1)
    row = torch.arange(weight.shape[0], dtype=weight.dtype)
    levels = (1.0 - 2.0 * (row % 2)) * (row + 1.0) / len(row)  # 1/n, -2/n, 3/n, ...
    b = (balance * levels).reshape(-1, *[1] * (weight.dim() - 1))
    return torch.cat([(weight + b) / 2, (weight - b) / 2], dim=1)


def _v_rows(weight: Tensor, hidden_before: int, spread: float) -> Tensor:
    """Incoming weights of the v units: unit j copies v_j of the layer before, or spare input j."""
    width, columns = weight.shape[0], weight.shape[1]
    centre = tuple(size // 2 for size in weight.shape[2:])
    if not hidden_before:
        # The spare inputs are the last ones; they are 0 or 2, so their deviation is 1.
        v_rows = torch.zeros_like(weight)
        for unit in range(width):
            v_rows[(unit, columns - width + unit, *centre)] = spread
        return v_rows
    if width > hidden_before:
        raise ValueError("construction b needs hidden layers that do not grow with depth")
    # After a flatten each unit covers several columns, all equal for v: one of them is read.
    each = columns // hidden_before
    v_rows = torch.cat([torch.zeros_like(weight)] * 2, dim=1)
    for unit in range(width):
        v_rows[(unit, columns + unit * each, *centre)] = 1.0
    return v_rows


def _crossed(examples: Tensor, spare: int) -> Tensor:
    """Every example with every row of a two-level design on its last `spare` features.

    Column 0 of a Hadamard matrix is constant; the others are orthogonal to it and to each
    other, and the crossing makes them orthogonal to whatever depends on the example alone.
    """
    design = torch.ones(1, 1, dtype=examples.dtype)
    while design.shape[0] <= spare:
        design = torch.cat([torch.cat([design, design], 1), torch.cat([design, -design], 1)])
    levels = design[:, 1 : 1 + spare] + 1.0  # 0 or 2
    planes = levels.reshape(*levels.shape, *[1] * (examples.dim() - 2))
    planes = planes.expand(-1, -1, *examples.shape[2:])
    pairs = [
        torch.cat([examples, plane.expand(len(examples), *plane.shape)], dim=1) for plane in planes
    ]
    return torch.cat(pairs)


def _ignore_spare_inputs(narrow: nn.Sequential, spare: int) -> None:
    """Give the first layer of N `spare` more inputs, which it multiplies by 0."""
    first = narrow[0]
    weight = first.weight.detach()
    zeros = weight.new_zeros(weight.shape[0], spare, *weight.shape[2:])
    narrow[0] = _like(first, torch.cat([weight, zeros], dim=1), first.bias.detach())


def _train(narrow: nn.Sequential, examples: Tensor, steps: int, generator: torch.Generator) -> None:
    """A few steps of Adam towards labels that a random linear teacher gives."""
    if not steps:
        return
    classes = narrow[-1].out_features
    flat = examples.flatten(1)
    labels = (flat @ _normal([flat.shape[1], classes], generator)).argmax(1)
    optimizer = torch.optim.Adam(narrow.parameters(), lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(narrow(examples), labels).backward()
        optimizer.step()
    narrow.requires_grad_(False)


def _normal(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def _linear(inputs: int, outputs: int, generator: torch.Generator) -> nn.Linear:
    layer = nn.utils.skip_init(nn.Linear, inputs, outputs, dtype=torch.float64)
    return _filled(layer, generator, inputs)


def _conv(inputs: int, outputs: int, generator: torch.Generator, stride: int) -> nn.Conv2d:
    layer = nn.utils.skip_init(
        nn.Conv2d, inputs, outputs, 3, stride=stride, padding=1, dtype=torch.float64
    )
    return _filled(layer, generator, inputs * 9)


def _filled(layer: nn.Module, generator: torch.Generator, fan_in: int) -> nn.Module:
    with torch.no_grad():
        layer.weight.copy_(_normal(layer.weight.shape, generator) * (2.0 / fan_in) ** 0.5)
        layer.bias.copy_(_normal(layer.bias.shape, generator) * 0.1)
    return layer


def _like(layer: nn.Module, weight: Tensor, bias: Tensor) -> nn.Module:
    """A layer of the same kind with these weights [out, in, ...] and biases [out]."""
    if isinstance(layer, nn.Linear):
        new: nn.Module = nn.utils.skip_init(
            nn.Linear, weight.shape[1], weight.shape[0], dtype=weight.dtype
        )
    else:
        new = nn.utils.skip_init(
            nn.Conv2d,
            weight.shape[1],
            weight.shape[0],
            layer.kernel_size,
            stride=layer.stride,
            padding=layer.padding,
            dtype=weight.dtype,
        )
    with torch.no_grad():
        new.weight.copy_(weight)
        new.bias.copy_(bias)
    return new.requires_grad_(False)
