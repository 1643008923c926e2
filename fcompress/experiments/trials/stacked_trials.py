"""Trials of small MLPs that are trained together, as one program on stacked parameters."""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from fcompress.data import Splits
from fcompress.experiments.trials.stacked import Run, train_stacked
from fcompress.experiments.trials.trial import Record, config_of, data_of, finished, network_of
from fcompress.models.mlp import MLP

# Numbers in the weights of all networks that are trained at once; an optimizer doubles or triples
# what that takes.
MOST_NUMBERS = 100_000_000
_SEED = re.compile(r",seed=\d+")


def stack_key(work: Record) -> str | None:
    """What trials must have in common to be trained together; None for one that trains alone.

    They may differ in their seeds, their initial weights and their learning rates.
    """
    if work["family"] != "mlp" or work["train"] is None or work["random_labels"] is not None:
        return None
    args = {name: value for name, value in work["args"].items() if name != "init"}
    train = {**work["train"], "lr": None}
    same = {**work, "seed": None, "args": args, "train": train, "data": _SEED.sub("", work["data"])}
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
    networks: dict[str, MLP] = {}
    runs = []
    for work in works:
        spec = work["data"]
        if spec not in data:
            data[spec] = data_of(work, root)
        # Networks that differ in their learning rate only begin with the same weights, which
        # training leaves alone.
        key = json.dumps([work["args"], work["seed"], spec])
        if key not in networks:
            network = network_of(work, data[spec])
            assert isinstance(network, MLP)
            networks[key] = network
        runs.append(Run(networks[key], data[spec], config_of(work, device)))
    attempts = [done for part in _parts(runs) for done in train_stacked(part)]
    return [
        finished(work, data[work["data"]], attempt, device)
        for work, attempt in zip(works, attempts, strict=True)
    ]


def _parts(runs: Sequence[Run]) -> Iterator[list[Run]]:
    """Runs in as few parts as memory allows."""
    numbers = sum(p.numel() for p in runs[0].model.parameters())
    most = max(1, MOST_NUMBERS // numbers)
    for start in range(0, len(runs), most):
        yield list(runs[start : start + most])
