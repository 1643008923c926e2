"""`bench stacked`: MLPs trained one after another and as one stack, in the same process."""

import time
from typing import Any

import torch

import fcompress
from fcompress.experiments.trials.stacked import Run, train_stacked

# Dimensions, hidden units, networks, epochs, optimizer. 1,000 points, batches of 128, three seeds.
SHAPES = (
    (10, 32, 30, 10, "momentum"),
    (10, 64, 30, 10, "momentum"),
    (10, 128, 30, 10, "momentum"),
    (10, 256, 30, 10, "momentum"),
    (10, 512, 30, 10, "momentum"),
    (10, 128, 30, 10, "adam"),
    (10_000, 128, 10, 5, "momentum"),
    (10_000, 128, 10, 5, "adam"),
)
SEEDS = 3


def measure(
    dimensions: int, hidden: int, networks: int, epochs: int, optimizer: str
) -> dict[str, Any]:
    """Processor time of one thread for the same networks, trained in the two ways.

    Args:
        dimensions: Values of a point.
        hidden: Units of the one hidden layer.
        networks: How many are trained.
        epochs: Passes over the 1,000 training points.
        optimizer: As in `TrainConfig`.
    """
    data = [fcompress.load_data(f"gaussian:{dimensions},n=1000,seed={s}") for s in range(SEEDS)]
    runs = []
    for number in range(networks):
        seed = number % SEEDS
        args = {"in_features": dimensions, "classes": 2, "hidden": hidden}
        model: Any = fcompress.build("mlp", **args, init="normal_scaled:1", seed=seed)
        config = fcompress.TrainConfig(
            epochs=epochs, optimizer=optimizer, lr=1e-2, schedule="constant", seed=seed
        )
        runs.append(Run(model, data[seed], config))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        train_stacked(runs[:1])  # what happens only once is in neither time
        begin = time.process_time()
        stacked = train_stacked(runs)
        middle = time.process_time()
        alone = [fcompress.train(run.model, run.splits, run.config) for run in runs]
        end = time.process_time()
    finally:
        torch.set_num_threads(threads)
    accuracies = [
        (one.test_accuracy, result.test_accuracy)
        for one, result in zip(alone, stacked, strict=True)
        if isinstance(result, fcompress.TrainResult)
    ]
    return {
        "dimensions": dimensions,
        "hidden": hidden,
        "networks": networks,
        "epochs": epochs,
        "optimizer": optimizer,
        "stacked_seconds": middle - begin,
        "alone_seconds": end - middle,
        "ratio": (end - middle) / (middle - begin),
        "largest_difference_of_accuracies": max(abs(a - b) for a, b in accuracies),
    }


def line(row: dict[str, Any]) -> str:
    """The row in words."""
    return (
        f"{row['networks']} MLPs {row['dimensions']}-{row['hidden']}-2, {row['optimizer']}, "
        f"{row['epochs']} epochs: {row['alone_seconds']:.2f} s one after another, "
        f"{row['stacked_seconds']:.2f} s stacked: {row['ratio']:.1f} times as fast; test "
        f"accuracies differ by at most {row['largest_difference_of_accuracies']:.3f}"
    )
