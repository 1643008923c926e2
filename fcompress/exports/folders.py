"""A compressed network of transformers as a folder: its weights, and a config.json with its widths.

Where the installed transformers can build the network from a configuration, the folder holds that
one and opens with `from_pretrained`. Everywhere else the weights have a name that transformers does
not look for, so that nobody gets a network with some of its weights drawn at random, and
`fcompress.load(DIR)` opens it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fcompress.checkpoints.checkpoint import RECORD
from fcompress.errors import FcompressError, UnsupportedNetworkError
from fcompress.formats.atomic import make_folder, write_atomic
from fcompress.formats.safetensors import read_safetensors, write_safetensors
from fcompress.forward.predictor import Predictor
from fcompress.models.huggingface import (
    CONFIG,
    OWN_WEIGHTS,
    WEIGHTS,
    fitting_config,
    is_folder,
    is_ours,
    with_weights,
)
from fcompress.models.provenance import described
from fcompress.programs.files import Runner

# Stands for the ending of a file.
ENDING = "/"


def folder_files(folder: Path) -> list[Path]:
    """The files of an export."""
    return [file for name in (CONFIG, WEIGHTS, OWN_WEIGHTS) if (file := folder / name).is_file()]


def write_folder(
    folder: Path,
    model: nn.Module,
    record: Mapping[str, Any],
    state: Mapping[str, Tensor],
    opened: Callable[[Path], Runner],
    check: Callable[[Callable[[Path], Runner]], Callable[[Path], object]],
    predictor: Predictor,
) -> None:
    """Write the folder of a network of transformers, each file whole or not at all.

    Args:
        folder: Made where there is none.
        model: The network.
        record: What the weights' metadata say of it.
        state: Every tensor.
        opened: What runs the weights as `fcompress.load` opens them.
        check: From what opens a file to what compares it with the network.
        predictor: The network with how it is read.

    Raises:
        UnsupportedNetworkError: It is no network of transformers.
        FcompressError: The folder holds something that fcompress did not write.
    """
    known = described(model)
    if known is None or known.architecture.kind != "hf":
        raise UnsupportedNetworkError(
            f"{folder}: a folder is for networks of transformers; end the name in .safetensors, "
            ".onnx or .pt2"
        )
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not _ours(folder))):
        raise FcompressError(
            f"{folder} is there and was not written by fcompress; name another folder"
        )
    make_folder(folder)
    kind, args = known.architecture.name.partition(":")[2], known.architecture.args
    config = None if record.get("skipped") else fitting_config(kind, args, model.state_dict())
    own: dict[str, Any] = {"widths": record["widths"]}
    if config is None:
        name, open_again = OWN_WEIGHTS, opened
        own["opens_with"] = "fcompress.load"
    else:
        name = WEIGHTS
        open_again = _by_transformers(kind, {**args, "config": config}, predictor)
        own["opens_with"] = "from_pretrained, fcompress.load"
    said = {**(config or args["config"]), "architectures": [args["class"]], "model_type": kind}
    text = json.dumps({**said, RECORD: own}, indent=1) + "\n"
    metadata = {"format": "pt", RECORD: json.dumps(record)}
    write_atomic(
        folder / name,
        lambda file: write_safetensors(file, state, metadata),
        check(open_again),
    )
    (folder / (WEIGHTS if name == OWN_WEIGHTS else OWN_WEIGHTS)).unlink(missing_ok=True)
    write_atomic(folder / CONFIG, lambda file: file.write(text.encode()))


def _ours(folder: Path) -> bool:
    return is_folder(folder) and is_ours(folder)


def _by_transformers(
    kind: str, args: Mapping[str, Any], predictor: Predictor
) -> Callable[[Path], Runner]:
    """Opens weights as `from_pretrained` does."""

    def opened(path: Path) -> Runner:
        network = with_weights(kind, args, read_safetensors(path)[0])

        def run(*given: Tensor, **named: Tensor) -> Tensor:
            with predictor.of(network).evaluating():
                return predictor.scoring.named(predictor.scoring.run(network, *given, **named))

        return run

    return opened
