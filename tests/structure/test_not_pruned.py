"""What must not be excised is not pruned and named, and wrong groups do not get through."""

import pytest
import torch
from cases.small_networks import build, conv, example, head, wake
from cases.zeroing import unaccounted
from torch import nn
from torch.nn import functional as F

from fcompress.structure import tracing
from fcompress.structure.groups import Structure, find_groups

IMAGES = (2, 3, 6, 6)


def find(model: nn.Module, *shape: int) -> Structure:
    torch.manual_seed(0)
    model = model.double().eval()
    wake(model)
    structure = find_groups(model, torch.randn(*shape, dtype=torch.float64))
    assert not unaccounted(model, structure)
    assert all(g.reason for g in structure.not_pruned)
    return structure


def reasons(structure: Structure) -> dict[str, str]:
    return {g.name: g.reason or "" for g in structure.not_pruned}


class Between(nn.Module):
    """conv1 -> something -> conv2 -> output: only the units of conv1 pass the something."""

    def __init__(self, something, channels: int = 8):
        super().__init__()
        self.conv1, self.conv2, self.head = conv(3, 8), conv(channels, 6), head(6)
        self.something = something

    def forward(self, x):
        x = self.something(torch.relu(self.conv1(x)))
        return self.head(torch.relu(self.conv2(x)))


class Channels(nn.LayerNorm):
    """Layer normalisation over the channels of an image."""

    def forward(self, x):
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Efficient(nn.Module):
    """Channel attention by a convolution that slides over the channels."""

    def __init__(self):
        super().__init__()
        self.slide = nn.Conv1d(1, 1, 3, padding=1, bias=False)

    def forward(self, x):
        gate = self.slide(x.mean((2, 3)).unsqueeze(1))
        return x * torch.sigmoid(gate).transpose(1, 2).unsqueeze(-1)


class HandWeightNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.v, self.g = nn.Parameter(torch.randn(8, 8, 3, 3)), nn.Parameter(torch.ones(8, 1, 1, 1))

    def forward(self, x):
        weight = self.g * self.v / self.v.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        return F.conv2d(x, weight, padding=1)


class EachPosition(nn.Module):
    """A weight of its own for each position."""

    def __init__(self):
        super().__init__()
        self.weights = nn.Parameter(torch.randn(36, 8, 8))

    def forward(self, x):
        rows = x.flatten(2).permute(2, 0, 1)
        return torch.bmm(rows, self.weights).permute(1, 2, 0).view_as(x)


def constant(x):
    return x * torch.arange(1.0, 9.0, dtype=x.dtype).view(1, -1, 1, 1)


def spectrum(x):
    return torch.fft.fft2(x).real


def spatial_attention(x):
    return x * torch.sigmoid(x.mean(1, keepdim=True))


@pytest.mark.parametrize(
    ("something", "reason"),
    [
        (Channels(8), "layer normalisation mixes its channels"),
        (nn.GroupNorm(1, 8), "group normalisation mixes its channels"),
        (
            lambda x: F.rms_norm(x.permute(0, 2, 3, 1), (8,)).permute(0, 3, 1, 2),
            "can only go all together, because of a mean over them",
        ),
        (lambda x: F.layer_norm(x, x.shape[1:]), "layer normalisation mixes its channels"),
        (nn.Softmax(1), "softmax over units mixes them"),
        (lambda x: x * x.mean((2, 3), True).softmax(1), "softmax over units mixes them"),
        (lambda x: x.cumsum(1), "aten.cumsum runs over units"),
        (spectrum, "operator not understood: aten._fft"),
        (lambda x: x.sort(1).values, "operator not understood: aten.sort"),
        (
            lambda x: x @ torch.linalg.inv(x @ x.mT + torch.eye(6)),
            "not understood: aten.linalg_inv",
        ),
        (lambda x: F.local_response_norm(x, 3), "pools over units"),
        (lambda x: F.max_pool1d(x.flatten(2).mT, 3, 1, 1).mT.view_as(x), "pools over units"),
        (spatial_attention, "can only go all together, because of a mean over them"),
        (lambda x: F.normalize(x, dim=1), "can only go all together, because of a norm over them"),
        (
            Efficient(),
            "all together, because of a convolution that slides over units in Conv1d something.",
        ),
        (HandWeightNorm(), "its weight is computed from other parameters"),
        (nn.utils.parametrizations.weight_norm(conv(8, 8)), "computed from other parameters"),
        (nn.utils.parametrizations.spectral_norm(conv(8, 8)), "computed from other parameters"),
        (EachPosition(), "a different weight for each example or position"),
        (lambda x: x.view(2, 8, 6, 6), "the forward does not run at another width (shape '[2, 8"),
        (constant, "the forward does not run at another width"),
        (lambda x: x * x.shape[1], "excising its units is not the same as zeroing them"),
        (
            lambda x: F.conv2d(x, x.mean(0)[:8, None, :3, :3], groups=8, padding=1),
            "not a parameter",
        ),
    ],
)
def test_units_that_something_keeps_from_going(something, reason):
    structure = find(Between(something), *IMAGES)
    assert reason in reasons(structure)["conv1"]
    # What the something has nothing to do with can still be excised.
    assert structure.group("conv2").size == 6


