"""What every network of the registry is: a module that knows how it was built."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from fcompress.models.arguments import Argument, resolve
from fcompress.models.init import INITS


@dataclass(frozen=True)
class Spec:
    """How a network was built: `build(spec.family, **spec.args)` gives the same shapes.

    After excision it still says how the original network was built.

    Attributes:
        family: Name in the registry.
        args: Every argument of the family, as plain values.
    """

    family: str
    args: dict[str, Any]

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one example: (features,) or (channels, height, width)."""
        if self.args.get("in_features") is not None:
            return (self.args["in_features"],)
        size = self.args["image_size"]
        height, width = (size, size) if isinstance(size, int) else size
        return (self.args["in_channels"], height, width)


class Remembering(nn.Module):
    """A module that knows itself where it comes from.

    Attributes:
        origin: {"data": what identifies the training data or None, "history": list of what was
            done to it}, all plain values; kept in its file.
    """

    origin: dict[str, Any]


class Network(Remembering):
    """A network of the registry; `forward` maps [N, *input_shape] to logits [N, classes].

    Attributes:
        spec: How it was built.
        ablation_layers: Names of the submodules whose output is the post-activation value of one
            layer, in the order of computation (docs/protocol.md 1.2); each is an `nn.ReLU` of its
            own and runs exactly once in a forward pass in evaluation mode.
        redundancy_layers: Names of the submodules whose output is measured for redundancy
            (docs/protocol.md 2.5), in the order of computation.
        output_layers: Names of the layers that give logits.
        smallest_image: Height of the smallest image that fits the weights, or None where the
            weights fit one image size only.
    """

    spec: Spec
    ablation_layers: tuple[str, ...]
    redundancy_layers: tuple[str, ...]
    output_layers: tuple[str, ...]
    smallest_image: ClassVar[int | None] = None

    def drop_training_parts(self) -> None:
        """Remove what only training uses (an auxiliary head), in place; the logits stay."""


@dataclass(frozen=True)
class ModelFamily:
    """One architecture of the registry.

    Attributes:
        name: What users call it.
        summary: What it is, in one line.
        arguments: Each argument by name.
        make: Builds the network from a value of every argument except `init`.
        inits: The initializers that `init` takes; STD and S stand for numbers.
    """

    name: str
    summary: str
    arguments: Mapping[str, Argument]
    make: Callable[..., Network]
    inits: tuple[str, ...] = INITS

    @property
    def defaults(self) -> dict[str, Any]:
        """Default of each argument."""
        return {name: argument.default for name, argument in self.arguments.items()}

    def resolve(self, args: Mapping[str, Any]) -> dict[str, Any]:
        """Check `args` and add the defaults; see `fcompress.models.arguments.resolve`."""
        return resolve(self.name, self.arguments, args)
