"""One file format for all networks: safe to open, self-describing, written atomically.

A file is what `torch.save` makes of one dictionary of tensors and plain values, so that
`torch.load(path, weights_only=True)` opens it without this package too:

    format    "fcompress"
    version   int, version of this layout
    family    name in the registry, or of an architecture of others (`models/external.py`), and
    args      its arguments: how the original network was built
    widths    {layer: [units out, units in]} of every layer with weights, as they are now
    state     {name: tensor}, the state dict; its shapes are the true widths
    data      what identifies the training data, or None
    history   list of what was done to the network; the last compression is marked `void` if its
              certificate is about other weights (`models/fingerprint.py`)
    versions  versions of the programs that wrote the file
    numbers   {module: {attribute: number}} that no tensor says, such as heads; only in files of
              networks that are not of the registry, which are of version 2
    skipped   {module: [returns, dim]}: layers that the network does without (`nn/skipped.py`); only
              in files of networks that blocks were dropped from, which are of version 3

The file of a cascade holds two networks (`cascaded.py`).

A compressed network is rebuilt at its true widths: the family without weights, each tensor put in
place, the sizes that modules keep read off the tensors. Nothing is pruned again. Code of a user's
own is not in the file and never imported because of it; the user names it again.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fcompress.cascades.network import FAMILY, Cascade
from fcompress.checkpoints import cascaded, rebuild_external
from fcompress.checkpoints.history import check_history
from fcompress.checkpoints.rebuild import Checkpoint, rebuild, try_out, widths
from fcompress.data.record import check_record
from fcompress.errors import CheckpointError, DataError, FcompressError
from fcompress.formats.limits import as_path
from fcompress.formats.safetensors import is_safetensors, read_safetensors
from fcompress.formats.torch_zip import read_archive, write_archive
from fcompress.models import Network
from fcompress.models.base import Remembering
from fcompress.models.external import REGISTERED, Architecture, build_network
from fcompress.models.fingerprint import judged, saved_tensors
from fcompress.models.huggingface import weights_of
from fcompress.models.provenance import architecture_of, described, origin_of, versions
from fcompress.surgery.skipping import skipped_in

FORMAT = "fcompress"
VERSION = 1
# Of files that a program which knows the registry only cannot load.
FOREIGN_VERSION = 2
# Of files that a program which takes every layer to be there cannot load.
SKIPPING_VERSION = 3
# Under this name files of other formats carry all but the tensors, as JSON.
RECORD = "fcompress"
_PLAIN = (type(None), bool, int, float, str)
# Far above any real history; keeps a hostile nest of lists from costing hours.
_MOST_VALUES = 1_000_000
_DEEPEST = 100


def save(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    data: dict[str, Any] | None = None,
    history: list[Any] | None = None,
) -> None:
    """Write a network to a file, whole or not at all.

    Args:
        model: A network, original or compressed; it is not changed. One that is neither of the
            registry nor of a registered architecture is loaded with the help of its code.
        path: The file; one that is there is replaced once the new one is complete.
        data: What identifies the training data, as plain values. None: what a loaded network
            remembers (`model.origin`).
        history: What was done to the network, as plain values. None: as for `data`. A certificate
            in it is marked `void` if the weights are no longer those that it is about.

    Raises:
        CheckpointError: The network could not be loaded again, or `data` or `history` hold
            something other than plain values.
        FcompressError: The file cannot be written.

    Example:
        >>> from fcompress import build
        >>> save(build("mlp", in_features=4, classes=3), "net.pt")
    """
    write_archive(as_path(path), _content(model, data, history))


def load(
    path: str | os.PathLike[str],
    *,
    arch: str | Callable[[], nn.Module] | None = None,
    arch_args: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Read a network from a file.

    Args:
        path: A file written by `save`, or a `.safetensors` file or a folder written by `export`.
        arch: For a network of your own code, which no file holds: the code's name as
            `architecture` has it ("path/to/file.py:make_net"), or a function without arguments
            that builds the original network. It is run. None for any other network.
        arch_args: Arguments for `arch`; None for those in the file.

    Returns:
        The network on the CPU in evaluation mode. One of the registry has `spec` (how the original
        network was built) and `origin`: {"data": ..., "history": [...]} as given to `save`. Its
        outputs are those of the saved network, bit for bit.

    Raises:
        CheckpointError: The file is missing, damaged, written by a newer version, or needs code
            that `arch` does not name. No code in it is ever run.
        ArchitectureError: What `arch` names cannot be built.

    Example:
        >>> from fcompress import build
        >>> save(build("mlp", in_features=4, classes=3), "net.pt", history=["made"])
        >>> network = load("net.pt")
        >>> network.spec.family, network.origin["history"]
        ('mlp', ['made'])
    """
    checkpoint = read(path)
    try:
        if checkpoint.family == FAMILY:
            make = partial(_maker, arch=arch, args=arch_args)
            return cascaded.rebuild_cascade(checkpoint, make)
        network = rebuild(checkpoint, _maker(checkpoint, arch, arch_args))
        try_out(network, checkpoint)
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
    path = weights_of(as_path(path))
    content = _from_safetensors(path) if is_safetensors(path) else read_archive(path)
    try:
        found = _checked(content)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    return replace(found, history=judged(found.history, found.state))


