"""What the reconstruction rivals share: statistics of the wide network, and folding by channels.

A layer reads units as channels: its weight is seen as [outputs, channels, places], where the
places of a channel are the taps of a kernel, or the positions of a flattened feature map. To fold
removed units into kept ones is to multiply by a map [channels, kept channels], the same for all
places. The rivals differ in how they choose the units and in how they get the map.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn

from benchmarks.rivals.base import Setting
from fcompress.compress.refitting.samples import Target, collect_targets, consumers_of, unit_columns
from fcompress.forward.graph import Layer
from fcompress.forward.recording import Recording, recordings_for
from fcompress.forward.running import tensors_of
from fcompress.surgery.excision import excise, kept_indices
from fcompress.surgery.units import Group


@dataclass(frozen=True)
class Wide:
    """The wide network as the rivals see it.

    Attributes:
        recordings: Its recording for each batch size.
        targets: Rows of every layer, by the name of its weight.
        tensors: Parameters and buffers by name.
        groups: Groups whose every consumer is a whole layer; the others keep all their units.
    """

    recordings: dict[int, Recording]
    targets: dict[str, Target]
    tensors: dict[str, Tensor]
    groups: tuple[Group, ...]


@lru_cache(maxsize=1)
def wide_of(setting: Setting) -> Wide:
    """One sweep over the wide network, shared by all rivals."""
    recordings = recordings_for(setting.model, setting.batches)
    targets = collect_targets(
        setting.model, setting.batches, seed=setting.seed, recordings=recordings
    )
    usable = []
    for group in setting.structure.groups:
        consumers = consumers_of(group, targets) or ()
        if consumers and all(unit_columns(t.layer, s) is not None for s, t in consumers):
            usable.append(group)
    tensors = tensors_of(setting.model)
    if not usable:
        raise ValueError("the consumers of every group are more than plain layers; nothing to do")
    return Wide(recordings, targets, tensors, tuple(usable))


@dataclass(frozen=True)
class Reader:
    """One layer (or one group of a grouped convolution) that reads units.

    Attributes:
        weight: Name of its weight.
        rows: Which of its outputs, a slice.
        columns: int64 [channels, positions]: columns of the weight that hold each channel.
        gram: float64 [channels, channels]: uncentred second moment of the channels as the wide
            network has them; positions are further examples.
    """

    weight: str
    rows: slice
    columns: Tensor
    gram: Tensor


@lru_cache(maxsize=1)
def readers_of(setting: Setting) -> list[Reader]:
    """Every layer that reads units of a usable group, in order."""
    wide = wide_of(setting)
    names = {slot.tensor for group in wide.groups for slot in group.consumers}
    found = []
    for name, target in wide.targets.items():
        if name not in names:
            continue
        matrix = as_matrix(wide.tensors[name], target.layer)
        width = matrix.shape[1]
        columns = flattened(target.layer, name, wide.groups)
        if columns is None:
            columns = torch.arange(width).unsqueeze(1)
        parts = target.inputs.shape[1] // width  # groups of a convolution
        outputs = len(matrix) // parts
        for part in range(parts):
            gram = second_moment(target.inputs[:, columns + part * width])
            rows = slice(part * outputs, (part + 1) * outputs)
            found.append(Reader(name, rows, columns, gram))
    return found


def as_matrix(weight: Tensor, layer: Layer) -> Tensor:
    """A view of a layer's weight: [outputs, inputs of a convolution group, taps]."""
    if layer.convolution is not None:
        return weight.view(*weight.shape[:2], -1)
    return (weight.T if layer.inputs_first else weight).unsqueeze(2)


def flattened(layer: Layer, weight: str, groups: Sequence[Group]) -> Tensor | None:
    """Columns of each unit where a linear layer reads flattened feature maps.

    Returns:
        int64 [units, positions], or None for every other layer.
    """
    slots = [s for g in groups for s in g.consumers if s.tensor == weight]
    if layer.convolution is not None or len(slots) != 1 or bool((slots[0].units < 0).any()):
        return None
    columns = unit_columns(layer, slots[0])
    return None if columns is None or columns.shape[1] < 2 else columns


def second_moment(rows: Tensor) -> Tensor:
    """Mean of x x^T over rows [n, channels, positions], positions as examples, in float64."""
    flat = rows.transpose(1, 2).flatten(0, 1).double()
    return flat.T @ flat / len(flat)


def unit_rows(target: Target, columns: Tensor) -> Tensor:
    """The units of a group as one consumer reads them: float64 [rows, units].

    Args:
        target: Rows of the consumer.
        columns: int64 [units, positions] (`samples.unit_columns`).
    """
    return target.inputs[:, columns].transpose(1, 2).flatten(0, 1).double()


def same_share(orders: Mapping[str, Tensor], amount: float) -> dict[str, Tensor]:
    """Keep the same share of every group: the head of each order, at least one unit.

    Args:
        orders: For each group its units, those that stay longest first.
        amount: Share of the units that goes, in (0, 1).

    Returns:
        Sorted kept units of each group.
    """
    return {
        name: order[: max(1, round((1 - amount) * len(order)))].sort().values
        for name, order in orders.items()
    }


def fold_and_excise(setting: Setting, kept: Mapping[str, Tensor], ridge: float) -> nn.Module:
    """Express what goes by what stays in every layer that reads it, then excise.

    Each reader's channels x are approximated by M x_kept with least squares on the wide
    network's second moments: M = G[:, kept] (G[kept, kept] + ridge * mean(diag) * I)^-1.

    Args:
        setting: Holds the wide network.
        kept: Kept units of each group.
        ridge: Relative to the mean second moment of the kept channels; 0 for the solution of
            least norm.

    Returns:
        The thin network.
    """
    wide = wide_of(setting)
    keep = kept_indices(wide.tensors, wide.groups, kept)
    folded = copy.deepcopy(setting.model)
    parameters = dict(folded.named_parameters())
    with torch.no_grad():
        for reader in readers_of(setting):
            layer = wide.targets[reader.weight].layer
            stays = keep.get((reader.weight, 0 if layer.inputs_first else 1))
            if stays is None:
                continue
            staying = torch.isin(reader.columns[:, 0], stays)
            if bool(staying.all()):
                continue
            matrix = as_matrix(parameters[reader.weight], layer)[reader.rows]
            by_channel = matrix[:, reader.columns].double()
            guess = channel_map(reader.gram, staying, ridge)
            new = torch.einsum("ocpt,ck->okpt", by_channel, guess)
            matrix[:, reader.columns[staying]] = new.to(matrix.dtype)
    return excise(folded, wide.groups, kept, share=True).eval()


def channel_map(gram: Tensor, staying: Tensor, ridge: float) -> Tensor:
    """M [channels, kept] of `fold_and_excise` for a second moment [channels, channels]."""
    inner = gram[staying][:, staying]
    if ridge > 0:
        inner = inner + ridge * inner.diagonal().mean() * torch.eye(len(inner), dtype=inner.dtype)
    return gram[:, staying] @ torch.linalg.pinv(inner, hermitian=True)
