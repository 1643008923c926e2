"""A configuration from which transformers itself builds a compressed network, where there is one.

Most configurations say one width for all layers, and a compressed network has another in each. Some
take a list. What they take is not looked up in a table of networks: sizes in the configuration are
set to what the tensors need, and the shapes that follow are compared with those that there are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import combinations, product
from typing import Any

import torch
from torch import Size, Tensor

from fcompress.errors import ArchitectureError
from fcompress.models.huggingface.classes import make

# Configurations that are tried; building one of a large network takes about a second.
MOST = 64
_MOST_KEYS = 3
Shapes = dict[str, Size]


def fitting_config(
    model_type: str, args: Mapping[str, Any], state: Mapping[str, Tensor]
) -> dict[str, Any] | None:
    """The configuration whose network has tensors of just these names and shapes.

    Args:
        model_type: As for `make`.
        args: As for `make`, of the original network.
        state: Tensors of the compressed network, without buffers that transformers does not save.

    Returns:
        The configuration, or None where none of those tried fits.
    """
    wanted = {name: tensor.shape for name, tensor in state.items()}
    config = dict(args["config"])
    built = _shapes(model_type, args, config)
    if built is None or built == wanted:
        return config if built == wanted else None
    if built.keys() != wanted.keys():
        return None
    changed: dict[int, list[int]] = {}
    for name, shape in built.items():
        for old, new in zip(shape, wanted[name], strict=False):
            if old != new:
                changed.setdefault(old, []).append(new)
    for number, choice in enumerate(_choices(config, changed)):
        if number == MOST:
            break
        if _shapes(model_type, args, {**config, **choice}) == wanted:
            return {**config, **choice}
    return None


def _shapes(model_type: str, args: Mapping[str, Any], config: dict[str, Any]) -> Shapes | None:
    """Shapes of the tensors of a network; None where no network can be built so."""
    try:
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            network = make(model_type, {**args, "config": config})()
    except ArchitectureError:
        return None
    except Exception:  # of the code of transformers, by as many types
        return None
    return {name: tensor.shape for name, tensor in network.state_dict().items()}


def _choices(config: Mapping[str, Any], changed: Mapping[int, list[int]]) -> Iterator[dict]:
    """New values of some entries, few entries first."""
    values = {
        key: found
        for key, value in config.items()
        if type(value) is int and value > 1 and (found := _values(value, changed, config))
    }
    for count in range(1, _MOST_KEYS + 1):
        for keys in combinations(values, count):
            for choice in product(*(values[key] for key in keys)):
                yield dict(zip(keys, choice, strict=True))


def _values(
    value: int, changed: Mapping[int, list[int]], config: Mapping[str, Any]
) -> list[int | list[int]]:
    """What a size may have become, if the sizes that it decides are its multiples."""
    found: dict[int, None] = {}
    for old, news in changed.items():
        if old % value == 0:
            found |= {value * n // old: None for n in news if value * n % old == 0 and n > 0}
    values: list[int | list[int]] = [*found]
    layers = config.get("num_hidden_layers")
    news = changed.get(value, [])
    # One for each layer, in the order of the layers, if each layer has as many of them.
    if type(layers) is int and layers > 1 and news and len(news) % layers == 0:
        each = len(news) // layers
        if all(len(set(news[i : i + each])) == 1 for i in range(0, len(news), each)):
            values.append(news[::each])
    return values
