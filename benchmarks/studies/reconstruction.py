"""What else distillation might learn from: blocks one after the other, features, mixed inputs.

    fcompress train resnet20 --width 0.5 --data fashion-mnist,size=14,train=12000 --epochs 5 \
        --out small.pt
    python -m benchmarks.studies.reconstruction --wide resnet20-14=small.pt --ratio 0.55

Every way begins from the same refitted network, passes equally many images forward and backward
with a rate that falls linearly from 1e-3, and is compared with the original on the first 4,000 test
images. Blocks are fitted jointly, one after the other (Li et al. 2021, "BRECQ"), to what the
original's blocks return, on inputs from the compressed network as it is by then; an error of a
channel counts by the label-free Fisher information there. Fitting a block is as many images as
distilling, since all blocks together are the network.
"""

import copy
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor, nn

import fcompress
from fcompress.compress.distillation.rotated import RotatedAdam
from fcompress.compress.distillation.student import TEMPERATURE
from fcompress.compress.distillation.teacher import divergence_of
from fcompress.data.specs import reload_data
from fcompress.forward.predictor import Predictor
from fcompress.models.provenance import origin_of
from fcompress.structure.blocks import find_blocks

IMAGES, TEST, BATCH, RATE = 16_000, 4000, 64, 1e-3
POOL, HELD = 4000, 500  # images that blocks are fitted on, and of those that decide
WAYS = ("distilled", "rotated steps", "blocks, then distilled", "blocks alone")
WAYS += ("all features 1", "all features 10", "last features 1", "mixed inputs")


class Lab:
    """A network, its refitted thin copy, and images with the original's scores."""

    def __init__(self, path: Path, ratio: float) -> None:
        self.original = fcompress.load(path).eval()
        splits = reload_data(origin_of(self.original)["data"])
        self.thin = fcompress.shrink(self.original, splits, ratio=ratio).model.eval()
        parts = [splits.need("calibration"), splits.need("train")]
        self.images = torch.cat([x for part in parts for x, _ in part.batches(limit=IMAGES)])
        self.images = self.images[:IMAGES]
        self.test = torch.cat([x for x, _ in splits.need("test").batches(limit=TEST)])
        found = find_blocks(Predictor(self.original), self.images[:4])
        names = set(dict(self.thin.named_modules()))
        every = [block.name for block in found.found] + list(found.kept)
        order = {name: place for place, (name, _) in enumerate(self.original.named_modules())}
        self.blocks = sorted({name for name in every if name in names}, key=order.__getitem__)
        with torch.no_grad():
            self.scores = torch.cat([self.original(x) for x in self.images.split(500)])

    def compared(self, network: nn.Module) -> tuple[float, float]:
        """Agreement and divergence on test images."""
        scoring = Predictor(self.original).scoring
        with torch.no_grad():
            wide, thin = (
                torch.cat([net(x) for x in self.test.split(500)]).double()
                for net in (self.original, network)
            )
        same = (wide.argmax(1) == thin.argmax(1)).double().mean()
        return float(same), float(divergence_of(scoring, thin, wide))

    def copy(self) -> nn.Module:
        """The thin network, to be trained."""
        network = copy.deepcopy(self.thin).eval()
        for parameter in network.parameters():
            parameter.requires_grad_(True)
        return network


def returned(
    network: nn.Module, names: Sequence[str], inputs: Tensor, *, given: bool = False
) -> tuple[dict[str, Tensor], Tensor]:
    """What blocks return (or are given), and the scores."""
    found: dict[str, Tensor] = {}

    def note(name: str) -> Callable[..., None]:
        return lambda _, args, out: found.__setitem__(name, args[0] if given else out)

    modules = dict(network.named_modules())
    hooks = [modules[name].register_forward_hook(note(name)) for name in names]
    scores = network(inputs)
    for hook in hooks:
        hook.remove()
    return found, scores


def last(values: Tensor) -> Tensor:
    """With channels as the last dimension: the second of maps, the last of tokens."""
    return values if values.dim() == 3 else values.movedim(1, -1)


class Errors:
    """How far blocks are from the original's, in nats to second order."""

    def __init__(self, lab: Lab) -> None:
        inputs = lab.images[:256]
        wide, scores = returned(lab.original, lab.blocks, inputs)
        with torch.no_grad():
            thin, _ = returned(lab.thin, lab.blocks, inputs)
        for value in wide.values():
            value.retain_grad()
        labels = torch.multinomial(scores.softmax(1), 1)[:, 0]
        nn.functional.cross_entropy(scores, labels, reduction="sum").backward()
        self.channels, self.weights = {}, {}
        for name, value in wide.items():
            assert value.grad is not None
            a, b = (last(v.detach()).flatten(0, -2).double() for v in (value, thin[name]))
            far = (a * a).sum(0) - 2 * b.T @ a + (b * b).sum(0)[:, None]
            self.channels[name] = far.argmin(1)  # which channel each of those left stands for
            fisher = last(value.grad).flatten(0, -2).square().mean(0)[self.channels[name]]
            self.weights[name] = fisher + 0.1 * fisher.mean()
        lab.original.zero_grad()

    def of(self, name: str, found: Tensor, wanted: Tensor) -> Tensor:
        """Mean over examples of the weighted squares of errors."""
        error = last(found) - last(wanted)[..., self.channels[name]]
        return (error.square() * self.weights[name]).flatten(1).sum(1).mean() / 2


