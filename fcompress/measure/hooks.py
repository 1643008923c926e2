"""Look into a running network and change what its layers give: the only place with hooks.

A layer is addressed by the name of a submodule, or, where that submodule runs several times in
one forward pass, by the name and the number of the call: `relu#0`, `relu#1`. All hooks are
gone when a context manager ends, also after an error, and a layer that was asked for but did
not run is an error, never a silent gap.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fcompress.errors import UnsupportedNetworkError
from fcompress.forward.predictor import Predictor, as_predictor

# Activations of one batch that `Prefix` keeps; what is beyond it is computed again.
PREFIX_BYTES = 2**30


@dataclass(frozen=True)
class Call:
    """One execution of one submodule.

    Attributes:
        name: The submodule's qualified name.
        number: Which of its executions in this forward pass, from 0.
        module: The submodule.
        shape: Shape of its output, the batch first; None if the output is not one tensor of
            floating point numbers.
        is_output: Whether the network returned this tensor (or a view of it).
    """

    name: str
    number: int
    module: nn.Module
    shape: tuple[int, ...] | None
    is_output: bool


def trace_calls(model: nn.Module | Predictor, inputs: Tensor) -> tuple[Call, ...]:
    """Run the network once and list the executions of its submodules as they finish.

    Args:
        model: The network, in eval mode (see `Predictor.evaluating`).
        inputs: A small batch [n, ...].
    """
    seen: list[tuple[str, int, nn.Module, Any]] = []

    def note(name: str, number: int, module: nn.Module, output: Any) -> None:
        seen.append((name, number, module, output))

    predictor = as_predictor(model)
    names = {name: module for name, module in predictor.network.named_modules() if name}
    with _each_call(predictor.network, names, note):
        result = predictor(inputs)
    # The outputs are alive up to here, so that no two of them can share memory by chance.
    final = result.untyped_storage().data_ptr() if isinstance(result, Tensor) else None
    calls = []
    for name, number, module, output in seen:
        numbers = isinstance(output, Tensor) and output.is_floating_point()
        is_output = numbers and output.untyped_storage().data_ptr() == final
        shape = tuple(output.shape) if numbers else None
        calls.append(Call(name, number, module, shape, is_output))
    return tuple(calls)


@contextmanager
def observe(model: nn.Module, layers: Iterable[str]) -> Iterator[dict[str, Tensor]]:
    """See the outputs of some layers.

    Args:
        model: The network; its mode is left as it is.
        layers: Addresses, `name` or `name#call`.

    Yields:
        Address -> output of the layer in the latest forward pass, as the layer gave it. It is
        emptied when a forward pass begins; nothing is kept of earlier ones.

    Raises:
        UnsupportedNetworkError: There is no such layer, it did not run, it ran several times
            and its address does not say which, or its output is not a tensor.
    """
    outputs: dict[str, Tensor] = {}

    def keep(layer: str, output: Tensor) -> None:
        outputs[layer] = output

    with _at_layers(model, layers, keep, outputs.clear):
        yield outputs


@contextmanager
def ablate(model: nn.Module, masks: Mapping[str, Tensor]) -> Iterator[None]:
    """Set some outputs of some layers to 0 in every forward pass; nothing is rescaled.

    Args:
        model: The network; its mode and weights are left as they are.
        masks: Address -> bool, True where the output is set to 0; broadcast against the output
            without its batch dimension.

    Raises:
        UnsupportedNetworkError: As `observe`, or a mask does not fit the output.
    """

    def zero(layer: str, output: Tensor) -> Tensor:
        mask = masks[layer]
        try:
            fits = torch.broadcast_shapes(mask.shape, output.shape[1:]) == output.shape[1:]
        except RuntimeError:
            fits = False
        if not fits:
            raise UnsupportedNetworkError(
                f"layer {layer} gives {list(output.shape[1:])} for each example, but its mask is "
                f"{list(mask.shape)}; inputs of one size are needed to ablate single elements"
            )
        return output.masked_fill(mask, 0.0)

    with _at_layers(model, masks, zero):
        yield


@contextmanager
def before_relu(model: nn.Module) -> Iterator[Callable[[Tensor], Tensor]]:
    """See what ReLUs were given, which for a residual sum is the output of no module.

    Args:
        model: The network; its mode and weights are left as they are. Only `nn.ReLU` and
            `nn.ReLU6` are seen, no functions.

    Yields:
        Output of the latest forward pass -> what the ReLU that gave it was given; a tensor that no
        ReLU gave comes back as it is.
    """
    modules = {n: m for n, m in model.named_modules() if n and type(m) in (nn.ReLU, nn.ReLU6)}
    in_place = [module for module in modules.values() if module.inplace]
    seen: list[tuple[Tensor, Tensor]] = []

    def keep(module: nn.Module, args: Any, output: Tensor) -> None:
        seen.append((output, args[0]))

    def before(tensor: Tensor) -> Tensor:
        return next((given for output, given in seen if output is tensor), tensor)

    try:
        for module in in_place:
            module.inplace = False  # in place it overwrites what it was given
        with ExitStack() as stack:
            stack.callback(model.register_forward_pre_hook(lambda *_: seen.clear()).remove)
            for module in modules.values():
                stack.callback(module.register_forward_hook(keep).remove)
            yield before
    finally:
        for module in in_place:
            module.inplace = True


class Prefix:
    """What a network computed before some layer, to be used again instead of computed again.

    Ablating one layer changes nothing before it. `recording` keeps the outputs of the modules
    without submodules for one batch; `replaying` runs the network on the same batch with these
    in place of their computation, up to and including a layer. What lies between modules
    (sums, functional calls) is computed as always, so that any network will do.

    Args:
        model: The network; nothing of it is changed outside the context managers.
        budget: Bytes to keep at most; the outputs that come last are not kept.
    """

    def __init__(self, model: nn.Module, budget: int = PREFIX_BYTES) -> None:
        self._model = model
        self._budget = budget
        self._names = {n: m for n, m in model.named_modules() if n}
        self._leaves = {
            name: module
            for name, module in self._names.items()
            if next(module.children(), None) is None
            and not isinstance(module, torch.jit.ScriptModule)
        }
        self._finished: dict[tuple[str, int], int] = {}
        self._outputs: dict[tuple[str, int], Tensor] = {}
        # Outputs that a later operator writes into (ReLU in place, +=): kept as copies.
        self._written: set[tuple[str, int]] = set()

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Keep the outputs of the forward pass inside, and forget those of earlier ones."""
        self._finished.clear()
        self._outputs.clear()
        versions: dict[tuple[str, int], int] = {}
        left = self._budget

        def keep(name: str, number: int, module: nn.Module, output: Any) -> None:
            nonlocal left
            key = (name, number)
            self._finished[key] = len(self._finished)
            if name not in self._leaves or not isinstance(output, Tensor):
                return
            left -= output.numel() * output.element_size()
            if left < 0:
                return
            versions[key] = output._version
            self._outputs[key] = output.clone() if key in self._written else output

        with _each_call(self._model, self._names, keep):
            yield
        for key, version in versions.items():
            if key not in self._written and self._outputs[key]._version != version:
                self._written.add(key)
                del self._outputs[key]

    @contextmanager
    def replaying(self, layer: str) -> Iterator[None]:
        """Use the recorded outputs for all that finished before `layer` did, and for itself."""
        name, number = _parse(layer)
        last = self._finished[name, number or 0]
        counts: Counter[str] = Counter()
        changed: list[tuple[nn.Module, Any]] = []

        def recorded(name: str, compute: Callable[..., Any]) -> Callable[..., Any]:
            def forward(*args: Any, **kwargs: Any) -> Any:
                key = (name, counts[name])
                counts[name] += 1
                output = self._outputs.get(key)
                if output is None or self._finished[key] > last:
                    return compute(*args, **kwargs)
                return output.clone() if key in self._written else output

            return forward

        begin = self._model.register_forward_pre_hook(lambda *_: counts.clear())
        try:
            for name, module in self._leaves.items():
                changed.append((module, module.__dict__.get("forward")))
                module.forward = recorded(name, module.forward)
            yield
        finally:
            begin.remove()
            for module, before in changed:
                if before is None:
                    del module.__dict__["forward"]
                else:
                    module.forward = before


