"""`bench effort`: what one shrink costs, beside plain forward sweeps in the same process."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

import fcompress
from benchmarks.quality.networks import trained
from fcompress.compress import methods
from fcompress.compress.refitting import reconstruct


def measure(network: str, work: Path, root: Path | None, tol: float) -> dict[str, Any]:
    """Shrink one network and count.

    Args:
        network: In `quality.networks.NETWORKS`; trained if WORK does not hold it.
        work: Folder of checkpoints.
        root: Of the data; None for the usual place.
        tol: Tolerance.
    """
    wide: Any = fcompress.load(trained(network, work, root)).eval()
    splits = fcompress.load_data("fashion-mnist", root=root, like=wide.origin["data"])
    solves: list[float] = []
    with (
        patch.object(reconstruct, "fit", _timed(reconstruct.fit, solves)),
        patch.object(methods, "weighted", _timed(methods.weighted, solves)),
    ):
        begin = time.process_time()
        result = fcompress.shrink(wide, splits, tol)
        total = time.process_time() - begin
    inputs = [x for x, _ in splits.need("calibration").batches(64, limit=result.calibration)]
    inputs += [x for x, _ in splits.need("search").batches(256)]
    with torch.no_grad():
        begin = time.process_time()
        for x in inputs:
            wide(x)
        sweep = time.process_time() - begin
    return {
        "network": network,
        "tolerance": tol,
        "examples": sum(map(len, inputs)),
        "sweep_seconds": sweep,
        "sweeps": total / sweep,
        "solve_sweeps": sum(solves) / sweep,
        "macs": result.macs["after"] / result.macs["before"],
        "versions": result.versions,
    }


def line(row: dict[str, Any]) -> str:
    """The row in words."""
    return (
        f"{row['network']}: shrink in {row['sweeps']:.0f} sweeps over {row['examples']:,} examples "
        f"({row['sweep_seconds']:.1f} s each), {row['solve_sweeps']:.0f} of them linear algebra; "
        f"{row['macs']:.1%} of MACs left"
    )


def _timed(function: Callable[..., Any], seconds: list[float]) -> Callable[..., Any]:
    """The function, noting what each call takes of the processor."""

    def call(*args: Any, **kwargs: Any) -> Any:
        begin = time.process_time()
        try:
            return function(*args, **kwargs)
        finally:
            seconds.append(time.process_time() - begin)

    return call
