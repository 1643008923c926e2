"""What shrink() gives back: the compressed network, its certificate and what was gained."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from fcompress.arguments.deprecation import warn
from fcompress.cascades.network import Cascade
from fcompress.certify.agreement import AgreementResult, compare
from fcompress.certify.fixed_sequence import Candidate
from fcompress.certify.other_outputs import moved_outputs, said
from fcompress.certify.screening import Copies
from fcompress.compress.cascade.gains import CascadeGains, gains
from fcompress.compress.cascade.search import FoundCascade
from fcompress.compress.evidence.collecting import collected
from fcompress.compress.evidence.evidence import Evidence
from fcompress.compress.options import ShrinkOptions
from fcompress.compress.quantized import Int8Gains, int8_gains
from fcompress.compress.search import CandidateBuilder, Found
from fcompress.compress.sizing import FoundOfSize
from fcompress.forward import cost
from fcompress.forward.timing import latency, single_latency
from fcompress.models.fingerprint import fingerprint, judged
from fcompress.models.provenance import (
    hand_on,
    note_reading,
    origin_of,
    set_origin,
    versions,
)
from fcompress.programs.quantizing import Quantized
from fcompress.showing.results import Drawn, Keeping
from fcompress.structure.groups import Structure
from fcompress.surgery.folding import folded_weights

LATENCY_BATCH = 64


@dataclass(frozen=True)
class LayerChange:
    """One convolution or linear layer before and after.

    Attributes:
        name: The layer.
        units_before: Its outputs in the original network.
        units_after: Its outputs in the compressed network; 0 of a layer in a dropped block.
        reason: Why its units were not pruned; None where they could go.
    """

    name: str
    units_before: int
    units_after: int
    reason: str | None


@dataclass(frozen=True, repr=False)
class ShrinkResult(Drawn, Keeping):
    """A compressed network and what is known about it.

    Attributes:
        model: The compressed network, on the device of the original one, in eval mode.
        method: How units were chosen.
        objective: What was to be saved: "macs", "params" or "latency".
        round_to: Multiple to which numbers of units were rounded up.
        distill: What distillation did to the network (`Distilled.to_dict`), None without it.
        tolerance: Largest share of labels that may change; None where a size was asked for.
        certified: Whether the bound on the certification split is within the tolerance.
        agreement: On the certification split, with a bound that holds however many were tested.
        tested: How many networks met the certification split.
        copies: Copies of examples that were found, and left out of the certification split.
        warnings: What weakens the result, in words.
        test: On the test split, which nothing else reads; None if there is none.
        params: {"before": , "after": }.
        macs: Multiply-adds for one example.
        bytes: Of all parameters and buffers.
        latency_ms: Median milliseconds of a forward of 64 examples, interleaved runs.
        latency_single_ms: The same for one example.
        accuracy: On the test split (else the certification split) in [0, 1], or None.
        layers: Units of each layer.
        skipped: Everything that was not pruned, with the reason.
        candidates: Every network tried on the search split: units removed, distilled or not, MACs,
            changed, n, and what the certification split said of it alone: "passed", "failed", or
            None where it was not asked.
        calibration: Number of calibration examples.
        data: Identity of the data.
        seed: Random seed.
        versions: Of what produced this.
        certificate: What the certificate is about: hashes of the `compressed` and the `original`
            network's tensors (`models/fingerprint.py`) and of the `data`, None where it has none.
        other_outputs: Outputs that the certificate says nothing about, with how far they moved on
            the certification split (`certify/other_outputs.py`).
        folded: Weights that the original network computes at every call, and that are plain
            parameters of the compressed one (`surgery/folding.py`).
        blocks: Blocks of the original network that the compressed one does without.
        cascade: Of a cascade, what it costs on average and at worst, and how many examples it
            defers; None for a network alone. `macs["after"]` is then the average, `params["after"]`
            and `bytes["after"]` those of both networks, and latencies are means over examples.
        quantized: Of a network in int8, its operators that are not, and bytes and latencies of ONNX
            files; None for a network in torch. `model` is then a program (`programs.Quantized`),
            `bytes["after"]` those of its file, and latencies compare torch with onnxruntime.
        target: Of a size, what was limited, and what the original and the compressed network have
            of it (`FoundOfSize.target`); None with a tolerance.
        evidence: What a report shows beside these numbers.
    """

    model: nn.Module
    method: str
    objective: str
    round_to: int
    distill: dict[str, Any] | None
    tolerance: float | None
    certified: bool
    agreement: AgreementResult
    tested: int
    copies: Copies
    warnings: tuple[str, ...]
    test: AgreementResult | None
    params: dict[str, int]
    macs: dict[str, int]
    bytes: dict[str, int]
    latency_ms: dict[str, float]
    latency_single_ms: dict[str, float]
    accuracy: dict[str, float] | None
    layers: tuple[LayerChange, ...]
    skipped: tuple[dict[str, str], ...]
    candidates: tuple[dict[str, Any], ...]
    calibration: int
    data: dict[str, Any]
    seed: int
    versions: dict[str, str]
    certificate: dict[str, str | None] = field(default_factory=dict)
    other_outputs: tuple[dict[str, Any], ...] = ()
    folded: tuple[str, ...] = ()
    blocks: tuple[str, ...] = ()
    cascade: CascadeGains | None = None
    quantized: Int8Gains | None = None
    target: dict[str, Any] | None = None
    evidence: Evidence = field(default_factory=Evidence, repr=False)

    @property
    def independent(self) -> int:
        """From how many independent examples the certificate is: of groups, one of each."""
        return self.agreement.n

    @property
    def polish(self) -> dict[str, Any] | None:
        """What `distill` was called until version 0.1."""
        warn("the attribute polish of a ShrinkResult", "distill")
        return self.distill

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values of everything but the network."""
        found = {k: v for k, v in vars(self).items() if k not in ("model", "evidence")}
        found["flow"] = self.evidence.to_dict()
        found["polish"] = self.distill  # its name until version 0.1
        found["agreement"] = self.agreement.to_dict()
        found["test"] = None if self.test is None else self.test.to_dict()
        found["independent"] = self.independent
        found["layers"] = [vars(layer) for layer in self.layers]
        found["copies"] = self.copies.to_dict()
        found["warnings"] = list(self.warnings)
        found["skipped"] = list(self.skipped)
        found["other_outputs"] = list(self.other_outputs)
        found["folded"] = list(self.folded)
        found["blocks"] = list(self.blocks)
        found["candidates"] = list(self.candidates)
        for key in ("cascade", "quantized"):
            found[key] = None if found[key] is None else found[key].to_dict()
        return found

    def report(self, path: str | os.PathLike[str], *, examples: bool = True) -> None:
        """Write all of this as one HTML page that needs nothing else.

        Args:
            path: The file, which is replaced.
            examples: Whether examples whose answer changed may be in it.

        Raises:
            FcompressError: The file cannot be written.
        """
        # Pages stand above results, which know of them only when one is asked for.
        import_module("fcompress.report.html").write_page(path, self, examples=examples)


