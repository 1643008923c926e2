import pytest
import torch
from cases.planted import ARCHITECTURES, context_of, images, network
from torch import nn
from torch.func import functional_call

from fcompress.compress.methods import Prune
from fcompress.compress.ranking.divergence import ablation_effects
from fcompress.structure.groups import find_groups


def _by_definition(model, group, x):
    """Each unit zeroed at all its consumers in a forward of the whole network."""
    tensors = dict(model.named_parameters())
    reference = model(x.clone()).log_softmax(1)
    effects = []
    for unit in range(group.size):
        changed = {}
        for slot in group.consumers:
            tensor = changed.get(slot.tensor, tensors[slot.tensor])
            at = (slot.units == unit).nonzero().flatten()
            changed[slot.tensor] = tensor.index_fill(slot.dim, at, 0.0)
        ablated = functional_call(model, changed, (x.clone(),)).log_softmax(1)
        effects.append(float((reference.exp() * (reference - ablated)).sum(1).mean()))
    return torch.tensor(effects, dtype=torch.float64)


def _check(model, x):
    groups = find_groups(model, x[:4]).groups
    found = ablation_effects(model, groups, x)
    assert list(found) == [group.name for group in groups]
    for group in groups:
        expected = _by_definition(model, group, x)
        assert float(expected.max()) > 1e-6
        torch.testing.assert_close(found[group.name], expected, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_effect_is_the_divergence_of_a_network_with_the_unit_zeroed(name):
    _check(network(name, 0), images(24, 0))


class InPlace(nn.Module):
    """Writes, after the first consumer has run, into what was there before it, or into views."""

    def __init__(self, way):
        super().__init__()
        self.stem, self.body = nn.Conv2d(2, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.next, self.head = nn.Conv2d(6, 5, 1), nn.Linear(5, 3)
        self.way = way

    def forward(self, x):
        x = self.stem(x).relu()
        early = x.flatten(2)
        y = self.body(x)
        if self.way == "into the value":
            x += y
        elif self.way == "into a later view":
            view = x.flatten(2)
            view += y.flatten(2)
        else:
            early += y.flatten(2)
        return self.head(self.next(x.relu()).relu_().mean((2, 3)))


@pytest.mark.parametrize("way", ["into the value", "into a later view", "into an earlier view"])
def test_units_do_not_leave_traces_for_the_next(way):
    torch.manual_seed(0)
    model = InPlace(way).double().eval().requires_grad_(False)
    x = images(16, 1)
    assert len(find_groups(model, x[:4]).groups) == 2
    before = x.clone()
    _check(model, x)
    assert torch.equal(x, before)


def test_a_unit_whose_ablation_gives_no_numbers_must_not_go():
    class Quotient(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.gate, self.head = (
                nn.Linear(5, 4),
                nn.Linear(4, 1, bias=False),
                nn.Linear(4, 3),
            )

        def forward(self, x):
            x = self.first(x).relu() + 1
            return self.head(x) / self.gate(x)

    torch.manual_seed(0)
    model = Quotient().double().eval().requires_grad_(False)
    model.gate.weight[:] = torch.tensor([1.0, 0, 0, 0])  # without unit 0: a division by zero
    x = torch.randn(20, 5, dtype=torch.float64)
    groups = tuple(g for g in find_groups(model, x[:4]).groups if g.name == "first")
    effects = ablation_effects(model, groups, x)["first"]
    assert effects[0] == torch.inf
    assert bool(effects[1:].isfinite().all())


def test_what_prune_removes_first_is_what_matters_least():
    model, x = network("residual, norm", 0), images(32, 0)
    context = context_of(model, x)
    removal_order = Prune().removal_order(context)
    effects = ablation_effects(model, context.structure.groups, x)
    for name, path in removal_order.groups.items():
        ordered = effects[name][path.order]
        assert bool((ordered.diff() <= 0).all())
