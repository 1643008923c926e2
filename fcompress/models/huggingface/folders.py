"""Folders as transformers writes them: config.json, weights in safetensors, an image processor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from fcompress.errors import ArchitectureError, CheckpointError
from fcompress.formats.limits import check_file
from fcompress.formats.safetensors import read_safetensors
from fcompress.models.huggingface.classes import classes_of, plain_config

CONFIG, WEIGHTS = "config.json", "model.safetensors"
# Of a network that transformers cannot build by itself, and so must not find.
OWN_WEIGHTS = "fcompress.safetensors"
_INDEX = "model.safetensors.index.json"
# The entry of a configuration that says what `export` wrote.
RECORD = "fcompress"
_LONGEST = 2**26


def is_folder(path: Path) -> bool:
    """Whether a path is a folder with a configuration."""
    return path.is_dir() and (path / CONFIG).is_file()


def is_ours(path: Path) -> bool:
    """Whether a folder was written by fcompress, whose weights say more than its configuration."""
    try:
        return RECORD in read_json(path / CONFIG)
    except CheckpointError:
        return False


def weights_of(path: Path) -> Path:
    """The weights that `export` wrote into a folder; of a file the file itself."""
    if not is_folder(path):
        return path
    own = path / OWN_WEIGHTS
    return own if own.is_file() else path / WEIGHTS


def read_folder(folder: Path) -> tuple[str, dict[str, Any]]:
    """How the network of a folder is built.

    Args:
        folder: With config.json.

    Returns:
        `model_type` and {"class": ..., "config": ...}, as `classes.make` takes them.

    Raises:
        ArchitectureError: There is none, or it names no network of the installed transformers.
    """
    try:
        said = read_json(folder / CONFIG)
    except CheckpointError as error:
        raise ArchitectureError(
            f"{error}; expected a folder with config.json, as save_pretrained writes it"
        ) from error
    model_type, names = said.get("model_type"), said.get("architectures")
    if said.get("quantization_config"):
        raise ArchitectureError(
            f"{folder} holds quantised weights, which cannot be compressed; give it as it was "
            "before that"
        )
    if not isinstance(model_type, str):
        raise ArchitectureError(f"{folder / CONFIG} says no model_type; it is damaged")
    if not isinstance(names, list) or len(names) != 1 or not isinstance(names[0], str):
        known = ", ".join(classes_of(model_type)) or "none of transformers"
        raise ArchitectureError(
            f'{folder / CONFIG} names no class under "architectures"; expected one of: {known}'
        )
    return model_type, {"class": names[0], "config": plain_config(said)}


def read_state(folder: Path) -> dict[str, Tensor]:
    """The weights of a folder: model.safetensors, or the parts that its index names.

    Raises:
        CheckpointError: There are none in safetensors, or a part is missing or damaged.
    """
    whole = folder / WEIGHTS
    if whole.is_file():
        return read_safetensors(whole)[0]
    if not (folder / _INDEX).is_file():
        raise CheckpointError(
            f"{folder} has no {WEIGHTS}; expected weights in safetensors (pickles are not opened): "
            "load it with transformers and call save_pretrained"
        )
    parts = read_json(folder / _INDEX).get("weight_map")
    names = sorted(set(parts.values())) if isinstance(parts, dict) else []
    state: dict[str, Tensor] = {}
    for name in names:
        # A name that leads elsewhere could be any file.
        if not isinstance(name, str) or Path(name).name != name:
            raise CheckpointError(f"{folder / _INDEX} names a file elsewhere; it was not opened")
        state |= read_safetensors(folder / name)[0]
    return state


def read_json(path: Path) -> dict[str, Any]:
    """An object of JSON out of a folder.

    Raises:
        CheckpointError: It is missing, too long, or no object.
    """
    check_file(path)
    if path.stat().st_size > _LONGEST:
        raise CheckpointError(f"{path} has more than {_LONGEST:,} bytes; it is damaged")
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is no JSON ({error}); restore it") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} is no object of JSON; restore it")
    return found
