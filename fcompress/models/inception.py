"""Inception-v3 (Szegedy et al. 2016), whole or with the width of one module varied.

Submodules are named as in torchvision, so that its state dicts load; every ReLU is its own.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fcompress.models import arguments
from fcompress.models.arguments import scaled
from fcompress.models.base import ModelFamily, Network, Spec

_SMALLEST = 75
# Pixels that the auxiliary head averages to before its 5x5 convolution, and the map side from
# which the pooling of the paper (5x5, stride 3) leaves that many.
_AUX_SIDE = 5
_AUX_PLAIN_FROM = 17


class InceptionOutput(NamedTuple):
    """What the network returns in training mode: two sets of logits [N, classes].

    The auxiliary logits only help training: add their loss with a weight of 0.4.
    """

    logits: Tensor
    aux_logits: Tensor


class _Conv(NamedTuple):
    """One convolution of a mixed module.

    `source` is the module's input "x", its pooled input "pool", or an earlier convolution.
    """

    name: str
    source: str
    channels: int
    kernel: int | tuple[int, int] = 1
    stride: int = 1


class _Layout(NamedTuple):
    """A mixed module: its convolutions and what is concatenated, in order."""

    convs: tuple[_Conv, ...]
    outputs: tuple[str, ...]
    shrinks: bool = False


def _layout_a(pooled: int) -> _Layout:
    return _Layout(
        (
            _Conv("branch1x1", "x", 64),
            _Conv("branch5x5_1", "x", 48),
            _Conv("branch5x5_2", "branch5x5_1", 64, 5),
            _Conv("branch3x3dbl_1", "x", 64),
            _Conv("branch3x3dbl_2", "branch3x3dbl_1", 96, 3),
            _Conv("branch3x3dbl_3", "branch3x3dbl_2", 96, 3),
            _Conv("branch_pool", "pool", pooled),
        ),
        ("branch1x1", "branch5x5_2", "branch3x3dbl_3", "branch_pool"),
    )


def _layout_b() -> _Layout:
    return _Layout(
        (
            _Conv("branch3x3", "x", 384, 3, 2),
            _Conv("branch3x3dbl_1", "x", 64),
            _Conv("branch3x3dbl_2", "branch3x3dbl_1", 96, 3),
            _Conv("branch3x3dbl_3", "branch3x3dbl_2", 96, 3, 2),
        ),
        ("branch3x3", "branch3x3dbl_3", "pool"),
        shrinks=True,
    )


def _layout_c(inner: int) -> _Layout:
    return _Layout(
        (
            _Conv("branch1x1", "x", 192),
            _Conv("branch7x7_1", "x", inner),
            _Conv("branch7x7_2", "branch7x7_1", inner, (1, 7)),
            _Conv("branch7x7_3", "branch7x7_2", 192, (7, 1)),
            _Conv("branch7x7dbl_1", "x", inner),
            _Conv("branch7x7dbl_2", "branch7x7dbl_1", inner, (7, 1)),
            _Conv("branch7x7dbl_3", "branch7x7dbl_2", inner, (1, 7)),
            _Conv("branch7x7dbl_4", "branch7x7dbl_3", inner, (7, 1)),
            _Conv("branch7x7dbl_5", "branch7x7dbl_4", 192, (1, 7)),
            _Conv("branch_pool", "pool", 192),
        ),
        ("branch1x1", "branch7x7_3", "branch7x7dbl_5", "branch_pool"),
    )


def _layout_d() -> _Layout:
    return _Layout(
        (
            _Conv("branch3x3_1", "x", 192),
            _Conv("branch3x3_2", "branch3x3_1", 320, 3, 2),
            _Conv("branch7x7x3_1", "x", 192),
            _Conv("branch7x7x3_2", "branch7x7x3_1", 192, (1, 7)),
            _Conv("branch7x7x3_3", "branch7x7x3_2", 192, (7, 1)),
            _Conv("branch7x7x3_4", "branch7x7x3_3", 192, 3, 2),
        ),
        ("branch3x3_2", "branch7x7x3_4", "pool"),
        shrinks=True,
    )


def _layout_e() -> _Layout:
    return _Layout(
        (
            _Conv("branch1x1", "x", 320),
            _Conv("branch3x3_1", "x", 384),
            _Conv("branch3x3_2a", "branch3x3_1", 384, (1, 3)),
            _Conv("branch3x3_2b", "branch3x3_1", 384, (3, 1)),
            _Conv("branch3x3dbl_1", "x", 448),
            _Conv("branch3x3dbl_2", "branch3x3dbl_1", 384, 3),
            _Conv("branch3x3dbl_3a", "branch3x3dbl_2", 384, (1, 3)),
            _Conv("branch3x3dbl_3b", "branch3x3dbl_2", 384, (3, 1)),
            _Conv("branch_pool", "pool", 192),
        ),
        (
            "branch1x1",
            "branch3x3_2a",
            "branch3x3_2b",
            "branch3x3dbl_3a",
            "branch3x3dbl_3b",
            "branch_pool",
        ),
    )


class _Stem(NamedTuple):
    """One convolution before the mixed modules, and whether a max pool follows it."""

    channels: int
    kernel: int
    stride: int = 1
    padding: int = 0
    pool: str = ""


_LAYERS: dict[str, _Stem | _Layout] = {
    "Conv2d_1a_3x3": _Stem(32, 3, stride=2),
    "Conv2d_2a_3x3": _Stem(32, 3),
    "Conv2d_2b_3x3": _Stem(64, 3, padding=1, pool="maxpool1"),
    "Conv2d_3b_1x1": _Stem(80, 1),
    "Conv2d_4a_3x3": _Stem(192, 3, pool="maxpool2"),
    "Mixed_5b": _layout_a(32),
    "Mixed_5c": _layout_a(64),
    "Mixed_5d": _layout_a(64),
    "Mixed_6a": _layout_b(),
    "Mixed_6b": _layout_c(128),
    "Mixed_6c": _layout_c(160),
    "Mixed_6d": _layout_c(160),
    "Mixed_6e": _layout_c(192),
    "Mixed_7a": _layout_d(),
    "Mixed_7b": _layout_e(),
    "Mixed_7c": _layout_e(),
}
_AUX_AFTER = "Mixed_6e"


class ConvNormReLU(nn.Module):
    """Convolution without bias, batch normalisation, ReLU.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel: Side of the kernel, or (height, width).
        stride: Stride.
        padding: Zeros on each side, or (rows, columns).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int | tuple[int, int],
        stride: int = 1,
        padding: int | tuple[int, int] = 0,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(out_channels, eps=1e-3)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Maps [N, in_channels, H, W] to [N, out_channels, H', W']."""
        return self.relu(self.bn(self.conv(x)))


class Mixed(nn.Module):
    """Parallel branches of convolutions, concatenated.

    Args:
        layout: The branches.
        in_channels: Channels of the input.
        channels: Channels of each convolution of `layout`, in order.
    """

    def __init__(self, layout: _Layout, in_channels: int, channels: Sequence[int]) -> None:
        super().__init__()
        self.outputs = layout.outputs
        self.sources = {conv.name: conv.source for conv in layout.convs}
        self.pool = nn.MaxPool2d(3, 2) if layout.shrinks else nn.AvgPool2d(3, 1, padding=1)
        width = {"x": in_channels, "pool": in_channels}
        for conv, out_channels in zip(layout.convs, channels, strict=True):
            rows, columns = [conv.kernel] * 2 if isinstance(conv.kernel, int) else conv.kernel
            padding = (rows // 2, columns // 2) if conv.stride == 1 else 0
            self.add_module(
                conv.name,
                ConvNormReLU(width[conv.source], out_channels, conv.kernel, conv.stride, padding),
            )
            width[conv.name] = out_channels

    def forward(self, x: Tensor) -> Tensor:
        """Maps [N, in_channels, H, W] to the concatenated outputs [N, sum of channels, H', W']."""
        values = {"x": x, "pool": self.pool(x)}
        for name, source in self.sources.items():
            values[name] = self.get_submodule(name)(values[source])
        return torch.cat([values[name] for name in self.outputs], 1)


class AuxHead(nn.Module):
    """Classifier on a middle layer that helps the gradient on its way; training only.

    Args:
        in_channels: Channels of the input.
        classes: Number of labels.
        width: Width factor.
    """

    def __init__(self, in_channels: int, classes: int, width: float) -> None:
        super().__init__()
        self.conv0 = ConvNormReLU(in_channels, scaled(128, width), 1)
        self.conv1 = ConvNormReLU(scaled(128, width), scaled(768, width), _AUX_SIDE)
        self.fc = nn.Linear(scaled(768, width), classes)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [N, in_channels, H, W] to logits [N, classes].

        Below 299 pixels the paper's pooling leaves too little for the 5x5 convolution; the map
        is then averaged to 5x5 whatever its size, so that the weights fit every image size.
        """
        if min(x.shape[2:]) >= _AUX_PLAIN_FROM:
            x = F.avg_pool2d(x, 5, 3)
        else:
            x = F.adaptive_avg_pool2d(x, _AUX_SIDE)
        x = self.conv1(self.conv0(x))
        return self.fc(x.mean((2, 3)))


