"""Networks as programs that run without this package: traced by torch.export, or as ONNX.

Both kinds take batches of any size and carry a record of what they are, as JSON: a `.pt2` file as
an extra file, an `.onnx` file in its metadata. Where the code of a layer lies on this machine, and
the example that it was traced with, stay out of both.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import io
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from inspect import Parameter, Signature
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from fcompress.checkpoints.checkpoint import RECORD
from fcompress.errors import FcompressError, UnsupportedNetworkError, first_line
from fcompress.forward.predictor import Predictor, as_predictor
from fcompress.models.fingerprint import REWRITTEN, last_shrink
from fcompress.nn.local_response_norm import FixedLocalResponseNorm, LocalResponseNorm
from fcompress.surgery.preparation import plain_copy

# The extra file of a .pt2 file that holds the record.
RECORD_FILE = f"{RECORD}.json"
# Where an .onnx file holds the hash of what it computes.
GRAPH = f"{RECORD}.graph"
# What a .pt2 file holds by which it is known, in archives of torch 2.8 and later and before.
PROGRAM_ENTRIES = ("models/model.json", "serialized_exported_program.json")
INPUT, OUTPUT = "input", "logits"
# Axes of any size, in ONNX.
BATCH, SEQUENCE = "batch", "sequence"
# ONNX 1.18, which onnxruntime runs from 1.23 on.
ONNX_OPSET = 23
# Without an operator for rotary embeddings. Where there is one the exporter uses it for tables of
# one row, which onnxruntime takes for those of a batch and refuses.
PLAIN_OPSET, _ROTARY = 22, "RotaryEmbedding"
_ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
# Protocol buffers cannot hold more.
_ONNX_BYTES = 2**31
_ONNX_DTYPES = (torch.float16, torch.float32, torch.float64)
_NAMESPACES = ("aten", "prim", "prims")
# Takes inputs as the network does, by position or by name.
Runner = Callable[..., Tensor]


class _Scores(nn.Module):
    """The class scores of a network that returns something around them."""

    def __init__(self, predictor: Predictor) -> None:
        super().__init__()
        self.network = predictor.network
        self._predictor = predictor

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Tensor:
        # Unchecked: a look at the number of examples would fix it in the program.
        scoring = self._predictor.scoring
        return scoring.named(scoring.run(self.network, *args, **kwargs))


def _scores(predictor: Predictor, names: Sequence[str]) -> nn.Module:
    """The class scores of a network whose inputs go by these names, if any.

    Programs take their inputs by the names in the signature. Under `**kwargs` they would not run
    where an axis is of any size (torch 2.14).
    """
    if not names:
        return _Scores(predictor)

    def forward(self: _Scores, **kwargs: Tensor) -> Tensor:
        return _Scores.forward(self, **kwargs)

    parameters = [Parameter("self", Parameter.POSITIONAL_ONLY)]
    parameters += [Parameter(name, Parameter.KEYWORD_ONLY) for name in names]
    forward.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    return type("_NamedScores", (_Scores,), {"forward": forward})(predictor)


def trace(model: nn.Module | Predictor, example: Tensor) -> ExportedProgram:
    """Trace a network for batches of any size.

    Args:
        model: The network, in any mode; it is not changed. Its program computes in eval mode.
        example: Inputs [N, ...], packed where there are several; only shape and dtype are used.

    Raises:
        UnsupportedNetworkError: torch.export cannot follow the network, its code needs one size of
            batch, or it uses operators of another package than torch.
    """
    predictor = as_predictor(model)
    fixed = _with_fixed_norms(plain_copy(predictor.network))
    # Zeros: the program keeps the example, and nobody's data shall travel in it.
    zeros = torch.zeros(2, *example.shape[1:], dtype=example.dtype)
    args, kwargs = predictor.unpacked(fixed, zeros)
    with quiet(), torch.no_grad():
        try:
            dynamic: Any = tuple(_dynamic(value) for value in args)
            if predictor.packing is not None or not isinstance(fixed(zeros), Tensor):
                fixed = _scores(predictor.of(fixed), list(kwargs))
                named = {name: _dynamic(value) for name, value in kwargs.items()}
                dynamic = named or {"args": dynamic}
            program = torch.export.export(fixed, args, kwargs, dynamic_shapes=dynamic, strict=False)
        except FcompressError:
            raise
        # torch.export raises whatever the operator at hand raises, and some types of its own.
        except Exception as error:
            raise UnsupportedNetworkError(
                f"torch.export cannot turn this {predictor.name} into a program: "
                f"{type(error).__name__}: {first_line(error)[:300]}; save it as .safetensors"
            ) from error
    _check_operators(program)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    return program


def _dynamic(value: Tensor) -> dict[int, Any]:
    """Axes of an input that take any size: examples, and positions where the network takes it."""
    positions = value.dim() == 2 and not value.is_floating_point()
    return {0: Dim("batch"), **({1: Dim.AUTO} if positions else {})}


def write_program(program: ExportedProgram, record: str, file: BinaryIO) -> None:
    """Write a traced program in torch's format (.pt2), with its record."""
    with quiet():
        torch.export.save(program, file, extra_files={RECORD_FILE: record})