def descend(
    parameters: Any, steps: int, loss: Callable[[int], Tensor], operations: float = 0
) -> None:
    """So many steps with a rate that falls to 0; plain Adam unless operations are allowed for."""
    weights = list(parameters)
    optimizer = RotatedAdam(weights, operations)
    for done in range(steps):
        loss(done).backward()
        optimizer.step(RATE * min(1.0, (done + 1) / 9) * (1 - done / steps))
        for weight in weights:
            weight.grad = None


def distilled(lab: Lab, network: nn.Module, images: int, way: str) -> None:
    """Train a network towards the original's scores, and what the way adds to that."""
    generator = torch.Generator().manual_seed(0)
    scoring = Predictor(lab.original).scoring
    errors = Errors(lab) if "features" in way else None
    blocks = lab.blocks[-1:] if "last" in way else lab.blocks
    order: list[Tensor] = []

    def loss(done: int) -> Tensor:
        if not order:
            shuffled = torch.randperm(len(lab.images), generator=generator)
            order.extend(shuffled.split(BATCH)[: len(shuffled) // BATCH])
        chosen = order.pop(0)
        inputs, scores = lab.images[chosen], lab.scores[chosen]
        if "mixed" in way and done % 2:
            share = 0.5 + 0.5 * torch.rand(len(inputs), 1, 1, 1, generator=generator)
            other = inputs[torch.randperm(len(inputs), generator=generator)]
            inputs = share * inputs + (1 - share) * other
            with torch.no_grad():
                scores = lab.original(inputs)
        found, thin = returned(network, blocks if errors else (), inputs)
        total = divergence_of(scoring, thin, scores, TEMPERATURE)
        if errors is not None:
            with torch.no_grad():
                wanted, _ = returned(lab.original, blocks, inputs)
            far = [errors.of(name, found[name], wanted[name]) for name in blocks]
            total = total + float(way.split()[-1]) * torch.stack(far).mean()
        return total

    descend(network.parameters(), images // BATCH, loss, 1e12 if "rotated" in way else 0)


def by_blocks(lab: Lab, network: nn.Module, images: int) -> None:
    """Fit the blocks one after the other; one that gets no better on held images stays."""
    errors, generator = Errors(lab), torch.Generator().manual_seed(0)
    for name in lab.blocks:
        with torch.no_grad():
            pool = lab.images[:POOL].split(500)
            given = torch.cat([returned(network, [name], x, given=True)[0][name] for x in pool])
            wanted = torch.cat([returned(lab.original, [name], x)[0][name] for x in pool])
        _fit(dict(network.named_modules())[name], name, errors, (given, wanted), images, generator)


def _fit(
    block: nn.Module,
    name: str,
    errors: Errors,
    pairs: tuple[Tensor, Tensor],
    images: int,
    generator: torch.Generator,
) -> None:
    given, wanted = pairs
    state = copy.deepcopy(block.state_dict())

    def held() -> float:
        with torch.no_grad():
            return float(errors.of(name, block(given[-HELD:]), wanted[-HELD:]))

    def loss(done: int) -> Tensor:
        rows = torch.randint(0, POOL - HELD, (BATCH,), generator=generator)
        return errors.of(name, block(given[rows]), wanted[rows])

    before = held()
    descend(block.parameters(), images // BATCH, loss)
    if not held() < before:
        block.load_state_dict(state)


@click.command()
@click.option("--wide", required=True, metavar="NAME=PATH", help="A trained network.")
@click.option("--ratio", type=float, default=0.55, help="Share of the MACs to keep.")
def main(wide: str, ratio: float) -> None:
    """Print a table of all ways for one network."""
    torch.set_num_threads(1)
    name, path = wide.split("=", 1)
    lab = Lab(Path(path), ratio)
    click.echo("| network | MACs kept | way | processor s | agreement, test | KL, test |")
    click.echo("| --- | --- | --- | --- | --- | --- |")
    for way in ("refitted", *WAYS):
        network, began = lab.copy(), time.process_time()
        if way.startswith("blocks"):
            by_blocks(lab, network, IMAGES // (2 if "then" in way else 1))
        if way not in ("refitted", "blocks alone"):
            distilled(lab, network, IMAGES // (2 if "then" in way else 1), way)
        seconds = time.process_time() - began
        agreement, divergence = lab.compared(network)
        click.echo(
            f"| {name} | {ratio:.0%} | {way} | {seconds:.0f} | {agreement:.4f} | {divergence:.5f} |"
        )


if __name__ == "__main__":
    main()
