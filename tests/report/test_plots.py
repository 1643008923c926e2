"""Pictures: PNG bytes, the same each time, in the words of the field."""

import pytest
from cases.shrunk import shrunk
from matplotlib.figure import Figure

from fcompress.compress.result import LayerChange
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
    tried, chosen = left.lines[0], left.containers[0].lines[0]
    assert list(tried.get_xdata()) == [25, 45] and list(tried.get_ydata()) == [2, 0.5]
    assert list(chosen.get_ydata()) == [pytest.approx(100 * 5 / 300)]
    words = " ".join(text.get_text() for text in left.texts)
    assert "chosen: 0.05% of MACs" in words and "at most 3.49% change" in words
    assert ("tolerance 5%" in words) == (tolerance is not None)
    assert [t.get_text() for t in right.get_yticklabels()] == ["fc1", "out"]
    assert [bar.get_width() for bar in right.containers[1]] == [32, 10]
    assert [t.get_text().strip() for t in right.texts] == ["32 of 128", "10"]
    assert right.yaxis_inverted()


def test_candidates_far_beyond_the_tolerance_are_counted_and_not_drawn(monkeypatch):
    drawn: list[Figure] = []
    paint = plots._png
    monkeypatch.setattr(plots, "_png", lambda figure: drawn.append(figure) or paint(figure))
    far = {"removed": 120, "macs": 20, "changed": 150, "n": 200}
    plots.shrink_png(shrunk(candidates=(*shrunk().candidates, far)))
    left, _ = drawn[0].axes
    assert len(left.lines[0].get_xdata()) == 2 and left.get_ylim()[1] < 10
    assert left.get_title(loc="left") == "1 of 3 candidates change more"


def test_a_deep_network_has_a_readable_row_for_each_layer(monkeypatch):
    drawn: list[Figure] = []
    paint = plots._png
    monkeypatch.setattr(plots, "_png", lambda figure: drawn.append(figure) or paint(figure))
    name = "encoder." + "very_long_name_of_a_layer" * 12
    plots.shrink_png(shrunk(layers=[LayerChange(f"{name}{i}", 64, 32, None) for i in range(56)]))
    _, right = drawn[0].axes
    names = [t.get_text() for t in right.get_yticklabels()]
    assert len(names) == 56 and max(map(len, names)) <= 34 and names[7].endswith("7")
    assert drawn[0].get_figheight() > 10
