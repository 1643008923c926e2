"""What is shipped of a method's networks, for `bench quality`: in a cascade, or in int8.

A cascade is a thin network that answers where its margin is large, and the wide one for the rest:
amounts on a fixed ladder are tried, then some around the best, and of each network the least
threshold that keeps the answers (`compress/cascade/sizes.py`, on the search split) is taken.
In int8 a network is onnxruntime's file of it, and amounts are searched as elsewhere; the first is
0, the wide network in int8. Fcompress and its rivals get the same.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import fcompress
from benchmarks.quality.networks import Case, labels_of
from benchmarks.quality.search import Evaluation, search
from benchmarks.rivals.base import Rival
from fcompress.cascades.margins import margins
from fcompress.cascades.network import Cascade
from fcompress.certify.fixed_sequence import Candidate
from fcompress.compress.cascade.sizes import Size
from fcompress.compress.quantized import Quantizer, quantizer
from fcompress.forward.answers.scoring import Scoring
from fcompress.forward.predictor import Predictor
from fcompress.programs.quantizing import Quantized

TOLERANCES = (0.01, 0.001)
FORMS = {
    "cascade": "answers where it is sure, and the wide network for all other examples",
    "int8": "in int8 by onnxruntime's quantiser",
}
# Amounts of a cascade: what remains, each so much of the one before.
LARGEST, SHRINKING, LEAST = 0.9, 0.7, 0.02
IN_VAIN = 3  # amounts in a row that are best at no tolerance end the ladder
INT8_STEPS = {0.01: 4, 0.001: 3}  # networks at most for each tolerance, beside the wide one
BATCHES = (1, 64)  # examples of a batch that are timed
SECONDS = 2.0
SCORING = Scoring(labels="classes")

Record = dict[str, Any]


@dataclass(frozen=True)
class Shipped:
    """A method's networks in a form that is shipped.

    Attributes:
        base: The method.
        form: One of `FORMS`.
    """

    base: Rival
    form: str

    @property
    def name(self) -> str:
        return f"{self.base.name}+{self.form}"

    @property
    def summary(self) -> str:
        return f"a network of {self.base.name} {FORMS[self.form]}"


def fill(record: Record, shipped: Shipped, case: Case, save: Callable[[], None]) -> None:
    """Measure what a record does not hold yet.

    Args:
        record: Gets "evaluations", "smallest" (tolerance -> amount), "test" (tolerance -> what was
            measured on test images) and "failed".
        shipped: What to measure.
        case: The network and its data.
        save: Called whenever something was measured.
    """
    measure = _cascades if shipped.form == "cascade" else _int8
    record["form"] = shipped.form
    measure(record, shipped.base, case, save)
    errors = [e["error"] for e in record["evaluations"] if e["error"]]
    record["failed"] = errors[0] if len(errors) == len(record["evaluations"]) else None
    save()


def _cascades(record: Record, base: Rival, case: Case, save: Callable[[], None]) -> None:
    def evaluate(amount: float) -> Record:
        for known in record["evaluations"]:
            if known["amount"] == amount:
                return dict(known)
        begin = time.perf_counter()
        entry: Record = {"amount": amount, "error": None, "pairs": {}}
        try:
            network = base.make(case.setting, amount)
            cost = fcompress.count(network, case.search[0])
            entry |= {"macs": cost.macs, "params": cost.params, "pairs": pairs(network, cost, case)}
        except Exception as error:  # whatever a method fails with is its result
            entry["error"] = _words(error)
        entry["seconds"] = time.perf_counter() - begin
        record["evaluations"].append(entry)
        save()
        return entry

    best: dict[str, float] = {}
    in_vain, remaining = 0, LARGEST
    while remaining >= LEAST and in_vain < IN_VAIN:
        found = evaluate(1 - remaining)["pairs"]
        better = [t for t, one in found.items() if one["average"] < best.get(t, case.macs)]
        best |= {t: found[t]["average"] for t in better}
        in_vain = 0 if better or not best else in_vain + 1
        remaining *= SHRINKING
    for tolerance in TOLERANCES:
        place = _cheapest(record, tolerance, case)
        for factor in (SHRINKING**0.5, SHRINKING**-0.5):
            if place is not None and (near := (1 - place["amount"]) * factor) < 1:
                evaluate(1 - near)
    chosen = {f"{t:g}": _cheapest(record, t, case) for t in TOLERANCES}
    record["smallest"] = {t: None if one is None else one["amount"] for t, one in chosen.items()}
    for key, one in chosen.items():
        if one is not None and record["test"].get(key, {}).get("amount") != one["amount"]:
            thin = base.make(case.setting, one["amount"])
            pair = Cascade(thin, case.setting.model, one["pairs"][key]["threshold"], SCORING).eval()
            with torch.no_grad():
                late = [pair.deferred(x).double() for x, _ in case.test]
            share = float(torch.cat(late).mean())
            record["test"][key] = {
                "amount": one["amount"],
                **tested(pair, case),
                "deferred": share,
                "average": one["macs"] + share * case.macs,
                "latency": _latency([case.setting.model, pair], case),
            }
            save()


def pairs(network: nn.Module, cost: Any, case: Case) -> dict[str, dict[str, float]]:
    """The cascade of a thin network at each tolerance, by the search split.

    Args:
        network: The thin network.
        cost: What it costs.
        case: The wide network and the data.

    Returns:
        Tolerance -> threshold, share of deferred examples, and multiply-adds on average.
    """
    labels, sure = [], []
    with torch.no_grad():
        for batch in case.search:
            scores = network(batch)
            sure.append(margins(SCORING, scores))
            labels.append(scores.argmax(1))
    lost = (torch.cat(labels) != case.search_labels).double()
    candidate = Candidate(0, {}, network, cost.macs, float(lost.sum()), len(lost))
    size = Size(candidate, torch.cat(sure).nan_to_num(-1.0), lost)
    found = {}
    for tolerance in TOLERANCES:
        at = int((size.changes > tolerance).sum())
        late = float(size.deferred[at])
        found[f"{tolerance:g}"] = {
            "threshold": float(size.thresholds[at]),
            "deferred": late,
            "average": cost.macs + late * case.macs,
        }
    return found


def _cheapest(record: Record, tolerance: float, case: Case) -> Record | None:
    """The network whose cascade costs least on average, and less than the wide network."""
    key = f"{tolerance:g}"
    good = [
        e
        for e in record["evaluations"]
        if not e["error"] and e["pairs"][key]["average"] < case.macs
    ]
    return min(good, key=lambda e: e["pairs"][key]["average"], default=None)


def _int8(record: Record, base: Rival, case: Case, save: Callable[[], None]) -> None:
    maker: list[Quantizer] = []

    def made(amount: float) -> tuple[nn.Module, Quantized]:
        wide = case.setting.model
        if not maker:
            maker.append(quantizer(Predictor(wide), case.setting.batches))
        if amount == 0:
            return wide, maker[0].alone
        thin = base.make(case.setting, amount)
        return thin, maker[0](Predictor(thin))

    def evaluate(amount: float) -> Evaluation:
        for known in record["evaluations"]:
            if known["amount"] == amount:
                return Evaluation(**{k: v for k, v in known.items() if k != "bytes"})
        begin, n, size = time.perf_counter(), len(case.search_labels), 0
        macs = params = changed = 0
        reason = None
        try:
            network, file = made(amount)
            cost = fcompress.count(network, case.search[0])
            changed = int((labels_of(file, case.search) != case.search_labels).sum())
            macs, params, size = cost.macs, cost.params, len(file.content)
            if amount == 0:
                record["wide"]["bytes"] = len(file.float_content)
        except Exception as error:  # whatever a method fails with is its result
            reason = _words(error)
        found = Evaluation(amount, macs, params, changed, n, time.perf_counter() - begin, reason)
        record["evaluations"].append({**found.to_dict(), "bytes": size})
        save()
        return found

    tried = search(evaluate, INT8_STEPS, [0.0])
    sizes = {e["amount"]: e["bytes"] for e in record["evaluations"]}
    record["smallest"] = {}
    for tolerance in TOLERANCES:
        key, good = f"{tolerance:g}", [e.amount for e in tried if e.passes(tolerance)]
        amount = min(good, key=lambda a: sizes[a], default=None)
        record["smallest"][key] = amount
        if amount is not None and record["test"].get(key, {}).get("amount") != amount:
            _, file = made(amount)
            record["test"][key] = {
                "amount": amount,
                **tested(file, case),
                "latency": _latency([maker[0].alone.in_float(), file], case),
            }
            save()


def tested(network: nn.Module, case: Case) -> dict[str, float]:
    """Agreement and accuracy on the test images."""
    labels = labels_of(network, tuple(x for x, _ in case.test))
    true = torch.cat([y for _, y in case.test])
    return {
        "n": len(labels),
        "agreement": float((labels == case.test_labels).double().mean()),
        "accuracy": float((labels == true).double().mean()),
    }


def _latency(networks: Sequence[nn.Module], case: Case) -> dict[str, float]:
    """Average latency of the second as a share of that of the first, by size of batch."""
    inputs: Tensor = torch.cat([x for x, _ in case.test])
    rows = fcompress.bench(
        networks, inputs, batch=BATCHES, seconds=SECONDS, memory=False, threads=1
    ).rows
    return {str(row.batch): row.ratio for row in rows[1::2]}


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
