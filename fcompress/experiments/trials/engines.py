"""Engines: run trials in this process, in several on this machine, or on several machines.

Every engine takes the same trials and gives the same records: a worker has one thread, and what
it does depends on the trial alone. Trials of small MLPs that differ in little but their seeds go
to a worker together and are trained as one program (`stacked`).
"""

import itertools
import logging
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import torch

from fcompress.errors import FcompressError
from fcompress.experiments.trials.stacked_trials import perform_together, stack_key
from fcompress.experiments.trials.trial import Record, Trial, network_name, perform


@dataclass(frozen=True)
class Job:
    """What a worker does in one go.

    Attributes:
        ids: Of the trials.
        works: What they are; several only if they can be trained together.
        out: File of the trained network, see `perform`; None where there is none.
        root: Of the data.
        device: As in `TrainConfig`.
    """

    ids: tuple[str, ...]
    works: tuple[Record, ...]
    out: Path | None
    root: Path | None
    device: str


@dataclass(frozen=True)
class Done:
    """The records of a job, in the order of its trials, and the seconds it took."""

    ids: tuple[str, ...]
    records: tuple[Record, ...]
    seconds: float


def jobs_of(
    trials: Sequence[Trial],
    scratch: Path | None,
    networks: Path | None,
    root: Path | None,
    device: str,
) -> list[Job]:
    """Trials as jobs, in their order; trials with the same work are one.

    Args:
        trials: What there is to do.
        scratch: Folder for what a killed trial goes on with; None for no such thing.
        networks: Folder to keep every trained network in, each in a file of its own, for which
            each is trained by itself; None to keep none.
        root: Of the data.
        device: As in `TrainConfig`.
    """
    unique = list({trial.id: trial for trial in trials}.values())
    bundles: dict[str, list[Trial]] = {}
    for trial in unique:
        together = None if networks is not None else stack_key(trial.work)
        bundles.setdefault(together or trial.id, []).append(trial)
    jobs = []
    for bundle in bundles.values():
        out = None
        if networks is not None:
            out = networks / f"{network_name(bundle[0].work)}.pt"
        elif scratch is not None and len(bundle) == 1:
            out = scratch / bundle[0].id / "network.pt"
        works = tuple(trial.work for trial in bundle)
        jobs.append(Job(tuple(trial.id for trial in bundle), works, out, root, device))
    return jobs


def work_on(job: Job) -> Done:
    """Do a job here and now."""
    begin = time.perf_counter()
    if len(job.works) > 1:
        records = perform_together(job.works, job.root, job.device)
    else:
        records = [perform(job.works[0], job.out, job.root, job.device)]
    return Done(job.ids, tuple(records), time.perf_counter() - begin)


def run_here(jobs: Sequence[Job]) -> Iterator[Done]:
    """One at a time in this process, with one thread as a worker has."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for job in jobs:
            yield work_on(job)
    finally:
        torch.set_num_threads(threads)


def run_in_processes(jobs: Sequence[Job], workers: int) -> Iterator[Done]:
    """In worker processes on this machine; results come as they are ready.

    Raises:
        FcompressError: A worker was killed.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when a process starts
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, initializer=_begin_worker)

    def submit(job: Job) -> Future[Done]:
        # This may start a process. It inherits that it hears no interrupt: Ctrl-C goes to all
        # processes of a terminal, and it is this one that ends the others.
        held = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            return pool.submit(work_on, job)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, held)

    try:
        waiting = iter(jobs)
        # Few are handed over ahead, so that an interrupt leaves nothing in a queue.
        running = {submit(job) for job in itertools.islice(waiting, workers)}
        while running:
            ready, running = wait(running, return_when=FIRST_COMPLETED)
            good = [future for future in ready if future.exception() is None]
            # What is done is handed on before the failure of another is.
            for future in [*good, *(ready - set(good))]:
                yield future.result()
            running |= {submit(job) for job in itertools.islice(waiting, len(good))}
    except BrokenProcessPool as error:
        raise FcompressError(
            "a worker process was killed (by hand, or because memory ran out: take fewer "
            "--workers); what was finished is kept, and the same command goes on from there"
        ) from error
    finally:
        for process in list((pool._processes or {}).values()):
            process.terminate()
        pool.shutdown(wait=True, cancel_futures=True)


def _begin_worker() -> None:
    """One thread; and no worker outlives the process that it works for."""
    torch.set_num_threads(1)
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    """A worker whose parent was killed would train on, into files that a new run works on."""
    multiprocessing.connection.wait([sentinel])
    os._exit(1)


def run_on_cluster(jobs: Sequence[Job], address: str, workers: int) -> Iterator[Done]:
    """On the machines of a Ray cluster; needs the extra `cluster`, here and there.

    Args:
        jobs: What to do; a job that is lost with its machine is done again on another one.
        address: "local" starts Ray on this machine with as many workers; else of a cluster.
        workers: Jobs at once, at most.

    Raises:
        FcompressError: Ray is missing or cannot be reached, or gave a job up.
    """
    try:
        import ray
    except ImportError as error:
        raise FcompressError(
            "a cluster needs Ray: pip install 'fcompress[cluster]' on every machine"
        ) from error
    try:
        ray.init(
            None if address == "local" else address,
            num_cpus=workers if address == "local" else None,
            runtime_env={"env_vars": {"OMP_NUM_THREADS": "1"}},
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise FcompressError(f"no Ray cluster at {address}: {error}") from error
    gpus = 1 if jobs and jobs[0].device == "cuda" else 0
    remote = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=2)(_work_alone)
    try:
        waiting = iter(jobs)
        running = [remote.remote(job) for job in itertools.islice(waiting, workers)]
        while running:
            (ready,), running = ray.wait(running)
            running += [remote.remote(job) for job in itertools.islice(waiting, 1)]
            yield ray.get(ready)
    except ray.exceptions.RayTaskError as error:
        raise error.cause if isinstance(error.cause, FcompressError) else error from None
    except ray.exceptions.RayError as error:
        raise FcompressError(
            f"the cluster gave a trial up ({type(error).__name__}); what was finished is kept, and "
            "the same command goes on from there"
        ) from error
    finally:
        ray.shutdown()


def _work_alone(job: Job) -> Done:
    torch.set_num_threads(1)
    return work_on(job)
