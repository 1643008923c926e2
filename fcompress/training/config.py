"""How to train: settings, those that suit each family, and the learning rate over time.

Nothing here needs torch, so that the command line can show it at once.
"""

import math
from dataclasses import dataclass
from typing import Any

from fcompress.arguments.numbers import DEVICE, LARGEST, MOST_BATCH, MOST_EPOCHS, real, short, whole
from fcompress.errors import TrainingError

OPTIMIZERS = ("momentum", "sgd", "adam", "rmsprop")
SCHEDULES = ("constant", "decay", "cosine", "step")
DEVICES = ("auto", "cpu", "cuda")
# "decay" is the paper's schedule for AlexNet and ResNet56.
DECAY_AN_EPOCH = 0.95
STEPS_AT, STEP_FACTOR = (0.5, 0.75), 0.1


@dataclass(frozen=True)
class TrainConfig:
    """How to train.

    Attributes:
        epochs: Passes over the training split.
        batch_size: Examples a step.
        optimizer: One of `OPTIMIZERS`; "momentum" is SGD with momentum 0.9.
        lr: Learning rate at the start.
        schedule: One of `SCHEDULES`; see `learning_rate`.
        weight_decay: Added to the gradient as this many times the weight; biases, batch-norm
            parameters and other vectors are not decayed.
        augment: Whether training inputs are changed at random (cropped, mirrored).
        seed: Decides shuffling, augmentation and dropout.
        device: "cpu", "cuda", "cuda:1", "mps", or "auto" for CUDA where there is some.
    """

    epochs: int = 4
    batch_size: int = 128
    optimizer: str = "momentum"
    lr: float = 0.05
    schedule: str = "cosine"
    weight_decay: float = 0.0
    augment: bool = False
    seed: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        for name, known in (
            ("optimizer", OPTIMIZERS),
            ("schedule", SCHEDULES),
        ):
            if getattr(self, name) not in known:
                raise TrainingError(
                    f"{name} {getattr(self, name)!r}: expected one of {', '.join(known)}"
                )
        if DEVICE.fullmatch(str(self.device)) is None:
            raise TrainingError(
                f"device {self.device!r}: expected one of auto, cpu, cuda, cuda:1, mps"
            )
        for name, least, most in (
            ("epochs", 1, MOST_EPOCHS),
            ("batch_size", 2, MOST_BATCH),
            ("seed", 0, LARGEST),
        ):
            value = getattr(self, name)
            try:
                object.__setattr__(self, name, whole(name, value, least, most))
            except ValueError as error:
                raise TrainingError(
                    f"{name} {short(value)}: expected at least {least}, and at most {most}"
                ) from error
        for name, expected, fits in (
            ("lr", "a number above 0", lambda one: one > 0),
            ("weight_decay", "0 or more", lambda one: one >= 0),
        ):
            value = getattr(self, name)
            try:
                object.__setattr__(self, name, real(name, value, expected, fits))
            except ValueError as error:
                raise TrainingError(f"{name} {short(value)}: expected {expected}") from error


# Found by short trials on Fashion-MNIST (4 epochs, cosine schedule).
_RATES = {"momentum": 0.05, "sgd": 0.2, "adam": 1e-3, "rmsprop": 3e-4}
# Where a family wants something else. The weight decays of residual networks are those of the
# paper's Table 1, those of DenseNet and MobileNet of the papers that their files name.
_FAMILIES: dict[str, dict[str, Any]] = {
    "resnet20": {"lr": 0.1, "weight_decay": 2e-4},
    "resnet56": {"lr": 0.1, "weight_decay": 2e-4},
    "resnet18": {"lr": 0.1, "weight_decay": 1e-4},
    "vgg": {"lr": 0.05, "weight_decay": 2e-4},
    "densenet": {"lr": 0.1, "weight_decay": 1e-4},
    "mobilenet": {"lr": 0.1, "weight_decay": 4e-5},
    "inception_v3": {"optimizer": "rmsprop"},
    "inception_v3_layer": {"optimizer": "rmsprop"},
}


def default_config(family: str, **changes: Any) -> TrainConfig:
    """The settings that suit a family in a few epochs, with some of them changed.

    Without a learning rate among the changes, another optimizer brings its own.

    Args:
        family: Name of a family of networks.
        **changes: Fields of `TrainConfig`.

    Returns:
        The settings.

    Raises:
        TrainingError: A change is out of its range.

    Example:
        >>> config = default_config("mlp", epochs=3)
        >>> config.epochs, config.optimizer
        (3, 'momentum')
    """
    usual = {"optimizer": "momentum", **_FAMILIES.get(family, {})}
    settings = {**usual, **changes}
    if "lr" not in changes and ("lr" not in usual or settings["optimizer"] != usual["optimizer"]):
        settings["lr"] = _RATES.get(settings["optimizer"], TrainConfig.lr)
    return TrainConfig(**settings)


def learning_rate(config: TrainConfig, epochs_done: float) -> float:
    """The learning rate after `epochs_done` epochs (a fraction within an epoch).

    "constant"; "decay": times 0.95 after each epoch; "cosine": half a cosine wave down to 0 at the
    end; "step": a tenth after half and again after three quarters of the epochs.
    """
    whole = math.floor(epochs_done)
    if config.schedule == "decay":
        return config.lr * DECAY_AN_EPOCH**whole
    share = epochs_done / config.epochs
    if config.schedule == "cosine":
        return config.lr * 0.5 * (1 + math.cos(math.pi * share))
    if config.schedule == "step":
        return config.lr * STEP_FACTOR ** sum(share >= at for at in STEPS_AT)
    return config.lr
