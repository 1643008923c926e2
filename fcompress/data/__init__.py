"""Datasets, cut into named splits that cannot share an example."""

from fcompress.data.batches import Batches, as_batches
from fcompress.data.specs import Dataset, datasets, load_data, reload_data
from fcompress.data.splits import ROLES, Split, Splits

__all__ = [
    "ROLES",
    "Batches",
    "Dataset",
    "Split",
    "Splits",
    "as_batches",
    "datasets",
    "load_data",
    "reload_data",
]
