"""The choices behind the method `hybrid`, each against its alternatives at equal MACs.

    python -m benchmarks.studies.choices --wide mlp=mlp.pt --wide resnet20=resnet20.pt --work DIR

Every trial makes networks of the same shares of the MACs with one choice changed and compares
labels on the first test images. Trials that DIR holds already are not run again. The table goes
to results/choices.md.
"""

import datetime
import json
import math
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import click
import torch
from torch import Tensor

import fcompress
from fcompress.certify.labels import changed_labels, reference_labels
from fcompress.compress import methods
from fcompress.compress.methods import Context, Factor, Hybrid, importance, readings_of
from fcompress.compress.ranking import divergence, fisher
from fcompress.compress.ranking.allocation import RemovalOrder, merge
from fcompress.compress.ranking.divergence import measured_costs
from fcompress.compress.ranking.subset_selection import weighted
from fcompress.compress.refitting import least_squares, reconstruct, samples
from fcompress.compress.refitting.least_squares import Fit, fit
from fcompress.forward.predictor import Predictor
from fcompress.surgery.excision import excise, kept_indices

SHARES = {"mlp": (0.3, 0.1, 0.05), "resnet20": (0.5, 0.3, 0.15), "alexnet": (0.1, 0.04, 0.01)}
EXAMPLES = {"mlp": 8192, "resnet20": 2048, "alexnet": 1024}
TEST = 4000


class Activity(Hybrid):
    """Units ranked by activity alone, as `factor` does; costs measured."""

    def rank(self, context: Context, readings: Sequence[Any]) -> tuple[Tensor, Tensor]:
        _, cost = super().rank(context, readings)
        shares = [r.covariance / r.covariance.trace().clamp(min=1e-30) for r in readings]
        order, _ = weighted([sum(shares)], [torch.eye(len(shares[0]), dtype=torch.float64)])
        return order, cost


class Weights(Hybrid):
    """Units ranked by the consumers' weights, as if the labels listened to every output alike."""

    def rank(self, context: Context, readings: Sequence[Any]) -> tuple[Tensor, Tensor]:
        _, cost = super().rank(context, readings)
        with patch.dict(vars(context), {"fisher": {}}):
            heard = [importance(context, r) for r in readings]
        covariances = [r.covariance for r in readings]
        totals = [float((k * m).sum()) for k, m in zip(covariances, heard, strict=True)]
        heard = [m / max(t, 1e-30) for m, t in zip(heard, totals, strict=True)]
        return weighted(covariances, heard)[0], cost


class Joined(Hybrid):
    """Groups compared in another way than by measured costs."""

    def __init__(self, costs: Callable[[Tensor, int], Tensor]) -> None:
        self.costs = costs

    def removal_order(self, context: Context) -> RemovalOrder:
        groups = [g for g in context.structure.groups if g.name not in self.not_pruned(context)]
        chosen = {g.name: self.rank(context, readings_of(context, g)) for g in groups}
        costs = {g.name: self.costs(chosen[g.name][1], len(g.consumers)) for g in groups}
        return merge({n: order for n, (order, _) in chosen.items()}, costs, context.loads)


class Refitted(Hybrid):
    """Measured costs times what is left of them when all layers behind are solved again.

    For that each group alone is cut to a share of its units, and the network refitted.
    """

    share, batches = 0.8, 4  # of its units, to refit on

    def removal_order(self, context: Context) -> RemovalOrder:
        def costs(*given: Any) -> dict[str, Tensor]:
            orders, inputs = given[3], given[5]
            found = measured_costs(*given)
            return {n: c * self.left(context, n, orders[n], c, inputs) for n, c in found.items()}

        with patch.object(methods, "measured_costs", costs):
            return super().removal_order(context)

    def left(
        self, context: Context, name: str, order: Tensor, cost: Tensor, inputs: Tensor
    ) -> float:
        """The share of a group's cost that refitting leaves."""
        size = min(max(1, round(self.share * len(order))), len(order) - 1)
        if size < 1 or not 0 < float(cost[size]) < math.inf:
            return 1.0
        batches = context.batches[-self.batches :]
        few = {w: _last_rows(target, self.batches) for w, target in context.targets.items()}
        groups, kept = context.structure.groups, {name: order[:size].sort().values}
        thin = excise(context.original.network, groups, kept)
        keep = kept_indices(context.original.tensors(), groups, kept)
        reconstruct.refit_network(context.original, thin, groups, keep, few, batches)
        with torch.no_grad():
            scores = [network(inputs).double() for network in (context.original.network, thin)]
        scoring = context.original.scoring
        before, after = map(scoring.log_probabilities, scores)
        return min(max(float(scoring.divergence(after, before) / cost[size]), 0.01), 1.0)


