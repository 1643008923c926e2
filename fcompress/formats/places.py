"""Where a path leads."""

import os
from pathlib import Path


def real_path(path: str | os.PathLike[str]) -> Path:
    """Absolute, links followed as far as they go.

    Links that lead in a circle are left for whoever opens the path, who has an error for that;
    `Path.resolve` raises a RuntimeError for them before Python 3.13.

    Example:
        >>> real_path("/").as_posix()
        '/'
    """
    return Path(os.path.realpath(path))
