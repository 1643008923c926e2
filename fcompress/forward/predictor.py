"""One object that holds a network, how its inputs are packed and how its answers are read.

Made where a user's network enters and passed on from there, so that nothing has to be hung on the
network itself: no hooks, no records, no wrapper whose parameters have other names.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from fcompress.data.packing import Packing
from fcompress.forward.answers.scoring import BY_SHAPE, Scoring
from fcompress.forward.callables import Called
from fcompress.forward.running import dtype_of, own_copies, runs_on, tensors_of


@dataclass(frozen=True)
class Predictor:
    """A network that can be asked for scores and labels, whatever it takes and returns.

    Example:
        >>> predictor = Predictor(nn.Linear(4, 3))
        >>> with predictor.evaluating():
        ...     predictor.labels(torch.zeros(2, 4)).shape
        torch.Size([2, 1])

    Attributes:
        network: The network, never changed.
        packing: How its several inputs lie in one tensor; None for a network that takes one.
        scoring: Which of its outputs are the scores, and what a label is.
        draws: Whether it draws random numbers that its answers depend on. Each example then has a
            pass of its own where answers are counted, so that it has draws of its own.
    """

    network: nn.Module
    packing: Packing | None = None
    scoring: Scoring = BY_SHAPE
    draws: bool = False

    def of(self, network: nn.Module) -> Predictor:
        """Another network that takes and returns the same."""
        return replace(self, network=network)

    @property
    def name(self) -> str:
        """What to call the network in a message."""
        network = self.network
        return network.name if isinstance(network, Called) else type(network).__name__

    def tensors(self) -> dict[str, Tensor]:
        """Parameters and buffers by name."""
        return tensors_of(self.network)

    def call(self, network: nn.Module, *inputs: Any) -> Any:
        """Run any network that takes and returns the same, and choose among its outputs.

        Args:
            network: It is run as it is: mode, gradients and devices are the caller's business.
            inputs: What it takes, left as it is; where there is a packing, one tensor [n, bytes].

        Returns:
            The output that holds the scores, unchecked.
        """
        args, kwargs = self.unpacked(network, *own_copies(inputs))
        counted = self.scoring.counted(args, kwargs)
        return self.scoring.chosen(self._run(network, inputs, args, kwargs), counted)

    def whole(self, network: nn.Module, *inputs: Any) -> Any:
        """`call` without a choice: all that the network returns.

        Raises:
            UnsupportedNetworkError: Its code raises something, whatever that is.
        """
        args, kwargs = self.unpacked(network, *own_copies(inputs))
        return self._run(network, inputs, args, kwargs)

    def _run(
        self, network: nn.Module, inputs: tuple[Any, ...], args: tuple[Any, ...], kwargs: Any
    ) -> Any:
        words = "" if self.packing is None else f"inputs {self.packing}"
        with runs_on(*inputs, described=words):
            return self.scoring.run(network, *args, **kwargs)

    def unpacked(self, network: nn.Module, *inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What the network is given, by position and by name."""
        if self.packing is None:
            return inputs, {}
        kinds = (p.dtype for p in network.parameters() if p.is_floating_point())
        return self.packing.unpack(inputs[0], next(kinds, None))

    def __call__(self, inputs: Tensor) -> Any:
        """`call` with this predictor's own network."""
        return self.call(self.network, inputs)

    def place(self, inputs: Tensor) -> Tensor:
        """Bring a batch to the device of the network, floating point inputs also to its dtype."""
        parameter = next(self.network.parameters(), None)
        if parameter is None:
            return inputs
        if inputs.is_floating_point() and parameter.is_floating_point():
            return inputs.to(parameter.device, parameter.dtype)
        return inputs.to(parameter.device)

    def scores(self, inputs: Tensor) -> Tensor:
        """Scores of a batch, checked.

        Args:
            inputs: [n, ...], as from `place`.

        Returns:
            [n, classes], or what else `Scoring.checked` allows.

        Raises:
            UnsupportedNetworkError: The network gives anything but scores of its kind of labels.
        """
        return self.scoring.checked(self(inputs), self.name, len(inputs))

    def labels(self, inputs: Tensor) -> Tensor:
        """All labels of each example: integers [n, places] (`Scoring.labels_of`)."""
        return self.scoring.labels_of(self.scores(inputs))

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Eval mode without gradients; modes and the random state return afterwards.

        Modes are restored module by module, so that a partly frozen network stays so.
        """
        modes = [(module, module.training) for module in self.network.modules()]
        devices = {p.device for p in self.network.parameters() if p.device.type == "cuda"}
        self.network.eval()
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=list(devices)):
                yield
        finally:
            for module, training in modes:
                module.training = training

    @property
    def dtype(self) -> torch.dtype:
        """The floating point type that the network computes in."""
        return dtype_of(self.network)


def as_predictor(network: nn.Module | Predictor) -> Predictor:
    """A network as a predictor: one tensor in, labels by the shape of its scores."""
    return network if isinstance(network, Predictor) else Predictor(network)
