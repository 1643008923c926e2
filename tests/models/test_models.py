"""Network families: shapes, counts, initial weights, names of layers, errors."""

import copy
import math

import pytest
import torch
import torchvision
from torch import nn

from fcompress.errors import FcompressError
from fcompress.models import InceptionOutput, Network, build, families

FACTORS = (0.25, 0.5, 1, 2, 4)
NAMES = tuple(families())


def shapes_only(family: str, **args: object) -> Network:
    with torch.device("meta"):
        return build(family, **args)


def params(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def images(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=dtype)


def small(family: str, **args: object) -> Network:
    """A network of the family that is quick to run."""
    if family == "mlp":
        return build(family, in_channels=3, image_size=8, classes=5, **args)
    size = 75 if family.startswith("inception") else 8
    width = {} if family == "inception_v3_layer" else {"width": 0.25}
    return build(family, **{"in_channels": 3, "image_size": size, "classes": 5, **width, **args})


def test_parameter_counts_at_factor_1():
    reference = torchvision.models
    with torch.device("meta"):
        resnet18 = reference.resnet18()
        inception = reference.inception_v3(init_weights=False)
    assert params(shapes_only("resnet18")) == params(resnet18) == 11_689_512
    assert params(shapes_only("inception_v3")) == params(inception) == 27_161_264
    assert params(shapes_only("inception_v3_layer")) == 27_161_264
    # 0.86 M and 0.27 M: stem, three stages of n blocks, two projections, output (He et al. 2016).
    assert params(shapes_only("resnet56")) == 855_770
    assert params(shapes_only("resnet20")) == 272_474
    assert params(shapes_only("mlp", in_features=10, classes=2)) == 10 * 128 + 128 + 128 * 2 + 2
    # 28x28 pixels are 7x7 after both pools.
    conv = 96 * 75 + 96 + 256 * 96 * 25 + 256
    linear = 256 * 49 * 384 + 384 + 384 * 192 + 192 + 192 * 10 + 10
    assert params(shapes_only("alexnet")) == conv + linear


@pytest.mark.parametrize("family", NAMES)
def test_all_factors_build_and_grow(family):
    counts = [params(shapes_only(family, width=factor)) for factor in FACTORS]
    assert counts == sorted(set(counts))


@pytest.mark.parametrize(
    ("family", "layer", "units"),
    [("mlp", "fc1", 128), ("alexnet", "fc3", 384), ("resnet56", "layer3.0.conv1", 64),
     ("resnet18", "layer4.1.conv2", 512), ("inception_v3", "Mixed_7b.branch_pool.conv", 192),
     ("inception_v3_layer", "Mixed_6e.branch1x1.conv", 192)],
)  # fmt: skip
def test_width_of_one_layer(family, layer, units):
    for factor in FACTORS:
        weight = shapes_only(family, width=factor).get_submodule(layer).weight
        assert weight.shape[0] == units * factor


def test_layer_variant_leaves_the_others_at_1x():
    plain = shapes_only("inception_v3").state_dict()
    varied = shapes_only("inception_v3_layer", layer="Mixed_5c", width=2).state_dict()
    changed = {name.split(".")[0] for name in plain if plain[name].shape != varied[name].shape}
    assert changed == {"Mixed_5c", "Mixed_5d"}  # Mixed_5d reads it


@pytest.mark.parametrize("family", NAMES)
def test_odd_and_tiny_factors(family):
    for factor in (1e-6, 0.3, 1 / 3, 1.7):
        network = shapes_only(family, width=factor)
        assert all(0 not in tensor.shape for tensor in network.parameters())


@pytest.mark.parametrize("family", ["mlp", "alexnet", "resnet20", "resnet56", "resnet18"])
@pytest.mark.parametrize(("channels", "size"), [(1, 8), (1, 28), (3, 32), (3, 224), (2, (9, 13))])
def test_image_sizes(family, channels, size):
    width = 0.05 if size == 224 else 0.25
    network = build(family, in_channels=channels, image_size=size, classes=7, width=width).eval()
    shape = network.spec.input_shape
    assert shape == (channels, *(size if isinstance(size, tuple) else (size, size)))
    with torch.no_grad():
        assert network(images(2, *shape)).shape == (2, 7)


@pytest.mark.parametrize("size", [75, 224, 299])
def test_inception_sizes_in_both_modes(size):
    network = build("inception_v3", width=0.05, image_size=size, classes=7)
    output = network(images(2, 3, size, size))
    assert isinstance(output, InceptionOutput)
    assert output.logits.shape == output.aux_logits.shape == (2, 7)
    output.aux_logits.sum().backward()
    assert network.AuxLogits.conv0.conv.weight.grad.abs().sum() > 0
    with torch.no_grad():
        assert network.eval()(images(1, 3, size, size)).shape == (1, 7)


def test_inception_without_its_auxiliary_head():
    network = build("inception_v3", width=0.05, image_size=75, classes=7, seed=3)
    logits = network.eval()(images(1, 3, 75, 75))
    network.drop_training_parts()
    assert torch.equal(network(images(1, 3, 75, 75)), logits)
    assert network.train()(images(2, 3, 75, 75)).shape == (2, 7)
    again = shapes_only(network.spec.family, **network.spec.args)
    assert {name: tensor.shape for name, tensor in network.state_dict().items()} == {
        name: tensor.shape for name, tensor in again.state_dict().items()
    }


def twin_of_torchvision(family: str) -> tuple[Network, nn.Module]:
    """Our network and torchvision's, with the same float64 weights."""
    options = {"init_weights": False, "dropout": 0.0} if family == "inception_v3" else {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        theirs = getattr(torchvision.models, family)(num_classes=10, **options).double()
    ours = build(family, classes=10).double()
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


@pytest.mark.parametrize(("family", "size"), [("resnet18", 64), ("inception_v3", 75)])
def test_same_function_as_torchvision(family, size):
    ours, theirs = twin_of_torchvision(family)
    x = images(2, 3, size, size, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), rtol=0, atol=0)


@pytest.mark.slow
def test_same_auxiliary_logits_as_torchvision():
    ours, theirs = twin_of_torchvision("inception_v3")
    x = images(2, 3, 299, 299, dtype=torch.float64)
    with torch.no_grad():
        for mine, other in zip(ours.train()(x), theirs.train()(x), strict=True):
            torch.testing.assert_close(mine, other)


def test_alexnet_is_the_protocol_written_out():
    network = build("alexnet", width=0.1, image_size=28, seed=5).double().eval()
    state = network.state_dict()
    f = nn.functional

    def same_pool(x):  # TensorFlow pads an even side by one pixel at its end
        return f.max_pool2d(f.pad(x, (0, 1, 0, 1), value=-math.inf), 3, 2)

    def norm(x):  # tf.nn.local_response_normalization(x, 2, bias=1, alpha=2e-5, beta=0.75)
        energy = torch.zeros_like(x)
        for i in range(x.shape[1]):
            energy[:, i] = x[:, max(0, i - 2) : i + 3].square().sum(1)
        return x / (1 + 2e-5 * energy) ** 0.75

    x = 30 * images(2, 3, 28, 28, dtype=torch.float64)
    y = x
    for number in (1, 2):
        y = f.conv2d(y, state[f"conv{number}.weight"], state[f"conv{number}.bias"], padding=2)
        y = norm(same_pool(y.relu()))
    y = y.flatten(1)
    for number in (3, 4):
        y = f.linear(y, state[f"fc{number}.weight"], state[f"fc{number}.bias"]).relu()
    y = f.linear(y, state["fc5.weight"], state["fc5.bias"])
    torch.testing.assert_close(network(x), y)


@pytest.mark.parametrize("family", NAMES)
def test_named_layers_run_once_in_order(family):
    network = small(family).eval()
    ran = []

    def note(name):
        return lambda module, args, output: ran.append((name, output))

    for name in {*network.ablation_layers, *network.redundancy_layers}:
        network.get_submodule(name).register_forward_hook(note(name))
    with torch.no_grad():
        network(images(1, *network.spec.input_shape))
    order = [name for name, _ in ran]
    assert [name for name in order if name in network.ablation_layers] == list(
        network.ablation_layers
    )
    assert [name for name in order if name in network.redundancy_layers] == list(
        network.redundancy_layers
    )
    rectifiers = {name for name, module in network.named_modules() if isinstance(module, nn.ReLU)}
    assert set(network.ablation_layers) == {name for name in rectifiers if "Aux" not in name}
    assert not any(network.get_submodule(name).inplace for name in rectifiers)


def test_number_of_named_layers():
    resnet56, inception = shapes_only("resnet56"), shapes_only("inception_v3")
    assert len(resnet56.ablation_layers) == 55
    assert resnet56.redundancy_layers == ("relu", "layer1", "layer2", "layer3")
    assert len(inception.ablation_layers) == 94
    assert len(inception.redundancy_layers) == 16


@pytest.mark.parametrize("family", NAMES)
def test_spec_rebuilds_the_same_network_and_survives_a_copy(family):
    network = small(family, seed=7)
    twin = copy.deepcopy(network)
    assert (twin.spec, twin.ablation_layers, twin.redundancy_layers) == (
        network.spec,
        network.ablation_layers,
        network.redundancy_layers,
    )
    again = build(network.spec.family, seed=7, **network.spec.args)
    assert again.spec == network.spec
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


@pytest.mark.parametrize(
    ("init", "std", "uniform"),
    [
        ("glorot_normal", math.sqrt(2 / (400 + 300)), False),
        ("glorot_uniform", math.sqrt(2 / (400 + 300)), True),
        ("he_normal", math.sqrt(2 / 400), False),
        ("he_uniform", math.sqrt(2 / 400), True),
        ("lecun_normal", math.sqrt(1 / 400), False),
        ("lecun_uniform", math.sqrt(1 / 400), True),
        ("normal:0.05", 0.05, False),
        ("normal_scaled:1e-2", 1e-5, False),
        ("normal_scaled:10", 1e-2, False),
    ],
)
def test_initial_weights(init, std, uniform):
    network = build("mlp", in_features=400, hidden=300, classes=200, init=init)
    weight = network.fc1.weight.double()
    assert weight.std().item() == pytest.approx(std, rel=0.02)
    assert abs(weight.mean().item()) < 0.02 * std
    kurtosis = (weight / weight.std()).pow(4).mean().item()
    assert kurtosis == pytest.approx(1.8 if uniform else 3.0, rel=0.05)
    assert all(not p.any() for name, p in network.named_parameters() if name.endswith("bias"))
    if init.startswith("normal_scaled"):
        assert network.out.weight.std().item() == pytest.approx(10 * std, rel=0.02)


def test_fans_of_a_convolution():
    network = build("alexnet", in_channels=40, init="glorot_normal")
    std = math.sqrt(2 / (25 * (40 + 96)))
    assert network.conv1.weight.std().item() == pytest.approx(std, rel=0.02)


def test_seeds():
    def weight(seed):
        return build("mlp", in_features=5, seed=seed).fc1.weight

    assert torch.equal(weight(1), weight(1)) and not torch.equal(weight(1), weight(2))
    generator = torch.Generator().manual_seed(1)
    assert torch.equal(weight(generator), weight(1))
    assert not torch.equal(weight(generator), weight(1))  # drawn on from there


def test_global_random_state_and_device_stay():
    before = torch.get_rng_state()
    build("alexnet", width=0.1)
    shapes_only("resnet20")
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_default_device().type == "cpu"


@pytest.mark.parametrize("family", NAMES)
def test_double_precision(family):
    network = small(family).double()
    output = network.train()(images(2, *network.spec.input_shape, dtype=torch.float64))
    logits = output.logits if isinstance(output, InceptionOutput) else output
    assert logits.dtype == torch.float64
    assert network.eval()(images(1, *network.spec.input_shape, dtype=torch.float64)).dtype == (
        torch.float64
    )


@pytest.mark.parametrize("family", ["alexnet", "inception_v3"])
def test_dropout_only_when_asked_for_and_training(family):
    for share, same in ((0.0, True), (0.9, False)):
        network = small(family, dropout=share)
        for module in network.modules():
            module.train(isinstance(module, nn.Dropout))
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            x = images(1, *network.spec.input_shape)
            assert torch.equal(network(x), network(x)) == same


@pytest.mark.parametrize(
    ("family", "args", "message"),
    [
        ("alexnt", {}, "there is no network family 'alexnt'; did you mean 'alexnet'?"),
        ("gpt", {}, "there are: mlp, alexnet"),
        ("alexnet", {"widht": 2}, "no argument 'widht'; did you mean 'width'?"),
        ("resnet20", {"dropout": 0.5}, "resnet20 has no argument 'dropout'"),
        ("alexnet", {"width": 0}, "width must be a number above 0, not 0"),
        ("alexnet", {"width": math.nan}, "width must be"),
        ("alexnet", {"width": "wide"}, "width must be"),
        ("alexnet", {"width": True}, "width must be"),
        ("alexnet", {"width": 1e300}, "a network of this size cannot be built (more than"),
        ("alexnet", {"dropout": 1}, "dropout must be a number from 0 to below 1"),
        ("alexnet", {"classes": 0}, "classes must be a whole number from 1"),
        ("alexnet", {"in_channels": 2.5}, "in_channels must be a whole number"),
        ("alexnet", {"image_size": 3}, "at least 4 pixels"),
        ("alexnet", {"image_size": (28, 3)}, "at least 4 pixels"),
        ("inception_v3", {"image_size": 32}, "image_size must be a side of at least 75 pixels"),
        ("inception_v3_layer", {"layer": "Mixed_9"}, "layer must be one of Conv2d_1a_3x3"),
        ("inception_v3", {"aux": 1}, "aux must be True or False"),
        ("alexnet", {"init": "xavier"}, "init must be one of glorot_normal"),
        ("alexnet", {"init": "normal:"}, "init must be one of"),
        ("alexnet", {"init": "normal:-1"}, "init must be one of"),
        ("alexnet", {"init": "normal:STD"}, "init must be one of"),
        ("mlp", {"depth": 0}, "depth must be a whole number from 1"),
        ("mlp", {"in_features": 5, "image_size": 8}, "either in_features or"),
        ("mlp", {"in_features": 2**31 - 1, "hidden": 2**31 - 1}, "take a smaller width"),
        ("alexnet", {"seed": -1}, "seed=-1: expected a whole number"),
    ],
)
def test_errors_are_one_line(family, args, message):
    with pytest.raises(FcompressError) as caught:
        build(family, **args)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_listing():
    for name, family in families().items():
        assert family.name == name and family.summary and "\n" not in family.summary
        assert set(family.defaults) == set(family.arguments)
        assert all(argument.meaning for argument in family.arguments.values())
        assert "normal:STD" in family.inits
        assert shapes_only(name).spec.args.keys() == family.defaults.keys()