def _parse(layer: str) -> tuple[str, int | None]:
    name, mark, number = layer.rpartition("#")
    return (name, int(number)) if mark and number.isdecimal() else (layer, None)


@contextmanager
def _each_call(
    model: nn.Module,
    modules: Mapping[str, nn.Module],
    then: Callable[[str, int, nn.Module, Any], Any],
    begin: Callable[[], object] = lambda: None,
    end: Callable[[Counter[str]], object] = lambda counts: None,
) -> Iterator[None]:
    """Call `then(name, number, module, output)` after each execution of each module.

    What `then` returns replaces the output unless it is None. `begin` is called before a
    forward pass of `model` and `end` after it, with how often each module ran.
    """
    counts: Counter[str] = Counter()

    def before_all(*_: object) -> None:
        counts.clear()
        begin()

    def hook(name: str) -> Callable[..., Any]:
        def after(module: nn.Module, args: Any, output: Any) -> Any:
            number = counts[name]
            counts[name] += 1
            return then(name, number, module, output)

        return after

    with ExitStack() as stack:
        stack.callback(model.register_forward_pre_hook(before_all).remove)
        for name, module in modules.items():
            stack.callback(module.register_forward_hook(hook(name)).remove)
        stack.callback(model.register_forward_hook(lambda *_: end(counts)).remove)
        yield


@contextmanager
def _at_layers(
    model: nn.Module,
    layers: Iterable[str],
    at_output: Callable[[str, Tensor], Tensor | None],
    begin: Callable[[], object] = lambda: None,
) -> Iterator[None]:
    """Call `at_output(address, output)` at each layer, and check that each of them ran once."""
    known = dict(model.named_modules(remove_duplicate=False))
    wanted: dict[str, dict[int | None, str]] = {}
    for layer in layers:
        name, number = _parse(layer)
        if not name or name not in known:
            raise UnsupportedNetworkError(
                f"{type(model).__name__} has no layer {name!r}; a layer is named as in "
                "named_modules(), with #0, #1, ... for its calls if it runs several times"
            )
        wanted.setdefault(name, {})[number] = layer

    def then(name: str, number: int, module: nn.Module, output: Any) -> Tensor | None:
        layer = wanted[name].get(number, wanted[name].get(None))
        if layer is None:
            return None
        if not isinstance(output, Tensor):
            raise UnsupportedNetworkError(
                f"layer {layer} gives a {type(output).__name__}; expected one tensor"
            )
        return at_output(layer, output)

    def end(counts: Counter[str]) -> None:
        for name, numbers in wanted.items():
            for number, layer in numbers.items():
                if counts[name] <= (number or 0):
                    raise UnsupportedNetworkError(
                        f"layer {layer} did not run: {name} ran {counts[name]} times in one "
                        "forward pass; leave it out or name another call"
                    )
                if number is None and counts[name] > 1:
                    raise UnsupportedNetworkError(
                        f"layer {name} ran {counts[name]} times in one forward pass; say which "
                        f"call is meant: {name}#0 to {name}#{counts[name] - 1}"
                    )

    with _each_call(model, {name: known[name] for name in wanted}, then, begin, end):
        yield
