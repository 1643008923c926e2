"""`bench quality`: the smallest network of every method at every tolerance, side by side.

Same checkpoints, same calibration inputs, same search, same test images for all methods. Every
network that is measured is written down at once, so that a killed run goes on where it was.
"""

import datetime
import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

import fcompress
from benchmarks.quality import report as quality_report
from benchmarks.quality import shipped, shipped_report
from benchmarks.quality.methods import KIND, METHODS, NAMES, SHIPPED, base_of
from benchmarks.quality.networks import NETWORKS, Case, case_of, labels_of, trained, write_whole
from benchmarks.quality.search import (
    FEW_STEPS,
    MORE_STEPS,
    POLISH_STEPS,
    STEPS,
    TOLERANCES,
    Evaluation,
    search,
    smallest,
)
from benchmarks.rivals.base import Rival

SIZES = ("macs", "params")
# Multiply-adds of a network that more amounts can be tried on, and of one that fewer can.
CHEAP, DEAR = 1e7, 5e7


@dataclass(frozen=True)
class Job:
    """One method on one network; everything that a process needs to know.

    Attributes:
        network: In `quality.networks.NETWORKS`.
        method: In `quality.methods.NAMES`.
        work: Folder of checkpoints and records.
        root: Of the data; None for the usual place.
        few: Whether to try fewer amounts.
    """

    network: str
    method: str
    work: Path
    root: Path | None
    few: bool

    @property
    def path(self) -> Path:
        return self.work / "quality" / self.network / f"{self.method}.json"


def run(
    networks: Sequence[str],
    methods: Sequence[str],
    work: Path,
    root: Path | None,
    *,
    workers: int,
    few: bool,
    fresh: Sequence[str] = (),
) -> Iterator[dict[str, Any]]:
    """Measure every method on every network.

    Args:
        networks: Names; missing checkpoints are trained, one after the other, before the rest.
        methods: Names.
        work: Folder of checkpoints and records.
        root: Of the data.
        workers: Processes, of one thread each.
        few: Whether to try fewer amounts.
        fresh: Methods whose records are thrown away first.

    Yields:
        The record of each method on each network, as they finish.
    """
    work = work.resolve()
    jobs = [Job(n, m, work, root, few) for n in networks for m in methods]
    for job in jobs:
        job.path.parent.mkdir(parents=True, exist_ok=True)
        if job.method in fresh:
            job.path.unlink(missing_ok=True)
    # A polished network starts from those that the method found without: these come first.
    phases = [
        [j for j in jobs if base_of(j.method) is None],
        [j for j in jobs if base_of(j.method) is not None],
    ]
    with _processes(workers) as pool:
        list(pool.map(trained, networks, [work] * len(networks), [root] * len(networks)))
        for phase in phases:
            futures: list[Future[dict[str, Any]]] = [pool.submit(measured, job) for job in phase]
            for future in as_completed(futures):
                yield future.result()


def finished(networks: Sequence[str], methods: Sequence[str], work: Path) -> list[dict[str, Any]]:
    """The records of earlier runs that are complete, without measuring anything."""
    paths = [Job(n, m, work, None, False).path for n in networks for m in methods]
    records = [json.loads(path.read_text()) for path in paths if path.exists()]
    return [record for record in records if "smallest" in record]


def measured(job: Job) -> dict[str, Any]:
    """The record of a job, finished; what an earlier run measured is kept."""
    case = case_of(job.network, job.work, job.root)
    rival = SHIPPED.get(job.method) or METHODS[job.method]
    facts = {**case.facts, "method": job.method, "summary": rival.summary}
    record = _earlier(job.path, facts) or {
        "facts": facts,
        "kind": KIND[job.method],
        "wide": {"macs": case.macs, "params": case.params, "accuracy": case.accuracy},
        "evaluations": [],
        "test": {},
    }

    def save() -> None:
        record["date"] = datetime.date.today().isoformat()
        write_whole(job.path, (json.dumps(record, indent=1) + "\n").encode())

    if isinstance(rival, shipped.Shipped):
        shipped.fill(record, rival, case, save)
    else:
        _fill(record, rival, job, case, save)
    return record


def _fill(
    record: dict[str, Any], rival: Rival, job: Job, case: Case, save: Callable[[], None]
) -> None:
    """Measure what a record of thin networks does not hold yet."""
    networks: dict[float, nn.Module] = {}
    first = _amounts_of_base(job, case)

    def evaluate(amount: float) -> Evaluation:
        for known in record["evaluations"]:
            if known["amount"] == amount:
                return Evaluation(**known)
        found, network = _evaluate(rival, case, amount)
        if network is not None:
            networks[amount] = network
        record["evaluations"].append(found.to_dict())
        _forget(networks, [Evaluation(**e) for e in record["evaluations"]])
        save()
        return found

    tried = search(evaluate, POLISH_STEPS if first else _steps(job, case), first)
    for amount in sorted(_chosen(tried)):
        if str(amount) not in record["test"]:
            network = networks.pop(amount, None) or rival.make(case.setting, amount)
            record["test"][str(amount)] = _tested(network, case)
            save()
    errors = [e.error for e in tried if e.error]
    record["failed"] = errors[0] if len(errors) == len(tried) else None
    record["smallest"] = {
        by: {f"{t:g}": _amount(smallest(tried, t, by)) for t in TOLERANCES} for by in SIZES
    }
    save()


