"""Inverted residuals with depthwise convolutions in the manner of MobileNetV2, for small images.

The blocks are those of Sandler et al. (2018), "MobileNetV2: inverted residuals and linear
bottlenecks": a 1x1 convolution widens, a 3x3 depthwise convolution filters each channel on its
own, a 1x1 convolution without a nonlinearity narrows again, and the block's input is added where
it has the shape of the output. Differently from the paper there are fewer and wider stages, they
widen 4 times and not 6, the stem keeps the resolution and two of the stages halve it, which suits
images of about 28 pixels, and the nonlinearity is ReLU, not ReLU6.
"""

from typing import NamedTuple

from torch import Tensor, nn

from fcompress.models import arguments
from fcompress.models.arguments import scaled
from fcompress.models.base import ModelFamily, Network


class _Stage(NamedTuple):
    """Inverted residuals of one output width; the first of them has the stride (Table 2)."""

    expansion: int
    channels: int
    blocks: int
    stride: int


_STEM, _HEAD = 16, 256
_STAGES = (_Stage(1, 16, 1, 1), _Stage(4, 32, 2, 2), _Stage(4, 64, 3, 2), _Stage(4, 96, 2, 1))


class InvertedResidual(nn.Module):
    """Widen (1x1), filter each channel (3x3), narrow (1x1); add the input where it fits.

    Args:
        in_channels: Channels of the input.
        hidden: Channels between the 1x1 convolutions; None to leave the first one out.
        out_channels: Channels of the output.
        stride: Stride of the depthwise convolution.
    """

    def __init__(
        self, in_channels: int, hidden: int | None, out_channels: int, stride: int
    ) -> None:
        super().__init__()
        self.relus: tuple[str, ...] = ("relu2",)
        self.expand = nn.Sequential()
        if hidden is not None:
            self.expand.add_module("conv1", nn.Conv2d(in_channels, hidden, 1, bias=False))
            self.expand.add_module("bn1", nn.BatchNorm2d(hidden))
            self.expand.add_module("relu1", nn.ReLU())
            self.relus = ("expand.relu1", "relu2")
        inner = in_channels if hidden is None else hidden
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, padding=1, groups=inner, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.relu2 = nn.ReLU()
        self.conv3 = nn.Conv2d(inner, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.adds = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        """Maps [N, in_channels, H, W] to [N, out_channels, ceil(H / stride), ceil(W / stride)]."""
        y = self.relu2(self.bn2(self.conv2(self.expand(x))))
        y = self.bn3(self.conv3(y))
        return x + y if self.adds else y


class MobileNet(Network):
    """Stem, stages of inverted residuals, a wide 1x1 convolution, mean over positions, output.

    Args:
        in_channels: Channels of an image.
        image_size: Side of an image, or [height, width]; any size fits.
        classes: Number of labels.
        width: Width factor.
    """

    smallest_image = 1

    def __init__(
        self, in_channels: int, image_size: int | list[int], classes: int, width: float
    ) -> None:
        super().__init__()
        channels = scaled(_STEM, width)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU()
        self.stages = tuple(f"stage{number}" for number in range(1, len(_STAGES) + 1))
        self.ablation_layers = ("relu1",)
        before = _STEM
        for name, (expansion, units, length, stride) in zip(self.stages, _STAGES, strict=True):
            stage = nn.Sequential()
            for index in range(length):
                hidden = None if expansion == 1 else scaled(expansion * before, width)
                out_channels = scaled(units, width)
                block = InvertedResidual(channels, hidden, out_channels, 1 if index else stride)
                stage.append(block)
                self.ablation_layers += tuple(f"{name}.{index}.{relu}" for relu in block.relus)
                channels, before = out_channels, units
            self.add_module(name, stage)
        head = scaled(_HEAD, width)
        self.conv2 = nn.Conv2d(channels, head, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(head)
        self.relu2 = nn.ReLU()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(head, classes)
        self.ablation_layers += ("relu2",)
        self.redundancy_layers = ("relu1", *self.stages, "relu2")
        self.output_layers = ("fc",)

    def forward(self, x: Tensor) -> Tensor:
        """Label images [N, in_channels, H, W] of any size; returns logits [N, classes]."""
        x = self.relu1(self.bn1(self.conv1(x)))
        for name in self.stages:
            x = self.get_submodule(name)(x)
        x = self.relu2(self.bn2(self.conv2(x)))
        return self.fc(self.flatten(self.avgpool(x)))


FAMILY = ModelFamily(
    name="mobilenet",
    summary="depthwise convolutions: 8 inverted residuals with 16, 32, 64, 96 channels, head 256",
    arguments={
        "width": arguments.width(),
        **arguments.images(channels=3, size=28, smallest=1, classes=10),
        "init": arguments.init("he_normal"),
    },
    make=MobileNet,
)
