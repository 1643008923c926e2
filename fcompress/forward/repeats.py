"""Does a network repeat its answers: when run again, and in another batch?

A certificate counts changed labels by one run of each network in batches of one size. That says
nothing of a network whose labels change from run to run, or with the other examples of the batch.
Both are found by a few runs of a small batch (docs/certificate.md):

1. many times, while random states and the network's own go on; then with clocks that are set
   ahead, and with the counters that it keeps further on (`hidden.py`);
2. each half of it, in the opposite order, and one example alone; the same of a whole batch of
   those that are counted, and its first examples.

What a network draws from, counts or keeps is looked for in torch, numpy, Python and its modules;
if something moved, all `RUNS` are made and smaller differences count. Rounding differs with the
batch size, so what counts is a difference that stays in double precision.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fcompress.errors import UnsupportedNetworkError
from fcompress.forward.copying import deep_copy
from fcompress.forward.draws import states_of
from fcompress.forward.hidden import AHEAD, COUNTS, clocks_ahead, numbers_of, numbers_set
from fcompress.forward.outputs import output_tensors
from fcompress.forward.predictor import Predictor

EXAMPLES = 8
# How far outputs may be apart, relative to the largest one, and be the same.
ROUNDING = {torch.float16: 0.01, torch.bfloat16: 0.05, torch.float64: 1e-7}
ROUNDING_SINGLE = 1e-4
# Examples of a whole batch, as answers are counted in.
LARGE = 256
# Runs of the same batch: what a network does once in ten of them is seen in 999 of 1,000 cases.
RUNS = 64
# A network of which nothing is seen to move is not run again after so many seconds.
SECONDS = 0.5
# Runs in which the layer is looked for.
FEW_RUNS = 16
# How far outputs may be apart where something in the network moved; drift begins small.
STEADY = 1e-6
# Parameters of which no copy in double precision is made.
MOST_PARAMETERS = 10**8
# Attributes of a module: containers within containers, and parts of one, that are looked into.
_DEEPEST = 3
_MOST_PARTS = 100
_BATCH_NORMS = nn.modules.batchnorm._BatchNorm


@dataclass(frozen=True)
class Unsteady:
    """How a network does not repeat its answers.

    Attributes:
        draws: Whether it gives other outputs for the same batch; else for another batch.
        layer: In words, the first layer that does; empty where it cannot be told.
        moved: Largest difference of an output, relative to the largest output.
    """

    draws: bool
    layer: str
    moved: float

    def __str__(self) -> str:
        by = f" ({self.layer})" if self.layer else ""
        if self.draws:
            return (
                f"the network does not repeat its answers{by}: on the same batch its outputs "
                f"differ by {self.moved:.2g} of their size from one run to the next"
            )
        return (
            f"the network's answers depend on the other examples of the batch{by}: in another "
            f"batch its outputs differ by {self.moved:.2g} of their size"
        )

    @property
    def remedy(self) -> str:
        """What can be done."""
        if self.draws:
            return (
                "let .eval() switch off its dropout and noise, or count how often it disagrees "
                "with itself against the tolerance by stochastic=True (--stochastic)"
            )
        return (
            "a certificate would hold for one batch size only; give its norms running statistics "
            "and compute each example by itself"
        )


def check_repeats(predictor: Predictor, inputs: Tensor, *, stochastic: bool = False) -> bool:
    """Refuse a network that does not repeat its answers.

    Args:
        predictor: The network.
        inputs: Some examples, as from `Predictor.place`.
        stochastic: Whether a network that draws is welcome.

    Returns:
        Whether it draws.

    Raises:
        UnsupportedNetworkError: It does not repeat its answers, with the layer and what to do.
    """
    found = unsteadiness(predictor, inputs)
    if found is not None and not (found.draws and stochastic):
        raise UnsupportedNetworkError(f"{found}; {found.remedy}")
    return found is not None


def unsteadiness(predictor: Predictor, inputs: Tensor) -> Unsteady | None:
    """How a network does not repeat its answers; None for one that does.

    Args:
        predictor: The network; it comes back as it was.
        inputs: A batch as answers are counted in, as from `Predictor.place`; of at most `LARGE`.
    """
    whole, inputs = inputs[:LARGE], inputs[:EXAMPLES]
    with _states_kept(predictor.network):
        checks: list[tuple[_Check, Tensor]] = [
            (_moved_again, inputs),
            (_moved_later, inputs),
            (_moved_in_another_batch, inputs),
        ]
        if len(whole) > len(inputs):
            checks.append((_moved_in_another_batch, whole))
        for check, examples in checks:
            moved, limit = check(predictor, examples)
            if moved > limit and not _is_rounding(predictor, examples, check):
                draws = check in (_moved_again, _moved_later)
                # Of a whole batch there is no room for what every layer gives.
                small = examples is inputs
                layer = _first_layer(predictor, inputs, draws) if small else ""
                return Unsteady(draws, layer, moved)
    return None


# The largest difference, and the one that rounding may make.
_Check = Callable[[Predictor, Tensor], tuple[float, float]]


def _moved_again(predictor: Predictor, inputs: Tensor) -> tuple[float, float]:
    """The largest difference between runs of the same batch, with draws that go on."""
    limit = _rounding(predictor)
    with predictor.evaluating():
        started = time.perf_counter()
        first = _run(predictor, inputs)
        before = _state(predictor.network)
        moved, runs = _distance(first, _run(predictor, inputs)), 2
        drifts = _state(predictor.network) != before
        if drifts:
            limit = min(limit, STEADY)
        while (
            moved <= limit and runs < RUNS and (drifts or time.perf_counter() - started < SECONDS)
        ):
            moved = max(moved, _distance(first, _run(predictor, inputs)))
            runs += 1
    return moved, limit


def _moved_later(predictor: Predictor, inputs: Tensor) -> tuple[float, float]:
    """The largest difference once clocks are ahead, and counters further on."""
    moved, network = 0.0, predictor.network
    with predictor.evaluating():
        before = numbers_of(network)
        first = _run(predictor, inputs)
        after = numbers_of(network)
        for seconds in AHEAD:
            with clocks_ahead(network, seconds):
                moved = max(moved, _distance(first, _run(predictor, inputs)))
        counters = {key: n for key, n in after.items() if key in before and n > before[key]}
        for count in COUNTS if counters else ():
            try:
                with numbers_set(counters, count):
                    found = [_run(predictor, inputs) for _ in range(2)]
            except Exception:  # a number that cannot be so large
                continue
            moved = max(moved, *(_distance(first, one) for one in found))
    return moved, _rounding(predictor)


def _moved_in_another_batch(predictor: Predictor, inputs: Tensor) -> tuple[float, float]:
    """The largest difference of an example's outputs in another batch; 0 where it does not run."""
    moved = 0.0
    with predictor.evaluating():
        whole = _run(predictor, inputs)
        few = torch.arange(min(EXAMPLES, len(inputs)) if len(inputs) > EXAMPLES else 1)
        for rows in [few, *_halves(len(inputs))]:
            try:
                part = _run(predictor, inputs[rows])
            except Exception:  # made for one size of batch, which goes wrong in words elsewhere
                continue
            moved = max(moved, _distance(*_aligned(whole, part, len(inputs), rows, merged=False)))
    return moved, _rounding(predictor)


