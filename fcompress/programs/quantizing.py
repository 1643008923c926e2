"""Networks in int8, by onnxruntime's own static quantiser, as the ONNX file that is shipped.

QDQ form: weights in int8 with a scale for each channel, activations in uint8 with the ranges that
calibration inputs have. Weights use 7 of their 8 bits (`reduce_range`): on processors without dot
products of int8 (AVX2, AVX-512 before VNNI) sums of two full products overflow, and the file would
compute something else there than where it was certified.
"""

from __future__ import annotations

import importlib
import logging
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fcompress.errors import FcompressError, UnsupportedNetworkError, first_line
from fcompress.forward.callables import Called
from fcompress.forward.predictor import Predictor
from fcompress.programs.files import (
    INPUT,
    OUTPUT,
    graph_hash,
    onnx_of,
    onnx_packages,
    onnx_session,
    quiet,
    stamped,
    trace,
)
from fcompress.surgery.preparation import plain_copy

SCHEMES = ("int8",)
_QUANTIZING, _DEQUANTIZING = "QuantizeLinear", "DequantizeLinear"
_MAKERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


class Quantized(Called):
    """A network in int8, run by onnxruntime: what is judged, certified and written.

    Attributes:
        network: The network in torch that it was made of; no submodule, so that this one has no
            parameters.
        content: The ONNX file, without a record of what it is.
        float_content: The same network in single precision.
        left_in_float: Operators that compute in floating point, with how many there are of each.
    """

    network: nn.Module

    def __init__(
        self, network: nn.Module, content: bytes, float_content: bytes, home: torch.device
    ) -> None:
        """Open the file.

        Args:
            network: What it was made of.
            content: The file.
            float_content: Before it was quantised.
            home: Where its outputs are wanted.
        """
        run = _running(content)
        super().__init__(
            lambda inputs: run(inputs).to(home), "the int8 network", device=torch.device("cpu")
        )
        object.__setattr__(self, "network", network)
        self.content, self.float_content = content, float_content

    @cached_property
    def proto(self) -> Any:
        """The ONNX network."""
        return onnx_packages()[0].load_from_string(self.content)

    @cached_property
    def left_in_float(self) -> dict[str, int]:
        """Operators that compute in floating point."""
        return _left_in_float(self.proto)

    def fingerprint(self) -> str:
        """The sha256 of what it computes, which its file carries."""
        return graph_hash(self.proto)

    def in_float(self) -> Called:
        """The same network before it was quantised, in onnxruntime."""
        return Called(_running(self.float_content), "the network", device=torch.device("cpu"))

    def written(self, record: str) -> bytes:
        """The file with a record of what it is."""
        return stamped(self.proto, record)


def quantized(predictor: Predictor, batches: Sequence[Tensor]) -> Quantized:
    """A network in int8.

    Args:
        predictor: The network, of one input and one output; it is not changed.
        batches: Calibration inputs, which set the ranges of activations.

    Raises:
        FcompressError: onnxruntime's quantiser is not installed.
        UnsupportedNetworkError: It cannot be exported to ONNX, or not be quantised.
    """
    onnx, _, _ = onnx_packages()
    tool, preparing = _quantiser()
    device = next((p.device for p in predictor.network.parameters()), torch.device("cpu"))
    single = plain_copy(predictor.network).cpu().float().eval()
    inputs = [batch.cpu().float() for batch in batches]
    proto = onnx_of(trace(predictor.of(single), inputs[0]))
    before = stamped(proto)
    with tempfile.TemporaryDirectory() as folder, quiet():
        made, ready, single_file = (Path(folder, f"{n}.onnx") for n in ("int8", "ready", "float"))
        single_file.write_bytes(before)
        try:
            preparing.quant_pre_process(single_file, ready, skip_symbolic_shape=True)
            tool.quantize_static(
                ready,
                made,
                _reader(tool, inputs),
                quant_format=tool.QuantFormat.QDQ,
                per_channel=True,
                reduce_range=True,
                activation_type=tool.QuantType.QUInt8,
                weight_type=tool.QuantType.QInt8,
                calibrate_method=tool.CalibrationMethod.MinMax,
            )
            found = onnx.load(made)
            _with_exact_scores(found)
            onnx.checker.check_model(found)
        except Exception as error:  # of the quantiser, by type as many as operators
            raise UnsupportedNetworkError(
                f"onnxruntime cannot quantise this {predictor.name}: {type(error).__name__}: "
                f"{first_line(error)[:300]}; leave quantize (--quantize) out"
            ) from error
    return Quantized(predictor.network, stamped(found), before, device)


