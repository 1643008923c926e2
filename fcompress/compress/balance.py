"""Calibration examples among which the labels that the original gives are equally frequent.

What is measured on them (covariances, Fisher information, divergences, refits) then listens to
rare labels as much as to frequent ones.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fcompress.errors import UnsupportedNetworkError
from fcompress.forward.predictor import Predictor

MOST_TIMES = 8  # that an example of a rare label is taken: beyond that it says nothing new
_BATCH = 256


def balanced(original: Predictor, inputs: Tensor, *, seed: int = 0) -> Tensor:
    """As many examples, each label as often as the others as far as its examples go.

    Args:
        original: The original network; its labels count, not the true ones.
        inputs: [N, ...], on its device.
        seed: Of the draw.

    Returns:
        [at most N, ...], in random order. Examples of a rare label come several times, up to
        `MOST_TIMES`.

    Raises:
        UnsupportedNetworkError: Its answers are not one class for each example.

    Example:
        >>> from torch import nn
        >>> network = nn.Linear(1, 2, bias=False)
        >>> network.weight.data = torch.tensor([[-1.0], [1.0]])
        >>> found = balanced(Predictor(network), torch.tensor([-1.0] * 6 + [1.0] * 2).view(-1, 1))
        >>> len(found), float(found.mean())
        (8, 0.0)
    """
    with original.evaluating():
        labels = [original.labels(part) for part in inputs.split(_BATCH)]
        kind = original.scoring.kind(original.scores(inputs[:2]))
    if kind != "classes" or labels[0].shape[1] != 1:
        raise UnsupportedNetworkError(
            "balance=True (--balance) is for networks that give one class for each example "
            f"(answer='classes'); this one's answers are {kind!r}"
        )
    given = torch.cat(labels).flatten().cpu()
    generator = torch.Generator().manual_seed(seed)
    present = given.unique()
    wanted = len(inputs) // len(present)
    rows = []
    for label in present:
        own = (given == label).nonzero().flatten()
        own = own[torch.randperm(len(own), generator=generator)]
        rows.append(own.repeat(MOST_TIMES)[:wanted])
    drawn = torch.cat(rows)
    return inputs[drawn[torch.randperm(len(drawn), generator=generator)].to(inputs.device)]