class Inception(Network):
    """Stem of five convolutions, eleven mixed modules, mean over positions, linear output.

    Args:
        in_channels: Channels of an image.
        classes: Number of labels.
        factors: Width factor of each layer, by its name.
        aux_width: Width factor of the auxiliary head, or None for a network without it.
        dropout: Share of the last hidden units that training drops.
    """

    smallest_image = _SMALLEST

    def __init__(
        self,
        in_channels: int,
        classes: int,
        factors: dict[str, float],
        aux_width: float | None,
        dropout: float,
    ) -> None:
        super().__init__()
        self.ablation_layers = ()
        self.output_layers = ("fc",)
        self.AuxLogits: AuxHead | None = None
        width = in_channels
        for name, layer in _LAYERS.items():
            if isinstance(layer, _Stem):
                channels = scaled(layer.channels, factors[name])
                self.add_module(
                    name, ConvNormReLU(width, channels, layer.kernel, layer.stride, layer.padding)
                )
                if layer.pool:
                    self.add_module(layer.pool, nn.MaxPool2d(3, 2))
                self.ablation_layers += (f"{name}.relu",)
                width = channels
            else:
                inner = [scaled(conv.channels, factors[name]) for conv in layer.convs]
                self.add_module(name, Mixed(layer, width, inner))
                self.ablation_layers += tuple(f"{name}.{conv.name}.relu" for conv in layer.convs)
                by_name = dict(zip((conv.name for conv in layer.convs), inner, strict=True))
                width = sum(by_name.get(output, width) for output in layer.outputs)
            if name == _AUX_AFTER and aux_width is not None:
                self.AuxLogits = AuxHead(width, classes, aux_width)
                self.output_layers += ("AuxLogits.fc",)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(width, classes)
        self.redundancy_layers = tuple(_LAYERS)

    def forward(self, x: Tensor) -> Tensor | InceptionOutput:
        """Label images [N, in_channels, H, W] of at least 75x75 pixels.

        Returns:
            Logits [N, classes] in evaluation mode or without an auxiliary head; in training mode
            an `InceptionOutput` of logits and auxiliary logits.
        """
        aux_logits = None
        for name, layer in _LAYERS.items():
            x = self.get_submodule(name)(x)
            if isinstance(layer, _Stem) and layer.pool:
                x = self.get_submodule(layer.pool)(x)
            if name == _AUX_AFTER and self.training and self.AuxLogits is not None:
                aux_logits = self.AuxLogits(x)
        logits = self.fc(self.flatten(self.dropout(self.avgpool(x))))
        return logits if aux_logits is None else InceptionOutput(logits, aux_logits)

    def drop_training_parts(self) -> None:
        """Remove the auxiliary head in place; `spec` then describes a network without it."""
        self.AuxLogits = None
        self.output_layers = ("fc",)
        self.spec = Spec(self.spec.family, {**self.spec.args, "aux": False})


