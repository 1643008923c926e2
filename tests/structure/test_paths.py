"""Networks that execute other operators on other examples."""

import pytest
import torch
from cases.trained import CLASSES, examples
from torch import nn
from torch.nn import functional as F

import fcompress
from fcompress.errors import ResultWarning
from fcompress.structure.groups import find_groups
from fcompress.structure.paths import different_ways, ways_of_units
from fcompress.surgery.excision import excise


class ByValue(nn.Module):
    """One of two middle layers, by the mean of the batch's examples one by one."""

    def __init__(self, width=24):
        super().__init__()
        self.a, self.o = nn.Linear(6, width), nn.Linear(16, CLASSES)
        self.low, self.high = nn.Linear(width, 16), nn.Linear(width, 16)

    def forward(self, x):
        hidden = self.a(x).relu()
        if len(x) == 1:
            chosen = self.high if float(x.mean()) > 0 else self.low
            return self.o(chosen(hidden).relu())
        return torch.cat([self(one) for one in x.split(1)])


class BySize(nn.Module):
    """A layer more where the batch is small."""

    def __init__(self):
        super().__init__()
        self.a, self.more, self.o = nn.Linear(6, 24), nn.Linear(24, 24), nn.Linear(24, CLASSES)

    def forward(self, x):
        hidden = self.a(x).relu()
        if len(x) > 2:
            return self.o(hidden)
        return self.o(hidden + 0 * self.more(hidden))


class Experts(nn.Module):
    """Each example goes to the expert that a router chooses."""

    def __init__(self, experts=3):
        super().__init__()
        self.a = nn.Linear(6, 16)
        self.register_buffer("router", torch.eye(6)[:, :experts])
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 16)) for _ in range(experts)
        )
        self.o = nn.Linear(16, CLASSES)

    def forward(self, x):
        hidden = self.a(x).relu()
        weight, chosen = (x @ self.router).softmax(1).max(1)
        total = torch.zeros_like(hidden)
        for number, expert in enumerate(self.experts):
            rows = (chosen == number).nonzero().flatten()
            if len(rows):
                total = total.index_add(0, rows, expert(hidden[rows]) * weight[rows, None])
        return self.o(hidden + total)