def test_parameters_behind_computed_weights_are_named():
    structure = find(Between(HandWeightNorm()), *IMAGES)
    assert set(structure.unused) == {"something.v", "something.g"}
    assert all("excision cannot follow" in why for why in structure.unused.values())
    structure = find(Between(EachPosition()), *IMAGES)
    assert set(structure.unused) == {"something.weights"}


def test_one_value_for_all_units_belongs_to_none():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.gain, self.rows = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(6, 1))

        def forward(self, x):
            return x * self.gain + self.rows

    structure = find(Between(Scaled()), *IMAGES)
    assert {"conv1", "conv2"} == {g.name for g in structure.groups}
    assert set(structure.unused.values()) == {"one value for all units"}
    assert set(structure.unused) == {"something.gain", "something.rows"}


def test_a_weight_tied_to_its_own_transpose():
    class Autoencoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.first = nn.Parameter(torch.randn(9, 7)), nn.Linear(7, 7)

        def forward(self, x):
            hidden = torch.relu(F.linear(torch.relu(self.first(x)), self.weight))
            return hidden @ self.weight

    structure = find(Autoencoder(), 2, 7)
    assert not structure.groups
    assert all("shared weight" in why or "output" in why for why in reasons(structure).values())


def test_shared_statistics_tie_units_together():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.norm = conv(3, 8), conv(3, 8), nn.BatchNorm2d(8)
            self.c, self.head = conv(16, 6), head(6)

        def forward(self, x):
            both = torch.cat([self.norm(self.a(x)), self.norm(self.b(x)).relu()], 1)
            return self.head(self.c(both).relu())

    structure = find(Shared(), *IMAGES)
    assert structure.group("a").size == 8
    assert {s.tensor for s in structure.group("a").producers} == {"a.weight", "b.weight"}


