"""The same trials on every engine give the same files, to the byte."""

import importlib.util
import json
import os
import sys
import time
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from fcompress.cli import main
from fcompress.errors import FcompressError
from fcompress.experiments import recipe as recipes
from fcompress.experiments.trials import engines
from fcompress.experiments.trials.engines import Job, jobs_of, run_here, run_in_processes
from fcompress.experiments.trials.stacked_trials import perform_together, stack_key
from fcompress.experiments.trials.trial import perform, trials_of

# Two families, two data sets, trained and not, alone and together: 10 jobs of 16 trials.
MIXED = """
draw = ["accuracy"]
widths = [0.125, 0.25]
measure.analyze = { examples = 30, by_layer = false }
train = { epochs = 1, lr = [0.1, 0.01], schedule = "constant" }

[curves.mlp]
family = "mlp"
data = "gaussian:10,n=200,seed={seed}"
seeds = 2

[curves.mlp-untrained]
family = "mlp"
data = "gaussian:10,n=200,seed={seed}"
train = "none"

[curves.alexnet]
family = "alexnet"
data = "digits"
widths = [0.0625]

[curves.memorising]
family = "mlp"
data = "digits"
random_labels = true

[smoke]
"""


@pytest.fixture
def mixed(tmp_path):
    path = tmp_path / "mixed.toml"
    path.write_text(MIXED)
    return path


def run(recipe, out, *arguments):
    command = ["recipe", "run", str(recipe), "--scale", "smoke", "--device", "cpu"]
    result = CliRunner().invoke(main, [*command, "--out", str(out), *map(str, arguments)])
    assert result.exit_code == 0, (result.output, result.exception)
    return result


def files(folder):
    return {p.name: p.read_bytes() for p in sorted((folder / "trials").iterdir())}


def results(folder):
    paths = [folder / "results.json", *sorted((folder / "figures").iterdir())]
    return {path.name: path.read_bytes() for path in paths}


