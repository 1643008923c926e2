"""Help: at once, without what only running needs; and the names that options had before."""

import json
import subprocess
import sys

import click
import pytest
import torch
from click.testing import CliRunner

from fcompress import __version__
from fcompress.checkpoints.checkpoint import load, save
from fcompress.cli import main, network_options
from fcompress.cli.main import COMMANDS
from fcompress.cli.output import checked, old_option
from fcompress.cli.recipe import recipe_command
from fcompress.cli.shipped.export import EXAMPLES
from fcompress.compress.options import ShrinkOptions
from fcompress.data import load_data
from fcompress.errors import FcompressError
from fcompress.exports import exporting
from fcompress.models import build, external

HEAVY = {"torch", "torchvision", "matplotlib", "numpy", "timm", "ray"}
ALL = [[], *([name] for name in COMMANDS), *(["recipe", name] for name in recipe_command.commands)]


def run(*arguments):
    return CliRunner().invoke(main, [str(a) for a in arguments])


@pytest.mark.parametrize("command", ALL, ids=" ".join)
def test_help_waits_for_nothing_heavy(command):
    code = (
        "import sys\n"
        "from fcompress.cli import main\n"
        "try: main([*sys.argv[1:], '--help'])\n"
        "except SystemExit as end: assert not end.code\n"
        f"print(*sorted({HEAVY!r} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *command], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Usage:")
    assert done.stderr.split() == []


def test_what_help_says_without_torch_is_what_holds():
    assert network_options.FORMS == external.FORMS
    assert EXAMPLES == exporting.EXAMPLES


def test_the_package_is_a_command_too():
    def ran(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "fcompress", *arguments], capture_output=True, text=True
        )

    assert ran("--version").stdout == f"fcompress, version {__version__}\n"
    assert ran("verify", "-h").stdout.startswith("Usage: fcompress verify ")
    failed = ran("show", "no-such-file")
    assert failed.returncode == 1 and failed.stderr.startswith("error: no-such-file")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A network of digits, and a smaller one."""
    folder = tmp_path_factory.mktemp("networks")
    data = load_data("digits").info
    for name, width in (("original.pt", 0.3), ("compressed.pt", 0.1)):
        save(build("mlp", in_features=64, classes=10, width=width), folder / name, data=data)
    return folder


@pytest.mark.parametrize("command", ["shrink", "export"])
def test_old_names_are_not_in_the_help(command):
    text = run(command, "--help").stdout
    assert "polish" not in text and "--wide" not in text and "--old" not in text


def test_an_original_by_its_old_name(folder, tmp_path):
    files = ("export", folder / "original.pt", "--to", tmp_path / "a.safetensors", "--json", "-")
    new = run(*files, "--original", folder / "original.pt")
    old = run(*files, "--wide", folder / "original.pt")
    assert new.exit_code == old.exit_code == 0, old.output
    assert json.loads(new.stdout) == json.loads(old.stdout)
    said = "--wide is called --original now; the old name goes with version 1.0\n"
    assert said in old.stderr and said not in new.stderr
    both = run(*files, "--wide", folder / "original.pt", "--original", folder / "original.pt")
    assert both.exit_code == 2 and "give one of them" in both.stderr
    assert load(folder / "original.pt")(torch.zeros(1, 1, 8, 8)).shape == (1, 10)


def test_distilling_by_its_old_name():
    """Both options together, without the minutes of a compression."""
    given = {}

    @click.command()
    @click.option("--distill", is_flag=True)
    @old_option("--polish", "--distill", is_flag=True)
    @click.option("--distill-seconds", type=float, default=60.0)
    @old_option("--polish-seconds", "--distill-seconds", type=float)
    def command(**options):
        given.update(options)

    ran = CliRunner().invoke(command, ["--polish", "--polish-seconds", "3"])
    assert ran.exit_code == 0, ran.output
    assert given == {"distill": True, "distill_seconds": 3.0}
    assert ran.stdout == ""
    assert ran.stderr.splitlines() == [
        "--polish is called --distill now; the old name goes with version 1.0",
        "--polish-seconds is called --distill-seconds now; the old name goes with version 1.0",
    ]
    ran = CliRunner().invoke(command, [])
    assert given == {"distill": False, "distill_seconds": 60.0} and ran.stderr == ""
    names = {name for p in main.get_command(None, "shrink").params for name in p.opts}
    assert {"--distill", "--polish", "--distill-seconds", "--polish-seconds"} <= names


def test_options_out_of_their_range_are_one_line(folder, tmp_path):
    with pytest.raises(FcompressError, match="distill_seconds=inf: expected a number above 0"):
        checked(ShrinkOptions, distill_seconds=float("inf"))
    assert checked(ShrinkOptions, tol=0.1) == ShrinkOptions(tol=0.1)
    out = tmp_path / "a.pt"
    ran = run("shrink", folder / "original.pt", "--distill-seconds", "inf", "--out", out)
    assert ran.exit_code == 2 and not out.exists()
    assert "'inf': expected a number in the range 0<x<=" in ran.stderr


def test_a_mistyped_command_is_pointed_out():
    ran = run("shrnk", "net.pt")
    assert ran.exit_code == 2 and "Did you mean 'shrink'?" in ran.stderr
    ran = run("zzzzzz")
    assert ran.exit_code == 2 and "mean" not in ran.stderr


def test_options_of_shrink_stand_in_groups():
    ran = run("shrink", "--help")
    titles = ["What to reach:", "How:", "Data:", "Network:", "Output:"]
    places = [ran.stdout.index(f"\n{title}\n") for title in titles]
    assert places == sorted(places) and "\nOptions:" not in ran.stdout
    command = main.get_command(None, "shrink")
    grouped = {name for names in command.groups.values() for name in names.split()}
    known = [{o.lstrip("-") for o in p.opts} for p in command.params if not _hidden(p)]
    assert not [names for names in known if not names & grouped]
    assert grouped - {"help"} <= set().union(*known)


@pytest.mark.parametrize("command", ["shrink", "analyze", "gain", "export"])
def test_tolerances_have_one_name_and_its_alias(command):
    names = {o for p in main.get_command(None, command).params for o in p.opts}
    assert {"--tol", "--tolerance"} <= names


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "CPU", ""])
def test_devices_that_are_none(folder, name):
    ran = run("verify", folder / "original.pt", folder / "compressed.pt", "--device", name)
    assert ran.exit_code == 2 and "expected auto|cpu|cuda|cuda:N|mps" in ran.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
@pytest.mark.parametrize("name", ["cuda:1", "cuda", "mps"])
def test_devices_that_are_not_there(folder, name):
    ran = run("verify", folder / "original.pt", folder / "compressed.pt", "--device", name)
    assert ran.exit_code == 1 and f"device {name}: torch finds" in ran.stderr


def _hidden(parameter):
    return isinstance(parameter, click.Argument) or parameter.hidden
