"""How much the labels listen to every output of every layer, without a true label.

The Fisher information of the network's own labels: G = E[g g^T], where g is the gradient of
-log p_y with respect to what a layer writes and y is drawn from the network's own softmax
(docs/design.md section 1; for other labels than classes see `Scoring.surprise`). To second order,
an error e in what a layer writes changes the class probabilities by e^T G e / 2 nats.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from fcompress.forward.graph import run
from fcompress.forward.predictor import Predictor, as_predictor
from fcompress.forward.recording import Recording, recordings_for
from fcompress.structure.groups import Group

# A layer's outputs that the sampled labels happened not to listen to still matter a little: this
# share of the mean is added to the diagonal.
SMOOTHING = 0.1
FEW = 8  # examples that share a backward pass where units are switched off


def output_fisher(
    original: nn.Module | Predictor,
    batches: Sequence[Tensor],
    *,
    seed: int = 0,
    recordings: dict[int, Recording] | None = None,
) -> dict[str, Tensor]:
    """Fisher information of every layer's outputs, by one pass forward and backward.

    Args:
        original: A network in eval mode.
        batches: Inputs [N, ...], on the network's device.
        seed: Draws the labels.
        recordings: Recordings of the network that exist already, by batch size; more are added.

    Returns:
        For each layer, by the name of its weight, float64 [O, O]: summed over positions, mean
        over examples, smoothed. Layers that no label depends on are missing.
    """
    predictor = as_predictor(original)
    recordings = recordings_for(original, batches, recordings)
    tensors = {name: tensor.detach() for name, tensor in predictor.tensors().items()}
    generator = torch.Generator().manual_seed(seed)
    surprise = partial(predictor.scoring.surprise, generator=generator)
    sums: dict[str, Tensor] = {}
    for batch in batches:
        recording = recordings[len(batch)]
        for name, gradient in _gradients(recording, batch, tensors, surprise).items():
            rows = gradient
            if gradient.dim() != 2:
                rows = gradient.flatten(2).transpose(1, 2).reshape(-1, gradient.shape[1])
            product = (rows.T @ rows).double().cpu()
            sums[name] = sums[name] + product if name in sums else product
    examples = sum(len(b) for b in batches)
    return {name: _smoothed(total / examples) for name, total in sums.items()}


def unit_fisher(
    original: nn.Module | Predictor,
    groups: Sequence[Group],
    inputs: Tensor,
    *,
    seed: int = 0,
    recordings: dict[int, Recording] | None = None,
) -> dict[str, Tensor]:
    """How much the labels notice of each unit's absence, whatever reads it, to second order.

    A unit is switched off at its readers: its columns there go from their values to 0. Half the
    Fisher information of that switch is what it costs, E[(sum of w dL/dw over its columns)^2] / 2
    nats. It asks nothing of the readers but that torch can differentiate them: layers used
    several times, recurrent ones, transposed convolutions.

    Args:
        original: A network in eval mode.
        groups: Groups of units.
        inputs: Examples [N, ...], on the network's device.
        seed: Draws the labels.
        recordings: Recordings of the network that exist already, by batch size; more are added.

    Returns:
        For each group float64 [units], in nats.
    """
    predictor = as_predictor(original)
    parts = inputs.split(FEW)
    recordings = recordings_for(original, parts, recordings)
    tensors = {name: tensor.detach() for name, tensor in predictor.tensors().items()}
    names = sorted({slot.tensor for group in groups for slot in group.consumers})
    generator = torch.Generator().manual_seed(seed)
    found = {group.name: torch.zeros(group.size, dtype=torch.float64) for group in groups}
    for part in parts:
        recording = recordings[len(part)]
        weights = {name: tensors[name].clone().requires_grad_() for name in names}
        with torch.enable_grad():
            values = {recording.inputs[0]: part.detach().clone()}
            run(recording.steps, values, tensors | weights)
            loss = predictor.scoring.surprise(values[recording.outputs[0]], generator)
            gradients = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
        each = dict(zip(names, gradients, strict=True))
        for group in groups:
            # The labels of different examples are drawn independently, so that squares of sums
            # over the few examples of a part are sums of squares on average.
            switched = torch.zeros(group.size + 1, dtype=torch.float64)
            for slot in group.consumers:
                gradient = each[slot.tensor]
                if gradient is not None:
                    product = (gradient * tensors[slot.tensor]).double().cpu()
                    others = [d for d in range(product.dim()) if d != slot.dim]
                    columns = product.sum(others) if others else product
                    switched.index_add_(0, slot.units % (group.size + 1), columns)
            found[group.name] += switched[:-1].square() / 2
    return {name: total / max(len(inputs), 1) for name, total in found.items()}


def _gradients(
    recording: Recording,
    batch: Tensor,
    tensors: Mapping[str, Tensor],
    surprise: Callable[[Tensor], Tensor],
) -> dict[str, Tensor]:
    """Gradient with respect to each layer's output for labels drawn from what the scores say."""
    found: dict[str, Tensor] = {}

    def keep(name: str, gradient: Tensor) -> None:
        found[name] = gradient

    with torch.enable_grad():
        values = {recording.inputs[0]: batch.detach().clone()}
        at = 0
        for layer in recording.layers:
            run(recording.steps[at : layer.step + 1], values, tensors)
            at = layer.step + 1
            out = values[layer.out]
            if not out.requires_grad:
                # The clone is no leaf, so what follows may write in place.
                out = values[layer.out] = out.requires_grad_().clone()
            out.register_hook(lambda g, name=layer.weight: keep(name, g))
        run(recording.steps[at:], values, tensors)
        surprise(values[recording.outputs[0]]).backward()
    return found


def _smoothed(fisher: Tensor) -> Tensor:
    mean = fisher.diagonal().mean()
    return fisher + SMOOTHING * mean * torch.eye(len(fisher), dtype=fisher.dtype)