def content_of(model: nn.Module) -> dict[str, Any]:
    """What a file of `model` holds, for files of other formats.

    Returns:
        The keys of a file; without `format` for a network of whose code nothing is known, so that
        nobody could load it again.

    Raises:
        CheckpointError: As for `save`.
    """
    if isinstance(model, Remembering) or described(model) is not None:
        return _content(model, None, None)
    state = {name: _compact(tensor) for name, tensor in model.state_dict().items()}
    known: dict[str, Any] = {"widths": widths(model), "data": None, "history": []}
    return {"state": state, **known, "versions": versions()}


def _content(
    model: nn.Module, data: dict[str, Any] | None, history: list[Any] | None
) -> dict[str, Any]:
    """What a file of `model` holds, checked by rebuilding the network from it."""
    if not isinstance(model, nn.Module):
        raise CheckpointError(f"a {type(model).__name__} cannot be saved; expected a network")
    origin = origin_of(model)
    content = {
        "format": FORMAT,
        **_built(model),
        "widths": widths(model),
        "data": origin["data"] if data is None else data,
        "history": origin["history"] if history is None else history,
        "versions": versions(),
    }
    skipped = skipped_in(model)
    if skipped:
        content |= {"version": SKIPPING_VERSION, "skipped": skipped}
    try:
        checkpoint = _checked(content)
        architecture = checkpoint.architecture
        if isinstance(model, Cascade):
            cascaded.parts_of(checkpoint)  # each was rebuilt by itself
        elif architecture is None:
            rebuild(checkpoint)
        elif architecture.kind in REGISTERED:
            # All numbers were taken; what a fresh network has anyway need not be kept.
            content["numbers"] = rebuild_external.needed_numbers(model, checkpoint.state)
            rebuild(_checked(content))
    except FcompressError as error:
        raise CheckpointError(f"this {content['family']} cannot be saved: {error}") from error
    content["history"] = judged(checkpoint.history, checkpoint.state)
    return _with_one_of_each(content)


def _built(model: nn.Module) -> dict[str, Any]:
    """How the original network was built, and the tensors as they are now."""
    if isinstance(model, Cascade):
        parts = {name: _content(getattr(model, name), None, []) for name in cascaded.PARTS}
        return cascaded.joined(model, parts)
    if isinstance(model, Network):
        return {
            "version": VERSION,
            "family": model.spec.family,
            "args": model.spec.args,
            "state": {name: _compact(tensor) for name, tensor in saved_tensors(model).items()},
        }
    record = described(model)
    architecture = architecture_of(model) if record is None else record.architecture
    return {
        "version": FOREIGN_VERSION,
        "family": architecture.name,
        "args": architecture.args,
        "state": {name: _compact(tensor) for name, tensor in saved_tensors(model).items()},
        "numbers": rebuild_external.numbers_of(model),
    }


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
            "(a state dict needs its architecture: --arch)"
        )
    version = content.get("version")
    if type(version) is not int or version < 1:
        raise CheckpointError(f"format version {version!r} does not exist; the file is damaged")
    if version > cascaded.VERSION:
        raise CheckpointError(
            f"written in format version {version}, newer than {cascaded.VERSION}; upgrade fcompress"
        )
    content = {"numbers": {}, "skipped": {}, **content}
    for key, kinds in (
        ("family", (str,)),
        ("args", (dict,)),
        ("widths", (dict,)),
        ("state", (dict,)),
        ("data", (dict, type(None))),
        ("history", (list,)),
        ("versions", (dict,)),
        ("numbers", (dict,)),
        ("skipped", (dict,)),
    ):
        if not isinstance(content.get(key, ...), kinds):
            wanted = " or ".join("None" if kind is type(None) else kind.__name__ for kind in kinds)
            raise CheckpointError(f"{key} must be a {wanted}")
        if key != "state":
            _check_plain(key, content[key])
    for name, pair in content["widths"].items():
        if type(pair) is not list or [type(units) for units in pair] != [int, int]:
            raise CheckpointError(f"widths: {name!r} must be [units out, units in], not {pair!r}")
    for path, own in content["numbers"].items():
        if type(own) is not dict:
            raise CheckpointError(f"numbers: {path!r} is a {type(own).__name__}; expected a dict")
    for path, own in content["skipped"].items():
        if type(own) is not list:
            raise CheckpointError(f"skipped: {path!r} is a {type(own).__name__}; expected a list")
    for name, tensor in content["state"].items():
        if type(name) is not str or type(tensor) is not Tensor or not _is_whole(tensor):
            raise CheckpointError(f"state: {name!r} is not a dense tensor; the file is damaged")
    check_history(content["history"], content["versions"])
    try:
        check_record(content["data"] or {}, complete=False)
    except DataError as error:
        raise CheckpointError(f"{error}") from error
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


def _maker(
    checkpoint: Checkpoint,
    arch: str | Callable[[], nn.Module] | None,
    args: Mapping[str, Any] | None,
) -> Callable[[], nn.Module] | None:
    """What builds the original network by code that the user named; None if the user named none."""
    if arch is None:
        return None
    if checkpoint.architecture is None:
        raise CheckpointError(
            f"is a network of the family {checkpoint.family}, which needs no architecture; "
            "leave it out"
        )
    if not isinstance(arch, str):
        return arch
    given = checkpoint.args if args is None else dict(args)
    return lambda: build_network(Architecture(arch, given))
