"""All network families, and building one by name."""

from typing import Any

import torch

from fcompress.arguments.numbers import whole
from fcompress.errors import FcompressError, suggest
from fcompress.formats.limits import check_memory
from fcompress.models import alexnet, densenet, inception, mlp, mobilenet, resnet, vgg
from fcompress.models.base import ModelFamily, Network, Spec
from fcompress.models.init import initialize

_FAMILIES = {
    family.name: family
    for family in (
        mlp.FAMILY,
        alexnet.FAMILY,
        resnet.RESNET20,
        resnet.RESNET56,
        resnet.RESNET18,
        vgg.FAMILY,
        densenet.FAMILY,
        mobilenet.FAMILY,
        inception.INCEPTION_V3,
        inception.INCEPTION_V3_LAYER,
    )
}


def families() -> dict[str, ModelFamily]:
    """Every family by name, in the order in which to list them."""
    return dict(_FAMILIES)


def build(family: str, *, seed: int | torch.Generator = 0, **args: object) -> Network:
    """Build a network with fresh weights.

    The network is on the CPU and in training mode, with weights of the default dtype. Under
    `torch.device("meta")` it has shapes but no weights, which counts parameters for free. The
    global random state stays as it was.

    Args:
        family: Name of a family (`families()` lists them).
        seed: Seed of the weights, or a CPU generator to draw them from.
        **args: Arguments of the family (`families()[family].arguments`), among them `width`.

    Returns:
        A network with `spec` (how it was built) and an empty `origin`.

    Raises:
        FcompressError: The family or an argument is unknown, a value is not allowed, or the
            network does not fit in memory.

    Example:
        >>> network = build("mlp", width=0.5, in_features=64, classes=10)
        >>> network.fc1.weight.shape
        torch.Size([64, 64])
    """
    chosen = _FAMILIES.get(family)
    if chosen is None:
        raise FcompressError(f"there is no network family {suggest(family, _FAMILIES)}")
    resolved = chosen.resolve(args)
    init = resolved["init"]
    generator = _generator(seed)
    only_shapes = torch.get_default_device().type == "meta"
    if not only_shapes:
        _check_size(chosen, resolved)
    # torch draws weights of its own as it builds each layer; ours replace them.
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta" if only_shapes else "cpu"):
            network = chosen.make(**{name: resolved[name] for name in resolved if name != "init"})
    except (RuntimeError, MemoryError, OverflowError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise FcompressError(
            f"{family}: a network of this size cannot be built ({reason}); take a smaller width"
        ) from error
    network.spec = Spec(family, resolved)
    network.origin = {"data": None, "history": []}
    if not only_shapes:
        initialize(network, init, generator, network.output_layers)
    return network


def _check_size(family: ModelFamily, resolved: dict[str, Any]) -> None:
    """See that a network fits in memory, by its shapes alone.

    Raises:
        FcompressError: It does not; says how many bytes it takes.
    """
    try:
        with torch.device("meta"):
            made = family.make(**{name: resolved[name] for name in resolved if name != "init"})
        needed = sum(t.numel() * t.element_size() for t in made.state_dict().values())
    except (RuntimeError, MemoryError, OverflowError):
        return  # building it says what is wrong
    check_memory(needed, f"a network of the family {family.name}", "take a smaller width")


def _generator(seed: int | torch.Generator) -> torch.Generator:
    if isinstance(seed, torch.Generator):
        return seed
    return torch.Generator(device="cpu").manual_seed(whole("seed", seed))