def children():
    """Processes that this one started and that still run."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == os.getpid() and fields[0] != "Z":
            found.append((int(stat.parent.name), stat.with_name("cmdline").read_bytes()))
    return found


def workers():
    """Of a pool; the tracker of multiprocessing, which stays, is none."""
    return [pid for pid, command in children() if b"spawn_main" in command]


def test_engines_agree(mixed, tmp_path):
    threads = torch.get_num_threads()
    run(mixed, tmp_path / "here", "--workers", 1)
    assert torch.get_num_threads() == threads
    here = files(tmp_path / "here")
    recipe = recipes.read(str(mixed), "smoke")
    ids = {trial.id for trial in trials_of(recipe)}
    assert len(ids) == 16 and set(here) == {f"{name}.json" for name in ids}

    run(mixed, tmp_path / "two", "--workers", 2)
    assert workers() == []
    assert files(tmp_path / "two") == here
    assert results(tmp_path / "two") == results(tmp_path / "here")


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs the extra cluster")
def test_a_cluster_agrees(mixed, tmp_path):
    import ray

    run(mixed, tmp_path / "here", "--workers", 1)
    before = dict(children())
    result = run(mixed, tmp_path / "ray", "--workers", 2, "--cluster", "local")
    assert len(result.stderr.strip().splitlines()) == 16, "progress only"
    assert files(tmp_path / "ray") == files(tmp_path / "here")
    assert results(tmp_path / "ray") == results(tmp_path / "here")
    assert not ray.is_initialized()
    deadline = time.monotonic() + 20
    while set(dict(children())) - set(before) and time.monotonic() < deadline:
        time.sleep(0.1)
    left = {pid: command for pid, command in children() if pid not in before}
    assert not left
    assert not (tmp_path / "ray" / "scratch").exists()


def test_an_unknown_cluster_is_one_line(mixed, tmp_path, monkeypatch):
    """Ray itself would try for minutes."""
    ray = pytest.importorskip("ray")

    def refused(*arguments, **options):
        raise ConnectionError("Could not find any running Ray instance.")

    monkeypatch.setattr(ray, "init", refused)
    command = ["recipe", "run", str(mixed), "--scale", "smoke", "--cluster", "10.0.0.1:6379"]
    result = CliRunner().invoke(main, [*command, "--out", str(tmp_path / "out")])
    assert result.exit_code == 1
    assert result.stderr == (
        "error: no Ray cluster at 10.0.0.1:6379: Could not find any running Ray instance.\n"
    )


def test_no_ray_is_one_line(mixed, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    command = ["recipe", "run", str(mixed), "--scale", "smoke", "--cluster", "local"]
    result = CliRunner().invoke(main, [*command, "--out", str(tmp_path / "out")])
    assert result.exit_code == 1 and "pip install 'fcompress[cluster]'" in result.stderr
    assert len(result.stderr.splitlines()) == 1


# --- together and alone ---------------------------------------------------------------------------


def same_to_rounding(one, other, place=""):
    """Equal but for numbers, which may differ by rounding."""
    if isinstance(one, dict):
        assert one.keys() == other.keys(), place
        for key in one:
            same_to_rounding(one[key], other[key], f"{place}.{key}")
    elif isinstance(one, list):
        assert len(one) == len(other), place
        for number, (a, b) in enumerate(zip(one, other, strict=True)):
            same_to_rounding(a, b, f"{place}[{number}]")
    elif isinstance(one, float):
        assert one == pytest.approx(other, rel=2e-3, abs=2e-4), place
    else:
        assert one == other, place


@pytest.mark.parametrize("curve", ["10 dimensions, s = 1", "10,000 dimensions, s = 1"])
def test_stacked_trials_have_the_records_of_single_ones(curve):
    changes = ["widths=[0.25]", "train.lr=[1.0, 0.1]", "train.epochs=4", f'only=["{curve}"]']
    works = [trial.work for trial in trials_of(recipes.read("fig4d", "smoke", changes))]
    assert len(works) == 4 and len({stack_key(work) for work in works}) == 1
    together = perform_together(works, None, "cpu")
    alone = [perform(work, None, None, "cpu") for work in works]
    for one, other in zip(together, alone, strict=True):
        # A label on the edge may fall to the other side: shares of 100 and of 1,000 examples.
        same_to_rounding(one, other)
    losses = {json.dumps(record["train"]["loss"]) for record in together}
    assert len(losses) == 4, "seeds and learning rates make a difference"


@pytest.mark.parametrize(
    ("change", "together"),
    [
        ({"seed": 5, "data": "gaussian:10,n=200,seed=5"}, True),
        ({"args": {"width": 0.5, "init": "he_normal"}}, True),
        ({"train": {"epochs": 1, "lr": 0.5}}, True),
        ({"args": {"width": 1, "init": "normal_scaled:1"}}, False),
        ({"data": "gaussian:20,n=200,seed=0"}, False),
        ({"train": {"epochs": 2, "lr": 0.1}}, False),
        ({"measure": {"analyze": {"examples": 5}}}, False),
        ({"random_labels": 3}, False),
        ({"train": None}, False),
        ({"family": "alexnet"}, False),
    ],
)
def test_what_is_trained_together(change, together):
    work = {
        "format": 1,
        "family": "mlp",
        "args": {"width": 0.5, "init": "normal_scaled:1"},
        "data": "gaussian:10,n=200,seed=0",
        "random_labels": None,
        "train": {"epochs": 1, "lr": 0.1},
        "seed": 0,
        "measure": {"analyze": {}},
    }
    assert stack_key(work) is not None
    assert (stack_key({**work, **change}) == stack_key(work)) is together


def test_jobs_are_trials_once_and_in_order(mixed):
    every = trials_of(recipes.read(str(mixed), "smoke"))
    jobs = jobs_of([*every, *every], None, None, None, "cpu")
    ids = [name for job in jobs for name in job.ids]
    assert sorted(ids) == sorted({trial.id for trial in every})
    assert sorted(len(job.ids) for job in jobs) == [1] * 8 + [4, 4]
    assert [job.works[0]["args"]["width"] for job in jobs][:2] == [0.25, 0.25]
    for job in jobs:
        assert len(job.works) == len(job.ids)


# --- the pool of processes ------------------------------------------------------------------------


def job(name, **change):
    work = {
        "format": 1, "family": "mlp", "args": {"width": 0.1}, "data": "digits",
        "random_labels": None, "train": None, "seed": 0, "measure": {}, **change,
    }  # fmt: skip
    return Job((name,), (work,), None, None, "cpu")


@pytest.mark.slow
def test_a_mistake_in_a_worker_is_the_error_itself_and_ends_all_workers():
    jobs = [job("good"), job("bad", data="no such data"), *(job(str(i)) for i in range(20))]
    done = []
    with pytest.raises(FcompressError, match="no such data"):
        for finished in run_in_processes(jobs, 1):
            done.append(finished.ids)
    assert done == [("good",)]
    assert workers() == []
    with pytest.raises(FcompressError, match="no such data"):
        list(run_here(jobs[1:]))


@pytest.mark.slow
def test_whoever_stops_listening_leaves_no_worker():
    running = run_in_processes([job(str(i)) for i in range(20)], 1)
    assert next(running).records[0]["params"] > 0
    assert workers()
    running.close()
    assert workers() == []


def test_no_job_starts_no_process(monkeypatch):
    monkeypatch.setattr(engines.ProcessPoolExecutor, "submit", None)
    assert list(run_in_processes([], 2)) == []
