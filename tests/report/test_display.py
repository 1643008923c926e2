"""Long work: plain lines in a file, a bar with times on a terminal, one protocol in Python."""

import builtins
import io
import re
import sys
import time

import pytest
from cases.trained import examples, trained
from rich.console import Console

import fcompress
from fcompress.arguments.numbers import WrongType
from fcompress.showing import display as display_module
from fcompress.showing.display import clock, display, pace, time_left, watched
from fcompress.showing.progress import Progress, numbered


def console(*, terminal):
    return Console(file=io.StringIO(), width=80, force_terminal=terminal, highlight=False)


def plain(text):
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)


def test_a_file_gets_lines_with_times_and_no_warning_twice():
    where = console(terminal=False)
    with display(console=where) as report:
        report(Progress("searching", 1, 9, "candidates", "first"))
        report(Progress("searching", 2, 9, "candidates"))
        report(Progress("w", line="warning: few examples"))
        report(Progress("x", line="[second]"))
    assert where.file.getvalue() == "0:00 first\n0:00 [second]\n"


def test_short_work_shows_nothing_on_a_terminal():
    where = console(terminal=True)
    with display(console=where) as report:
        report(Progress("searching", 1, 9, "candidates", "first"))
    assert "first" not in where.file.getvalue()


def shown_of(events, monkeypatch, log=False):
    monkeypatch.setattr(display_module, "PATIENCE", 0.0)
    where = console(terminal=True)
    with display(console=where, log=log) as report:
        for event in events:
            report(event)
            time.sleep(0.3)
    return plain(where.file.getvalue())


def test_a_terminal_has_stage_numbers_pace_and_time_left(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    report = []
    tell = numbered(report.append, ("looking", "searching"))
    tell(Progress("a line", line="a line"))
    for done in (1, 2):
        best = "18.2% of MACs"
        found = Progress("searching", done, 12, "candidates", "found", at_most=True, best=best)
        tell(found)
    assert [(e.number, e.stages) for e in report] == [(1, 2), (2, 2), (2, 2)]
    text = shown_of(report, monkeypatch)
    assert "2/2 searching" in text and "2 of at most 12 candidates" in text
    assert re.search(r"at most 0:\d\d\s+left", text)
    assert "found (best so far: 18.2% of MACs)" in text


def test_lines_of_a_log_stay(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    text = shown_of([Progress("training", 1, 2, "epochs", "epoch 1/2")], monkeypatch, log=True)
    assert "epoch 1/2\n" in text.replace("\r", "")


@pytest.mark.parametrize(
    ("done", "of", "waited", "left"), [(2, 12, 0.0, 20.0), (2, 12, 1.5, 18.5), (12, 12, 0.5, 0.0)]
)
def test_what_is_left_is_what_comes_times_what_one_costs(done, of, waited, left):
    assert time_left(done, of, 2.0, waited) == left


def test_the_pace_is_of_what_was_seen_to_be_done():
    assert pace((10.0, 1), (16.0, 4)) == 2.0
    assert pace((10.0, 1), (10.0, 1)) is None


def test_clocks():
    assert [clock(s) for s in (7, 750, 3723)] == ["0:07", "12:30", "1:02:03"]


def test_one_protocol(monkeypatch, capsys):
    monkeypatch.delattr(sys, "ps1", raising=False)
    event = Progress("s", 1, 2, "steps", "a line")
    got = []
    for progress in (None, False, got.append, True):
        with watched(progress) as report:
            report(event)
    assert got == [event] and capsys.readouterr().err == "0:00 a line\n"
    monkeypatch.setattr(builtins, "__IPYTHON__", True, raising=False)
    with watched(None) as report:
        report(event)
    assert capsys.readouterr().err == "0:00 a line\n"
    with pytest.raises(WrongType, match="True, False or None"), watched(3):
        pass


def test_a_search_says_how_much_may_come_and_keeps_to_it():
    events = []
    fcompress.shrink(trained(), list(examples(2000)[0].split(100)), tol=0.2, progress=events.append)
    stages = [e.number for e in events]
    assert stages == sorted(stages) and {e.stages for e in events} == {5} and stages[-1] == 5
    searching = [e for e in events if e.stage == "searching"]
    assert all(e.at_most and e.of is not None and e.of >= e.done for e in searching)
    assert "of MACs" in searching[-1].best
    # What is said to come gets no less honest: each estimate covers what really came.
    assert all(e.of + 2 >= len(searching) for e in searching)
