"""The command line of training, and what all commands share: help, errors, exit codes."""

import json
import os
import signal
import subprocess
import sys

import click
import numpy as np
import pytest
import torch
from cases.commands import command_line
from click.testing import CliRunner

from fcompress.checkpoints import checkpoint
from fcompress.cli import main
from fcompress.cli.main import COMMANDS
from fcompress.data import datasets
from fcompress.models import families

DIGITS = ["train", "mlp", "--data", "digits", "--epochs", "1"]


def run(*arguments, code=0):
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == code, (result.output, result.exception)
    return result


def fails(*arguments, code=1):
    """Run a command that goes wrong: nothing on stdout, one line `error: ...` on stderr."""
    result = run(*arguments, code=code)
    assert result.stdout == ""
    line = result.stderr.strip().splitlines()[-1]
    assert line.lower().startswith("error: "), result.stderr
    if code == 1:
        assert len(result.stderr.strip().splitlines()) == 1, result.stderr
    return line


# --- all commands ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example(name):
    for flag in ("--help", "-h"):
        text = run(name, flag).stdout
        assert "Example" in text and f"\n    fcompress {name}" in text
    assert COMMANDS[name][2] in run("--help").stdout


def test_help_and_version():
    text = run("-h").stdout
    assert all(f"\n  {name} " in text for name in COMMANDS)
    assert run("--version").stdout.startswith("fcompress, version ")
    assert run(code=2).stderr.startswith("Usage:")


def test_help_does_not_import_torch():
    code = (
        "import sys, fcompress.cli.main as m\n"
        "try: m.main(['--help'])\n"
        "except SystemExit: pass\n"
        "sys.exit('fcompress.data' in sys.modules or 'fcompress.training' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL).returncode == 0


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (KeyboardInterrupt(), 130, "error: interrupted\n"),
        (PermissionError(13, "Permission denied", "some/file"), 1,
         "error: some/file: Permission denied\n"),
        (OSError("a disk on fire"), 1, "error: a disk on fire\n"),
    ],
)  # fmt: skip
def test_what_may_happen_to_any_command(monkeypatch, error, code, text):
    @click.command("fails")
    def command():
        raise error

    monkeypatch.setattr(type(main), "get_command", lambda self, ctx, name: command)
    assert run("fails", code=code).stderr == text


