"""shrink(): from a trained network and unlabelled data to a certified thin one."""

from __future__ import annotations

import warnings
from collections.abc import Callable

from torch import Tensor, nn

from fcompress.certify.agreement import check_labels
from fcompress.certify.bounds import CONFIDENCE
from fcompress.certify.screening import check_reachable, screened, weaknesses
from fcompress.compress.methods import METHODS, Context
from fcompress.compress.options import POLISH_SECONDS, check, check_choices
from fcompress.compress.result import ShrinkResult, outcome
from fcompress.compress.search import Workshop, best_multiple, of_size, within
from fcompress.data.packing import Packing
from fcompress.data.roles import Roles, batches_of, roles_of
from fcompress.errors import FcompressError, ResultWarning, UnsupportedNetworkError, first_line
from fcompress.forward import cost
from fcompress.forward.recording import frontier_bytes
from fcompress.forward.running import cannot_run, class_scores, connected, evaluating, placed
from fcompress.forward.scoring import resolved, scoring_of
from fcompress.models import Network
from fcompress.structure.groups import Structure, find_groups
from fcompress.surgery.preparation import prepare

# Calibration examples: as many as this many multiply-adds allow, within bounds.
CALIBRATION_MACS = 6e10
CALIBRATION_LEAST, CALIBRATION_MOST = 1024, 8192
# Refactoring holds the activations between two layers for all of them: no more than so many bytes,
# unless that leaves too few examples.
CALIBRATION_BYTES, CALIBRATION_FEWEST = 2 << 30, 64


def shrink(
    model: nn.Module,
    data: object,
    tol: float | None = 0.2,
    *,
    method: str = "hybrid",
    objective: str = "macs",
    round_to: int | str = 1,
    polish: bool = False,
    polish_seconds: float = POLISH_SECONDS,
    ratio: float | None = None,
    max_macs: int | None = None,
    calibration: int | None = None,
    confidence: float = CONFIDENCE,
    seed: int = 0,
    output: str | int | None = None,
    labels: str | None = None,
    progress: Callable[[str], None] | None = None,
) -> ShrinkResult:
    """Find the thinnest network that still gives the same labels, and certify it.

    Args:
        model: A trained classifier: inputs [N, ...] to scores [N, classes]. Left as it is.
        data: Inputs as the network takes them, labels optional: `Splits`, a DataLoader, or any
            iterable of batches (tensors or (inputs, labels) pairs). Several inputs stand in a
            dict by keyword, or in a tuple as in ((first, second), labels).
        tol: Largest share of labels that may change, in [0, 1).
        method: A name in `methods.METHODS`.
        objective: What removing units is to save: "macs", "params" or "latency" (of the layers, as
            measured on the model's device; not repeatable to the unit).
        round_to: Keep multiples of so many units where a group has them; "auto" for the largest
            multiple that costs no time on the model's device (not repeatable either).
        polish: Distil thin networks towards the wide one on the calibration inputs, without labels,
            and so get thinner.
        polish_seconds: Most seconds to polish one network; up to six are.
        ratio: Instead of searching for the tolerance: at most this share of the MACs.
        max_macs: Instead of searching for the tolerance: at most this many MACs.
        calibration: Most calibration examples to use; None for as many as are cheap (1,024 to
            8,192, fewer the more multiply-adds the network takes).
        confidence: Of the certificate, in (0, 1).
        seed: Of all choices.
        output: Which of several outputs are the scores: a key, the name of an attribute or a
            number; None for what the network carries, or else `logits` or the first.
        labels: What a label is: "classes" (the largest of scores [N, classes]), "sigmoid" (each
            of scores [N, labels] or [N] that is above 0; an example's label changed if any did)
            or "positions" (the largest of scores [N, classes, ...] at each position; the bound is
            one on the share of changed positions). None for what the network carries, or else
            "sigmoid" for a single score and "classes" for several.
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
    check(tol, ratio, max_macs, calibration, confidence)
    check_choices(method, objective, round_to, polish_seconds)
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
    (scoring,) = resolved(output, labels, (model,))
    with connected(model, roles.packing, scoring):
        wide = _own_copy(model, placed(model, roles.calibration.first(2)), roles.packing)
    _check_truth(wide, roles)
    inputs = placed(wide, roles.calibration.first(calibration or _affordable(wide, roles)))
    check_labels(wide, batches_of(inputs), (x for x, _ in roles.search))
    structure = find_groups(wide, inputs[:4], seed=seed)
    _check_something(structure)
    say(f"{sum(g.size for g in structure.groups)} units in {len(structure.groups)} groups")
    before = cost.count(wide, inputs)
    chosen = METHODS[method]
    context = Context(wide, structure, batches_of(inputs), seed, before.macs, objective)
    with evaluating(wide):
        alone = chosen.left_alone(context)
        if len(alone) == len(structure.groups):
            raise UnsupportedNetworkError(
                f"method {method} can use no group of this network: "
                f"{'; '.join(sorted(set(alone.values())))}; choose another method"
            )
        say(f"{method}: ranking units on {len(inputs)} calibration examples")
        family = chosen.family(context)
        multiple = best_multiple(context, family) if round_to == "auto" else int(round_to)
        if multiple > 1:
            say(f"numbers of units are rounded up to multiples of {multiple}")
        shop = Workshop(
            context, chosen, family, roles, say, multiple, polish_seconds if polish else None
        )
        if size is None:
            assert tol is not None
            found = within(shop, tol, confidence)
        else:
            wanted = min(
                before.macs if ratio is None else int(ratio * before.macs),
                before.macs if max_macs is None else max_macs,
            )
            found = of_size(shop, wanted, confidence)
    say("measuring the thin network")
    return outcome(
        model,
        shop,
        found,
        alone,
        (copies, weak),
        method=method,
        tol=None if size is not None else tol,
        confidence=confidence,
    )


def _affordable(model: nn.Module, roles: Roles) -> int:
    """How many calibration examples to use where the caller does not say."""
    example = placed(model, roles.calibration.first(1))
    macs = cost.count(model, example).macs
    wanted = min(max(CALIBRATION_MACS / max(macs, 1), CALIBRATION_LEAST), CALIBRATION_MOST)
    held = CALIBRATION_BYTES / max(frontier_bytes(model, example), 1)
    return int(max(min(wanted, held), CALIBRATION_FEWEST))


def _own_copy(model: nn.Module, inputs: Tensor, packing: Packing | None) -> nn.Module:
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
            if packing is None:
                raise cannot_run((inputs,), error) from error
            raise UnsupportedNetworkError(
                f"the network does not run on inputs {packing}: {type(error).__name__}: "
                f"{first_line(error)}; give data of the names, shapes and types it expects"
            ) from error
    return wide


def _check_truth(wide: nn.Module, roles: Roles) -> None:
    """See that true labels, where there are any, are of the shape that the network's are.

    Raises:
        DataError: They are not.
    """
    inputs, labels = next(iter(roles.calibration))
    if labels is not None:
        with evaluating(wide):
            scores = class_scores(wide, placed(wide, inputs[:2]))
        scoring = scoring_of(wide)
        scoring.truth(labels[:2], scoring.labels_of(scores).shape[1])


def _check_something(structure: Structure) -> None:
    if not structure.groups:
        reasons = sorted({s["reason"] for s in structure.skipped()}) or ["it has no layers"]
        raise UnsupportedNetworkError(
            f"nothing in this network can be excised: {'; '.join(reasons[:5])}"
        )
