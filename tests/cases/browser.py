"""A real browser, headless, for pages; tests are skipped where there is none."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# A browser that asks nobody for anything, also where it runs as root.
QUIET = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()


def why_no_browser() -> str | None:
    """What is missing, or None."""
    if not any(map(shutil.which, NAMES)):
        return f"no browser: none of {', '.join(NAMES)} is installed (Debian's package: chromium)"
    try:
        import axe_core_python
        import playwright.sync_api
    except ImportError as error:
        return f"the browser cannot be driven: {error.name} is not installed (fcompress[dev])"
    assert axe_core_python and playwright.sync_api
    return None


@contextmanager
def started() -> Iterator[Any]:
    """A running browser."""
    reason = why_no_browser()
    if reason is not None:
        pytest.skip(reason)
    from playwright.sync_api import sync_playwright

    found = next(filter(None, map(shutil.which, NAMES)))
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=found, args=list(QUIET))
        yield browser
        browser.close()


class Opened:
    """A page, with everything that went wrong on it.

    Attributes:
        page: Playwright's.
        errors: Lines of the console, exceptions and dialogs.
        requests: Addresses that were asked for, but for the file itself and what is in it.
    """

    def __init__(self, browser: Any, path: Path, width: int = 1280, scheme: str = "light") -> None:
        size = {"width": width, "height": 900}
        self.context = browser.new_context(viewport=size, color_scheme=scheme)
        self.page = self.context.new_page()
        self.errors: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda line: self.errors.append(f"{line.type}: {line.text}"))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("dialog", lambda box: (self.errors.append(box.message), box.dismiss()))
        address = path.as_uri()
        self.page.on("request", lambda asked: self._note(asked.url, address))
        self.page.goto(address)

    def _note(self, url: str, own: str) -> None:
        if url != own and not url.startswith("data:"):
            self.requests.append(url)

    def __enter__(self) -> "Opened":
        return self

    def __exit__(self, *_: object) -> None:
        self.context.close()

    def overflows(self) -> bool:
        """Whether the page is wider than the window."""
        return self.page.evaluate("document.documentElement.scrollWidth > innerWidth")

    def hindrances(self) -> list[str]:
        """What axe-core finds serious or critical."""
        import axe_core_python

        source = Path(axe_core_python.__file__).with_name("axe.min.js").read_text()
        self.page.evaluate(source)
        found = self.page.evaluate("axe.run()")
        assert found["passes"]
        return [
            f"{one['id']}: {one['nodes'][0]['html'][:200]}"
            for one in found["violations"]
            if one["impact"] in ("serious", "critical")
        ]

    def column(self, table: str, heading: int) -> list[str]:
        """Texts of the cells that are to be seen in one column."""
        return self.page.evaluate(
            """([table, heading]) => [...document.getElementById(table).tBodies[0].rows]
            .filter((row) => row.offsetParent).map((row) => row.cells[heading].innerText)""",
            [table, heading],
        )
