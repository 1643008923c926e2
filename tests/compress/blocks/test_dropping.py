"""Blocks go for their price: what does nothing goes first and exactly, the rest by measurement."""

from dataclasses import replace

import pytest
import torch
from cases.blocks import WITH_BLOCKS, build, inputs
from cases.planted import context_of
from torch import nn

from fcompress import export, load, save, shrink
from fcompress.compress.blocks.chain import Choice, chain, key
from fcompress.compress.blocks.choosing import blocks_of
from fcompress.compress.methods import METHODS, Context
from fcompress.forward.predictor import Predictor
from fcompress.forward.running import tensors_of
from fcompress.models import build as of_registry
from fcompress.surgery.preparation import prepare

EXACT = 1e-5
FEW = 96


def silenced(kind, block):
    """A network one of whose blocks adds nothing, however it is computed."""
    model = build(kind)
    with torch.no_grad():
        end = model.end(block)
        name = next(n for n, p in model.named_parameters() if p is end)
        end.zero_()
        bias = dict(model.named_parameters()).get(name.removesuffix("weight") + "bias")
        if bias is not None:
            bias.zero_()
    return model


def with_choice(model, x) -> Context:
    context = context_of(prepare(model, x).eval(), x)
    choice = blocks_of(context.original, context.structure, context.batches)
    return replace(context, choice=choice)


@pytest.mark.parametrize("method", ["prune", "hybrid"])
@pytest.mark.parametrize("kind", WITH_BLOCKS.values(), ids=WITH_BLOCKS)
def test_a_block_that_adds_nothing_goes_first_and_exactly(kind, method):
    idle = kind.blocks[-1]
    model, x = silenced(kind, idle), inputs(kind, FEW)
    context = with_choice(model, x)
    wanted = context.original.network(x)
    order = METHODS[method].removal_order(context)
    kept = order.kept(1)
    gone = context.choice.gone(kept)
    assert [block.name for block in gone] == [idle]
    thin = METHODS[method].make(context, kept)
    assert torch.allclose(thin(x), wanted, atol=EXACT)
    names = set(tensors_of(thin))
    assert not names & gone[0].tensors
    # The control: the other block does something, and dropping it shows.
    other = next(block for block in context.choice.blocks if block.name != idle)
    everything = {g.name: torch.arange(g.size) for g in context.structure.groups}
    bare = METHODS["prune"].make(context, everything | {key(other): torch.arange(0)})
    assert not torch.allclose(bare(x), wanted, atol=1e-3)


class Scaling(nn.Module):
    """A block that scales and shifts each channel, and another one that mixes them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(2, 6, 3), nn.Linear(6, 4)
        self.scales, self.mixes = nn.Conv2d(6, 6, 1), nn.Conv2d(6, 6, 1)
        with torch.no_grad():
            self.scales.weight.copy_(torch.diag(torch.linspace(-0.5, 2, 6))[..., None, None])

    def forward(self, x):
        x = self.stem(x).relu()
        x = (x + self.scales(x)).relu()
        return self.head((x + self.mixes(x)).relu().mean((2, 3)))


def test_a_block_that_only_scales_channels_is_exact_without_it():
    torch.manual_seed(0)
    model = Scaling().double().eval()
    x = torch.randn(FEW, 2, 6, 6, dtype=torch.float64)
    context = with_choice(model, x)
    costs = chain(context.original, context.choice, context.structure.groups, context.loads, x)
    assert costs[0].name == "block scales" and costs[0].cost < 1e-12
    assert costs[1].name == "block mixes" and costs[1].cost > 1e-4
    kept = {g.name: torch.arange(g.size) for g in context.structure.groups}
    thin = METHODS["prune"].make(context, kept | {"block scales": torch.arange(0)})
    assert torch.allclose(thin(x), model(x), atol=1e-9)


def test_what_is_left_of_a_block_follows_the_units_of_its_stream():
    torch.manual_seed(0)
    model = Scaling().double().eval()
    with torch.no_grad():
        for layer, dim in ((model.stem, 0), (model.scales, 0), (model.mixes, 0)):
            layer.weight.select(dim, 2).zero_()
            layer.bias[2] = 0  # a unit of the stream that is 0
    x = torch.randn(FEW, 2, 6, 6, dtype=torch.float64)
    context = with_choice(model, x)
    (group,) = context.structure.groups
    units = torch.tensor([0, 1, 3, 4, 5])
    thin = METHODS["prune"].make(context, {group.name: units, "block scales": torch.arange(0)})
    assert thin.scales.scale.shape == (5,)
    assert torch.allclose(thin(x), model(x), atol=1e-9)
    # The control: another unit is missed.
    units = torch.tensor([0, 1, 2, 3, 4])
    thin = METHODS["prune"].make(context, {group.name: units, "block scales": torch.arange(0)})
    assert not torch.allclose(thin(x), model(x), atol=1e-3)


def idle_resnet():
    """A ResNet20 with three blocks whose last norm has scale 0, as it is after initialising so."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = of_registry("resnet20", width=0.5, in_channels=2, image_size=4, classes=4)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, 0, 0.3)
    for name in ("layer1.1", "layer2.2", "layer3.1"):
        norm = model.get_submodule(name).bn2
        nn.init.zeros_(norm.weight), nn.init.zeros_(norm.bias)
    with torch.no_grad():
        scores = model.eval()(batches(100)[0][0])
        # Every label is given to some.
        model.fc.weight.div_(scores.std(0)[:, None])
        model.fc.bias.sub_(scores.mean(0)).div_(scores.std(0))
    return model


