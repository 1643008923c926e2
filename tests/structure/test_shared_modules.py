"""Modules that are used several times: a unit goes in all uses at once."""

import pytest
import torch
from cases.trained import CLASSES, examples
from torch import nn
from torch.nn import functional as F

import fcompress
from fcompress.compress.ranking.fisher import unit_fisher
from fcompress.structure.groups import find_groups


def wide(inputs, outputs):
    return nn.Conv2d(inputs, outputs, 3, padding=1)


class Siamese(nn.Module):
    def __init__(self):
        super().__init__()
        self.f = nn.Sequential(nn.Flatten(), nn.Linear(48, 12), nn.ReLU(), nn.Linear(12, 8))
        self.o = nn.Linear(8, 3)

    def forward(self, x):
        return self.o(self.f(x) - 0.5 * self.f(x.flip(2)).abs())


class Attention(nn.Module):
    """Two poolings go through one small network, whose result scales the channels."""

    def __init__(self):
        super().__init__()
        self.a, self.m = wide(3, 8), nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 8))
        self.o = nn.Linear(8, 3)

    def forward(self, x):
        x = self.a(x).relu()
        scale = torch.sigmoid(self.m(x.mean((2, 3))) + self.m(x.amax((2, 3))))
        return self.o((x * scale[:, :, None, None]).mean((2, 3)))


class Scales(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.tower = wide(3, 8), wide(8, 8), wide(8, 6)
        self.norm, self.o = nn.BatchNorm2d(6), nn.Linear(12, 3)

    def forward(self, x):
        fine = self.a(x).relu()
        coarse = self.b(fine)[:, :, ::2, ::2].relu()
        both = [self.norm(self.tower(part)).relu().amax((2, 3)) for part in (fine, coarse)]
        return self.o(torch.cat(both, 1))


class Repeated(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = wide(3, 8), wide(8, 10), wide(10, 8)
        self.o = nn.Linear(8, 3)

    def forward(self, x):
        x = self.a(x)
        for _ in range(3):
            x = x + self.c(self.b(x).relu())
        return self.o(x.mean((2, 3)))


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.same, self.head = wide(3, 8), wide(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.same(self.same(self.stem(x).relu()).relu()).mean((2, 3)))


NETWORKS = {
    Siamese: {"f.1": 12, "f.3": 8},
    Attention: {"a": 8, "m.0": 4},
    Scales: {"a": 8, "tower": 6},
    Repeated: {"a": 8, "b": 10},
    Twice: {"stem": 8},
}


def build(kind):
    torch.manual_seed(0)
    return kind().double().eval(), torch.randn(4, 3, 4, 4, dtype=torch.float64)


@pytest.mark.parametrize("kind", NETWORKS)
def test_units_of_all_uses_go_together(kind):
    structure = find_groups(*build(kind))
    assert {g.name: g.size for g in structure.groups} == NETWORKS[kind]
    assert structure.proof["error"] < 1e-10 and structure.proof["change"] > 1e-6


def test_a_weight_that_writes_here_and_reads_there_stays():
    class Tied(nn.Module):
        """An embedding whose table is the output layer too."""

        def __init__(self):
            super().__init__()
            self.table = nn.Parameter(torch.randn(20, 8))
            self.inner, self.back = nn.Linear(8, 16), nn.Linear(16, 8)

        def forward(self, tokens):
            x = F.embedding(tokens, self.table)
            return (x + self.back(self.inner(x).relu())) @ self.table.T

    torch.manual_seed(0)
    structure = find_groups(Tied().eval(), torch.randint(20, (4, 5)))
    assert [(g.name, g.size) for g in structure.groups] == [("inner", 16)]
    reasons = [g.reason for g in structure.not_pruned]
    assert any("table writes units and reads them elsewhere" in reason for reason in reasons)


@pytest.mark.parametrize("method", ["prune", "hybrid"])
def test_they_are_shrunk_and_saved(method, tmp_path):
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.f = nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU())
            self.o = nn.Linear(16, CLASSES)

        def forward(self, x):
            return self.o(self.f(x) - self.f(-x))

    torch.manual_seed(0)
    x, y = examples()
    model = Pair()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    result = fcompress.shrink(model.eval(), x, tol=0.1, method=method)
    assert result.certified and result.macs["after"] < 0.7 * result.macs["before"]
    # Both uses are counted.
    assert result.macs["before"] == 2 * (6 * 24 + 24 * 16) + 16 * CLASSES
    fcompress.save(result.model, tmp_path / "small.pt")
    again = fcompress.load(tmp_path / "small.pt", arch=Pair)
    torch.testing.assert_close(again(x[:5]), result.model(x[:5]))


def test_what_a_unit_costs_is_what_its_absence_does():
    """Against the divergence measured with each unit scaled down a little, for many draws."""
    torch.manual_seed(0)
    model = Siamese().double().eval()
    x = torch.randn(400, 3, 4, 4, dtype=torch.float64)
    groups = find_groups(model, x[:4]).groups
    found = unit_fisher(model, groups, x, seed=1)
    group = next(g for g in groups if g.name == "f.3")
    wanted, before = [], model(x).log_softmax(1)
    slight = 0.01
    for unit in range(group.size):
        with torch.no_grad():
            model.o.weight[:, unit] *= 1 - slight
            after = model(x).log_softmax(1)
            model.o.weight[:, unit] /= 1 - slight
        loss = F.kl_div(after, before, reduction="batchmean", log_target=True)
        wanted.append(float(loss) / slight**2)
    wanted = torch.tensor(wanted, dtype=torch.float64)
    ratio = found["f.3"] / wanted
    assert float(ratio.min()) > 0.5 and float(ratio.max()) < 2
    assert torch.equal(
        found["f.3"].argsort()[-2:].sort().values, wanted.argsort()[-2:].sort().values
    )