class Loops(nn.Module):
    """The same block again until what it gives is small enough."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 16), nn.Linear(16, 20), nn.Linear(20, 16)
        self.o = nn.Linear(16, CLASSES)

    def forward(self, x):
        hidden = self.a(x)
        for _ in range(1 + int(x[0, 0] > 0)):
            hidden = hidden + 0.3 * self.c(self.b(hidden).relu())
        return self.o(hidden)


def trained(model):
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.reset_parameters()
    x, y = examples()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(25):
        optimizer.zero_grad()
        F.cross_entropy(model(x[:400]), y[:400]).backward()
        optimizer.step()
    return model.eval(), x


@pytest.mark.parametrize(
    ("kind", "sizes"),
    [(ByValue, [16, 24]), (BySize, [24]), (Loops, [16, 20]), (Experts, [12, 12, 12])],
)
def test_units_fit_on_every_way(kind, sizes):
    torch.manual_seed(1)
    model, x = kind().double().eval(), examples()[0].double()
    ways, unreached = different_ways(model, [x[:1], *x[1:40].split(1), x[:2], x[:64]])
    assert len(ways) > 1 and not unreached
    structure = find_groups(model, ways[0], also=ways[1:])
    assert sorted(g.size for g in structure.groups) == sizes
    half = {g.name: torch.arange(g.size // 2) for g in structure.groups}
    thin = excise(model, structure.groups, half)
    for batch in ways:
        assert thin(batch).shape == model(batch).shape


class Masked(nn.Module):
    """Attention among three words of two numbers; a mask is made only where some are padding."""

    def __init__(self, how="fused"):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(2, 8) for _ in range(3))
        self.o, self.how = nn.Linear(8, CLASSES), how

    def forward(self, x):
        x = x.view(-1, 3, 2)
        q, k, v = (
            layer(x).unflatten(-1, (2, 4)).transpose(1, 2) for layer in (self.q, self.k, self.v)
        )
        mask = None
        if bool((x[..., 0] < 0).any()):
            mask = (x[..., 0] >= 0) | (x[..., 1] > 0) | torch.tensor([True, False, False])
            mask = mask[:, None, None]
        if self.how == "fused":
            mixed = F.scaled_dot_product_attention(q, k, v, mask)
        else:
            scores = q @ k.mT
            if mask is not None and self.how == "filled":
                scores = scores.masked_fill(~mask, -1e4)
            elif mask is not None:
                away = torch.zeros(mask.shape, dtype=x.dtype)
                away[~mask] = -1e4
                scores = scores + away
            mixed = scores.softmax(-1) @ v
        return self.o(mixed.transpose(1, 2).flatten(2).mean(1))


@pytest.mark.parametrize("how", ["fused", "filled", "added"])
def test_a_mask_of_inputs_alone_is_no_other_way_for_units(how):
    torch.manual_seed(1)
    model, x = Masked(how).double().eval(), examples()[0].double()
    ways, _ = different_ways(model, [x[:8], x[:8].abs()])
    assert len(ways) == 2 and ways_of_units(model, ways) == 1


@pytest.mark.parametrize("kind", [ByValue, BySize, Loops, Experts])
def test_other_layers_are_other_ways_for_units(kind):
    model, x = kind().double().eval(), examples()[0].double()
    ways, _ = different_ways(model, [x[:1], *x[1:40].split(1), x[:2], x[:64]])
    assert ways_of_units(model, ways) > 1


@pytest.mark.parametrize("written", [False, True])
def test_what_is_done_to_units_on_one_way_only_counts(written):
    def call(model, x):
        hidden = model[0](x)
        if x[0, 0] > 0:
            if written:  # into a part of a tensor of constants, which is read as a whole
                table = torch.zeros(len(x), 8)
                table[:, :4] = hidden
                hidden = table.cumsum(1)[:, :4]
            else:
                hidden = hidden.relu()
        return model[1](hidden)

    model = nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 3)).eval()
    ways, _ = different_ways(model, [torch.ones(2, 2), -torch.ones(2, 2)], call=call)
    assert len(ways) == ways_of_units(model, ways, call=call) == 2


def test_one_run_is_not_enough():
    model, x = ByValue().double().eval(), examples()[0].double()
    ways, _ = different_ways(model, x[:40].split(1))
    for one, other in (ways, ways[::-1]):
        groups = find_groups(model, one).groups
        thin = excise(model, groups, {g.name: torch.arange(g.size // 2) for g in groups})
        thin(one)
        with pytest.raises(RuntimeError):
            thin(other)


@pytest.mark.parametrize("kind", [ByValue, Loops, Experts])
@pytest.mark.parametrize("method", ["prune", "hybrid"])
def test_the_compressed_network_runs_on_every_way(kind, method):
    model, x = trained(kind())
    with pytest.warns(ResultWarning, match="takes different ways through its code"):
        result = fcompress.shrink(model, x[:600], tol=0.2, method=method)
    assert result.macs["after"] < result.macs["before"]
    for one in x[600:640].split(1):
        result.model(one)
    result.model(x[600:])
    assert fcompress.verify(model, result.model, x[600:]).rate > 0.7


def test_what_no_example_reaches_is_said():
    class Rare(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, CLASSES))
            self.emergency = nn.Linear(6, CLASSES)

        def forward(self, x):
            return self.emergency(x) if float(x.abs().max()) > 1e6 else self.body(x)

    model, x = trained(Rare())
    with pytest.warns(ResultWarning, match="no calibration example reached emergency;"):
        result = fcompress.shrink(model, x[:600], tol=0.2)
    assert any("emergency" in line for line in result.warnings)
