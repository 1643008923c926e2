"""Densely connected network with bottlenecks and compression (DenseNet-BC), for small images.

Huang et al. (2017), "Densely connected convolutional networks": each layer reads the
concatenation of all features of its block so far, and adds `growth` features of its own: batch
norm, ReLU, a 1x1 convolution to 4 * growth, batch norm, ReLU, a 3x3 convolution to growth. Between
blocks, a transition (batch norm, ReLU, 1x1 convolution to half the features, 2x2 mean pool). As in
the paper's CIFAR networks the stem is a 3x3 convolution to 2 * growth and there are three blocks;
they are much shorter here, and the first is the shortest.
"""

import torch
from torch import Tensor, nn

from fcompress.models import arguments
from fcompress.models.arguments import scaled
from fcompress.models.base import ModelFamily, Network

_GROWTH = 12
_STEM, _BOTTLENECK = 2 * _GROWTH, 4 * _GROWTH
_LAYERS = (2, 4, 6)
# Two pools must each find a window that lies inside the image.
_SMALLEST = 4


class DenseLayer(nn.Module):
    """Adds `growth` features to those that it reads.

    Args:
        in_channels: Features that it reads.
        bottleneck: Channels of the 1x1 convolution.
        growth: Channels of the 3x3 convolution.
    """

    def __init__(self, in_channels: int, bottleneck: int, growth: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.relu1 = nn.ReLU()
        self.conv1 = nn.Conv2d(in_channels, bottleneck, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(bottleneck)
        self.relu2 = nn.ReLU()
        self.conv2 = nn.Conv2d(bottleneck, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [N, in_channels, H, W] to [N, in_channels + growth, H, W]."""
        y = self.conv1(self.relu1(self.bn1(x)))
        y = self.conv2(self.relu2(self.bn2(y)))
        return torch.cat([x, y], 1)


class Transition(nn.Module):
    """Fewer features, half the resolution.

    Args:
        in_channels: Features that it reads.
        out_channels: Features that it writes.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(in_channels)
        self.relu = nn.ReLU()
        self.conv = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.pool = nn.AvgPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [N, in_channels, H, W] to [N, out_channels, H // 2, W // 2]."""
        return self.pool(self.conv(self.relu(self.bn(x))))


class DenseNet(Network):
    """Stem, dense blocks with transitions between them, mean over positions, linear output.

    Args:
        in_channels: Channels of an image.
        image_size: Side of an image, or [height, width]; any size fits.
        classes: Number of labels.
        width: Width factor.
    """

    smallest_image = _SMALLEST

    def __init__(
        self, in_channels: int, image_size: int | list[int], classes: int, width: float
    ) -> None:
        super().__init__()
        growth, bottleneck = scaled(_GROWTH, width), scaled(_BOTTLENECK, width)
        channels = scaled(_STEM, width)
        self.conv = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
        self.parts: tuple[str, ...] = ()
        self.ablation_layers = ()
        for number, length in enumerate(_LAYERS, 1):
            name = f"block{number}"
            block = nn.Sequential()
            for index in range(length):
                block.append(DenseLayer(channels, bottleneck, growth))
                self.ablation_layers += (f"{name}.{index}.relu1", f"{name}.{index}.relu2")
                channels += growth
            self.add_module(name, block)
            self.parts += (name,)
            if number < len(_LAYERS):
                name = f"transition{number}"
                self.add_module(name, Transition(channels, channels // 2))
                self.ablation_layers += (f"{name}.relu",)
                self.parts += (name,)
                channels //= 2
        self.bn = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(channels, classes)
        self.ablation_layers += ("relu",)
        self.redundancy_layers = (*self.parts, "relu")
        self.output_layers = ("fc",)

    def forward(self, x: Tensor) -> Tensor:
        """Label images [N, in_channels, H, W] of any size from 4; returns logits [N, classes]."""
        x = self.conv(x)
        for name in self.parts:
            x = self.get_submodule(name)(x)
        return self.fc(self.flatten(self.avgpool(self.relu(self.bn(x)))))


FAMILY = ModelFamily(
    name="densenet",
    summary="concatenation with bottlenecks: blocks of 2, 4, 6 layers with 12 features each",
    arguments={
        "width": arguments.width(),
        **arguments.images(channels=3, size=28, smallest=_SMALLEST, classes=10),
        "init": arguments.init("he_normal"),
    },
    make=DenseNet,
)
