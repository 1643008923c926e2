"""The file from which an interrupted training run goes on."""

from pathlib import Path
from typing import Any

from fcompress.archive import read_archive, write_archive
from fcompress.errors import CheckpointError, TrainingError

RESUME_FORMAT = 1


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
        known = state["format"] == RESUME_FORMAT
        saved = state["run"] if known else {}
    except (CheckpointError, TypeError, KeyError) as error:
        raise TrainingError(f"{path} is truncated or damaged; delete it and start anew") from error
    if not known:
        raise TrainingError(
            f"{path} was written by another version of fcompress; finish it with that version, or "
            "delete it to start anew"
        )
    different = [
        f"{name} was {saved.get(name)!r}, now {value!r}"
        for name, value in run.items()
        if saved.get(name) != value
    ]
    if different:
        raise TrainingError(
            f"{path} belongs to another run ({'; '.join(different)}); give its settings, or delete "
            "it to start anew"
        )
    return state


def write_resume(out: Path, run: dict[str, Any], state: dict[str, Any]) -> None:
    """Keep what is needed to go on: tensors and plain values only."""
    write_archive(resume_file(out), {"format": RESUME_FORMAT, "run": run, **state})
