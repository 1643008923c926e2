"""describe_file(): what a file is and what it says about itself, without trusting or running it."""

from __future__ import annotations

import json
import os
import pickletools
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fcompress.cascades.network import FAMILY
from fcompress.checkpoints.cascaded import PARTS, parts_of
from fcompress.checkpoints.checkpoint import RECORD, read, widths
from fcompress.checkpoints.history import check_history
from fcompress.checkpoints.weights import read_weights
from fcompress.data.record import check_record
from fcompress.errors import CheckpointError, DataError, FcompressError
from fcompress.exports import pairs
from fcompress.formats.limits import as_path, check_file
from fcompress.formats.safetensors import is_safetensors, read_safetensors
from fcompress.formats.torch_zip import is_zip, read_archive
from fcompress.models import build
from fcompress.models.fingerprint import judged
from fcompress.models.huggingface import weights_of
from fcompress.programs import files as programs
from fcompress.showing.results import Shown

KINDS = {
    "network": "network of fcompress",
    "program": "program of torch.export",
    "onnx": "ONNX network",
    "pair": "cascade of two ONNX networks",
    "safetensors": "weights in safetensors",
    "state dict": "state dict of torch",
    "torchscript": "TorchScript program",
    "pickle": "pickled Python objects, which were not opened",
    "unfinished run": "unfinished training run of fcompress",
}
_PICKLE_OPCODES = 1_000_000
_NAMED_CLASSES = 5
_LONGEST_RECORD = 2**24
# What batch normalisation keeps beside its parameters.
_BUFFERS = ("running_mean", "running_var")


@dataclass(frozen=True, repr=False)
class Contents(Shown):
    """What is known about a file.

    Attributes:
        path: The file.
        kind: One of `KINDS`.
        bytes: Its size.
        family: Name of the network in the registry, or of its architecture; None if not said.
        args: Arguments of the family: how the original network was built.
        params: Numbers in all parameters; None where the file does not say.
        dtypes: Types of the tensors.
        widths: {layer: [units out, units in]} as they are now.
        wide: The same of the network as it was built; None where that is not known.
        data: What identifies the training data; None if not said.
        history: What was done to the network, oldest first.
        versions: Versions of the programs that wrote the file.
        notes: What else there is to say, in words.
    """

    path: str
    kind: str
    bytes: int
    family: str | None = None
    args: dict[str, Any] = field(default_factory=dict)
    params: int | None = None
    dtypes: tuple[str, ...] = ()
    widths: dict[str, list[int]] = field(default_factory=dict)
    wide: dict[str, list[int]] | None = None
    data: dict[str, Any] | None = None
    history: tuple[Any, ...] = ()
    versions: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        found = asdict(self)
        for key in ("dtypes", "history", "notes"):
            found[key] = list(found[key])
        return found


def describe_file(path: str | os.PathLike[str]) -> Contents:
    """Describe a file without trusting or running it.

    Args:
        path: A network or an export of fcompress, or weights or a program of others.

    Returns:
        What it is, and what it says about itself.

    Raises:
        CheckpointError: The file is missing, damaged or of no kind that is known here. No code in
            it is ever run.
        FcompressError: It is ONNX, and the package for that is missing.

    Example:
        >>> from fcompress import build, save
        >>> save(build("mlp", in_features=4, classes=3), "net.pt")
        >>> describe_file("net.pt").kind
        'network'
    """
    path = weights_of(as_path(path))
    check_file(path)
    if path.suffix.lower() == ".onnx":
        return _of_onnx(path)
    if path.suffix.lower() == pairs.ENDING:
        return _of_pair(path)
    if is_safetensors(path):
        return _of_safetensors(path)
    names = _entries(path)
    inner = {name.partition("/")[2] for name in names}
    if f"extra/{programs.RECORD_FILE}" in inner or inner & set(programs.PROGRAM_ENTRIES):
        return _of_program(path, names)
    if "constants.pkl" in inner or any(name.startswith("code/") for name in inner):
        return _contents(path, "torchscript", notes=("its layers can no longer be changed",))
    return _of_pickle(path, names)


def _contents(path: Path, kind: str, **known: Any) -> Contents:
    return Contents(path=os.fspath(path), kind=kind, bytes=path.stat().st_size, **known)


def _entries(path: Path) -> list[str]:
    """Names in a zip archive; none where the file is something else."""
    try:
        if not is_zip(path):
            return []
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, RuntimeError, EOFError, OSError):
        return []  # the readers say what is wrong with it


