"""Stacked training: each network of a stack ends as `train` would end it."""

import copy
from dataclasses import asdict, replace

import pytest
import torch

from fcompress.data import load_data
from fcompress.errors import TrainingError
from fcompress.experiments.trials import stacked, stacked_weights
from fcompress.experiments.trials.stacked import Run, train_stacked
from fcompress.models import build
from fcompress.training.config import OPTIMIZERS, TrainConfig
from fcompress.training.loop import TrainResult, train

# Not 64: the last of the batches of 16 is smaller.
POINTS = 60


def doubled(model):
    """The network in float64; the data, float32, is converted on its way in."""
    model = model.double()
    model.register_forward_pre_hook(lambda module, inputs: (inputs[0].double(),))
    return model


def runs_of(dimensions, optimizer, *, rates=(0.1, 0.03), depth=1, **settings):
    """Two data sets, two initial scales, some learning rates: data, weights, lr, seed differ."""
    runs = []
    for seed in (0, 1):
        splits = load_data(f"gaussian:{dimensions},n={POINTS},seed={seed}")
        for scale in (30, 100):
            args = {"in_features": dimensions, "classes": 2, "hidden": 12, "depth": depth}
            model = build("mlp", **args, init=f"normal_scaled:{scale}", seed=seed)
            model = doubled(model)
            for lr in rates:
                if optimizer in ("adam", "rmsprop"):
                    lr /= 10
                usual = {"epochs": 4, "batch_size": 16, "schedule": "cosine", "device": "cpu"}
                config = TrainConfig(
                    **{**usual, **settings}, optimizer=optimizer, lr=lr, seed=seed + len(runs) // 6
                )
                runs.append(Run(model, splits, config))
    return runs


def logits(model, run):
    inputs, _ = run.splits.test.batch(torch.arange(50))
    with torch.no_grad():
        return model(inputs)


def largest_difference(runs, results):
    pairs = zip(runs, results, strict=True)
    alone = [(train(run.model, run.splits, run.config).model, run, r.model) for run, r in pairs]
    return max(float((logits(a, run) - logits(b, run)).abs().max()) for a, run, b in alone)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(
    ("dimensions", "depth", "decay"), [(5, 1, 0.0), (5, 2, 1e-2), (100, 1, 0.0), (100, 2, 0.0)]
)
def test_every_network_ends_as_it_would_alone(optimizer, dimensions, depth, decay):
    runs = runs_of(dimensions, optimizer, depth=depth, weight_decay=decay)
    results = train_stacked(runs)
    assert largest_difference(runs, results) < 1e-10
    moved = [
        float((logits(r.model, q) - logits(q.model, q)).abs().max())
        for q, r in zip(runs, results, strict=True)
    ]
    assert min(moved) > 1e-3


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_large_tensors_are_moved_block_by_block(optimizer, monkeypatch):
    monkeypatch.setattr(stacked_weights, "BLOCK", 5 * 8 * 5)  # 5 of 12 rows of 8 networks' fc1
    runs = runs_of(5, optimizer)
    assert len(runs) == 8
    assert largest_difference(runs, train_stacked(runs)) < 1e-10


def test_the_comparison_sees_another_rate_another_order_and_other_data():
    runs = runs_of(100, "momentum")
    results = train_stacked(runs)
    for changed in (
        [replace(r, config=replace(r.config, lr=r.config.lr * 1.001)) for r in runs],
        [replace(r, config=replace(r.config, seed=r.config.seed + 1)) for r in runs],
        [replace(r, splits=runs[0].splits) for r in runs],
    ):
        assert largest_difference(changed, results) > 1e-6


@pytest.mark.parametrize(
    ("dimensions", "optimizer", "decay", "form"),
    [
        (100, "sgd", 0.0, "Spanned"),
        (100, "momentum", 0.0, "Spanned"),
        (100, "adam", 0.0, "Dense"),
        (100, "momentum", 1e-2, "Dense"),
        (5, "momentum", 0.0, "Dense"),
    ],
)
def test_the_cheaper_form_of_the_first_layer_is_taken(dimensions, optimizer, decay, form):
    runs = runs_of(dimensions, optimizer, weight_decay=decay)[:1]
    weight = runs[0].model.fc1.weight.detach()
    splits = [run.splits.train for run in runs]
    streams = stacked._streams(runs, splits, weight)
    assert type(stacked._first_layer([weight], streams, runs[0].config)).__name__ == form


