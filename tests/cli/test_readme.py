"""The README: its commands exist, print what it shows, and its Python runs."""

import ast
import contextlib
import dataclasses
import io
import re
import shlex
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import fcompress
from fcompress.cli import main
from fcompress.cli.main import COMMANDS
from fcompress.compress.result import ShrinkResult

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.M | re.S)


def runs() -> list[tuple[str, list[str]]]:
    """Each command of the tour with the lines that it is said to print."""
    found: list[tuple[str, list[str]]] = []
    for line in "".join(blocks("console")).splitlines():
        if line.startswith("$ "):
            found.append((line[2:], []))
        elif line.strip() and line.strip() != "...":
            found[-1][1].append(line)
    return found


def without_numbers(line: str) -> str:
    """The line without what another processor changes: numbers, and the room they take."""
    line = re.sub(r"\d[\d,]*(\.\d+)?(e[+-]?\d+)?", "#", line)
    return " ".join(re.sub("─+", "─", line).split())


def options_of(name: str) -> set[str]:
    """Options of a command, those of its subcommands included."""
    found = command(name)
    every = [found, *(found.commands.values() if isinstance(found, click.Group) else ())]
    return {
        option
        for one in every
        for parameter in one.params
        for option in (*parameter.opts, *parameter.secondary_opts)
    }


def command(name: str) -> click.Command:
    found = main.get_command(click.Context(main), name)
    assert found is not None
    return found


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name):
    result = CliRunner().invoke(main, [name, "--help"])
    assert result.exit_code == 0
    assert "Example" in result.output and f"fcompress {name}" in result.output
    for parameter in command(name).params:
        if isinstance(parameter, click.Option):
            assert parameter.help, parameter.name


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_in_the_readme(name):
    assert re.search(rf"fcompress\s+{name}\b", README)


def test_commands_and_options_in_the_readme_exist():
    assert runs()
    for line, _ in runs():
        program, name, *words = shlex.split(line)
        assert program == "fcompress" and name in COMMANDS
        assert {word for word in words if word.startswith("--")} <= options_of(name)
    everywhere = {option for name in COMMANDS for option in options_of(name)}
    own = {"--slow"}  # of scripts/test
    assert set(re.findall(r"(?<!\S)`?(--[a-z][a-z-]+)", README)) <= everywhere | own


def test_python_uses_public_names():
    assert blocks("python")
    for block in blocks("python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "fcompress":
                assert node.attr in fcompress.__all__


def test_links_lead_somewhere():
    links = re.findall(r"\]\(([^)#:]+)\)", README)
    assert links
    for link in links:
        assert (ROOT / link).is_file(), link
        if link.endswith(".png"):
            assert (ROOT / link).stat().st_size < 300_000


def test_keys_of_shrink_are_listed():
    fields = {field.name for field in dataclasses.fields(ShrinkResult)} - {"model"}
    fields |= {field.name for field in dataclasses.fields(fcompress.AgreementResult)}
    assert {name for name in fields if f"`{name}`" not in README} == set()


def test_the_tour_prints_what_the_readme_shows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shown_by_python = iter(blocks("text"))
    outputs = []
    for line, shown in runs():
        result = CliRunner().invoke(main, shlex.split(line)[1:])
        assert result.exit_code == 0, f"{line}: {result.output}"
        outputs.append((line, shown, result.output))
        if "0.25" in line:  # the README says "..." for the other widths
            for width in ("0.5", "1", "2", "4"):
                again = CliRunner().invoke(main, shlex.split(line.replace("0.25", width))[1:])
                assert again.exit_code == 0
    for block in blocks("python"):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(block, "README.md", "exec"), {})
        outputs.append(("python", next(shown_by_python).splitlines(), printed.getvalue()))
    for line, shown, output in outputs:
        printed_lines = iter([without_numbers(text) for text in output.splitlines()])
        for text in shown:  # in this order, perhaps with others between
            assert without_numbers(text) in printed_lines, f"{line}: {text}"
