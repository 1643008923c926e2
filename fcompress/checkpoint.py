"""One file format for wide and thin networks: safe to open, self-describing, written atomically.

A file is what `torch.save` makes of one dictionary of tensors and plain values, so that
`torch.load(path, weights_only=True)` opens it without this package too:

    format    "fcompress"
    version   int, version of this layout
    family    name in the registry, and
    args      its arguments: how the wide network was built
    widths    {layer: [units out, units in]} of every layer with weights, as they are now
    state     {name: tensor}, the state dict; its shapes are the true widths
    data      what identifies the training data, or None
    history   list of what was done to the network
    versions  versions of the programs that wrote the file

A thin network is rebuilt at its true widths: the family without weights, each tensor put in
place, the sizes that modules keep read off the tensors. Nothing is pruned again.
"""

import json
import math
import os
import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

import torch
from torch import Tensor, nn

from fcompress.archive import archive_bytes, read_archive, write_archive
from fcompress.errors import CheckpointError, FcompressError
from fcompress.models import Network, build
from fcompress.resize import resize
from fcompress.safetensors_file import is_safetensors, read_safetensors

FORMAT = "fcompress"
VERSION = 1
# Under this name files of other formats carry all but the tensors, as JSON.
RECORD = "fcompress"

_PLAIN = (type(None), bool, int, float, str)
# Far above any real history; keeps a hostile nest of lists from costing hours.
_MOST_VALUES = 1_000_000
_DEEPEST = 100
# Values of an example; the arguments of a damaged file may speak of images of any size.
_LARGEST_TRIAL = 1_000_000


@dataclass(frozen=True)
class Checkpoint:
    """The content of a file.

    Attributes:
        family: Name in the registry.
        args: Arguments of the family; with `family` the network as it was before any excision.
        widths: [units out, units in] of every layer with weights, by its name.
        state: Every parameter and buffer by name, on the CPU, in true shape and dtype.
        data: What identifies the training data, or None.
        history: What was done to the network, oldest first.
        versions: Versions of the programs that wrote the file.
    """

    family: str
    args: dict[str, Any]
    widths: dict[str, list[int]]
    state: dict[str, Tensor]
    data: dict[str, Any] | None = None
    history: list[Any] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)


def save(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    data: dict[str, Any] | None = None,
    history: list[Any] | None = None,
) -> None:
    """Write a network to a file, whole or not at all.

    Args:
        model: A network of the registry, wide or excised; it is not changed.
        path: The file; one that is there is replaced once the new one is complete.
        data: What identifies the training data, as plain values. None: what a loaded network
            remembers (`model.origin`).
        history: What was done to the network, as plain values. None: as for `data`.

    Raises:
        CheckpointError: The network is not of the registry or could not be loaded again, or
            `data` or `history` hold something other than plain values.
        FcompressError: The file cannot be written.
    """
    write_archive(path, _content(model, data, history))


def file_bytes(
    model: nn.Module, *, data: dict[str, Any] | None = None, history: list[Any] | None = None
) -> int:
    """Size in bytes of the file that `save` with the same arguments writes."""
    return archive_bytes(_content(model, data, history))


def load(path: str | os.PathLike[str]) -> Network:
    """Read a network from a file.

    Args:
        path: A file written by `save`, or a `.safetensors` file written by `export`.

    Returns:
        The network on the CPU in evaluation mode, with `spec` (how the wide network was built)
        and `origin`: {"data": ..., "history": [...]} as given to `save`. Its outputs are those
        of the saved network, bit for bit.

    Raises:
        CheckpointError: The file is missing, damaged, written by a newer version, or not a
            network of the registry. No code in it is ever run.
    """
    checkpoint = read(path)
    try:
        network = _rebuild(checkpoint)
        _try(network)
    except FcompressError as error:
        raise CheckpointError(f"{path}: {error}") from error
    return network


