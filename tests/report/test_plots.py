"""Pictures: PNG bytes, the same each time, in the words of the field."""

import pytest
from cases.shrunk import shrunk
from matplotlib.figure import Figure

from fcompress.report import plots

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize("tolerance", [0.05, None])
def test_a_compression_is_drawn(monkeypatch, tolerance):
    drawn: list[Figure] = []
    paint = plots._png
    monkeypatch.setattr(plots, "_png", lambda figure: drawn.append(figure) or paint(figure))
    result = shrunk(tolerance=tolerance)
    picture = plots.shrink_png(result)
    assert picture.startswith(PNG) and plots.shrink_png(result) == picture
    left, right = drawn[0].axes
    assert left.get_ylabel() == "label agreement with the original network"
    tried, chosen = left.lines[0], left.containers[0].lines[0]
    assert list(tried.get_xdata()) == [25, 45] and list(tried.get_ydata()) == [0.98, 0.995]
    assert list(chosen.get_ydata()) == [295 / 300]
    assert ("tolerance" in left.get_legend_handles_labels()[1]) == (tolerance is not None)
    assert right.get_legend_handles_labels()[1] == ["original", "compressed"]
    assert [t.get_text() for t in right.get_xticklabels()] == ["fc1", "out"]
    assert [bar.get_height() for bar in right.containers[1]] == [32, 10]
