"""Residual networks of He et al. (2016), "v1" blocks, for CIFAR and for ImageNet.

Where a block changes the number of channels or the resolution, its shortcut is a 1x1 convolution
with batch normalisation (the paper's option B) in all of them. The CIFAR networks of the paper
pad the shortcut with zero channels instead (option A): 853,018 parameters for ResNet56, with
option B 855,770, the published 0.86 M. Option B also takes any width factor, and zero channels
would be units that belong to no layer.

Submodules are named as in torchvision, so that its state dicts load; every ReLU is its own.
"""

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

from fcompress.models import arguments
from fcompress.models.arguments import scaled
from fcompress.models.base import ModelFamily, Network


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut around them.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of both convolutions.
        stride: Stride of the first convolution and of the shortcut.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv3x3(in_channels, out_channels, stride)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.relu1 = nn.ReLU()
        self.conv2 = _conv3x3(out_channels, out_channels, 1)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False),
                nn.BatchNorm2d(out_channels),
            )
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Maps [N, in_channels, H, W] to [N, out_channels, ceil(H / stride), ceil(W / stride)]."""
        y = self.relu1(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return self.relu2(y + self.downsample(x))


def _conv3x3(in_channels: int, out_channels: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)


class ResNet(Network):
    """Stem, stages of blocks, mean over positions, linear output.

    Args:
        in_channels: Channels of an image.
        classes: Number of labels.
        channels: Channels of each stage; the stem has those of the first.
        blocks: Blocks of each stage; all stages but the first begin with stride 2.
        imagenet: Stem of a 7x7 convolution with stride 2 and a 3x3 max pool with stride 2,
            instead of a 3x3 convolution.
    """

    smallest_image = 1

    def __init__(
        self,
        in_channels: int,
        classes: int,
        channels: tuple[int, ...],
        blocks: tuple[int, ...],
        imagenet: bool,
    ) -> None:
        super().__init__()
        if imagenet:
            self.conv1 = nn.Conv2d(in_channels, channels[0], 7, 2, padding=3, bias=False)
        else:
            self.conv1 = _conv3x3(in_channels, channels[0], 1)
        self.bn1 = nn.BatchNorm2d(channels[0])
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, 2, padding=1) if imagenet else nn.Identity()
        self.stages = tuple(f"layer{number}" for number in range(1, len(channels) + 1))
        self.ablation_layers = ("relu",)
        width = channels[0]
        for name, out_channels, length in zip(self.stages, channels, blocks, strict=True):
            stage = nn.Sequential()
            for index in range(length):
                stride = 2 if index == 0 and name != "layer1" else 1
                stage.append(BasicBlock(width, out_channels, stride))
                self.ablation_layers += (f"{name}.{index}.relu1", f"{name}.{index}.relu2")
                width = out_channels
            self.add_module(name, stage)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(width, classes)
        self.redundancy_layers = ("relu", *self.stages)
        self.output_layers = ("fc",)

    def forward(self, x: Tensor) -> Tensor:
        """Label images [N, in_channels, H, W] of any size; returns logits [N, classes]."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for name in self.stages:
            x = self.get_submodule(name)(x)
        return self.fc(self.flatten(self.avgpool(x)))


def _make(
    in_channels: int,
    image_size: int | list[int],  # any size fits: the positions are averaged at the end
    classes: int,
    width: float,
    *,
    channels: tuple[int, ...],
    blocks: tuple[int, ...],
    imagenet: bool,
) -> ResNet:
    widths = tuple(scaled(units, width) for units in channels)
    return ResNet(in_channels, classes, widths, blocks, imagenet)


def _family(
    name: str, summary: str, make: Callable[..., ResNet], size: int, classes: int
) -> ModelFamily:
    return ModelFamily(
        name=name,
        summary=summary,
        arguments={
            "width": arguments.width(),
            **arguments.images(channels=3, size=size, smallest=1, classes=classes),
            "init": arguments.init("glorot_normal"),
        },
        make=make,
    )


def _cifar(depth: int) -> ModelFamily:
    """Depth 6n + 2: three stages of n blocks of two convolutions, the stem, the output."""
    length = (depth - 2) // 6
    return _family(
        f"resnet{depth}",
        f"CIFAR, v1 blocks: three stages of {length} blocks with 16, 32, 64 channels",
        partial(_make, channels=(16, 32, 64), blocks=(length,) * 3, imagenet=False),
        size=28,
        classes=10,
    )


RESNET20 = _cifar(20)
RESNET56 = _cifar(56)
RESNET18 = _family(
    "resnet18",
    "ImageNet: four stages of 2 blocks with 64, 128, 256, 512 channels",
    partial(_make, channels=(64, 128, 256, 512), blocks=(2, 2, 2, 2), imagenet=True),
    size=224,
    classes=1000,
)
