"""The options by which a command leaves a page, or the candidates of a search."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from fcompress.cli.boundary import OutputFile, OutputFolder
from fcompress.cli.boundary.command import TYPED
from fcompress.cli.output import tell, write_json
from fcompress.errors import FcompressError

if TYPE_CHECKING:
    from torch import nn

    from fcompress.certify.fixed_sequence import Candidate
    from fcompress.compress.result import ShrinkResult

CANDIDATES = "candidates.json"  # what was tried, beside the networks
_Command = TypeVar("_Command", bound=Callable[..., Any])


def report_option(command: _Command) -> _Command:
    """The option `--report FILE.html`, as argument `page`."""
    return click.option(
        "--report",
        "page",
        type=OutputFile("report"),
        metavar="FILE.html",
        help="Write everything as one HTML page that needs nothing else.",
    )(command)


def candidates_option(command: _Command) -> _Command:
    """The option `--keep-candidates DIR`, as argument `keep_candidates`."""
    return click.option(
        "--keep-candidates",
        type=OutputFolder(),
        metavar="DIR",
        help="Write every network that the search tries, and candidates.json, what it knows of it.",
    )(command)


def typed() -> str:
    """The command line as it was typed, quoted for a shell."""
    context = click.get_current_context()
    return shlex.join([*context.command_path.split(), *context.meta.get(TYPED, ())])


def write_report(path: Path, result: Any, **values: Any) -> None:
    """Write the page of a result, and say so.

    Args:
        path: The file.
        result: As for `page_of`.
        **values: The same.
    """
    from fcompress.report.html import write_page

    write_page(path, result, command=typed(), **values)
    tell(f"report: {path}")


class Candidates:
    """A folder for the networks of a search.

    Args:
        folder: It is made; one that is there must be empty, or of an earlier search.

    Raises:
        FcompressError: It holds something else.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            there = [one.name for one in folder.iterdir()]
        except OSError as error:
            raise FcompressError(f"cannot write {folder}: {error.strerror}") from error
        if there and CANDIDATES not in there:
            raise FcompressError(
                f"{folder} is not empty, and holds no {CANDIDATES} of an earlier search; name "
                "another folder"
            )
        for old in folder.glob("candidate-*.pt"):
            old.unlink()
        self._tell([])

    def keep(self, found: Candidate, model: nn.Module) -> None:
        """Write one network."""
        from fcompress.checkpoints.checkpoint import save

        save(model, self.folder / _name(found.removed, found.distill is not None))

    def done(self, result: ShrinkResult) -> None:
        """Write what is known of all of them, and what may be certified later."""
        rows = [
            {"file": _name(one["removed"], one["distilled"]), **one} for one in result.candidates
        ]
        self._tell(rows)
        tell(f"candidates: {self.folder}. {said_of_certifying(result)}")

    def _tell(self, rows: list[dict[str, Any]]) -> None:
        write_json(self.folder / CANDIDATES, {"candidates": rows})


def _name(removed: int, distilled: bool) -> str:
    return f"candidate-{removed:06d}{'-distilled' if distilled else ''}.pt"


def said_of_certifying(result: ShrinkResult) -> str:
    """What the certification split can still say of the candidates, in a sentence."""
    met = [one for one in result.candidates if one["certification"] is not None]
    passed = sum(one["certification"] == "passed" for one in met)
    if result.cascade is not None:
        return "Pairs with the original were certified; none of the networks is by itself."
    if result.tolerance is None:
        return "None is certified; verify one on examples that none of them has met."
    return (
        f"{passed} of them passed on the certification split and hold for the tolerance; the split "
        "is used up for the others: certify one on examples that none of them has met "
        "(fcompress verify)."
    )
