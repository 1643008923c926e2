"""Tensors of other shapes, and modules that know about it."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from fcompress.errors import FcompressError
from fcompress.surgery.resizing import resize


def rand(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def test_convolution_and_batch_norm_run_and_know_their_sizes():
    net = nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.ReLU())
    resize(
        net,
        {"0.weight": rand(5, 2, 3, 3), "0.bias": rand(5)}
        | {f"1.{key}": rand(5).abs() for key in ("weight", "bias", "running_mean", "running_var")},
    )
    assert (net[0].in_channels, net[0].out_channels, net[1].num_features) == (2, 5, 5)
    assert net.eval()(rand(1, 2, 6, 6)).shape == (1, 5, 4, 4)
    assert "Conv2d(2, 5" in repr(net) and "BatchNorm2d(5" in repr(net)


@pytest.mark.parametrize("each", [1, 2])
def test_depthwise_keeps_outputs_for_each_channel(each):
    conv = nn.Conv2d(4, 4 * each, 3, groups=4, padding=1)
    weight = rand(3 * each, 1, 3, 3)
    resize(conv, {"weight": weight, "bias": rand(3 * each)})
    assert (conv.in_channels, conv.out_channels, conv.groups) == (3, 3 * each, 3)
    x = rand(2, 3, 5, 5)
    alone = nn.functional.conv2d(x[:, 1:2], weight[each : 2 * each], conv.bias[each : 2 * each],
                                 padding=1)  # fmt: skip
    torch.testing.assert_close(conv(x)[:, each : 2 * each], alone)


def test_grouped_keeps_its_groups():
    conv = nn.Conv2d(8, 12, 3, groups=2)
    resize(conv, {"weight": rand(10, 3, 3, 3), "bias": rand(10)})
    assert (conv.in_channels, conv.out_channels, conv.groups) == (6, 10, 2)
    assert conv(rand(1, 6, 5, 5)).shape == (1, 10, 3, 3)


def test_group_normalisation_keeps_the_size_of_its_groups():
    each, pairs = nn.GroupNorm(6, 6), nn.GroupNorm(3, 6)
    for norm in (each, pairs):
        resize(norm, {"weight": torch.ones(3), "bias": torch.zeros(3)})
    assert (each.num_groups, each.num_channels) == (3, 3)
    assert (pairs.num_groups, pairs.num_channels) == (3, 3)
    assert each(rand(2, 3, 4, 4)).mean((2, 3)).abs().max() < 1e-5
    two = nn.GroupNorm(4, 8)
    resize(two, {"weight": torch.ones(6), "bias": torch.zeros(6)})
    assert (two.num_groups, two.num_channels) == (3, 6)


def test_one_input_channel_is_not_depthwise():
    conv = nn.Conv2d(1, 8, 3)
    resize(conv, {"weight": rand(5, 1, 3, 3), "bias": rand(5)})
    assert (conv.in_channels, conv.out_channels, conv.groups) == (1, 5, 1)


def test_transposed_convolutions():
    plain = nn.ConvTranspose2d(4, 6, 2)
    resize(plain, {"weight": rand(3, 5, 2, 2), "bias": rand(5)})
    assert plain(rand(1, 3, 2, 2)).shape == (1, 5, 3, 3)
    depthwise = nn.ConvTranspose2d(4, 4, 2, groups=4)
    resize(depthwise, {"weight": rand(3, 1, 2, 2), "bias": rand(3)})
    assert depthwise(rand(1, 3, 2, 2)).shape == (1, 3, 3, 3)


def test_linear_gets_a_bias_that_it_never_had():
    net = nn.Sequential(nn.Linear(4, 3, bias=False))
    weight, bias = rand(2, 5), rand(2)
    resize(net, {"0.weight": weight, "0.bias": bias})
    assert (net[0].in_features, net[0].out_features) == (5, 2)
    assert net[0].bias.requires_grad and "0.bias" in net.state_dict()
    x = rand(3, 5)
    torch.testing.assert_close(net(x), x @ weight.T + bias)


@pytest.mark.parametrize(
    ("module", "tensors", "attributes"),
    [
        (nn.GroupNorm(2, 8), {"weight": rand(6), "bias": rand(6)}, {"num_channels": 6}),
        (nn.LayerNorm(8), {"weight": rand(5), "bias": rand(5)}, {"normalized_shape": (5,)}),
        (nn.RMSNorm(8), {"weight": rand(5)}, {"normalized_shape": (5,)}),
        (nn.InstanceNorm2d(8, affine=True), {"weight": rand(5), "bias": rand(5)},
         {"num_features": 5}),
        (nn.BatchNorm1d(8, affine=False), {"running_mean": rand(5), "running_var": rand(5)},
         {"num_features": 5}),
        (nn.Embedding(7, 4), {"weight": rand(7, 3)}, {"embedding_dim": 3}),
        (nn.PReLU(4), {"weight": rand(3)}, {"num_parameters": 3}),
        (nn.Bilinear(2, 3, 4), {"weight": rand(3, 2, 2), "bias": rand(3)},
         {"in1_features": 2, "in2_features": 2, "out_features": 3}),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)  # fmt: skip
def test_other_modules_know_their_sizes(module, tensors, attributes):
    resize(module, tensors)
    assert {key: getattr(module, key) for key in attributes} == attributes


def test_parametrised_weight():
    layer = parametrizations.weight_norm(nn.Linear(4, 6))
    resize(
        layer,
        {
            "parametrizations.weight.original0": rand(5, 1),
            "parametrizations.weight.original1": rand(5, 3),
            "bias": rand(5),
        },
    )
    assert (layer.in_features, layer.out_features) == (3, 5)
    assert layer(rand(2, 3)).shape == (2, 5)


def test_requires_grad_dtype_and_memory():
    layer = nn.Linear(3, 2)
    layer.weight.requires_grad_(False)
    weight = rand(2, 2).double()
    resize(layer, {"weight": weight, "bias": rand(2).double()})
    assert not layer.weight.requires_grad and layer.bias.requires_grad
    assert layer.weight.dtype == torch.float64
    assert layer.weight.data_ptr() == weight.data_ptr()


def test_shared_weight_stays_shared():
    net = nn.ModuleDict({"a": nn.Linear(4, 4, bias=False), "b": nn.Linear(4, 4, bias=False)})
    net["b"].weight = net["a"].weight
    resize(net, {"a.weight": rand(3, 3)})
    assert net["b"].weight is net["a"].weight
    assert net["a"].in_features == net["b"].in_features == 3
    resize(net, {"a.weight": rand(2, 2), "b.weight": rand(2, 2)})
    assert net["b"].weight is net["a"].weight


@pytest.mark.parametrize("name", ["2.weight", "0.wieght", "0.stride", "", "0"])
def test_wrong_name_is_an_error_and_changes_nothing(name):
    net = nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6))
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(FcompressError, match=f"no parameter or buffer {name!r}"):
        resize(net, {"0.weight": rand(5, 4, 3, 3), name: rand(5)})
    torch.testing.assert_close(dict(net.state_dict()), dict(before))


@pytest.mark.parametrize(
    ("module", "tensors", "message"),
    [
        (nn.Linear(4, 3), {"weight": rand(2, 4)}, "its bias has shape [3]"),
        (nn.BatchNorm2d(3), {"weight": rand(2), "bias": rand(2)}, "its running_mean has shape [3]"),
        (nn.GroupNorm(2, 4), {"weight": rand(3), "bias": rand(3)}, "3 channels do not divide"),
        (nn.Conv2d(4, 4, 1, groups=2), {"weight": rand(3, 2, 1, 1), "bias": rand(3)},
         "3 channels do not divide"),
        (nn.Conv2d(4, 8, 1, groups=4), {"weight": rand(5, 1, 1, 1), "bias": rand(5)},
         "5 channels do not divide"),
    ],
)  # fmt: skip
def test_shapes_that_do_not_fit_each_other(module, tensors, message):
    with pytest.raises(FcompressError) as caught:
        resize(nn.Sequential(module), {f"0.{key}": value for key, value in tensors.items()})
    assert message in str(caught.value) and "\n" not in str(caught.value)
