"""Frivolous blocks: what labels do without is named, what they need is not."""

import json

import torch
from cases.blocks import PreActivation, build, inputs
from torch import nn

from fcompress import analyze
from fcompress.report.measured import _findings


def measured(idle):
    model, x = build(PreActivation), inputs(PreActivation, 200)
    with torch.no_grad():
        if idle:
            nn.init.zeros_(model.end("b"))
            nn.init.zeros_(model.b[-1].bias)
        else:
            model.end("b").mul_(20)
        scores = model(x)
        model.head[-1].weight.div_(scores.std(0)[:, None])
        model.head[-1].bias.sub_(scores.mean(0)).div_(scores.std(0))
    return analyze(model, [x], steps=1, orders=1, by_layer=False)


def test_a_block_that_adds_nothing_is_frivolous():
    result = measured(idle=True)
    assert [block.name for block in result.blocks] == ["a", "b"]
    idle = result.blocks[1]
    assert idle.agreement == 1.0 and idle.examples == 200 and idle.frivolous(0.0)
    assert idle.macs == (6 * 7 * 9 + 7 * 6) * 64
    entry = json.loads(json.dumps(result.to_dict()))["blocks"][1]
    assert entry["name"] == "b" and all(entry["frivolous"].values())
    (line,) = [line for line in _findings(result) if line.startswith("Blocks:")]
    assert "b (100.0% stay)" in line


def test_a_block_that_matters_is_not():
    busy = measured(idle=False).blocks[1]
    assert busy.agreement < 0.8 and not busy.frivolous(0.2)


def test_networks_without_blocks_name_none():
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    result = analyze(model, [torch.randn(50, 4)], steps=1, orders=1, by_layer=False)
    assert result.blocks == ()
    assert not [line for line in _findings(result) if line.startswith("Blocks:")]
