"""What operators that mix or reduce elements do to unit ids.

Convolutions and matrix products end one set of units and begin another; normalisations, softmax,
pooling and reductions keep units apart or mix them, and where they mix, say so.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fcompress.forward.running import tensors_in
from fcompress.structure.rules_elementwise import (
    Rule,
    either,
    meet,
    of_parameters,
    operator_name,
    unknown,
)
from fcompress.structure.tracer import Tracer
from fcompress.structure.unit_ids import compact, nobody, representative, units_in

# Of `aten._trilinear`: which dimensions its three operands lack, and which are summed over.
_BILINEAR = ((1, 3), (0,), (1, 2), (2, 3))


# Convolutions and matrix products ----------------------------------------------------------


def convolution(tracer: Tracer, func: Any, args: Any, kwargs: dict[str, Any], out: Any) -> None:
    """Columns read the units of the input, rows write new ones; depthwise ones keep them."""
    x, weight, bias = args[:3]
    _convolve(tracer, x, weight, bias, args[8], out, transposed=args[6])


def deformable(tracer: Tracer, func: Any, args: Any, kwargs: dict[str, Any], out: Any) -> None:
    """A convolution in its channels; all of one offset group are read at the same places."""
    x, weight, offset, mask, bias = args[:5]
    groups, parts = args[11:13]
    tracer.refuse(tracer.of(offset), "offsets of a deformable convolution")
    tracer.refuse(tracer.of(mask), "weights of a deformable convolution's offsets")
    _convolve(tracer, x, weight, bias, groups, out, transposed=False)
    if parts > 1:
        line = representative(tracer.known(x), [0, 2, 3]).flatten().expand(x.shape[1])
        tracer.splits.append(line.reshape(parts, -1))


def bilinear(tracer: Tracer, func: Any, args: Any, kwargs: dict[str, Any], out: Any) -> None:
    """`nn.Bilinear`: rows write units, the other two dimensions read those of each input."""
    first, weight, second = args[:3]
    how = tuple(tuple(dims) for dims in args[3:7])
    rows_only = first.dim() == second.dim() == 2 and weight.dim() == 3
    if not rows_only or how != _BILINEAR or not tracer.parameters.is_parameter(weight):
        unknown(tracer, func, args, kwargs, out)
        return
    for dim, x in ((1, first), (2, second)):
        line = tracer.tie_along(tracer.known(x), [0], "a bilinear map")
        tracer.assign(weight, dim, line.flatten().expand(x.shape[1]), "consumer")
    rows = tracer.fresh(out.shape[1])
    tracer.assign(weight, 0, rows, "producer")
    tracer.set(out, rows.expand(out.shape))


def _convolve(
    tracer: Tracer,
    x: Tensor,
    weight: Tensor,
    bias: Any,
    groups: int,
    out: Tensor,
    *,
    transposed: bool,
) -> None:
    channels, outputs = x.shape[1], out.shape[1]
    others = [d for d in range(x.dim()) if d != 1]
    line = tracer.tie_along(tracer.known(x), others, "a convolution that slides over units")
    line = line.flatten().expand(channels)
    view = (1, -1) + (1,) * (x.dim() - 2)
    if not tracer.parameters.is_parameter(weight):
        tracer.refuse(line, "convolved with a weight that is not a parameter")
        made = tracer.fresh(1, "made by a weight that is not a parameter").expand(outputs)
        tracer.set(out, made.view(view).expand(out.shape))
        return
    if groups == channels and groups > 1:
        made = line.repeat_interleave(outputs // groups)
        if transposed:
            tracer.assign(weight, 0, line, "between")
            if outputs != groups:
                tracer.refuse(line, "depthwise transposed convolution with several outputs")
        else:
            tracer.assign(weight, 0, made, "between")
    else:
        rows = tracer.fresh(outputs // groups)
        made = rows.repeat(groups)
        parts = line.view(groups, channels // groups)
        if groups > 1:  # a bundle: one channel of each convolution group
            tracer.tie(parts, parts[:1])
        if transposed:
            tracer.assign(weight, 0, line, "consumer")
            tracer.assign(weight, 1, rows, "producer")
        else:
            tracer.assign(weight, 1, parts.amax(0), "consumer")
            tracer.assign(weight, 0, made, "producer")
    _bias(tracer, bias, made)
    tracer.contraction(weight, bias, "conv" if not transposed else "transposed")
    tracer.set(out, made.view(view).expand(out.shape))


def _bias(tracer: Tracer, bias: Any, made: Tensor) -> None:
    if isinstance(bias, Tensor):
        whole = tracer.parameters.whole_copy(bias)
        if whole is not None and bias.dim() == 1:
            tracer.assign(whole, 0, made, "between")
        elif not tracer.parameters.is_parameter(bias) and tracer.of(bias) is not None:
            tracer.tie(tracer.known(bias), made)  # several parameters end to end
        else:
            tracer.refuse(made, "its bias is not a parameter")


def matmul(tracer: Tracer, func: Any, args: Any, kwargs: dict[str, Any], out: Any) -> None:
    """Matrix products: of an activation with a parameter on either side, or of two activations."""
    name = operator_name(func)
    own, bias = tracer.parameters, None
    if name in ("addmm", "baddbmm", "addmv"):
        bias, a, b = args[:3]
    elif name == "linear":
        a, b = args[0], args[1].t()
        bias = args[2] if len(args) > 2 else None
    else:
        a, b = args[:2]
    a3, b3 = _as_batch(a), _as_batch(b)
    batched = name == "bmm"
    if any(own.is_buffer(x) and _constant(tracer, y) for x, y in ((a, b), (b, a))):
        own.computed_from(out, (a, b), str(func.overloadpacket))  # a table, such as of positions
        return
    if batched and own.is_small(a) and own.is_buffer(b):
        # A small parameter looked up by constants: position biases.
        made = _product(tracer, _as_batch(tracer.known(a)), nobody(b3.shape))
    elif batched and own.is_small(b) and own.is_buffer(a):
        made = _product(tracer, nobody(a3.shape), _as_batch(tracer.known(b)))
    elif own.is_parameter(b) and own.is_parameter(a) and _one_row(tracer, a):
        # A learned vector, such as a first state, goes the way of an activation.
        made = _linear(tracer, _as_batch(tracer.known(a)), b3, bias)
    elif own.is_parameter(b) and own.is_parameter(a) and not own.is_buffer(a):
        of_parameters(tracer, func, [a, b], out)
        return
    elif own.is_buffer(b) and not tracer.same_along(_as_batch(tracer.known(a)), [0, 1]):
        made = _product(tracer, _as_batch(tracer.known(a)), nobody(b3.shape))
    elif own.is_parameter(b):
        # A buffer is data here, like the network's input, and belongs to nobody.
        x = nobody(a3.shape) if own.is_buffer(a) else _as_batch(tracer.known(a))
        made = _linear(tracer, x, b3, bias)
    elif own.is_parameter(a):
        x = _as_batch(tracer.known(b)).transpose(1, 2)
        made = _linear(tracer, x, a3.transpose(1, 2), None).transpose(1, 2)
    else:
        made = _product(tracer, _as_batch(tracer.known(a)), _as_batch(tracer.known(b)))
    made = made.expand(*a3.shape[:2], b3.shape[2]).reshape(out.shape)
    if isinstance(bias, Tensor) and not own.is_parameter(b):
        made = meet(tracer, made, bias, str(func.overloadpacket))
    tracer.set(out, made if bool(compact(made).any()) else None)


def _constant(tracer: Tracer, tensor: Tensor) -> bool:
    """Whether a tensor is neither a parameter nor depends on any unit or input."""
    return not tracer.parameters.is_parameter(tensor) and tracer.of(tensor) is None


def _one_row(tracer: Tracer, a: Tensor) -> bool:
    """Whether a parameter is a vector, or the same one for each example."""
    source = tracer.parameters.source(a) if tracer.parameters.is_small(a) else None
    return source is not None and bool((source[1] == source[1].flatten(0, -2)[:1]).all())


def _as_batch(x: Tensor) -> Tensor:
    """A matrix, or a batch of them, as [batch, rows, columns]; a vector as one column."""
    if x.dim() == 1:
        x = x.unsqueeze(1)
    return x.unsqueeze(0) if x.dim() == 2 else x.reshape(-1, *x.shape[-2:])


def _linear(tracer: Tracer, x: Tensor, weight: Tensor, bias: Any) -> Tensor:
    """Ids x [B, m, k] times weight [1 or B, k, n] of the network: ids [B or 1, m or 1, n]."""
    if weight.shape[0] > 1 and weight.stride(0) != 0:
        reason = "a different weight for each example or position"
        tracer.refuse(x, reason)
        tracer.parameters.set_aside((weight, bias), reason)
        return tracer.fresh(1, "made by a stack of weights").view(1, 1, 1)
    weight = weight[0]
    if tracer.same_along(x, [2]) and not tracer.same_along(x, [0, 1]):
        # Mixes positions, each unit on its own: the weight has no units of its own here.
        tracer.parameters.set_aside((weight, bias), "mixes positions, not units")
        return representative(x, [2])
    columns = tracer.tie_along(x, [0, 1], "a linear map that is the same for several units")
    rows = tracer.fresh(weight.shape[1])
    tracer.assign(weight, 0, columns.flatten().expand(x.shape[2]), "consumer")
    tracer.assign(weight, 1, rows, "producer")
    _bias(tracer, bias, rows)
    tracer.contraction(weight, bias, "linear")
    return rows.view(1, 1, -1)


def _product(tracer: Tracer, a: Tensor, b: Tensor) -> Tensor:
    """Two activations, a [B, m, k] and b [B, k, n]: attention scores and what they weigh."""
    if not len(units_in(b)):
        return tracer.tie_along(a, [2], "a product with constants")
    if not len(units_in(a)):
        return tracer.tie_along(b, [1], "a product with constants")
    if tracer.same_along(a, [2]) and tracer.same_along(b, [1]):
        left, right = representative(a, [2]), representative(b, [1])
    else:
        # Contracted over units: those of one product (one head) go together.
        left = tracer.tie_along(a, [1, 2], "a product of two activations")
        right = tracer.tie_along(b, [1, 2], "a product of two activations")
    tracer.tie(left, right)
    return either(left, right)


def attention(tracer: Tracer, func: Any, args: Any, kwargs: dict[str, Any], out: Any) -> None:
    """Fused attention over [B, heads, tokens, dim]: a head's queries, keys and values are one."""
    result = tensors_in(out)[0]
    number = args[0].shape[1]
    operator = str(func.overloadpacket)
    heads = []
    for operand in args[:3]:
        line = tracer.tie_along(tracer.known(operand), [0, 2, 3], operator)
        line = line.expand(1, operand.shape[1], 1, 1)
        heads.append(line.repeat_interleave(number // operand.shape[1], 1))
    query, key, value = heads
    tracer.tie(query, key)
    tracer.tie(query, value)
    ids = either(either(query, key), value).expand(result.shape)
    mask = kwargs.get("attn_mask", args[3] if len(args) > 3 else None)
    if isinstance(mask, Tensor):
        shape = (*args[0].shape[:3], args[1].shape[2])
        scores = either(query, key).expand(shape)
        meet(tracer, scores, mask, operator)
    tracer.set(result, ids)


def embedding(tracer: Tracer, func: Any, args: Any, kwargs: dict[str, Any], out: Any) -> None:
    """A table's columns write units, whatever its rows stand for."""
    if not tracer.parameters.is_parameter(args[0]):
        unknown(tracer, func, args, kwargs, out)
        return
    rows = tracer.fresh(args[0].shape[1])
    tracer.assign(args[0], 1, rows, "producer")
    tracer.set(out, rows.expand(out.shape))


# Normalisations ----------------------------------------------------------------------------


def batch_norm(tracer: Tracer, func: Any, args: Any, kwargs: dict[str, Any], out: Any) -> None:
    """Each channel on its own; scale, shift and statistics belong to it."""
    ids = tracer.known(args[0])
    operator = str(func.overloadpacket)
    line = tracer.tie_along(ids, [d for d in range(ids.dim()) if d != 1], operator)
    line = line.flatten().expand(ids.shape[1])
    for operand in args[1:5]:
        if isinstance(operand, Tensor):
            meet(tracer, line, operand, operator)
    tracer.set(tensors_in(out)[0], ids)


def layer_norm(tracer: Tracer, func: Any, args: Any, kwargs: dict[str, Any], out: Any) -> None:
    """Mixes what it normalises over: fine within one unit (a head), else not pruned."""
    ids = tracer.known(args[0])
    over = list(range(ids.dim() - len(args[1]), ids.dim()))
    kind = "RMS" if "rms" in operator_name(func) else "layer"
    tracer.mixes(ids, over, f"{kind} normalisation mixes its channels")
    for operand in args[2:4]:
        if isinstance(operand, Tensor):
            meet(tracer, ids, operand, str(func.overloadpacket))
    tracer.set(tensors_in(out)[0], ids)


def group_norm(tracer: Tracer, func: Any, args: Any, kwargs: dict[str, Any], out: Any) -> None:
    """Mixes the channels of each normalisation group, which can only go as a whole."""
    ids = tracer.known(args[0])
    channels, groups = ids.shape[1], args[6]
    operator = str(func.overloadpacket)
    line = tracer.tie_along(ids, [d for d in range(ids.dim()) if d != 1], operator)
    line = line.flatten().expand(channels)
    for operand in args[1:3]:
        if isinstance(operand, Tensor):
            meet(tracer, line, operand, operator)
    if groups == 1:
        tracer.mixes(line, [0], "group normalisation mixes its channels")
    else:
        tracer.tie_along(line.reshape(groups, -1), [1], "a group of channels normalised together")
    tracer.set(out[0], ids)


def softmax(tracer: Tracer, func: Any, args: Any, kwargs: dict[str, Any], out: Any) -> None:
    """Mixes along its dimension."""
    ids = tracer.of(args[0])
    if ids is not None:
        tracer.mixes(ids, [args[1] % ids.dim()], "softmax over units mixes them")
        tracer.set(out, ids)


# Pooling and reductions --------------------------------------------------------------------


def resample(tracer: Tracer, func: Any, args: Any, kwargs: dict[str, Any], out: Any) -> None:
    """Pooling and interpolation over the last dimensions, each unit on its own."""
    ids = tracer.of(args[0])
    if ids is None:
        return
    result = tensors_in(out)[0]
    name = operator_name(func)
    count = 3 if "3d" in name else 1 if "1d" in name else 2
    dims = list(range(ids.dim() - count, ids.dim()))
    if tracer.same_along(ids, dims):
        shape = (*ids.shape[:-count], *result.shape[-count:])
        tracer.set(result, representative(ids, dims).expand(shape))
        return
    reason = f"{func.overloadpacket} pools over units"
    tracer.refuse(ids, reason)
    made = ids if result.shape == ids.shape else tracer.fresh(1, reason).expand(result.shape)
    tracer.set(result, made)


# What a reduction is called in a reason.
_REDUCED = {
    "mean": "a mean",
    "sum": "a sum",
    "prod": "a product",
    **dict.fromkeys(("amax", "max"), "a maximum"),
    **dict.fromkeys(("amin", "min"), "a minimum"),
    **dict.fromkeys(("var", "std", "var_mean", "std_mean"), "a variance"),
    **dict.fromkeys(("norm", "linalg_vector_norm"), "a norm"),
}


def reduction(tracer: Tracer, func: Any, args: Any, kwargs: dict[str, Any], out: Any) -> None:
    """Means, sums, norms: units that are reduced to one number become one."""
    ids = tracer.of(args[0])
    if ids is None:
        return
    at = 2 if operator_name(func) in ("linalg_vector_norm", "norm") else 1
    dims = args[at] if len(args) > at else kwargs.get("dim")
    if not isinstance(dims, (int, list, tuple)) or isinstance(dims, bool) or dims == []:
        dims = list(range(ids.dim()))
    dims = [d % ids.dim() for d in ([dims] if isinstance(dims, int) else dims)]
    name = operator_name(func)
    first = tracer.tie_along(ids, dims, f"{_REDUCED.get(name, f'the operator {name}')} over them")
    first = first.expand([1 if d in dims else size for d, size in enumerate(ids.shape)])
    for result in tensors_in(out):
        tracer.set(result, first.reshape(result.shape))


def cumulative(tracer: Tracer, func: Any, args: Any, kwargs: dict[str, Any], out: Any) -> None:
    """Running sums and products along a dimension."""
    ids = tracer.of(args[0])
    if ids is not None:
        dim = args[1] % ids.dim()
        tracer.mixes(ids, [dim], f"{func.overloadpacket} runs over units")
        for result in tensors_in(out):
            tracer.set(result, ids)


def gate(tracer: Tracer, func: Any, args: Any, kwargs: dict[str, Any], out: Any) -> None:
    """`glu`: the first half times the sigmoid of the second, unit by unit."""
    ids = tracer.of(args[0])
    if ids is not None:
        first, second = ids.chunk(2, args[1] if len(args) > 1 else -1)
        tracer.tie(first, second)
        tracer.set(out, either(first, second))


def in_pairs(tracer: Tracer, func: Any, args: Any, kwargs: dict[str, Any], out: Any) -> None:
    """`view_as_complex`: the two numbers of each complex one go together."""
    if tracer.parameters.is_parameter(args[0]):
        tracer.parameters.computed_from(out, args[:1], str(func.overloadpacket))
        return
    ids = tracer.of(args[0])
    if ids is not None:
        pair = tracer.tie_along(ids, [ids.dim() - 1], "a complex number")
        tracer.set(out, pair.squeeze(-1).expand(out.shape))


def apart(tracer: Tracer, func: Any, args: Any, kwargs: dict[str, Any], out: Any) -> None:
    """`view_as_real`: both numbers of a complex one are its unit's."""
    if tracer.parameters.is_parameter(args[0]):
        tracer.parameters.computed_from(out, args[:1], str(func.overloadpacket))
        return
    ids = tracer.of(args[0])
    if ids is not None:
        tracer.set(out, ids.unsqueeze(-1).expand(out.shape))


def packing(tracer: Tracer, func: Any, args: Any, kwargs: dict[str, Any], out: Any) -> None:
    """Sequences of different lengths as one list of their positions, or the reverse."""
    ids = tracer.of(args[0])
    if ids is not None:
        places = [0, 1] if operator_name(func) == "_pack_padded_sequence" else [0]
        line = tracer.tie_along(ids, places, "packing of sequences")
        line = line.reshape(line.shape[len(places) :])
        tracer.set(out[0], line.expand(out[0].shape))


BY_NAME: dict[str, Rule] = {
    **dict.fromkeys(("_pack_padded_sequence", "_pad_packed_sequence"), packing),
    "convolution": convolution,
    "deform_conv2d": deformable,
    "_trilinear": bilinear,
    **dict.fromkeys(("mm", "addmm", "bmm", "baddbmm", "mv", "addmv", "linear", "matmul"), matmul),
    "embedding": embedding,
    **dict.fromkeys(
        (
            "native_batch_norm",
            "cudnn_batch_norm",
            "_native_batch_norm_legit",
            "_native_batch_norm_legit_no_training",
            "_batch_norm_no_update",
            "_batch_norm_with_update",
        ),
        batch_norm,
    ),
    **dict.fromkeys(("native_layer_norm", "rms_norm", "_fused_rms_norm"), layer_norm),
    "native_group_norm": group_norm,
    **dict.fromkeys(("_softmax", "_log_softmax", "softmax", "_safe_softmax"), softmax),
    "glu": gate,
    "view_as_complex": in_pairs,
    "view_as_real": apart,
}