def test_multihead_attention_is_made_for_one_width():
    class Attentive(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.attention = (
                nn.Linear(3, 8),
                nn.MultiheadAttention(8, 2, batch_first=True),
            )
            self.fc1, self.fc2 = nn.Linear(8, 7), nn.Linear(7, 5)

        def forward(self, x):
            x = self.embed(x)
            x = x + self.attention(x, x, x)[0]
            return self.fc2(torch.relu(self.fc1(x)))

    structure = find(Attentive(), 2, 4, 3)
    assert {g.name for g in structure.groups} == {"fc1"}
    left = reasons(structure)
    assert left["embed"] == left["attention"] == "nn.MultiheadAttention is made for one width"


def test_a_layer_norm_within_each_head_does_not_mix_units():
    class Normed(nn.Module):
        def __init__(self):
            super().__init__()
            self.qk, self.v, self.out = nn.Linear(5, 24), nn.Linear(5, 12), nn.Linear(12, 4)
            self.norm = nn.LayerNorm(3)

        def forward(self, x):
            q, k = self.qk(x).view(2, 6, 2, -1, 3).permute(2, 0, 3, 1, 4)
            v = self.v(x).view(2, 6, -1, 3).transpose(1, 2)
            y = (self.norm(q) @ self.norm(k).mT).softmax(-1) @ v
            return self.out(y.transpose(1, 2).flatten(2))

    structure = find(Normed(), 2, 6, 5)
    assert {g.name: g.size for g in structure.groups} == {"qk": 4}
    assert structure.unused == dict.fromkeys(
        ("norm.weight", "norm.bias"), "one value for all units"
    )


def test_the_input_is_never_excised():
    class Skip(nn.Module):
        def __init__(self):
            super().__init__()
            self.back, self.head, self.unused = conv(3, 3), head(3), nn.Linear(2, 2)
            self.shift = nn.Parameter(torch.ones(3, 1, 1))

        def forward(self, x):
            return self.head(x + self.shift + self.back(x))

    structure = find(Skip(), *IMAGES)
    assert not structure.groups
    assert reasons(structure)["back"].startswith("the forward does not run at another width")
    unused = dict.fromkeys(("unused.weight", "unused.bias"), "not used in the forward pass")
    assert structure.unused == {"shift": "belongs to no unit", **unused}


def test_units_that_nobody_reads():
    class Ignored(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.ignored, self.head = conv(3, 6), conv(3, 7), head(6)

        def forward(self, x):
            self.ignored(x)
            return self.head(self.used(x))

    assert reasons(find(Ignored(), *IMAGES))["ignored"] == "no layer reads it that could do without"


class Aside(nn.Module):
    """Computes something of its hidden units that it does not return."""

    def __init__(self, what):
        super().__init__()
        self.conv1, self.conv2, self.head = conv(3, 8), conv(8, 6), head(6)
        self.what, self.log = what, {}

    def forward(self, x):
        x = torch.relu(self.conv1(x))
        self.log["last"] = self.what(x)
        return self.head(torch.relu(self.conv2(x)))


@pytest.mark.parametrize(
    "what",
    [
        lambda x: x.square().mean(),
        lambda x: x.softmax(1).sum((2, 3)),
        lambda x: torch.linalg.svdvals(x),
        lambda x: x.clone().mul_(x.mean(1, keepdim=True)),
        lambda x: x.flatten(1) @ x.flatten(1).T,
    ],
)
def test_what_no_output_depends_on_ties_nothing(what):
    structure = find(Aside(what), *IMAGES)
    assert [(g.name, g.size) for g in structure.groups] == [("conv1", 8), ("conv2", 6)]


def test_what_is_written_into_an_output_counts():
    class Written(Aside):
        def forward(self, x):
            x = torch.relu(self.conv1(x))
            view = x.view(x.shape)  # another tensor of the same memory
            view.mul_(x.mean(1, keepdim=True))
            return self.head(torch.relu(self.conv2(x)))

    assert "all together" in reasons(find(Written(None), *IMAGES))["conv1"]


# Negative controls: rules that are wrong give groups that are wrong, and the proof must say so.


class Reader(nn.Module):
    """conv1 is read by conv2 and by a mean over its channels."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2, self.head = conv(3, 8), conv(8, 6), head(6)
        self.reader = conv(1, 6, 1)

    def forward(self, x):
        x = torch.relu(self.conv1(x))
        return self.head(torch.relu(self.conv2(x)) + self.reader(x.mean(1, keepdim=True)))


def forgetful(*which: int):
    """A rule that forgets some of the means over channels: their results belong to nobody."""
    rule, count = tracing.reduction, 0

    def reduction(tracer, func, args, kwargs, out):
        nonlocal count
        over_channels = args[1] == [1]
        count += over_channels
        if not (over_channels and count - 1 in which):
            rule(tracer, func, args, kwargs, out)

    return reduction


@pytest.mark.parametrize("silent", [False, True])
def test_a_reader_that_was_missed(monkeypatch, silent):
    assert "all together" in reasons(find(Reader(), *IMAGES))["conv1"]
    monkeypatch.setattr(tracing, "reduction", forgetful(0))
    model = Reader().double()
    if silent:  # zeros hide the wiring, so the experiment replaces them
        nn.init.zeros_(model.reader.weight)
    structure = find_groups(model, torch.randn(*IMAGES, dtype=torch.float64))
    assert reasons(structure)["conv1"].startswith("somebody else reads its units")
    assert "conv2" in {g.name for g in structure.groups}


def test_a_movement_that_was_misread(monkeypatch):
    def unmoved(tracer, func, args, kwargs, out):
        """Ids stay in the order of memory, as if channels still came first."""
        tracer.set(out, tracer.known(args[0]).reshape(out.shape))

    name = "PermuteFlatten"
    assert "conv" in {g.name for g in find_groups(build(name), example(name)).groups}
    monkeypatch.setitem(tracing._RULES, "permute", unmoved)
    structure = find_groups(build(name), example(name))
    assert not structure.groups
    assert "zeroing them" in reasons(structure)["conv"]


def test_a_culprit_does_not_spoil_the_others(monkeypatch):
    """One wrong group among many is found by taking them apart."""

    class Many(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList(Reader() for _ in range(5))
            self.join = nn.ModuleList(conv(3, 3) for _ in range(5))

        def forward(self, x):
            return sum(b(torch.relu(j(x))) for b, j in zip(self.blocks, self.join, strict=True))

    monkeypatch.setattr(tracing, "reduction", forgetful(2))
    structure = find(Many(), *IMAGES)
    left = reasons(structure)
    assert left["blocks.2.conv1"].startswith("somebody else reads")
    tied = {n for n, why in left.items() if "all together" in why}
    assert tied == {f"blocks.{i}.conv1" for i in (0, 1, 3, 4)}
    assert {g.name for g in structure.groups} == {
        *(f"blocks.{i}.conv2" for i in range(5)),
        *(f"join.{i}" for i in range(5)),
    }
