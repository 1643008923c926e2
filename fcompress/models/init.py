"""Initial weights (docs/protocol.md section 4, row "init").

The normal initializers draw from a plain Gaussian, as the paper's text says. (The TensorFlow
initializers that the authors' code calls cut it at two standard deviations and rescale, which
leaves the variance as it is.)
"""

import math
from collections.abc import Collection
from typing import Any

from torch import Generator, Tensor, nn

INITS = (
    "glorot_normal",
    "glorot_uniform",
    "he_normal",
    "he_uniform",
    "lecun_normal",
    "lecun_uniform",
    "normal:STD",
    "normal_scaled:S",
)

# Standard deviations of the paper's MLPs at s = 1: hidden layers, output layer.
_HIDDEN_STD = 1e-3
_OUTPUT_STD = 1e-2


def check_init(init: Any) -> str:
    """Return `init` if it names an initializer.

    Raises:
        ValueError: It does not; the message says what it must be.
    """
    if isinstance(init, str):
        name, colon, number = init.partition(":")
        if not colon and init in INITS:
            return init
        if colon and name in ("normal", "normal_scaled") and _positive(number):
            return init
    raise ValueError(f"one of {', '.join(INITS)} (STD and S: numbers above 0, as in normal:0.1)")


def initialize(
    module: nn.Module, init: str, generator: Generator, outputs: Collection[str]
) -> None:
    """Draw the weights of all linear and convolution layers, in place; biases become zero.

    Batch normalisation keeps scale 1 and shift 0. Layers are visited in the order of
    `module.named_modules()`, so one seed always gives the same weights.

    Args:
        module: The network.
        init: An initializer that `check_init` lets pass. `normal:STD` has the same standard
            deviation everywhere; `normal_scaled:S` has the paper's 1e-3 * S in hidden layers and
            1e-2 * S in output layers.
        generator: The random source; the global one is not used.
        outputs: Names of the output layers.
    """
    for name, layer in module.named_modules():
        if not isinstance(layer, (nn.Linear, nn.Conv2d)):
            continue
        std = _std(init, layer.weight, name in outputs)
        if init.endswith("_uniform"):
            # A uniform law on [-a, a] has variance a^2 / 3.
            limit = math.sqrt(3) * std
            nn.init.uniform_(layer.weight, -limit, limit, generator=generator)
        else:
            nn.init.normal_(layer.weight, 0.0, std, generator=generator)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def _std(init: str, weight: Tensor, is_output: bool) -> float:
    """Standard deviation of the entries of `weight` [out, in, *kernel].

    Glorot and Bengio (2010): 2 / (fan_in + fan_out); He et al. (2015): 2 / fan_in;
    LeCun et al. (2012): 1 / fan_in, all for the variance.
    """
    name, _, number = init.partition(":")
    if name == "normal":
        return float(number)
    if name == "normal_scaled":
        return float(number) * (_OUTPUT_STD if is_output else _HIDDEN_STD)
    positions = weight[0, 0].numel()
    fan_out, fan_in = weight.shape[0] * positions, weight.shape[1] * positions
    scheme = name.partition("_")[0]
    variance = {"glorot": 2 / (fan_in + fan_out), "he": 2 / fan_in, "lecun": 1 / fan_in}[scheme]
    return math.sqrt(variance)


def _positive(number: str) -> bool:
    try:
        return 0 < float(number) < math.inf
    except ValueError:
        return False
