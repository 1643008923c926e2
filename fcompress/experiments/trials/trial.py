"""One trial: a network of one width and one seed, trained and measured.

A trial is plain values in and plain values out, so that it can run in another process or on
another machine. Its identity is the hash of all that decides its result.
"""

import hashlib
import itertools
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fcompress.checkpoints import checkpoint
from fcompress.data import Splits, load_data
from fcompress.errors import FcompressError, TrainingError
from fcompress.experiments.measures.constructions import constructions
from fcompress.experiments.measures.interpretability import visualise
from fcompress.experiments.measures.shrinking_by_width import shrunk
from fcompress.experiments.recipe import Curve, Recipe
from fcompress.forward.cost import count
from fcompress.forward.running import device_of
from fcompress.measure.analysis import analyze, widened_layers
from fcompress.measure.redundancy import measure_redundancy
from fcompress.models import Network, build, families
from fcompress.models.provenance import origin_of, versions
from fcompress.training.config import TrainConfig
from fcompress.training.loop import EpochRecord, TrainResult, accuracy, fitting, train
from fcompress.training.resume import resume_file

# Of what a trial is and of what its record holds; a change makes old records unusable.
FORMAT = 1

Record = dict[str, Any]
Measure = Callable[[nn.Module, Splits, Mapping[str, Any]], Record]


@dataclass(frozen=True)
class Trial:
    """One network of a recipe; with several learning rates to choose from, one for each.

    Attributes:
        curve: Name of its curve.
        width: Its width factor.
        seed: Its number among those of this width, from 0.
        work: All that decides the result, plain values; trials of two recipes with the same work
            are the same.
    """

    curve: str
    width: float
    seed: int
    work: Record

    @property
    def id(self) -> str:
        """Name of its record: readable, and unique to the work."""
        return _named(self.work, self.work)


def network_name(work: Record) -> str:
    """Name of the trained network: as the id of the trial, but the same whatever is measured."""
    return _named(work, {key: value for key, value in work.items() if key != "measure"})


def trials_of(recipe: Recipe) -> list[Trial]:
    """Every network of a recipe, widest first: the longest should not come last.

    Raises:
        FcompressError: A curve names a family or arguments that do not exist.
    """
    found = []
    for curve in recipe.curves:
        known = families()
        if curve.family not in known:
            build(curve.family)  # says which families there are
        for width in curve.widths:
            known[curve.family].resolve({**curve.args, "width": width})
            for seed, train_settings in itertools.product(range(curve.seeds), _rates(curve)):
                work = {
                    "format": FORMAT,
                    "family": curve.family,
                    "args": {**curve.args, "width": width},
                    "data": curve.data.replace("{seed}", str(seed)),
                    "random_labels": seed if curve.random_labels else None,
                    "train": train_settings,
                    "seed": seed,
                    "measure": curve.measure,
                }
                found.append(Trial(curve.name, width, seed, work))
    return sorted(found, key=lambda t: -t.width)


def perform(work: Record, out: Path | None, root: Path | None, device: str) -> Record:
    """Run one trial.

    Args:
        work: Of a `Trial`.
        out: File of the trained network, and with another ending of what a killed training goes
            on from; a network that is there is not trained again. None keeps nothing.
        root: Of the data.
        device: As in `TrainConfig`.

    Returns:
        Its record: {"work", "versions", "data", "params", "macs", "train", "measure"}, or with
        "failed" (the reason) in place of all that follows "data" where training diverged.
    """
    splits = data_of(work, root)
    network = network_of(work, splits)
    if work["train"] is None:
        return measured(work, splits, None, network, device)
    # Tested once, at the end: after each epoch it can take longer than the epoch.
    fitted = replace(splits, test=None)
    try:
        attempt: TrainResult | TrainingError = _trained(
            network, fitted, config_of(work, device), out
        )
    except TrainingError as error:
        attempt = error
    return finished(work, splits, attempt, device)


def data_of(work: Record, root: Path | None) -> Splits:
    """The data of a trial; the cut is the same for every seed, so test sets are too."""
    return load_data(work["data"], root=root, random_labels=work["random_labels"])


def network_of(work: Record, splits: Splits) -> Network:
    """The network of a trial with its fresh weights."""
    args = fitting(work["family"], splits.info, work["args"])
    return build(work["family"], seed=work["seed"], **args)


def config_of(work: Record, device: str) -> TrainConfig:
    """How a trial trains."""
    return TrainConfig(**{**work["train"], "seed": work["seed"], "device": device})