def outcome(
    model: nn.Module,
    builder: CandidateBuilder,
    found: Found,
    not_pruned: Mapping[str, str],
    checked: tuple[Copies, tuple[str, ...]],
    options: ShrinkOptions,
) -> ShrinkResult:
    """Measure what was gained and put everything that is known together.

    Args:
        model: The caller's network.
        builder: Where the compressed network was made.
        found: The compressed network.
        not_pruned: Groups that the method cannot use, with the reason.
        checked: Copies among the examples, and what weakens the result.
        options: What was asked for.
    """
    context, roles = builder.context, builder.roles
    agreement = found.agreement
    original, compressed = context.original, found.candidate.model
    both = (original, original.of(compressed))
    test = None if roles.test is None else compare(*both, roles.test, options.confidence)
    others = moved_outputs(*both, context.batches[0][:4], roles.certification)
    dropped = tuple(b.name for b in context.choice.gone(found.candidate.kept))
    thin = compressed.compressed if isinstance(compressed, Cascade) else compressed
    if isinstance(compressed, Quantized):
        thin = compressed.network
    before, after = (cost.count(one, context.batches[0]) for one in (original, original.of(thin)))
    params = {"before": before.params, "after": after.params}
    macs = {"before": before.macs, "after": after.macs}
    pair = None
    if isinstance(found, FoundCascade):
        pair = gains(found, before, after, options.confidence)
        params["after"] += before.params
        macs["after"] = round(pair.macs["average"])
        example = roles.certification.first(LATENCY_BATCH)
        many, single = latency(both, example), single_latency(both, example)
    else:
        example = torch.cat(list(context.batches[:1]))[:LATENCY_BATCH]
        many, single = latency(both, example), latency(both, example[:1])
    seen = collected(context, both, original.of(thin), found.candidate.kept, roles, example)
    tolerance = options.tolerance
    certified = tolerance is not None and agreement.upper_bound <= tolerance
    skipped = [*context.structure.skipped()]
    skipped += [{"name": n, "reason": r} for n, r in not_pruned.items()]
    certificate: dict[str, str | None] = {
        "compressed": _fingerprint(compressed),
        "original": fingerprint(model),
        "data": roles.info.get("sha256"),
    }
    entry = {
        "action": "shrink",
        "method": options.method,
        "objective": context.objective,
        "blocks": list(dropped),
        "distilled": bool(found.candidate.distill and found.candidate.distill["kept"]),
        "tolerance": tolerance,
        "certified": certified,
        "tol_label": options.label_tolerance,
        "agreement": {
            k: v for k, v in agreement.to_dict().items() if k not in ("accuracy", "by_label")
        },
        "params": params,
        "macs": macs,
        "output": original.scoring.output,
        "seed": context.seed,
        "data": roles.info,
        "versions": versions(),
        "certificate": certificate,
    }
    if pair is not None:
        entry["cascade"] = pair.to_dict()
    int8 = None
    if isinstance(compressed, Quantized):
        int8 = int8_gains(builder, compressed, found.candidate.changed, example)
        entry["quantized"] = {"scheme": int8.scheme, "left_in_float": int8.left_in_float}
    hand_on(model, compressed)
    scoring, answer = original.scoring, agreement.answer or {}
    note_reading(
        compressed,
        scoring.output,
        scoring.labels,
        within=answer.get("within"),
        **scoring.noted(),
    )
    origin = origin_of(compressed)
    # What was certified before may have been changed since, in memory.
    set_origin(compressed, origin["data"], [*judged(origin["history"], model), entry])
    copies, weak = checked
    line = said(others)
    return ShrinkResult(
        model=compressed,
        method=options.method,
        objective=context.objective,
        round_to=builder.multiple,
        distill=found.candidate.distill,
        tolerance=tolerance,
        certified=certified,
        agreement=agreement,
        tested=found.tested,
        copies=copies,
        warnings=weak if line is None else (*weak, line),
        test=test,
        params=params,
        macs=macs,
        bytes={"before": _bytes(model), "after": _bytes(compressed)},
        latency_ms={"before": many[0], "after": many[1]},
        latency_single_ms={"before": single[0], "after": single[1]},
        accuracy=agreement.accuracy if test is None else test.accuracy,
        layers=_layers(original.network, thin, context.structure, not_pruned),
        skipped=tuple(skipped),
        candidates=tuple(
            {
                "removed": c.removed,
                "distilled": c.distill is not None,
                "polished": c.distill is not None,  # its name until version 0.1
                "macs": c.macs,
                "changed": c.changed,
                "n": c.n,
                "certification": _met(c, found),
            }
            for c in found.tried
        ),
        calibration=sum(len(b) for b in context.batches),
        data=roles.info,
        seed=context.seed,
        versions=versions(),
        certificate=certificate,
        other_outputs=others,
        folded=folded_weights(model, original.network),
        blocks=dropped,
        cascade=pair,
        quantized=int8,
        target=found.target if isinstance(found, FoundOfSize) else None,
        evidence=seen,
    )