def read(path: str | os.PathLike[str]) -> Checkpoint:
    """Read the content of a file without building the network.

    Args:
        path: A file written by `save`, or a `.safetensors` file written by `export`.

    Raises:
        CheckpointError: As for `load`, except that widths and tensors are not compared yet.
    """
    content = _from_safetensors(path) if is_safetensors(path) else read_archive(path)
    try:
        return _checked(content)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None


def record_of(model: nn.Module) -> dict[str, Any]:
    """What a file of `model` says beside its tensors.

    Returns:
        The keys of a file but `state`; without `format` where the network could not be loaded
        again from them, because it is not one of fcompress.
    """
    if isinstance(model, Network):
        return {key: value for key, value in _content(model, None, None).items() if key != "state"}
    return {"widths": widths(model), "data": None, "history": [], "versions": _versions()}


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


def _content(
    model: nn.Module, data: dict[str, Any] | None, history: list[Any] | None
) -> dict[str, Any]:
    """What a file of `model` holds, checked by rebuilding the network from it."""
    if not isinstance(model, Network):
        raise CheckpointError(
            f"a {type(model).__name__} is not a network of fcompress and has no file format here; "
            "save its state_dict with torch.save, or build it with fcompress.models.build"
        )
    origin = model.origin
    content = {
        "format": FORMAT,
        "version": VERSION,
        "family": model.spec.family,
        "args": model.spec.args,
        "widths": widths(model),
        "state": {name: _compact(tensor) for name, tensor in model.state_dict().items()},
        "data": origin.get("data") if data is None else data,
        "history": origin.get("history", []) if history is None else history,
        "versions": _versions(),
    }
    try:
        _rebuild(_checked(content))
    except FcompressError as error:
        raise CheckpointError(f"this {model.spec.family} cannot be saved: {error}") from error
    return _with_one_of_each(content)