def _last_rows(target: samples.Target, batches: int) -> samples.Target:
    """The rows that come from the last batches."""
    places = samples.Places(target.places.batches[-batches:])
    joined = None if target.joined is None else target.joined[-places.count :]
    inputs, outputs = target.inputs[-places.count :], target.outputs[-places.count :]
    return samples.Target(target.layer, places, inputs, outputs, joined)


def _unsolved(layer: Any, rows: Tensor, joined: Any, target: Any, *rest: Any) -> None:
    """Depthwise layers left as they are."""
    if layer.convolution is None or rows.shape[1] != layer.convolution[3]:
        _SOLVE_LAYER(layer, rows, joined, target, *rest)


def _channels(
    rows: Tensor, outputs: Tensor, original: Tensor, wide: Tensor, stays: Tensor, *rest: Any
) -> Fit:
    """One map from thin to wide channels for all taps, instead of a solution for every tap."""
    positions, centred = rest[:2]
    prior = reconstruct._channel_prior(rows, original, wide, stays, positions, centred).flatten(2)
    x, z = rows.flatten(2).mean(1, dtype=torch.float64), outputs.mean(1, dtype=torch.float64)
    bias = z - torch.einsum("soi,si->so", prior, x)
    return Fit(prior, bias if centred else 0 * bias, bias.new_zeros(len(bias)))


def _none(*_: Any) -> None:
    """What the skips of the thin network bring, not looked at."""


def _towards_nothing(inputs: Tensor, wanted: Tensor, prior: Tensor, **rest: Any) -> Fit:
    """The ridge pulls towards zero, not towards the channel-level solution."""
    return fit(inputs, wanted, torch.zeros_like(prior), **rest)


AS_IT_IS = Hybrid()
_SOLVE_LAYER = reconstruct._solve_layer


@dataclass(frozen=True)
class Choice:
    """One thing done differently.

    Attributes:
        question: What is being settled.
        name: The alternative.
        method: Ranks units and makes networks.
        patches: Attributes of modules that differ: (module, name, value).
        examples: Calibration examples; None for as many as the network usually gets.
    """

    question: str
    name: str
    method: Any = AS_IT_IS
    patches: tuple[tuple[Any, str, Any], ...] = ()
    examples: int | None = None

    @contextmanager
    def made(self) -> Iterator[None]:
        with ExitStack() as stack:
            for module, name, value in self.patches:
                stack.enter_context(patch.object(module, name, value))
            yield


def _sizes(*shares: float) -> tuple[tuple[Any, str, Any], ...]:
    """Other sizes to measure at, for the same number of runs in all."""
    return (divergence, "KEPT", shares), (methods, "KEPT", shares)


CHOICES = (
    Choice("", "hybrid as it is"),
    Choice("method", "factor", Factor()),
    Choice("ranking", "activity alone", Activity()),
    Choice("ranking", "activity and weights, no Fisher", Weights()),
    Choice("ranking", "Fisher not smoothed", patches=((fisher, "SMOOTHING", 0.0),)),
    Choice("across groups", "predicted nats, not measured", Joined(lambda c, k: c)),
    Choice("across groups", "share of the group's cost", Joined(lambda c, k: c / c[0])),
    Choice("across groups", "share times consumers", Joined(lambda c, k: k * c / c[0])),
    Choice("across groups", "measured, refit of the rest counted", Refitted()),
    Choice("refactor", "nothing", patches=((methods, "refit_network", lambda w, t, *_: t),)),
    Choice("refactor", "channel level only", patches=((reconstruct, "_solve", _channels),)),
    Choice("refactor", "ridge towards zero", patches=((reconstruct, "fit", _towards_nothing),)),
    *(
        Choice("refactor", f"ridge always {r:g}", patches=((least_squares, "RIDGES", (r,)),))
        for r in (1e-4, 1e-2)
    ),
    Choice("refactor", "all that a ReLU hides fitted too", patches=((least_squares, "ROUNDS", 0),)),
    Choice(
        "refactor",
        "skips left out of targets",
        patches=((reconstruct, "output_rows", lambda *_: None),),
    ),
    Choice(
        "refactor", "depthwise layers left", patches=((reconstruct, "_solve_layer", _unsolved),)
    ),
    Choice("rows", "a quarter", patches=((samples, "ROWS_AT_LEAST", 4096),)),
    Choice("rows", "four times as many", patches=((samples, "ROWS_AT_LEAST", 65536),)),
    *(Choice("calibration", f"{n:,} examples", examples=n) for n in (128, 512, 2048, 8192)),
    Choice("measuring", "3 sizes, not 6", patches=_sizes(0.5, 0.2, 0.05)),
    Choice(
        "measuring", "7 sizes from 95% on", patches=_sizes(0.95, 0.85, 0.7, 0.5, 0.33, 0.2, 0.1)
    ),
    Choice(
        "measuring",
        "10 sizes from 98% on",
        patches=_sizes(0.98, 0.95, 0.9, 0.85, 0.75, 0.5, 0.33, 0.2, 0.1, 0.05),
    ),
)