def check_quantizable(predictor: Predictor) -> None:
    """Refuse what no file in int8 can be made of, before any work is done.

    Raises:
        UnsupportedNetworkError: It takes several inputs, several of its outputs count, or it draws
            random numbers.
        FcompressError: The quantiser is not installed.
    """
    onnx_packages()
    _quantiser()
    why = None
    if predictor.packing is not None:
        why = f"takes several inputs ({predictor.packing}), and such a file takes one"
    elif predictor.draws:
        why = "draws random numbers, and such a file draws none"
    elif predictor.scoring.whole:
        why = "gives several outputs that count together, and such a file gives one"
    if why is not None:
        raise UnsupportedNetworkError(f"quantize (--quantize) writes ONNX; this network {why}")


def _quantiser() -> tuple[Any, Any]:
    """Onnxruntime's quantiser, and what prepares a network for it.

    Raises:
        FcompressError: It is not installed.
    """
    names = ("onnxruntime.quantization", "onnxruntime.quantization.shape_inference")
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        tool, preparing = (importlib.import_module(name) for name in names)
    except ImportError as error:
        raise FcompressError(
            f"int8 needs the quantiser of onnxruntime ({error}); install it: "
            "pip install 'fcompress[onnx]'"
        ) from error
    finally:
        logging.disable(level)
    return tool, preparing


def _reader(tool: Any, batches: Iterable[Tensor]) -> Any:
    """Calibration inputs as the quantiser reads them."""

    class Reader(tool.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._left: Iterator[Tensor] = iter(batches)

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self._left, None)
            return None if batch is None else {INPUT: batch.numpy()}

    return Reader()


def _running(content: bytes) -> Any:
    session = onnx_session(content)

    def run(inputs: Tensor) -> Tensor:
        array = inputs.detach().cpu().contiguous().numpy()
        return torch.from_numpy(session.run([OUTPUT], {INPUT: array})[0])

    return run


def _with_exact_scores(proto: Any) -> None:
    """Leave out the last rounding, of the scores to 256 values: two classes of one value would tie.

    The quantiser writes it for the last operator as for any other one.
    """
    nodes, output = proto.graph.node, proto.graph.output[0].name
    made_by = {out: node for node in nodes for out in node.output}
    back = made_by[output]
    rounding = made_by.get(back.input[0]) if back.op_type == _DEQUANTIZING else None
    if rounding is None or rounding.op_type != _QUANTIZING:
        return
    exact = rounding.input[0]
    read = sum(list(node.input).count(exact) for node in nodes)
    if exact not in made_by or read != 1 or made_by[exact].op_type == _DEQUANTIZING:
        return
    maker = made_by[exact]
    maker.output[list(maker.output).index(exact)] = output
    for node in (back, rounding):
        nodes.remove(node)
    left = {name for node in nodes for name in node.input}
    for one in [one for one in proto.graph.initializer if one.name not in left]:
        proto.graph.initializer.remove(one)


def _left_in_float(proto: Any) -> dict[str, int]:
    """Operators that compute in floating point, by type.

    In QDQ form an operator is in int8 where the quantiser knows its type and each of its inputs
    that is computed, and its weight, comes out of a DequantizeLinear. What only moves numbers, and
    what computes whole ones (sizes of tensors), is left out.
    """
    made_by = {out: node for node in proto.graph.node for out in node.output}
    stored = {one.name for one in proto.graph.initializer}
    kinds = {one.name: one.type.tensor_type.elem_type for one in proto.graph.value_info}
    known = _known_types()
    found: Counter[str] = Counter()
    for node in proto.graph.node:
        kind = kinds.get(node.output[0], _FLOAT)
        if kind != _FLOAT or node.op_type in (_QUANTIZING, _DEQUANTIZING, *_MOVES):
            continue
        given = [name for name in node.input if name and name in made_by]
        in_int8 = given and all(made_by[name].op_type == _DEQUANTIZING for name in given)
        weighted = node.op_type in _MAKERS and any(name in stored for name in node.input[:2])
        if node.op_type not in known or not in_int8 or weighted:
            found[node.op_type] += 1
    return dict(sorted(found.items()))


def _known_types() -> set[str]:
    """Types of operators that the quantiser knows."""
    registry = importlib.import_module("onnxruntime.quantization.registry")
    return {*registry.QLinearOpsRegistry, *registry.QDQRegistry}


_FLOAT = 1  # TensorProto.FLOAT
_MOVES = (
    "Identity Reshape Flatten Transpose Squeeze Unsqueeze Shape Slice Gather Concat Split Expand "
    "Cast Constant ConstantOfShape Pad"
).split()
