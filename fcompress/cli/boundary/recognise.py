"""Whether a file is plainly what the same command wrote before, so that it may be replaced.

A user who repeats a command wants its files anew; a user who gives the name of another file by
mistake wants it kept. So only a file that carries the mark of what is about to be written is
replaced without --force: a network of fcompress whose last step is this command's, JSON with the
keys that this command writes, a picture that fcompress drew, an export that carries its record. An
empty file holds nothing that could be lost.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fcompress.errors import FcompressError

LONGEST = 2**26  # bytes of JSON, or of a pickle inside of a network, that are looked at
DRAWN_BY = "fcompress"  # what a picture names as the program that made it
_PNG = b"\x89PNG\r\n\x1a\n"
# Command -> keys that each record of it has, for each kind of record.
_KEYS: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "train": (("family", "args", "params", "epochs", "data", "path"),),
    "analyze": (("network", "ablation", "redundancy", "layer_costs", "groups"),),
    "gain": (("family", "widths", "network_range", "layers_range"),),
    "shrink": (("agreement", "layers", "params", "macs", "method", "candidates"),),
    "verify": (("n", "same", "lower_bound", "split", "data", "certificate"),),
    "export": (("path", "format", "bytes", "n", "same", "allowed_difference"),),
    "bench": (("rows", "inputs", "device", "seconds", "versions"),),
    "compare": (("rows", "tolerance", "candidates", "search", "versions"),),
    "show": (("path", "kind", "bytes", "history", "versions", "notes"),),
    "models": (("name", "summary", "params", "arguments", "inits"),),
    "data": (
        ("name", "form", "summary", "splits", "find", "options"),
        ("spec", "sha256", "roles", "sizes", "standardised_by"),
    ),
    "recipe list": (("name", "title", "source", "scales"),),
    "recipe run": (("recipe", "gains", "compared"),),
    "recipe report": (("recipe", "gains", "compared"),),
}


def is_earlier(path: Path, kind: str, command: str) -> bool:
    """Whether a file is empty, or was plainly written by this command.

    Args:
        path: A file that exists.
        kind: What is to be written there, a key of `KINDS`.
        command: Name of the command, as "recipe run".
    """
    try:
        return path.stat().st_size == 0 or KINDS[kind](path, command)
    except (OSError, FcompressError):
        return False


def _json(path: Path, command: str) -> bool:
    if path.stat().st_size > LONGEST:
        return False
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return False
    records = content if isinstance(content, list) else [content]
    return bool(records) and any(
        all(isinstance(record, dict) and set(keys) <= record.keys() for record in records)
        for keys in _KEYS.get(command, ())
    )


def _picture(path: Path, command: str) -> bool:
    with path.open("rb") as file:
        start = file.read(4096)
    return start.startswith(_PNG) and b"tEXtSoftware\0" + DRAWN_BY.encode() in start


def _report(path: Path, command: str) -> bool:
    with path.open("rb") as file:
        return b'<meta name="generator" content="fcompress">' in file.read(4096)


def _network(path: Path, command: str) -> bool:
    if path.suffix.lower() == ".onnx":
        return _export(path, command)
    if not says_fcompress(path):
        return False
    from fcompress.checkpoints.checkpoint import read

    history = read(path).history
    return bool(history) and isinstance(history[-1], dict) and history[-1].get("action") == command


def says_fcompress(path: Path) -> bool:
    """Whether a file is an archive of torch that calls itself a file of fcompress."""
    try:
        with zipfile.ZipFile(path) as archive:
            inner = [e for e in archive.infolist() if e.filename.endswith("/data.pkl")]
            if len(inner) != 1 or inner[0].file_size > LONGEST:
                return False
            content = archive.read(inner[0])
    except (zipfile.BadZipFile, NotImplementedError, ValueError, RuntimeError, EOFError, OSError):
        return False
    return b"format" in content and b"fcompress" in content


def _export(path: Path, command: str) -> bool:
    from fcompress.exports.describe import describe_file

    found = describe_file(path)
    wanted = {".pt2": "program", ".onnx": "onnx", ".safetensors": "safetensors", ".json": "pair"}
    return wanted.get(path.suffix.lower()) == found.kind and bool(found.versions)


KINDS: Mapping[str, Callable[[Path, str], bool]] = {
    "JSON": _json,
    "picture": _picture,
    "report": _report,
    "network": _network,
    "export": _export,
}
