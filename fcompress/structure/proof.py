"""Groups proven by experiment: excising units must be the same as zeroing them.

For half of the units of each group, once the first and once any, on real inputs and in double
precision:

1. zero the units' columns at every consumer, while their producers compute something else
   entirely (the reference);
2. excise them: same outputs, or the network is wired differently than it seemed, or somebody
   else reads the units;
3. zero their producers instead: the same wherever what lies between maps 0 to 0.

All groups are tried at once; only if that fails are they taken apart to find the culprits.
Wiring does not depend on values, but zeros hide it: parameters that are (almost) all zero get
random values in the experiment's own copy of the network.
"""

from __future__ import annotations

import itertools
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fcompress.errors import FcompressError, UnsupportedNetworkError, first_line
from fcompress.forward.copying import deep_copy
from fcompress.forward.outputs import output_tensors
from fcompress.forward.running import as_inputs, cannot_run, dtype_of, tensors_of
from fcompress.nn.local_response_norm import LocalResponseNorm
from fcompress.surgery.excision import excise, numbers_of
from fcompress.surgery.preparation import Call, is_large, plainly
from fcompress.surgery.resizing import forget_caches
from fcompress.surgery.units import Group, Number, Slot

# Largest difference, relative to the largest output, that rounding explains.
_TOLERANCE = {torch.float64: 1e-8}
_COARSE = 1e-3
# Parameters with no value beyond this are taken for zeros; what they get instead.
_SILENT = 1e-3
_VOICE = 0.1
# An error in a module with more groups than this says little about which one it is.
_MOST_SUSPECTS = 12
# Numbers that are tried for one group, and of these in pairs.
_MOST_NUMBERS = 12
_PAIRED = 8


def prove(
    model: nn.Module, groups: Sequence[Group], example: Any, *, seed: int, call: Call = plainly
) -> tuple[list[Group], dict[str, str], dict[str, float]]:
    """Try to excise some units of every group and compare with zeroing them.

    Args:
        model: A plain copy (`preparation.plain_copy`); not changed.
        groups: Candidates.
        example: Input batch [N, ...] or tuple of inputs.
        seed: Chooses the units.
        call: Runs the network, `call(model, *inputs)`.

    Returns:
        Proven groups with `zero_through` and `numbers` as measured; names of groups that failed
        with the reason; the measured relative error and change, and the units excised.
    """
    experiment = _Experiment(model, groups, example, seed, call)
    failed: dict[str, str] = {}
    fitting = _fitting(experiment, groups, failed)
    proven = _largest_without(experiment.problem, fitting, failed)
    silent = experiment.zero_through(proven)
    measured = experiment.measured(proven)
    return [replace(g, zero_through=g.name in silent) for g in proven], failed, measured


def _fitting(
    experiment: _Experiment, groups: Sequence[Group], failed: dict[str, str]
) -> Sequence[Group]:
    """The groups with which the forward runs, tried without computing; the others failed.

    The module in which an error arises tells which groups it may be about: each of them is tried
    alone, and a group that does not fit gets numbers to lower (`excision.numbers_of`) or fails.
    """
    tried: set[str] = set()
    while True:
        found = experiment.misfit(groups)
        if found is None:
            return groups
        suspects = [g for g in found[1] if g.name not in tried]
        if not suspects or len(suspects) > _MOST_SUSPECTS:
            break
        tried.update(g.name for g in suspects)
        fitted = {g.name: _fitted(experiment, g, failed) for g in suspects}
        groups = [f for g in groups if (f := fitted.get(g.name, g)) is not None]

    def reason_only(candidates: Sequence[Group]) -> str | None:
        found = experiment.misfit(candidates)
        return None if found is None else found[0]

    alone: dict[str, str] = {}
    fitting = _largest_without(reason_only, groups, alone)
    for group in (g for g in groups if g.name in alone):
        fits = None if group.name in tried else _fitted(experiment, group, alone)
        if fits is not None and experiment.misfit([*fitting, fits]) is None:
            fitting.append(fits)
        else:
            failed[group.name] = alone[group.name]
    return fitting


def _fitted(experiment: _Experiment, group: Group, failed: dict[str, str]) -> Group | None:
    """A group that fits, if need be with some numbers to lower; None, and a reason, if none do."""
    found = experiment.misfit([group])
    if found is None:
        return group
    for some in experiment.numbers(group):
        candidate = replace(group, numbers=some)
        if experiment.misfit([candidate]) is None:
            experiment.found(candidate)
            return candidate
    failed[group.name] = found[0]
    return None


