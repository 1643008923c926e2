"""What networks are measured on: real examples, or random ones of the shape that is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fcompress.data import Splits, as_batches, reload_data
from fcompress.data.packing import Packing
from fcompress.errors import DataError
from fcompress.forward.callables import Called
from fcompress.latency.entries import Entry, deferring
from fcompress.models.provenance import origin_of

BATCHES = 64  # different ones that are measured, at most
MOST_BYTES = 1 << 28  # of examples that are held for that


@dataclass(frozen=True)
class Inputs:
    """Examples, and where they come from.

    Attributes:
        examples: [n, ...].
        packing: How several inputs lie in one tensor; None for a single one.
        what: In words.
        real: Whether they are examples of data, so that networks behave on them as they do.
    """

    examples: Tensor
    packing: Packing | None
    what: str
    real: bool

    def batches(self, size: int) -> Sequence[Tensor]:
        """Different batches of a size, up to `BATCHES`.

        Where there are too few examples for one, they come again from the first.
        """
        n = len(self.examples)
        if n < size:
            return [self.examples[torch.arange(size) % n]]
        whole = self.examples[: n // size * size]
        return whole.split(size)[:BATCHES]


def inputs_for(
    entries: Sequence[Entry], data: object | None, batch: Sequence[int], seed: int
) -> Inputs:
    """What entries are measured on.

    Args:
        entries: What is measured.
        data: The user's; None for what a file remembers, or else random numbers.
        batch: Sizes of batches.
        seed: Of random numbers.

    Raises:
        DataError: There is no data and one of the entries is a cascade, or no shape is known.
    """
    if data is not None:
        return real(data, batch, "examples")
    networks = [entry.open() for entry in entries]
    record = next((d for one in networks if (d := origin_of(one)["data"]) is not None), None)
    missing = "no file remembers its data"
    if record is not None:
        try:
            return of_splits(reload_data(record), batch)
        except DataError as error:
            missing = str(error)
    return made(networks, batch, seed, missing)


def of_splits(splits: Splits, batch: Sequence[int]) -> Inputs:
    """Examples of the test split, else of another one that nothing was fitted to."""
    present = splits.present()
    order = ("test", "certification", "search", *present)
    name = next(name for name in order if name in present)
    return real(present[name], batch, f"{name} examples of {splits.info['spec']}")


def real(data: object, batch: Sequence[int], what: str) -> Inputs:
    """The first examples of data, as many as are of use."""
    batches = as_batches(data)
    wanted = max(BATCHES, 4 * max(batch))
    parts: list[Tensor] = []
    count, held = 0, 0
    for inputs, _ in batches:
        parts.append(inputs[: wanted - count])
        count += len(parts[-1])
        held += parts[-1].nbytes
        if count >= wanted or (held > MOST_BYTES and count >= max(batch)):
            break
    if not count:
        raise DataError("the data holds no example; expected at least one")
    return Inputs(torch.cat(parts), batches.packing, f"{count:,} {what}", real=True)


def made(networks: Sequence[nn.Module], batch: Sequence[int], seed: int, missing: str) -> Inputs:
    """Random numbers of the shape that one of the networks knows.

    Args:
        networks: As they are opened.
        batch: Sizes of batches.
        seed: Of the numbers.
        missing: Why there is no data, in words.

    Raises:
        DataError: One of them is a cascade, or none knows a shape.
    """
    if any(deferring(network) is not None for network in networks):
        raise DataError(
            f"{missing}; a cascade takes as long as it defers examples, which random inputs do "
            "not tell: name data (--data)"
        )
    shape = next((found for network in networks if (found := _shape(network))), None)
    if shape is None:
        raise DataError(f"{missing}, and no shape of its inputs is known; name data (--data)")
    generator = torch.Generator().manual_seed(seed)
    examples = torch.randn(max(4, *batch), *shape, generator=generator)
    what = f"random inputs of shape {list(shape)} (seed {seed}), because {missing}"
    return Inputs(examples, None, what, real=False)


def _shape(network: nn.Module) -> tuple[int, ...] | None:
    """The shape of one example, where a network knows it."""
    data = origin_of(network)["data"]
    if data is not None and data.get("shape"):
        return tuple(data["shape"])
    return network.shape if isinstance(network, Called) else None
