"""What every method of the comparison (`bench quality`) gets, and what it gives back.

All of them see the same trained network, the same unlabelled calibration inputs and the same
seed. None sees a label or the images that the result is measured on.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

import fcompress


@dataclass(frozen=True, eq=False)
class Setting:
    """What every method gets. Two settings are equal only if they are the same object.

    Attributes:
        model: The wide network, in eval mode; never to be changed.
        structure: Its proven groups, for methods that want them.
        batches: Calibration inputs [N, ...], several batches of one size; no labels.
        seed: Of all choices.
        pool: Further calibration inputs in batches, `batches` among them, for methods that can
            use more than they need for statistics (polishing).
        held_out: Inputs that nothing may be fitted to, to choose between states of a network: those
            of the search split, which every method is chosen on.
    """

    model: nn.Module
    structure: fcompress.Structure
    batches: Sequence[Tensor]
    seed: int
    pool: Sequence[Tensor] = ()
    held_out: Sequence[Tensor] = ()


class Rival(Protocol):
    """One method of the comparison.

    Attributes:
        name: In tables and file names: lower case, words joined by hyphens.
        summary: What it does, in one line.
    """

    @property
    def name(self) -> str: ...

    @property
    def summary(self) -> str: ...

    def make(self, setting: Setting, amount: float) -> nn.Module:
        """The thin network.

        Args:
            setting: The same for every amount; the model in it stays as it is.
            amount: In (0, 1); larger is thinner.

        Returns:
            A new network in eval mode, batch norm recalibrated where the method says so.

        Raises:
            Exception: Of any kind, where the method cannot do this network; the table then says
                "fails" with the message.
        """
        ...