@click.command()
@click.option("--wide", multiple=True, required=True, metavar="NAME=FILE")
@click.option("--work", type=click.Path(path_type=Path), default=Path("bench-output"))
@click.option("--data-root", type=click.Path(path_type=Path))
def main(wide: tuple[str, ...], work: Path, data_root: Path | None) -> None:
    """Run all trials and write the table."""
    (work / "choices").mkdir(parents=True, exist_ok=True)
    rows = []
    for network, _, path in (w.partition("=") for w in wide):
        for choice in CHOICES:
            row = _trial(network, Path(path), choice, work, data_root)
            rows.append(row)
            click.echo(" ".join(map(str, row.values())))
    results = Path(__file__).parents[1] / "results"
    results.mkdir(exist_ok=True)
    (results / "choices.md").write_text(_table(rows))


def _trial(network: str, path: Path, choice: Choice, work: Path, root: Path | None) -> dict:
    done = work / "choices" / f"{network}-{choice.question}-{choice.name}.json".replace(" ", "_")
    if done.exists():
        return json.loads(done.read_text())
    wide: Any = fcompress.load(path)
    splits = fcompress.load_data("fashion-mnist", root=root, like=wide.origin["data"])
    count = choice.examples or EXAMPLES[network]
    batches = [x for x, _ in splits.need("calibration").batches(64, limit=count)]
    test = [x for x, _ in splits.need("test").batches(250, limit=TEST)]
    begin = time.process_time()
    with choice.made(), Predictor(wide).evaluating():
        structure = fcompress.find_groups(wide, batches[0][:4])
        macs = fcompress.count(wide, batches[0]).macs
        context = Context(Predictor(wide), structure, batches, 0, macs)
        removal_order = choice.method.removal_order(context)
        reference = reference_labels(wide, test)
        agreements = []
        for share in SHARES[network]:
            kept = _of_size(context, removal_order, share * macs)
            changed, n = changed_labels(choice.method.make(context, kept), test, reference)
            agreements.append(round(1 - changed / n, 4))
    row = {
        "network": network,
        "question": choice.question,
        "choice": choice.name,
        "agreements": agreements,
        "seconds": round(time.process_time() - begin),
    }
    done.write_text(json.dumps(row))
    return row


def _of_size(context: Context, removal_order: RemovalOrder, wanted: float) -> Mapping[str, Tensor]:
    low, high = 0, len(removal_order.prices)
    while low < high:
        middle = (low + high) // 2
        kept = removal_order.kept(middle)
        thin = excise(context.original.network, context.structure.groups, kept, share=True)
        fits = fcompress.count(thin, context.batches[0]).macs <= wanted
        low, high = (low, middle) if fits else (middle + 1, high)
    return removal_order.kept(low)


def _table(rows: Sequence[dict]) -> str:
    lines = [
        "# Choices behind `hybrid`, one changed at a time",
        "",
        f"`python -m benchmarks.studies.choices`, {datetime.date.today().isoformat()}, torch "
        f"{torch.__version__}, {platform.machine()}, one thread; seconds of processor time. "
        f"Agreement on the first {TEST:,} test images of Fashion-MNIST at equal MACs, nothing "
        "trained; the standard error is 0.1 to 0.4 points, most of it common to all rows of a "
        f"network. Calibration examples: {', '.join(f'{n} {c:,}' for n, c in EXAMPLES.items())}.",
    ]
    for network in dict.fromkeys(row["network"] for row in rows):
        heads = " | ".join(f"{share:.0%} of MACs" for share in SHARES[network])
        lines += ["", f"## {network}", "", f"| question | choice | {heads} | seconds |"]
        lines.append("|" + " --- |" * (3 + len(SHARES[network])))
        for row in (r for r in rows if r["network"] == network):
            found = " | ".join(f"{a:.4f}" for a in row["agreements"])
            lines.append(f"| {row['question']} | {row['choice']} | {found} | {row['seconds']} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
