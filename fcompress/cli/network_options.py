"""Options that say what a network is, how it sees its data and how its outputs are read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar

import click

from fcompress.arguments.numbers import MOST_SIDE
from fcompress.cli.boundary import PythonCode, Real, Several, Whole
from fcompress.cli.boundary.numbers import Size
from fcompress.forward.answers.asked import (
    ANSWERS,
    COSINE,
    IOU,
    NAMES,
    SCORE,
    Asked,
    asked_of,
    top_k,
)

# torch takes seconds to import, so what needs it is imported when it is used.
if TYPE_CHECKING:
    from fcompress.data.preprocess import Preprocess
    from fcompress.models.external import Architecture

# As `models.external.FORMS` has them, without torch.
FORMS = "torchvision:NAME, timm:NAME, hf:DIR, path/to/file.py:FUNCTION or package.module:FUNCTION"
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
        answer: What of the outputs counts, a key of `asked.ANSWERS`.
        within: How far outputs may move.
        cosine: The least cosine of embeddings that are the same.
        same: File and function that say which answers are the same.
        divergence: File and function that say how far apart they are.
        gallery: Data that embeddings are looked up in.
        score: Least score of boxes that count.
        iou: Least overlap of boxes that match.
        threshold: Cosine above which two inputs are of one kind.
        pad: Token id of padding.
        seen: What the network was trained on: "train" (the named dataset's training split) or
            "none" of it.
        groups: File or array that says which examples belong together.
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
    answer: str | None = None
    within: str | None = None
    cosine: float | None = None
    same: str | None = None
    divergence: str | None = None
    gallery: str | None = None
    score: float | None = None
    iou: float | None = None
    threshold: float | None = None
    pad: int | None = None
    seen: str | None = None
    groups: str | None = None

    @property
    def asked(self) -> Asked:
        """What was said of the answers; the function is imported, which runs the user's file."""
        called: dict[str, Any] = {
            name: _function(said)
            for name in ("same", "divergence")
            if (said := getattr(self, name)) is not None
        }
        try:
            return asked_of(replace(self, **called))
        except ValueError as error:
            raise click.UsageError(f"{error}.") from error

    @property
    def architecture(self) -> Architecture | None:
        """What `--arch` and `--arch-args` name."""
        if self.arch is None:
            if self.arch_args is not None:
                raise click.UsageError("--arch-args needs --arch")
            return None
        from fcompress.models.external import named, parse_args

        return named(self.arch, parse_args(self.arch_args))

    def preprocess(self, architecture: Architecture | None) -> Preprocess | None:
        """How the network sees images; None where nothing was said."""
        from fcompress.data.preprocess import of_name, of_numbers

        transform, own = self.transform, (self.arch or "").startswith("hf:")
        base = (
            None
            if transform is None
            else of_name(self.arch or "" if transform == "hf" and own else transform, architecture)
        )
        return of_numbers(
            size=self.size,
            mean=self.mean,
            std=self.std,
            input_shape=self.input_shape,
            base=base,
        )


class _Answer(click.ParamType):
    """A kind of answer."""

    name = "kind"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Check the name."""
        if value not in ANSWERS:
            try:
                top_k(value)
            except ValueError:
                self.fail(f"{value!r} is not one of {NAMES}.", param, ctx)
        return value


def _function(name: str) -> Callable[[Any, Any], Any]:
    """The function of --same, out of a file that the user named."""
    from fcompress.models.external import function_of

    return function_of(name)


GROUPS_OPTION = click.option(
    "--groups",
    metavar="FILE|KEY",
    help="Which examples belong together (a video, a patient), each group to lie in one split and "
    "to count as one: a text file with a group a line in the data's order, or the name of an array "
    "in the .npz.",
)
_OPTIONS = (
    click.option(
        "--arch",
        type=PythonCode(),
        metavar="NAME",
        help=f"Architecture of a network of your own: {FORMS}. Your code is imported and run.",
    ),
    click.option(
        "--arch-args", metavar="JSON", help="""Its arguments, as in '{"num_classes": 10}'."""
    ),
    click.option(
        "--weights-key", metavar="KEY", help="Key of the weights in the file, if it holds several."
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
        "timm, hf:DIR, or hf of --arch hf:DIR.  [default: scaled by what is measured on the data]",
    ),
    click.option(
        "--mean",
        type=Several(Real(), "0.5,0.5,0.5"),
        metavar="M,M,M",
        help="Mean of each channel, of images in 0 to 1.",
    ),
    click.option(
        "--std",
        type=Several(Real(), "0.5,0.5,0.5"),
        metavar="S,S,S",
        help="Standard deviation of each channel; belongs to --mean.",
    ),
    click.option(
        "--size",
        type=Size(Whole(1, MOST_SIDE), "224 or 224x320", (1, 2)),
        metavar="SIDE",
        help="Side of the images, or HEIGHTxWIDTH.",
    ),
    click.option(
        "--input-shape",
        type=Several(Whole(1, MOST_SIDE), "3,224,224"),
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
        "--answer",
        "--labels",
        "answer",
        type=_Answer(),
        metavar="KIND",
        help=f"What of the outputs counts: {'; '.join(f'{k}: {v}' for k, v in ANSWERS.items())}.  "
        "[default: classes; sigmoid where the last operator or the data's labels say so]",
    ),
    click.option(
        "--within",
        metavar="DISTANCE",
        help="How far an output of a regression may move: 0.1, or 10% of its standard deviation.",
    ),
    click.option(
        "--cosine",
        type=Real(-1, 1, min_open=True, max_open=True),
        metavar="C",
        help=f"Least cosine of an embedding with the original's.  [default: {COSINE:g}]",
    ),
    click.option(
        "--same",
        type=PythonCode(),
        metavar="FILE.py:FUNCTION",
        help="Your own function (original, compressed outputs) -> bool [n] that says which answers "
        "are the same. Your code is imported and run.",
    ),
    click.option(
        "--divergence",
        metavar="FILE.py:FUNCTION",
        help="Beside --same, how far apart answers are: (original, compressed outputs) -> nats "
        "[n], differentiable. It ranks and distils.",
    ),
    click.option(
        "--gallery",
        metavar="SPEC",
        help="Data whose nearest entry is the answer of an embedding, as for --data; embedded by "
        "the original.  [default: a quarter of the calibration examples]",
    ),
    click.option(
        "--score",
        type=Real(0, 1, max_open=True),
        metavar="S",
        help=f"Least score of a detector's boxes that count.  [default: {SCORE:g}]",
    ),
    click.option(
        "--iou",
        type=Real(0, 1, min_open=True, max_open=True),
        metavar="I",
        help=f"Least overlap of two boxes that match.  [default: {IOU:g}]",
    ),
    click.option(
        "--threshold",
        type=Real(-1, 1, min_open=True, max_open=True),
        metavar="T",
        help="Cosine above which the two inputs of a pair are of one kind.",
    ),
    click.option(
        "--pad",
        type=Whole(0),
        metavar="ID",
        help="Token id of padding, of --answer tokens; an attention_mask among the inputs goes "
        "first.",
    ),
    click.option(
        "--seen",
        type=click.Choice(["train", "none"]),
        help="What a network of your own has seen of a named dataset: its official training split, "
        "so that search and certification examples come from the official test split; or none of "
        "it.  [default: train]",
    ),
    GROUPS_OPTION,
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
