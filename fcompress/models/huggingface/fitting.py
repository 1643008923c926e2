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
# Number of a layer -> size -> what it became there; -1 for what is in no numbered layer.
Changes = dict[int, dict[int, dict[int, None]]]


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
    changed: Changes = {}
    for name, shape in built.items():
        for old, new in zip(shape, wanted[name], strict=False):
            if old != new:
                changed.setdefault(_layer(name), {}).setdefault(old, {})[new] = None
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


def _layer(name: str) -> int:
    """The first number in the name of a tensor."""
    return next((int(part) for part in name.split(".") if part.isdecimal()), -1)


def _choices(config: Mapping[str, Any], changed: Changes) -> Iterator[dict[str, Any]]:
    """New values of some entries, few entries first."""
    values = {key: found for key, said in config.items() if (found := _values(said, changed))}
    for count in range(1, _MOST_KEYS + 1):
        for keys in combinations(values, count):
            for choice in product(*(values[key] for key in keys)):
                yield dict(zip(keys, choice, strict=True))


def _values(said: Any, changed: Changes) -> list[Any]:
    """What an entry may have become, if the sizes that it decides are its multiples."""
    if type(said) is int and said > 1:
        found: dict[int, None] = {}
        for of_layer in changed.values():
            for old, news in of_layer.items():
                if old % said == 0:
                    found |= {said * n // old: None for n in news if said * n % old == 0 and n}
        return [*found]
    # One for each layer.
    if type(said) is not list or not said or not all(type(size) is int for size in said):
        return []
    new = []
    for layer, size in enumerate(said):
        became = [*changed.get(layer, {}).get(size, {size: None})]
        if len(became) > 1:
            return []
        new += became
    return [new] if new != said else []
