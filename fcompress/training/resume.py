"""The file from which an interrupted training run goes on."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fcompress.errors import CheckpointError, TrainingError
from fcompress.formats.torch_zip import read_archive, write_archive

RESUME_FORMAT = 1
# What an optimizer keeps of each parameter, at least.
_KEPT: dict[type, tuple[str, ...]] = {
    torch.optim.SGD: (),
    torch.optim.Adam: ("step", "exp_avg", "exp_avg_sq"),
    torch.optim.RMSprop: ("step", "square_avg", "momentum_buffer"),
}


def resume_file(out: Path) -> Path:
    """Where the state of an unfinished run lies: beside its checkpoint."""
    return out.with_name(out.name + ".resume")


def read_resume(out: Path, run: dict[str, Any], resume: bool) -> dict[str, Any] | None:
    """Find out where a run is to begin.

    Args:
        out: The run's checkpoint.
        run: What identifies the run, in plain values: network, data and settings.
        resume: Whether the user asked to go on.

    Returns:
        What `write_resume` was given, or None for a run that begins at the beginning.

    Raises:
        TrainingError: An unfinished run is there but was not asked for; it is another run, or
            damaged; or the run that was asked for is finished.
    """
    path = resume_file(out)
    if not path.exists():
        if resume and out.exists():
            raise TrainingError(
                f"nothing to resume: {out} is finished (there is no {path.name}); train without "
                "--resume to replace it"
            )
        return None
    if not resume:
        raise TrainingError(
            f"{path} holds an unfinished run; continue it with --resume, or delete it to start anew"
        )
    try:
        state = read_archive(path)
    except CheckpointError as error:
        raise damaged(out) from error
    if not isinstance(state, dict) or type(state.get("format")) is not int:
        raise damaged(out)
    if state["format"] != RESUME_FORMAT:
        raise TrainingError(
            f"{path} was written by another version of fcompress; finish it with that version, or "
            "delete it to start anew"
        )
    saved = state.get("run")
    if not isinstance(saved, dict):
        raise damaged(out)
    try:
        different = [
            f"{name} was {saved.get(name)!r}, now {value!r}"
            for name, value in run.items()
            if not bool(saved.get(name) == value)
        ]
    # What a damaged file holds there may be a tensor, or nest too deep to be compared.
    except (RuntimeError, ValueError, TypeError, RecursionError) as error:
        raise damaged(out) from error
    if different:
        raise TrainingError(
            f"{path} belongs to another run ({'; '.join(different)}); give its settings, or delete "
            "it to start anew"
        )
    return state


def damaged(out: Path) -> TrainingError:
    """The error for a file that cannot be continued from."""
    return TrainingError(f"{resume_file(out)} is truncated or damaged; delete it and start anew")


def restore(out: Path, state: dict[str, Any], model: nn.Module, optimizer: Any) -> list[Any]:
    """Put a network and its optimizer back to where a run stopped.

    Args:
        out: The run's checkpoint.
        state: What `read_resume` gave.
        model: The network, changed in place.
        optimizer: Of its parameters, made with the settings of the run; changed in place.

    Returns:
        The records of the epochs that are done.

    Raises:
        TrainingError: The state is not one of this network and optimizer.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    try:
        model.load_state_dict(state["model"])
        given = state["optimizer"]
        needed = _KEPT[type(optimizer)]
        fits = len(given["state"]) in (0, len(parameters)) and all(
            _is_kept(given["state"][i], parameter, needed)
            for i, parameter in enumerate(parameters)
            if given["state"]
        )
        fits = fits and [_settings(group) for group in given["param_groups"]] == [
            _settings(group) for group in optimizer.state_dict()["param_groups"]
        ]
        fits = fits and all(type(group["lr"]) in (int, float) for group in given["param_groups"])
        if not fits or not isinstance(state["epochs"], list):
            raise damaged(out)
        optimizer.load_state_dict(given)
        return list(state["epochs"])
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
        raise damaged(out) from error


def _is_kept(kept: Any, parameter: Tensor, needed: tuple[str, ...]) -> bool:
    """Whether what an optimizer keeps of one parameter is whole and of its shape."""
    if not isinstance(kept, dict) or not set(needed) <= set(kept):
        return False
    for name, value in kept.items():
        shape = torch.Size() if name == "step" else parameter.shape
        if value is None and name not in needed:
            continue
        if (
            not isinstance(value, Tensor)
            or value.layout is not torch.strided
            or not value.is_floating_point()
            or value.shape != shape
        ):
            return False
    return True


def _settings(group: dict[str, Any]) -> dict[str, Any]:
    """An optimizer's settings but the learning rate, which each step sets anew."""
    return {name: value for name, value in group.items() if name not in ("lr", "initial_lr")}


def write_resume(out: Path, run: dict[str, Any], state: dict[str, Any]) -> None:
    """Keep what is needed to go on: tensors and plain values only."""
    write_archive(resume_file(out), {"format": RESUME_FORMAT, "run": run, **state})
