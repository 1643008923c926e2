"""How results show themselves: a few lines, HTML in a notebook, a table, a picture.

What needs the packages above results (tables of the command line, pictures, files) is imported when
it is asked for.
"""

from __future__ import annotations

import html
import os
from collections.abc import Iterable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from fcompress.errors import FcompressError

# For annotations only: help must not wait for these.
if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

LONGEST = 200  # rows of a table in a notebook


class Shown:
    """A result that is short where Python prints it; `report/brief.py` has its words."""

    def _lines(self) -> Iterable[str]:
        """What it is, in two or three lines of about 80 characters."""
        # Words stand above results, which know of them only when they are asked for.
        lines: Iterable[str] = import_module("fcompress.report.brief").lines_of(self)
        return lines

    def _rows(self) -> list[Mapping[str, Any]]:
        """One row for each of its parts, all with the same keys; none without parts."""
        rows: list[Mapping[str, Any]] = import_module("fcompress.report.brief").rows_of(self)
        return rows

    def __repr__(self) -> str:
        return "\n".join(self._lines())

    def _repr_html_(self) -> str:
        """The same for a notebook, with the table to unfold."""
        first, *others = (html.escape(line.strip()) for line in self._lines())
        text = "".join(f"<br>{line}" for line in others)
        return f"<div><b>{first}</b>{text}{_table(self._rows())}</div>"

    def summary(self) -> str:
        """Everything in words and tables of 80 columns, as the command line prints it.

        Returns:
            Text of several lines.
        """
        text: str = import_module("fcompress.report.screens").as_text(self, self._rows())
        return text

    def to_frame(self) -> pd.DataFrame:
        """The parts of the result (layers, rows, epochs), one a row.

        Raises:
            FcompressError: pandas is not installed.
        """
        try:
            pandas = import_module("pandas")
        except ImportError as error:
            raise FcompressError(
                "to_frame() gives a table of pandas, which is not installed; install pandas or "
                "use to_dict()"
            ) from error
        frame: pd.DataFrame = pandas.DataFrame([dict(row) for row in self._rows()])
        return frame


class Drawn(Shown):
    """A result with a picture, and a page."""

    def plot(self) -> Figure:
        """Draw it, as `--plot` of the command line does.

        Returns:
            A figure of matplotlib that no window shows; `figure.savefig(path)` writes it.
        """
        figure: Figure = import_module("fcompress.report.plots").figure_of(self)
        return figure


class Keeping(Shown):
    """A result that has a network, as `model`."""

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the network to a file that `load` opens, with what was done to it.

        Args:
            path: The file; one that is there is replaced once the new one is complete.

        Raises:
            CheckpointError: The network could not be loaded again.
            FcompressError: The file cannot be written, or the network is a program in int8.
        """
        model: Any = vars(self)["model"]
        if hasattr(model, "content"):
            raise FcompressError(
                "a network in int8 is a program, which no such file holds; write it by "
                "fcompress.export(result.model, 'net.onnx', data)"
            )
        import_module("fcompress.checkpoints.checkpoint").save(model, path)


def _table(rows: list[Mapping[str, Any]]) -> str:
    """Rows as a table that is folded away."""
    if not rows:
        return ""
    heads = "".join(f"<th>{html.escape(str(key))}</th>" for key in rows[0])
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(_cell(v))}</td>" for v in row.values()) + "</tr>"
        for row in rows[:LONGEST]
    )
    more = f"<br>{len(rows) - LONGEST:,} more: to_frame()" if len(rows) > LONGEST else ""
    return (
        f"<details><summary>{len(rows):,} rows</summary><table><thead><tr>{heads}</tr></thead>"
        f"<tbody>{body}</tbody></table>{more}</details>"
    )


def _cell(value: Any) -> str:
    """A value as it is read, not as it is computed with."""
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
