"""What shrink() gives back: the thin network, its certificate and what was gained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fcompress.certify.agreement import AgreementResult, verify
from fcompress.certify.screening import Copies
from fcompress.compress.search import Found, Workshop
from fcompress.forward import cost
from fcompress.forward.running import disconnect
from fcompress.forward.scoring import scoring_of
from fcompress.models import Network
from fcompress.models.provenance import described, origin_of, set_origin, versions
from fcompress.structure.groups import Structure

LATENCY_BATCH = 64


@dataclass(frozen=True)
class LayerChange:
    """One convolution or linear layer before and after.

    Attributes:
        name: The layer.
        units_before: Its outputs in the wide network.
        units_after: Its outputs in the thin network.
        reason: Why its units were left alone; None where they could go.
    """

    name: str
    units_before: int
    units_after: int
    reason: str | None


@dataclass(frozen=True)
class ShrinkResult:
    """A thin network and what is known about it.

    Attributes:
        model: The thin network, on the device of the wide one, in eval mode.
        method: How units were chosen.
        objective: What was to be saved: "macs", "params" or "latency".
        round_to: Multiple to which numbers of units were rounded up.
        polish: What polishing did to the network (`Polished.to_dict`), None without it.
        tolerance: Largest share of labels that may change; None where a size was asked for.
        certified: Whether the bound on the certification split is within the tolerance.
        agreement: On the certification split, with a bound that holds however many were tested.
        tested: How many networks met the certification split.
        copies: Exact copies of examples that were found, and left out of the certification split.
        warnings: What weakens the result, in words.
        test: On the test split, which nothing else reads; None if there is none.
        params: {"before": , "after": }.
        macs: Multiply-adds for one example.
        bytes: Of all parameters and buffers.
        latency_ms: Median milliseconds of a forward of 64 examples, interleaved runs.
        latency_single_ms: The same for one example.
        accuracy: On the test split (else the certification split) in [0, 1], or None.
        layers: Units of each layer.
        skipped: Everything left alone, with the reason.
        candidates: Every network tried on the search split: units removed, polished or not, MACs,
            changed, n.
        calibration: Number of calibration examples.
        data: Identity of the data.
        seed: Of all choices.
        versions: Of what produced this.
    """

    model: nn.Module
    method: str
    objective: str
    round_to: int
    polish: dict[str, Any] | None
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

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values of everything but the network."""
        found = {k: v for k, v in vars(self).items() if k != "model"}
        found["agreement"] = self.agreement.to_dict()
        found["test"] = None if self.test is None else self.test.to_dict()
        found["layers"] = [vars(layer) for layer in self.layers]
        found["copies"] = self.copies.to_dict()
        found["warnings"] = list(self.warnings)
        found["skipped"] = list(self.skipped)
        found["candidates"] = list(self.candidates)
        return found


def outcome(
    model: nn.Module,
    shop: Workshop,
    found: Found,
    alone: Mapping[str, str],
    checked: tuple[Copies, tuple[str, ...]],
    *,
    method: str,
    tol: float | None,
    confidence: float,
) -> ShrinkResult:
    """Measure what was gained and put everything that is known together.

    Args:
        model: The caller's network.
        shop: Where the thin network was made.
        found: The thin network.
        alone: Groups that the method left alone, with the reason.
        checked: Copies among the examples, and what weakens the result.
        method: Name of the method.
        tol: The tolerance; None where a size was asked for.
        confidence: Of the bounds.
    """
    context, roles = shop.context, shop.roles
    agreement = found.agreement
    wide, thin = context.model, found.candidate.model
    test = None if roles.test is None else verify(wide, thin, roles.test, confidence=confidence)
    before, after = cost.count(wide, context.batches[0]), cost.count(thin, context.batches[0])
    example = torch.cat(list(context.batches[:1]))[:LATENCY_BATCH]
    many, single = cost.latency([wide, thin], example), cost.latency([wide, thin], example[:1])
    certified = tol is not None and agreement.upper_bound <= tol
    disconnect(thin)
    skipped = [*context.structure.skipped()]
    skipped += [{"name": n, "reason": r} for n, r in alone.items()]
    entry = {
        "action": "shrink",
        "method": method,
        "objective": context.objective,
        "polished": bool(found.candidate.polish and found.candidate.polish["kept"]),
        "tolerance": tol,
        "certified": certified,
        "agreement": {k: v for k, v in agreement.to_dict().items() if k != "accuracy"},
        "params": {"before": before.params, "after": after.params},
        "macs": {"before": before.macs, "after": after.macs},
        "output": scoring_of(thin).output,
        "seed": context.seed,
        "data": roles.info,
        "versions": versions(),
    }
    if isinstance(thin, Network) or described(thin) is not None:
        origin = origin_of(thin)
        set_origin(thin, origin["data"], [*origin["history"], entry])
    copies, weak = checked
    return ShrinkResult(
        model=thin,
        method=method,
        objective=context.objective,
        round_to=shop.multiple,
        polish=found.candidate.polish,
        tolerance=tol,
        certified=certified,
        agreement=agreement,
        tested=found.tested,
        copies=copies,
        warnings=weak,
        test=test,
        params={"before": before.params, "after": after.params},
        macs={"before": before.macs, "after": after.macs},
        bytes={"before": _bytes(model), "after": _bytes(thin)},
        latency_ms={"before": many[0], "after": many[1]},
        latency_single_ms={"before": single[0], "after": single[1]},
        accuracy=agreement.accuracy if test is None else test.accuracy,
        layers=_layers(wide, thin, context.structure, alone),
        skipped=tuple(skipped),
        candidates=tuple(
            {
                "removed": c.removed,
                "polished": c.polish is not None,
                "macs": c.macs,
                "changed": c.changed,
                "n": c.n,
            }
            for c in found.tried
        ),
        calibration=sum(len(b) for b in context.batches),
        data=roles.info,
        seed=context.seed,
        versions=versions(),
    )


def _bytes(model: nn.Module) -> int:
    """Bytes of all parameters and buffers, shared ones once."""
    return sum(tensor.nbytes for tensor in [*model.parameters(), *model.buffers()])


def _layers(
    wide: nn.Module, thin: nn.Module, structure: Structure, alone: Mapping[str, str]
) -> tuple[LayerChange, ...]:
    """Outputs of each layer before and after, with the reason where they had to stay."""
    reasons: dict[str, str | None] = {}
    for group in (*structure.groups, *structure.left_alone):
        for slot in group.producers:
            reasons[slot.tensor] = group.reason or alone.get(group.name)
    slim: dict[str, Tensor] = dict(thin.named_parameters())
    found = []
    for name, weight in wide.named_parameters():
        if name in reasons:
            dim = next(
                s.dim
                for g in (*structure.groups, *structure.left_alone)
                for s in g.producers
                if s.tensor == name
            )
            found.append(
                LayerChange(
                    name.rpartition(".")[0] or name,
                    weight.shape[dim],
                    slim[name].shape[dim],
                    reasons[name],
                )
            )
    return tuple(found)
