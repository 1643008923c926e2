"""The file of a cascade: two networks in one, each as a file of its own would hold it.

version   4
family    "cascade"
args      {"compressed": {version, family, args}, "original": the same, "scoring": how answers
          are read off the outputs (`cascades/margins.py`)}
widths, state, numbers, skipped
          of both networks, their names behind "compressed." and "original."; among the tensors
          also "threshold", the least margin with which the compressed network's answer stays
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from fcompress.cascades.margins import record_of, scoring_from
from fcompress.cascades.network import FAMILY, Cascade
from fcompress.checkpoints.rebuild import Checkpoint, rebuild, try_out
from fcompress.errors import CheckpointError
from fcompress.models.fingerprint import saved_tensors

VERSION = 4
PARTS = ("compressed", "original")
_THRESHOLD = "threshold"
_SAID = {"version": int, "family": str, "args": dict}


def joined(cascade: Cascade, parts: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What the file of a cascade holds, but for data, history and versions.

    Args:
        cascade: The pair.
        parts: What files of its networks would hold, by the names of `PARTS`.
    """
    args: dict[str, Any] = {"scoring": record_of(cascade.scoring)}
    found: dict[str, Any] = {"version": VERSION, "family": FAMILY, "args": args}
    found |= {"widths": {}, "state": {}, "numbers": {}, "skipped": {}}
    for name, part in parts.items():
        args[name] = {key: part[key] for key in _SAID}
        for key in ("widths", "state"):
            found[key] |= {f"{name}.{path}": value for path, value in part[key].items()}
        for key in ("numbers", "skipped"):
            found[key] |= {f"{name}.{path}": value for path, value in part.get(key, {}).items()}
    found["state"][_THRESHOLD] = saved_tensors(cascade)[_THRESHOLD].detach().cpu()
    return found


def parts_of(checkpoint: Checkpoint) -> dict[str, Checkpoint]:
    """The two networks in the file of a cascade.

    Raises:
        CheckpointError: It does not hold two.
    """
    found = {}
    for name in PARTS:
        said = checkpoint.args.get(name)
        if not isinstance(said, dict) or any(
            type(said.get(key)) is not kind for key, kind in _SAID.items()
        ):
            raise CheckpointError(f"args: {name!r} does not say how the network was built")
        if said["family"] == FAMILY:
            raise CheckpointError("a cascade cannot be a part of a cascade; the file is damaged")
        begin = f"{name}."
        own: dict[str, Any] = {
            key: {
                path.removeprefix(begin): value
                for path, value in getattr(checkpoint, key).items()
                if path.startswith(begin)
            }
            for key in ("widths", "state", "numbers", "skipped")
        }
        found[name] = Checkpoint(said["family"], said["args"], data=checkpoint.data, **own)
    besides: dict[str, set[str]] = {"widths": set(), "state": {_THRESHOLD}}
    besides |= {"numbers": set(), "skipped": set()}
    for key, others in besides.items():
        count = sum(len(getattr(part, key)) for part in found.values())
        left = getattr(checkpoint, key)
        if count + len(others & set(left)) != len(left):
            raise CheckpointError(f"{key}: some names are of neither network; the file is damaged")
    return found


def rebuild_cascade(
    checkpoint: Checkpoint,
    maker: Callable[[Checkpoint], Callable[[], nn.Module] | None],
) -> Cascade:
    """The pair that a file holds, in evaluation mode.

    Args:
        checkpoint: The content of the file.
        maker: Of one of its networks: what builds it, where that takes code that the user named.

    Raises:
        FcompressError: Something in it does not fit.
    """
    threshold = checkpoint.state.get(_THRESHOLD)
    if threshold is None or threshold.dim() or not threshold.is_floating_point():
        raise CheckpointError("state: 'threshold' is not one number; the file is damaged")
    scoring = checkpoint.args.get("scoring")
    if not isinstance(scoring, dict):
        raise CheckpointError("args: 'scoring' is missing; the file is damaged")
    networks: dict[str, nn.Module] = {}
    for name, part in parts_of(checkpoint).items():
        networks[name] = rebuild(part, maker(part))
        try_out(networks[name], part)
    cascade = Cascade(networks["compressed"], networks["original"], 0.0, scoring_from(scoring))
    cascade.threshold = torch.nn.Buffer(threshold)
    cascade.origin = {"data": checkpoint.data, "history": checkpoint.history}
    return cascade.eval()
