"""README.md and docs/: commands exist, print what is shown, Python runs, links lead somewhere."""

import ast
import dataclasses
import re
import shlex

import click
import pytest
from cases import docs
from cases.docs import ROOT, Shown
from click.testing import CliRunner

import fcompress
from fcompress.cli import main
from fcompress.cli.main import COMMANDS
from fcompress.compress.result import ShrinkResult

PAGES = docs.pages()
TEXTS = {page: page.read_text(encoding="utf-8") for page in PAGES}
EVERYTHING = "\n".join(TEXTS.values())
README = PAGES[0]
RUN = [page for page in PAGES if docs.commands(TEXTS[page]) or docs.blocks(TEXTS[page], "python")]
LONG = ("networks.md", "deployment.md", "transformers.md")  # to run
DOCUMENTS = [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
every_document = pytest.mark.parametrize("page", DOCUMENTS, ids=lambda page: page.name)
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def command(name: str) -> click.Command:
    found = main.get_command(click.Context(main), name)
    assert found is not None
    return found


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


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name):
    result = CliRunner().invoke(main, [name, "--help"])
    assert result.exit_code == 0
    assert "Example" in result.output and f"fcompress {name}" in result.output
    for parameter in command(name).params:
        if isinstance(parameter, click.Option) and not parameter.hidden:
            assert parameter.help, parameter.name


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_shown_somewhere(name):
    assert re.search(rf"fcompress\s+{name}\b", EVERYTHING)


def test_the_readme_is_short():
    assert len(README.read_bytes()) < 9000


@every_page
def test_commands_and_options_exist(page):
    for line, _, _ in docs.commands(TEXTS[page]):
        program, name, *words = shlex.split(line)
        assert program == "fcompress" and name in COMMANDS
        assert {word for word in words if word.startswith("--")} <= options_of(name)
    everywhere = {option for name in COMMANDS for option in options_of(name)}
    own = {"--help", "--slow", "--check"}  # of every command, scripts/test, scripts/refresh-docs
    named = set(re.findall(r"(?<!\S)[(`]*(--[a-z][a-z-]+)", TEXTS[page]))
    assert named - everywhere - own == set()


@every_page
def test_shrinking_is_shown_with_its_tolerance(page):
    for line in re.findall(r"fcompress shrink \S.*\.pth?\b.*", TEXTS[page]):
        assert re.search(r"--(tol|ratio|max-\w+) ", line), line


@every_page
def test_python_uses_public_names(page):
    for block in [*docs.blocks(TEXTS[page], "python"), *docs.blocks(TEXTS[page], "py")]:
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "fcompress":
                assert node.attr in fcompress.__all__


@every_document
def test_files_that_are_named_exist(page):
    named = re.findall(r"`((?:[\w.]+/)+\w+\.\w+)`", page.read_text(encoding="utf-8"))
    missing = [
        n for n in named if not (ROOT / n).exists() and not (ROOT / "fcompress" / n).exists()
    ]
    assert missing in ([], ["demo-output/thin-0.05.html"])


@every_document
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / link).is_file(), link
        if link.endswith(".png"):
            assert (page.parent / link).stat().st_size < 300_000


def test_the_index_lists_every_page():
    index = TEXTS[ROOT / "docs" / "README.md"]
    for page in PAGES[1:]:
        assert page.name == "README.md" or f"({page.name})" in index


def test_sections_that_the_code_cites_are_there():
    cited = re.compile(r"docs/(\w+)\.md\s+(?:sections?\s+)?(\d)(?:\.(\d))?")
    found = set()
    for path in sorted((ROOT / "fcompress").rglob("*.py")):
        found |= set(cited.findall(path.read_text(encoding="utf-8")))
    assert {name for name, _, _ in found} == {"protocol", "design"}
    for name, section, item in found:
        text = TEXTS[ROOT / "docs" / f"{name}.md"]
        part = re.search(rf"^## {section}\. .*?(?=^## |\Z)", text, re.M | re.S)
        assert part, (name, section)
        assert not item or re.search(rf"^{item}\. ", part[0], re.M), (name, section, item)


def test_keys_of_shrink_are_listed():
    fields = {field.name for field in dataclasses.fields(ShrinkResult)} - {"model", "evidence"}
    fields |= {field.name for field in dataclasses.fields(fcompress.AgreementResult)}
    listed = TEXTS[ROOT / "docs" / "files.md"]
    assert {name for name in fields if f"`{name}`" not in listed} == set()


@pytest.mark.parametrize(
    "page",
    [pytest.param(p, marks=pytest.mark.slow) if p.name in LONG else p for p in RUN],
    ids=lambda page: page.name,
)
def test_a_page_shows_what_is_printed(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for shown in docs.run(page):
        assert docs.missing(shown) == [], shown.what


def shown(lines: str, printed: str) -> list[str]:
    return docs.refreshed(Shown("a", 0, lines.splitlines(), printed.splitlines()))


def test_refreshing_takes_over_numbers_words_and_new_lines():
    printed = "begin\n1 of 3\n2 of 3\n3 of 3\nnot pruned: out\nMACs 99\nkept 7\n"
    assert shown("begin\n...\nleft, pruned: out\nMACs 5\nkept 6", printed) == [
        "begin",
        "...",
        "not pruned: out",
        "MACs 99",
        "kept 7",
    ]
    assert shown("...", printed) == ["..."]
    assert shown("...\nMACs 5\n...", printed) == ["...", "MACs 99", "..."]
    assert shown("begin\n3 of 3\nkept 6", printed) == printed.splitlines()
    assert shown("...\nquite another thing", printed) == ["...", "quite another thing"]
    epochs = "".join(f"epoch {n}/20: {n * 7}\n" for n in range(1, 21))
    assert shown("epoch 1/20: 1\n...\nepoch 20/20: 2\ndone 3", epochs + "done 5  \n \n") == [
        "epoch 1/20: 7",
        "...",
        "epoch 20/20: 140",
        "done 5",
    ]
