"""open_program(): what people ship, ONNX or .pt2, opened to be compared with a network."""

from __future__ import annotations

import os
import zipfile
from collections import namedtuple
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from fcompress.errors import CheckpointError, FcompressError, first_line
from fcompress.exports import pairs
from fcompress.exports.describe import describe_file
from fcompress.formats.limits import as_path, check_file
from fcompress.formats.places import real_path
from fcompress.formats.torch_zip import is_zip
from fcompress.forward.callables import Called, as_network
from fcompress.models.external import Architecture
from fcompress.models.provenance import Described, describe, note_reading, reading_of
from fcompress.programs.files import PROGRAM_ENTRIES, onnx_packages, onnx_session, quiet

ENDINGS = (".onnx", ".pt2")
# Machine code that torch.export.load would run beside the program.
_COMPILED = "data/aotinductor/"
_TYPES = {
    "float": torch.float32,
    "double": torch.float64,
    "float16": torch.float16,
    "int64": torch.int64,
    "int32": torch.int32,
    "int8": torch.int8,
    "uint8": torch.uint8,
    "bool": torch.bool,
}


def open_program(path: str | os.PathLike[str], *, trust_pickle: bool = False) -> Called:
    """Open a program that was made of a network, whoever made it.

    It runs on the CPU, on batches of any size, also where it was written for batches of one size.

    Args:
        path: ONNX, also quantised (`.onnx`), which runs no code of the file; the JSON of a
            cascade's two ONNX files; or a program of torch.export (`.pt2`).
        trust_pickle: Whether to open a `.pt2`, which may hold pickled objects and with them any
            code that its author put in.

    Returns:
        A network without parameters, for `verify`. What its file says of its history and its data
        is known of it.

    Raises:
        CheckpointError: The file is missing, damaged, of another kind, keeps tensors outside its
            folder, or is a program of torch.export and `trust_pickle` is not given.
        FcompressError: It is ONNX, and the packages for that are missing.

    Example:
        >>> import fcompress, torch
        >>> network = fcompress.build("mlp", in_features=4, classes=3)
        >>> x = torch.randn(300, 4)
        >>> result = fcompress.export(network, "net.pt2", x)
        >>> program = open_program("net.pt2", trust_pickle=True)
        >>> fcompress.verify(network, program, x).changed
        0
    """
    path = as_path(path)
    check_file(path)
    if path.suffix.lower() == ".onnx":
        known = describe_file(path)
        network = _onnx(path)
    elif pairs.is_pair(path):
        known = describe_file(path)
        found, files = pairs.read_pair(path)
        cascade = pairs.pair_of(found, lambda name: _onnx(files[name]))
        network = Called(pairs.runner_of(cascade), path.name, None)
        network.deferred = cascade.deferred
    elif not is_program(path) or not (names := _inner(path)) & set(PROGRAM_ENTRIES):
        raise CheckpointError(
            f"{path}: is neither ONNX (.onnx) nor a program of torch.export (.pt2), or damaged"
        )
    elif any(name.startswith(_COMPILED) for name in names):
        raise CheckpointError(
            f"{path}: holds compiled machine code; give the program that it was compiled from"
        )
    elif not trust_pickle:
        raise CheckpointError(
            f"{path}: a program of torch.export may hold pickled objects, which could run code "
            "when opened; it was not opened. Add --trust-pickle (in Python: trust_pickle=True) if "
            "you trust who wrote it, or give it as ONNX"
        )
    else:
        known = describe_file(path)
        network = _exported(path)
    record = Described(Architecture(f"program:{path.name}"), known.data, known.history)
    describe(network, record)
    reading = reading_of(network)
    # A program gives the scores only, whichever of several outputs they were.
    note_reading(network, **{"labels": None, **(reading or {}), "output": None})
    return network


def is_program(path: Path) -> bool:
    """Whether a file calls itself a program, or is one of torch.export whatever it is called."""
    if pairs.is_pair(path):
        return True
    return path.suffix.lower() in ENDINGS or bool(_inner(path) & set(PROGRAM_ENTRIES))


def _inner(path: Path) -> set[str]:
    """Names in an archive, below its folder and as they are."""
    try:
        if not is_zip(path):
            return set()
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, RuntimeError, EOFError, OSError):
        return set()
    return {*names, *(name.partition("/")[2] for name in names)}


def _exported(path: Path) -> Called:
    """A program of torch.export, unpickled."""
    try:
        with quiet(), path.open("rb") as file:
            program = torch.export.load(file)
            network = as_network(program)
    except Exception as error:  # whatever a damaged file makes torch raise
        raise CheckpointError(
            f"{path}: torch.export cannot open it ({type(error).__name__}: {first_line(error)})"
        ) from error
    assert isinstance(network, Called)
    call = network._call

    def run(*args: Any, **kwargs: Any) -> Any:
        with torch.no_grad():
            return call(*args, **kwargs)

    sizes = _sizes(program)
    size = sizes[0] if sizes and type(sizes[0]) is int else None
    found = Called(_guarded(path, run, size), path.name, network.dtype, network.device)
    found.shape = _example_of(sizes) if len(program.graph_signature.user_inputs) == 1 else None
    return found


def _sizes(program: ExportedProgram) -> list[Any]:
    """The shape of the program's first input; what may be any size is no int."""
    wanted = program.graph_signature.user_inputs
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in wanted:
            return list(getattr(node.meta.get("val"), "shape", ()))
    return []