def finished(
    work: Record, splits: Splits, attempt: TrainResult | TrainingError, device: str
) -> Record:
    """The record of a trial whose training ended, one way or the other."""
    if isinstance(attempt, TrainingError):
        return {**_head(work, splits), "failed": str(attempt)}
    return measured(work, splits, _course(attempt, splits), attempt.model, device)


def measured(
    work: Record,
    splits: Splits,
    training: Record | None,
    model: nn.Module,
    device: str,
) -> Record:
    """The record of a network: what it costs, how it was trained, and every measure."""
    model = model.eval().to(device_of(device))
    place = next(model.parameters()).device
    inputs, _ = splits.need("test").batch(torch.arange(1), device=place)
    cost = count(model, inputs)
    settings = {name: {**own, "seed": work["seed"]} for name, own in work["measure"].items()}
    return {
        **_head(work, splits),
        "params": cost.params,
        "macs": cost.macs,
        "train": training,
        "measure": {name: MEASURES[name](model, splits, own) for name, own in settings.items()},
    }


def analyzed(model: nn.Module, splits: Splits, settings: Mapping[str, Any]) -> Record:
    """The measure `analyze`: prunable and redundant units on the test split."""
    result = analyze(model, splits, groups=False, **{**widened_layers(model), **settings})
    record = result.to_dict()
    keys = ("examples", "accuracy", "labels", "ablation", "redundancy", "skipped")
    return {key: record[key] for key in keys}


def responses(model: nn.Module, splits: Splits, settings: Mapping[str, Any]) -> Record:
    """The measure `responses`: correlations of units before their nonlinearity, test split.

    `layer` is the address of a convolution or linear layer. Units that a ReLU silences on every
    example have no correlation behind it, but may all respond alike before it.
    """
    batches = splits.need("test").batches(limit=settings.get("examples"))
    found = measure_redundancy(model, batches, layers=[settings["layer"]])
    layer = asdict(found.layers[0])
    return {"examples": found.examples, **{k: layer[k] for k in ("name", "units", "correlations")}}


MEASURES: dict[str, Measure] = {
    "analyze": analyzed,
    "shrunk": shrunk,
    "visualise": visualise,
    "constructions": constructions,
    "responses": responses,
}


def _trained(model: Network, splits: Splits, config: TrainConfig, out: Path | None) -> TrainResult:
    """Train, or go on with what an earlier run left; a finished network is not trained again."""
    if out is None:
        return train(model, splits, config)
    out.parent.mkdir(parents=True, exist_ok=True)
    if not out.exists() or resume_file(out).exists():
        return train(model, splits, config, out=out, resume=resume_file(out).exists())
    known = checkpoint.load(out)
    origin = origin_of(known)
    data, last = origin["data"] or {}, (origin["history"] or [{}])[-1]
    history = last if isinstance(last, dict) and "epochs" in last else {}
    how = {**history.get("config", {}), "device": config.device}
    if (
        getattr(known, "spec", None) != model.spec
        or history.get("action") != "train"
        or how != asdict(config)
        or any(data.get(key) != splits.info[key] for key in ("sha256", "random_labels"))
    ):
        raise FcompressError(
            f"{out} is not the network that its name says; delete it, or choose another folder"
        )
    epochs = tuple(EpochRecord(**epoch) for epoch in history["epochs"])
    return TrainResult(known, config, epochs, dict(splits.info), out)


def _course(result: TrainResult, splits: Splits) -> Record:
    """How training went, without what differs from run to run."""
    tested = result.test_accuracy
    if tested is None and splits.test is not None and splits.test.has_labels:
        tested = accuracy(result.model, splits.test)
    return {
        "lr": result.config.lr,
        "epochs": len(result.epochs),
        "loss": [epoch.loss for epoch in result.epochs],
        "train_accuracy": [epoch.train_accuracy for epoch in result.epochs],
        "test_accuracy": tested,
    }


def _rates(curve: Curve) -> list[Record | None]:
    """The training settings of a curve, one for each learning rate."""
    if curve.train is None:
        return [None]
    rates = curve.train.get("lr", TrainConfig.lr)
    return [{**curve.train, "lr": r} for r in (rates if isinstance(rates, list) else [rates])]


def _named(work: Record, decisive: Record) -> str:
    digest = hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()
    return f"{work['family']}-{work['args']['width']:g}x-seed{work['seed']}-{digest[:12]}"


def _head(work: Record, splits: Splits) -> Record:
    info = splits.info
    keys = ("spec", "sha256", "identified_by", "seed", "random_labels", "sizes", "shape", "classes")
    return {
        "work": work,
        "versions": versions(),
        "data": {key: info[key] for key in keys},
    }
