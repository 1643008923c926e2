"""Mean and standard deviation that examples are standardised by."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fcompress.data.examples import OnDisk, Raw, rows_at_once
from fcompress.data.preprocess import Preprocess
from fcompress.errors import DataError

# Statistics of images that stay on disk are measured on this many of them.
MEASURED_ON_DISK = 2048


def statistics_of(
    raw: Raw,
    rows: Mapping[str, Tensor],
    like: Mapping[str, Any] | None,
    preprocess: Preprocess | None,
) -> tuple[list[float], list[float], str]:
    """Mean and standard deviation per channel or feature, and in words where they are from."""
    given = None if preprocess is None or preprocess.std is None else preprocess
    if given is not None and given.mean is not None and given.std is not None:
        shape = raw.examples.shape
        if len(given.mean) not in (1, shape[0]):
            raise DataError(
                f"{len(given.mean)} means for examples of shape {list(shape)}: expected one for "
                f"each of {shape[0]} channels"
            )
        scale = 255 if raw.examples.take(torch.arange(1)).dtype == torch.uint8 else 1
        return [scale * m for m in given.mean], [scale * s for s in given.std], given.source
    if like is not None:
        same = like["sha256"] == raw.sha256
        source = like["standardised_by"] if same else "the network's training data"
        return list(like["mean"]), list(like["std"]), source
    if raw.statistics is not None:
        source = "published values" if raw.statistics[0] else "not standardised"
        return *raw.statistics, source
    role = "train" if "train" in rows else "calibration"
    chosen = rows[role]
    if isinstance(raw.examples, OnDisk):
        chosen = chosen[:MEASURED_ON_DISK]
    mean, std = channel_statistics(raw, chosen)
    return mean, std, f"{role} split"


def channel_statistics(raw: Raw, rows: Tensor) -> tuple[list[float], list[float]]:
    """Measure mean and standard deviation per channel (images) or feature (vectors).

    A channel that does not vary gets the standard deviation 1, so that it becomes 0.

    Args:
        raw: The dataset.
        rows: [n], int64, the examples to measure.

    Returns:
        Two lists of C or D numbers, accumulated in float64, in raw values.
    """
    count, total, squares = 0, torch.zeros(1), torch.zeros(1)
    for part in rows.split(rows_at_once(raw.examples)):
        values = raw.examples.take(part).double()
        values = values.transpose(0, 1).flatten(1)
        count += values.shape[1]
        total = total + values.sum(1)
        squares = squares + values.square().sum(1)
    mean = total / count
    # Scaled by the size of the values: of a constant channel only rounding is left.
    variance = squares / count - mean.square()
    constant = variance <= 1e-12 * (squares / count)
    std = torch.where(constant, torch.ones_like(variance), variance.clamp_min(0).sqrt())
    return mean.tolist(), std.tolist()