def _make_whole(
    in_channels: int,
    image_size: int | list[int],  # any size fits: the positions are averaged at the end
    classes: int,
    width: float,
    aux: bool,
    dropout: float,
) -> Inception:
    factors = dict.fromkeys(_LAYERS, width)
    return Inception(in_channels, classes, factors, width if aux else None, dropout)


def _make_layer(
    in_channels: int,
    image_size: int | list[int],  # as above
    classes: int,
    width: float,
    aux: bool,
    dropout: float,
    layer: str,
) -> Inception:
    factors = {**dict.fromkeys(_LAYERS, 1.0), layer: width}
    return Inception(in_channels, classes, factors, 1.0 if aux else None, dropout)


def _family(
    name: str,
    summary: str,
    make: Callable[..., Inception],
    more: dict[str, arguments.Argument],
) -> ModelFamily:
    return ModelFamily(
        name=name,
        summary=summary,
        arguments={
            "width": arguments.width(),
            **more,
            **arguments.images(channels=3, size=299, smallest=_SMALLEST, classes=1000),
            # The standard deviation of the convolutions in the authors' code.
            "init": arguments.init("normal:0.1"),
            "dropout": arguments.dropout(),
            "aux": arguments.switch(True, "an auxiliary head, used in training only"),
        },
        make=make,
    )


INCEPTION_V3 = _family(
    "inception_v3", "ImageNet: five convolutions and eleven mixed modules", _make_whole, {}
)
# The paper does not say which layer it varied.
INCEPTION_V3_LAYER = _family(
    "inception_v3_layer",
    "inception_v3 with the width of one layer varied, the others at 1x",
    _make_layer,
    {"layer": arguments.choice(_AUX_AFTER, tuple(_LAYERS), "the layer that width applies to")},
)