def _of_onnx(path: Path) -> Contents:
    onnx, _, _ = programs.onnx_packages()
    try:
        # What a network keeps in other files stays there: their names could be any path.
        proto = onnx.load(os.fspath(path), load_external_data=False)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: there is no such file") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
    except Exception as error:  # of the protobuf library, which is no dependency of ours
        raise CheckpointError(f"{path}: is not an ONNX network, or damaged") from error
    graph = proto.graph
    if not graph.node:
        raise CheckpointError(f"{path}: is not an ONNX network, or damaged")
    text = {entry.key: entry.value for entry in proto.metadata_props}.get(RECORD)
    versions = ", ".join(f"{o.domain or 'ai.onnx'} {o.version}" for o in proto.opset_import)
    notes = [f"{len(graph.node):,} operators of {versions}"]
    notes += [
        f"{what} {value.name}: {_onnx_shape(value.type.tensor_type.shape)}"
        for what, values in (("input", graph.input), ("output", graph.output))
        for value in list(values)[:_NAMED_CLASSES]
    ]
    found = _with_record(path, "onnx", text, notes)
    return replace(found, history=tuple(programs.judged_program(found.history, proto)))


def _of_pair(path: Path) -> Contents:
    found, files = pairs.read_pair(path)
    notes = [f"{name} network in {file.name}" for name, file in files.items()]
    notes.append(f"the original answers where the margin is below {found['threshold']:.6g}")
    return _with_record(path, "pair", json.dumps(found[RECORD]), notes)


def _onnx_shape(shape: Any) -> str:
    sizes = [d.dim_param or str(d.dim_value) for d in shape.dim]
    return f"[{', '.join(sizes)}]"


def _of_safetensors(path: Path) -> Contents:
    tensors, metadata = read_safetensors(path)
    notes = [f"metadata {key!r}" for key in metadata if key != RECORD]
    return _with_record(path, "safetensors", metadata.get(RECORD), notes, tensors)


def _of_program(path: Path, names: list[str]) -> Contents:
    wanted = [name for name in names if name.endswith(f"extra/{programs.RECORD_FILE}")]
    if not wanted:
        return _contents(path, "program", notes=("not written by fcompress",))
    try:
        with zipfile.ZipFile(path) as archive:
            entry = archive.getinfo(wanted[0])
            if entry.compress_type != zipfile.ZIP_STORED or entry.file_size > _LONGEST_RECORD:
                raise zipfile.BadZipFile("its record is packed or too long")
            damaged = archive.testzip() if _is_stored(archive) else None
            if damaged is not None:
                raise zipfile.BadZipFile(f"checksum of {damaged}")
            text = archive.read(entry).decode()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, RuntimeError, EOFError) as error:
        raise CheckpointError(
            f"{path}: the file is truncated or damaged ({error}); copy or export it again"
        ) from error
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
    return _with_record(path, "program", text, [])


def _is_stored(archive: zipfile.ZipFile) -> bool:
    """Whether nothing in an archive can unfold to more than the file's size."""
    return all(entry.compress_type == zipfile.ZIP_STORED for entry in archive.infolist())


def _with_record(
    path: Path,
    kind: str,
    text: str | None,
    notes: Iterable[str],
    tensors: Mapping[str, Tensor] | None = None,
) -> Contents:
    """The contents of a file of another format, with the record that `export` put there."""
    known = {} if tensors is None else _of_tensors(tensors)
    if text is None:
        return _contents(path, kind, notes=(*notes, "not written by fcompress"), **known)
    record = _record(path, text)
    own = record.get("params")
    if type(own) is int:
        known["params"] = own
    return _contents(
        path,
        kind,
        widths=record["widths"],
        **_built(record.get("family"), record.get("args", {})),
        data=record["data"],
        history=tuple(record["history"] if tensors is None else judged(record["history"], tensors)),
        versions=record.get("versions", {}),
        notes=tuple(notes),
        **known,
    )


def _record(path: Path, text: str) -> dict[str, Any]:
    """The record of an export, each part of its type."""
    try:
        record = json.loads(text)
        fits = (
            isinstance(record, dict)
            and isinstance(record.get("family", ""), str)
            and isinstance(record.get("data", ...), dict | None)
            and isinstance(record.get("history"), list)
            and all(isinstance(record.get(key, {}), dict) for key in ("args", "versions"))
            and all(_is_pair(pair) for pair in record["widths"].values())
        )
    except (ValueError, RecursionError, KeyError, AttributeError):
        fits = False
    if not fits:
        raise CheckpointError(f"{path}: its record is damaged; export the network again")
    try:
        check_history(record["history"], record.get("versions", {}))
        check_record(record["data"] or {}, complete=False)
    except (CheckpointError, DataError) as error:
        raise CheckpointError(f"{path}: {error}; export the network again") from None
    return record


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and [type(units) for units in value] == [int, int]


