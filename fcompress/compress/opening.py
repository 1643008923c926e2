"""The network as it is when compression begins: a copy that can be cut, and what is known of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from torch import Tensor

from fcompress.data.roles import Roles, batches_of
from fcompress.errors import FcompressError, UnsupportedNetworkError
from fcompress.forward.answers.heads import answering
from fcompress.forward.predictor import Predictor
from fcompress.forward.repeats import check_repeats
from fcompress.forward.running import runs_on
from fcompress.models import Network
from fcompress.structure.groups import Structure
from fcompress.structure.paths import different_ways, reached_in_training, ways_of_units
from fcompress.surgery.preparation import Call, prepare

# Single examples and whole batches on which the network is watched for other ways through it.
SINGLES, LOOKED_AT = 4, 8
NAMED = 5  # modules that a sentence names


def own_copy(given: Predictor, roles: Roles) -> Predictor:
    """A copy in eval mode that can be excised exactly, without what only training needs.

    Raises:
        FcompressError: It does not run on the inputs, gives no class scores or holds a weight
            that is not finite.
    """
    inputs = given.place(roles.calibration.first(2))
    network = prepare(given.network, inputs, call=given.whole).eval()
    if isinstance(network, Network):
        network.drop_training_parts()
    for parameter in network.parameters():
        if not bool(parameter.isfinite().all()):
            raise FcompressError("a weight of the network is not finite; repair or retrain it")
    original = given.of(network)
    with original.evaluating(), runs_on(inputs):
        original = answering(original, inputs)
        original.scores(inputs)
    return original


def repeating(original: Predictor, roles: Roles, *, stochastic: bool) -> Predictor:
    """The network, if it repeats its answers, or draws and may.

    Raises:
        UnsupportedNetworkError: It does not.
    """
    inputs = original.place(next(iter(roles.calibration))[0])
    return replace(original, draws=check_repeats(original, inputs, stochastic=stochastic))


def ways_of(original: Predictor, inputs: Tensor, call: Call) -> tuple[list[Tensor], int, set[str]]:
    """Batches on which the network executes different operators, the first four among them.

    Beside them how many of these differ in what happens to units, and the names of parameters
    that none of them reached, nor training does.
    """
    single = [inputs[row : row + 1] for row in range(min(SINGLES, len(inputs)))]
    tried = [inputs[:4], *single, *batches_of(inputs)[:LOOKED_AT]]
    with original.evaluating(), runs_on(inputs):
        ways, unreached = different_ways(original.network, tried, call=call)
        if unreached:
            unreached -= reached_in_training(original.network, tried[0], call=call)
        differing = 1
        if len(ways) > 1:
            differing = ways_of_units(original.network, ways, call=call)
        return ways, differing, unreached


def said_of_ways(differing: int, unreached: set[str]) -> Iterator[str]:
    """Warnings about what no example showed."""
    if differing > 1:
        yield (
            f"the network takes different ways through its code (at least {differing} were seen); "
            "units fit on those, and what the compressed network does on another is not known"
        )
    modules = sorted({name.rpartition(".")[0] or name for name in unreached})
    if modules:
        more = f" and {len(modules) - NAMED} more" if len(modules) > NAMED else ""
        some = ", ".join(modules[:NAMED]) + more
        yield (
            f"no calibration example reached {some}; units that it seems to read or write, by "
            "their number, are not pruned unless that is asked for (only_seen_paths), and whether "
            "the compressed network runs if an example reaches it is not known"
        )


def check_truth(original: Predictor, roles: Roles) -> None:
    """See that true labels, where there are any, are of the shape that the network's are.

    Raises:
        DataError: They are not.
    """
    inputs, labels = next(iter(roles.calibration))
    if labels is not None and not original.scoring.continuous:
        with original.evaluating():
            found = original.labels(original.place(inputs[:2]))
        original.scoring.truth(labels[:2], found.shape[1])


def check_something(structure: Structure) -> None:
    """See that there is something to remove.

    Raises:
        UnsupportedNetworkError: There is not.
    """
    if not structure.groups:
        reasons = sorted({s["reason"] for s in structure.skipped()}) or ["it has no layers"]
        raise UnsupportedNetworkError(
            f"nothing in this network can be excised: {'; '.join(reasons[:5])}"
        )