def _with_one_of_each(value: Any) -> Any:
    """Plain values in which equal texts are one object and no container occurs twice.

    A pickle refers back to objects that it has seen, so that without this the bytes of a file
    would depend on how its content came about.
    """
    if isinstance(value, str):
        return sys.intern(str(value))
    if isinstance(value, dict):
        return {_with_one_of_each(k): _with_one_of_each(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_with_one_of_each(item) for item in value)
    return value


def _versions() -> dict[str, str]:
    return {
        "fcompress": _own_version(),
        "torch": str(torch.__version__),
        "python": platform.python_version(),
    }


def _own_version() -> str:
    try:
        return metadata.version("fcompress")
    except metadata.PackageNotFoundError:  # run from a checkout that was never installed
        return "unknown"


def _compact(tensor: Tensor) -> Tensor:
    """The tensor on the CPU, without the rest of a storage that it is a view of."""
    tensor = tensor.detach().cpu()
    if tensor.untyped_storage().nbytes() != tensor.nbytes:
        tensor = tensor.clone()
    return tensor


def _from_safetensors(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The content of a file whose tensors are safetensors; without a record, only its tensors."""
    tensors, metadata = read_safetensors(path)
    try:
        record = json.loads(metadata.get(RECORD, "{}"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: its record is not JSON; the file is damaged") from error
    return {**record, "state": tensors} if isinstance(record, dict) else {"state": tensors}


def _checked(content: Any) -> Checkpoint:
    """The record in `content`.

    Raises:
        CheckpointError: It is not ours, newer than this program, or a part has another type.
    """
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(
            "holds no network of fcompress; expected a file saved with fcompress.save "
            "(a state dict lacks the family and its arguments)"
        )
    version = content.get("version")
    if type(version) is not int or version < 1:
        raise CheckpointError(f"format version {version!r} does not exist; the file is damaged")
    if version > VERSION:
        raise CheckpointError(
            f"written in format version {version}, newer than {VERSION}; upgrade fcompress"
        )
    for key, kinds in (
        ("family", (str,)),
        ("args", (dict,)),
        ("widths", (dict,)),
        ("state", (dict,)),
        ("data", (dict, type(None))),
        ("history", (list,)),
        ("versions", (dict,)),
    ):
        if not isinstance(content.get(key, ...), kinds):
            wanted = " or ".join("None" if kind is type(None) else kind.__name__ for kind in kinds)
            raise CheckpointError(f"{key} must be a {wanted}")
        if key != "state":
            _check_plain(key, content[key])
    for name, pair in content["widths"].items():
        if type(pair) is not list or [type(units) for units in pair] != [int, int]:
            raise CheckpointError(f"widths: {name!r} must be [units out, units in], not {pair!r}")
    for name, tensor in content["state"].items():
        if type(name) is not str or type(tensor) is not Tensor or not _is_whole(tensor):
            raise CheckpointError(f"state: {name!r} is not a dense tensor; the file is damaged")
    fields = Checkpoint.__dataclass_fields__
    return Checkpoint(**{key: content[key] for key in fields})


def _is_whole(tensor: Tensor) -> bool:
    """Whether the tensor is dense and its storage holds each of its values and nothing else."""
    return (
        tensor.layout is torch.strided
        and tensor.device.type == "cpu"
        and tensor.untyped_storage().nbytes() == tensor.nbytes
    )


def _check_plain(where: str, value: Any) -> None:
    """See that `value` is made of None, bool, int, float, str, list, tuple and dict only.

    Exact types: a numpy number is a float too, but not one that opens with `weights_only`.
    """
    left = [(where, value, 0)]
    seen = 0
    while left:
        path, item, depth = left.pop()
        seen += 1
        if seen + len(left) > _MOST_VALUES or depth > _DEEPEST:
            raise CheckpointError(
                f"{where} holds more than {_MOST_VALUES} values or nests deeper than {_DEEPEST}"
            )
        if type(item) in (list, tuple):
            left += [(f"{path}[{index}]", part, depth + 1) for index, part in enumerate(item)]
        elif type(item) is dict:
            for key, part in item.items():
                if type(key) is not str:
                    raise CheckpointError(f"{path} has the key {key!r}; expected a str")
                left.append((f"{path}[{key!r}]", part, depth + 1))
        elif type(item) not in _PLAIN:
            raise CheckpointError(
                f"{path} is a {type(item).__name__}; expected None, bool, int, float, str, "
                "or lists and dicts of them"
            )


def _rebuild(checkpoint: Checkpoint) -> Network:
    """The network of `checkpoint` in evaluation mode, sharing memory with its tensors.

    Raises:
        FcompressError: Family or arguments are unknown, tensors are missing, left over or of a
            shape that the network cannot have, or the widths are not those of the tensors.
    """
    if "seed" in checkpoint.args or "family" in checkpoint.args:
        raise CheckpointError("args: seed and family are not arguments of a family")
    with torch.device("meta"):
        network = build(checkpoint.family, **checkpoint.args)
    _check_state(network, checkpoint.state)
    resize(network, checkpoint.state)
    true = widths(network)
    for name in {**true, **checkpoint.widths}:
        if checkpoint.widths.get(name) != true.get(name):
            raise CheckpointError(
                f"widths: {name!r} is said to be {checkpoint.widths.get(name)}, "
                f"but its tensors are {true.get(name)}; the file is damaged"
            )
    network.origin = {"data": checkpoint.data, "history": checkpoint.history}
    return network.eval()


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


def _try(network: Network) -> None:
    """Run one example of zeros: layers that do not fit each other show here, not later."""
    shape = network.spec.input_shape
    if network.smallest_image is not None:
        shape = (shape[0], network.smallest_image, network.smallest_image)
    if math.prod(shape) > _LARGEST_TRIAL:
        return
    dtype = next(network.parameters()).dtype
    try:
        with torch.inference_mode():
            output = network(torch.zeros(1, *shape, dtype=dtype, device="cpu"))
    except (RuntimeError, ValueError, IndexError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"its layers do not fit each other ({reason})") from error
    if output.shape != (1, network.spec.args["classes"]):
        raise CheckpointError(
            f"gives logits of shape {list(output.shape)[1:]}, "
            f"expected {network.spec.args['classes']}"
        )