def test_the_records_are_those_of_train():
    runs = runs_of(5, "momentum", schedule="decay")
    for run, result in zip(runs, train_stacked(runs), strict=True):
        alone = train(run.model, run.splits, run.config)
        assert result.config == run.config and result.data == run.splits.info
        assert result.test_accuracy == alone.test_accuracy
        assert [e.test_accuracy for e in result.epochs[:-1]] == [None] * 3
        for ours, theirs in zip(result.epochs, alone.epochs, strict=True):
            assert ours.loss == pytest.approx(theirs.loss, abs=1e-12)
            same = ("epoch", "lr", "train_accuracy")
            assert [getattr(ours, k) for k in same] == [getattr(theirs, k) for k in same]
        assert not result.model.training
        # What it remembers, but for the times and the accuracies in between.
        ours, theirs = result.model.origin, alone.model.origin
        assert ours["data"] == theirs["data"] and len(ours["history"]) == 1
        assert ours["history"][0]["config"] == asdict(run.config)


@pytest.mark.parametrize("dimensions", [5, 100])
def test_a_network_that_diverges_is_an_error_and_disturbs_no_other(dimensions):
    good = runs_of(dimensions, "momentum")
    bad = [replace(r, config=replace(r.config, lr=1e200)) for r in good[1:3]]
    mixed = [good[0], bad[0], *good[1:6], bad[1], *good[6:]]
    results = train_stacked(mixed)
    alone = [r for r in results if isinstance(r, TrainResult)]
    assert [i for i, r in enumerate(results) if isinstance(r, TrainingError)] == [1, 7]
    assert largest_difference(good, alone) < 1e-10
    for run, error in zip(bad, (results[1], results[7]), strict=True):
        with pytest.raises(TrainingError) as theirs:
            train(run.model, run.splits, run.config)
        assert str(error) == str(theirs.value)


def test_weights_that_overflow_only_at_the_end_are_noticed():
    # One step: the loss before it is finite, the weights after it are not.
    run = runs_of(5, "sgd", epochs=1, batch_size=POINTS)[0]
    run = replace(run, config=replace(run.config, lr=1.7e308))
    (error,) = train_stacked([replace(run, model=_steep(run.model))])
    assert isinstance(error, TrainingError) and "weights are not finite after epoch 1" in str(error)


def _steep(model):
    model = copy.deepcopy(model)
    with torch.no_grad():
        model.out.weight.mul_(1e3)
    return model


def test_the_caller_keeps_his_networks_and_his_random_state():
    runs = runs_of(100, "momentum")
    before = [copy.deepcopy(run.model.state_dict()) for run in runs]
    state = torch.get_rng_state()
    told = []
    train_stacked(runs, progress=told.append)
    assert told == [1, 2, 3, 4]
    assert torch.equal(torch.get_rng_state(), state)
    for run, weights in zip(runs, before, strict=True):
        assert run.model.training and all(p.requires_grad for p in run.model.parameters())
        assert all(torch.equal(v, weights[k]) for k, v in run.model.state_dict().items())


def test_images_are_flattened():
    splits = load_data("digits")
    config = TrainConfig(epochs=2, batch_size=64, device="cpu")
    args = {"in_channels": 1, "image_size": 8, "classes": 10, "hidden": 16}
    runs = [Run(doubled(build("mlp", **args, seed=s)), splits, config) for s in range(2)]
    assert largest_difference(runs, train_stacked(runs)) < 1e-10


def test_nothing_to_train():
    assert train_stacked([]) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda r: replace(r, config=replace(r.config, epochs=9)), "epochs in common; run 0 has 4"),
        (lambda r: replace(r, config=replace(r.config, augment=True)), "cannot be augmented"),
        (lambda r: replace(r, model=build("mlp", in_features=5, classes=2, hidden=7)), "shapes"),
        (lambda r: replace(r, model=torch.nn.Linear(5, 2)), "run 1 has a Linear"),
        (lambda r: replace(r, splits=load_data("gaussian:5,n=61")), "examples in common"),
        (lambda r: replace(r, splits=replace(r.splits, train=None)), "no training split"),
    ],
)
def test_what_cannot_be_stacked(change, words):
    runs = runs_of(5, "momentum")[:2]
    with pytest.raises(TrainingError, match=words):
        train_stacked([runs[0], change(runs[1])])
