"""Groups proven by experiment: excising units must be the same as zeroing them.

For some units of each group three things are compared on real inputs, in double precision:

1. zeroing the units' columns at every consumer (the reference);
2. excising them: same outputs, or the network is wired differently than it seemed;
3. zeroing them at the consumers while their producers compute something else entirely: same
   outputs, or somebody else reads the units.

All groups are tried at once; only if that fails are they taken apart to find the culprits.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from fcompress.excise import excise

if TYPE_CHECKING:
    from fcompress.groups import Group, Slot

TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3}
SHARE = 0.1


def prove(
    model: nn.Module, groups: Sequence[Group], example: Any, *, seed: int
) -> tuple[dict[str, bool], dict[str, str], dict[str, float]]:
    """Try to excise some units of every group and compare with zeroing them.

    Args:
        model: A copy on the CPU in eval mode; not changed.
        groups: Candidates.
        example: Input batch [N, ...] or tuple of inputs.
        seed: Chooses the units.

    Returns:
        Proven groups by name with whether zeroing their producers also agrees; groups that
        failed with the reason; the measured relative error and change, and the units excised.
    """
    experiment = Experiment(model, groups, example, seed)
    failed: dict[str, str] = {}
    fits = _largest_without(experiment.misfit, groups, failed)
    proven = _largest_without(experiment.problem, fits, failed)
    silent = experiment.zero_through(proven)
    return {g.name: g.name in silent for g in proven}, failed, experiment.measured(proven)


def _largest_without(
    problem: Callable[[Sequence[Group]], str | None],
    groups: Sequence[Group],
    failed: dict[str, str],
) -> list[Group]:
    """The groups that together give no problem; the others go to `failed` with the reason.

    All at once first; only if that fails are they taken apart by halves.
    """
    fine: list[Group] = []

    def grow(candidates: Sequence[Group]) -> None:
        if not candidates:
            return
        found = problem([*fine, *candidates])
        if found is None:
            fine.extend(candidates)
        elif len(candidates) == 1:
            failed[candidates[0].name] = found
        else:
            half = len(candidates) // 2
            grow(candidates[:half])
            grow(candidates[half:])

    grow(list(groups))
    return fine


class Experiment:
    """One network, one input, some units of every group to remove."""

    def __init__(self, model: nn.Module, groups: Sequence[Group], example: Any, seed: int) -> None:
        self.model, self.inputs, self.original = _in_double(model, example)
        self.tolerance = TOLERANCE[self.original[0].dtype]
        self.tensors = dict(self.model.named_parameters()) | dict(self.model.named_buffers())
        generator = torch.Generator().manual_seed(seed)
        self.removed = {}
        for group in groups:
            count = min(group.size - 1, max(1, round(SHARE * group.size)))
            self.removed[group.name] = torch.randperm(group.size, generator=generator)[:count]
        self.generator = generator
        self.shapes: nn.Module | None = copy.deepcopy(self.model).to("meta")
        try:
            self._run_shapes(self.shapes)
        except Exception:  # networks that look at values run for real only
            self.shapes = None

    def misfit(self, groups: Sequence[Group]) -> str | None:
        """Whether the forward runs on thinner tensors at all, tried without computing."""
        if self.shapes is None:
            return None
        try:
            self._run_shapes(excise(self.shapes, groups, self._kept(groups), share=True))
        except Exception as error:
            return _width_error(error)
        return None

    def _run_shapes(self, model: nn.Module) -> None:
        inputs = (t.to("meta") if isinstance(t, Tensor) else t for t in self.inputs)
        with torch.no_grad():
            model(*inputs)

    def _kept(self, groups: Sequence[Group]) -> dict[str, Tensor]:
        kept = {}
        for group in groups:
            stays = torch.ones(group.size, dtype=torch.bool)
            stays[self.removed[group.name]] = False
            kept[group.name] = stays.nonzero().flatten()
        return kept

    def problem(self, groups: Sequence[Group]) -> str | None:
        """What goes wrong when units of all these groups go; None if nothing does."""
        reference = self._run_with(self._edited(groups, "consumer", 0.0))
        scrambled = self._edited(groups, "consumer", 0.0)
        scrambled |= self._edited(groups, "producer", None, scrambled)
        if not self._agree(self._run_with(scrambled), reference):
            return "somebody else reads its units: zeroing them at the consumers is not enough"
        try:
            thin = excise(self.model, groups, self._kept(groups), share=True)
            outputs = _run(thin, self.inputs)
        except Exception as error:
            return _width_error(error)
        if not self._agree(outputs, reference):
            return "excising its units is not the same as zeroing them"
        return None

    def zero_through(self, groups: Sequence[Group]) -> set[str]:
        """The groups whose producers can be zeroed instead: 0 stays 0 up to the consumers."""
        found: set[str] = set()

        def halve(candidates: Sequence[Group]) -> None:
            if not candidates:
                return
            silenced = self._edited(candidates, "producer", 0.0)
            silenced |= self._edited(candidates, "between", 0.0, silenced)
            reference = self._run_with(self._edited(candidates, "consumer", 0.0))
            if self._agree(self._run_with(silenced), reference):
                found.update(g.name for g in candidates)
            elif len(candidates) > 1:
                half = len(candidates) // 2
                halve(candidates[:half])
                halve(candidates[half:])

        halve(groups)
        return found

    def measured(self, groups: Sequence[Group]) -> dict[str, float]:
        """How far excising is from zeroing, and how much either changes the outputs."""
        if not groups:
            return {"units": 0, "error": 0.0, "change": 0.0}
        reference = self._run_with(self._edited(groups, "consumer", 0.0))
        thin = _run(excise(self.model, groups, self._kept(groups), share=True), self.inputs)
        return {
            "units": float(sum(len(self.removed[g.name]) for g in groups)),
            "error": _distance(thin, reference),
            "change": _distance(reference, self.original),
        }

    def _edited(
        self,
        groups: Sequence[Group],
        role: str,
        value: float | None,
        base: dict[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Tensors with the removed units' places of one role set to `value`, or scrambled."""
        changed = dict(base or {})
        for group in groups:
            gone = torch.zeros(group.size + 1, dtype=torch.bool)
            gone[self.removed[group.name]] = True
            for slot in group.slots:
                if slot.role != role or not self._editable(slot):
                    continue
                tensor = changed.get(slot.tensor, self.tensors[slot.tensor]).clone()
                at = gone[slot.units].nonzero().flatten()
                if value is None:
                    other = tensor.index_select(slot.dim, at)
                    noise = torch.randn(other.shape, generator=self.generator, dtype=other.dtype)
                    tensor.index_copy_(slot.dim, at, other + noise)
                else:
                    tensor.index_fill_(slot.dim, at, value)
                changed[slot.tensor] = tensor
        return changed

    def _editable(self, slot: Slot) -> bool:
        """Buffers (running statistics, positions) are cut but never set to other values."""
        return isinstance(self.tensors[slot.tensor], nn.Parameter)

    def _run_with(self, changed: dict[str, Tensor]) -> list[Tensor]:
        return _run(
            lambda *inputs: torch.func.functional_call(self.model, changed, inputs), self.inputs
        )

    def _agree(self, a: list[Tensor], b: list[Tensor]) -> bool:
        same_shapes = len(a) == len(b) and all(
            x.shape == y.shape for x, y in zip(a, b, strict=True)
        )
        return same_shapes and _distance(a, b) <= self.tolerance


def _width_error(error: Exception) -> str:
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return f"the forward does not run at another width ({line[:120]})"


def _in_double(model: nn.Module, example: Any) -> tuple[nn.Module, tuple[Any, ...], list[Tensor]]:
    """The network, its input and its outputs in double precision where the code allows it."""
    from fcompress.groups import as_inputs

    double = copy.deepcopy(model).double()
    inputs = as_inputs(example, torch.float64)
    try:
        return double, inputs, _run(double, inputs)
    except RuntimeError:
        inputs = as_inputs(example, torch.float32)
        return model, inputs, _run(model, inputs)


def _run(model: Callable[..., Any], inputs: tuple[Any, ...]) -> list[Tensor]:
    with torch.no_grad():
        leaves = tree_leaves(model(*inputs))
    return [x for x in leaves if isinstance(x, Tensor) and x.is_floating_point()]


def _distance(a: list[Tensor], b: list[Tensor]) -> float:
    """Largest difference, relative to the largest value."""
    worst = 0.0
    for x, y in zip(a, b, strict=True):
        scale = max(float(y.abs().amax()), torch.finfo(y.dtype).tiny)
        worst = max(worst, float((x - y).abs().amax()) / scale)
    return worst
