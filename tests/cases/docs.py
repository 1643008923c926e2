"""What README.md and docs/*.md show, run: for the tests, and to bring it up to date.

    scripts/refresh-docs            runs every page and rewrites the lines that it shows
    scripts/refresh-docs --check    says what it would rewrite, numbers apart; fails if so
    scripts/refresh-docs PAGE...    these pages only

The blocks of a page run in order, in one folder of their own:

    console        commands after `$ `, with lines of what they print; `...` stands for others
    python         runs; the `text` block that follows is what it prints
    python FILE    is written to that file

Everything else (`sh`, `txt`, indented text) is not run.
"""

import argparse
import contextlib
import difflib
import io
import os
import re
import shlex
import sys
import tempfile
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from click.testing import CliRunner

from fcompress.cli import main

ROOT = Path(__file__).parents[2]
ELISION = "..."
ALIKE = 0.6  # lines of which so much is the same are one line, reworded
BLOCK = re.compile(r"^```(\w+)?(?: +(\S+))?\n(.*?)^```$", re.M | re.S)


def pages() -> list[Path]:
    """All pages, the README first."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(text: str, language: str) -> list[str]:
    """Contents of all blocks of a language."""
    return [found[3] for found in BLOCK.finditer(text) if found[1] == language]


@dataclass(frozen=True)
class Shown:
    """Lines of a page that something printed.

    Attributes:
        what: The command, or "python".
        first: Number of the first of these lines in the page, from 0.
        lines: As the page has them.
        printed: What came out, when it was run.
    """

    what: str
    first: int
    lines: list[str]
    printed: list[str]


def commands(text: str) -> list[tuple[str, int, list[str]]]:
    """Each command of the console blocks, the number of the line after it, and what it shows."""
    return [one for found in BLOCK.finditer(text) for one in _commands(text, found)]


def _commands(text: str, found: re.Match[str]) -> Iterator[tuple[str, int, list[str]]]:
    if found[1] != "console":
        return
    number = text[: found.start(3)].count("\n")
    parts: list[tuple[str, int, list[str]]] = []
    for at, line in enumerate(found[3].splitlines(), number):
        if line.startswith("$ "):
            parts.append((line[2:], at + 1, []))
        else:
            parts[-1][2].append(line)
    yield from parts


def run(page: Path) -> Iterator[Shown]:
    """Run a page in the current folder, and give what it shows beside what was printed."""
    text = page.read_text(encoding="utf-8")
    printed: list[str] | None = None  # by Python, to be compared with the next text
    for found in BLOCK.finditer(text):
        language, name, content = found[1], found[2], found[3]
        if language == "console":
            for command, first, lines in _commands(text, found):
                result = CliRunner().invoke(main, shlex.split(command)[1:])
                assert result.exit_code == 0, f"{page.name}: {command}: {result.output}"
                yield Shown(command, first, lines, result.output.splitlines())
        elif language == "python" and name:
            Path(name).write_text(content, encoding="utf-8")
        elif language == "python":
            output = io.StringIO()
            with contextlib.redirect_stdout(output), _importable():
                exec(compile(content, page.name, "exec"), {})
            printed = output.getvalue().splitlines()
        elif language == "text" and printed is not None:
            first = text[: found.start(3)].count("\n")
            yield Shown("python", first, content.splitlines(), printed)
            printed = None


@contextlib.contextmanager
def _importable() -> Iterator[None]:
    """Files of the current folder can be imported, as by a script that lies in it."""
    before = set(sys.modules)
    sys.path.insert(0, str(Path.cwd()))
    try:
        yield
    finally:
        sys.path.pop(0)
        for name in set(sys.modules) - before:
            if Path(f"{name}.py").exists():
                del sys.modules[name]


def without_numbers(line: str) -> str:
    """The line without what another processor changes: numbers, and the room they take."""
    line = re.sub(r"\d[\d,]*(\.\d+)?(e[+-]?\d+)?", "#", line)
    return " ".join(re.sub("─+", "─", line).split())


def missing(shown: Shown) -> list[str]:
    """The lines that were not printed, numbers apart, in the order in which they are shown."""
    printed = iter([without_numbers(line) for line in shown.printed])
    wanted = [line for line in shown.lines if line.strip() and line.strip() != ELISION]
    # `in` uses up the iterator: what follows has to be printed later.
    return [line for line in wanted if without_numbers(line) not in printed]


def refreshed(shown: Shown) -> list[str]:
    """The lines to show: those printed, with the same parts left out."""
    printed = _tidied(shown.printed)
    places = _aligned(shown.lines, printed)
    found: list[str] = []
    runs = _runs(shown.lines)
    for number, (begin, end) in enumerate(runs):
        if number:
            found.append(ELISION)
        there = [places[at] for at in range(begin, end) if at in places]
        # What is shown up to a border of the block goes up to the border of what was printed.
        low = 0 if number == 0 else min(there, default=None)
        high = len(printed) - 1 if number == len(runs) - 1 else max(there, default=None)
        if begin == end:  # an elision at the border
            continue
        if low is None or high is None or not there:
            found += shown.lines[begin:end]
        else:
            found += printed[low : high + 1]
    return found


def _tidied(lines: Sequence[str]) -> list[str]:
    """Without blanks at the ends of lines, and without more than one empty line in a row."""
    text = "\n".join(line.rstrip() for line in lines)
    return re.sub(r"\n{3,}", "\n\n", text.strip("\n")).splitlines()


def _runs(lines: Sequence[str]) -> list[tuple[int, int]]:
    """The parts between elisions, perhaps empty at the borders."""
    borders = [at for at, line in enumerate(lines) if line.strip() == ELISION]
    return list(zip([0, *(at + 1 for at in borders)], [*borders, len(lines)], strict=True))


def _aligned(shown: Sequence[str], printed: Sequence[str]) -> dict[int, int]:
    """Which printed line each shown one is: in order, as alike as possible."""
    best = [[0.0] * (len(printed) + 1) for _ in range(len(shown) + 1)]
    alike = [[_alike(a, b) for b in printed] for a in shown]
    for i in reversed(range(len(shown))):
        for j in reversed(range(len(printed))):
            both = alike[i][j] + best[i + 1][j + 1] if alike[i][j] else 0.0
            best[i][j] = max(both, best[i + 1][j], best[i][j + 1])
    places, i, j = {}, 0, 0
    while i < len(shown) and j < len(printed):
        if alike[i][j] and best[i][j] == alike[i][j] + best[i + 1][j + 1]:
            places[i] = j
            i, j = i + 1, j + 1
        elif best[i][j] == best[i + 1][j]:
            i += 1
        else:
            j += 1
    return places


def _alike(shown: str, printed: str) -> float:
    """How much two lines are the same, numbers apart; among those that are, the closer counts."""
    one, other = without_numbers(shown), without_numbers(printed)
    if not one or not other or one == ELISION:
        return 0.01 * (one == other)
    ratio = difflib.SequenceMatcher(None, one, other, autojunk=False).ratio()
    if one == other:
        closer = difflib.SequenceMatcher(None, shown.split(), printed.split(), autojunk=False)
        return 1 + 0.1 * closer.ratio()
    return 0.9 * ratio if ratio >= ALIKE else 0.0


@contextlib.contextmanager
def _folder() -> Iterator[None]:
    """A temporary folder to be in."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as name:
        os.chdir(name)
        try:
            yield
        finally:
            os.chdir(before)


