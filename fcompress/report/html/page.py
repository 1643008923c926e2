"""One page: what stands on it, put into the template."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import markupsafe

from fcompress.comparison.result import CompareResult
from fcompress.compress.result import ShrinkResult
from fcompress.errors import FcompressError
from fcompress.formats.atomic import why_not_writable, write_atomic
from fcompress.measure.analysis import AnalyzeResult
from fcompress.measure.growth import GainResult
from fcompress.models.provenance import versions
from fcompress.report.html.analysed import analysed
from fcompress.report.html.compared import compared
from fcompress.report.html.grown import grown
from fcompress.report.html.shrunk import shrunk

MARK = '<meta name="generator" content="fcompress">'  # by which a report is known again


@cache
def _templates() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("fcompress.report.html"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["breakable"] = _breakable
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    return environment


def _breakable(name: str) -> markupsafe.Markup:
    """A name of a layer that may be broken after its dots."""
    return markupsafe.Markup(".<wbr>").join(markupsafe.escape(part) for part in name.split("."))


def filled(template: str, **values: Any) -> str:
    """A page of a template with values."""
    found = {"versions": versions(), "mark": MARK, **values}
    return _templates().get_template(template).render(found)


def page_of(
    result: ShrinkResult | AnalyzeResult | GainResult | CompareResult,
    *,
    examples: bool = True,
    command: str | None = None,
    network: str | os.PathLike[str] | None = None,
    original: str | os.PathLike[str] | None = None,
) -> str:
    """A result as an HTML page that needs nothing else.

    Args:
        result: From `shrink`, `analyze`, `gain` or `compare`.
        examples: Whether examples whose answer changed may be on it.
        command: What was typed to get it.
        network: File of the compressed network.
        original: File of the original network.

    Raises:
        TypeError: The result is of another kind.
    """
    if isinstance(result, ShrinkResult):
        files = (
            None if network is None else os.fspath(network),
            None if original is None else os.fspath(original),
        )
        page = shrunk(result, examples=examples, files=files)
        return filled("shrunk.html", page=page, data=page.pop("data"), command=command)
    if isinstance(result, AnalyzeResult):
        page = analysed(result)
        return filled("analysed.html", page=page, data=page.pop("data"), command=command)
    if isinstance(result, GainResult):
        page = grown(result)
        return filled("grown.html", page=page, data=page.pop("data"), command=command)
    if isinstance(result, CompareResult):
        page = compared(result)
        return filled("compared.html", page=page, data=page.pop("data"), command=command)
    raise TypeError(
        f"a {type(result).__name__} has no report; expected what shrink, analyze, gain or compare "
        "returned"
    )


def write_page(
    path: str | os.PathLike[str],
    result: ShrinkResult | AnalyzeResult | GainResult | CompareResult,
    **values: Any,
) -> None:
    """Write `page_of` to a file, whole or not at all.

    Args:
        path: The file, which is replaced.
        result: As for `page_of`.
        **values: The same.

    Raises:
        FcompressError: The file cannot be written.
    """
    save_page(path, page_of(result, **values))


def save_page(path: str | os.PathLike[str], page: str) -> None:
    """Write a page to a file, whole or not at all.

    Raises:
        FcompressError: It cannot be written.
    """
    file = Path(path)
    if not file.absolute().parent.is_dir():
        raise FcompressError(f"cannot write {file}: its folder does not exist; create it first")
    reason = why_not_writable(file)
    if reason is not None:
        raise FcompressError(f"cannot write {file}: {reason}")
    write_atomic(file, lambda out: out.write(page.encode()))
