"""What operators that move data, combine it elementwise or write it in place do to unit ids.

Every rule takes the tracer, the operator, its arguments and what it returned. Data movement is
executed on the unit ids as it is; elementwise operators tie the units of their operands.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from fcompress.forward.running import tensors_in
from fcompress.structure.tracer import Tracer
from fcompress.structure.unit_ids import (
    INPUT,
    NONE,
    compact,
    compact_pair,
    is_unit,
    nobody,
    representative,
    units_in,
)

Rule = Callable[[Tracer, Any, tuple[Any, ...], dict[str, Any], Any], None]

MOVES = frozenset(
    (
        "view _unsafe_view reshape _reshape_alias permute transpose t expand unsqueeze squeeze "
        "slice select cat stack split split_with_sizes chunk unsafe_split unsafe_split_with_sizes "
        "unsafe_chunk unbind index index_select gather "
        "roll flip constant_pad_nd reflection_pad1d reflection_pad2d reflection_pad3d "
        "replication_pad1d replication_pad2d replication_pad3d clone contiguous detach alias "
        "repeat repeat_interleave pixel_shuffle pixel_unshuffle channel_shuffle "
        "native_channel_shuffle unfold im2col as_strided lift_fresh lift_fresh_copy _to_copy "
        "diagonal movedim narrow tril triu rot90 unsqueeze_ squeeze_ t_ transpose_ view_as "
        "unflatten"
    ).split()
)
_SAME_UNITS = frozenset("clone contiguous detach alias lift_fresh lift_fresh_copy _to_copy".split())
_IN_PLACE_VIEWS = frozenset("unsqueeze_ squeeze_ t_ transpose_".split())
_VIEWS = frozenset("view _unsafe_view reshape unflatten".split())
_SPLITS = frozenset(
    "split split_with_sizes chunk unsafe_split unsafe_split_with_sizes unsafe_chunk".split()
)
_FILLS = frozenset("constant_pad_nd tril triu".split())
# Elementwise operators that torch does not tag as such.
_ELEMENTWISE = frozenset(
    (
        "hardswish hardsigmoid hardtanh threshold mish celu elu leaky_relu log_sigmoid_forward "
        "rrelu_with_noise masked_fill _prelu_kernel"
    ).split()
)
# `x[:, :n]` is taken for one of so many equal parts of x; one channel of many is not.
_MOST_SLICES = 4


def operator_name(func: Any) -> str:
    """Name of an operator without its overload: `add`."""
    return func.overloadpacket.__name__


def is_pointwise(func: Any) -> bool:
    """Whether an operator computes each element from the elements at the same place."""
    return torch.Tag.pointwise in func.tags or operator_name(func).rstrip("_") in _ELEMENTWISE


def of_parameters(tracer: Tracer, func: Any, known: list[Tensor], out: Any) -> None:
    """A function of parameters alone: elementwise of one keeps its places, others lose them."""
    for result in tensors_in(out):
        source = None
        if len(known) == 1 and is_pointwise(func) and result.shape == known[0].shape:
            source = tracer.parameters.source(known[0])
        if source is not None:
            tracer.parameters.copy_of(result, *source)
        else:
            tracer.parameters.computed_from(result, known, str(func.overloadpacket))


def unknown(tracer: Tracer, func: Any, args: Any, kwargs: dict[str, Any], out: Any) -> None:
    """An operator in none of the classes: the units that go in or come out are not pruned."""
    reason = tracer.placed(f"operator not understood: {func.overloadpacket}")
    found = False
    operands = tensors_in((args, kwargs))
    known = [ids for a in operands if (ids := tracer.of(a)) is not None]
    if (
        known
        and not any(tracer.parameters.is_parameter(a) for a in operands)
        and all(bool((ids == INPUT).all()) for ids in known)
    ):
        for result in tensors_in(out):  # what depends on inputs alone is one more input
            tracer.set(result, torch.tensor(INPUT).expand(result.shape))
        return
    for operand in operands:
        if tracer.parameters.is_parameter(operand):
            tracer.not_understood(operand, reason)
            found = True
        else:
            ids = tracer.of(operand)
            tracer.refuse(ids, reason)
            found = found or ids is not None
    if found:
        for result in tensors_in(out):
            tracer.set(result, tracer.fresh(1, reason).view(()).expand(result.shape))


# Data movement -----------------------------------------------------------------------------


def move(tracer: Tracer, func: Any, args: Any, kwargs: dict[str, Any], out: Any) -> None:
    """Views, shuffles, concatenations, paddings: ids move as the elements do."""
    sources = tensors_in(args[0])
    results = tensors_in(out)
    if all(tracer.parameters.is_parameter(a) for a in sources):
        _move_parameter(tracer, func, args, kwargs, sources, results)
        return
    name = operator_name(func)
    if name in _IN_PLACE_VIEWS:
        before = tracer.stale(sources[0])  # the tensor has its new shape already
        if before is not None:
            tracer.set(results[0], _run_on(func, args, kwargs, [before]))
        return
    if all(tracer.of(a) is None for a in sources):
        return
    ids = [tracer.known(a) for a in sources]
    if name in _SAME_UNITS:
        tracer.set(results[0], ids[0])
        return
    moved = _run_on(func, args, kwargs, ids)
    for result, own in zip(results, tree_leaves(moved), strict=True):
        tracer.set(result, own)
    if name in _VIEWS:
        _note_view(tracer, ids[0], results[0].shape)
    elif name in _SPLITS:
        dim = args[2] if len(args) > 2 else kwargs.get("dim", 0)
        _note_split(tracer, ids[0], dim, [r.shape[dim] for r in results])
    elif name == "slice":
        dim = args[1] if len(args) > 1 else 0
        _note_slice(tracer, ids[0], results[0].shape[dim], *args[1:])


def _run_on(func: Any, args: Any, kwargs: dict[str, Any], replaced: list[Tensor]) -> Any:
    """Execute a data movement on integer tensors instead of activations."""
    items = iter(replaced)
    first = tree_map(lambda a: next(items) if isinstance(a, Tensor) else a, args[0])
    rest = list(args[1:])
    if operator_name(func) == "constant_pad_nd":
        rest = [rest[0], NONE]
    elif operator_name(func) == "_reshape_alias":
        rest = rest[:1]
    name = operator_name(func).rstrip("_")
    # Ids may be strided unlike the activation: a view of one can be a copy of the other.
    name = "reshape" if name in ("view", "_unsafe_view", "_reshape_alias") else name
    func = getattr(torch.ops.aten, name) if hasattr(torch.ops.aten, name) else func
    try:
        return func(first, *rest, **kwargs)
    except (RuntimeError, NotImplementedError):
        # Some movements exist for floats only; ids are far below 2^53.
        as_float = tree_map(lambda a: a.double() if isinstance(a, Tensor) else a, first)
        moved = func(as_float, *rest, **kwargs)
        return tree_map(lambda a: a.long() if isinstance(a, Tensor) else a, moved)


def _move_parameter(
    tracer: Tracer,
    func: Any,
    args: Any,
    kwargs: dict[str, Any],
    sources: list[Tensor],
    results: list[Tensor],
) -> None:
    """Views of a parameter are recognised by their memory; copies carry flat indices."""
    if all(tracer.parameters.owner(result) is not None for result in results):
        return
    places = [tracer.parameters.source(a) for a in sources]
    known = [place for place in places if place is not None]
    one = len(known) == len(places) and len({name for name, _ in known}) == 1
    if one and operator_name(func) not in _FILLS:
        indices = [index for _, index in known]
        copied = operator_name(func) in _SAME_UNITS
        moved = indices if copied else _run_on(func, args, kwargs, indices)
        for result, index in zip(results, tree_leaves(moved), strict=True):
            tracer.parameters.copy_of(result, known[0][0], index)
        return
    if operator_name(func) == "cat" and results[0].dim() == 1 and len(known) == len(places):
        # Biases end to end: elements of several parameters, each with its own id.
        tracer.set(results[0], torch.cat([tracer.known(a) for a in sources]))
        return
    for result in results:
        tracer.parameters.computed_from(result, sources, str(func.overloadpacket))


def _note_split(tracer: Tracer, ids: Tensor, dim: int, sizes: list[int]) -> None:
    """Units cut into equal parts along `dim`: remember which stands where in each part."""
    if len(sizes) > 1 and len(set(sizes)) == 1:
        line = _line(ids, dim)
        if len(tracer.units.roots(line).unique()) > 1:
            tracer.splits.append(line.view(len(sizes), sizes[0]))


def _note_slice(
    tracer: Tracer,
    ids: Tensor,
    size: int,
    dim: int = 0,
    start: int | None = None,
    end: int | None = None,
    step: int = 1,
) -> None:
    """One of few equal parts of the units, taken without the others: a block, or every n-th."""
    parts, rest = divmod(ids.shape[dim], max(size, 1))
    if rest or size < 2 or not 1 < parts <= _MOST_SLICES:
        return
    line = _line(ids, dim)
    if len(tracer.units.roots(line).unique()) < 2:
        return
    if step == 1 and (start or 0) % size == 0:
        tracer.splits.append(line.view(parts, size))
    elif step == parts:
        tracer.splits.append(line.view(size, parts).t())


def _note_view(tracer: Tracer, ids: Tensor, shape: torch.Size) -> None:
    """A view that cuts a dimension of units into parts, at every level of cutting."""
    for before, after in _aligned(list(ids.shape), list(shape)):
        size = ids.shape[before[-1]]
        if len(after) < 2 and shape[after[-1]] >= size:
            continue
        line = _line(ids, before[-1])
        if len(tracer.units.roots(line).unique()) < 2:
            continue
        part = 1
        for dim in reversed(after):
            part *= shape[dim]
            if part >= size or size % part:
                break
            if part > 1:
                tracer.splits.append(line.view(size // part, part))


def _aligned(a: list[int], b: list[int]) -> list[tuple[list[int], list[int]]]:
    """Runs of dimensions of two shapes with the same number of elements."""
    runs, i, j = [], 0, 0
    while i < len(a) and j < len(b):
        left, right = [i], [j]
        m, n = a[i], b[j]
        while m != n:
            if m < n:
                i += 1
                m *= a[i]
                left.append(i)
            else:
                j += 1
                n *= b[j]
                right.append(j)
        runs.append((left, right))
        i, j = i + 1, j + 1
    return runs


def _line(ids: Tensor, dim: int) -> Tensor:
    """The ids along one dimension, at some place of all others: [size]."""
    others = [d for d in range(ids.dim()) if d != dim % ids.dim()]
    return representative(ids, others).flatten().expand(ids.shape[dim]).clone()


# Elementwise -------------------------------------------------------------------------------


def pointwise(tracer: Tracer, func: Any, args: Any, kwargs: dict[str, Any], out: Any) -> None:
    """Activations, sums, products: units that meet belong together, parameters to who they meet."""
    result = tensors_in(out)[0]
    operands = tensors_in((args, kwargs))
    # Parameters last: which unit they meet is known once all activations have met.
    operands.sort(key=tracer.parameters.is_parameter)
    if all(tracer.parameters.is_parameter(a) or tracer.of(a) is None for a in operands):
        return
    ids = nobody(())
    for operand in operands:
        ids = meet(tracer, ids, operand, str(func.overloadpacket))
    ids = ids.expand(result.shape)
    if any(result is a for a in operands) and bool((ids != tracer.known(result)).any()):
        # Where it belonged to nobody before, views of it must learn whose it is now.
        tracer.write(result, ids)
    else:
        tracer.set(result, ids)


def either(a: Tensor, b: Tensor) -> Tensor:
    """Ids of `a`, and those of `b` where `a` has none (broadcast against each other)."""
    a, b = torch.broadcast_tensors(a, b)
    return a if bool(is_unit(compact(a)).all()) else torch.where(is_unit(a), a, torch.maximum(a, b))


def meet(tracer: Tracer, ids: Tensor, operand: Tensor, operator: str) -> Tensor:
    """Ids of an activation that an operand of any kind is added to or multiplied with."""
    if tracer.parameters.is_parameter(operand):
        tracer.meets(ids, operand, operator)
        return ids
    own = tracer.known(operand)
    for few, many in ((own, ids), (ids, own)):
        if _meets_all(tracer, few, many):
            tracer.refuse(few, f"one value for all units of another layer ({operator})")
            return either(many, few)
    tracer.tie(ids, own)
    return either(ids, own)


def _meets_all(tracer: Tracer, few: Tensor, many: Tensor) -> bool:
    """Whether broadcasting brings one unit together with several, all there are: a spatial gate."""
    missing = many.dim() - few.dim()
    spread = [
        d
        for d in range(many.dim())
        if many.shape[d] > 1 and (few.shape[d - missing] if d >= missing else 1) == 1
    ]
    if not spread or tracer.same_along(many, spread) or not len(units_in(few)):
        return False
    a, b = (tracer.units.roots(x) for x in compact_pair(few, many))
    a, b = torch.broadcast_tensors(a, b)
    both = is_unit(a) & is_unit(b)
    count = tracer.units.count
    met = (a[both] * count + b[both]).unique() // count
    often = torch.unique_consecutive(met, return_counts=True)[1]
    return bool((often == len(b[both].unique())).any())


# Writing in place --------------------------------------------------------------------------


def relayout(tracer: Tracer, func: Any, args: Any, kwargs: dict[str, Any], out: Any) -> None:
    """`as_strided_` that changes the layout but not the shape keeps the ids."""
    ids = tracer.of(args[0])
    if ids is None and not tracer.parameters.is_parameter(args[0]):
        tracer.refuse(tracer.stale(args[0]), "as_strided_ changes its shape")


def copy_in(tracer: Tracer, func: Any, args: Any, kwargs: dict[str, Any], out: Any) -> None:
    """`x[...] = y` writes the ids of y into x."""
    tracer.write(args[0], tracer.known(args[1]).expand(args[0].shape))


def clear(tracer: Tracer, func: Any, args: Any, kwargs: dict[str, Any], out: Any) -> None:
    """A constant written in place belongs to nobody."""
    if tracer.of(args[0]) is not None:
        tracer.write(args[0], nobody(args[0].shape))
