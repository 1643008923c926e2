"""The folder of a recipe's results.

recipe.json     what was asked for; says whose folder this is
trials/*.json   one record each, written whole or not at all
scratch/        what trials that were killed go on with
log.jsonl       when each trial ended and how long it took
figures/        PNG and SVG
written.json    which files a report wrote: only these are ever replaced or removed
written.json    which files a report wrote, so that only these are replaced and removed
results.json    all trials and tables
summary.md      one page
"""

import datetime
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fcompress.errors import FcompressError
from fcompress.experiments.recipe import Recipe, recipe_of
from fcompress.experiments.trials import engines
from fcompress.experiments.trials.trial import FORMAT, Record, Trial, data_of, trials_of
from fcompress.formats.atomic import alone_in, make_folder, write_atomic
from fcompress.formats.places import real_path
from fcompress.showing.progress import Progress, Report, silent

MANIFEST = "recipe.json"


@dataclass(frozen=True)
class Results:
    """A recipe with the records of its trials.

    Attributes:
        recipe: What was asked for.
        command: That asked for it.
        trials: Every trial of it.
        records: Trial id -> record, of those that are finished.
    """

    recipe: Recipe
    command: str
    trials: tuple[Trial, ...]
    records: dict[str, Record]

    def of(self, curve: str, width: float) -> list[Record]:
        """Records of a curve's networks of one width, by seed.

        With several learning rates those of the best one: the highest test accuracy, averaged
        over the networks ("Best" in the paper's Table 1), among the rates at which all of the
        networks that are finished converged; the first of several.
        """
        by_rate: dict[float | None, list[Record | None]] = {}
        for trial in sorted(self.trials, key=lambda t: t.seed):
            if (trial.curve, trial.width) == (curve, width):
                rate = None if trial.work["train"] is None else trial.work["train"]["lr"]
                by_rate.setdefault(rate, []).append(self.records.get(trial.id))
        if len(by_rate) == 1:
            (only,) = by_rate.values()
            return [r for r in only if r is not None and "failed" not in r]
        best: list[Record] = []
        for found in by_rate.values():
            good = [r for r in found if r is not None and "failed" not in r]
            if len(good) == len(found) and (not best or _accuracy(good) > _accuracy(best)):
                best = good
        return best

    def measured(self, measure: str, width: float) -> list[Record]:
        """What a measure gave for the first curve's networks of one width, by seed."""
        found = self.of(self.recipe.curves[0].name, width)
        return [record["measure"][measure] for record in found]

    @property
    def missing(self) -> int:
        """Trials that are not finished."""
        return sum(trial.id not in self.records for trial in self.trials)

    @property
    def failed(self) -> dict[str, str]:
        """Trials whose training did not converge: what, and why."""
        records = [(t.id, self.records.get(t.id, {})) for t in self.trials]
        return {name: record["failed"] for name, record in records if "failed" in record}


def run(
    recipe: Recipe,
    out: Path,
    *,
    command: str = "",
    trials: Path | None = None,
    networks: Path | None = None,
    workers: int = 1,
    cluster: str | None = None,
    root: Path | None = None,
    device: str = "auto",
    progress: Report = silent,
) -> Results:
    """Run what is missing of a recipe.

    Args:
        recipe: Which one.
        out: Folder of the results; made if it is not there.
        command: Said in the report; "" for the one without changes to the recipe.
        trials: Folder of the records; None for the one in `out`. Recipes that share one share
            the trials that they have in common.
        networks: Folder to keep trained networks in; one that is there is not trained again,
            whatever is measured of it. On a cluster all machines must see it. None keeps none.
        workers: Trials at once.
        cluster: Of a Ray cluster, see `engines.run_on_cluster`; None for this machine.
        root: Folder in which datasets are looked for first.
        device: "cpu", "cuda" or "auto".
        progress: Told of every finished trial.

    Raises:
        FcompressError: The folder holds other results or another run works in it, a record is
            damaged, data is missing, or a worker was killed. What is finished by then is kept.
    """
    every = trials_of(recipe)
    pool = _open(recipe, out, command, trials)
    with alone_in(out):
        known = _records(every, pool)  # a damaged one is found now, not when all others are done
        left = [t for t in every if t.id not in known]
        for work in {t.work["data"].partition(":")[0]: t.work for t in left}.values():
            if not work["data"].startswith("gaussian"):
                data_of(work, root)  # says now, not in a worker, what is missing
        scratch = None if cluster else out / "scratch"
        if networks is not None:
            networks = real_path(networks)
            make_folder(networks)
        jobs = engines.jobs_of(left, scratch, networks, root, device)
        if cluster is not None:
            running = engines.run_on_cluster(jobs, cluster, workers)
        elif workers == 1:
            running = engines.run_here(jobs)
        else:
            running = engines.run_in_processes(jobs, min(workers, max(len(jobs), 1)))
        total, done = len({t.id for t in every}), len(known)
        for finished in running:
            for name, record in zip(finished.ids, finished.records, strict=True):
                write_json(pool / f"{name}.json", record)
                if scratch is not None:
                    shutil.rmtree(scratch / name, ignore_errors=True)
                done += 1
                seconds = finished.seconds / len(finished.ids)
                line = f"{done}/{total} {name} ({seconds:.1f} s)"
                progress(Progress(name, done, total, "trials", line))
            _log(out, finished)
        shutil.rmtree(out / "scratch", ignore_errors=True)  # a killed run may have left something
    return load(out)


