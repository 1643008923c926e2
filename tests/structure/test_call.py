"""Networks that are run otherwise than by handing them one tensor: `find_groups(call=...)`."""

import copy
from dataclasses import replace

import pytest
import torch
from cases.small_networks import wake
from torch import nn

import fcompress
from fcompress.data.packing import Packing
from fcompress.errors import UnsupportedNetworkError
from fcompress.forward.running import dtype_of
from fcompress.nn.local_response_norm import LocalResponseNorm
from fcompress.structure.groups import Structure, find_groups
from fcompress.surgery.preparation import prepare

N, SIDE = 3, 5


class Two(nn.Module):
    """An image and numbers; scores, and features that nobody asked for.

    `shared` is one parameter under two names, met by the units of two layers.
    """

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 6, 3, padding=1), nn.LocalResponseNorm(3)
        self.numbers = nn.Linear(4, 6)
        self.shared = nn.Parameter(torch.randn(6))
        self.also = self.shared
        self.mixed, self.head = nn.Linear(12, 7), nn.Linear(7, 4)

    def features(self, image, numbers):
        image = self.norm(torch.relu(self.conv(image))).mean((2, 3)) * self.shared
        numbers = torch.tanh(self.numbers(numbers)) * self.also
        return torch.relu(self.mixed(torch.cat([image, numbers], 1)))

    def forward(self, image, *, numbers):
        features = self.features(image, numbers)
        return {"features": features, "scores": (self.head(features),)}


class One(Two):
    """The same by hand: one tensor in, scores out."""

    def forward(self, packed):
        image, numbers = packed.split([2 * SIDE * SIDE, 4], 1)
        return self.head(self.features(image.view(-1, 2, SIDE, SIDE), numbers))


def unpacked(module, packed):
    image, numbers = packed.split([2 * SIDE * SIDE, 4], 1)
    return module(image.view(-1, 2, SIDE, SIDE), numbers=numbers)["scores"][0]


def made(kind: type[nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = kind()
        wake(model)
    return model.double().eval()


def packed() -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(N, 2 * SIDE * SIDE + 4, generator=generator, dtype=torch.float64)


def said(structure: Structure) -> list:
    """Everything in a structure, as something that can be compared."""
    groups = (*structure.groups, *structure.not_pruned)
    plain = [
        (replace(g, slots=()), [(s.tensor, s.dim, s.role, s.units.tolist()) for s in g.slots])
        for g in groups
    ]
    return [plain, structure.contractions, structure.unused, structure.proof]


def test_it_is_found_and_proven_like_the_network_written_by_hand():
    two, one, x = made(Two), made(One), packed()
    prepared = prepare(two, x, call=unpacked)
    assert isinstance(prepared.norm, LocalResponseNorm)
    structure = find_groups(prepared, x, call=unpacked)
    assert {g.name: g.size for g in structure.groups} == {"conv": 6, "mixed": 7}
    assert {s.tensor for s in structure.group("conv").producers} == {
        "conv.weight",
        "numbers.weight",
    }
    assert structure.proof["error"] < 1e-12 < structure.proof["change"]
    assert said(structure) == said(find_groups(prepare(one, x), x))


def test_coverage_is_the_same_too():
    found = fcompress.coverage(made(Two), packed(), call=unpacked)
    expected = fcompress.coverage(made(One), packed())
    same = {"seconds": 0.0, "cpu_seconds": 0.0}
    assert replace(found, **same) == replace(expected, **same)
    assert found.error is None and found.change > 0


def test_several_inputs_packed_as_bytes():
    """As `data.packing` hands them on: what unpacks them is no part of the network either."""
    image, numbers = packed().split([2 * SIDE * SIDE, 4], 1)
    inputs = {"image": image.view(N, 2, SIDE, SIDE), "numbers": numbers}
    packing = Packing.of(inputs)

    def call(module, x):
        positional, named = packing.unpack(x, dtype_of(module))
        return module(*positional, **named)["scores"]

    x = packing.pack(inputs)
    structure = find_groups(prepare(made(Two), x, call=call), x, call=call)
    expected = find_groups(prepare(made(One), packed()), packed())
    assert said(structure) == said(expected)


def test_outputs_that_count_are_never_excised():
    def all_of_it(module, x):
        image, numbers = x.split([2 * SIDE * SIDE, 4], 1)
        return module(image.view(-1, 2, SIDE, SIDE), numbers=numbers)

    x = packed()
    structure = find_groups(prepare(made(Two), x, call=all_of_it), x, call=all_of_it)
    assert {g.name for g in structure.groups} == {"conv"}
    assert {g.name: g.reason for g in structure.not_pruned}["mixed"] == "output layer"


def test_a_module_may_be_the_call_and_nothing_stays_on_the_network():
    class Unpacks(nn.Module):
        def forward(self, module, x):
            return unpacked(module, x)

    model, x = made(Two), packed()
    before = copy.deepcopy(model.__dict__)
    structure = find_groups(prepare(model, x, call=Unpacks()), x, call=Unpacks())
    assert len(structure.groups) == 2
    assert model.__dict__.keys() == before.keys()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_network_that_does_not_run_says_so():
    with pytest.raises(UnsupportedNetworkError, match="does not run"):
        find_groups(made(Two), packed())
    with pytest.raises(UnsupportedNetworkError, match="does not run"):
        prepare(made(Two), packed())


def test_the_old_name_of_what_is_not_pruned():
    structure = find_groups(made(One), packed())
    with pytest.warns(DeprecationWarning, match="not_pruned"):
        assert structure.left_alone == structure.not_pruned
