"""Blocks of a network that can go as a whole, found in its recording and proven by experiment.

A block is the branch of a residual sum. What of it stands in modules of its own can be taken out
of the network; that the network then computes what it would with the branch at zero, and that its
groups of units still hold, is tried out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fcompress.errors import FcompressError, UnsupportedNetworkError, first_line
from fcompress.forward.copying import deep_copy
from fcompress.forward.graph import Named, Step, run
from fcompress.forward.outputs import output_tensors
from fcompress.forward.predictor import Predictor
from fcompress.forward.recording import Recording, record
from fcompress.forward.residuals import Residual, find_residuals
from fcompress.forward.running import quiet_tracing, tensors_of
from fcompress.nn.skipped import Skipped
from fcompress.structure.proof import prove
from fcompress.surgery.preparation import plain_copy
from fcompress.surgery.skipping import Block, drop, without
from fcompress.surgery.units import Group

_SILENT = 1e-12
_ALIKE = 1e-4  # largest difference of outputs, relative to the largest output


@dataclass(frozen=True)
class Blocks:
    """Blocks of a network.

    Attributes:
        found: Those that can go, in order of execution.
        kept: Those that cannot, by name, with the reason.
    """

    found: tuple[Block, ...] = ()
    kept: dict[str, str] = field(default_factory=dict)


class _Whole(Predictor):
    """A network with all that it returns: an output that does not count may need a block."""

    def __call__(self, inputs: Tensor) -> Any:
        return output_tensors(self.whole(self.network, inputs))


class _Unfit(FcompressError):
    """Why a block has to stay."""


@dataclass
class _Span:
    """One call of a module: the steps of the recording that it executed, and what it returned."""

    start: int
    stop: int = -1
    returns: int | None = None


class _Counting(TorchDispatchMode):
    """Counts operators, as a recording does."""

    steps = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self.steps += 1
        return func(*args, **(kwargs or {}))


def find_blocks(
    predictor: Predictor, example: Tensor, groups: Sequence[Group] = (), *, seed: int = 0
) -> Blocks:
    """Find the blocks of a network and prove them.

    Args:
        predictor: A network in eval mode, as `surgery.prepare` made it; it is never changed.
        example: A real input batch [N, ...], two to four examples, on its device.
        groups: Its proven groups, which have to hold without the blocks as well.
        seed: Of random numbers in the experiments.

    Returns:
        The blocks. A block that lies inside of another one is a block as well.

    Example:
        >>> from fcompress import build
        >>> network = build("resnet20", in_channels=1, image_size=8, classes=4).eval()
        >>> blocks = find_blocks(Predictor(network), torch.randn(2, 1, 8, 8))
        >>> [block.name for block in blocks.found][:3], len(blocks.found), blocks.kept
        (['layer1.0', 'layer1.1', 'layer1.2'], 7, {})
    """
    with predictor.evaluating():
        # Zeroing what is zero anyway would prove nothing.
        awake = _Whole(_awake(predictor.network, seed), predictor.packing, predictor.scoring)
        recording, spans = _recorded(awake, example)
        kept: dict[str, str] = {}
        found: list[Block] = []
        for residual in find_residuals(recording):
            name = _place(recording, residual)
            try:
                block = _block(awake, recording, spans, residual, example)
                if block is None:
                    continue
                _compare(awake, block, recording, residual, example)
                found.append(block)
            except _Unfit as reason:
                kept[name] = str(reason)
    named = _named(predictor.network, found)
    fine = _with_groups(predictor, named, groups, example, seed)
    kept |= {
        block.name: "units could not be excised without it" for block in named if block not in fine
    }
    return Blocks(tuple(fine), kept)


def _awake(network: nn.Module, seed: int) -> nn.Module:
    """A copy in which no parameter is zero throughout."""
    copied = deep_copy(network)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in copied.parameters():
            if parameter.is_floating_point() and bool((parameter.abs() < _SILENT).all()):
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return copied.eval()


def _recorded(predictor: Predictor, example: Tensor) -> tuple[Recording, dict[str, list[_Span]]]:
    """A recording, and which of its steps every module executed."""
    spans: dict[str, list[_Span]] = {}
    counting = _Counting()
    hooks = []
    for path, module in predictor.network.named_modules():

        def enter(module: nn.Module, args: Any, path: str = path) -> None:
            spans.setdefault(path, []).append(_Span(counting.steps))

        def leave(module: nn.Module, args: Any, out: Any, path: str = path) -> None:
            span = next(s for s in reversed(spans[path]) if s.stop < 0)
            span.stop, span.returns = counting.steps, _returned(out)

        hooks.append(module.register_forward_pre_hook(enter))
        hooks.append(module.register_forward_hook(leave))
    try:
        with counting:
            recording = record(predictor, example)
    finally:
        for hook in hooks:
            hook.remove()
    ahead = counting.steps - len(recording.steps)  # copies of the inputs, before it begins
    for span in (s for calls in spans.values() for s in calls):
        span.start, span.stop = span.start - ahead, span.stop - ahead
    return recording, spans


def _returned(out: Any) -> int | None:
    """How `nn.Skipped` returns the like of it; None where it cannot."""
    if isinstance(out, Tensor):
        return 0
    if type(out) is tuple and out and isinstance(out[0], Tensor):
        return len(out)
    return None


def _place(recording: Recording, residual: Residual) -> str:
    """What to call a block that has to stay: the place of the parameters before its sum."""
    names = [
        leaf.name
        for step in recording.steps[: residual.step]
        for leaf in step.leaves
        if isinstance(leaf, Named)
    ]
    return f"the sum after {names[-1].rpartition('.')[0]}" if names else "the first sum"


def _block(
    predictor: Predictor,
    recording: Recording,
    spans: dict[str, list[_Span]],
    residual: Residual,
    example: Tensor,
) -> Block | None:
    """The block of a residual sum; None where it is nothing but what is left of one.

    Raises:
        _Unfit: It cannot go.
    """
    if residual.reason is not None:
        raise _Unfit(residual.reason)
    network = predictor.network
    chosen = _modules(network, recording, spans, residual)
    if chosen and all(isinstance(network.get_submodule(path), Skipped) for path in chosen):
        return None
    users = _users(recording)
    if not chosen:
        inside = [u for u in users.values() if u & residual.inside]
        if all(u - residual.inside for u in inside):
            raise _Unfit("its weights are used elsewhere, too")
        raise _Unfit("its layers stand in no modules of their own")
    _check_own(network, users, residual, chosen)
    end = _end(spans, residual, chosen)
    returns: dict[str, int] = {}
    for path in chosen:
        found = spans[path][0].returns
        if found is None:
            raise _Unfit(f"{path} returns neither a tensor nor a tuple that begins with one")
        returns[path] = found
    tensors = frozenset(
        name for name in tensors_of(network) if any(name.startswith(f"{path}.") for path in chosen)
    )
    like, channels, dim = _channels(predictor, recording, end, example)
    return Block(_short(network, chosen), returns, end, channels, dim, like, tensors)


def _modules(
    network: nn.Module,
    recording: Recording,
    spans: dict[str, list[_Span]],
    residual: Residual,
) -> list[str]:
    """The outermost modules with parameters that compute nothing but the branch, in order."""
    dead = _dead(recording.steps)
    chosen: list[str] = []
    for path, module in network.named_modules():
        mine = {i for span in spans.get(path, ()) for i in range(span.start, span.stop)}
        if not path or not mine or not mine - dead <= residual.inside or not mine - dead:
            continue
        if next(module.parameters(), None) is None:
            continue
        if not any(path.startswith(f"{outer}.") for outer in chosen):
            chosen.append(path)
    return sorted(chosen, key=lambda path: spans[path][0].start)


def _dead(steps: Sequence[Step]) -> set[int]:
    """Steps whose results nothing reads, or that return no new tensor."""
    read = {leaf.slot for step in steps for leaf in step.leaves if hasattr(leaf, "slot")}
    return {
        i
        for i, step in enumerate(steps)
        if not read & set(step.outs) and not step.func._schema.is_mutable
    }


def _users(recording: Recording) -> dict[str, set[int]]:
    """The steps that are given each parameter or buffer."""
    users: dict[str, set[int]] = {}
    for index, step in enumerate(recording.steps):
        for leaf in step.leaves:
            if isinstance(leaf, Named):
                users.setdefault(leaf.name, set()).add(index)
    return users


def _check_own(
    network: nn.Module,
    users: Mapping[str, set[int]],
    residual: Residual,
    chosen: Sequence[str],
) -> None:
    """See that nobody else uses the modules of a block or their parameters."""
    names = {id(tensor): name for name, tensor in tensors_of(network).items()}
    places = Counter(id(m) for _, m in network.named_modules(remove_duplicate=False))
    for path in chosen:
        module = network.get_submodule(path)
        for tensor in [*module.parameters(), *module.buffers()]:
            if not users.get(names[id(tensor)], set()) <= residual.inside:
                raise _Unfit(f"the weights of {path} are used elsewhere, too")
        if any(places[id(inner)] > 1 for inner in module.modules()):
            raise _Unfit(f"{path} stands in several places of the network")
    weights = Counter(
        id(p) for m in network.modules() for p in m._parameters.values() if p is not None
    )
    for path in chosen:
        inner = Counter(
            id(p)
            for m in network.get_submodule(path).modules()
            for p in m._parameters.values()
            if p is not None
        )
        if any(weights[key] > count for key, count in inner.items()):
            raise _Unfit(f"the weights of {path} are used elsewhere, too")


def _end(spans: dict[str, list[_Span]], residual: Residual, chosen: Sequence[str]) -> str:
    """The module that has the last word in a branch."""
    owner = {
        i: path for path in chosen for span in spans[path] for i in range(span.start, span.stop)
    }
    ends, seen, left = set(), set(), [residual.last]
    while left:
        step = left.pop()
        if step in seen:
            continue
        seen.add(step)
        if step in owner:
            ends.add(owner[step])
        else:
            left += residual.sources[step]
    if len(ends) != 1:
        raise _Unfit(f"{len(ends)} of its layers are added up at its end")
    (end,) = ends
    if len(spans[end]) != 1:
        raise _Unfit(f"{end} is called several times")
    return end


def _channels(
    predictor: Predictor, recording: Recording, end: str, example: Tensor
) -> tuple[tuple[str, int], int, int]:
    """Along which dimensions the channels lie that the last layer of a block writes.

    Returns:
        A tensor of the layer with its dimension of channels, their number, and the dimension of
        the layer's output where changing one of them shows.
    """
    network = predictor.network
    module = network.get_submodule(end)
    outputs: list[Tensor] = []

    def note(module: nn.Module, args: Any, out: Any) -> None:
        outputs.append((out if isinstance(out, Tensor) else out[0]).detach().clone())

    for name in _used(recording, end):
        tensor = dict(network.named_parameters()).get(name)
        if tensor is None or not tensor.is_floating_point():
            continue
        for along in range(min(tensor.dim(), 2)):
            size = tensor.shape[along]
            before = tensor.detach().clone()
            outputs.clear()
            hook = module.register_forward_hook(note)
            try:
                predictor(example)
                tensor.data.select(along, size - 1).add_(1.0)
                predictor(example)
            finally:
                hook.remove()
                tensor.data.copy_(before)
            changed = (outputs[0] != outputs[1]).nonzero()
            for dim in range(1, outputs[0].dim()):
                where = changed[:, dim].unique().tolist()
                if outputs[0].shape[dim] == size and where == [size - 1] and size > 1:
                    return (name, along), size, dim
    raise _Unfit(f"it cannot be told along which dimension the channels of {end} lie")


def _used(recording: Recording, path: str) -> Iterator[str]:
    """Names of the tensors in a module, last used first."""
    seen = set()
    for step in reversed(recording.steps):
        for leaf in reversed(step.leaves):
            if isinstance(leaf, Named) and leaf.name.startswith(f"{path}."):
                if leaf.name not in seen:
                    yield leaf.name
                seen.add(leaf.name)


def _compare(
    predictor: Predictor, block: Block, recording: Recording, residual: Residual, example: Tensor
) -> None:
    """See that the network without a block computes what it does with the branch at zero.

    Raises:
        _Unfit: It does not.
    """
    tensors = predictor.tensors()
    values = {recording.inputs[0]: example.clone()}
    run(recording.steps[: residual.step], values, tensors)
    if values[residual.skip].shape != values[residual.branch].shape:
        raise _Unfit("what it adds has another shape than what it is added to")
    values[residual.branch].zero_()
    run(recording.steps[residual.step :], values, tensors)
    try:
        dropped = replace(predictor, network=drop(predictor.network, [block]).eval())
        again = record(dropped, example)
        found = {again.inputs[0]: example.clone()}
        run(again.steps, found, dropped.tensors())
        # Untraced, torch's encoder layers may hand all to a fused kernel, which wants every layer.
        dropped(example)
    except Exception as error:  # anything that the network's own code raises
        raise _Unfit(f"the network does not run without it ({first_line(error)[:120]})") from error
    for one, other in zip(recording.outputs, again.outputs, strict=False):
        wanted, given = values.get(one), found.get(other)
        if wanted is None or given is None or wanted.shape != given.shape:
            raise _Unfit("the network returns something else without it")
        gap = (wanted.double() - given.double()).abs().nan_to_num(torch.inf)
        if float(gap.max()) > _ALIKE * max(float(wanted.abs().max()), _SILENT):
            raise _Unfit("taking its layers out is not the same as adding nothing")


def _short(network: nn.Module, chosen: Sequence[str]) -> str:
    """The module around the layers of a block; the only layer itself."""
    if len(chosen) == 1:
        return chosen[0]
    around: list[str] = []
    for parts in zip(*(path.split(".")[:-1] for path in chosen), strict=False):
        if len(set(parts)) > 1:
            break
        around.append(parts[0])
    return ".".join(around)


def _named(network: nn.Module, blocks: Sequence[Block]) -> list[Block]:
    """Blocks whose module holds layers of other blocks too get the name of their largest layer."""
    found = []
    for block in blocks:
        inside = f"{block.name}." if block.name else ""
        others = (path for other in blocks if other is not block for path in other.layers)
        if any(f"{path}.".startswith(inside) for path in others):
            sizes = {
                path: sum(p.numel() for p in network.get_submodule(path).parameters())
                for path in block.layers
            }
            block = replace(block, name=max(sizes, key=sizes.__getitem__))
        found.append(block)
    return found


def _with_groups(
    predictor: Predictor,
    blocks: Sequence[Block],
    groups: Sequence[Group],
    example: Tensor,
    seed: int,
) -> list[Block]:
    """The blocks without which the groups still hold: all of them at once, or else one by one."""
    if not blocks or not groups:
        return list(blocks)

    def holds(some: Sequence[Block]) -> bool:
        dropped = plain_copy(drop(predictor.network, some))
        left = without(groups, some)
        try:
            _, failed, _ = prove(dropped, left, example, seed=seed, call=predictor.whole)
        except UnsupportedNetworkError:
            return False
        return not failed

    with quiet_tracing():
        if holds(blocks):
            return list(blocks)
        fine: list[Block] = []
        for block in blocks:
            if holds([*fine, block]):
                fine.append(block)
    return fine
