"""export(): a network as a file that runs elsewhere, kept only if it gives the same outputs."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fcompress.arguments.deprecation import renamed
from fcompress.cascades.network import Cascade
from fcompress.certify.agreement import AgreementResult, compare
from fcompress.certify.bounds import CONFIDENCE
from fcompress.checkpoints.checkpoint import RECORD, content_of, load
from fcompress.data import Batches, Packing, as_batches
from fcompress.errors import DataError, FcompressError, ToleranceError, UnsupportedNetworkError
from fcompress.exports import folders, pairs
from fcompress.formats.atomic import write_atomic
from fcompress.formats.limits import as_path
from fcompress.formats.safetensors import read_safetensors, write_safetensors
from fcompress.forward.answers.asked import asked, noun_of
from fcompress.forward.answers.heads import main_of
from fcompress.forward.answers.nearest import Nearest
from fcompress.forward.answers.resolving import resolved
from fcompress.forward.answers.understanding import understood
from fcompress.forward.callables import Called
from fcompress.forward.predictor import Predictor
from fcompress.models.external import REGISTERED, Architecture, check_layers
from fcompress.models.fingerprint import last_shrink
from fcompress.models.provenance import origin_of
from fcompress.programs import files as programs
from fcompress.programs.files import Runner
from fcompress.programs.quantizing import Quantized
from fcompress.showing.results import Shown
from fcompress.surgery.preparation import plain_copy

FORMATS = {
    ".pt2": "a program of torch.export, which torch alone runs",
    ".onnx": "ONNX, for onnxruntime and others",
    ".safetensors": "weights, for programs that know the architecture",
    ".json": "of a cascade: two ONNX files beside it",
    folders.ENDING: "a folder for transformers: safetensors and config.json; no ending",
}
EXAMPLES = 1024
BATCH = 64


@dataclass(frozen=True, repr=False)
class ExportResult(Shown):
    """What was written, and how it compares with the network in memory.

    Attributes:
        path: The file.
        format: Its ending, one of `FORMATS`.
        bytes: Its size.
        n: Examples on which the file was run, one alone and then batches of `BATCH`.
        same: Examples to which the file gives the answer that the network gives.
        largest_difference: Largest absolute difference of a score between file and network.
        allowed_difference: What it may be: the square root of the network's machine epsilon,
            times the largest score; 3.5e-4 of it in single precision.
        agreement: Labels of the file compared with those of the original network; None without one.
        tolerance: Largest share of labels that may differ from the original network's; None where
            none was certified.
        labels: The kind of answer that was compared, as in `AgreementResult.labels`.
    """

    path: str
    format: str
    bytes: int
    n: int
    same: int
    largest_difference: float
    allowed_difference: float
    agreement: AgreementResult | None
    tolerance: float | None
    labels: str = "classes"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        found = asdict(self)
        found["agreement"] = None if self.agreement is None else self.agreement.to_dict()
        return found


@renamed(wide="original")
def export(
    model: nn.Module,
    path: str | os.PathLike[str],
    data: object,
    *,
    original: nn.Module | None = None,
    tol: float | None = None,
    examples: int = EXAMPLES,
    output: str | int | None = None,
    labels: str | None = None,
    answer: str | None = None,
    within: float | str | None = None,
    cosine: float | None = None,
    same: Callable[[Tensor, Tensor], Tensor] | None = None,
    gallery: object | None = None,
    score: float | None = None,
    iou: float | None = None,
    threshold: float | None = None,
    pad: int | None = None,
) -> ExportResult:
    """Write a network as a file that runs without fcompress, and compare the two.

    The file is read back and run on real examples before it takes its name; if a score differs by
    more than rounding, or more labels differ from the original network's than the tolerance
    allows, an older file of that name stays.

    Args:
        model: A classifier; it is not changed. Programs compute in eval mode, on any batch size.
        path: Ends in `.pt2` (torch.export), `.onnx` or `.safetensors`; of a cascade in `.json`,
            beside which two ONNX files are written (`pairs.py`), or `.safetensors`; of a network
            of transformers also a folder, whose name has no ending (`folders.py`).
        data: Inputs as the network takes them: a `Split`, a DataLoader, or any other data that
            `as_batches` takes. Labels are not needed.
        original: The network that `model` was made from, to compare labels with.
        tol: Largest share of labels that may differ from `original`. None: what the last entry of
            the network's history certifies, if anything; nothing where its weights were changed.
        examples: Most examples to run.
        output: Which of several outputs are the scores, as for `shrink`; a program gives only them.
        labels: The same as `answer`.
        answer: What of the outputs counts, as for `shrink`.
        within: As for `shrink`; a share is one of the standard deviation on this data.
        cosine: As for `shrink`.
        same: As for `shrink`.
        gallery: As for `verify`, embedded by `original`, or without one by `model`.
        score: As for `shrink`.
        iou: As for `shrink`.
        threshold: As for `shrink`.
        pad: As for `shrink`.

    Returns:
        What was written, with the differences.

    Raises:
        FcompressError: The format is unknown, a package is missing, or the file cannot be written.
        UnsupportedNetworkError: The network cannot be exported to the format.
        ToleranceError: The file does not give the outputs of the network, or not enough of the
            original network's labels.
        DataError: There are no examples.

    Example:
        >>> import torch
        >>> from fcompress import build
        >>> network = build("mlp", in_features=4, classes=3)
        >>> result = export(network, "net.safetensors", torch.randn(20, 4))
        >>> result.n, result.same
        (20, 20)
    """
    kind = format_of(path)
    for network in (model, model if original is None else original):
        check_layers(network)
    pairs.check_format(model, kind, path)
    if isinstance(model, Quantized) and kind != ".onnx":
        raise FcompressError(f"{path}: a network in int8 is an ONNX file; end the name in .onnx")
    if kind in (".onnx", pairs.ENDING):
        programs.onnx_packages()
    said = asked(answer, labels, within, cosine, same, None, gallery, score, iou, threshold, pad)
    (scoring,) = resolved(output, said, (model,))
    program = model if isinstance(model, Quantized) else None
    given = as_batches(data, BATCH)
    batches = Batches(lambda: _first(given, examples))
    inputs = next(iter(batches))[0]
    predictor = Predictor(plain_copy(model) if program is None else program, given.packing, scoring)
    if given.packing is not None and kind == pairs.ENDING:
        raise UnsupportedNetworkError(
            f"the cascade takes several inputs ({given.packing}), and its JSON speaks of one; keep "
            "it by fcompress.save"
        )
    kept = model if program is None else program.network
    record = content_of(kept)
    state = record.pop("state")
    record["params"] = sum(p.numel() for p in kept.parameters())
    record |= origin_of(model) if program is not None else {}
    if isinstance(model, Cascade) and kind == pairs.ENDING:
        main = main_of(model.scoring)

        def part(network: nn.Module, file: Path) -> object:
            answer = {"output": main.output, "answer": main.labels, "pad": main.pad}
            how: dict[str, Any] = {**answer, "examples": examples}
            return export(network, file, data, **how)

        text = pairs.write_parts(model, path, part, record)
        write, open_again = _whole(text), lambda there: pairs.run_pair(there, path)
    elif program is not None:
        write, open_again = _whole(program.written(json.dumps(record))), programs.run_onnx
    elif kind != folders.ENDING:
        example = predictor.place(inputs.cpu())
        write, open_again = _writer(kind, predictor, example, record, state)
    # Not before: that it cannot be a program has words of its own.
    if original is not None and isinstance(predictor.scoring, Nearest):
        predictor = _looking_up(predictor, original, batches)
    predictor = understood(predictor, batches)
    scoring = replace(predictor.scoring, output=None)
    promised = _promised(record) if tol is None else tol
    found: list[tuple[int, int, float, float, AgreementResult | None]] = []

    def check(temporary: Path, open_again: Callable[[Path], Runner]) -> None:
        run = open_again(temporary)
        n, alike, largest, allowed = _compare(predictor, run, batches, kind)
        agreement = None
        if original is not None:
            chosen = resolved(output, said, (original, model))[0].output
            reading = replace(scoring, output=chosen, ending=None)
            whole = Predictor(plain_copy(original), given.packing, reading)
            reference = understood(whole, batches)
            file = Called(run, f"the written {kind} file", predictor.dtype)
            running = Predictor(file, given.packing, scoring)
            agreement = compare(reference, running, batches, CONFIDENCE)
            _check_promise(agreement, promised, kind)
        found.append((n, alike, largest, allowed, agreement))

    if kind == folders.ENDING:

        def opened(there: Path) -> Runner:
            return _run_weights(there, predictor, _is_whole(record))

        def checking(how: Callable[[Path], Runner]) -> Callable[[Path], object]:
            return lambda temporary: check(temporary, how)

        place = as_path(path)
        folders.write_folder(place, model, record, state, opened, checking, predictor)
    else:
        write_atomic(path, write, lambda temporary: check(temporary, open_again))
    (n, alike, largest, allowed, agreement) = found[0]
    return ExportResult(
        path=os.fspath(path),
        format=kind,
        bytes=sum(file.stat().st_size for file in _written(path, kind)),
        n=n,
        same=alike,
        largest_difference=largest,
        allowed_difference=allowed,
        agreement=agreement,
        tolerance=promised,
        labels=scoring.labels or "classes",
    )


def _looking_up(predictor: Predictor, original: nn.Module, batches: Batches) -> Predictor:
    """A network whose embeddings are looked up in a gallery that the original has embedded."""
    reference = understood(predictor.of(plain_copy(original)), batches)
    return replace(predictor, scoring=reference.scoring)


def _written(path: str | os.PathLike[str], kind: str) -> list[Path]:
    """All files of an export."""
    if kind == folders.ENDING:
        return folders.folder_files(Path(path))
    beside = [pairs.part_path(path, name) for name in pairs.PARTS] if kind == pairs.ENDING else []
    return [Path(path), *beside]


def format_of(path: str | os.PathLike[str]) -> str:
    """The format that a file name asks for.

    Raises:
        FcompressError: It is none of `FORMATS`.
    """
    kind = as_path(path).suffix.lower() or folders.ENDING
    if kind not in FORMATS:
        endings = "; ".join(f"{ending} ({what})" for ending, what in FORMATS.items())
        raise FcompressError(f"{path}: unknown format; end the name in one of: {endings}")
    return kind


def _first(batches: Batches, most: int) -> Iterator[tuple[Tensor, Tensor | None]]:
    """At most so many examples, on the CPU; the very first comes alone."""
    seen = 0
    for inputs, labels in batches:
        for part in (slice(None),) if seen else (slice(1), slice(1, None)):
            chosen = inputs[part][: most - seen].cpu()
            if len(chosen):
                seen += len(chosen)
                yield chosen, None if labels is None else labels[part][: len(chosen)].cpu()
        if seen >= most:
            return


def _writer(
    kind: str,
    predictor: Predictor,
    example: Tensor,
    record: dict[str, Any],
    state: dict[str, Tensor],
) -> tuple[Callable[[Any], None], Callable[[Path], Runner]]:
    """What writes a file of a kind, and what opens it again."""
    text = json.dumps(record)
    if kind == ".safetensors":
        # "format": how other programs know that names and layouts are those of torch.
        metadata = {"format": "pt", RECORD: text}
        return (
            lambda file: write_safetensors(file, state, metadata),
            lambda path: _run_weights(path, predictor, _is_whole(record)),
        )
    program = programs.trace(predictor, example)
    if kind == ".onnx":
        names = _names(predictor.packing)
        return lambda file: programs.write_onnx(program, text, file, names), programs.run_onnx
    return lambda file: programs.write_program(program, text, file), programs.run_program


def _names(packing: Packing | None) -> list[str]:
    """Names of the inputs of a program."""
    if packing is None:
        return [programs.INPUT]
    count = range(len(packing.shapes))
    return list(packing.names or (f"{programs.INPUT}_{number}" for number in count))


def _whole(text: bytes) -> Callable[[Any], None]:
    def write(file: Any) -> None:
        file.write(text)

    return write


def _is_whole(record: dict[str, Any]) -> bool:
    """Whether `load` needs no code of the user's to make the network."""
    if "format" not in record:
        return False
    family = record["family"]
    return ":" not in family or Architecture(family).kind in REGISTERED


