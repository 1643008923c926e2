"""Multilayer perceptrons with ReLU (paper, Table 1; docs/protocol.md section 4)."""

from typing import Any

from torch import Tensor, nn

from fcompress.errors import FcompressError
from fcompress.models import arguments
from fcompress.models.arguments import Argument
from fcompress.models.base import ModelFamily, Network

_IN_CHANNELS, _IMAGE_SIZE = 1, 28


class MLP(Network):
    """`depth` hidden layers of equal width and a linear output.

    Args:
        in_features: Values of one example.
        hidden: Units of each hidden layer.
        depth: Number of hidden layers.
        classes: Number of labels.
    """

    def __init__(self, in_features: int, hidden: int, depth: int, classes: int) -> None:
        super().__init__()
        self.depth = depth
        for number in range(1, depth + 1):
            self.add_module(f"fc{number}", nn.Linear(in_features, hidden))
            self.add_module(f"relu{number}", nn.ReLU())
            in_features = hidden
        self.out = nn.Linear(in_features, classes)
        self.ablation_layers = tuple(f"relu{number}" for number in range(1, depth + 1))
        self.redundancy_layers = self.ablation_layers
        self.output_layers = ("out",)

    def forward(self, x: Tensor) -> Tensor:
        """Label `x` [N, *any shape with in_features values]; returns logits [N, classes]."""
        x = x.flatten(1)
        for number in range(1, self.depth + 1):
            x = self.get_submodule(f"relu{number}")(self.get_submodule(f"fc{number}")(x))
        return self.out(x)


class MLPFamily(ModelFamily):
    """Takes either `in_features` or the shape of an image."""

    def resolve(self, args: Any) -> dict[str, Any]:
        """As in `ModelFamily`; the shape of an image has its defaults where nothing is given."""
        resolved = super().resolve(args)
        shape = resolved["in_channels"], resolved["image_size"]
        if resolved["in_features"] is None:
            resolved["in_channels"] = shape[0] or _IN_CHANNELS
            resolved["image_size"] = shape[1] or _IMAGE_SIZE
        elif shape != (None, None):
            raise FcompressError(
                "mlp: give either in_features or in_channels and image_size, not both"
            )
        return resolved


def _make(
    in_features: int | None,
    in_channels: int | None,
    image_size: int | list[int] | None,
    classes: int,
    width: float,
    hidden: int,
    depth: int,
) -> MLP:
    if in_features is None:
        assert in_channels is not None and image_size is not None
        height, length = [image_size] * 2 if isinstance(image_size, int) else image_size
        in_features = in_channels * height * length
    return MLP(in_features, arguments.scaled(hidden, width), depth, classes)


FAMILY = MLPFamily(
    name="mlp",
    summary="fully connected layers with ReLU, any input size, depth and number of classes",
    arguments={
        "width": arguments.width(),
        "in_features": Argument(
            None, arguments.optional(arguments.whole()), "values of an example, if not an image"
        ),
        "in_channels": Argument(
            None, arguments.optional(arguments.whole()), f"channels of an image ({_IN_CHANNELS})"
        ),
        "image_size": Argument(
            None,
            arguments.optional(arguments.image_size(1)),
            f"side of an image, or (height, width) ({_IMAGE_SIZE})",
        ),
        "classes": Argument(10, arguments.whole(), "number of labels"),
        "hidden": arguments.hidden(128),
        "depth": arguments.depth(1),
        "init": arguments.init("he_normal"),
    },
    make=_make,
)
