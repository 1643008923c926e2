"""What each class of operator does to labels (see `labels.py`).

One function for each class: data movement, elementwise, convolution, matrix product,
normalisation, softmax, pooling, reduction, attention, embedding, writing in place. An operator
in none of the classes is not understood: the units that go in are left alone, by name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from fcompress.labels import NONE, Tracer, compact, compact_pair, representative

Rule = Callable[[Tracer, Any, tuple[Any, ...], dict[str, Any], Any], None]

MOVES = frozenset(
    (
        "view _unsafe_view reshape _reshape_alias permute transpose t expand unsqueeze squeeze "
        "slice select cat stack split split_with_sizes chunk unbind index index_select gather "
        "roll flip constant_pad_nd reflection_pad1d reflection_pad2d reflection_pad3d "
        "replication_pad1d replication_pad2d replication_pad3d clone contiguous detach alias "
        "repeat repeat_interleave pixel_shuffle pixel_unshuffle channel_shuffle "
        "native_channel_shuffle unfold im2col as_strided lift_fresh lift_fresh_copy _to_copy "
        "diagonal movedim narrow tril triu rot90 unsqueeze_ squeeze_ t_ transpose_ view_as "
        "unflatten"
    ).split()
)
SAME_LABELS = frozenset("clone contiguous detach alias lift_fresh lift_fresh_copy _to_copy".split())
RESAMPLING = (
    "upsample",
    "grid_sampler",
    "_upsample",
    "max_pool",
    "avg_pool",
    "adaptive_",
    "mkldnn",
)
REDUCTIONS = frozenset(
    (
        "mean sum amax amin var std var_mean std_mean norm linalg_vector_norm prod logsumexp "
        "max min any all nansum median"
    ).split()
)
# Elementwise operators that torch does not tag as such.
ELEMENTWISE = frozenset(
    (
        "hardswish hardsigmoid hardtanh threshold mish celu elu leaky_relu log_sigmoid_forward "
        "rrelu_with_noise masked_fill _prelu_kernel"
    ).split()
)
CUMULATIVE = frozenset("cumsum cumprod cummax cummin logcumsumexp".split())
FACTORIES = frozenset(
    (
        "empty empty_like empty_strided zeros zeros_like ones ones_like full full_like arange "
        "new_zeros new_ones new_full new_empty new_empty_strided rand randn rand_like "
        "randn_like scalar_tensor linspace eye _local_scalar_dense item sym_size is_nonzero "
        "equal randint tril_indices triu_indices bernoulli"
    ).split()
)


def propagate(tracer: Tracer, func: Any, args: Any, kwargs: dict[str, Any], out: Any) -> None:
    """Carry labels through one executed operator.

    Args:
        tracer: Holds the labels of the operands and takes those of the results.
        func: The operator, an overload of `torch.ops.aten`.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        out: What it returned.
    """
    name = func.overloadpacket.__name__
    operands = [a for a in tree_leaves((args, kwargs)) if isinstance(a, Tensor)]
    if name in FACTORIES or not operands:
        return
    rule = _rule(name, func)
    if rule not in (_move, _convolution, _matmul, _embedding):
        known = [a for a in operands if tracer.is_parameter(a)]
        if known and all(tracer.is_parameter(a) or tracer.of(a) is None for a in operands):
            _of_parameters(tracer, func, known, out)
            return
    rule(tracer, func, args, kwargs, out)


def _rule(name: str, func: Any) -> Rule:
    if name in MOVES and func._overloadname != "dtype":
        return _move
    if name in RULES:
        return RULES[name]
    if name.startswith("_scaled_dot_product"):
        return _attention
    if any(part in name for part in RESAMPLING) and "backward" not in name:
        return _resample
    if name in REDUCTIONS:
        return _reduce
    if name in CUMULATIVE:
        return _cumulative
    if _is_pointwise(func):
        return _pointwise
    return _unknown


def _is_pointwise(func: Any) -> bool:
    return (
        torch.Tag.pointwise in func.tags or func.overloadpacket.__name__.rstrip("_") in ELEMENTWISE
    )


def _of_parameters(tracer: Tracer, func: Any, known: list[Tensor], out: Any) -> None:
    """A function of parameters alone: elementwise of one keeps its places, others lose them."""
    for result in (r for r in tree_leaves(out) if isinstance(r, Tensor)):
        source = tracer.source(known[0]) if len(known) == 1 else None
        if source is not None and _is_pointwise(func) and result.shape == known[0].shape:
            tracer.copy_of(result, *source)
        else:
            tracer.computed_from(result, str(func.overloadpacket))


# Data movement -----------------------------------------------------------------------------


def _move(tracer: Tracer, func: Any, args: Any, kwargs: dict[str, Any], out: Any) -> None:
    sources = [a for a in tree_leaves(args[0]) if isinstance(a, Tensor)]
    results = [r for r in tree_leaves(out) if isinstance(r, Tensor)]
    if all(tracer.is_parameter(a) for a in sources):
        _move_parameter(tracer, func, args, kwargs, sources, results)
        return
    known = [tracer.of(a) for a in sources]
    if all(labels is None for labels in known):
        return
    filled = [
        labels if labels is not None else torch.zeros((), dtype=torch.int64).expand(a.shape)
        for labels, a in zip(known, sources, strict=True)
    ]
    name = func.overloadpacket.__name__
    if name in SAME_LABELS:
        tracer.set(results[0], filled[0])
        return
    moved = _run_on(func, args, kwargs, filled)
    for result, labels in zip(results, tree_leaves(moved), strict=True):
        tracer.set(result, labels)
    if name in ("view", "_unsafe_view", "reshape", "unflatten"):
        _note_view(tracer, filled[0], results[0].shape)
    elif name in ("split", "split_with_sizes", "chunk"):
        dim = args[2] if len(args) > 2 else kwargs.get("dim", 0)
        _note_split(tracer, filled[0], dim, [r.shape[dim] for r in results])


def _run_on(func: Any, args: Any, kwargs: dict[str, Any], replaced: list[Tensor]) -> Any:
    """Execute a data movement on integer tensors instead of activations."""
    items = iter(replaced)
    first = tree_map(lambda a: next(items) if isinstance(a, Tensor) else a, args[0])
    rest = list(args[1:])
    if func.overloadpacket.__name__ == "constant_pad_nd":
        rest = [rest[0], NONE]
    elif func.overloadpacket.__name__ == "_reshape_alias":
        rest = rest[:1]
    name = func.overloadpacket.__name__.rstrip("_")
    # Labels may be strided unlike the activation: a view of one can be a copy of the other.
    name = "reshape" if name in ("view", "_unsafe_view", "_reshape_alias") else name
    func = getattr(torch.ops.aten, name) if hasattr(torch.ops.aten, name) else func
    try:
        return func(first, *rest, **kwargs)
    except (RuntimeError, NotImplementedError):
        # Some movements exist for floats only; labels are far below 2^53.
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
    """Views of a parameter are recognised by their storage; copies carry flat indices."""
    places = [tracer.source(a) for a in sources]
    names = {place[0] for place in places if place is not None}
    fresh = [
        r for r in results if tracer.source(r) is None or func.overloadpacket.__name__ == "cat"
    ]
    if not fresh:
        return
    if len(names) == 1 and None not in places:
        moved = _run_on(func, args, {}, [place[1] for place in places if place is not None])
        for result, index in zip(results, tree_leaves(moved), strict=True):
            tracer.copy_of(result, next(iter(names)), index)
        return
    for result in fresh:
        tracer.computed_from(result, str(func.overloadpacket))


def _note_split(tracer: Tracer, labels: Tensor, dim: int, sizes: list[int]) -> None:
    """Units cut into equal parts along `dim`: remember which stands where in each part."""
    if len(sizes) > 1 and len(set(sizes)) == 1:
        line = _line(labels, dim)
        if len(tracer.units.roots(line).unique()) > 1:
            tracer.splits.append(line.view(len(sizes), sizes[0]))


def _note_view(tracer: Tracer, labels: Tensor, shape: torch.Size) -> None:
    """A view that cuts a dimension of units into parts, at every level of cutting."""
    for before, after in _aligned(list(labels.shape), list(shape)):
        size = labels.shape[before[-1]]
        if len(after) < 2 and shape[after[-1]] >= size:
            continue
        line = _line(labels, before[-1])
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


def _line(labels: Tensor, dim: int) -> Tensor:
    """The labels along one dimension, at the first place of all others: [size]."""
    for other in range(labels.dim()):
        if other != dim % labels.dim():
            labels = labels.narrow(other, 0, 1)
    return labels.flatten().clone()


# Elementwise -------------------------------------------------------------------------------


def _pointwise(tracer: Tracer, func: Any, args: Any, kwargs: dict[str, Any], out: Any) -> None:
    result = next(r for r in tree_leaves(out) if isinstance(r, Tensor))
    operands = [a for a in tree_leaves((args, kwargs)) if isinstance(a, Tensor)]
    activations = [a for a in operands if not tracer.is_parameter(a)]
    labels: Tensor | None = None
    for operand in activations:
        own = tracer.of(operand)
        if own is None:
            continue
        if labels is None:
            labels = own
        else:
            tracer.tie(labels, own)
            a, b = torch.broadcast_tensors(labels, own)
            labels = a if not bool((compact(a) == NONE).any()) else torch.where(a != NONE, a, b)
    if labels is None:
        return
    for operand in operands:
        if tracer.is_parameter(operand):
            _scale(tracer, labels, operand, func)
    labels = labels.expand(result.shape) if labels.shape != result.shape else labels
    in_place = any(result is a for a in operands)
    before = tracer.of(result) if in_place else None
    partial = result.numel() * result.element_size() < result.untyped_storage().nbytes()
    if in_place and partial and before is None:
        tracer.write(result, labels)
    else:
        tracer.set(result, labels)


def _scale(tracer: Tracer, labels: Tensor, parameter: Tensor, func: Any) -> None:
    """A parameter met elementwise: each of its elements belongs to the unit that it meets."""
    if parameter.numel() == 1:
        return
    own = tracer.of(parameter) if tracer.source(parameter) is not None else None
    if own is None:
        tracer.refuse(labels, f"{func.overloadpacket} with a value computed from parameters")
        return
    a, b = compact_pair(labels, own)
    a, b = torch.broadcast_tensors(tracer.units.roots(a), b)
    there = a != NONE
    pairs = torch.stack([b[there], a[there]]).unique(dim=1)
    met = torch.unique(pairs[0], return_counts=True)[1] if pairs.numel() else torch.zeros(1)
    total = len(pairs[1].unique())
    if total > 1 and int(met.max()) == total:
        return  # one element for all units: it belongs to none of them
    tracer.tie(labels, own)


def _relayout(tracer: Tracer, func: Any, args: Any, kwargs: dict[str, Any], out: Any) -> None:
    """`as_strided_` that changes the layout but not the shape keeps the labels."""
    labels = tracer.of(args[0])
    if labels is None and not tracer.is_parameter(args[0]):
        tracer.refuse(tracer.stale(args[0]), "as_strided_ changes its shape")


def _copy(tracer: Tracer, func: Any, args: Any, kwargs: dict[str, Any], out: Any) -> None:
    labels = tracer.of(args[1])
    if labels is None:
        labels = torch.zeros((), dtype=torch.int64)
    tracer.write(args[0], labels.expand(args[0].shape))


def _clear(tracer: Tracer, func: Any, args: Any, kwargs: dict[str, Any], out: Any) -> None:
    if tracer.of(args[0]) is not None:
        tracer.write(args[0], torch.zeros((), dtype=torch.int64).expand(args[0].shape))


# Contractions ------------------------------------------------------------------------------


def _convolution(tracer: Tracer, func: Any, args: Any, kwargs: dict[str, Any], out: Any) -> None:
    x, weight, bias = args[:3]
    transposed, groups = args[6], args[8]
    labels = tracer.of(x)
    channels = x.shape[1]
    others = [d for d in range(x.dim()) if d != 1]
    line = (
        torch.zeros(channels, dtype=torch.int64)
        if labels is None
        else tracer.tie_along(labels, others).flatten().expand(channels)
    )
    outputs = out.shape[1]
    view = (1, -1) + (1,) * (x.dim() - 2)
    if not tracer.is_parameter(weight):
        tracer.refuse(line, "convolved with a weight that is not a parameter")
        made = tracer.fresh(1, "made by a weight that is not a parameter").expand(outputs)
        tracer.set(out, made.view(view).expand(out.shape))
        return
    if groups == channels and groups > 1:  # depthwise: every channel stays what it was
        made = line.repeat_interleave(outputs // groups)
        if transposed:
            tracer.record(weight, 0, line, "between")
            if outputs != groups:
                tracer.refuse(line, "depthwise transposed convolution with several outputs")
        else:
            tracer.record(weight, 0, made, "between")
    else:
        rows = tracer.fresh(outputs // groups)
        made = rows.repeat(groups)
        parts = line.view(groups, channels // groups)
        if groups > 1:  # a bundle: one channel of each convolution group
            tracer.tie(parts, parts[:1])
        if transposed:
            tracer.record(weight, 0, line, "consumer")
            tracer.record(weight, 1, rows, "producer")
        else:
            tracer.record(weight, 1, parts.amax(0), "consumer")
            tracer.record(weight, 0, made, "producer")
    if bias is not None:
        _bias(tracer, bias, made)
    tracer.contraction(weight, bias, "conv" if not transposed else "transposed")
    tracer.set(out, made.view(view).expand(out.shape))


def _bias(tracer: Tracer, bias: Tensor, made: Tensor) -> None:
    if tracer.source(bias) is not None and tracer.is_parameter(bias) and bias.dim() == 1:
        tracer.record(bias, 0, made, "between")
    else:
        tracer.refuse(made, "its bias is not a parameter")


def _matmul(tracer: Tracer, func: Any, args: Any, kwargs: dict[str, Any], out: Any) -> None:
    name = func.overloadpacket.__name__
    bias = None
    if name in ("addmm", "baddbmm", "addmv"):
        bias, a, b = args[:3]
    elif name == "linear":
        a, b = args[0], args[1].t()
        bias = args[2] if len(args) > 2 else None
    else:
        a, b = args[:2]
    if tracer.is_parameter(b) and tracer.is_parameter(a) and not tracer.is_buffer(a):
        _of_parameters(tracer, func, [a, b], out)
        return
    a3, b3 = _as_batch(a), _as_batch(b)
    shape = out.shape
    if tracer.is_parameter(b):
        x = torch.zeros(a3.shape, dtype=torch.int64) if tracer.is_buffer(a) else _batched(tracer, a)
        made = _linear(tracer, x, b3, bias)
    elif tracer.is_parameter(a):
        flipped = _linear(tracer, _flip(_batched(tracer, b)), a3.transpose(1, 2), None)
        made = _flip(flipped)
        if bias is not None:
            tracer.refuse(made, "a bias along the rows of a product")
    else:
        made = _product(tracer, _batched(tracer, a), _batched(tracer, b))
        if made is not None and isinstance(bias, Tensor):
            own = tracer.of(bias)
            if own is not None:
                tracer.tie(made.expand(*a3.shape[:2], b3.shape[2]).reshape(shape), own)
    tracer.set(
        out, None if made is None else made.expand(*a3.shape[:2], b3.shape[2]).reshape(shape)
    )


def _as_batch(x: Tensor) -> Tensor:
    """A matrix, or a batch of them, as [batch, rows, columns]; a vector as one column."""
    if x.dim() == 1:
        x = x.unsqueeze(1)
    return x.unsqueeze(0) if x.dim() == 2 else x.reshape(-1, *x.shape[-2:])


def _batched(tracer: Tracer, x: Tensor) -> Tensor:
    labels = tracer.of(x)
    if labels is None:
        labels = torch.zeros((), dtype=torch.int64).expand(x.shape)
    return _as_batch(labels)


def _flip(labels: Tensor | None) -> Tensor:
    assert labels is not None
    return labels.transpose(1, 2)


def _linear(tracer: Tracer, x: Tensor, weight: Tensor, bias: Any) -> Tensor:
    """X [B, m, k] labels times weight [1 or B, k, n] of the network: labels [B or 1, m or 1, n]."""
    if weight.shape[0] > 1 and weight.stride(0) != 0:
        tracer.refuse(x, "a different weight for each example or position")
        return tracer.fresh(1, "made by a stack of weights").view(1, 1, 1)
    weight = weight[0]
    if tracer.same_along(x, [2]) and not tracer.same_along(x, [0, 1]):
        # Mixes positions, each unit on its own: the weight has no units of its own here.
        first = representative(x, [2])
        tracer.set_aside((weight, bias), "mixes positions, not units")
        return first
    columns = tracer.tie_along(x, [0, 1]).flatten().expand(x.shape[2])
    rows = tracer.fresh(weight.shape[1])
    tracer.record(weight, 0, columns, "consumer")
    tracer.record(weight, 1, rows, "producer")
    if isinstance(bias, Tensor):
        _bias(tracer, bias, rows)
    tracer.contraction(weight, bias, "linear")
    return rows.view(1, 1, -1)


def _product(tracer: Tracer, a: Tensor, b: Tensor) -> Tensor | None:
    """Two activations, a [B, m, k] and b [B, k, n]: attention scores and what they weigh."""
    if not bool(compact(a).any()) and not bool(compact(b).any()):
        return None
    if tracer.same_along(a, [2]) and tracer.same_along(b, [1]):
        left, right = representative(a, [2]), representative(b, [1])
        tracer.tie(left, right)
        left, right = torch.broadcast_tensors(left, right)
        return torch.where(left != NONE, left, right)
    # Contracted over units: those of one product (one head) go together.
    left = tracer.tie_along(a, [1, 2])
    right = tracer.tie_along(b, [1, 2])
    tracer.tie(left, right)
    left, right = torch.broadcast_tensors(left, right)
    return torch.where(left != NONE, left, right)


def _attention(tracer: Tracer, func: Any, args: Any, kwargs: dict[str, Any], out: Any) -> None:
    """Fused attention over [B, heads, tokens, dim]: a head's queries, keys and values are one."""
    result = next(r for r in tree_leaves(out) if isinstance(r, Tensor))
    heads = []
    for operand in args[:3]:
        labels = tracer.of(operand)
        if labels is None:
            labels = torch.zeros((), dtype=torch.int64).expand(operand.shape)
        others = [d for d in range(operand.dim()) if d != 1]
        head = tracer.tie_along(labels, others).expand(1, operand.shape[1], 1, 1).flatten()
        heads.append(head.repeat_interleave(args[0].shape[1] // len(head)))
    tracer.tie(heads[0], heads[1])
    tracer.tie(heads[0], heads[2])
    tracer.set(result, heads[2].view(1, -1, 1, 1).expand(result.shape))


def _embedding(tracer: Tracer, func: Any, args: Any, kwargs: dict[str, Any], out: Any) -> None:
    if not tracer.is_parameter(args[0]):
        _unknown(tracer, func, args, kwargs, out)
        return
    rows = tracer.fresh(args[0].shape[1])
    tracer.record(args[0], 1, rows, "producer")
    tracer.set(out, rows.expand(out.shape))


# Mixing and pooling ------------------------------------------------------------------------


def _batch_norm(tracer: Tracer, func: Any, args: Any, kwargs: dict[str, Any], out: Any) -> None:
    labels = tracer.of(args[0])
    result = next(r for r in tree_leaves(out) if isinstance(r, Tensor))
    if labels is None:
        return
    channel = tracer.tie_along(labels, [d for d in range(labels.dim()) if d != 1])
    channel = channel.flatten().expand(labels.shape[1])
    for operand in args[1:5]:
        if isinstance(operand, Tensor):
            _tie_parameter(tracer, channel, operand)
    tracer.set(result, labels)


def _layer_norm(tracer: Tracer, func: Any, args: Any, kwargs: dict[str, Any], out: Any) -> None:
    labels = tracer.of(args[0])
    if labels is None:
        return
    over = list(range(labels.dim() - len(args[1]), labels.dim()))
    first = tracer.tie_along(labels, [d for d in range(labels.dim()) if d not in over])
    line = first.view(first.shape[-len(over) :]).expand(args[1])
    for operand in args[2:4]:
        if isinstance(operand, Tensor):
            _tie_parameter(tracer, line, operand)
    if not tracer.same_along(labels, over):
        tracer.refuse(labels, "layer normalisation mixes its channels")
    tracer.set(out[0], labels)


def _group_norm(tracer: Tracer, func: Any, args: Any, kwargs: dict[str, Any], out: Any) -> None:
    labels = tracer.of(args[0])
    if labels is None:
        return
    channels, groups = labels.shape[1], args[6]
    first = tracer.tie_along(labels, [d for d in range(labels.dim()) if d != 1])
    line = first.flatten().expand(channels)
    for operand in args[1:3]:
        if isinstance(operand, Tensor):
            _tie_parameter(tracer, line, operand)
    if not tracer.same_along(line.reshape(groups, -1), [1]):
        tracer.refuse(labels, "group normalisation mixes its channels")
    tracer.set(out[0], labels)


def _tie_parameter(tracer: Tracer, line: Tensor, parameter: Tensor) -> None:
    own = tracer.of(parameter)
    if own is None:
        tracer.refuse(line, "normalised with values computed from parameters")
    else:
        tracer.tie(line, own.view(line.shape))


def _softmax(tracer: Tracer, func: Any, args: Any, kwargs: dict[str, Any], out: Any) -> None:
    labels = tracer.of(args[0])
    if labels is not None:
        if not tracer.same_along(labels, [args[1] % labels.dim()]):
            tracer.refuse(labels, "softmax over units mixes them")
        tracer.set(out, labels)


def _resample(tracer: Tracer, func: Any, args: Any, kwargs: dict[str, Any], out: Any) -> None:
    labels = tracer.of(args[0])
    result = next(r for r in tree_leaves(out) if isinstance(r, Tensor))
    if labels is None:
        return
    name = func.overloadpacket.__name__
    count = 3 if "3d" in name else 1 if "1d" in name else 2
    dims = list(range(labels.dim() - count, labels.dim()))
    if tracer.same_along(labels, dims):
        tracer.set(
            result,
            representative(labels, dims).expand(*labels.shape[:-count], *result.shape[-count:]),
        )
        return
    reason = f"{func.overloadpacket} pools over units"
    tracer.refuse(labels, reason)
    made = labels if result.shape == labels.shape else tracer.fresh(1, reason).expand(result.shape)
    tracer.set(result, made)


def _reduce(tracer: Tracer, func: Any, args: Any, kwargs: dict[str, Any], out: Any) -> None:
    labels = tracer.of(args[0])
    if labels is None:
        return
    if func.overloadpacket.__name__ in ("linalg_vector_norm", "norm"):
        dims = args[2] if len(args) > 2 else kwargs.get("dim")
    else:
        dims = args[1] if len(args) > 1 else kwargs.get("dim")
    if not isinstance(dims, (int, list, tuple)) or dims == []:
        dims = list(range(labels.dim()))
    dims = [d % labels.dim() for d in ([dims] if isinstance(dims, int) else dims)]
    first = tracer.tie_along(labels, dims)
    kept = [1 if d in dims else labels.shape[d] for d in range(labels.dim())]
    first = first.expand(kept)
    for result in (r for r in tree_leaves(out) if isinstance(r, Tensor)):
        tracer.set(result, first.reshape(result.shape))


def _cumulative(tracer: Tracer, func: Any, args: Any, kwargs: dict[str, Any], out: Any) -> None:
    labels = tracer.of(args[0])
    if labels is not None:
        if not tracer.same_along(labels, [args[1] % labels.dim()]):
            tracer.refuse(labels, f"{func.overloadpacket} runs over units")
        for result in (r for r in tree_leaves(out) if isinstance(r, Tensor)):
            tracer.set(result, labels)


def _unknown(tracer: Tracer, func: Any, args: Any, kwargs: dict[str, Any], out: Any) -> None:
    reason = f"operator not understood: {func.overloadpacket}"
    found = False
    for operand in (a for a in tree_leaves((args, kwargs)) if isinstance(a, Tensor)):
        if tracer.is_parameter(operand):
            source = tracer.source(operand)
            if source is not None:
                tracer.not_understood[source[0]] = reason
                found = True
        else:
            labels = tracer.of(operand)
            if labels is not None:
                tracer.refuse(labels, reason)
                found = True
    if found:
        for result in (r for r in tree_leaves(out) if isinstance(r, Tensor)):
            tracer.set(result, tracer.fresh(1, reason).expand(result.shape))


RULES: dict[str, Rule] = {
    "convolution": _convolution,
    **dict.fromkeys(("mm", "addmm", "bmm", "baddbmm", "mv", "addmv", "linear", "matmul"), _matmul),
    "embedding": _embedding,
    **dict.fromkeys(
        (
            "native_batch_norm",
            "cudnn_batch_norm",
            "_native_batch_norm_legit",
            "_native_batch_norm_legit_no_training",
            "_batch_norm_no_update",
            "_batch_norm_with_update",
        ),
        _batch_norm,
    ),
    "native_layer_norm": _layer_norm,
    "native_group_norm": _group_norm,
    "_softmax": _softmax,
    "_log_softmax": _softmax,
    "softmax": _softmax,
    "_safe_softmax": _softmax,
    "as_strided_": _relayout,
    "copy_": _copy,
    "fill_": _clear,
    "zero_": _clear,
}
