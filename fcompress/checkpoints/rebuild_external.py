"""Networks of other people in files: what is kept beside their tensors, and building them again.

The file of such a network names its architecture and holds every parameter and buffer at its true
width. It is rebuilt by building the architecture, putting the tensors in place and setting the
few numbers that modules keep about their sizes (heads, window lengths) as they were. A file can
only name builders registered in torchvision, timm or transformers. Code of the user's own has to
be named again by the user: nothing is imported because a file asks for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fcompress.errors import ArchitectureError, CheckpointError
from fcompress.models.external import REGISTERED, Architecture, bounded, build_network
from fcompress.models.fingerprint import every_tensor
from fcompress.models.provenance import described
from fcompress.nn.local_response_norm import LocalResponseNorm
from fcompress.surgery.adapting import ADAPTED, adapt
from fcompress.surgery.folding import FOLDED
from fcompress.surgery.resizing import resize
from fcompress.surgery.skipping import Record, skip_again, skipped_in

Numbers = dict[str, dict[str, Any]]
# Registered modules and parameters for each tensor of a file; real networks have about two.
_EACH = 16
_FEWEST = 2000
# A whole number in the arguments of a file; sizes of real networks are far below.
_LARGEST = 2**24
# A network that cannot be built without memory takes at most this, or this many times its file.
_BYTES, _TIMES = 2**30, 64
_OWN = frozenset(vars(nn.Module()))


def numbers_of(model: nn.Module) -> Numbers:
    """Whole numbers, and lists of them, that modules keep as attributes: {module: {name: value}}.

    Head counts and the like cannot be read off any tensor.
    """
    found: Numbers = {}
    for path, module in model.named_modules():
        own = {
            name: list(value) if isinstance(value, (tuple, list)) else value
            for name, value in vars(module).items()
            if name not in _OWN and _is_numbers(value)
        }
        if own:
            found[path] = own
    return found


def needed_numbers(model: nn.Module, state: Mapping[str, Tensor]) -> Numbers:
    """The numbers that a network of a registered architecture needs when it is rebuilt.

    Args:
        model: The network.
        state: What `every_tensor` gave.

    Returns:
        Those that differ when it is rebuilt without them, and what was done to its modules.

    Raises:
        FcompressError: It cannot be rebuilt.
    """
    record = described(model)
    assert record is not None
    numbers = numbers_of(model)
    marks = _selected(numbers, lambda path, name, value: name in (ADAPTED, FOLDED))
    built = numbers_of(rebuild(record.architecture, state, marks, skipped=skipped_in(model)))
    return _selected(
        numbers,
        lambda path, name, value: (
            name in (ADAPTED, FOLDED) or built.get(path, {}).get(name) != value
        ),
    )


def _selected(numbers: Numbers, wanted: Callable[[str, str, Any], bool]) -> Numbers:
    found = {
        path: {name: value for name, value in own.items() if wanted(path, name, value)}
        for path, own in numbers.items()
    }
    return {path: own for path, own in found.items() if own}


def rebuild(
    architecture: Architecture,
    state: Mapping[str, Tensor],
    numbers: Numbers,
    make: Callable[[], nn.Module] | None = None,
    skipped: Record | None = None,
) -> nn.Module:
    """Build a network at its true widths, sharing memory with `state`, in evaluation mode.

    Args:
        architecture: How the original network was built; of a registered kind unless `make` is
            given.
        state: What `every_tensor` gave.
        numbers: What `numbers_of` gave, or the part that differs.
        make: Builds the original network instead, by code that the user named.
        skipped: Layers that it does without (`surgery.skipping.skipped_in`).

    Raises:
        ArchitectureError: The architecture cannot be built.
        CheckpointError: Tensors or numbers do not fit it.
    """
    skipped = skipped or {}
    if make is None:
        network = _registered(architecture, state, skipped)
    else:
        network = make().eval()
        skip_again(network, skipped, state)
    if numbers.get("", {}).get(ADAPTED):
        folded = {path for path, own in numbers.items() if FOLDED in own}
        adapt(network, [name for name in state if name.rpartition(".")[0] not in folded])
    _exact_norms(network, state)
    _check(network, state)
    resize(network, state)
    _set_numbers(network, numbers, strict=make is None)
    return network


def _is_numbers(value: Any) -> bool:
    if type(value) in (tuple, list):
        return bool(value) and all(type(item) is int for item in value)
    return type(value) is int


def _registered(
    architecture: Architecture, state: Mapping[str, Tensor], skipped: Record
) -> nn.Module:
    """The network without weights: shapes only where its code can do with that."""
    if architecture.kind not in REGISTERED:
        raise CheckpointError(
            f"holds a network of code of its own, {architecture.name}, and no file of fcompress "
            f"holds code; name the code again: --arch {architecture.name} (in Python: "
            "load(path, arch=...))"
        )
    _check_sizes(architecture.args)
    most = _EACH * len(state) + _FEWEST
    with bounded(most):
        try:
            with torch.device("meta"):
                network = build_network(architecture)
                skip_again(network, skipped, state)
        except ArchitectureError as error:
            # Code that looks at values cannot run on shapes; how much memory it will take is
            # then not known either.
            if isinstance(error.__cause__, NotImplementedError | RuntimeError):
                return _on_cpu(architecture, skipped, state)
            raise
        if not _lacks_values(network, state):
            return network
        size = sum(t.nbytes for t in every_tensor(network).values())
        if size > max(_BYTES, _TIMES * sum(t.nbytes for t in state.values())):
            raise CheckpointError(
                f"its architecture takes {size:,} bytes, far more than its tensors; "
                "the file is damaged"
            )
        return _on_cpu(architecture, skipped, state)


def _on_cpu(architecture: Architecture, skipped: Record, state: Mapping[str, Tensor]) -> nn.Module:
    with torch.device("cpu"):
        network = build_network(architecture)
        skip_again(network, skipped, state)
        return network


def _check_sizes(args: Any) -> None:
    """Refuse arguments of a file that would take hours or all memory to build."""
    left = [args]
    while left:
        value = left.pop()
        if isinstance(value, Mapping):
            left += value.values()
        elif isinstance(value, (list, tuple)):
            left += value
        elif isinstance(value, int) and abs(value) > _LARGEST:
            raise CheckpointError(
                f"its architecture has the argument {value}, more than {_LARGEST:,}; "
                "the file is damaged"
            )


def _lacks_values(network: nn.Module, state: Mapping[str, Tensor]) -> bool:
    """Whether a network of shapes holds tensors that `state` does not bring the values of."""
    if any(name not in state for name in every_tensor(network)):
        return True
    return any(
        isinstance(value, Tensor) and value.is_meta
        for module in network.modules()
        for name, value in vars(module).items()
        if name not in _OWN
    )


def _exact_norms(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Put the exact local response normalisation where the compressed network has it."""
    for path, norm in list(network.named_modules()):
        positions = state.get(f"{path}.positions")
        if type(norm) is nn.LocalResponseNorm and positions is not None and positions.dim() == 1:
            channels = max(1, len(positions))
            own = LocalResponseNorm(norm.size, norm.alpha, norm.beta, norm.k, channels)
            network.set_submodule(path, own.eval())