def load(out: Path) -> Results:
    """Read a folder of results, whole or not.

    Raises:
        FcompressError: It is none, or of another version, or a record is damaged.
    """
    manifest = _manifest(out)
    if manifest is None:
        raise FcompressError(f"{out} holds no results: there is no {MANIFEST} in it")
    recipe = recipe_of(manifest["recipe"])
    trials = tuple(trials_of(recipe))
    command = (
        manifest.get("command") or f"fcompress recipe run {recipe.name} --scale {recipe.scale}"
    )
    return Results(recipe, command, trials, _records(trials, _pool(out, manifest)))


def write_json(path: Path, record: Any) -> None:
    """Write plain values, whole or not at all."""
    write_atomic(path, lambda file: file.write(json_bytes(record)))


def json_bytes(record: Any) -> bytes:
    """Plain values as the files of results hold them."""
    return (json.dumps(record, indent=1, sort_keys=True) + "\n").encode()


def _open(recipe: Recipe, out: Path, command: str, trials: Path | None) -> Path:
    """Check whose folder this is, or make it ours; returns the folder of the records."""
    manifest = _manifest(out)
    wanted = json.loads(json.dumps(recipe.to_dict()))
    if manifest is None:
        pool = trials or out / "trials"
        make_folder(out)
        if any(p for p in out.iterdir() if p.name != "trials"):
            raise FcompressError(
                f"{out} is not empty and holds no results of a recipe; choose another --out"
            )
        make_folder(pool)
        where = None if trials is None else os.path.relpath(real_path(pool), real_path(out))
        write_json(
            out / MANIFEST,
            {"format": FORMAT, "command": command, "recipe": wanted, "trials": where},
        )
        return pool
    held = manifest["recipe"]
    for key in ("name", "scale"):
        if held[key] != wanted[key]:
            raise FcompressError(
                f"{out} holds results of recipe {held['name']} at scale {held['scale']}, not of "
                f"{wanted['name']} at {wanted['scale']}; choose another --out"
            )
    if held["curves"] != wanted["curves"]:
        raise FcompressError(
            f"{out} holds results of recipe {held['name']} with other settings "
            f"({_difference(held['curves'], wanted['curves'])}); choose another --out, or run it "
            "with the settings it was begun with"
        )
    pool = _pool(out, manifest)
    if trials is not None and real_path(trials) != real_path(pool):
        raise FcompressError(
            f"the trials of {out} are in {real_path(pool)}; give that folder as --trials, or none"
        )
    if (held, manifest.get("command")) != (wanted, command):  # only what is drawn or said
        write_json(out / MANIFEST, {**manifest, "recipe": wanted, "command": command})
    return pool


def _manifest(out: Path) -> Record | None:
    path = out / MANIFEST
    if not path.exists():
        return None
    found = _read(path)
    if not isinstance(found, dict) or not {"format", "recipe", "trials"} <= found.keys():
        raise FcompressError(f"{path} says nothing about results; choose another folder")
    if found["format"] != FORMAT:
        raise FcompressError(
            f"{out} holds results of format {found['format']}, and this version writes "
            f"{FORMAT}; choose another --out, or use the version that made them"
        )
    try:
        recipe_of(found["recipe"])
    except (TypeError, KeyError, AttributeError) as error:
        raise FcompressError(f"{path} holds no recipe ({error}); choose another folder") from error
    return found


def _accuracy(records: list[Record]) -> float:
    """Mean test accuracy."""
    return sum(record["train"]["test_accuracy"] or 0.0 for record in records) / len(records)


def _pool(out: Path, manifest: Record) -> Path:
    """Folder of the records: its place is kept relative, so that both can be moved together."""
    return real_path(out) / (manifest["trials"] or "trials")


def _difference(held: Any, wanted: Any, place: str = "curves") -> str:
    """Where two plain values first differ, in words."""
    if isinstance(held, dict) and isinstance(wanted, dict):
        for key in [*held, *wanted]:
            if held.get(key) != wanted.get(key):
                return _difference(held.get(key), wanted.get(key), str(key))
    if isinstance(held, list) and isinstance(wanted, list) and len(held) == len(wanted):
        for one, other in zip(held, wanted, strict=True):
            if one != other:
                return _difference(one, other, place)
    return f"{place}: {json.dumps(held)[:60]}, not {json.dumps(wanted)[:60]}"


def _records(trials: Sequence[Trial], pool: Path) -> dict[str, Record]:
    """Trial id -> record, of those that are finished."""
    records = {}
    for trial in trials:
        path = pool / f"{trial.id}.json"
        if trial.id not in records and path.exists():
            record = _read(path)
            if not isinstance(record, dict) or record.get("work") != trial.work:
                raise FcompressError(
                    f"{path} is no record of this trial; delete it and run the recipe again"
                )
            records[trial.id] = record
    return records


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise FcompressError(
            f"{path} cannot be read ({error}); delete it and run the recipe again"
        ) from error


def _log(out: Path, finished: engines.Done) -> None:
    """One line for each job; a line that a full disk cuts off costs nothing but itself."""
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    line = {"ended": now, "trials": finished.ids, "seconds": round(finished.seconds, 2)}
    path = out / "log.jsonl"
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
    except OSError as error:
        raise FcompressError(f"cannot write {path}: {error.strerror}") from error