def run_program(path: Path) -> Runner:
    """Open a .pt2 file that this process wrote.

    Not for files of others: the format may hold pickled objects.
    """
    with quiet(), path.open("rb") as file:
        network = torch.export.load(file).module()

    def run(*args: Tensor, **kwargs: Tensor) -> Tensor:
        with torch.no_grad():
            return network(*args, **kwargs)

    return run


def write_onnx(
    program: ExportedProgram, record: str, file: BinaryIO, names: Sequence[str] = (INPUT,)
) -> None:
    """Write a traced program as ONNX, with its record.

    Args:
        program: From `trace`.
        record: JSON.
        file: Open for writing.
        names: Of the inputs.

    Raises:
        FcompressError: As `onnx_of`.
    """
    file.write(stamped(onnx_of(program, names), record))


def onnx_of(program: ExportedProgram, names: Sequence[str] = (INPUT,)) -> Any:
    """A traced program as ONNX.

    Args:
        program: From `trace`.
        names: Of the inputs.

    Raises:
        FcompressError: A package is missing, the network is too large or of a dtype that the
            format lacks, or an operator cannot be exported to ONNX.
    """
    onnx, _, _ = onnx_packages()
    _check_onnx_limits(program)
    with quiet():
        try:
            proto = _onnx_proto(program, names, ONNX_OPSET)
            if any(node.op_type == _ROTARY for node in proto.graph.node):
                proto = _onnx_proto(program, names, PLAIN_OPSET)
            _tidy(proto)
            onnx.checker.check_model(proto)
        except Exception as error:  # of the exporter, by type as many as operators
            raise UnsupportedNetworkError(
                f"this network cannot be exported to ONNX: {type(error).__name__}: "
                f"{first_line(error)[:300]}; save it as .pt2"
            ) from error
    return proto


def stamped(proto: Any, record: str | None = None) -> bytes:
    """An ONNX network as the content of a file, with a hash of what it computes, and its record."""
    onnx, _, _ = onnx_packages()
    onnx.helper.set_model_props(
        proto, {GRAPH: graph_hash(proto), **({} if record is None else {RECORD: record})}
    )
    content: bytes = proto.SerializeToString(deterministic=True)
    return content


def _onnx_proto(program: ExportedProgram, names: Sequence[str], opset: int) -> Any:
    """A program as the package onnx has it."""
    made = torch.onnx.export(
        program,
        (),
        input_names=list(names),
        output_names=[OUTPUT],
        opset_version=opset,
        dynamo=True,
        verbose=False,
    )
    assert made is not None
    return made.model_proto


def run_onnx(path: Path) -> Runner:
    """Open an .onnx file that this process wrote with onnxruntime, on the CPU."""
    session = onnx_session(path)

    names = [node.name for node in session.get_inputs()]

    def run(*args: Tensor, **kwargs: Tensor) -> Tensor:
        feed = {**dict(zip(names, args, strict=False)), **kwargs}
        arrays = {name: feed[name].contiguous().numpy() for name in names}
        return torch.from_numpy(session.run([OUTPUT], arrays)[0])

    return run


