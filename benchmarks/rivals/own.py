"""The methods of fcompress, as `bench quality` calls them: an amount in, a thin network out.

`shrink` searches for a certified tolerance; here every method, own or not, is searched in the
same way, so that what is compared is the networks and not the searches.
"""

from dataclasses import dataclass
from functools import lru_cache

from torch import Tensor, nn

import fcompress
from benchmarks.rivals.base import Setting
from fcompress.compress.blocks.chain import Choice
from fcompress.compress.blocks.choosing import blocks_of
from fcompress.compress.distillation.distilling import distill
from fcompress.compress.distillation.teacher import HELD_OUT_MOST
from fcompress.compress.methods import METHODS, Context
from fcompress.compress.options import DISTILL_EFFORT
from fcompress.compress.options import METHODS as SUMMARIES
from fcompress.compress.ranking.allocation import RemovalOrder
from fcompress.forward.predictor import Predictor


@dataclass(frozen=True)
class Own:
    """A method of fcompress.

    Attributes:
        method: Its name there.
        objective: What it is to save, one of `fcompress.compress.options.OBJECTIVES`.
    """

    method: str
    objective: str = "macs"

    @property
    def name(self) -> str:
        return self.method if self.objective == "macs" else f"{self.method}-{self.objective}"

    @property
    def summary(self) -> str:
        aim = "" if self.objective == "macs" else f", to save {self.objective}"
        return f"fcompress: {SUMMARIES[self.method]}{aim}"

    def make(self, setting: Setting, amount: float) -> nn.Module:
        """Keep what the method keeps: `amount` is the share of all units removed."""
        context, removal_order = _prepared(setting, self.method, self.objective)
        units = len(removal_order.prices)
        removed = min(max(round(amount * units), 1), units)
        with Predictor(setting.model).evaluating():
            return METHODS[self.method].make(context, removal_order.kept(removed))


@dataclass(frozen=True)
class OwnPolished:
    """A method of fcompress, then a short label-free distillation.

    Attributes:
        method: Its name.
        effort: Sweeps of training for each network.
    """

    method: str
    effort: float

    @property
    def name(self) -> str:
        return f"{self.method}+polish"

    @property
    def summary(self) -> str:
        return (
            f"{self.method}, then {self.effort:g} sweeps of distillation towards the wide "
            "network's scores on the calibration split"
        )

    def make(self, setting: Setting, amount: float) -> nn.Module:
        """The method's network of the same amount, polished."""
        thin = Own(self.method).make(setting, amount)
        batches = setting.pool or setting.batches
        return distill(
            setting.model,
            thin,
            batches,
            held_out=_exam(setting),
            effort=self.effort,
            seed=setting.seed,
        ).model


def _exam(setting: Setting) -> list[Tensor] | None:
    """The first held-out batches, as many as polishing looks at."""
    batches = list(setting.held_out)
    return batches[: max(1, HELD_OUT_MOST // len(batches[0]))] if batches else None


@lru_cache(maxsize=1)
def _prepared(setting: Setting, method: str, objective: str) -> tuple[Context, RemovalOrder]:
    """What does not depend on the amount: the statistics and the order of the units."""
    macs = fcompress.count(setting.model, setting.batches[0]).macs
    original = Predictor(setting.model)
    choice = Choice()
    if METHODS[method].takes_blocks:
        choice = blocks_of(original, setting.structure, setting.batches, seed=setting.seed)
    context = Context(
        original,
        setting.structure,
        setting.batches,
        setting.seed,
        macs,
        objective=objective,
        choice=choice,
    )
    with Predictor(setting.model).evaluating():
        alone = METHODS[method].not_pruned(context)
        if len(alone) == len(setting.structure.groups):
            raise fcompress.FcompressError(f"{method} can use no group of this network")
        return context, METHODS[method].removal_order(context)


RIVALS = (*(Own(name) for name in METHODS), Own("hybrid", "params"))
POLISHED = tuple(OwnPolished(name, DISTILL_EFFORT) for name in METHODS if name == "hybrid")
