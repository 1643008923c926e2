"""Weights of other people's networks: state dicts in the files and wrappers that are in use.

A state dict is read from `.safetensors` or from what `torch.save` wrote (`.pt`, `.pth`, `.ckpt`,
`.bin`, whatever it is called). Training scripts wrap it: in a dictionary beside the optimizer's
state, with a prefix before every name. Nothing is run that a file holds, unless the user says
`--trust-pickle`.
"""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fcompress.errors import CheckpointError, code_of_users, said_by
from fcompress.formats.limits import check_file
from fcompress.formats.safetensors import is_safetensors, read_safetensors
from fcompress.formats.torch_zip import is_zip, read_archive
from fcompress.models.external import check_weights

# Where training scripts put the state dict, in the order in which it is looked for.
WRAPPERS = (
    "state_dict model_state_dict model network net module params weights "
    "model_ema ema state_dict_ema ema_state_dict"
).split()
# Wrappers of modules that put a name before every other; they may also stand in the middle.
_COMPILED = "_orig_mod."
_PREFIX = "module."
_DEEPEST = 4
_SHOWN = 3
EXPECTED = "a state dict (torch.save(model.state_dict(), ...) or .safetensors)"
REMEDY = f"Add --trust-pickle if you trust who wrote it, or give {EXPECTED}"


@dataclass(frozen=True)
class Weights:
    """What a file of weights holds.

    Attributes:
        state: Name -> tensor on the CPU; names as in the file, without wrapping prefixes.
        module: The whole module, where the file is a trusted pickle of one.
        key: Under which key of the file the state dict stood; empty for the file itself.
        others: Further keys that hold state dicts too.
    """

    state: dict[str, Tensor]
    module: nn.Module | None = None
    key: str = ""
    others: tuple[str, ...] = ()


def read_weights(path: Path, *, trust_pickle: bool = False, key: str | None = None) -> Weights:
    """Read a state dict, or a whole module from a trusted pickle.

    Args:
        path: The file.
        trust_pickle: Whether to open a pickle that could run any code.
        key: Under which key of the file the weights stand; None to look for it.

    Raises:
        CheckpointError: The file is missing, damaged, of another kind, needs `trust_pickle`, or
            holds no weights.
    """
    check_file(path)
    if path.suffix == ".safetensors" or is_safetensors(path):
        content: Any = read_safetensors(path)[0]
    else:
        _refuse_programs(path)
        content = _read_pickle(path, trust_pickle)
    return _find(path, content, key)


def load_weights(network: nn.Module, weights: Weights, where: str) -> None:
    """Put weights into a network, in place.

    Prefixes that wrappers add are taken off; counters of batch norms that old files lack stay 0.
    If every floating point tensor is of double precision, the network becomes so too; lower
    precisions are computed in the network's own.

    Args:
        network: A network whose state dict has the names of the weights.
        weights: What `read_weights` found.
        where: File and architecture, for errors.

    Raises:
        CheckpointError: Tensors are missing, left over or of another shape.
    """
    check_weights(network)
    with code_of_users(
        lambda e: CheckpointError(f"{where}: {said_by(e)}; its state_dict has to work")
    ):
        expected = network.state_dict()
    state = _named_alike(weights.state, set(expected))
    missing = [n for n in expected if n not in state and not n.endswith("num_batches_tracked")]
    left_over = [name for name in state if name not in expected]
    if missing or left_over:
        parts = [
            f"{what} {_some(names)}"
            for what, names in (("lacks", missing), ("has besides", left_over))
            if names
        ]
        raise CheckpointError(
            f"{where}: the file {' and '.join(parts)}; give the architecture (--arch) and the "
            "arguments (--arch-args) that the weights were made with"
        )
    wrong = [n for n, t in state.items() if t.shape != expected[n].shape]
    if wrong:
        name = wrong[0]
        raise CheckpointError(
            f"{where}: {name} is {list(state[name].shape)} in the file, but "
            f"{list(expected[name].shape)} in the architecture"
            f"{f' ({len(wrong) - 1} more differ)' if len(wrong) > 1 else ''}; give the arguments "
            """that the weights were made with, as in --arch-args '{"num_classes": 10}'"""
        )
    for name, tensor in state.items():
        if not _holds(expected[name], tensor):
            raise CheckpointError(
                f"{where}: {name} is {_kind(tensor)} in the file, but {_kind(expected[name])} in "
                "the architecture; values would change: give weights of that kind"
            )
    floats = {t.dtype for t in state.values() if t.is_floating_point()}
    if floats == {torch.float64}:
        network.double()
    try:
        network.load_state_dict({**expected, **state})
    except (RuntimeError, TypeError, ValueError) as error:
        reason = (str(error).splitlines() or ["no message"])[0]
        raise CheckpointError(f"{where}: the weights do not fit ({reason})") from error


