"""Options that say what a network is, how it sees its data and how its outputs are read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial, wraps
from pathlib import Path
from typing import Any, TypeVar

import click
from torch import nn

from fcompress.checkpoints.checkpoint import load, read
from fcompress.checkpoints.weights import Weights, load_weights, read_weights
from fcompress.data import Splits, load_data, reload_data
from fcompress.data.preprocess import Preprocess, of_name, of_numbers
from fcompress.errors import CheckpointError, DataError
from fcompress.forward.scoring import LABELS
from fcompress.models.external import FORMS, Architecture, build_network, parse_args
from fcompress.models.provenance import (
    Described,
    describe,
    described,
    note_reading,
    origin_of,
    reading_of,
    set_origin,
)

_Command = TypeVar("_Command", bound=Callable[..., Any])


@dataclass(frozen=True)
class NetworkOptions:
    """What the user said about a network that is not of the registry, as typed.

    Attributes:
        arch: Name of the architecture.
        arch_args: Its arguments, JSON.
        weights_key: Under which key of the file the weights stand.
        trust_pickle: Whether a pickle may be opened that could run code.
        transform: Name of a preset of preprocessing.
        mean: Of each channel.
        std: Of each channel.
        size: Height and width of images.
        input_shape: Of one example.
        output: Which of the network's outputs are the scores.
        labels: What a label is, one of `scoring.LABELS`.
    """

    arch: str | None = None
    arch_args: str | None = None
    weights_key: str | None = None
    trust_pickle: bool = False
    transform: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    size: tuple[int, int] | None = None
    input_shape: tuple[int, ...] | None = None
    output: str | None = None
    labels: str | None = None

    @property
    def architecture(self) -> Architecture | None:
        """What `--arch` and `--arch-args` name."""
        if self.arch is None:
            if self.arch_args is not None:
                raise click.UsageError("--arch-args needs --arch")
            return None
        return Architecture(self.arch, parse_args(self.arch_args))

    def preprocess(self, architecture: Architecture | None) -> Preprocess | None:
        """How the network sees images; None where nothing was said."""
        base = None if self.transform is None else of_name(self.transform, architecture)
        return of_numbers(
            size=self.size,
            mean=self.mean,
            std=self.std,
            input_shape=self.input_shape,
            base=base,
        )


class _Numbers(click.ParamType):
    """Numbers with commas between them, or an x where they are sizes."""

    def __init__(self, kind: type, name: str, counts: Sequence[int] = ()) -> None:
        self.kind, self.name, self._counts = kind, name, counts

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Read the numbers."""
        try:
            found = tuple(
                self.kind(part) for part in str(value).lower().replace("x", ",").split(",")
            )
        except ValueError:
            self.fail(f"{value!r}: expected numbers as in {self.name}.", param, ctx)
        if self.kind is int and min(found) < 1:
            self.fail(f"{value!r}: expected sizes of at least 1.", param, ctx)
        if self._counts and len(found) not in self._counts:
            self.fail(f"{value!r}: expected {self.name}.", param, ctx)
        return found


class _Size(_Numbers):
    """A side, or height and width."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Read the size; one number is a square's side."""
        found = super().convert(value, param, ctx)
        return found * 2 if len(found) == 1 else found


_OPTIONS = (
    click.option(
        "--arch",
        metavar="NAME",
        help=f"Architecture of a network of your own: {FORMS}. Your code is imported and run.",
    ),
    click.option(
        "--arch-args", metavar="JSON", help="""Its arguments, as in '{"num_classes": 10}'."""
    ),
    click.option(
        "--weights-key", metavar="KEY", help="Key of the weights in MODEL, if it holds several."
    ),
    click.option(
        "--trust-pickle",
        is_flag=True,
        help="Open whole pickled networks, which may run any code that their author put in.",
    ),
    click.option(
        "--transform",
        metavar="NAME",
        help="How the network sees images: torchvision:ResNet50_Weights.IMAGENET1K_V2, timm:NAME, "
        "or timm.  [default: scaled by what is measured on the data]",
    ),
    click.option(
        "--mean", type=_Numbers(float, "0.5,0.5,0.5"), metavar="M,M,M", help="Of images in 0 to 1."
    ),
    click.option(
        "--std", type=_Numbers(float, "0.5,0.5,0.5"), metavar="S,S,S", help="Belongs to --mean."
    ),
    click.option(
        "--size",
        type=_Size(int, "224 or 224x320", (1, 2)),
        metavar="SIDE",
        help="Side of the images, or HEIGHTxWIDTH.",
    ),
    click.option(
        "--input-shape",
        type=_Numbers(int, "3,224,224"),
        metavar="C,H,W",
        help="Shape of one example, where the data does not tell.",
    ),
    click.option(
        "--output",
        metavar="KEY",
        help="Which of several outputs are the scores: a key, attribute or number.  "
        "[default: logits, or the first]",
    ),
    click.option(
        "--labels",
        type=click.Choice(LABELS),
        help="What a label is: the class of the largest score; every score above 0 of a sigmoid "
        "or multi-label head; the class at every position.  [default: classes, sigmoid for a "
        "single score]",
    ),
)


