import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fcompress.compress.refitting.samples import (
    ROWS_AT_LEAST,
    Places,
    collect_targets,
    input_rows,
    output_rows,
    sample_places,
)
from fcompress.forward.graph import run
from fcompress.forward.recording import record

SHAPES = [
    pytest.param({"kernel_size": 3}, id="plain"),
    pytest.param({"kernel_size": 1}, id="1x1"),
    pytest.param({"kernel_size": 3, "padding": 1}, id="padding"),
    pytest.param({"kernel_size": 3, "stride": 2}, id="stride"),
    pytest.param({"kernel_size": 2, "dilation": 3}, id="dilation"),
    pytest.param({"kernel_size": 3, "stride": 2, "padding": 2, "dilation": 2}, id="all"),
    pytest.param(
        {"kernel_size": (3, 2), "stride": (1, 2), "padding": (0, 1), "dilation": (2, 1)},
        id="uneven",
    ),
    pytest.param({"kernel_size": (1, 9), "padding": (0, 4)}, id="wide"),
]


def _layer(module, x):
    return record(module, x).layers[0]


def _all(count):
    return Places((torch.arange(count),))


@pytest.mark.parametrize("settings", SHAPES)
@pytest.mark.parametrize("channels_last", [False, True])
def test_patches_are_those_of_unfold(settings, channels_last):
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 4, **settings).double()
    x = torch.randn(2, 3, 9, 11, dtype=torch.float64)
    x = x.to(memory_format=torch.channels_last) if channels_last else x
    out = conv(x).detach()
    positions = out.numel() // 4
    rows = input_rows(_layer(conv, x), conv.weight, [x], _all(positions))
    expected = F.unfold(x, conv.kernel_size, conv.dilation, conv.padding, conv.stride)
    expected = expected.transpose(1, 2).reshape(positions, 3, -1)
    assert torch.equal(rows, expected)
    written = rows.flatten(1) @ conv.weight.detach().flatten(1).T + conv.bias.detach()
    torch.testing.assert_close(output_rows([out], _all(positions)), written)


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.Conv1d(3, 4, 3, stride=2, padding=2, dilation=2), (2, 3, 9)),
        (nn.Conv3d(2, 4, (1, 3, 2), padding=(0, 1, 1), stride=(2, 1, 2)), (2, 2, 4, 5, 6)),
        (nn.Conv2d(3, 4, 3, padding="same", dilation=2), (2, 3, 7, 7)),
        (nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"), (2, 3, 5, 5)),
        (nn.Linear(5, 4), (7, 5)),
        (nn.Linear(5, 4), (3, 7, 5)),
        (nn.Linear(5, 4, bias=False), (3, 2, 7, 5)),
    ],
    ids=["1d", "3d", "same", "circular", "linear", "tokens", "no bias"],
)
def test_a_row_times_the_weights_is_what_the_layer_writes(module, shape):
    torch.manual_seed(0)
    module = module.double()
    x = torch.randn(shape, dtype=torch.float64)
    target = collect_targets(module, [x])["weight"]
    layer = target.layer
    recorded = record(module, x)
    values = {recorded.inputs[0]: x}
    with torch.no_grad():
        run(recorded.steps[: layer.step], values, dict(module.named_parameters()))
    rows = input_rows(layer, module.weight, [values[layer.x]], target.places)
    weight = module.weight.detach().flatten(1)
    bias = 0 if layer.bias is None else module.bias.detach()
    torch.testing.assert_close(rows.flatten(1) @ weight.T + bias, target.outputs)


def test_grouped_convolutions_read_all_channels():
    torch.manual_seed(0)
    conv = nn.Conv2d(6, 4, 3, groups=2, padding=1, bias=False).double()
    x = torch.randn(2, 6, 5, 5, dtype=torch.float64)
    rows = input_rows(_layer(conv, x), conv.weight, [x], _all(50))
    assert rows.shape == (50, 6, 9)
    parts = rows.split(3, dim=1)
    weights = conv.weight.detach().flatten(1).split(2)
    written = [r.flatten(1) @ w.T for r, w in zip(parts, weights, strict=True)]
    torch.testing.assert_close(torch.cat(written, 1), output_rows([conv(x).detach()], _all(50)))


def test_places_are_drawn_evenly_sorted_and_again_the_same():
    outputs = [torch.zeros(n, 4, 5, 5) for n in (8, 8, 4)]
    places = sample_places(outputs, 100, torch.Generator().manual_seed(7))
    assert [len(at) for at in places.batches] == [40, 40, 20]
    assert places.count == 100
    for at, out in zip(places.batches, outputs, strict=True):
        assert bool((at.diff() > 0).all())
        assert 0 <= int(at[0]) <= int(at[-1]) < len(out) * 25
    again = sample_places(outputs, 100, torch.Generator().manual_seed(7))
    other = sample_places(outputs, 100, torch.Generator().manual_seed(8))
    assert all(torch.equal(a, b) for a, b in zip(places.batches, again.batches, strict=True))
    assert not torch.equal(places.batches[0], other.batches[0])
    everything = sample_places(outputs, 10_000, torch.Generator().manual_seed(7))
    assert [at.tolist() for at in everything.batches] == [
        list(range(len(out) * 25)) for out in outputs
    ]


def test_sampled_rows_are_rows_of_all_rows():
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 4, 3, padding=1)
    batches = [torch.randn(4, 3, 6, 6), torch.randn(2, 3, 6, 6)]
    layer = _layer(conv, batches[0])
    places = sample_places([conv(b) for b in batches], 60, torch.Generator().manual_seed(0))
    rows = input_rows(layer, conv.weight, batches, places)
    whole = [input_rows(layer, conv.weight, [b], _all(len(b) * 36)) for b in batches]
    picked = [w[at] for w, at in zip(whole, places.batches, strict=True)]
    assert torch.equal(rows, torch.cat(picked))


def test_targets_hold_a_bounded_number_of_rows():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(108, 2))
    data = torch.randn(1200, 2, 8, 8)
    few, many = (collect_targets(model, data[:n].split(64)) for n in (600, 1200))
    for weight, least in (("0.weight", ROWS_AT_LEAST), ("3.weight", 600)):
        assert len(few[weight].outputs) == pytest.approx(least, rel=0.01)
        assert len(many[weight].outputs) == pytest.approx(min(ROWS_AT_LEAST, 2 * least), rel=0.01)
        assert few[weight].places.count == len(few[weight].inputs) == len(few[weight].outputs)
    again = collect_targets(model, data[:600].split(64))
    assert torch.equal(again["0.weight"].inputs, few["0.weight"].inputs)
    other = collect_targets(model, data[:600].split(64), seed=1)
    assert not torch.equal(other["0.weight"].inputs, few["0.weight"].inputs)