def _kind(tensor: Tensor) -> str:
    """A dtype in words."""
    if tensor.is_complex() or tensor.is_floating_point():
        kind = "complex" if tensor.is_complex() else "floating point"
    else:
        kind = "boolean" if tensor.dtype is torch.bool else "integer"
    return f"{kind} ({str(tensor.dtype).removeprefix('torch.')})"


def _holds(wanted: Tensor, given: Tensor) -> bool:
    """Whether a tensor can hold another's values: numbers of its kind, whole ones exactly."""
    if wanted.is_floating_point() or wanted.is_complex():
        return given.is_floating_point() == wanted.is_floating_point() and (
            given.is_complex() == wanted.is_complex()
        )
    if wanted.dtype == given.dtype:
        return True
    # Counters are kept as floating point numbers by programs that convert all tensors alike.
    if given.is_complex() or (given.is_floating_point() and given.dim()):
        return False
    return bool((given.to(wanted.dtype).double() == given.double()).all())


def _refuse_programs(path: Path) -> None:
    """Say what to give instead of a program: TorchScript, or one from torch.export."""
    if not is_zip(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return  # the reader says what is wrong with it
    inner = {name.partition("/")[2] for name in names}
    if "constants.pkl" in inner or any(n.startswith("code/") for n in inner):
        raise CheckpointError(
            f"{path}: is a TorchScript program, whose layers can no longer be changed; give "
            f"{EXPECTED} and --arch instead"
        )
    programs = ("serialized_exported_program.json", "archive_format", "models/model.json")
    if inner & set(programs) or set(names) & set(programs):
        raise CheckpointError(
            f"{path}: is a program of torch.export, whose layers can no longer be changed; give "
            f"{EXPECTED} and --arch instead"
        )
    if "data.pkl" not in inner:
        raise CheckpointError(f"{path}: is a zip archive without weights; expected {EXPECTED}")


def _read_pickle(path: Path, trusted: bool) -> Any:
    if trusted:
        return _unpickle(path, safely=False)
    with path.open("rb") as file:
        zipped = file.read(2) == b"PK"
    if zipped:
        return read_archive(path, expected=EXPECTED, remedy=REMEDY)
    return _unpickle(path, safely=True)


def _unpickle(path: Path, *, safely: bool) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about old formats, which are what is read here
            return torch.load(path, map_location="cpu", weights_only=safely)
    except (ModuleNotFoundError, AttributeError) as error:
        if safely:
            raise _unreadable(path, error) from error
        raise CheckpointError(
            f"{path}: the code of the network is not found ({error}); run where it can be "
            f"imported, or give {EXPECTED} and --arch"
        ) from error
    except pickle.UnpicklingError as error:
        if safely and "weights_only" in str(error).lower() and _is_pickle(path):
            raise CheckpointError(
                f"{path}: holds more than tensors and plain values, which could run code when "
                f"opened; it was not opened. {REMEDY}"
            ) from error
        raise _unreadable(path, error) from error
    # What a damaged or hostile file makes torch raise has no common type.
    except Exception as error:
        raise _unreadable(path, error) from error


def _is_pickle(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(1) == b"\x80"


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    reason = f"{type(error).__name__}: {(str(error).splitlines() or ['no message'])[0][:200]}"
    return CheckpointError(f"{path}: cannot be read ({reason}); expected {EXPECTED}")


def _find(path: Path, content: Any, key: str | None) -> Weights:
    """The state dict or module in what a file holds."""
    if isinstance(content, nn.Module):
        return Weights({}, content)
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f"{path}: holds a {type(content).__name__}; expected {EXPECTED}, possibly in a "
            f"dictionary under {', '.join(WRAPPERS[:3])}"
        )
    if key is not None:
        if key not in content:
            raise CheckpointError(
                f"{path}: has no key {key!r}; it has: {', '.join(map(str, list(content)[:20]))}"
            )
        found = _as_weights(content[key])
        if found is None:
            raise CheckpointError(f"{path}: {key!r} holds no weights; expected {EXPECTED}")
        return Weights(found.state, found.module, key)
    own = _as_state(content)
    if own is not None:
        return Weights(own)
    there = {name: _as_weights(content[name]) for name in WRAPPERS if name in content}
    fitting = [(name, found) for name, found in there.items() if found is not None]
    if not fitting:
        raise CheckpointError(
            f"{path}: no weights found under {', '.join(map(str, list(content)[:10])) or 'no key'}"
            f"; expected {EXPECTED}; name the key by --weights-key"
        )
    name, found = fitting[0]
    return Weights(found.state, found.module, name, tuple(other for other, _ in fitting[1:]))


def _as_weights(value: Any, depth: int = 0) -> Weights | None:
    """A state dict or a module, maybe wrapped once more; None for anything else."""
    if isinstance(value, nn.Module):
        return Weights({}, value)
    state = _as_state(value)
    if state is not None:
        return Weights(state)
    if isinstance(value, Mapping) and depth < _DEEPEST:
        for name in WRAPPERS:
            if name in value and (found := _as_weights(value[name], depth + 1)) is not None:
                return found
    return None


def _as_state(value: Any) -> dict[str, Tensor] | None:
    """A non-empty mapping from names to dense tensors; None for anything else.

    What averaging and metrics leave beside the tensors (counts, `None`) is dropped.
    """
    if not isinstance(value, Mapping) or not value:
        return None
    tensors = {}
    for name, tensor in value.items():
        if isinstance(name, str) and isinstance(tensor, Tensor):
            if tensor.layout is not torch.strided or tensor.is_quantized:
                return None
            tensors[name] = tensor.detach()
        elif not (tensor is None or isinstance(tensor, (bool, int, float))) or name in WRAPPERS:
            return None
    # One lone number is a counter, not a network.
    return tensors if any(t.dim() for t in tensors.values()) else None


def _named_alike(state: Mapping[str, Tensor], expected: set[str]) -> dict[str, Tensor]:
    """The state without what wrappers put into its names, if more names fit without it.

    `_orig_mod.` goes wherever it stands and `module.` from the beginning; then any other common
    beginning (`model.`, `backbone.`), and with it whatever does not begin so, such as the
    weights of a loss.
    """
    plain = {}
    for name, tensor in state.items():
        name = name.replace(_COMPILED, "")
        while name.startswith(_PREFIX):
            name = name.removeprefix(_PREFIX)
        plain[name] = tensor
    plain.pop("n_averaged", None)  # of torch.optim.swa_utils.AveragedModel
    some = max(expected, key=len, default="")
    begins = {name.removesuffix(some) for name in plain if name.endswith(f".{some}")}
    candidates = [dict(state), plain]
    for begin in sorted(begins):
        candidates.append(
            {n.removeprefix(begin): t for n, t in plain.items() if n.startswith(begin)}
        )
    return max(candidates, key=lambda names: len(expected & names.keys()))


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:_SHOWN])
    return shown + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