def batches(count=600):
    x = torch.randn(count, 2, 4, 4, generator=torch.Generator().manual_seed(3))
    return [(part, None) for part in x.split(100)]


@pytest.mark.slow
def test_shrinking_drops_idle_blocks_and_the_network_survives_its_files(tmp_path):
    model = idle_resnet()
    result = shrink(model, batches(), ratio=0.7, calibration=256)
    assert {"layer1.1", "layer2.2", "layer3.1"} <= set(result.blocks)
    assert result.macs["after"] <= 0.7 * result.macs["before"]
    units = {layer.name: layer.units_after for layer in result.layers}
    assert units["layer1.1.conv1"] == 0 < units["layer1.0.conv1"]
    x = batches(50)[0][0]
    fresh = torch.cat([part for part, _ in batches(1600)[6:]])
    same = (result.model(fresh).argmax(1) == model(fresh).argmax(1)).double().mean()
    assert same >= 1 - result.agreement.upper_bound
    save(result.model, tmp_path / "thin.pt")
    again = load(tmp_path / "thin.pt")
    assert torch.equal(again(x), result.model(x))
    assert again.origin["history"][-1]["blocks"] == list(result.blocks)
    for ending in ("pt2", "safetensors"):
        written = export(again, tmp_path / f"thin.{ending}", batches(100), original=model)
        assert written.largest_difference <= written.allowed_difference
    assert torch.equal(load(tmp_path / "thin.safetensors")(x), result.model(x))
    # A compressed network is a network: it can be shrunk again, and nothing is dropped twice.
    twice = shrink(again, batches(), ratio=0.6, calibration=256)
    assert not set(twice.blocks) & set(result.blocks)


@pytest.mark.slow
def test_depth_can_be_kept():
    result = shrink(idle_resnet(), batches(), ratio=0.7, calibration=256, keep_depth=True)
    assert result.blocks == ()
    assert all(layer.units_after for layer in result.layers)


def test_no_blocks_no_choice():
    model = nn.Sequential(nn.Flatten(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4))
    context = context_of(model.eval(), torch.randn(64, 2, 4))
    found = blocks_of(context.original, context.structure, context.batches)
    assert found == Choice((), {})
    assert chain(Predictor(model), found, (), context.loads, torch.randn(8, 2, 4)) == []


class Picky(WITH_BLOCKS["InvertedBottleneck"]):
    """Its own code does without no block."""

    def forward(self, x):
        x = self.stem(x)
        for name in self.blocks:
            y = self.get_submodule(name)(x)
            assert y.abs().max() > 1e-3, "a block must add something"
            x = x + y
        return self.head(x)


def test_code_that_refuses_to_do_without_a_block_keeps_it():
    x = inputs(Picky, FEW)
    context = with_choice(build(Picky), x)
    assert not context.choice.blocks
    # The control: without that line of code there are blocks.
    assert with_choice(build(WITH_BLOCKS["InvertedBottleneck"]), x).choice.blocks