def _of_pickle(path: Path, names: list[str]) -> Contents:
    """What torch.save wrote, or something else."""
    try:
        content = read_archive(path)
    except CheckpointError as error:
        classes = _classes(path, names)
        if classes:
            return _contents(
                path, "pickle", notes=(f"needs {', '.join(classes)} to open, and would run it",)
            )
        if names or not _starts_as_pickle(path):
            raise CheckpointError(
                str(error).replace("; expected a network saved with fcompress.save", "")
            ) from None
        content = None
    if isinstance(content, dict) and content.get("format") == "fcompress":
        return _of_network(path)
    if isinstance(content, dict) and "run" in content and "format" in content:
        run = content["run"]
        family = run.get("family") if isinstance(run, dict) else None
        return _contents(path, "unfinished run", family=family if isinstance(family, str) else None)
    weights = read_weights(path)
    notes = [f"under {weights.key!r}"] if weights.key else []
    notes += [f"also weights under {other!r}" for other in weights.others]
    return _contents(path, "state dict", notes=tuple(notes), **_of_tensors(weights.state))


def _of_network(path: Path) -> Contents:
    found = read(path)
    if found.family == FAMILY:
        try:
            parts_of(found)
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {error}") from None
    return _contents(
        path,
        "network",
        widths=found.widths,
        **_built(found.family, found.args),
        data=found.data,
        history=tuple(found.history),
        versions=found.versions,
        **_of_tensors(found.state),
    )


def _of_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Number of parameters, as far as names tell them from buffers, and types."""
    names = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()})
    params = sum(
        tensor.numel()
        for name, tensor in tensors.items()
        if tensor.is_floating_point() and not name.endswith(_BUFFERS)
    )
    return {"params": params, "dtypes": tuple(names)}


def _built(family: str | None, args: dict[str, Any]) -> dict[str, Any]:
    """How the original network was built; of a cascade, both of its networks."""
    original = args.get("original")
    if family != FAMILY or not isinstance(original, dict):
        return {"family": family, "args": args, "wide": _wide(family, args)}
    own, own_args = original.get("family"), original.get("args")
    if not isinstance(own, str) or not isinstance(own_args, dict):
        return {"family": family}
    built = _wide(own, own_args) or {}
    wide = {f"{part}.{name}": pair for part in PARTS for name, pair in built.items()}
    return {"family": f"{FAMILY} of {own}", "args": own_args, "wide": wide or None}


def _wide(family: str | None, args: dict[str, Any]) -> dict[str, list[int]] | None:
    """Widths of a network of the registry as it was built."""
    if family is None or ":" in family or {"seed", "family"} & args.keys():
        return None
    try:
        with torch.device("meta"):
            return widths(build(family, **args))
    except (FcompressError, TypeError):
        return None


def _starts_as_pickle(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(1) == b"\x80"


def _classes(path: Path, names: list[str]) -> list[str]:
    """Classes and functions that a pickle names, other than those of tensors; it is not run."""
    found: dict[str, None] = {}
    inner = next((name for name in names if name.endswith("/data.pkl")), None)
    try:
        if inner is None:
            content = path.read_bytes() if _starts_as_pickle(path) else b""
        else:
            with zipfile.ZipFile(path) as archive:
                entry = archive.getinfo(inner)
                stored = entry.compress_type == zipfile.ZIP_STORED
                content = archive.read(entry) if stored else b""
        texts: list[str] = []
        for count, (opcode, argument, _) in enumerate(pickletools.genops(content)):
            if count > _PICKLE_OPCODES:
                break
            if opcode.name == "GLOBAL":
                found[str(argument).replace(" ", ".")] = None
            elif opcode.name == "STACK_GLOBAL" and len(texts) >= 2:
                found[".".join(texts[-2:])] = None
            elif isinstance(argument, str):
                texts = [*texts[-1:], argument]
    # A damaged pickle ends anywhere.
    except (ValueError, EOFError, IndexError, OSError, zipfile.BadZipFile, RuntimeError):
        pass
    known = ("torch._utils.", "collections.OrderedDict", "torch.storage.")
    foreign = [n for n in found if not n.startswith(known) and not _is_dtype(n)]
    return [repr(name)[1:-1][:100] for name in foreign[:_NAMED_CLASSES]]


def _is_dtype(name: str) -> bool:
    short = name.removeprefix("torch.")
    return short.endswith("Storage") or isinstance(getattr(torch, short, None), torch.dtype)
