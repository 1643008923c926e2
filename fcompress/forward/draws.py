"""Random numbers that a network draws while it answers: going on, starting anew, or averaged.

`Predictor.evaluating` gives the caller's random state back, so that two passes inside two of them
draw the same numbers, which hides that a network draws at all. Where answers are counted, draws go
on from batch to batch (`Draws`), and each of two networks that are compared has its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

# What draws are on average, by operator: of a Bernoulli variable its probability, ...
_MEANS: dict[str, float] = {
    "rand": 0.5,
    "rand_like": 0.5,
    "randn": 0.0,
    "randn_like": 0.0,
}


class Draws:
    """A stream of random numbers that goes on over batches, while the caller's stays as it is."""

    def __init__(self) -> None:
        self._states: dict[torch.device, Tensor] = {}

    @contextmanager
    def going_on(self, *networks: nn.Module) -> Iterator[None]:
        """Go on where the last one ended; used inside `Predictor.evaluating`."""
        devices = _devices(*networks)
        if self._states:
            _set_states(self._states)
        yield
        self._states = _states(devices)


def drawing_apart(network: nn.Module) -> None:
    """Other draws from here on than without it, the same ones whenever the state is the same."""
    seed = int(torch.randint(2**62, (1,), generator=_copy_of_default()))
    torch.default_generator.manual_seed(seed)
    for device in _devices(network):
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)


def _copy_of_default() -> torch.Generator:
    generator = torch.Generator()
    generator.set_state(torch.default_generator.get_state())
    return generator


def _devices(*networks: nn.Module) -> list[torch.device]:
    """The GPUs that networks are on."""
    found = {p.device for n in networks for p in n.parameters() if p.device.type == "cuda"}
    return sorted(found, key=str)


def _states(devices: list[torch.device]) -> dict[torch.device, Tensor]:
    states = {device: torch.cuda.get_rng_state(device) for device in devices}
    return {torch.device("cpu"): torch.get_rng_state(), **states}


def _set_states(states: dict[torch.device, Tensor]) -> None:
    for device, state in states.items():
        if device.type == "cpu":
            torch.set_rng_state(state)
        else:
            torch.cuda.set_rng_state(state, device)


def states_of(network: nn.Module) -> dict[torch.device, Tensor]:
    """The random state of the CPU and of the GPUs that a network is on."""
    return _states(_devices(network))


def averaged(call: Callable[..., Any]) -> Callable[..., Any]:
    """A way to run a network with the mean in place of each draw, so that it repeats itself.

    Groups are proven by comparing runs of networks of different shapes, which would draw
    differently.

    Args:
        call: `call(module, *inputs)`.
    """

    def run(network: nn.Module, *inputs: Any) -> Any:
        with _Averaged():
            return call(network, *inputs)

    return run


class _Averaged(TorchDispatchMode):
    """Replaces draws by their means."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        if name == "native_dropout":
            x = args[0].clone()
            return x, torch.ones_like(x, dtype=torch.bool)
        if name == "bernoulli_":
            p = args[1] if len(args) > 1 else kwargs.get("p", 0.5)
            return args[0].copy_(p) if isinstance(p, Tensor) else args[0].fill_(p)
        if name == "bernoulli":
            return torch.full_like(args[0], args[1]) if len(args) > 1 else args[0].clone()
        if name == "normal_":
            return args[0].fill_(args[1] if len(args) > 1 else kwargs.get("mean", 0.0))
        if name == "uniform_":
            low = args[1] if len(args) > 1 else kwargs.get("from", 0.0)
            high = args[2] if len(args) > 2 else kwargs.get("to", 1.0)
            return args[0].fill_((low + high) / 2)
        out = func(*args, **kwargs)
        return torch.full_like(out, _MEANS[name]) if name in _MEANS else out