def network_options(command: _Command) -> _Command:
    """The options of `NetworkOptions`, as the one argument `how`."""
    names = [f.name for f in fields(NetworkOptions)]

    @wraps(command)
    def run(*args: Any, **kwargs: Any) -> Any:
        how = NetworkOptions(**{name: kwargs.pop(name) for name in names})
        return command(*args, how=how, **kwargs)

    for option in reversed(_OPTIONS):
        run = option(run)
    return run  # type: ignore[return-value]


def open_network(path: Path, how: NetworkOptions) -> nn.Module:
    """Read a network: a file of fcompress, or weights for an architecture that the user named.

    How its labels are read is noted, as the user said or as it was compressed with.

    Raises:
        FcompressError: The file or the architecture is no good, or one does not fit the other.
    """
    network = _opened(path, how)
    if how.output is not None or how.labels is not None:
        before = reading_of(network) or {"output": None, "labels": None}
        note_reading(network, how.output or before["output"], how.labels or before["labels"])
    return network


def _opened(path: Path, how: NetworkOptions) -> nn.Module:
    architecture = how.architecture
    if architecture is None and not how.trust_pickle:
        return load(path)
    kept = _kept(path)
    if kept is not None:
        if architecture is None or kept.partition(":")[1] == "":
            return load(path)
        make = _make(architecture, how)
        # Arguments that are not given are those in the file.
        args = None if how.arch_args is None else architecture.args
        return load(path, arch=make or architecture.name, arch_args=args)
    weights = read_weights(path, trust_pickle=how.trust_pickle, key=how.weights_key)
    make = None if architecture is None else _make(architecture, how)
    if weights.module is not None and (architecture is None or make is not None):
        network = weights.module.float() if _is_half(weights.module) else weights.module
        describe(network.eval(), Described(Architecture(f"pickle:{path.name}")))
        return network
    if architecture is None:
        raise CheckpointError(
            f"{path}: holds weights without their network; name its architecture by --arch: {FORMS}"
        )
    network = build_network(architecture) if make is None else make().eval()
    if weights.module is not None:
        weights = Weights(weights.module.state_dict())
    load_weights(network, weights, f"{path} and {architecture}")
    describe(network, Described(architecture))
    return network


def _kept(path: Path) -> str | None:
    """The family in a file of fcompress; None for any other file."""
    try:
        return read(path).family
    except CheckpointError:
        return None


def _make(architecture: Architecture, how: NetworkOptions) -> Callable[[], nn.Module] | None:
    """What builds a network out of somebody's pickle; None for all other architectures."""
    kind, _, name = architecture.name.partition(":")
    if kind != "pickle":
        return None
    if not how.trust_pickle:
        raise CheckpointError(
            f"--arch {architecture.name} opens a pickle, which may run any code; add "
            "--trust-pickle if you trust who wrote it"
        )
    return partial(_unpickled, Path(name))


def _unpickled(path: Path) -> nn.Module:
    module = read_weights(path, trust_pickle=True).module
    if module is None:
        raise CheckpointError(f"{path}: holds no whole network; expected the pickle of one")
    return module


def _is_half(network: nn.Module) -> bool:
    return any(p.is_floating_point() and p.element_size() < 4 for p in network.parameters())


def open_data(
    networks: Sequence[nn.Module],
    path: Path,
    how: NetworkOptions,
    spec: str | None,
    root: Path | None,
    roles: str,
    *,
    say: Callable[[str], object] = lambda line: None,
) -> Splits:
    """The data that the user named, or that a network remembers; the networks remember it too.

    Args:
        networks: The networks at hand, the first of which should remember its data.
        path: File of the first, for errors.
        how: What the user said.
        spec: Data that the user named.
        root: Folder in which datasets are looked for first.
        roles: How a user's own data is cut (`load_data`).
        say: Told what the user should know.

    Raises:
        DataError: There is none, or it does not fit.
    """
    # A thin network remembers what weights of others, which it was made from, cannot.
    asked = networks if described(networks[0]) is not None else networks[:1]
    remembered = next((d for n in asked if (d := origin_of(n)["data"])), None)
    own = next((r.architecture for n in networks if (r := described(n)) is not None), None)
    preprocess = how.preprocess(own)
    if spec is None and remembered is None:
        raise DataError(f"{path} does not remember its data; name some by --data")
    if spec is None and preprocess is None:
        assert remembered is not None
        return reload_data(remembered, root=root)
    splits = load_data(
        spec or (remembered or {})["spec"],
        root=root,
        roles=roles,
        like=remembered,
        preprocess=preprocess,
    )
    if own is not None:
        _check_shape(how, splits)
        if remembered is None and str(splits.info["standardised_by"]).endswith(" split"):
            say(
                "Mean and deviation of each channel are measured on this data; if the network was "
                "trained on others, say so by --transform, or --mean and --std."
            )
        for network in networks:
            if described(network) is not None:
                set_origin(network, splits.info, origin_of(network)["history"])
    return splits


def _check_shape(how: NetworkOptions, splits: Splits) -> None:
    shape = tuple(splits.info["shape"])
    if how.input_shape is not None and shape != how.input_shape:
        raise DataError(
            f"--input-shape {list(how.input_shape)}, but the examples are {list(shape)}; bring "
            "other data, or leave it out"
        )
