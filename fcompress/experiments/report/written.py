"""The files of a report: which of them are ours to replace and to remove."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from fcompress.errors import FcompressError
from fcompress.formats.atomic import make_folder, write_atomic

LIST = "written.json"


class Written:
    """A folder of results, and the list of what a report wrote into it.

    Nothing is written through a link, nothing replaced that the list does not name, and only what
    it names is removed, if it is still as it was written. Folders of earlier versions have no
    list: what is there under the name of a report is replaced then, and nothing removed.

    Args:
        out: The folder.

    Raises:
        FcompressError: The list is damaged, or a part of the folder is a link.
    """

    def __init__(self, out: Path) -> None:
        self._out = out
        self._known = self._read()
        self._new: dict[str, str] = {}
        self._check_link("figures")
        make_folder(out / "figures")

    def _read(self) -> dict[str, str] | None:
        path = self._out / LIST
        self._check_link(LIST)
        if not path.exists():
            return None
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            found = None
        if not isinstance(found, dict) or not all(isinstance(v, str) for v in found.values()):
            raise FcompressError(
                f"{path} is damaged; delete it, and by hand the drawings that are no longer true"
            )
        return found

    def _check_link(self, name: str) -> None:
        path = self._out / name
        if path.is_symlink():
            raise FcompressError(
                f"{path} is a link, and a report is written into its own folder only; remove it"
            )

    def write(self, name: str, content: bytes) -> None:
        """Write a file, whole or not at all.

        Args:
            name: In the folder, with / between its parts.
            content: Of the file.

        Raises:
            FcompressError: It is there and was not written by a report, or cannot be written.
        """
        path = self._out / name
        self._check_link(name)
        if self._known is not None and name not in self._known and path.exists():
            raise FcompressError(
                f"{path} was not written by a report, and would be replaced; move it elsewhere"
            )
        self._new[name] = hashlib.sha256(content).hexdigest()
        if self._known is not None:
            # First, so that a report that is killed now may write this file again.
            self._keep({**self._known, **self._new})
        write_atomic(path, lambda file: file.write(content))

    def close(self) -> None:
        """Remove what earlier reports wrote and this one did not; it shows other results."""
        for name, digest in (self._known or {}).items():
            path = self._out / name
            if name in self._new or not _is_drawing(name) or path.is_symlink():
                continue
            try:
                if hashlib.sha256(path.read_bytes()).hexdigest() == digest:
                    path.unlink()
            except OSError:
                continue
        self._keep(self._new)

    def _keep(self, names: dict[str, str]) -> None:
        text = json.dumps(names, indent=1, sort_keys=True) + "\n"
        write_atomic(self._out / LIST, lambda file: file.write(text.encode()))


def _is_drawing(name: str) -> bool:
    """Whether a name of the list is that of a drawing, and leads nowhere else."""
    parts = name.split("/")
    return len(parts) == 2 and parts[0] == "figures" and parts[1] not in ("", ".", "..")