def _fingerprint(model: nn.Module) -> str:
    """What the certificate is about: tensors, or what a program computes."""
    return model.fingerprint() if isinstance(model, Quantized) else fingerprint(model)


def _met(candidate: Candidate, found: Found) -> str | None:
    """What the certification split said of a candidate; None where it was not asked."""
    known = {"passed": found.passed, "failed": found.failed}
    return next((word for word, all_ in known.items() if any(candidate is c for c in all_)), None)


def _bytes(model: nn.Module) -> int:
    """Bytes of all parameters and buffers, shared ones once; of a program those of its file."""
    if isinstance(model, Quantized):
        return len(model.content)
    return sum(tensor.nbytes for tensor in [*model.parameters(), *model.buffers()])


def _layers(
    original: nn.Module,
    compressed: nn.Module,
    structure: Structure,
    not_pruned: Mapping[str, str],
) -> tuple[LayerChange, ...]:
    """Outputs of each layer before and after, with the reason where they had to stay."""
    reasons: dict[str, str | None] = {}
    for group in (*structure.groups, *structure.not_pruned):
        for slot in group.producers:
            reasons[slot.tensor] = group.reason or not_pruned.get(group.name)
    slim: dict[str, Tensor] = dict(compressed.named_parameters())
    found = []
    for name, weight in original.named_parameters():
        if name in reasons:
            dim = next(
                s.dim
                for g in (*structure.groups, *structure.not_pruned)
                for s in g.producers
                if s.tensor == name
            )
            found.append(
                LayerChange(
                    name.rpartition(".")[0] or name,
                    weight.shape[dim],
                    slim[name].shape[dim] if name in slim else 0,
                    reasons[name],
                )
            )
    return tuple(dict.fromkeys(found))  # a recurrent layer writes its units in several weights