def _is_rounding(predictor: Predictor, inputs: Tensor, check: _Check) -> bool:
    """Whether the difference goes away in double precision, so that rounding explains it."""
    network = predictor.network
    if predictor.dtype == torch.float64 or _size(network) > MOST_PARAMETERS:
        return False
    try:
        double = predictor.of(deep_copy(network).double())
        return check(double, double.place(inputs))[0] <= ROUNDING[torch.float64]
    except Exception:  # code that makes float32 tensors of its own
        return False


def _size(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def _rounding(predictor: Predictor) -> float:
    return ROUNDING.get(predictor.dtype, ROUNDING_SINGLE)


def _halves(n: int) -> list[Tensor]:
    """Every other example from the last one back, and the rest: another order, and half the size.

    What is largest in the batch is missing in one of them.
    """
    return [torch.arange(n - 1, -1, -2), torch.arange(n - 2, -1, -2)] if n > 1 else []


def _run(predictor: Predictor, inputs: Tensor) -> dict[str, Tensor]:
    found = output_tensors(predictor.whole(predictor.network, inputs.clone()))
    return {name: tensor.detach().clone() for name, tensor in found.items()}


def _distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """The largest difference of a tensor, relative to its largest value."""
    if one.keys() != other.keys():
        return float("inf")
    return max((_between(one[name], other[name]) for name in one), default=0.0)


def _between(a: Tensor, b: Tensor) -> float:
    if a.shape != b.shape:
        return float("inf")
    if not a.numel():
        return 0.0
    if not (a.is_floating_point() or a.is_complex()):
        return float((a != b).any())
    if a.is_complex():
        a, b = torch.view_as_real(a), torch.view_as_real(b)
    a, b = a.double(), b.double()
    same = (a == b) | (a.isnan() & b.isnan())
    gap = torch.where(same, 0.0, (a - b).abs()).nan_to_num(torch.inf, torch.inf)
    scale = a.nan_to_num(0, 0, 0).abs().max()
    return float(gap.max()) / max(float(scale), torch.finfo(torch.float32).tiny)


def _picked(whole: Tensor, part: Tensor, n: int, rows: Tensor, *, merged: bool) -> Tensor | None:
    """The examples `rows` of a tensor of n; None where it does not hold one row for each example.

    Args:
        whole: Of the batch of n.
        part: The same of `rows` alone.
        n: Examples in the batch.
        rows: Which examples `part` is of.
        merged: Whether examples may share their dimension with another one, as in [n * time, d].
    """
    if whole.dim() != part.dim() or not whole.dim():
        return None
    for dim in range(whole.dim()):
        size = whole.shape[dim]
        rest = [d for d in range(whole.dim()) if d != dim]
        fits = size == n or (merged and size and size % n == 0)
        if (
            fits
            and part.shape[dim] * n == size * len(rows)
            and all(whole.shape[d] == part.shape[d] for d in rest)
        ):
            split = whole.unflatten(dim, (n, size // n))
            return split.index_select(dim, rows.to(whole.device)).flatten(dim, dim + 1)
    return None


@contextmanager
def _states_kept(network: nn.Module) -> Iterator[None]:
    """The states of numpy and of Python come back, and the buffers of the network.

    `Predictor.evaluating` keeps torch's.
    """
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - the one that networks draw from
    buffers = [(b, b._version, b.clone()) for b in network.buffers() if not b.is_inference()]
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        with torch.no_grad():
            for buffer, version, values in buffers:
                if buffer._version != version:
                    buffer.copy_(values)


def _state(network: nn.Module) -> list[object]:
    """All that a pass could change, to be compared: random states, buffers, plain attributes."""
    torchs = [state.numpy().tobytes() for state in states_of(network).values()]
    numpys = str(np.random.get_state(legacy=False))  # noqa: NPY002
    found: list[object] = [*torchs, numpys, random.getstate()]
    for module in network.modules():
        found += [_mark(value, 0) for value in (*module._buffers.values(), vars(module))]
    return found


def _mark(value: object, depth: int) -> object:
    """What differs once a value of an attribute was changed; None where that is not looked for."""
    if isinstance(value, Tensor):
        return None if value.is_inference() else (id(value), value._version)
    if isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, torch.Generator):
        return value.get_state().numpy().tobytes()
    if isinstance(value, np.random.Generator):
        return str(value.bit_generator.state)
    if isinstance(value, np.random.RandomState):
        return str(value.get_state(legacy=False))
    if isinstance(value, random.Random):
        return value.getstate()
    if depth < _DEEPEST and isinstance(value, dict | list | tuple) and len(value) <= _MOST_PARTS:
        parts = value.values() if isinstance(value, dict) else value
        return [_mark(part, depth + 1) for part in parts]
    return None


# Which layer it is -----------------------------------------------------------------------


@dataclass(frozen=True)
class _Call:
    """One call of a module: what went in and came out."""

    name: str
    module: nn.Module
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]


def _first_layer(predictor: Predictor, inputs: Tensor, draws: bool) -> str:
    """The first module whose outputs move though its inputs do not, in words."""
    limit = _rounding(predictor)
    try:
        with predictor.evaluating():
            first = _calls(predictor, inputs)
            for rows in [None] * FEW_RUNS if draws else _halves(len(inputs)):
                second = _calls(predictor, inputs if rows is None else inputs[rows])
                for one, other in zip(first, second, strict=False):
                    if one.name != other.name:
                        break
                    pair = [(one.inputs, other.inputs), (one.outputs, other.outputs)]
                    if rows is not None:
                        n = len(inputs)
                        pair = [_aligned(*both, n, rows, merged=True) for both in pair]
                    if _distance(*pair[0]) <= limit < _distance(*pair[1]):
                        return _described(one)
    except Exception:  # hooks are not for every module; the network is refused without a name
        return ""
    return ""


def _aligned(
    whole: dict[str, Tensor], part: dict[str, Tensor], n: int, rows: Tensor, *, merged: bool
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What has a row for each example, of the examples `rows` of a batch of n, and of them alone.

    Arguments are those of `_picked`.
    """
    found = {}
    if _by_example(whole, n) and _by_example(part, len(rows)):
        # A list with an item for each example, as detectors give it.
        renamed = {}
        for name, tensor in part.items():
            number, _, rest = name.partition(".")
            renamed[f"{int(rows[int(number)])}.{rest}"] = tensor
        numbers = {str(int(row)) for row in rows}
        return {k: v for k, v in whole.items() if k.partition(".")[0] in numbers}, renamed
    for name, tensor in whole.items():
        if name in part:
            picked = _picked(tensor, part[name], n, rows, merged=merged)
            if picked is not None:
                found[name] = picked
    return found, {name: part[name] for name in found}


def _by_example(named: dict[str, Tensor], n: int) -> bool:
    """Whether outputs are those of a list of n items, each of several tensors."""
    first = [name.partition(".") for name in named]
    numbers = {number for number, _, rest in first if rest}
    return len(named) >= len(numbers) > 1 and numbers == {str(i) for i in range(n)}


def _calls(predictor: Predictor, inputs: Tensor) -> list[_Call]:
    """Every call of every module, in the order in which they end."""
    calls: list[_Call] = []

    def copied(value: Any) -> dict[str, Tensor]:
        return {name: t.detach().clone() for name, t in output_tensors(value).items()}

    handles = []
    pending: list[dict[str, Tensor]] = []
    for name, module in predictor.network.named_modules():

        def before(_: nn.Module, args: Any, kwargs: Any) -> None:
            pending.append(copied([args, kwargs]))

        def after(module: nn.Module, _: Any, output: Any, name: str = name) -> None:
            calls.append(_Call(name, module, pending.pop(), copied(output)))

        handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
        handles.append(module.register_forward_hook(after))
    try:
        predictor.whole(predictor.network, inputs.clone())
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _described(call: _Call) -> str:
    kind = type(call.module).__name__
    if isinstance(call.module, _BATCH_NORMS) and call.module.running_mean is None:
        kind = f"{kind} without running statistics"
    if not call.name:
        return f"in the forward of {kind} itself"
    return f"layer {call.name}, {kind}"