def test_a_closed_pipe_is_no_error():
    process = subprocess.Popen(
        command_line("data", "--json", "-"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 1


# --- train --------------------------------------------------------------------------------------


def test_train_writes_a_network_that_loads(tmp_path):
    out, record = tmp_path / "wide.pt", tmp_path / "wide.json"
    result = run(
        "train", "mlp", "--data", "digits", "--width", 0.5, "--hidden", 64, "--arg", "depth=2",
        "--init", "lecun_normal", "--epochs", 2, "--batch-size", 32, "--lr", 0.03, "--seed", 4,
        "--random-labels", 3, "--out", out, "--json", record,
    )  # fmt: skip
    assert str(out) in result.stdout and "parameters" in result.stdout
    assert "epoch 1/2" in result.stderr and "epoch" not in result.stdout.split("\n")[1]
    network = checkpoint.load(out)
    assert network.spec.args["depth"] == 2 and network.fc1.out_features == 32
    assert network.spec.args["init"] == "lecun_normal"
    data = network.origin["data"]
    assert data["spec"] == "digits" and data["random_labels"] == 3
    content = json.loads(record.read_text())
    assert content["config"]["lr"] == 0.03 and content["config"]["seed"] == 4
    assert content["data"] == data and len(content["epochs"]) == 2
    assert content["params"] == sum(p.numel() for p in network.parameters())


def test_train_is_a_function_of_its_options(tmp_path):
    outputs = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run(*DIGITS, "--seed", seed, "--out", tmp_path / name)
        outputs.append(checkpoint.load(tmp_path / name)(torch.ones(1, 1, 8, 8)))
    assert torch.equal(outputs[0], outputs[1]) and not torch.equal(outputs[0], outputs[2])


@pytest.mark.parametrize(
    ("family", "spec", "options"),
    [
        ("alexnet", "digits", ["--width", "0.1", "--dropout", "0.5", "--augment"]),
        ("resnet20", "digits", ["--width", "0.25", "--weight-decay", "0.001"]),
        ("mlp", "gaussian:7,n=60", ["--optimizer", "adam", "--schedule", "decay"]),
    ],
)
def test_the_network_fits_the_data(tmp_path, family, spec, options):
    out = tmp_path / "a.pt"
    run("train", family, "--data", spec, *options, "--epochs", 1, "--out", out)
    network = checkpoint.load(out)
    classes = 2 if spec.startswith("gaussian") else 10
    shape = (7,) if spec.startswith("gaussian") else (1, 8, 8)
    assert network.eval()(torch.zeros(2, *shape)).shape == (2, classes)


def test_json_to_stdout_leaves_no_text_in_it(tmp_path):
    result = run(*DIGITS, "--out", tmp_path / "a.pt", "--json", "-")
    assert json.loads(result.stdout)["family"] == "mlp"


def test_an_interrupt_can_be_resumed(tmp_path):
    out = tmp_path / "a.pt"
    arguments = [
        "train", "alexnet", "--data", "digits", "--width", "0.1", "--batch-size", "16",
        "--epochs", "500", "--out", str(out),
    ]  # fmt: skip
    process = subprocess.Popen(
        command_line(*arguments),
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    while "epoch 2" not in process.stderr.readline():
        pass
    process.send_signal(signal.SIGINT)
    rest = process.stderr.read()
    assert process.wait() == 130
    assert rest.endswith("the same command with --resume goes on\nerror: interrupted\n")
    assert "Traceback" not in rest
    assert "--resume" in fails(*arguments)
    assert "lr was" in fails(*arguments, "--resume", "--lr", 0.001)
    done = len(checkpoint.load(out).origin["history"][0]["epochs"])
    assert done >= 2 and (tmp_path / "a.pt.resume").exists()


def test_divergence_is_one_line(tmp_path):
    line = fails_after_progress(*DIGITS, "--lr", "1e30", "--out", tmp_path / "a.pt")
    assert "diverged" in line and not list(tmp_path.iterdir())


def fails_after_progress(*arguments):
    result = run(*arguments, code=1)
    return result.stderr.strip().splitlines()[-1]


def test_train_mistakes(tmp_path):
    out = ["--out", tmp_path / "a.pt"]
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(40, 3)))
    assert "did you mean 'alexnet'" in fails("train", "alexnett", "--data", "digits", *out)
    assert "did you mean fashion-mnist" in fails("train", "mlp", "--data", "fashion", *out)
    assert "no labels" in fails("train", "mlp", "--data", f"file:{tmp_path / 'x.npy'}", *out)
    assert "labels images" in fails("train", "alexnet", "--data", "gaussian:10", *out)
    assert "no argument 'depht'" in fails(*DIGITS, "--arg", "depht=3", *out)
    assert "0<x<=10000" in fails(*DIGITS, "--width", "-1", *out, code=2)
    assert "'-1'" in fails(*DIGITS, "--lr", "-1", *out, code=2)
    zero = ["train", "mlp", "--data", "digits", "--epochs", "0", *out]
    assert "from 1 to" in fails(*zero, code=2)
    assert "--data-root" in fails("train", "mlp", "--data", "imagenet", *out)
    for usage in (
        DIGITS,
        [*DIGITS, "--arg", "depth", *out],
        [*DIGITS, "--optimizer", "lion", *out],
        [*DIGITS, "--out", tmp_path / "no" / "a.pt"],
        [*DIGITS, "--json", tmp_path / "no" / "a.json", *out],
        ["train", "mlp", *out],
    ):
        fails(*usage, code=2)
    assert [path.name for path in tmp_path.iterdir()] == ["x.npy"]


# --- models and data ------------------------------------------------------------------------


def test_models(tmp_path):
    text = run("models").stdout
    assert all(name in text for name in families()) and "11,689,512" in text
    record = json.loads(run("models", "--json", "-").stdout)
    assert [entry["name"] for entry in record] == list(families())
    assert record[0]["arguments"]["hidden"]["default"] == 128


def test_data():
    text = run("data").stdout
    assert all(kind.form in text for kind in datasets().values())
    record = json.loads(run("data", "--json", "-").stdout)
    assert [entry["name"] for entry in record] == list(datasets())


def test_data_describes_one(tmp_path):
    text = run("data", "digits").stdout
    assert "certification 300" in text
    info = json.loads(run("data", "digits", "--json", "-").stdout)
    assert info["sizes"]["train"] == 797 and len(info["sha256"]) == 64
    run("data", "digits", "--json", tmp_path / "d.json")
    assert json.loads((tmp_path / "d.json").read_text()) == info
    assert "no such folder" in fails("data", "folder:/no/such")
