"""Labels on one screen, few or many."""

import io

import pytest
from cases.shrunk import agreement, shrunk
from rich.console import Console

from fcompress.certify.per_label import by_label
from fcompress.cli import output
from fcompress.report.labels import headings, label_lines, label_rows
from fcompress.report.screens import label_screen, show
from fcompress.report.text import verdict


def fares(rows, kind="classes", never=0):
    """From (examples, changed) of each label."""
    rows = [*rows, *[(0, 0)] * never]
    n, changed = [list(column) for column in zip(*rows, strict=True)]
    return by_label(kind, [n, changed, [a - b for a, b in zip(n, changed, strict=True)]], 0.95)


@pytest.fixture
def screen(monkeypatch):
    """What is printed on a screen of 80 columns."""
    file = io.StringIO()
    console = Console(file=file, width=80, highlight=False)
    monkeypatch.setattr(output, "stdout", lambda: console)
    return file


def test_ten_classes_are_all_shown_on_one_screen(screen):
    found = fares([(100, i) for i in range(10)])
    show(output.stdout(), label_screen(agreement(45, 1000, 0.06, by_label=found)))
    text = screen.getvalue()
    assert len(text.splitlines()) < 20
    rows = [line.split() for line in text.splitlines()]
    assert ["label", "examples", "changed", "share", "at", "most"] in rows
    assert ["0", "100", "0", "0.0%", "3.0%"] in rows
    assert ["9", "100", "9", "9.0%", "15.2%"] in rows
    assert '"at most" holds with 95% confidence for one label alone' in text


def test_a_thousand_classes_are_summed_up(screen):
    found = fares([(20, 5 if i == 700 else int(i % 100 == 0)) for i in range(1000)], never=7)
    show(output.stdout(), label_screen(agreement(15, 20_000, 0.06, by_label=found)))
    text = screen.getvalue()
    assert len(text.splitlines()) < 16
    assert "The 5 that changed most of 1,000 labels; of 990 nothing changed." in text
    assert "7 more labels are given by the original to none of the examples." in text
    assert next(label_rows(found)) == ("700", "20", "5", "25.0%", "45.6%")


def test_of_thousands_of_tokens_the_most_frequent_are_shown(screen):
    n = [2000 // (i + 1) for i in range(2000)]
    changed = [1 if i % 50 == 3 or i >= 1990 else 0 for i in range(2000)]
    given = [0 if i >= 1990 else one for i, one in enumerate(n)]
    found = by_label("tokens", [n, changed, given, n, changed], 0.95)
    show(output.stdout(), label_screen(agreement(15, 4000, 0.06, by_label=found)))
    text = " ".join(screen.getvalue().split())
    assert len(screen.getvalue().splitlines()) < 24
    assert [row[0] for row in label_rows(found)] == [str(i) for i in range(10)]
    assert "The 10 most frequent of 2,000 tokens, at" in text
    assert "and of 1,950 tokens nothing did" in text
    assert "never gives 10 of the tokens; the original gives the most frequent" in text


def test_dense_answers_and_sigmoid_heads():
    dense = by_label("positions", [[90, 30], [1, 30], [9000, 0], [8900, 100], [9, 100]], 0.95)
    assert headings(dense)[-1] == "IoU"
    assert list(label_rows(dense)) == [
        ("0", "90", "1", "5.2%", "0.1%", "0.987"),
        ("1", "30", "30", "100.0%", "100.0%", "0.000"),
    ]
    assert "The compressed network never gives class 1." in list(label_lines(dense))
    assert next(label_rows(fares([(50, 1), (40, 0)], "sigmoid")))[0] == "0 no"


def test_nothing_is_said_of_answers_without_labels(screen):
    show(output.stdout(), label_screen(agreement(1, 100, 0.05)))
    assert screen.getvalue() == ""


def test_the_promise_in_words():
    found = fares([(400, 2), (300, 1), (20, 1)]).promised(0.05)
    lines = list(verdict(shrunk(agreement=agreement(4, 720, 0.01, by_label=found))))
    assert lines[1] == (
        "At most 5% of each of the 2 labels with enough examples may change, for all of them at "
        "once with 95% confidence: every one passed a test of its own at that level."
    )
    sigmoid = fares([(400, 2), (300, 1)], "sigmoid").promised(0.1)
    lines = list(verdict(shrunk(agreement=agreement(4, 700, 0.01, by_label=sigmoid))))
    assert "10% of each of the 2 answers (yes or no of a label) may change" in lines[1]