def _largest_without(
    problem: Callable[[Sequence[Group]], str | None],
    groups: Sequence[Group],
    failed: dict[str, str],
) -> list[Group]:
    """The groups that together give no problem; the others go to `failed` with the reason.

    All at once first; only if that fails are they taken apart by halves, groups that look alike
    side by side, since they tend to fail alike.
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

    grow(sorted(groups, key=_look))
    return fine


def _look(group: Group) -> list[tuple[str, int, str]]:
    """What a group's slots are called, without where in the network they stand."""
    return [(s.role, s.dim, ".".join(s.tensor.split(".")[-2:])) for s in group.slots]


def _alike(group: Group) -> tuple[Any, ...]:
    """What groups of the same kind of layer have in common."""
    return group.size, *_look(group)


def _attributes(numbers: Sequence[Number]) -> tuple[Any, ...]:
    return tuple((n.module.rpartition(".")[2], n.attribute, n.position) for n in numbers)


def _blamed(error: BaseException, model: nn.Module, groups: Sequence[Group]) -> list[Group]:
    """Groups with a place in the innermost module that was running when the error arose."""
    names = {id(module): name for name, module in model.named_modules()}
    path = ""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        path = names.get(id(frame.f_locals.get("self")), path)
    inside = f"{path}." if path else ""
    return [g for g in groups if any(s.tensor.startswith(inside) for s in g.slots)]


class _Called(nn.Module):
    """A network that is run the way its user runs it."""

    def __init__(self, network: nn.Module, call: Call) -> None:
        super().__init__()
        self.network = network
        # Not as an attribute of a module, which would take up a callable that is a module itself.
        self._how = (call,)

    def forward(self, *inputs: Any) -> Any:
        return self._how[0](self.network, *inputs)