def _run_weights(path: Path, predictor: Predictor, is_whole: bool) -> Runner:
    """The network that a file of weights describes; else its weights in the network in memory."""
    network = load(path) if is_whole else predictor.network
    state = read_safetensors(path)[0]
    running = predictor.of(network if is_whole else _Given(network, state))

    def run(*args: Tensor, **kwargs: Tensor) -> Tensor:
        with predictor.of(network).evaluating():
            return running.scoring.named(running.scoring.run(running.network, *args, **kwargs))

    return run


class _Given(nn.Module):
    """A network with other tensors than its own."""

    def __init__(self, network: nn.Module, state: dict[str, Tensor]) -> None:
        super().__init__()
        self._call = lambda args, kwargs: functional_call(network, state, args, kwargs, strict=True)

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Tensor:
        return self._call(args, kwargs)


def _compare(
    predictor: Predictor, run: Runner, batches: Batches, kind: str
) -> tuple[int, int, float, float]:
    """Examples, equal labels, the largest difference of a score and the allowed one."""
    n = same = 0
    largest = scale = 0.0
    scoring = replace(predictor.scoring, output=None)
    for inputs, _ in batches:
        inputs = predictor.place(inputs)
        with predictor.evaluating():
            expected = predictor.scores(inputs)
        args, kwargs = predictor.unpacked(predictor.network, inputs)
        counted = scoring.counted(args, kwargs)
        given = scoring.checked(
            scoring.chosen(run(*args, **kwargs), counted), f"the written {kind} file", len(inputs)
        )
        if given.shape != expected.shape:
            raise ToleranceError(
                f"the written {kind} file gives scores of shape {list(given.shape)}, the network "
                f"{list(expected.shape)}; it was not kept"
            )
        if not bool(expected.isfinite().all()):
            raise DataError("the network's scores are not finite; repair the network or the data")
        difference = (given.double() - expected.double()).abs().nan_to_num(math.inf, math.inf)
        if isinstance(predictor.network, Cascade):
            # So near to the threshold, rounding decides which network answers.
            difference = difference[~predictor.network.undecided(inputs)]
        largest = max([largest, *difference.flatten(1).amax(1).tolist()])
        scale = max(scale, float(expected.abs().max()))
        labels = scoring.labels_of(expected)
        same += int((~scoring.changed(labels, scoring.labels_of(given))).sum())
        n += len(inputs)
    allowed = math.sqrt(torch.finfo(predictor.dtype).eps) * scale
    if largest > allowed:
        raise ToleranceError(
            f"the written {kind} file differs from the network by {largest:.3g} in a score, where "
            f"{allowed:.3g} is allowed; it was not kept; try another format"
        )
    return n, same, largest, allowed


def _promised(record: dict[str, Any]) -> float | None:
    """The tolerance for which the network was last certified, if that still holds."""
    last = last_shrink(record["history"])
    entry = {} if last is None else record["history"][last]
    if entry.get("certified") is not True or entry.get("void") is not None:
        return None
    tolerance = entry.get("tolerance")
    return float(tolerance) if isinstance(tolerance, float | int) else None


def _check_promise(agreement: AgreementResult, promised: float | None, kind: str) -> None:
    if promised is not None and agreement.changed > promised * agreement.n:
        raise ToleranceError(
            f"the written {kind} file changes {agreement.changed:,.0f} of {agreement.n:,} "
            f"{noun_of(agreement.labels)} of the original network, more than the tolerance of "
            f"{promised:g}; it was not kept: give the network that this one was made from, data of "
            "its kind, or a larger tolerance"
        )
