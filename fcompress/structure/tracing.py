"""Run a network once on unit ids (see `tracer.py`).

Operators that only move data are executed on the ids as they are, so permutes, shuffles,
windows and flattening need no index arithmetic of our own. Elementwise operators tie the ids
of their operands together. Convolutions and matrix products end one set of units and begin
another. An operator in none of the classes is not understood: the units that go in are not
pruned, and it is named.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)
from torch.utils._python_dispatch import TorchDispatchMode

from fcompress.forward.copying import deep_copy
from fcompress.forward.running import as_inputs, dtype_of, runs_on, step_by_step, tensors_in
from fcompress.nn.attention import MultiheadAttention
from fcompress.nn.local_response_norm import LocalResponseNorm
from fcompress.structure.liveness import Executed, executed
from fcompress.structure.rules_elementwise import (
    MOVES,
    Rule,
    clear,
    copy_in,
    is_pointwise,
    move,
    of_parameters,
    operator_name,
    pointwise,
    relayout,
    unknown,
)
from fcompress.structure.rules_mixing import (
    BY_NAME,
    attention,
    bilinear,
    convolution,
    cumulative,
    deformable,
    embedding,
    matmul,
    reduction,
    resample,
)
from fcompress.structure.tracer import Tracer
from fcompress.structure.unit_ids import INPUT
from fcompress.surgery.preparation import Call, plainly
from fcompress.surgery.resizing import forget_caches

FIXED_WIDTH = "nn.MultiheadAttention is made for one width"

_RULES: dict[str, Rule] = {
    **dict.fromkeys(MOVES, move),
    **BY_NAME,
    "as_strided_": relayout,
    "copy_": copy_in,
    "fill_": clear,
    "zero_": clear,
}
_RESAMPLING = ("upsample", "grid_sampler", "max_pool", "avg_pool", "adaptive_")
_REDUCTIONS = frozenset(
    (
        "mean sum amax amin var std var_mean std_mean norm linalg_vector_norm prod logsumexp "
        "max min any all nansum median"
    ).split()
)
_CUMULATIVE = frozenset("cumsum cumprod cummax cummin logcumsumexp".split())
_FACTORIES = frozenset(
    (
        "empty empty_like empty_strided zeros zeros_like ones ones_like full full_like arange "
        "new_zeros new_ones new_full new_empty new_empty_strided rand randn rand_like "
        "randn_like scalar_tensor linspace eye _local_scalar_dense item sym_size is_nonzero "
        "equal randint tril_indices triu_indices bernoulli"
    ).split()
)
# Rules that know what to do with parameters among their operands.
_FOR_PARAMETERS = (move, convolution, deformable, bilinear, matmul, embedding)


def trace(
    model: nn.Module, example: Any, *, call: Call = plainly, also: Sequence[Any] = ()
) -> Tracer:
    """Run a network on unit ids, once for each way through it.

    Args:
        model: A plain copy (`preparation.plain_copy`); run within `running.quiet_tracing`.
        example: A real input batch, a tensor [N, ...] or a tuple of positional inputs.
        call: Runs the network, `call(model, *inputs)`; what it returns counts as the output.
        also: Further batches, on which the network executes other operators.

    Returns:
        Everything that was learned; places of units in a parameter that several runs found
        belong together.

    Raises:
        UnsupportedNetworkError: The network does not run on the example.
    """
    tracer = Tracer(model)
    for one in (example, *also):
        _run(model, as_inputs(one, dtype_of(model)), call, tracer)
    for module in model.modules():
        if isinstance(module, nn.MultiheadAttention) and not isinstance(module, MultiheadAttention):
            for parameter in module.parameters():
                tracer.not_understood(parameter, FIXED_WIDTH)
    _states(model, tracer)
    tracer.finish()
    return tracer


def _states(model: nn.Module, tracer: Tracer) -> None:
    """Recurrent modules read their own states, in as many columns in each layer and direction.

    Of a state that was never anything but zeros (one step) no column would be known otherwise.
    """
    for path, module in model.named_modules():
        prefix = f"{path}." if path else ""
        if isinstance(module, nn.RNNCellBase):
            _read_again(tracer, prefix, ("",), projected=False)
        elif isinstance(module, nn.RNNBase):
            ways = ("", "_reverse") if module.bidirectional else ("",)
            names = [f"_l{layer}{way}" for layer in range(module.num_layers) for way in ways]
            _read_again(tracer, prefix, names, projected=module.proj_size > 0)


def _read_again(tracer: Tracer, prefix: str, names: Sequence[str], *, projected: bool) -> None:
    for name in names:
        state = tracer.rows(f"{prefix}weight_h{'r' if projected else 'h'}{name}")
        if state is not None:
            weight = f"{prefix}weight_hh{name}"
            width = tracer.parameters.tensors[weight].shape[1]
            tracer.belongs(weight, 1, state[:width], "consumer")
    for kind in ("weight_hh", "weight_hr"):
        lines = [tracer.rows(f"{prefix}{kind}{name}") for name in names]
        for line in lines[1:]:
            if line is not None and lines[0] is not None:
                tracer.tie(lines[0], line)


def _run(model: nn.Module, inputs: tuple[Any, ...], call: Call, tracer: Tracer) -> None:
    for tensor in tensors_in(inputs):
        tracer.set(tensor, torch.tensor(INPUT).expand(tensor.shape))
    mode = _OnUnitIds(tracer, _known_steps(model, inputs, call))
    run = _with_exact_normalisation(model, mode)
    with runs_on(*inputs), step_by_step(model), _places(model, tracer), mode:
        outputs = call(run, *inputs)
    tracer.returned(outputs)
    for module in model.modules():
        forget_caches(module)


def _known_steps(model: nn.Module, inputs: tuple[Any, ...], call: Call) -> Sequence[Executed]:
    """What `liveness.executed` says, or nothing of a network that does not run."""
    try:
        with step_by_step(model):
            return executed(model, inputs, call)
    except Exception:  # said by the run that follows
        return ()
    finally:
        for module in model.modules():
            forget_caches(module)


@contextmanager
def _places(model: nn.Module, tracer: Tracer) -> Iterator[None]:
    """Let the tracer know which module of a network is running."""
    names = {id(module): path for path, module in model.named_modules()}
    inside: list[str] = []

    def enter(module: nn.Module, inputs: Any) -> None:
        path = names.get(id(module))
        inside.append(tracer.place if path is None else f"{type(module).__name__} {path}".rstrip())
        tracer.place = inside[-1]

    def leave(module: nn.Module, inputs: Any, outputs: Any) -> None:
        inside.pop()
        tracer.place = inside[-1] if inside else ""

    hooks = (
        register_module_forward_pre_hook(enter),
        register_module_forward_hook(leave, always_call=True),
    )
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class _OnUnitIds(TorchDispatchMode):
    """Executes every operator, then says what it does to unit ids."""

    def __init__(self, tracer: Tracer, steps: Sequence[Executed]) -> None:
        super().__init__()
        self.tracer = tracer
        self.paused = False
        self._steps = steps
        self._at = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        step = self._steps[self._at] if self._at < len(self._steps) else None
        self._at += 1
        dead = step is not None and step.func is func and not step.live
        if not self.paused and not dead:
            _propagate(self.tracer, func, args, kwargs or {}, out)
        return out


def _propagate(tracer: Tracer, func: Any, args: Any, kwargs: dict[str, Any], out: Any) -> None:
    operands = tensors_in((args, kwargs))
    if operator_name(func) in _FACTORIES or not operands:
        return
    rule = _rule(func)
    if rule is not move:
        for operand in operands:
            for name in tracer.parameters.names_in(operand):
                tracer.parameters.readers.setdefault(name, tracer.placed(operator_name(func)))
    if rule not in _FOR_PARAMETERS:
        known = [a for a in operands if tracer.parameters.is_parameter(a)]
        others = [a for a in operands if not tracer.parameters.is_parameter(a)]
        if known and all(tracer.of(a) is None for a in others):
            of_parameters(tracer, func, known, out)
            return
    rule(tracer, func, args, kwargs, out)


def _rule(func: Any) -> Rule:
    name = operator_name(func)
    if name in _RULES and func._overloadname != "dtype":
        return _RULES[name]
    if name.startswith("_scaled_dot_product"):
        return attention
    if any(part in name for part in _RESAMPLING) and "backward" not in name:
        return resample
    if name in _REDUCTIONS:
        return reduction
    if name in _CUMULATIVE:
        return cumulative
    return pointwise if is_pointwise(func) else unknown


class _Through(nn.Module):
    """Runs a local response normalisation as one operator that keeps its units.

    It mixes channels, but by their positions: excising one equals zeroing it.
    """

    def __init__(self, norm: LocalResponseNorm, mode: _OnUnitIds) -> None:
        super().__init__()
        self.norm = norm
        self.mode = mode

    def forward(self, x: Tensor) -> Tensor:
        self.mode.paused = True
        output = self.norm(x)
        self.mode.paused = False
        tracer = self.mode.tracer
        ids = tracer.known(x)
        others = [d for d in range(ids.dim()) if d != 1]
        line = tracer.tie_along(ids, others, "local response normalisation")
        tracer.assign(self.norm.positions, 0, line.flatten().expand(x.shape[1]), "between")
        tracer.set(output, ids)
        return output


def _with_exact_normalisation(model: nn.Module, mode: _OnUnitIds) -> nn.Module:
    """`model`, or a copy with the same tensors that traces local response normalisations."""
    norms = [m for m in model.modules() if isinstance(m, LocalResponseNorm)]
    if not norms:
        return model
    memo: dict[int, Any] = {id(t): t for t in [*model.parameters(), *model.buffers()]}
    memo |= {id(m): _Through(m, mode) for m in norms}
    return deep_copy(model, memo)
