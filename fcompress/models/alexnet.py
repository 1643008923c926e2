"""AlexNet for CIFAR-10: two convolutions and two hidden linear layers.

The layers are those of Zhang et al. (2017), "Understanding deep learning requires rethinking
generalization", Appendix A, with local response normalisation after each pooling (docs/protocol.md
section 4). What that text leaves open follows the authors' code for this paper: "same" padding (a
3x3 pool of stride 2 makes n pixels ceil(n / 2)), and a local response normalisation over five
channels, x / (1 + 2e-5 * energy) ^ 0.75. torch divides its `alpha` by the size, hence 5 * 2e-5
here. Differently from that code, every bias starts at zero.
"""

from torch import Tensor, nn

from fcompress.models import arguments
from fcompress.models.arguments import scaled
from fcompress.models.base import ModelFamily, Network
from fcompress.nn.local_response_norm import LocalResponseNorm

# Two pools must each find a window that starts inside the image.
_SMALLEST = 4
_LRN_SIZE = 5
_LRN_ALPHA = _LRN_SIZE * 2e-5


class AlexNet(Network):
    """conv 96, pool, norm, conv 256, pool, norm, fc 384, fc 192, fc classes.

    Args:
        in_channels: Channels of an image.
        image_size: Side of an image, or [height, width].
        classes: Number of labels.
        width: Width factor.
        dropout: Share of the units of fc3 and fc4 that training drops.
    """

    def __init__(
        self,
        in_channels: int,
        image_size: int | list[int],
        classes: int,
        width: float,
        dropout: float,
    ) -> None:
        super().__init__()
        first, second, third, fourth = (scaled(units, width) for units in (96, 256, 384, 192))
        self.conv1 = nn.Conv2d(in_channels, first, 5, padding=2)
        self.relu1 = nn.ReLU()
        # On an even side, rounding up is the "same" padding of TensorFlow.
        self.pool1 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.lrn1 = LocalResponseNorm(_LRN_SIZE, _LRN_ALPHA, 0.75, 1.0, first)
        self.conv2 = nn.Conv2d(first, second, 5, padding=2)
        self.relu2 = nn.ReLU()
        self.pool2 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.lrn2 = LocalResponseNorm(_LRN_SIZE, _LRN_ALPHA, 0.75, 1.0, second)
        self.flatten = nn.Flatten()
        height, length = [image_size] * 2 if isinstance(image_size, int) else image_size
        self.fc3 = nn.Linear(second * _pooled(height) * _pooled(length), third)
        self.relu3 = nn.ReLU()
        self.dropout3 = nn.Dropout(dropout)
        self.fc4 = nn.Linear(third, fourth)
        self.relu4 = nn.ReLU()
        self.dropout4 = nn.Dropout(dropout)
        self.fc5 = nn.Linear(fourth, classes)
        self.ablation_layers = ("relu1", "relu2", "relu3", "relu4")
        self.redundancy_layers = self.ablation_layers
        self.output_layers = ("fc5",)

    def forward(self, x: Tensor) -> Tensor:
        """Label images [N, in_channels, height, width]; returns logits [N, classes]."""
        x = self.lrn1(self.pool1(self.relu1(self.conv1(x))))
        x = self.lrn2(self.pool2(self.relu2(self.conv2(x))))
        x = self.dropout3(self.relu3(self.fc3(self.flatten(x))))
        x = self.dropout4(self.relu4(self.fc4(x)))
        return self.fc5(x)


def _pooled(side: int) -> int:
    """Pixels that both pools leave of one side: each leaves ceil((n - 3) / 2) + 1."""
    for _ in range(2):
        side = (side - 2) // 2 + 1
    return side


FAMILY = ModelFamily(
    name="alexnet",
    summary="CIFAR variant: conv 96, 256, fc 384, 192, with local response normalisation",
    arguments={
        "width": arguments.width(),
        **arguments.images(channels=3, size=28, smallest=_SMALLEST, classes=10),
        "init": arguments.init("glorot_normal"),
        "dropout": arguments.dropout(),
    },
    make=AlexNet,
)
