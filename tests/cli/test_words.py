"""The words of the field: idioms of the first versions return neither in help nor in messages."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

import fcompress
from fcompress.cli.main import COMMANDS, main
from fcompress.cli.recipe import recipe_command

PACKAGE = Path(fcompress.__file__).parent
ALL = [(), *((name,) for name in COMMANDS), *(("recipe", name) for name in recipe_command.commands)]
# What was said -> what is said.
OLD = {
    r"[Ll]eft alone": "not pruned",
    r"[Pp]olish": "distil",
    r"\b[Mm]end": "compensate or refit",
    r"[Rr]efactor": "refit",
    r"\bsaid in ONNX": "exported to ONNX",
    r"\bOf all choices": "random seed",
    r"[Nn]othing was promised": "no tolerance is certified",
    r"networks were tested": "candidates were tested",
    r"\bone after the other": "one at a time",
    r"\bSay what": "describe",
    r"\b[Tt]hin(ned)? network": "compressed network",
    r"\b[Ww]ide network": "original network",
    r"\bWIDE\b|\bTHIN\b": "ORIGINAL, COMPRESSED",
}
# File -> idiom that it may hold, and why.
ALLOWED = {
    # Names that were and that files and scripts still have: options, arguments, JSON keys.
    ("cli/shrink.py", r"[Pp]olish"): "the options' old names",
    ("compress/result.py", r"[Pp]olish"): "the attribute's old name, and keys of the JSON",
    ("experiments/names.py", r"[Pp]olish"): "settings of recipes",
    ("experiments/measures/shrinking_by_width.py", r"[Pp]olish"): "settings of recipes",
    # The paper compares wide networks with thin ones.
    ("experiments/measures/interpretability.py", r"\b[Tt]hin(ned)? network"): "Fig. 5",
    ("experiments/measures/interpretability.py", r"\b[Ww]ide network"): "Fig. 5",
    ("experiments/measures/shrinking_by_width.py", r"\b[Ww]ide network"): "section 4",
    ("experiments/report/feature_figure.py", r"\b[Tt]hin(ned)? network"): "Fig. 5",
    ("experiments/report/feature_figure.py", r"\b[Ww]ide network"): "Fig. 5",
    ("experiments/report/summary.py", r"\b[Ww]ide network"): "Fig. 5",
    # Of bytes in a file.
    ("formats/safetensors.py", r"\bone after the other"): "an order",
}


def private_docstrings(tree: ast.AST, private: bool = False) -> Iterator[ast.AST]:
    """The docstrings of what begins with an underscore, and of what stands inside of it."""
    for node in ast.iter_child_nodes(tree):
        named = isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef)
        hidden = private or (named and node.name.startswith("_"))
        if named and hidden and node.body and isinstance(node.body[0], ast.Expr):
            yield node.body[0].value
        yield from private_docstrings(node, hidden)


def texts(source: str) -> Iterator[tuple[int, str]]:
    """Line and value of every string, except the docstrings of what is private."""
    tree = ast.parse(source)
    left_out = {id(node) for node in private_docstrings(tree)}
    for node in ast.walk(tree):
        value = node.value if isinstance(node, ast.Constant) else None
        if isinstance(value, str) and id(node) not in left_out:
            yield node.lineno, " ".join(value.split())  # docstrings are broken anywhere


def test_the_search_finds_what_it_is_for():
    source = (
        'def f():\n    "left alone"\n\n\n'
        'def _g():\n    "left alone"\n    say(f"left\\n alone: {1}")'
    )
    assert [line for line, text in texts(source) if "left alone" in text] == [2, 7]


@pytest.mark.parametrize("command", ALL, ids=" ".join)
def test_help_uses_the_words_of_the_field(command):
    text = CliRunner().invoke(main, [*command, "--help"]).stdout
    assert text.startswith("Usage: fcompress")
    assert [idiom for idiom in OLD if re.search(idiom, " ".join(text.split()))] == []


def test_messages_and_docstrings_use_the_words_of_the_field():
    found = [
        f"{file}:{line}: {idiom} -> {better}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for file in [path.relative_to(PACKAGE).as_posix()]
        for line, text in texts(path.read_text())
        for idiom, better in OLD.items()
        if re.search(idiom, text) and (file, idiom) not in ALLOWED
    ]
    assert found == []


def test_what_is_allowed_is_still_there():
    for file, idiom in ALLOWED:
        read = (PACKAGE / file).read_text()
        assert any(re.search(idiom, text) for _, text in texts(read)), (file, idiom)
