"""Every number of every command: nasty values are a line, never a traceback."""

import math

import click
import numpy as np
import pytest
from click.testing import CliRunner

from fcompress import FcompressError, build, load_data
from fcompress.arguments.numbers import LARGEST, OutOfRange, real_text, whole
from fcompress.cli import main
from fcompress.cli.boundary import Command, Real, Several, Whole
from fcompress.cli.boundary.numbers import Multiple
from fcompress.compress.options import ShrinkOptions
from fcompress.measure.options import AnalyzeOptions
from fcompress.training.config import TrainConfig

NASTY = (
    "", " ", "-", "+", ".", "e", "x", "1_000", "٣", "²", "１", "0x10", "1e", "--1", "1 2", "1;2",
    "inf,1", "nan", "NaN", "-nan", "inf", "-inf", "Infinity", "1e400", "-1e400", "1e99999999",
    "5e-324",
    "1" * 5000, "-" + "1" * 5000, "0." + "1" * 5000, "True", "None", "[]", "1\n", "\x00", "½",
)  # fmt: skip
BEYOND = ("9" * 30, str(-(10**30)), str(2**63), "-1.5")


def commands(group=main, prefix=()):
    """Every command of the tree, with its words."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from commands(command, (*prefix, name))
        else:
            yield (*prefix, name), command


def numbers():
    """Every option whose value is a number."""
    for words, command in commands():
        for parameter in command.params:
            if isinstance(parameter.type, Whole | Real | Several | Multiple):
                yield words, parameter


NUMBERS = list(numbers())


def test_all_numbers_are_of_these_types():
    assert len(NUMBERS) > 45
    plain = (click.types.IntParamType, click.types.FloatParamType, click.IntRange, click.FloatRange)
    for words, command in commands():
        assert isinstance(command, Command), words
        for parameter in command.params:
            kind = parameter.type
            assert isinstance(kind, Whole | Real) or not isinstance(kind, plain), (words, parameter)
    # The number of other options is read when its kind is: the distance of --within.
    assert {p.name for _, p in NUMBERS} >= {"seed", "data_seed", "epochs", "steps", "tol", "mean"}


@pytest.mark.parametrize(
    ("words", "parameter"), NUMBERS, ids=lambda x: x.name if hasattr(x, "name") else "-".join(x)
)
def test_nasty_values_are_refused(words, parameter):
    """In each option alone: the first thing that is wrong with a command is what it says."""
    for value in (*NASTY, *BEYOND):
        try:
            found = parameter.type.convert(value, parameter, None)
        except click.BadParameter as error:
            text = error.format_message()
            assert len(text) < 300 and "\n1" not in text
            continue
        parts = found if isinstance(found, tuple) else (found,)
        assert all(math.isfinite(part) for part in parts)
        assert value in BEYOND, (words, value)


@pytest.mark.parametrize("words", [words for words, _ in commands()], ids="-".join)
def test_the_command_says_so_and_is_not_run(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _, parameter in (one for one in NUMBERS if one[0] == words):
        for value in ("nan", "1_0", "1" * 5000, "inf"):
            ran = CliRunner().invoke(main, [*words, parameter.opts[0], value])
            assert ran.exit_code == 2 and isinstance(ran.exception, SystemExit), ran.output
            assert "Traceback" not in ran.output and len(ran.stderr.splitlines()) <= 4
    assert not list(tmp_path.iterdir())


def test_right_values_are_taken():
    """The control: what is refused is not everything."""
    for kind, text, value in (
        (Whole(0), str(LARGEST), LARGEST),
        (Whole(0), "0", 0),
        (Whole(2), "+7", 7),
        (Real(0, 1), ".5", 0.5),
        (Real(), "-1E-3", -1e-3),
        (Real(0, min_open=True), "1e-300", 1e-300),
        (Several(Whole(1), ""), "3,4x5", (3, 4, 5)),
        (Multiple(), "auto", "auto"),
        (Multiple(), "8", 8),
    ):
        assert kind.convert(text, None, None) == value
    assert Real(0, 1, max_open=True).convert(0.2, None, None) == 0.2
    with pytest.raises(click.BadParameter):
        Real(0, 1, max_open=True).convert("1", None, None)


@pytest.mark.parametrize(
    "spec",
    [
        "gaussian:10,seed={}",
        "gaussian:{}",
        "gaussian:10,n={}",
        "fashion-mnist,size={}",
        "cifar10,crop={}",
        "digits,train={}",
    ],
)
def test_data_specs(spec):
    for value in (*NASTY, "9" * 30, "1e30", str(2**63), "-1"):
        if value.strip() != value:
            continue  # what stands around a spec is not read
        with pytest.raises(FcompressError) as error:
            load_data(spec.format(value))
        assert len(str(error.value)) < 12_000


@pytest.mark.parametrize(
    "value", [-1, 2**63, 10**30, 10**5000, 1.5, "1", None, math.nan, True], ids=range(9)
)
def test_python_has_the_same_ranges(value):
    for make in (
        lambda: ShrinkOptions(seed=value),
        lambda: AnalyzeOptions(seed=value),
        lambda: TrainConfig(seed=value),
        lambda: AnalyzeOptions(steps=value if value is not True else 0),
        lambda: TrainConfig(epochs=value),
        lambda: load_data("digits", seed=value),
    ):
        with pytest.raises((FcompressError, ValueError)) as error:
            make()
        assert isinstance(error.value, FcompressError)


def test_python_takes_numbers_of_numpy():
    assert type(ShrinkOptions(seed=np.int64(3), calibration=np.uint8(9)).seed) is int
    assert ShrinkOptions(round_to=np.int32(8)).round_to == 8
    assert AnalyzeOptions(steps=np.int16(4)).steps == 4
    assert TrainConfig(batch_size=np.int64(64)).batch_size == 64
    assert load_data("digits", seed=np.int64(0)).info["seed"] == 0
    with pytest.raises(OutOfRange):
        whole("n", np.float64(3))
    with pytest.raises(ValueError, match="not a number"):
        real_text("1_0")
    assert build("mlp", in_features=4, classes=2) is not None
