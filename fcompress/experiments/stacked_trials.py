"""Trials of small MLPs that are trained together, as one program on stacked parameters."""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from fcompress.data import Splits
from fcompress.errors import TrainingError
from fcompress.experiments.stacked import Run, train_stacked
from fcompress.experiments.trials import Record, chosen, configs_of, data_of, network_of
from fcompress.models.mlp import MLP
from fcompress.training import TrainResult

# Numbers in the weights of all networks that are trained at once; an optimizer doubles or triples
# what that takes.
MOST_NUMBERS = 100_000_000
_SEED = re.compile(r",seed=\d+")


def stack_key(work: Record) -> str | None:
    """What trials must have in common to be trained together; None for one that trains alone.

    They may differ in their seeds and in their initial weights.
    """
    if work["family"] != "mlp" or work["train"] is None or work["random_labels"] is not None:
        return None
    args = {name: value for name, value in work["args"].items() if name != "init"}
    same = {**work, "seed": None, "args": args, "data": _SEED.sub("", work["data"])}
    return json.dumps(same, sort_keys=True)


def perform_together(works: Sequence[Record], root: Path | None, device: str) -> list[Record]:
    """Run trials that have a `stack_key` in common; the records are those of `trials.perform`.

    Args:
        works: Of the trials.
        root: Of the data.
        device: As in `TrainConfig`.

    Returns:
        Their records, in order, to rounding the same as if each had been trained alone.
    """
    data: dict[str, Splits] = {}
    runs: list[Run] = []
    for work in works:
        if work["data"] not in data:
            data[work["data"]] = data_of(work, root)
        splits = data[work["data"]]
        # The learning rates of a trial begin with the same weights; training leaves them alone.
        network = network_of(work, splits)
        assert isinstance(network, MLP)
        runs += [Run(network, splits, config) for config in configs_of(work, device)]
    attempts = iter([done for part in _parts(runs) for done in train_stacked(part)])
    records = []
    for work in works:
        configs = configs_of(work, device)
        own: list[TrainResult | TrainingError] = [next(attempts) for _ in configs]
        records.append(chosen(work, data[work["data"]], own, device))
    return records


def _parts(runs: Sequence[Run]) -> Iterator[list[Run]]:
    """Runs in as few parts as memory allows."""
    numbers = sum(p.numel() for p in runs[0].model.parameters())
    most = max(1, MOST_NUMBERS // numbers)
    for start in range(0, len(runs), most):
        yield list(runs[start : start + most])
