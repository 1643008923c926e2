"""Which parameter a tensor is a view of, a copy of, or made of."""

import torch
from torch import nn

from fcompress.structure.parameters import ParameterViews


class Parts(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3))
        self.flat = nn.Parameter(torch.randn(24))
        self.register_buffer("table", torch.arange(6.0))


def views() -> tuple[Parts, ParameterViews]:
    model = Parts()
    return model, ParameterViews(model)


def test_views_are_known_by_their_memory():
    model, parameters = views()
    rows = model.weight[1:3].t()
    assert parameters.owner(rows) == "weight"
    name, index = parameters.source(rows)
    assert (name, index.tolist()) == ("weight", [[3, 6], [4, 7], [5, 8]])
    assert parameters.whole_copy(rows) is rows
    for stranger in (torch.zeros(4, 3), model.weight.detach().clone(), 3.0, None):
        assert parameters.owner(stranger) is None and not parameters.is_parameter(stranger)
    assert parameters.source(torch.zeros(4, 3)) is None


def test_a_dimension_of_a_view_runs_along_one_of_its_parameter():
    model, parameters = views()
    assert parameters.line(torch.zeros(3), 0) is None
    turned = parameters.line(model.weight.t(), 1)
    assert (turned.name, turned.dim, turned.at.tolist()) == ("weight", 0, [0, 1, 2, 3])
    part = parameters.line(model.weight[:, 1:], 1)
    assert (part.dim, part.at.tolist(), part.wraps) == (1, [1, 2], False)
    one = parameters.line(model.weight[2:3], 0)  # size one: told by the stride
    assert (one.dim, one.at.tolist()) == (0, [2])
    steps = parameters.line(model.flat.view(4, 6), 0)
    assert (steps.dim, steps.at.tolist()) == (0, [0, 6, 12, 18])
    assert parameters.line(model.weight.flatten(), 0).wraps


def test_copies_keep_the_places_of_their_elements():
    model, parameters = views()
    same, turned = model.weight.detach().clone(), model.weight.detach().t().contiguous()
    places = torch.arange(12).view(4, 3)
    parameters.copy_of(same, "weight", places)
    parameters.copy_of(turned, "weight", places.t())
    assert parameters.whole_copy(same) is parameters.tensors["weight"]
    assert parameters.whole_copy(turned) is None
    assert parameters.source(turned)[1].tolist() == places.t().tolist()
    assert parameters.names_in(turned) == {"weight"} and parameters.is_small(turned)


def test_results_keep_the_names_of_what_they_are_made_of():
    model, parameters = views()
    made = model.weight.detach().exp().sum() + model.table.sum()
    parameters.computed_from(made, [model.weight, model.table], "aten.sum")
    assert parameters.names_in(made) == {"weight", "table"}
    assert parameters.is_parameter(made) and not parameters.is_buffer(made)
    assert parameters.is_buffer(model.table) and not parameters.is_small(model.table)
    assert not parameters.is_small(made)
    why = "used through aten.sum, which excision cannot follow"
    assert parameters.aside == {"weight": why, "table": why}
    parameters.set_aside([made, 1.0], "another reason")
    assert set(parameters.aside.values()) == {"another reason"}