def refresh(page: Path, *, check: bool) -> int:
    """Run a page and rewrite the lines that it shows; returns how many pieces were out of date."""
    with _folder():
        everything = list(run(page))
    lines = page.read_text(encoding="utf-8").splitlines()
    stale = 0
    for shown in reversed(everything):
        new = refreshed(shown)
        # `missing` allows lines to be left out without an elision; a change of words is reported.
        if [*map(without_numbers, new)] != [*map(without_numbers, shown.lines)] or missing(shown):
            stale += 1
            print(f"{page.name}, line {shown.first}: {shown.what}")
            changed = difflib.unified_diff(shown.lines, new, lineterm="", n=0)
            print(textwrap.indent("\n".join([*changed][2:]), "    "))
        lines[shown.first : shown.first + len(shown.lines)] = new
    if not check:
        page.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return stale


def refresh_all(arguments: Sequence[str]) -> int:
    """The command `scripts/refresh-docs`; returns its exit code."""
    parser = argparse.ArgumentParser(prog="scripts/refresh-docs")
    parser.add_argument("--check", action="store_true", help="rewrite nothing")
    parser.add_argument("pages", nargs="*", type=Path)
    asked = parser.parse_args(arguments)
    chosen = [page.resolve() for page in asked.pages] or pages()
    stale = sum(refresh(page, check=asked.check) for page in chosen)
    print(f"{stale} of what the pages show {'is' if asked.check else 'was'} out of date")
    return int(asked.check and stale > 0)


if __name__ == "__main__":
    sys.exit(refresh_all(sys.argv[1:]))