def _example_of(sizes: Sequence[Any]) -> tuple[int, ...] | None:
    """The shape of one example, of an input of this shape; None where it is not fixed."""
    rest = tuple(sizes[1:])
    return rest if all(type(side) is int for side in rest) else None


def _onnx(path: Path) -> Called:
    """A network of ONNX in onnxruntime, on the CPU."""
    _check_outside(path)
    try:
        session = onnx_session(path)
    except FcompressError as error:
        raise CheckpointError(f"{path}: {error}") from error
    inputs = {node.name: node for node in session.get_inputs()}
    outputs = [node.name for node in session.get_outputs()]
    several = namedtuple("several", outputs, rename=True)  # type: ignore[misc]

    def run(*args: Tensor, **kwargs: Tensor) -> Any:
        given = {**dict(zip(inputs, args, strict=False)), **kwargs}
        if given.keys() != inputs.keys() or len(args) + len(kwargs) != len(inputs):
            raise ValueError(f"its inputs are {', '.join(inputs)}")
        feed = {name: _array(value, inputs[name].type) for name, value in given.items()}
        found = [torch.from_numpy(array) for array in session.run(outputs, feed)]
        return found[0] if len(found) == 1 else several(*found)

    first = next(iter(inputs.values()), None)
    size = first.shape[0] if first is not None and first.shape else None
    call = _guarded(path, run, size if isinstance(size, int) else None)
    network = Called(call, path.name, None)
    if len(inputs) == 1 and first is not None and first.type == "tensor(float)":
        network.shape = _example_of(first.shape)
    return network


def _array(value: Tensor, kind: str) -> Any:
    """A tensor as the array of the type that an input has; whole numbers stay whole."""
    dtype = _TYPES.get(kind.removeprefix("tensor(").removesuffix(")"), value.dtype)
    if dtype.is_floating_point != value.is_floating_point():
        raise ValueError(f"it takes {kind}, not {str(value.dtype).removeprefix('torch.')}")
    return value.detach().cpu().to(dtype).contiguous().numpy()


def _check_outside(path: Path) -> None:
    """Refuse a network that keeps tensors in files outside its folder, which could be any file."""
    onnx, _, _ = onnx_packages()
    folder = real_path(path.parent)
    for tensor in _stored(onnx.load(os.fspath(path), load_external_data=False)):
        place = {entry.key: entry.value for entry in tensor.external_data}.get("location")
        if place is None:
            continue
        there = real_path(folder / place)
        if not there.is_relative_to(folder):
            raise CheckpointError(
                f"{path}: keeps its tensors outside its folder, in {place}; it was not opened"
            )
        if not there.is_file():
            raise CheckpointError(f"{path}: keeps its tensors in {place}, which is not there")


def _stored(message: Any) -> Iterator[Any]:
    """Every tensor in a network of ONNX, however deep in subgraphs and functions."""
    for _, value in message.ListFields():
        if hasattr(value, "ListFields"):
            parts = [value]
        elif isinstance(value, str | bytes | int | float):
            continue
        else:  # a list, whose entries are all of one kind
            parts = [value[i] for i in range(len(value))] if _of_messages(value) else []
        for part in parts:
            if part.DESCRIPTOR.name == "TensorProto":
                yield part
            else:
                yield from _stored(part)


def _of_messages(values: Any) -> bool:
    return len(values) > 0 and hasattr(values[0], "ListFields")


def _guarded(path: Path, run: Callable[..., Any], size: int | None) -> Callable[..., Any]:
    """A program that says in one line what it does not take, and takes batches of any size."""

    def call(*args: Any, **kwargs: Any) -> Any:
        tensors = [t for t in (*args, *kwargs.values()) if isinstance(t, Tensor)]
        try:
            if size is None or not tensors or size in (0, len(tensors[0])):
                return run(*args, **kwargs)
            return _joined(list(_in_parts(run, size, len(tensors[0]), args, kwargs)))
        except Exception as error:  # of torch or onnxruntime, of as many types as operators
            shapes = ", ".join(str(list(t.shape)) for t in tensors)
            raise FcompressError(
                f"{path}: does not run on inputs of shape {shapes}: {first_line(error)[:300]}; "
                "give data of the shape and type that it was made for"
            ) from error

    return call


def _in_parts(
    run: Callable[..., Any], size: int, n: int, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Iterator[tuple[Any, int]]:
    """Outputs for so many examples at a time, and how many of them count."""
    for first in range(0, n, size):
        # The last part is filled up with its last example.
        rows = torch.arange(first, first + size).clamp(max=n - 1)
        yield (
            run(*(value[rows] for value in args), **{k: v[rows] for k, v in kwargs.items()}),
            min(size, n - first),
        )


def _joined(parts: list[tuple[Any, int]]) -> Any:
    """Outputs of parts as if they had been one batch."""
    first = parts[0][0]
    if isinstance(first, Tensor):
        return torch.cat([found[:count] for found, count in parts])
    if isinstance(first, Mapping):
        return {key: _joined([(found[key], count) for found, count in parts]) for key in first}
    items = [_joined([(f[i], count) for f, count in parts]) for i in range(len(first))]
    return type(first)(*items) if hasattr(first, "_fields") else items
