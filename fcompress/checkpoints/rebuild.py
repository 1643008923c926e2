"""Networks built again, at their true widths, from what a file says about them."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fcompress.checkpoints import rebuild_external
from fcompress.errors import CheckpointError
from fcompress.models import Network, build
from fcompress.models.external import Architecture
from fcompress.models.provenance import Described, describe
from fcompress.surgery.resizing import resize
from fcompress.surgery.skipping import skip_again

# Values of an example; the arguments of a damaged file may speak of images of any size.
_LARGEST_TRIAL = 1_000_000
_MISFITS = (RuntimeError, ValueError, IndexError)


@dataclass(frozen=True)
class Checkpoint:
    """The content of a file.

    Attributes:
        family: Name in the registry or of an architecture.
        args: Arguments of the family; with `family` the network as it was before any excision.
        widths: [units out, units in] of every layer with weights, by its name.
        state: Every parameter and buffer by name, on the CPU, in true shape and dtype.
        data: What identifies the training data, or None.
        history: What was done to the network, oldest first.
        versions: Versions of the programs that wrote the file.
        numbers: Attributes of modules of networks that are not of the registry.
        skipped: Layers that the network does without (`surgery.skipping.skipped_in`).
    """

    family: str
    args: dict[str, Any]
    widths: dict[str, list[int]]
    state: dict[str, Tensor]
    data: dict[str, Any] | None = None
    history: list[Any] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    numbers: dict[str, dict[str, Any]] = field(default_factory=dict)
    skipped: dict[str, list[int]] = field(default_factory=dict)

    @property
    def architecture(self) -> Architecture | None:
        """The architecture of a network that is not of the registry; else None."""
        return Architecture(self.family, self.args) if ":" in self.family else None


def widths(model: nn.Module) -> dict[str, list[int]]:
    """[units out, units in] of every layer with weights; normalisations keep what comes in."""
    found = {}
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear):
            found[name] = [layer.out_features, layer.in_features]
        elif isinstance(layer, nn.Conv2d):
            found[name] = [layer.out_channels, layer.in_channels]
        elif isinstance(layer, nn.BatchNorm2d):
            found[name] = [layer.num_features, layer.num_features]
    return found


def rebuild(checkpoint: Checkpoint, make: Callable[[], nn.Module] | None = None) -> nn.Module:
    """The network of `checkpoint` in evaluation mode, sharing memory with its tensors.

    Args:
        checkpoint: The content of a file.
        make: Builds the original network, where that takes code that the user named.

    Raises:
        FcompressError: Family or arguments are unknown, tensors are missing, left over or of a
            shape that the network cannot have, or the widths are not those of the tensors.
    """
    architecture = checkpoint.architecture
    network: nn.Module
    if architecture is None:
        network = _of_registry(checkpoint)
    else:
        network = rebuild_external.rebuild(
            architecture, checkpoint.state, checkpoint.numbers, make, checkpoint.skipped
        )
        record = Described(architecture, checkpoint.data, tuple(checkpoint.history))
        describe(network, record)
    true = widths(network)
    for name in {**true, **checkpoint.widths}:
        if checkpoint.widths.get(name) != true.get(name):
            raise CheckpointError(
                f"widths: {name!r} is said to be {checkpoint.widths.get(name)}, "
                f"but its tensors are {true.get(name)}; the file is damaged"
            )
    return network.eval()


def _of_registry(checkpoint: Checkpoint) -> Network:
    if "seed" in checkpoint.args or "family" in checkpoint.args:
        raise CheckpointError("args: seed and family are not arguments of a family")
    with torch.device("meta"):
        network = build(checkpoint.family, **checkpoint.args)
        skip_again(network, checkpoint.skipped, checkpoint.state)
    _check_state(network, checkpoint.state)
    resize(network, checkpoint.state)
    network.origin = {"data": checkpoint.data, "history": checkpoint.history}
    return network


def _check_state(network: Network, state: Mapping[str, Tensor]) -> None:
    """See that `state` has the tensors of `network`, of its kinds and kernels, of any widths."""
    expected = network.state_dict()
    for name, tensor in expected.items():
        if name not in state:
            raise CheckpointError(f"state: {name!r} is missing; the file is damaged")
        given = state[name]
        if (
            given.ndim != tensor.ndim
            or given.shape[2:] != tensor.shape[2:]
            or given.is_floating_point() != tensor.is_floating_point()
            or (not given.is_floating_point() and given.dtype != tensor.dtype)
        ):
            raise CheckpointError(
                f"state: {name!r} is {_describe(given)}; expected one like {_describe(tensor)}"
            )
    for name in state:
        if name not in expected and not _is_absent_bias(network, name):
            raise CheckpointError(f"state: {name!r} is not part of {network.spec.family}")


def _is_absent_bias(network: nn.Module, name: str) -> bool:
    """Whether `name` is a bias that the network may have but was built without."""
    path, _, key = name.rpartition(".")
    owner = dict(network.named_modules()).get(path)
    return owner is not None and owner._parameters.get(key, ...) is None


def _describe(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def try_out(network: nn.Module, checkpoint: Checkpoint) -> None:
    """Run one example of zeros: layers that do not fit each other show here, not later.

    Raises:
        CheckpointError: They do not.
    """
    shape = _shape(network, checkpoint)
    if shape is None or math.prod(shape) > _LARGEST_TRIAL:
        return
    dtype = next((p.dtype for p in network.parameters() if p.is_floating_point()), torch.float32)
    try:
        with torch.inference_mode():
            output = network(torch.zeros(1, *shape, dtype=dtype, device="cpu"))
    # The code of other people's networks raises anything.
    except Exception as error:
        if isinstance(network, Network) and not isinstance(error, _MISFITS):
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"its layers do not fit each other ({reason})") from error
    if isinstance(network, Network) and output.shape != (1, network.spec.args["classes"]):
        raise CheckpointError(
            f"gives logits of shape {list(output.shape)[1:]}, "
            f"expected {network.spec.args['classes']}"
        )


def _shape(network: nn.Module, checkpoint: Checkpoint) -> tuple[int, ...] | None:
    """Shape of an example that the network runs on; None where that is not known."""
    if isinstance(network, Network):
        shape = network.spec.input_shape
        side = network.smallest_image
        return shape if side is None else (shape[0], side, side)
    data = checkpoint.data or {}
    found = data.get("shape")
    # Data that is standardised is of floating point numbers; any other may be of whole ones.
    if not isinstance(found, list) or data.get("standardised_by") in (None, "not standardised"):
        return None
    return tuple(found) if all(type(size) is int and size > 0 for size in found) else None