def _steps(job: Job, case: Case) -> Mapping[float, int]:
    """How many networks to try: more where they cost little, the same for all methods."""
    if job.few or case.macs > DEAR:
        return FEW_STEPS
    return MORE_STEPS if case.macs < CHEAP else STEPS


def _evaluate(rival: Rival, case: Case, amount: float) -> tuple[Evaluation, nn.Module | None]:
    begin = time.perf_counter()
    try:
        network = rival.make(case.setting, amount)
        cost = fcompress.count(network, case.search[0])
        changed = int((labels_of(network, case.search) != case.search_labels).sum())
    except Exception as error:  # whatever a method fails with is its result
        message = " ".join(str(error).split())[:200]
        reason = f"{type(error).__name__}: {message}"
        n = len(case.search_labels)
        return Evaluation(amount, 0, 0, 0, n, time.perf_counter() - begin, reason), None
    seconds = time.perf_counter() - begin
    n = len(case.search_labels)
    return Evaluation(amount, cost.macs, cost.params, changed, n, seconds), network


def _tested(network: nn.Module, case: Case) -> dict[str, float]:
    labels = labels_of(network, tuple(x for x, _ in case.test))
    true = torch.cat([y for _, y in case.test])
    return {
        "n": len(labels),
        "agreement": float((labels == case.test_labels).double().mean()),
        "accuracy": float((labels == true).double().mean()),
    }


def _chosen(tried: Sequence[Evaluation]) -> set[float]:
    found = (smallest(tried, t, by) for t in TOLERANCES for by in SIZES)
    return {e.amount for e in found if e is not None}


def _forget(networks: dict[float, nn.Module], tried: Sequence[Evaluation]) -> None:
    """Keep in memory only the networks that would be chosen now."""
    for amount in networks.keys() - _chosen(tried):
        del networks[amount]


def _amount(evaluation: Evaluation | None) -> float | None:
    return None if evaluation is None else evaluation.amount


def _amounts_of_base(job: Job, case: Case) -> list[float]:
    """Where polishing begins: the amounts chosen without it, one for each tolerance."""
    base = base_of(job.method)
    if base is None:
        return []
    record = measured(Job(job.network, base, job.work, job.root, job.few))
    amounts = {record["smallest"]["macs"][f"{t:g}"] for t in TOLERANCES}
    return sorted(a for a in amounts if a is not None)


def _earlier(path: Path, facts: dict[str, Any]) -> dict[str, Any] | None:
    """What an earlier run wrote down about the very same thing."""
    if not path.exists():
        return None
    record = json.loads(path.read_text())
    return record if record["facts"] == json.loads(json.dumps(facts)) else None


def _processes(workers: int) -> ProcessPoolExecutor:
    os.environ["OMP_NUM_THREADS"] = "1"  # read when a process starts
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, context, initializer=torch.set_num_threads, initargs=(1,))


def in_order(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """By network and method, however they finished."""

    def place(record: dict[str, Any]) -> tuple[int, int]:
        facts = record["facts"]
        return list(NETWORKS).index(facts["network"]), NAMES.index(facts["method"])

    return sorted(records, key=place)


def line(record: dict[str, Any]) -> str:
    """One line for the terminal."""
    facts = record["facts"]
    head = f"{facts['network']} {facts['method']}:"
    if record["failed"]:
        return f"{head} fails: {record['failed']}"
    if "form" in record:
        return f"{head} {shipped_report.in_words(record)}"
    rows = quality_report.rows_of([record])
    shares = ", ".join(
        f"{1 - r['tolerance']:g} {'none' if r['macs'] is None else format(r['macs'], '.1%')}"
        for r in rows
    )
    seconds = sum(e["seconds"] for e in record["evaluations"])
    return f"{head} MACs kept at {shares} ({seconds:.0f} s)"


def save(records: Sequence[dict[str, Any]], folder: Path, command: str) -> list[Path]:
    """Write the tables: of thin networks, and of what is shipped of them.

    Returns:
        The pages that were written.
    """
    placed = in_order(records)
    thin = [r for r in placed if "form" not in r]
    others = [r for r in placed if "form" in r]
    written = []
    if thin:
        quality_report.save(thin, folder, command)
        written.append(folder / "quality.md")
    if others:
        shipped_report.save(others, folder, command)
        written.append(folder / "shipped.md")
    return written
