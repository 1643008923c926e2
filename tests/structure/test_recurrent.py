"""Recurrent layers: what is in front of them, and their own states, gate by gate."""

import pytest
import torch
from cases.recurrent import Looped, Own, Packed, Rows
from torch import nn

from fcompress.structure.groups import find_groups
from fcompress.structure.paths import different_ways
from fcompress.surgery.excision import excise

STATES = 6
SETTINGS = {
    "one": {},
    "stacked": {"num_layers": 2},
    "both ways": {"bidirectional": True},
    "both": {"num_layers": 2, "bidirectional": True},
    "no bias": {"bias": False},
}
GATES = {nn.RNN: 1, nn.GRU: 3, nn.LSTM: 4}


def structure_of(model, steps=3):
    torch.manual_seed(1)
    return find_groups(model.eval(), torch.randn(4, steps, 8))


@pytest.mark.parametrize(
    ("kind", "how", "reads"),
    [
        (nn.RNN, "both", "outputs"),
        (nn.RNN, "one", "given states"),
        (nn.GRU, "one", "outputs"),
        (nn.GRU, "stacked", "last states"),
        (nn.GRU, "both ways", "given states"),
        (nn.GRU, "no bias", "last states"),
        (nn.LSTM, "one", "last states"),
        (nn.LSTM, "both ways", "outputs"),
        (nn.LSTM, "stacked", "given states"),
        pytest.param(nn.LSTM, "both", "last states", marks=pytest.mark.slow),
    ],
)
def test_states_and_what_stands_in_front_are_units(kind, how, reads):
    torch.manual_seed(0)
    model = Rows(kind, states=STATES, reads=reads, **SETTINGS[how])
    structure = structure_of(model)
    assert {g.name: g.size for g in structure.groups} == {"front": 7, "cell": STATES, "after": 5}
    assert [g.name for g in structure.not_pruned] == ["head"]
    slots = {(s.tensor, s.dim): s for s in structure.group("cell").slots}
    gates = torch.arange(STATES).repeat(GATES[kind])
    assert torch.equal(slots["cell.weight_hh_l0", 0].units, gates)
    assert torch.equal(slots["cell.weight_ih_l0", 0].units, gates)
    assert torch.equal(slots["cell.weight_hh_l0", 1].units, torch.arange(STATES))
    kept = {"front": torch.tensor([0, 2]), "cell": torch.tensor([1, 2, 5])}
    thin = excise(model, structure.groups, kept)
    assert (thin.cell.input_size, thin.cell.hidden_size) == (2, 3)
    assert thin(torch.randn(3, 5, 8)).shape == (3, 3)


def test_projected_states_and_what_they_are_made_of_are_two_groups():
    model = Rows(nn.LSTM, states=STATES, proj_size=4)
    structure = structure_of(model)
    sizes = {"front": 7, "cell": STATES, "cell#2": 4, "after": 5}
    assert {g.name: g.size for g in structure.groups} == sizes
    thin = excise(model, structure.groups, {"cell": torch.arange(3), "cell#2": torch.arange(2)})
    assert (thin.cell.hidden_size, thin.cell.proj_size) == (3, 2)


@pytest.mark.parametrize("how", ["one", "stacked"])
def test_one_step_that_reads_no_state_cuts_it_all_the_same(how):
    model = Rows(nn.GRU, states=STATES, **SETTINGS[how])
    structure = structure_of(model, steps=1)
    thin = excise(model, structure.groups, {"cell": torch.arange(2)})
    assert thin.cell.weight_hh_l0.shape == (6, 2)
    assert thin(torch.randn(3, 4, 8)).shape == (3, 3)


@pytest.mark.parametrize(
    "model",
    [
        Looped(nn.RNNCell),
        Looped(nn.GRUCell),
        Looped(nn.LSTMCell),
        Own(),
        Packed(nn.GRU),
        Packed(nn.LSTM, padded=True),
    ],
    ids=["RNNCell", "GRUCell", "LSTMCell", "own", "packed", "packed and padded"],
)
def test_cells_in_a_loop_and_packed_sequences(model):
    structure = structure_of(model)
    assert len(structure.groups) == 2
    assert [g.name for g in structure.not_pruned] == ["head"]
    kept = {g.name: torch.arange(2) for g in structure.groups}
    assert excise(model, structure.groups, kept)(torch.randn(4, 5, 8)).shape == (4, 3)


def test_a_first_state_that_was_learned_is_cut_along():
    structure = structure_of(Own())
    slots = {(s.tensor, s.dim): s.role for s in structure.group("inputs").slots}
    assert slots["begin", 1] == "between"


def test_states_that_are_normalised_together_are_not_pruned():
    structure = structure_of(Own(normalised=True))
    assert [g.name for g in structure.groups] == ["front"]
    assert any("layer normalisation" in g.reason for g in structure.not_pruned)


def test_a_state_that_all_others_meet_stays():
    class Reads(Rows):
        def forward(self, x):
            found, _ = self.cell(torch.relu(self.front(x)))
            return self.head(torch.relu(self.after(found[:, -1] * found[:, -1, :1])))

    structure = structure_of(Reads(nn.GRU, states=STATES))
    assert {g.name: g.size for g in structure.groups} == {"front": 7, "cell#2": 5, "after": 5}
    (first,) = (g for g in structure.not_pruned if g.name == "cell")
    assert first.reason == "one value for all units of another layer (aten.mul)"


@pytest.mark.parametrize("kind", GATES)
def test_a_batch_of_one_is_no_other_way_through_the_code(kind):
    model = Rows(kind).eval()
    ways, unreached = different_ways(model, [torch.randn(n, 5, 8) for n in (4, 1, 3)])
    assert len(ways) == 1
    assert not unreached
