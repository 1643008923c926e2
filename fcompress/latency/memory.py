"""The memory that a network takes, in a process of its own.

What a process holds beside the network (Python, torch, onnxruntime) is left out: the file is
opened and run once, forgotten, and what opening and running it again adds is measured. Pages that
a process has are only counted where the system tells the highest number since a moment (Linux).
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from fcompress.data.packing import Packing
from fcompress.errors import FcompressError
from fcompress.forward.predictor import Predictor
from fcompress.latency.entries import Entry, ready

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_PEAK = "5"
_CODE = "from fcompress.latency.memory import child; child()"
_FIRST, _SECOND = 3, 2  # passes before anything is measured, and while it is


def peaks(
    entry: Entry,
    batches: Mapping[int, Tensor],
    packing: Packing | None,
    threads: int,
    device: str,
) -> dict[int, int] | None:
    """Bytes that a file adds to a process at most, by size of batch.

    Args:
        entry: The file.
        batches: Inputs of each size.
        packing: How several inputs lie in one tensor.
        threads: Of torch and onnxruntime.
        device: Of the network.

    Returns:
        None for a network in memory or a compiled one, and where the system does not tell.

    Raises:
        FcompressError: The file does not run in another process.
    """
    if not entry.file or entry.compiled or not _CLEAR.exists():
        return None
    handle, name = tempfile.mkstemp(suffix=".json")
    os.close(handle)
    try:
        order = dict(sorted(batches.items()))
        given = pickle.dumps((entry, order, packing, threads, device, name))
        done = subprocess.run([sys.executable, "-c", _CODE], input=given, capture_output=True)
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip().splitlines() or ["it was killed"]
            raise FcompressError(
                f"{entry.name}: its memory cannot be measured in another process: "
                f"{said[-1][:300]}; leave memory out (--no-memory)"
            )
        return {int(size): found for size, found in json.loads(Path(name).read_bytes()).items()}
    finally:
        Path(name).unlink(missing_ok=True)


def child() -> None:
    """What the other process does: reads what `peaks` wrote to it, and answers in a file."""
    entry, batches, packing, threads, device, name = pickle.load(sys.stdin.buffer)
    torch.set_num_threads(threads)
    smallest = next(iter(batches.values()))
    _run(_opened(entry, packing, device), smallest, _FIRST)
    found: dict[int, int] = {}
    _forget()
    before = _held(device, peak=False)
    predictor = _opened(entry, packing, device)
    for size, batch in batches.items():
        _forget()
        _reset(device)
        _run(predictor, batch, _SECOND)
        found[size] = max(_held(device, peak=True) - before, 0)
    Path(name).write_text(json.dumps(found))


def _opened(entry: Entry, packing: Packing | None, device: str) -> Predictor:
    return Predictor(ready(entry, device), packing)


def _run(predictor: Predictor, batch: Tensor, times: int) -> None:
    with predictor.evaluating():
        for _ in range(times):
            predictor(predictor.place(batch))


def _forget() -> None:
    """Give memory back to the system that nothing uses."""
    gc.collect()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _on_gpu(device: str) -> bool:
    return device != "cpu" and torch.cuda.is_available()


def _reset(device: str) -> None:
    """Let the highest number be of what comes now."""
    _CLEAR.write_text(_RESET_PEAK)
    if _on_gpu(device):
        torch.cuda.reset_peak_memory_stats()


def _held(device: str, *, peak: bool) -> int:
    """Bytes that this process holds, on a GPU those of torch there too; or the highest number."""
    wanted = "VmHWM:" if peak else "VmRSS:"
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(wanted))
    held = int(line.split()[1]) << 10
    if _on_gpu(device):
        held += torch.cuda.max_memory_allocated() if peak else torch.cuda.memory_allocated()
    return held
