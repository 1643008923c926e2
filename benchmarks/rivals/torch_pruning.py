"""torch-pruning as a rival: that of `fcompress compare`, given what every rival gets here."""

from dataclasses import dataclass
from functools import lru_cache

from torch import nn

from benchmarks.rivals.base import Setting
from fcompress.comparison import torch_pruning
from fcompress.forward.predictor import Predictor


@dataclass(frozen=True)
class Pruning:
    """One importance of torch-pruning.

    Attributes:
        pruning: What is done.
    """

    pruning: torch_pruning.Pruning

    @property
    def name(self) -> str:
        return self.pruning.name

    @property
    def summary(self) -> str:
        return self.pruning.summary

    def make(self, setting: Setting, amount: float) -> nn.Module:
        """Prune a copy: `amount` is the `pruning_ratio`."""
        return self.pruning.make(given_of(setting), amount)


@lru_cache(maxsize=1)
def given_of(setting: Setting) -> torch_pruning.Given:
    """The same for all rivals and amounts."""
    return torch_pruning.Given(Predictor(setting.model), setting.batches, setting.seed)


RIVALS = tuple(Pruning(one) for one in torch_pruning.RIVALS)
