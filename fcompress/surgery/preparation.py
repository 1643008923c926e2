"""Copies of a network that can be traced and excised, and the inputs to run them on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fcompress.forward.copying import deep_copy
from fcompress.forward.running import as_inputs, dtype_of, own_copies, quiet_tracing, runs_on
from fcompress.models.provenance import hand_on
from fcompress.nn.local_response_norm import LocalResponseNorm
from fcompress.surgery.adapting import adapt
from fcompress.surgery.resizing import forget_caches

# How a network is run: `call(model, *inputs)` gives its outputs.
Call = Callable[..., Any]

# Parameters; four copies in double precision are 3 GB.
_LARGE = 10**8


def plainly(model: nn.Module, *inputs: Any) -> Any:
    """The `Call` of a network that takes its inputs by position and whose outputs all count."""
    return model(*own_copies(inputs))


def is_large(model: nn.Module) -> bool:
    """Whether copies of a network, in double precision at that, are too much for the memory."""
    return sum(p.numel() for p in model.parameters()) > _LARGE


def plain_copy(model: nn.Module) -> nn.Module:
    """A copy on the CPU, in eval mode, with every parameter and buffer in memory of its own.

    That is what tracing needs, which tells parameters by their memory. Only the parameters of a
    network that `is_large` stay where they are in the original.

    Args:
        model: Any network; left as it is.

    Returns:
        A deep copy that computes the same; what its modules had cached is forgotten.

    Example:
        >>> model = nn.Linear(3, 2)
        >>> model.weight.data = torch.randn(3, 2).t()
        >>> copied = plain_copy(model)
        >>> copied.training, copied.weight.is_contiguous(), copied.weight.equal(model.weight)
        (False, True, True)
    """
    model = deep_copy(model, _in_place(model) if is_large(model) else None).cpu().eval()
    for tensor in [*model.parameters(), *model.buffers()]:
        if not tensor.is_contiguous() or tensor.untyped_storage().nbytes() > tensor.nbytes:
            tensor.data = tensor.data.clone(memory_format=torch.contiguous_format)
    for module in model.modules():
        forget_caches(module)
    return model


def _in_place(model: nn.Module) -> dict[int, Any]:
    """For `deepcopy`: parameters of their own that use the memory of the original's."""
    return {id(p): nn.Parameter(p.detach(), p.requires_grad) for p in model.parameters()}


def prepare(
    model: nn.Module, example: Any, *, share: bool = False, call: Call | None = None
) -> nn.Module:
    """A copy that computes the same and can be excised where the original could not.

    - Every `torch.nn.LocalResponseNorm` becomes a `fcompress.nn.LocalResponseNorm` with the same
      settings. `F.local_response_norm` is out of reach: groups that go through it are not pruned,
      and are named.
    - Modules that hold on to one width let go of it (`adapting.adapt`).

    Args:
        model: Any network; left as it is.
        example: A real input batch, a tensor [N, ...] or a tuple of positional inputs, for the
            numbers of channels.
        share: Let the parameters of the copy use the memory of the original's: for a copy that is
            only run.
        call: How the network is run: `call(module, *inputs)`; None for `module(*inputs)`. Only a
            network with local response normalisations is run.

    Returns:
        A deep copy, with the mode and devices of `model`.

    Raises:
        UnsupportedNetworkError: The network has local response normalisations but does not run
            on the example.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.LocalResponseNorm(3))
        >>> x = torch.randn(2, 1, 5, 5)
        >>> prepared = prepare(model, x)
        >>> prepared[1].positions
        tensor([0, 1, 2, 3])
        >>> torch.allclose(prepared(x), model(x))
        True
    """
    memo = _in_place(model) if share else {}
    copied = deep_copy(model, memo | _exact_norms(model, example, call or plainly))
    adapt(copied)
    hand_on(model, copied)
    return copied


def _exact_norms(model: nn.Module, example: Any, call: Call) -> dict[int, Any]:
    """What takes the place of each local response normalisation, by identity."""
    norms = [m for m in model.modules() if type(m) is nn.LocalResponseNorm]
    if not norms:
        return {}
    watched = {id(norm): _Watched(norm) for norm in norms}
    seen = deep_copy(model, dict(watched)).cpu().eval()
    inputs = as_inputs(example, dtype_of(seen))
    with runs_on(*inputs), quiet_tracing():
        call(seen, *inputs)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    exact: dict[int, Any] = {}
    for norm in norms:
        channels = watched[id(norm)].channels
        # Used at several widths, a normalisation has no one set of positions: it stays.
        if len(channels) == 1:
            settings = (norm.size, norm.alpha, norm.beta, norm.k)
            made = LocalResponseNorm(*settings, channels=channels.pop())
            exact[id(norm)] = made.to(device).train(norm.training)
    return exact


class _Watched(nn.Module):
    """Stands in for a normalisation during one forward and notes its numbers of channels."""

    def __init__(self, norm: nn.LocalResponseNorm) -> None:
        super().__init__()
        self.norm = deep_copy(norm)
        self.channels: set[int] = set()

    def forward(self, x: Tensor) -> Tensor:
        self.channels.add(x.shape[1])
        return self.norm(x)
