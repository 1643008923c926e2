"""How long networks take: the one function that measures it, for reports, limits and `bench`.

Networks take turns, so that whatever else the machine does meets all of them alike. What a network
takes may depend on the examples (a cascade defers some), so every network gets the same batches,
each several times: the median over its runs is what a batch takes, and their mean over batches is
what batches take on average.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fcompress.forward import running
from fcompress.forward.predictor import Predictor, as_predictor
from fcompress.forward.running import own_copies, runs_on

WARM = 2  # first runs, which do not count
LEAST, LEAST_OF_EACH = 5, 3  # runs of a batch, at least: of a single one, and of each of several
LEAST_BATCHES = 8  # that are timed however slow they are


@dataclass(frozen=True)
class Timing:
    """What batches of one size take, in milliseconds.

    Attributes:
        average: Mean over batches of the median of each one's runs.
        lower: A quarter of all runs took at most this long.
        median: Half of all runs did.
        upper: Three quarters did.
        runs: How many there were.
        batches: How many different batches.
    """

    average: float
    lower: float
    median: float
    upper: float
    runs: int
    batches: int


def timed(
    networks: Sequence[nn.Module | Predictor],
    batches: Sequence[Tensor],
    *,
    runs: int = 30,
    seconds: float = 2.0,
) -> list[Timing]:
    """Measure what forward passes take, the networks taking turns at each batch.

    Args:
        networks: To compare.
        batches: Inputs [n, ...] of one size, at least one; of several as many are used as the
            time allows, `LEAST_BATCHES` in any case.
        runs: Most runs of a network on each.
        seconds: Stop after about this long, with at least `LEAST` runs of a single batch and
            `LEAST_OF_EACH` of several.

    Raises:
        UnsupportedNetworkError: A network does not run on the inputs.

    Example:
        >>> small, large = nn.Linear(8, 8), nn.Linear(8, 4096)
        >>> times = timed([small, large], [torch.zeros(64, 8)], seconds=0.1)
        >>> times[0].lower <= times[0].median <= times[0].upper
        True
        >>> times[0].median < times[1].median
        True
    """
    predictors = [as_predictor(network) for network in networks]
    with ExitStack() as stack:
        for predictor in predictors:
            stack.enter_context(predictor.evaluating())
        begin = running.now(_device(predictors, batches[0]))
        for _ in range(WARM):
            turn = [_run(predictor, batches[0], checked=True) for predictor in predictors]
        affordable = seconds / max(LEAST_OF_EACH * sum(turn) / 1e3, 1e-9)
        chosen = batches[: int(max(affordable, LEAST_BATCHES))]
        least = LEAST if len(chosen) == 1 else LEAST_OF_EACH
        times: list[list[list[float]]] = [[[] for _ in chosen] for _ in predictors]
        for done in range(1, runs + 1):
            for number, batch in enumerate(chosen):
                for predictor, mine in zip(predictors, times, strict=True):
                    mine[number].append(_run(predictor, batch))
            if done >= least and running.now(torch.device("cpu")) - begin >= seconds:
                break
    return [_timing(mine) for mine in times]


def _device(predictors: Sequence[Predictor], batch: Tensor) -> torch.device:
    return predictors[0].place(batch).device


def _run(predictor: Predictor, batch: Tensor, *, checked: bool = False) -> float:
    """Milliseconds of one pass; what it is given is ready before the clock starts."""
    network, scoring = predictor.network, predictor.scoring
    placed = predictor.place(batch)
    args, kwargs = predictor.unpacked(network, own_copies(placed))
    with ExitStack() as stack:
        if checked:
            stack.enter_context(runs_on(placed))
        begin = running.now(placed.device)
        scoring.run(network, *args, **kwargs)
        return 1e3 * (running.now(placed.device) - begin)


def _timing(of_batches: Sequence[Sequence[float]]) -> Timing:
    every = sorted(time for mine in of_batches for time in mine)
    lower, median, upper = every[0], every[0], every[0]
    if len(every) > 1:
        lower, median, upper = statistics.quantiles(every, n=4, method="inclusive")
    average = statistics.fmean(statistics.median(mine) for mine in of_batches)
    return Timing(average, lower, median, upper, len(every), len(of_batches))


def latency(models: Sequence[nn.Module | Predictor], example: Tensor, **limits: Any) -> list[float]:
    """Median milliseconds of one forward, the networks taking turns.

    Args:
        models: Networks to compare, on one device.
        example: The batch that each run gets.
        **limits: `runs` and `seconds` of `timed`.

    Returns:
        Median milliseconds a forward for each network.
    """
    return [found.median for found in timed(models, [example], **limits)]


def single_latency(networks: Sequence[nn.Module | Predictor], examples: Tensor) -> list[float]:
    """Mean milliseconds of one example alone, the networks taking turns.

    The mean over examples, not the median: a cascade takes little time for most and much for a few.

    Args:
        networks: On one device.
        examples: [n, ...]; as many are timed as time allows.
    """
    found = timed(networks, examples.split(1), runs=LEAST_OF_EACH, seconds=4.0)
    return [one.average for one in found]
