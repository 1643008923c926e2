"""What is measured: files that another process can open as well, and networks in memory."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fcompress.cascades.network import Cascade
from fcompress.checkpoints.checkpoint import load
from fcompress.errors import FcompressError, first_line
from fcompress.exports import pairs
from fcompress.exports.opening import is_program, open_program
from fcompress.formats.limits import as_path, check_file
from fcompress.forward.callables import Called, as_network
from fcompress.forward.predictor import Predictor
from fcompress.forward.running import device_of

_PROGRAMS = {".onnx": "onnxruntime", ".json": "onnxruntime"}


@dataclass(frozen=True)
class Entry:
    """One file or network.

    Attributes:
        name: What to call it.
        open: Gives the network, anew where it is a file.
        bytes: Of the file, or of all files of a pair; of a network in memory those of its
            parameters and buffers.
        file: Whether it is a file, so that another process can open it by `open` as well.
        compiled: Whether torch.compile compiles it first.
    """

    name: str
    open: Callable[[], nn.Module]
    bytes: int
    file: bool
    compiled: bool = False


def entry_of(given: object, trust_pickle: bool) -> Entry:
    """What is measured of a path, a network or a callable.

    Raises:
        CheckpointError: There is no such file.
        TypeError: It is none of these.
    """
    if isinstance(given, str | os.PathLike):
        path = as_path(given)
        return file_entry(path, partial(open_file, path, trust_pickle))
    network = as_network(given)
    size = sum(t.nbytes for t in [*network.parameters(), *network.buffers()])
    name = network.name if isinstance(network, Called) else type(network).__name__
    return Entry(name, lambda: network, size, file=False)


def file_entry(path: Path, opener: Callable[[], nn.Module]) -> Entry:
    """What is measured of a file.

    Args:
        path: The file.
        opener: Opens it; another process has to be able to import it.
    """
    check_file(path)
    files = [path]
    if pairs.is_pair(path):
        files += pairs.read_pair(path)[1].values()
    return Entry(os.fspath(path), opener, sum(file.stat().st_size for file in files), file=True)


def open_file(path: Path, trust_pickle: bool) -> nn.Module:
    """The network in a file of fcompress, or the program in any other."""
    if is_program(path):
        return open_program(path, trust_pickle=trust_pickle)
    return load(path)


def also_compiled(entries: list[Entry]) -> list[Entry]:
    """Entries with one more behind each whose network torch.compile can take."""
    found = []
    for entry in entries:
        found.append(entry)
        if not isinstance(entry.open(), Called):
            found.append(replace(entry, compiled=True))
    return found


def runs_in(entry: Entry, network: nn.Module) -> str:
    """By what program a network is run, for a table."""
    if entry.compiled:
        return "torch.compile"
    if not isinstance(network, Called):
        return "torch"
    if not entry.file:
        return "Python"
    return _PROGRAMS.get(Path(entry.name).suffix.lower(), "torch.export")


def deferring(network: nn.Module) -> Callable[..., Tensor] | None:
    """What says which examples the original of a cascade answers; None for all other networks."""
    if isinstance(network, Cascade | Called):
        return network.deferred
    return None


def ready(entry: Entry, device: str) -> nn.Module:
    """The network, on its device (programs choose their own), compiled if it is to be."""
    network = entry.open()
    if not isinstance(network, Called):
        network = network.to(device_of(device)).eval()
    return compiled(network) if entry.compiled else network


def compiled(network: nn.Module) -> nn.Module:
    """A network that torch.compile compiles when it first runs.

    Of a cascade each network by itself, the original for any number of examples.
    """
    if isinstance(network, Cascade):
        small, large = _compiled(network.compressed), _compiled(network.original, any_size=True)
        made = Cascade(small, large, float(network.threshold), network.scoring)
        return made.eval().to(network.threshold.device)
    return _compiled(network)


def _compiled(network: nn.Module, *, any_size: bool = False) -> nn.Module:
    made: Any = torch.compile(network, dynamic=any_size)  # a module, whatever its stub says
    return made  # type: ignore[no-any-return]


def check_compiles(entry: Entry, predictor: Predictor, inputs: Tensor) -> None:
    """Run a compiled network once.

    Raises:
        FcompressError: torch.compile does not work here, or not for this network.
    """
    try:
        with predictor.evaluating():
            predictor(predictor.place(inputs))
    except Exception as error:  # of torch's compilers, by type as many as there are
        raise FcompressError(
            f"torch.compile does not compile {entry.name} here: {first_line(error)[:300]}; leave "
            "compiled (--compile) out"
        ) from error