def _check(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """See that the tensors are those of the network, none larger than in the original one."""
    expected = every_tensor(network)
    for name, tensor in expected.items():
        if name not in state:
            raise CheckpointError(f"state: {name!r} is missing")
        given = state[name]
        larger = given.dim() != tensor.dim() or any(
            size > most for size, most in zip(given.shape, tensor.shape, strict=False)
        )
        # Positions count channels of the thin network, whatever the fresh module says.
        if larger and not name.endswith(".positions"):
            raise CheckpointError(
                f"state: {name!r} is {list(given.shape)}; expected at most {list(tensor.shape)}"
            )
        if given.is_floating_point() != tensor.is_floating_point():
            raise CheckpointError(f"state: {name!r} is {given.dtype}; expected {tensor.dtype}")
    modules = dict(network.named_modules())
    for name in state:
        path, _, key = name.rpartition(".")
        absent = path in modules and modules[path]._parameters.get(key, ...) is None
        if name not in expected and not (absent and state[name].dim() == 1):
            raise CheckpointError(f"state: {name!r} is not part of the architecture")


def _set_numbers(network: nn.Module, numbers: Numbers, strict: bool) -> None:
    """Set attributes as they were, each to a number that is no larger than it was built with.

    Of a registered architecture the file names only what differs, and all of it must fit. Of
    code of the user's own it names every number, counters among them that grow: those stay as
    they were built.
    """
    modules = dict(network.named_modules())
    for path, own in numbers.items():
        for name, value in own.items():
            there = vars(modules[path]).get(name) if path in modules else None
            old = list(there) if isinstance(there, (tuple, list)) else there
            if old == value:
                continue
            if name not in _OWN and _is_numbers(old) and _no_larger(value, old):
                new = type(there)(value) if isinstance(there, (tuple, list)) else value
                setattr(modules[path], name, new)
            elif strict:
                raise CheckpointError(
                    f"numbers: {name!r} of {path or 'the network'} is {value!r}, but the "
                    f"architecture has {old!r}; the file is damaged"
                )


def _no_larger(new: Any, old: Any) -> bool:
    if type(new) is not type(old):
        return False
    if isinstance(new, int):
        return 0 <= new <= old
    return len(new) == len(old) and all(
        a == b or 0 <= a <= b for a, b in zip(new, old, strict=True)
    )
