"""Streams, signals, idle options and bugs: an exit code and a line, whatever happens."""

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from cases.commands import command_line
from click.testing import CliRunner

from fcompress.checkpoints.checkpoint import save
from fcompress.cli import main, show
from fcompress.cli.boundary import faults, ignored, terminal
from fcompress.data import load_data
from fcompress.errors import FcompressError
from fcompress.formats.atomic import write_atomic
from fcompress.models import build


def run(*arguments):
    return CliRunner().invoke(main, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    path = tmp_path_factory.mktemp("terminal") / "犬.pt"
    torch.manual_seed(0)
    save(build("mlp", in_features=64, classes=10, width=0.1), path, data=load_data("digits").info)
    return path


# --- stdout -----------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [["--help"], ["models", "--help"], ["recipe", "list"]])
def test_a_full_stdout(arguments):
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command_line(*arguments), stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 1
    (line,) = done.stderr.decode().splitlines()
    assert line.startswith("error: ") and line.endswith("No space left on device")


def test_a_closed_stdout_and_nothing_lands_in_its_number(network):
    command = command_line("show", network)
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" >&-', "sh", *command], stderr=subprocess.PIPE, timeout=60
    )
    assert done.returncode == 1
    assert done.stderr.decode().splitlines() == [
        "error: stdout is closed, where results are shown; send it to a file"
    ]
    done = subprocess.run(["sh", "-c", 'exec "$@" 2>&-', "sh", *command], stdout=subprocess.PIPE)
    assert done.returncode == 0 and b"network of fcompress" in done.stdout


def test_letters_that_stdout_lacks(network):
    env = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command_line("show", network), capture_output=True, env=env)
    assert done.returncode == 0 and b"\\u72ac.pt: network" in done.stdout, done.stderr


# --- signals ----------------------------------------------------------------------------------

SLOW = """
import os, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)
flush = os.fsync
def slow(descriptor):
    print("writing", flush=True)
    time.sleep(20)
    flush(descriptor)
os.fsync = slow
from fcompress.cli import main
main(["show", sys.argv[1], "--json", "a.json"])
"""


@pytest.mark.parametrize(
    ("name", "code"),
    [
        pytest.param("SIGINT", 130, marks=pytest.mark.slow),
        ("SIGTERM", 143),
        pytest.param("SIGHUP", 129, marks=pytest.mark.slow),
    ],
)
def test_a_signal_in_the_middle_of_a_write(network, tmp_path, name, code):
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, network],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
    )  # fmt: skip
    assert process.stdout.readline() == "writing\n"
    assert len(list(tmp_path.iterdir())) == 1
    process.send_signal(getattr(signal, name))
    _, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert err.splitlines() == [f"error: {'interrupted' if code == 130 else f'ended by {name}'}"]
    assert not list(tmp_path.iterdir())


def test_an_interrupt_while_the_command_is_imported():
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "import fcompress.__main__ as m, sys\n"
        "print('begun', flush=True)\n"
        "sys.argv[1:] = ['models']; m.run()"
    )
    for wait in (0, 0.1, 0.4, 1):
        process = subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert process.stdout.readline() == "begun\n"
        time.sleep(wait)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 130, err
        assert err == "error: interrupted\n"


def test_handlers_are_put_back():
    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    assert run("recipe", "list").exit_code == 0
    assert {n: signal.getsignal(n) for n in before} == before
    with terminal.signals(), pytest.raises(terminal.Terminated):
        signal.raise_signal(signal.SIGTERM)
    ignored_before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with terminal.signals():
        signal.raise_signal(signal.SIGTERM)  # stays ignored, as nohup wants it
    signal.signal(signal.SIGTERM, ignored_before)


def test_an_unfinished_write_is_known(tmp_path):
    def write(file):
        terminal.remove_unfinished()
        assert not list(tmp_path.iterdir())

    with pytest.raises(FcompressError):
        write_atomic(tmp_path / "a", write)


# --- bugs -------------------------------------------------------------------------------------


def test_a_bug_is_one_line_and_a_file(network, monkeypatch, tmp_path):
    monkeypatch.setattr(faults.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(show, "stdout", lambda: 1 / 0)
    ran = run("show", network)
    assert ran.exit_code == 1 and ran.stderr.count("\n") == 1
    assert "this is a bug of fcompress (ZeroDivisionError: division by zero)" in ran.stderr
    (report,) = tmp_path.iterdir()
    assert str(report) in ran.stderr
    assert "Traceback" in report.read_text() and "lambda: 1 / 0" in report.read_text()
    assert "Traceback" in run("--debug", "show", network).stderr
    monkeypatch.setenv("FCOMPRESS_DEBUG", "1")
    assert "Traceback" in run("show", "no-such-file").stderr


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (MemoryError(), "not enough memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "not enough"),
        (PermissionError(13, "Permission denied", "a\nb"), r"a\nb: Permission denied"),
        (FcompressError("no"), "no"),
        (KeyError("a\nb"), "a bug"),
    ],
    ids=lambda x: type(x).__name__,
)
def test_every_error_is_a_line(error, line, monkeypatch, tmp_path):
    monkeypatch.setattr(faults.tempfile, "tempdir", str(tmp_path))
    text, code = faults.said(error)
    assert line in text and "\n" not in text and code == 1


# --- options that do nothing ------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ["shrink", "M", "--distill-seconds", "3"],
        ["shrink", "M", "--polish-seconds", "3"],
        ["shrink", "M", "--mean", "0.1", "--std", "0.9"],
        ["verify", "M", "M", "--transform", "timm:resnet18"],
        ["verify", "M", "M", "--size", "9"],
        ["analyze", "M", "--input-shape", "1,8,8"],
        ["analyze", "M", "--arch", "torchvision:resnet18"],
        ["analyze", "M", "--weights-key", "model"],
        ["analyze", "M", "--no-layers", "--layer-examples", "7"],
        ["analyze", "M", "--data", "digits", "--data-root", "."],
        ["gain", "M", "M", "--layer-examples", "7", "--no-layers"],
        ["export", "M", "--to", "x.safetensors", "--tol", "0.1"],
        ["data", "--data-seed", "1"],
        ["data", "--download"],
        ["data", "digits", "--data-root", "."],
    ],
    ids=" ".join,
)
def test_options_without_effect_are_refused(network, arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ran = run(*[network if a == "M" else a for a in arguments])
    assert ran.exit_code == 2 and "has no effect here" in ran.stderr, ran.output
    assert not list(tmp_path.iterdir())


def test_options_with_effect_are_taken(network):
    """The control."""
    assert run("analyze", network, "--layer-examples", "20", "--examples", "30").exit_code == 0
    assert run("data", "digits", "--data-seed", "1").exit_code == 0
    for command, rules in ignored.RULES.items():
        names = {str(p.name) for p in main.get_command(None, command).params}
        assert set(rules) <= names  # of options that there are


def test_the_stream_of_a_caller_stays(monkeypatch):
    """In Python, a stream that cannot be set up is used as it is."""
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    terminal.open_streams()
    assert terminal.flush() is None
