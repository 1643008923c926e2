"""Benchmarks: what the methods reach, and times as ratios side by side in one run."""

import json
import os
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import click
import torch
import torch_pruning
import torchvision

import fcompress
from benchmarks import effort, stacked
from benchmarks.quality import run as quality
from benchmarks.quality.methods import NAMES as METHODS_COMPARED
from benchmarks.quality.methods import QUICK as QUICK_METHODS
from benchmarks.quality.networks import NETWORKS as NETWORKS_COMPARED
from benchmarks.quality.networks import QUICK as QUICK_NETWORKS

RESULTS = Path(__file__).parent / "results"
EFFORT = ("mlp", "alexnet", "resnet20")


@click.group()
def main() -> None:
    """Benchmarks of fcompress."""


@main.command("quality")
@click.option("--networks", help="Comma-separated; default: all.")
@click.option("--methods", "chosen", help="Comma-separated; default: all.")
@click.option("--quick", is_flag=True, help="Small networks, fewer methods and amounts.")
@click.option("--workers", type=click.IntRange(1), help="Processes; default: one for each core.")
@click.option("--fresh", help="Comma-separated methods whose earlier results are measured again.")
@click.option("--work", type=click.Path(path_type=Path), default=Path("bench-output"))
@click.option("--data-root", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS, help="Of the tables.")
@click.option("--table", is_flag=True, help="Measure nothing: tables of what WORK holds.")
def compare(
    networks: str | None,
    chosen: str | None,
    quick: bool,
    workers: int | None,
    fresh: str | None,
    work: Path,
    data_root: Path | None,
    out: Path,
    table: bool,
) -> None:
    """Smallest network of every method and rival at every tolerance.

    Trains the networks (unless WORK holds them already), searches every method on each in the
    same way and writes quality.md, .json and .png; shipped.md and .json of networks in a cascade
    (METHOD+cascade) and in int8 (METHOD+int8). Run again, it goes on where it was stopped.

        scripts/bench quality --networks mlp,resnet20 --methods tp-l2-layer,factor
    """
    nets = _names(networks, tuple(NETWORKS_COMPARED), QUICK_NETWORKS if quick else None, "network")
    compared = _names(chosen, METHODS_COMPARED, QUICK_METHODS if quick else None, "method")
    records = quality.finished(nets, compared, work) if table else []
    run = quality.run(
        [] if table else nets,
        compared,
        work,
        data_root,
        workers=workers or os.cpu_count() or 1,
        few=quick,
        fresh=_names(fresh, METHODS_COMPARED, (), "method"),
    )
    try:
        for record in run:
            records.append(record)
            click.echo(quality.line(record))
    except fcompress.FcompressError as error:
        raise click.ClickException(str(error)) from error
    if not records:
        raise click.ClickException(f"{work} holds no results; run the command without --table")
    words = [Path(sys.argv[0]).name.removesuffix(".py"), *sys.argv[1:]]
    for path in quality.save(records, out, f"scripts/{shlex.join(words)}"):
        click.echo(f"written: {path}")


def _names(
    wanted: str | None, known: Sequence[str], usual: Sequence[str] | None, what: str
) -> list[str]:
    if wanted is None:
        return [n for n in known if usual is None or n in usual]
    names = wanted.split(",")
    strange = [n for n in names if n not in known]
    if strange:
        raise click.UsageError(f"no {what} {strange[0]!r}; expected some of {', '.join(known)}")
    return names


@main.command()
@click.option("--runs", default=3, show_default=True)
def speed(runs: int) -> None:
    """Find the groups of torchvision networks: fcompress (with proof) and torch-pruning's graph.

    Times are medians of interleaved runs, in units of one plain forward of the same two images.
    """
    rows = []
    for name in ("resnet18", "resnet50", "densenet121", "mobilenet_v3_small"):
        model = torchvision.models.get_model(name, weights=None).eval()
        example = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
        jobs: dict[str, Callable[[], object]] = {
            "forward": lambda m=model, x=example: m(x),
            "fcompress": lambda m=model, x=example: fcompress.find_groups(m, x),
            "torch-pruning": lambda m=model, x=example: _their_groups(m, x),
        }
        times: dict[str, list[float]] = {job: [] for job in jobs}
        with torch.no_grad():
            jobs["forward"]()
            for _ in range(runs):
                for job, work in jobs.items():
                    begin = time.perf_counter()
                    with torch.set_grad_enabled(job == "torch-pruning"):
                        work()
                    times[job].append(time.perf_counter() - begin)
        middle = {job: sorted(mine)[len(mine) // 2] for job, mine in times.items()}
        ratio = {job: t / middle["forward"] for job, t in middle.items()}
        rows.append({"network": name, "seconds": middle, "in_forwards": ratio})
        click.echo(
            f"{name}: one forward {middle['forward']:.2f} s; groups proven by fcompress in "
            f"{ratio['fcompress']:.1f} forwards, torch-pruning's graph (nothing proven) in "
            f"{ratio['torch-pruning']:.1f}"
        )
    RESULTS.mkdir(exist_ok=True)
    _write(RESULTS / "speed.json", json.dumps(rows, indent=1) + "\n")


@main.command("effort")
@click.option("--work", type=click.Path(path_type=Path), default=Path("bench-output"))
@click.option("--data-root", type=click.Path(path_type=Path))
@click.option("--tol", default=0.05, show_default=True)
def cost_of_shrinking(work: Path, data_root: Path | None, tol: float) -> None:
    """What `shrink` costs, in plain forward sweeps over the calibration and search data.

    Processor time of one shrink from end to end, of the linear algebra in it (ranking units and
    solving for weights), and of one sweep of the wide network in the same process.
    """
    work.mkdir(exist_ok=True)
    rows = []
    for network in EFFORT:
        row = effort.measure(network, work, data_root, tol)
        rows.append(row)
        click.echo(effort.line(row))
    RESULTS.mkdir(exist_ok=True)
    _write(RESULTS / "effort.json", json.dumps(rows, indent=1) + "\n")


@main.command("stacked")
@click.option("--out", type=click.Path(path_type=Path), help="Write the rows as JSON, too.")
def stacked_training(out: Path | None) -> None:
    """Many small MLPs trained one after another and as one stack: processor time, one thread."""
    rows = []
    for shape in stacked.SHAPES:
        rows.append(stacked.measure(*shape))
        click.echo(stacked.line(rows[-1]))
    if out is not None:
        _write(out, json.dumps(rows, indent=1) + "\n")


def _their_groups(model: torch.nn.Module, example: torch.Tensor) -> int:
    graph = torch_pruning.DependencyGraph().build_dependency(model, example_inputs=example)
    return sum(1 for _ in graph.get_all_groups())


def _write(path: Path, text: str) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(text)
    part.replace(path)


if __name__ == "__main__":
    main()
