"""shrink(): from a trained network and unlabelled data to a certified thin one."""

from __future__ import annotations

import io
import platform
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

from fcompress import cost
from fcompress.agreement import (
    CONFIDENCE,
    AgreementResult,
    check_labels,
    most_changes,
    reference_labels,
    verify,
)
from fcompress.capture import class_scores, evaluating, placed
from fcompress.checkpoint import file_bytes
from fcompress.errors import (
    FcompressError,
    ResultWarning,
    ToleranceError,
    UnsupportedNetworkError,
)
from fcompress.excise import excise
from fcompress.groups import Structure, find_groups
from fcompress.methods import METHODS, Context, Method
from fcompress.models import Network
from fcompress.prepare import cannot_run, prepare
from fcompress.roles import Roles, batches_of, roles_of
from fcompress.screening import Copies, check_reachable, screened, weaknesses
from fcompress.search import Candidate, certify, measure, sequence_to_test, thinnest
from fcompress.selection import Family

# Calibration examples: as many as this many multiply-adds allow, within bounds.
CALIBRATION_MACS = 6e10
CALIBRATION_LEAST, CALIBRATION_MOST = 1024, 8192
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
        tolerance: Largest share of labels that may change; None where a size was asked for.
        certified: Whether the bound on the certification split is within the tolerance.
        agreement: On the certification split, with a bound that holds however many were tested.
        tested: How many networks met the certification split.
        copies: Exact copies of examples that were found, and left out of the certification split.
        warnings: What weakens the result, in words.
        test: On the test split, which nothing else reads; None if there is none.
        params: {"before": , "after": }.
        macs: Multiply-adds for one example.
        bytes: Size of the network's file.
        latency_ms: Median milliseconds of a forward of 64 examples, interleaved runs.
        accuracy: On the test split (else the certification split) in [0, 1], or None.
        layers: Units of each layer.
        skipped: Everything left alone, with the reason.
        candidates: Every network tried on the search split: units removed, MACs, changed, n.
        calibration: Number of calibration examples.
        data: Identity of the data.
        seed: Of all choices.
        versions: Of what produced this.
    """

    model: nn.Module
    method: str
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
    accuracy: dict[str, float] | None
    layers: tuple[LayerChange, ...]
    skipped: tuple[dict[str, str], ...]
    candidates: tuple[dict[str, int], ...]
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


def shrink(
    model: nn.Module,
    data: object,
    tol: float | None = 0.2,
    *,
    method: str = "factor",
    ratio: float | None = None,
    max_macs: int | None = None,
    calibration: int | None = None,
    confidence: float = CONFIDENCE,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> ShrinkResult:
    """Find the thinnest network that still gives the same labels, and certify it.

    Args:
        model: A trained classifier: inputs [N, ...] to scores [N, classes]. Left as it is.
        data: Inputs as the network takes them, labels optional: `Splits`, a DataLoader, or any
            iterable of batches (tensors or (inputs, labels) pairs).
        tol: Largest share of labels that may change, in [0, 1).
        method: A name in `methods.METHODS`.
        ratio: Instead of searching for the tolerance: at most this share of the MACs.
        max_macs: Instead of searching for the tolerance: at most this many MACs.
        calibration: Most calibration examples to use; None for as many as are cheap (1,024 to
            8,192, fewer the more multiply-adds the network takes).
        confidence: Of the certificate, in (0, 1).
        seed: Of all choices.
        progress: Called with a line whenever something takes a while.

    Returns:
        The thin network with its certificate and costs. With `ratio` or `max_macs` it is
        verified and reported, but not certified for a tolerance.

    Raises:
        ToleranceError: No thinner network can be certified with this data.
        UnsupportedNetworkError: Nothing in the network can be excised.
        DataError: Not enough data, values that are not finite, or many certification examples
            that also stand in the calibration or search data.
        TypeError: The model is no network.
        ValueError: An argument is out of its range.

    Warns:
        ResultWarning: What weakens the result; it stands in `warnings` of the result as well.
    """
    _check(tol, method, ratio, max_macs, calibration, confidence)
    say = progress or (lambda line: None)
    if not isinstance(model, nn.Module):
        raise TypeError(f"a model of type {type(model).__name__}: expected a torch.nn.Module")
    roles, copies = screened(roles_of(data, seed=seed))
    size = None if ratio is None and max_macs is None else (ratio, max_macs)
    if size is None:
        assert tol is not None
        check_reachable(tol, len(roles.certification), confidence)
    weak = tuple(weaknesses(roles, copies, tol if size is None else None, confidence))
    for line in weak:
        say(f"warning: {line}")
        warnings.warn(line, ResultWarning, stacklevel=2)
    wide = _own_copy(model, placed(model, roles.calibration.first(2)))
    inputs = placed(wide, roles.calibration.first(calibration or _affordable(wide, roles)))
    check_labels(wide, batches_of(inputs), (x for x, _ in roles.search))
    structure = find_groups(wide, inputs[:4], seed=seed)
    _check_something(structure)
    say(f"{sum(g.size for g in structure.groups)} units in {len(structure.groups)} groups")
    before = cost.count(wide, inputs)
    chosen = METHODS[method]
    context = Context(wide, structure, batches_of(inputs), seed, before.macs)
    with evaluating(wide):
        alone = chosen.left_alone(context)
        if len(alone) == len(structure.groups):
            raise UnsupportedNetworkError(
                f"method {method} can use no group of this network: "
                f"{'; '.join(sorted(set(alone.values())))}; choose another method"
            )
        say(f"{method}: ranking units on {len(inputs)} calibration examples")
        family = chosen.family(context)
        if size is not None:
            wanted = min(
                before.macs if ratio is None else int(ratio * before.macs),
                before.macs if max_macs is None else max_macs,
            )
            candidate = _of_size(context, chosen, family, wanted, roles, say)
            agreement = verify(wide, candidate.model, roles.certification, confidence=confidence)
            tried, tested = [candidate], 1
        else:
            assert tol is not None
            candidate, agreement, tried, tested = _within(
                context, chosen, family, tol, confidence, roles, say
            )
    say("measuring the thin network")
    return _result(
        model,
        context,
        candidate,
        tried,
        agreement,
        tested,
        copies,
        weak,
        roles,
        alone,
        method,
        None if size is not None else tol,
        confidence,
    )


def _check(
    tol: float | None,
    method: str,
    ratio: float | None,
    max_macs: int | None,
    calibration: int | None,
    confidence: float,
) -> None:
    if tol is not None and not 0 <= tol < 1:
        raise ValueError(f"tol={tol}: expected a share of labels in [0, 1)")
    if tol is None and ratio is None and max_macs is None:
        raise ValueError("nothing to aim at: give tol, ratio or max_macs")
    if method not in METHODS:
        raise ValueError(f"method={method!r}: expected one of {', '.join(METHODS)}")
    if ratio is not None and not 0 < ratio <= 1:
        raise ValueError(f"ratio={ratio}: expected a share of the MACs in (0, 1]")
    if max_macs is not None and max_macs < 1:
        raise ValueError(f"max_macs={max_macs}: expected at least 1")
    if calibration is not None and calibration < 2:
        raise ValueError(f"calibration={calibration}: expected at least 2 examples")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence}: expected a number in (0, 1)")


def _affordable(model: nn.Module, roles: Roles) -> int:
    """How many calibration examples to use where the caller does not say."""
    macs = cost.count(model, roles.calibration.first(1)).macs
    return int(min(max(CALIBRATION_MACS / max(macs, 1), CALIBRATION_LEAST), CALIBRATION_MOST))


def _own_copy(model: nn.Module, inputs: Tensor) -> nn.Module:
    """A copy in eval mode that can be excised exactly, without what only training needs.

    Raises:
        FcompressError: It does not run on the inputs, gives no class scores or holds a weight
            that is not finite.
    """
    wide = prepare(model, inputs).eval()
    if isinstance(wide, Network):
        wide.drop_training_parts()
    for parameter in wide.parameters():
        if not bool(parameter.isfinite().all()):
            raise FcompressError("a weight of the network is not finite; repair or retrain it")
    with evaluating(wide):
        try:
            class_scores(wide, inputs)
        except FcompressError:
            raise
        except Exception as error:
            raise cannot_run((inputs,), error) from error
    return wide


def _check_something(structure: Structure) -> None:
    if not structure.groups:
        reasons = sorted({s["reason"] for s in structure.skipped()}) or ["it has no layers"]
        raise UnsupportedNetworkError(
            f"nothing in this network can be excised: {'; '.join(reasons[:5])}"
        )


def _maker(
    context: Context, method: Method, family: Family, roles: Roles, say: Callable[[str], None]
) -> Callable[[int], Candidate]:
    """Builds the network with a number of units removed and measures it on the search split."""
    reference = reference_labels(context.model, (x for x, _ in roles.search))

    def make(removed: int) -> Candidate:
        kept = family.kept(removed)
        thin = method.make(context, kept)
        macs = cost.count(thin, context.batches[0]).macs
        found = measure(removed, kept, thin, macs, (x for x, _ in roles.search), reference)
        say(
            f"{removed} of {len(family.prices)} units removed: "
            f"{macs / max(context.macs, 1):.1%} of MACs, "
            f"{found.changed} of {found.n} labels changed"
        )
        return found

    return make


def _within(
    context: Context,
    method: Method,
    family: Family,
    tol: float,
    confidence: float,
    roles: Roles,
    say: Callable[[str], None],
) -> tuple[Candidate, AgreementResult, list[Candidate], int]:
    """The thinnest network within the tolerance, its certificate, all tried, how many certified."""
    n = len(roles.certification)
    most = most_changes(n, tol, confidence)
    tried: list[Candidate] = []
    make = _maker(context, method, family, roles, say)

    def noted(removed: int) -> Candidate:
        candidate = make(removed)
        tried.append(candidate)
        return candidate

    good = thinnest(family, noted, lambda c: c.changed * n <= most * c.n)
    sequence = sequence_to_test(good)
    say(f"certifying on {n} examples")
    passed, results = certify(context.model, sequence, roles.certification, tol, confidence)
    if passed is None:
        least = min(tried, key=lambda c: c.changed, default=None)
        seen = (
            "no candidate could be built"
            if least is None
            else f"the mildest change tried altered {least.changed} of {least.n} labels"
        )
        if results:
            seen = (
                f"the best candidate changed {results[0].changed} of {n} certification labels, "
                f"which bounds the change only by {results[0].upper_bound:.2%}"
            )
        raise ToleranceError(
            f"no thinner network keeps the labels within a tolerance of {tol:g} by this method: "
            f"{seen}; choose a larger tolerance, another method, or bring more data"
        )
    return *passed, tried, len(results)


def _of_size(
    context: Context,
    method: Method,
    family: Family,
    wanted: int,
    roles: Roles,
    say: Callable[[str], None],
) -> Candidate:
    """The network of a family with at most `wanted` MACs; only that one is refactored."""

    def macs(removed: int) -> int:
        kept = family.kept(removed)
        thin = excise(context.model, context.structure.groups, kept, share=True)
        return cost.count(thin, context.batches[0]).macs

    low, high = 0, len(family.prices)
    if macs(high) > wanted:
        raise ToleranceError(
            f"at most {wanted} MACs cannot be reached: with one unit left in each group "
            f"{macs(high)} remain; ask for more"
        )
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if macs(middle) <= wanted else (middle + 1, high)
    return _maker(context, method, family, roles, say)(low)


def _result(
    model: nn.Module,
    context: Context,
    candidate: Candidate,
    tried: list[Candidate],
    agreement: AgreementResult,
    tested: int,
    copies: Copies,
    weak: tuple[str, ...],
    roles: Roles,
    alone: Mapping[str, str],
    method: str,
    tol: float | None,
    confidence: float,
) -> ShrinkResult:
    wide, thin = context.model, candidate.model
    test = None if roles.test is None else verify(wide, thin, roles.test, confidence=confidence)
    before, after = cost.count(wide, context.batches[0]), cost.count(thin, context.batches[0])
    example = torch.cat(list(context.batches[:1]))[:LATENCY_BATCH]
    times = cost.latency([wide, thin], example)
    certified = tol is not None and agreement.upper_bound <= tol
    skipped = [*context.structure.skipped()]
    skipped += [{"name": n, "reason": r} for n, r in alone.items()]
    entry = {
        "action": "shrink",
        "method": method,
        "tolerance": tol,
        "certified": certified,
        "agreement": {k: v for k, v in agreement.to_dict().items() if k != "accuracy"},
        "params": {"before": before.params, "after": after.params},
        "macs": {"before": before.macs, "after": after.macs},
        "seed": context.seed,
        "data": roles.info,
        "versions": versions(),
    }
    if isinstance(thin, Network):
        thin.origin = {
            "data": thin.origin.get("data"),
            "history": [*thin.origin.get("history", []), entry],
        }
    return ShrinkResult(
        model=thin,
        method=method,
        tolerance=tol,
        certified=certified,
        agreement=agreement,
        tested=tested,
        copies=copies,
        warnings=weak,
        test=test,
        params={"before": before.params, "after": after.params},
        macs={"before": before.macs, "after": after.macs},
        bytes={"before": _bytes(model), "after": _bytes(thin)},
        latency_ms={"before": times[0], "after": times[1]},
        accuracy=agreement.accuracy if test is None else test.accuracy,
        layers=_layers(wide, thin, context.structure, alone),
        skipped=tuple(skipped),
        candidates=tuple(
            {"removed": c.removed, "macs": c.macs, "changed": c.changed, "n": c.n} for c in tried
        ),
        calibration=sum(len(b) for b in context.batches),
        data=roles.info,
        seed=context.seed,
        versions=versions(),
    )


def versions() -> dict[str, str]:
    """What produced a result."""
    return {
        "fcompress": version("fcompress"),
        "torch": str(torch.__version__),
        "python": platform.python_version(),
    }


def _bytes(model: nn.Module) -> int:
    """Size of the network's file; of its state dict where it has no file format of ours."""
    if isinstance(model, Network):
        return file_bytes(model)
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    return buffer.getbuffer().nbytes


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
