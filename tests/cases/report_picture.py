"""The top of a report as a small picture, for the README: `scripts/report-picture`."""

import sys
from pathlib import Path

from cases.browser import Opened, started

from benchmarks.pictures import small_png

WIDTH = 1060


def main(report: Path, picture: Path) -> None:
    """Open a report in the browser and keep what is above its second section."""
    with started() as browser, Opened(browser, report.resolve(), WIDTH) as opened:
        assert not opened.errors, opened.errors
        below = opened.page.locator("#layers").bounding_box()["y"]
        clip = {"x": 0, "y": 0, "width": WIDTH, "height": below}
        picture.write_bytes(small_png(opened.page.screenshot(full_page=True, clip=clip), 48))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