def onnx_session(given: Path | bytes) -> Any:
    """A session of onnxruntime on the CPU, which runs no code of the file.

    Args:
        given: The file, or its content.

    Raises:
        FcompressError: onnxruntime does not take it, or is not installed.
    """
    _, _, runtime = onnx_packages()
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    try:
        return runtime.InferenceSession(
            given if isinstance(given, bytes) else os.fspath(given),
            options,
            providers=["CPUExecutionProvider"],
        )
    except Exception as error:  # onnxruntime's own exceptions have no common public type
        raise FcompressError(
            f"onnxruntime does not take the network: {first_line(error)[:300]}; save it as .pt2"
        ) from error


def judged_program(history: Sequence[Any], proto: Any) -> list[Any]:
    """The history in an ONNX file, its certificate void if the file is not as `export` left it.

    Quantising it keeps what the file says about itself.

    Args:
        history: From its record.
        proto: The file, as the package onnx opens it.
    """
    found = list(history)
    last = last_shrink(found)
    said = {entry.key: entry.value for entry in proto.metadata_props}.get(GRAPH)
    if last is not None and said is not None and said != graph_hash(proto):
        found[last] = {"void": REWRITTEN, **found[last]}
    return found


def graph_hash(proto: Any) -> str:
    """The sha256 of an ONNX network's operators and tensors."""
    digest = hashlib.sha256()
    for part in (proto.graph, *proto.functions):
        digest.update(part.SerializeToString(deterministic=True))
    return digest.hexdigest()


def onnx_packages() -> tuple[Any, Any, Any]:
    """The modules onnx, onnxscript and onnxruntime.

    Raises:
        FcompressError: One of them is not installed.
    """
    try:
        onnx, script, runtime = (importlib.import_module(name) for name in _ONNX_PACKAGES)
    except ImportError as error:
        raise FcompressError(
            f"ONNX needs the packages {', '.join(_ONNX_PACKAGES)} ({error}); install them: "
            "pip install 'fcompress[onnx]'"
        ) from error
    return onnx, script, runtime


def _with_fixed_norms(model: nn.Module) -> nn.Module:
    if isinstance(model, LocalResponseNorm):
        return FixedLocalResponseNorm(model)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, LocalResponseNorm):
                setattr(parent, name, FixedLocalResponseNorm(child))
    return model


def _check_operators(program: ExportedProgram) -> None:
    """See that torch alone can run the program."""
    for graph in program.graph_module.modules():
        for node in getattr(getattr(graph, "graph", None), "nodes", ()):
            space = getattr(node.target, "namespace", None)
            if node.op != "call_function" or space is None or space in _NAMESPACES:
                continue
            if isinstance(node.target, torch._ops.OpOverload):
                raise UnsupportedNetworkError(
                    f"the network uses the operator {node.target}, which torch alone cannot run; "
                    "save it as .safetensors"
                )


def _check_onnx_limits(program: ExportedProgram) -> None:
    tensors = list(program.state_dict.values())
    size = sum(tensor.nbytes for tensor in tensors)
    if size >= _ONNX_BYTES:
        raise FcompressError(
            f"a network of {size:,} bytes is too large for one ONNX file, which ends at "
            f"{_ONNX_BYTES:,}; save it as .pt2"
        )
    for tensor in tensors:
        if tensor.is_floating_point() and tensor.dtype not in _ONNX_DTYPES:
            raise FcompressError(
                f"a network in {str(tensor.dtype).removeprefix('torch.')} does not run in "
                "onnxruntime on a CPU; convert it to float32 or save it as .pt2"
            )


def _tidy(proto: Any) -> None:
    """Name dimensions of any size, and drop what the exporter noted about this machine's code."""
    graph = proto.graph
    known: dict[str, str] = {}
    for value in graph.input:
        for name, dimension in zip(
            (BATCH, SEQUENCE), value.type.tensor_type.shape.dim, strict=False
        ):
            if dimension.dim_param:
                known.setdefault(dimension.dim_param, name)
    for value in (*graph.input, *graph.output, *graph.value_info):
        del value.metadata_props[:]
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param in known:
                dimension.dim_param = known[dimension.dim_param]
    for part in (graph, *graph.node, *graph.initializer, *proto.functions):
        del part.metadata_props[:]
        part.doc_string = ""


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep what the exporters print, warn and log off the terminal, and the random state."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    unread = io.StringIO()
    try:
        with (
            contextlib.redirect_stderr(unread),
            contextlib.redirect_stdout(unread),
            warnings.catch_warnings(),
            torch.random.fork_rng(devices=[]),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