class _Experiment:
    """One network, one input, some units of every group to remove."""

    def __init__(
        self, model: nn.Module, groups: Sequence[Group], example: Any, seed: int, call: Call
    ) -> None:
        self._call = call
        self._generator = torch.Generator().manual_seed(seed)
        self._large = is_large(model)
        self._model, self._inputs, self._original = self._in_double(model, example)
        if not self._original:
            raise UnsupportedNetworkError(
                f"{type(model).__name__} returns no floating point numbers; expected outputs "
                "that show whether units matter"
            )
        self._tolerance = _TOLERANCE.get(self._original[0].dtype, _COARSE)
        self._tensors = tensors_of(self._model)
        # Removing the first half upsets code that treats the ends of a dimension differently, a
        # random half upsets code that counts in steps. The first unit goes only once, so that two
        # units are both tried.
        first = {g.name: torch.arange(max(1, g.size // 2)) for g in groups}
        some = {
            g.name: 1 + torch.randperm(g.size - 1, generator=self._generator)[: max(1, g.size // 2)]
            for g in groups
        }
        self._trials = (first, some)
        self._known: dict[tuple[str, int, frozenset[str]], list[Tensor]] = {}
        self._on_meta = True
        self._shapes = _converted(self._model, lambda t: t.to("meta"))
        try:
            self._run_shapes(self._shapes)
        except Exception:  # networks that look at values run for real only
            self._on_meta, self._shapes = False, self._model
        # Attributes of the numbers that groups needed, by how their slots look.
        self._lowered: dict[Any, tuple[Any, ...]] = {}

    def _in_double(
        self, model: nn.Module, example: Any
    ) -> tuple[nn.Module, tuple[Any, ...], list[Tensor]]:
        """The network, its input and outputs in double precision where code and size allow it."""
        single = dtype_of(model)
        for dtype in (single,) if self._large else (torch.float64, single):
            own = _converted(model, partial(self._awake, dtype))
            inputs = as_inputs(example, dtype)
            try:
                return own, inputs, self._run(own, inputs)
            except Exception as error:  # code that makes float32 tensors of its own
                failure = error
        if isinstance(failure, FcompressError):
            raise failure
        raise cannot_run(inputs, failure) from failure

    def _awake(self, dtype: torch.dtype, tensor: Tensor) -> Tensor:
        """A copy of a parameter or buffer, with random values if it is silent."""
        if not tensor.is_floating_point():
            return tensor.clone()
        if isinstance(tensor, nn.Parameter) and bool((tensor.abs() < _SILENT).all()):
            return _VOICE * torch.randn(tensor.shape, generator=self._generator, dtype=dtype)
        # Nothing changes parameters in place, so those of a large network need no second copy.
        shared = isinstance(tensor, nn.Parameter) and self._large
        return tensor.detach().to(dtype, copy=not shared)

    def misfit(self, groups: Sequence[Group]) -> tuple[str, list[Group]] | None:
        """Why the forward does not run on smaller tensors, and which groups may be the cause."""
        excised = self._shapes
        try:
            excised = excise(excised, groups, self._kept(groups, 0), share=True)
            self._run_shapes(excised)
        except Exception as error:
            cause = _cause(error)
            return _width_error(cause), _blamed(cause, excised, groups)
        return None

    def numbers(self, group: Group) -> list[tuple[Number, ...]]:
        """Sizes that modules keep and that may count the units of `group`, alone and in pairs.

        What another group that looks alike needed comes first.
        """
        found = numbers_of(self._model, group)[:_MOST_NUMBERS]
        some = [*((n,) for n in found), *itertools.combinations(found[:_PAIRED], 2)]
        known = self._lowered.get(_alike(group))
        return sorted(some, key=lambda numbers: _attributes(numbers) != known)

    def found(self, group: Group) -> None:
        """Remember which numbers a group needed."""
        self._lowered[_alike(group)] = _attributes(group.numbers)

    def problem(self, groups: Sequence[Group]) -> str | None:
        """What goes wrong when units of all these groups go; None if nothing does."""
        for trial in range(len(self._trials)):
            try:
                excised = self._excised(groups, trial)
            except Exception as error:
                return _width_error(_cause(error))
            reference = self._reference(groups, trial)
            if self._agree(excised, reference):
                continue
            if self._agree(self._run_with(self._zeroed(groups, trial)), reference):
                return "excising its units is not the same as zeroing them"
            return "somebody else reads its units: zeroing them at the consumers is not enough"
        return None

    def zero_through(self, groups: Sequence[Group]) -> set[str]:
        """The groups whose producers can be zeroed instead: 0 stays 0 up to the consumers."""
        found: set[str] = set()

        def halve(candidates: Sequence[Group]) -> None:
            if not candidates:
                return
            silenced = self._silenced(candidates, 0)
            if self._agree(self._run_with(silenced), self._reference(candidates, 0)):
                found.update(g.name for g in candidates)
            elif len(candidates) > 1:
                half = len(candidates) // 2
                halve(candidates[:half])
                halve(candidates[half:])

        halve(sorted(groups, key=_look))
        return found

    def measured(self, groups: Sequence[Group]) -> dict[str, float]:
        """How far excising is from zeroing, and how much either changes the outputs."""
        if not groups:
            return {"units": 0.0, "error": 0.0, "change": 0.0}
        trials = range(len(self._trials))
        pairs = [(self._excised(groups, t), self._reference(groups, t)) for t in trials]
        return {
            "units": float(sum(len(self._trials[0][g.name]) for g in groups)),
            "error": max(_distance(excised, reference) for excised, reference in pairs),
            "change": min(_distance(excised, self._original) for excised, _ in pairs),
        }

    def _kept(self, groups: Sequence[Group], trial: int) -> dict[str, Tensor]:
        kept = {}
        for group in groups:
            stays = torch.ones(group.size, dtype=torch.bool)
            stays[self._trials[trial][group.name]] = False
            kept[group.name] = stays.nonzero().flatten()
        return kept

    def _reference(self, groups: Sequence[Group], trial: int) -> list[Tensor]:
        """Outputs with the units zeroed at their consumers while their producers go wild."""
        key = ("reference", trial, frozenset(g.name for g in groups))
        if key not in self._known:
            self._known[key] = self._run_with(self._zeroed(groups, trial, wild=True))
        return self._known[key]

    def _excised(self, groups: Sequence[Group], trial: int) -> list[Tensor]:
        """Outputs with the units excised."""
        key = ("excised", trial, frozenset(g.name for g in groups))
        if key not in self._known:
            excised = excise(self._model, groups, self._kept(groups, trial), share=True)
            self._known[key] = self._run(excised, self._inputs)
        return self._known[key]

    def _silenced(self, groups: Sequence[Group], trial: int) -> dict[str, Tensor]:
        """Tensors with the units zeroed at their producers and whatever lies between."""
        changed = self._edited(groups, trial, "producer", 0.0, {})
        return self._edited(groups, trial, "between", 0.0, changed)

    def _zeroed(
        self, groups: Sequence[Group], trial: int, *, wild: bool = False
    ) -> dict[str, Tensor]:
        """Tensors with the units zeroed: at their consumers, and where neighbours see them.

        Local response normalisation lets a unit weaken its neighbours. To zero such a unit is to
        zero it before the normalisation, and that is what excising it has to equal. Other units
        may go `wild`: their producers compute something else, out of units that are kept.
        """
        changed = self._silenced([g for g in groups if self._neighbourly(g)], trial)
        if wild:
            others = [g for g in groups if not self._neighbourly(g)]
            changed = self._edited(others, trial, "producer", None, changed)
        return self._edited(groups, trial, "consumer", 0.0, changed)

    def _neighbourly(self, group: Group) -> bool:
        """Whether the units of a group pass a local response normalisation."""
        owners = (self._model.get_submodule(s.tensor.rpartition(".")[0]) for s in group.slots)
        return any(isinstance(owner, LocalResponseNorm) for owner in owners)

    def _run_shapes(self, model: nn.Module) -> None:
        place = "meta" if self._on_meta else "cpu"
        self._run(model, tuple(t.to(place) if isinstance(t, Tensor) else t for t in self._inputs))

    def _run_with(self, changed: dict[str, Tensor]) -> list[Tensor]:
        for module in self._model.modules():
            forget_caches(module)
        # A wrapper, because `functional_call` runs the module that it is given, and `call` has to
        # run the network inside; tensors under several names are found in it all the same.
        renamed = {f"network.{name}": tensor for name, tensor in changed.items()}
        wrapped = _Called(self._model, self._call)
        return self._outputs(torch.func.functional_call, wrapped, renamed, self._inputs)

    def _run(self, model: nn.Module, inputs: tuple[Any, ...]) -> list[Tensor]:
        return self._outputs(self._call, model, *inputs)

    @staticmethod
    def _outputs(run: Callable[..., Any], *args: Any) -> list[Tensor]:
        """Floating point outputs; networks that draw random numbers draw the same every time."""
        torch.default_generator.manual_seed(0)
        leaves = output_tensors(run(*args)).values()
        return [x for x in leaves if x.is_floating_point() and x.numel()]

    def _edited(
        self,
        groups: Sequence[Group],
        trial: int,
        role: str,
        value: float | None,
        base: dict[str, Tensor],
    ) -> dict[str, Tensor]:
        """Tensors with the removed units' places of one role set to `value`, or scrambled.

        A tensor that `base` already holds is changed further, in place.
        """
        gone: dict[tuple[str, int], Tensor] = {}
        for group in groups:
            removed = torch.zeros(group.size + 1, dtype=torch.bool)
            removed[self._trials[trial][group.name]] = True
            for slot in group.slots:
                if slot.role == role and self._editable(slot):
                    key = (slot.tensor, slot.dim)
                    gone[key] = gone.get(key, torch.tensor(False)) | removed[slot.units]
        changed = dict(base)
        for (name, dim), mask in gone.items():
            if name not in changed:
                changed[name] = self._tensors[name].clone()
            tensor = changed[name]
            at = mask.nonzero().flatten()
            if value is None:
                rows = tensor.index_select(dim, at)
                shape = [-1 if d == dim else 1 for d in range(tensor.dim())]
                noise = torch.randn(len(at), generator=self._generator, dtype=rows.dtype)
                tensor.index_copy_(dim, at, rows.add_(1).mul_(noise.view(shape)))
            else:
                tensor.index_fill_(dim, at, value)
        return changed

    def _editable(self, slot: Slot) -> bool:
        """Buffers (running statistics, positions) are cut but never set to other values."""
        return isinstance(self._tensors[slot.tensor], nn.Parameter)

    def _agree(self, a: list[Tensor], b: list[Tensor]) -> bool:
        same_shapes = len(a) == len(b) and all(
            x.shape == y.shape for x, y in zip(a, b, strict=True)
        )
        return same_shapes and _distance(a, b) <= self._tolerance


def _cause(error: BaseException) -> BaseException:
    """What the network's own code raised, where that has become an error of ours."""
    return error.__cause__ or error if isinstance(error, FcompressError) else error


def _width_error(error: BaseException) -> str:
    return f"the forward does not run at another width ({first_line(error)[:120]})"


def _converted(model: nn.Module, convert: Callable[[Tensor], Tensor]) -> nn.Module:
    """A deep copy whose parameters and buffers are what `convert` makes of them."""
    memo: dict[int, Any] = {}
    for tensor in [*model.parameters(), *model.buffers()]:
        memo[id(tensor)] = convert(tensor)
        if isinstance(tensor, nn.Parameter):
            memo[id(tensor)] = nn.Parameter(memo[id(tensor)], requires_grad=False)
    converted = deep_copy(model, memo)
    for module in converted.modules():
        forget_caches(module)
    return converted


def _distance(a: list[Tensor], b: list[Tensor]) -> float:
    """Largest difference, relative to the largest finite value of `b`; infinite for other shapes.

    Detectors give as many boxes as they find, which may be others, or none.
    """
    worst = 0.0
    for x, y in zip(a, b, strict=True):
        if x.shape != y.shape:
            return torch.inf
        if not y.numel():
            continue
        scale = max(float(y.nan_to_num(0, 0, 0).abs().amax()), torch.finfo(y.dtype).tiny)
        gap = torch.where(x == y, 0, x - y).abs().nan_to_num(torch.inf)
        worst = max(worst, float(gap.amax()) / scale)
    return worst
