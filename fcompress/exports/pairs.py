"""A cascade as two ONNX files and a short JSON that says how they answer together.

`NAME.json` names `NAME.compressed.onnx` and `NAME.original.onnx` beside it. Any program that runs
ONNX can follow it (docs/deployment.md): run the compressed network on all examples, compute the
margin of each, and run the original on those whose margin is below the threshold or no number.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fcompress.cascades.margins import record_of, scoring_from
from fcompress.cascades.network import Cascade
from fcompress.checkpoints.checkpoint import RECORD
from fcompress.errors import CheckpointError, FcompressError, UnsupportedNetworkError
from fcompress.formats.limits import check_file
from fcompress.forward.answers.heads import heads_of, main_of
from fcompress.models.fingerprint import REWRITTEN, last_shrink
from fcompress.programs.files import GRAPH, INPUT, OUTPUT, Runner, run_onnx

ENDING = ".json"
FORMAT, VERSION = "fcompress.cascade", 1
PARTS = ("compressed", "original")
_LONGEST = 2**24  # bytes
_LIKE = {
    "classes": "the largest probability less the second largest",
    "sigmoid": "the least |2 p - 1| of an example's labels",
    "positions": "the least, over positions, of the largest probability less the second largest",
    "tokens": "the least, over positions that are no padding, of the largest probability less the "
    "second largest",
}


def check_format(model: nn.Module, kind: str, path: str | os.PathLike[str]) -> None:
    """See that a network can be written to a format: two networks as a pair, one as one file.

    Raises:
        UnsupportedNetworkError: It cannot.
        FcompressError: The ending is of the other kind of network.
    """
    if not isinstance(model, Cascade):
        if kind == ENDING:
            raise FcompressError(
                f"{path}: {ENDING} is for cascades, and this is one network; end the name in .onnx"
            )
        return
    if kind == ".pt2":
        raise UnsupportedNetworkError(
            f"{path}: a program of torch.export cannot send only some rows of a batch to the "
            f"original; end the name in {ENDING} for two ONNX files, or keep it by fcompress.save"
        )
    if kind == ".onnx":
        raise UnsupportedNetworkError(
            f"{path}: a cascade is two networks, and ONNX holds one; end the name in {ENDING}, and "
            "the two ONNX files lie beside it"
        )
    if kind == ENDING and heads_of(model.scoring):
        raise UnsupportedNetworkError(
            f"{path}: a program gives one output, and this cascade decides by several heads "
            f"({', '.join(heads_of(model.scoring))}); keep it by fcompress.save"
        )


def write_parts(
    cascade: Cascade,
    path: str | os.PathLike[str],
    export: Callable[[nn.Module, Path], object],
    record: Mapping[str, Any],
) -> bytes:
    """Write the two ONNX files of a cascade.

    Args:
        cascade: The pair.
        path: Of the JSON; the files lie beside it.
        export: Writes one network to a path, checked.
        record: What the files of the cascade say of it.

    Returns:
        The JSON that belongs to them.
    """
    main = main_of(cascade.scoring)
    kind = main.labels or "classes"
    found: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "input": INPUT,
        "output": OUTPUT,
        "answer": kind,
        "probabilities": main.ending or ("sigmoid" if kind == "sigmoid" else "softmax"),
        "outputs_are": "logits" if main.ending is None else "probabilities",
        "margin": _LIKE.get(kind, "the K-th largest probability less the next one"),
        "threshold": float(cascade.threshold),
        "rule": "where the margin of the compressed network's output is below the threshold, or no "
        "number, the original answers instead",
        "scoring": {**record_of(cascade.scoring), "output": None},
    }
    for name in PARTS:
        file = part_path(path, name)
        _check_replaced(file)
        export(getattr(cascade, name), file)
        found[name] = {"file": file.name, "sha256": _sha256(file)}
    return (json.dumps({**found, RECORD: record}, indent=1) + "\n").encode()


def part_path(path: str | os.PathLike[str], name: str) -> Path:
    """Where one of the two ONNX files lies."""
    return Path(path).with_name(f"{Path(path).stem}.{name}.onnx")


def _check_replaced(file: Path) -> None:
    """Refuse to replace what `export` did not write."""
    if not file.exists():
        return
    if not file.is_file() or GRAPH.encode() not in file.read_bytes():
        raise FcompressError(
            f"{file} exists and is not plainly what `fcompress export` wrote; name another file"
        )


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def is_pair(path: Path) -> bool:
    """Whether a file is the JSON of a pair."""
    try:
        return path.suffix.lower() == ENDING and _read(path)["format"] == FORMAT
    except CheckpointError:
        return False


def _read(path: Path) -> dict[str, Any]:
    check_file(path)
    if path.stat().st_size > _LONGEST:
        raise CheckpointError(f"{path}: is too long for the JSON of a cascade")
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: is not JSON") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise CheckpointError(f"{path}: is not the JSON of a cascade (format {FORMAT!r})")
    return found


def read_pair(path: Path) -> tuple[dict[str, Any], dict[str, Path]]:
    """What the JSON of a pair says, and where its two files lie.

    The certificate in it is void where one of them is another file than was written.

    Raises:
        CheckpointError: It is damaged, of a newer version, or a file is missing.
    """
    found = _read(path)
    if found.get("version") != VERSION:
        raise CheckpointError(
            f"{path}: written in version {found.get('version')!r}, not {VERSION}; upgrade fcompress"
        )
    record, files = found.get(RECORD), dict[str, Path]()
    history = record.get("history") if isinstance(record, dict) else None
    if not isinstance(history, list) or type(found.get("threshold")) is not float:
        raise CheckpointError(f"{path}: the JSON of a cascade is damaged; export it again")
    same = True
    for name in PARTS:
        part = found.get(name)
        file = part.get("file") if isinstance(part, dict) else None
        # A name that leads elsewhere could be any file.
        if not isinstance(file, str) or Path(file).name != file:
            raise CheckpointError(f"{path}: does not name the {name} network; export it again")
        files[name] = path.with_name(file)
        if not files[name].is_file():
            raise CheckpointError(f"{path}: names {file}, which does not lie beside it")
        same &= isinstance(part, dict) and _sha256(files[name]) == part.get("sha256")
    last = last_shrink(history)
    if last is not None and not same:
        history[last] = {"void": REWRITTEN, **history[last]}
    return found, files


def pair_of(found: Mapping[str, Any], run: Callable[[str], Runner]) -> Cascade:
    """A pair of programs as a cascade.

    Args:
        found: The JSON.
        run: What runs one of its networks, by name.
    """
    if not isinstance(found.get("scoring"), dict):
        raise CheckpointError("the JSON of a cascade does not say how answers are read; damaged")
    small, large = (_Run(run(name)) for name in PARTS)
    return Cascade(small, large, found["threshold"], scoring_from(found["scoring"]))


def runner_of(cascade: Cascade) -> Runner:
    """What runs a pair of programs."""

    def call(inputs: Tensor) -> Tensor:
        with torch.no_grad():
            return cascade(inputs)

    return call


class _Run(nn.Module):
    def __init__(self, run: Runner) -> None:
        super().__init__()
        self._run = run

    def forward(self, inputs: Tensor) -> Tensor:
        return self._run(inputs)


def run_pair(path: Path, beside: str | os.PathLike[str]) -> Runner:
    """Open a pair that this process wrote.

    Args:
        path: The JSON, maybe not yet under its name.
        beside: Its name, beside which the ONNX files lie.
    """
    found = json.loads(path.read_bytes())
    return runner_of(pair_of(found, lambda name: run_onnx(part_path(beside, name))))
