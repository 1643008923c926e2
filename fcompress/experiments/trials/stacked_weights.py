"""What stacked training moves: the optimizer's rule and the first layer's weights.

Tensors begin with one dimension for the networks, [N, ...]. Networks that see the same batches
(same data, same seed) form one stream and lie side by side.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fcompress.training.loop import MOMENTUM

# The defaults of torch.optim.Adam, and alpha as `fcompress.train` has it for RMSProp.
ADAM_BETAS = (0.9, 0.999)
RMSPROP_ALPHA = 0.9
EPSILON = 1e-8
# Values that are moved at a time: few enough that all of an optimizer's passes find them in cache.
BLOCK = 2**16


class Rule:
    """One optimizer on one stacked tensor, with the mathematics of `torch.optim`.

    Args:
        optimizer: One of `fcompress.train_config.OPTIMIZERS`.
        weight_decay: Added to the gradient as this many times the value.
    """

    def __init__(self, optimizer: str, weight_decay: float = 0.0) -> None:
        self._optimizer = optimizer
        self._decay = weight_decay
        self._mean: Tensor | None = None  # momentum, or Adam's first moment
        self._square: Tensor | None = None
        self._steps = 0

    def step(self, values: Tensor, gradient: Tensor, rates: Tensor) -> None:
        """Move `values` [N, ...] in place; `rates` [N] is each network's learning rate."""
        if self._mean is None:
            kept = values if self._optimizer != "sgd" else values[:0]
            self._mean = torch.zeros_like(kept)
            self._square = torch.zeros_like(kept)
        assert self._square is not None
        self._steps += 1
        rates = rates.view(-1, *[1] * (values.dim() - 1))
        rows = max(1, BLOCK // values[:, :1].numel())
        parts = [t.split(rows, 1) for t in (values, gradient, self._mean, self._square)]
        for some, slopes, mean, square in zip(*parts, strict=True):
            self._step(some, slopes, mean, square, rates)

    def _step(
        self, values: Tensor, gradient: Tensor, mean: Tensor, square: Tensor, rates: Tensor
    ) -> None:
        if self._decay:
            gradient = gradient + self._decay * values
        if self._optimizer == "sgd":
            values.addcmul_(rates, gradient, value=-1)
        elif self._optimizer == "momentum":
            mean.mul_(MOMENTUM).add_(gradient)
            values.addcmul_(rates, mean, value=-1)
        elif self._optimizer == "rmsprop":
            root = _running(square, gradient, RMSPROP_ALPHA).sqrt().add_(EPSILON)
            mean.mul_(MOMENTUM).addcdiv_(gradient, root)
            values.addcmul_(rates, mean, value=-1)
        else:
            first, second = (1 - beta**self._steps for beta in ADAM_BETAS)
            mean.lerp_(gradient, 1 - ADAM_BETAS[0])
            root = _running(square, gradient, ADAM_BETAS[1]).sqrt()
            root.div_(second**0.5).add_(EPSILON)
            values.addcmul_(rates / first, root.reciprocal_().mul_(mean), value=-1)


def _running(square: Tensor, gradient: Tensor, keep: float) -> Tensor:
    return square.mul_(keep).addcmul_(gradient, gradient, value=1 - keep)


@dataclass(frozen=True)
class Stream:
    """Networks that see the same batches.

    Attributes:
        networks: Their places in the stack.
        inputs: [n, D], the training inputs; streams on the same data share them.
        labels: [n], int64.
        seed: Of the shuffling.
    """

    networks: slice
    inputs: Tensor
    labels: Tensor
    seed: int

    @property
    def count(self) -> int:
        """Number of networks."""
        return self.networks.stop - self.networks.start


class FirstLayer(Protocol):
    """The weights [N, out, D] of the layers that read the data; the bias is not among them."""

    def outputs(self, batch: Sequence[Tensor]) -> Tensor:
        """X W^T [N, b, out] for the rows of a batch: their positions [b] in each stream."""

    def step(self, batch: Sequence[Tensor], gradient: Tensor, rates: Tensor) -> None:
        """Descend along the gradient [N, b, out] of the loss by these outputs."""

    def finite(self) -> Tensor:
        """[N], bool: which networks' weights are all finite."""

    def weight(self, network: int) -> Tensor:
        """[out, D], the weight of one network."""


class Dense:
    """First layers as what they are.

    Args:
        weights: The initial weight of each network, [out, D].
        streams: Who sees what.
        rule: Moves the weights.
    """

    def __init__(self, weights: Sequence[Tensor], streams: Sequence[Stream], rule: Rule) -> None:
        self._weights = torch.stack(tuple(weights))
        self._streams = streams
        self._rule = rule

    def outputs(self, batch: Sequence[Tensor]) -> Tensor:
        """See `FirstLayer`."""
        parts = []
        for stream, rows in zip(self._streams, batch, strict=True):
            own = self._weights[stream.networks]
            # One product for all networks of the stream: [b, D] x [D, count * out].
            flat = stream.inputs[rows] @ own.flatten(0, 1).T
            parts.append(flat.unflatten(1, own.shape[:2]).transpose(0, 1))
        return torch.cat(parts)

    def step(self, batch: Sequence[Tensor], gradient: Tensor, rates: Tensor) -> None:
        """See `FirstLayer`."""
        slopes = torch.empty_like(self._weights)
        for stream, rows in zip(self._streams, batch, strict=True):
            own = gradient[stream.networks].permute(0, 2, 1).flatten(0, 1)
            slopes[stream.networks] = (own @ stream.inputs[rows]).unflatten(0, (stream.count, -1))
        self._rule.step(self._weights, slopes, rates)

    def finite(self) -> Tensor:
        """See `FirstLayer`."""
        return finite(self._weights)

    def weight(self, network: int) -> Tensor:
        """See `FirstLayer`."""
        return self._weights[network]


class Spanned:
    """First layers of SGD and momentum, as combinations of the training inputs.

    Each gradient of a first layer is a combination of training inputs, so that the weight is
    W = W0 + C^T X with coefficients C [n, out], and its outputs on the training inputs are
    X W^T = X W0^T + (X X^T) C. The Gram matrix X X^T [n, n] is made once; a step costs n instead
    of D multiplications for each example and unit. A step of SGD adds minus the rate times the
    gradient by the outputs to the rows of C that are in the batch; momentum is linear as well.

    Args:
        weights: The initial weight of each network, [out, D]; the same tensor where networks
            start alike.
        streams: Who sees what.
        momentum: Share of the last step that is kept; 0 for SGD.
    """

    def __init__(
        self, weights: Sequence[Tensor], streams: Sequence[Stream], momentum: float
    ) -> None:
        self._initial = weights
        self._streams = streams
        self._momentum = momentum
        # Streams share data and networks their initial weights: no product is made twice.
        known: dict[tuple[int, int], Tensor] = {}

        def product(left: Tensor, right: Tensor) -> Tensor:
            key = id(left), id(right)
            if key not in known:
                known[key] = left @ right.T
            return known[key]

        self._grams = [product(stream.inputs, stream.inputs) for stream in streams]
        self._start = torch.stack(
            [product(s.inputs, weight) for s in streams for weight in weights[s.networks]]
        )
        self._coefficients = torch.zeros_like(self._start)
        self._velocity = torch.zeros_like(self._start)

    def outputs(self, batch: Sequence[Tensor]) -> Tensor:
        """See `FirstLayer`."""
        parts = []
        for stream, gram, rows in zip(self._streams, self._grams, batch, strict=True):
            own = self._coefficients[stream.networks]
            parts.append(torch.matmul(gram[rows], own) + self._start[stream.networks, rows])
        return torch.cat(parts)

    def step(self, batch: Sequence[Tensor], gradient: Tensor, rates: Tensor) -> None:
        """See `FirstLayer`."""
        if not self._momentum:
            change = rates.view(-1, 1, 1) * gradient
            for stream, rows in zip(self._streams, batch, strict=True):
                self._coefficients[stream.networks, rows] -= change[stream.networks]
            return
        self._velocity.mul_(self._momentum)
        for stream, rows in zip(self._streams, batch, strict=True):
            self._velocity[stream.networks, rows] += gradient[stream.networks]
        self._coefficients.addcmul_(rates.view(-1, 1, 1), self._velocity, value=-1)

    def finite(self) -> Tensor:
        """See `FirstLayer`."""
        return finite(self._coefficients)

    def weight(self, network: int) -> Tensor:
        """See `FirstLayer`."""
        stream = next(s for s in self._streams if network < s.networks.stop)
        return self._initial[network] + self._coefficients[network].T @ stream.inputs


def finite(values: Tensor) -> Tensor:
    """Which of the networks of [N, ...] have finite values only: [N], bool."""
    return values.isfinite().flatten(1).all(1)
