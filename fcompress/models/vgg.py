"""A plain stack of 3x3 convolutions in the manner of VGG, for small images.

The layout is configuration A of Simonyan and Zisserman (2015), "Very deep convolutional networks
for large-scale image recognition", at half its channels and without its last block, which small
images leave no pixels for: one, one, two and two convolutions, the first three blocks each
followed by a 2x2 max pool. Batch normalisation (Ioffe and Szegedy 2015) stands between each
convolution and its ReLU. The mean over the positions that remain feeds one hidden linear layer,
where the paper has two on the flattened map.
"""

from torch import Tensor, nn

from fcompress.models import arguments
from fcompress.models.arguments import scaled
from fcompress.models.base import ModelFamily, Network

# Channels and convolutions of each block at 1x, and units of the hidden linear layer.
_BLOCKS = ((32, 1), (64, 1), (128, 2), (256, 2))
_HIDDEN = 256
# Three pools must each find a window that lies inside the image.
_SMALLEST = 8


class VGG(Network):
    """Blocks of convolutions with pools between them, mean over positions, two linear layers.

    Args:
        in_channels: Channels of an image.
        image_size: Side of an image, or [height, width]; any size fits.
        classes: Number of labels.
        width: Width factor.
        dropout: Share of the units of the hidden linear layer that training drops.
    """

    smallest_image = _SMALLEST

    def __init__(
        self,
        in_channels: int,
        image_size: int | list[int],
        classes: int,
        width: float,
        dropout: float,
    ) -> None:
        super().__init__()
        self.blocks = tuple(f"block{number}" for number in range(1, len(_BLOCKS) + 1))
        self.ablation_layers = ()
        channels = in_channels
        for name, (units, length) in zip(self.blocks, _BLOCKS, strict=True):
            block = nn.Sequential()
            for number in range(1, length + 1):
                out_channels = scaled(units, width)
                block.add_module(
                    f"conv{number}", nn.Conv2d(channels, out_channels, 3, padding=1, bias=False)
                )
                block.add_module(f"bn{number}", nn.BatchNorm2d(out_channels))
                block.add_module(f"relu{number}", nn.ReLU())
                self.ablation_layers += (f"{name}.relu{number}",)
                channels = out_channels
            if name != self.blocks[-1]:
                block.add_module("pool", nn.MaxPool2d(2))
            self.add_module(name, block)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        hidden = scaled(_HIDDEN, width)
        self.fc1 = nn.Linear(channels, hidden)
        self.relu = nn.ReLU()
        self.dropout = nn.Dropout(dropout)
        self.fc2 = nn.Linear(hidden, classes)
        self.ablation_layers += ("relu",)
        self.redundancy_layers = self.ablation_layers
        self.output_layers = ("fc2",)

    def forward(self, x: Tensor) -> Tensor:
        """Label images [N, in_channels, H, W] of any size from 8; returns logits [N, classes]."""
        for name in self.blocks:
            x = self.get_submodule(name)(x)
        x = self.relu(self.fc1(self.flatten(self.avgpool(x))))
        return self.fc2(self.dropout(x))


FAMILY = ModelFamily(
    name="vgg",
    summary="plain 3x3 convolutions with batch norm: 32, 64, 2 of 128, 2 of 256, fc 256",
    arguments={
        "width": arguments.width(),
        **arguments.images(channels=3, size=28, smallest=_SMALLEST, classes=10),
        "init": arguments.init("he_normal"),
        "dropout": arguments.dropout(),
    },
    make=VGG,
)
