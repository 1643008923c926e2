import hashlib
import json
import math
import re
import subprocess
import sys

import pytest
import torch
from click.testing import CliRunner

from fcompress.checkpoints.checkpoint import load, read, save
from fcompress.cli import main
from fcompress.compress.pipeline import shrink
from fcompress.data import load_data
from fcompress.models import build
from fcompress.training.loop import TrainConfig, train

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An original network trained on digits, and some that are no good."""
    folder = tmp_path_factory.mktemp("networks")
    splits = load_data("digits")
    wide = build("mlp", in_features=64, classes=10, width=1.0, depth=2)
    save(train(wide, splits, TrainConfig(epochs=12, lr=0.05, device="cpu")).model, folder / "w.pt")
    save(build("mlp", in_features=64, classes=10), folder / "forgetful.pt")
    save(build("mlp", in_features=64, classes=7), folder / "seven.pt", data=splits.info)
    untrained = build("mlp", in_features=64, classes=10, width=0.05)
    save(untrained, folder / "untrained.pt", data=splits.info)
    return folder


def _run(*arguments):
    return CliRunner().invoke(main, [str(a) for a in arguments])


def _hash(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    "options",
    [
        ("--round-to", "0"),
        ("--round-to", "some"),
        ("--objective", "beauty"),
        ("--distill-seconds", "0"),
        ("--distill-seconds", "nan"),
        ("--tol-label", "0"),
    ],
)
def test_choices_that_do_not_exist(folder, options):
    ran = _run("shrink", folder / "w.pt", *options)
    assert ran.exit_code == 2
    assert options[0] in ran.output


def test_choices_reach_the_result(folder, tmp_path):
    report = tmp_path / "thin.json"
    ran = _run(
        *("shrink", folder / "w.pt", "--tol", 0.15, "--out", tmp_path / "thin.pt"),
        *("--json", report, "--round-to", 4, "--objective", "params"),
        *("--distill", "--distill-seconds", 3, "--per-label", "--tol-label", 0.4),
    )
    assert ran.exit_code == 0, ran.output
    assert "At most 40% of each of the 10 labels may change" in ran.stdout
    record = json.loads(report.read_text())
    assert (record["round_to"], record["objective"]) == (4, "params")
    assert record["method"] == "hybrid" and record["certified"] is True
    assert record["agreement"]["by_label"]["promise"]["tolerance"] == 0.4
    assert any(c["polished"] for c in record["candidates"])
    kept = [layer["units_after"] for layer in record["layers"] if not layer["reason"]]
    assert kept and all(units % 4 == 0 for units in kept)
    assert "with one example" in ran.stdout


@pytest.mark.parametrize(
    "method",
    [*(pytest.param(name, marks=pytest.mark.slow) for name in ("prune", "factor")), "hybrid"],
)
def test_shrink_then_verify_then_load_in_another_process(folder, tmp_path, method):
    wide, thin, report = folder / "w.pt", tmp_path / "thin.pt", tmp_path / "thin.json"
    untouched = _hash(wide)
    ran = _run(
        *("shrink", wide, "--tol", 0.15, "--method", method, "--out", thin, "--json", report),
        *("--plot", tmp_path / "thin.png"),
    )
    assert ran.exit_code == 0, ran.output
    assert _hash(wide) == untouched
    assert sorted(p.name for p in tmp_path.iterdir()) == ["thin.json", "thin.png", "thin.pt"]
    assert (tmp_path / "thin.png").read_bytes().startswith(PNG)
    record = json.loads(report.read_text())
    assert record["certified"] is True
    assert record["method"] == method
    assert record["bytes"]["after"] == thin.stat().st_size
    assert record["bytes"]["before"] == wide.stat().st_size
    assert record["macs"]["after"] < record["macs"]["before"]
    # In words, with the numbers of the JSON.
    agreement = record["agreement"]
    changed, n = agreement["n"] - agreement["same"], agreement["n"]
    text = " ".join(ran.stdout.split())
    assert "At most 15% of the labels may change" in text
    bound = math.ceil(1000 * (1 - agreement["lower_bound"]) - 1e-9) / 1000
    assert (
        f"On {n} certification examples {changed} changed their label ({changed / n:.1%}), "
        f"so with 95% confidence at most {bound:.1%} change" in text
    )
    assert f"{record['params']['before']:,} {record['params']['after']:,}" in text
    assert "units before" in text
    assert "output layer" in text
    assert str(thin) in ran.stdout

    checked = _run("verify", wide, thin, "--json", "-")
    assert checked.exit_code == 0, checked.output
    found = json.loads(checked.stdout)
    assert found["split"] == "test"
    assert {k: found[k] for k in record["test"]} == record["test"]
    assert found["accuracy"] == record["accuracy"]
    other = json.loads(_run("verify", wide, thin, "--split", "certification", "--json", "-").stdout)
    own = other.pop("lower_bound")
    assert {k: other[k] for k in agreement if k != "lower_bound"} == {
        k: v for k, v in agreement.items() if k != "lower_bound"
    }
    # One network alone has a better bound than the last of several that were tested.
    assert own == agreement["lower_bound"] if record["tested"] == 1 else own >= 0.85
    assert agreement["lower_bound"] >= 0.85
    assert other["rate"] == agreement["rate"]

    # A fresh process without this test's state gives the same numbers, bit for bit.
    script = (
        "import sys, torch, fcompress\n"
        "torch.manual_seed(0); x = torch.randn(50, 1, 8, 8)\n"
        "model = fcompress.load(sys.argv[1]).eval()\n"
        "with torch.no_grad(): torch.save(model(x), sys.argv[2])\n"
    )
    subprocess.run([sys.executable, "-c", script, thin, tmp_path / "out.pt"], check=True)
    torch.manual_seed(0)
    x = torch.randn(50, 1, 8, 8)
    expected = shrink(load(wide), load_data("digits"), 0.15, method=method).model
    with torch.no_grad():
        assert torch.equal(torch.load(tmp_path / "out.pt"), expected(x))
    assert [e["action"] for e in read(thin).history] == ["train", "shrink"]


def test_the_default_name_stands_beside_the_model(folder, tmp_path):
    model = tmp_path / "net.pt"
    model.write_bytes((folder / "w.pt").read_bytes())
    ran = _run("shrink", model, "--ratio", 0.5, "--seed", 3, "--calibration", 200)
    assert ran.exit_code == 0, ran.output
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net.pt", "net.thin.pt"]
    assert "Size target: no tolerance is certified (bound " in ran.stdout
    twice = _run("shrink", model, "--ratio", 0.5, "--seed", 3, "--out", tmp_path / "again.pt")
    assert twice.exit_code == 0


def test_the_same_command_writes_the_same_file(folder, tmp_path):
    for name in ("a.pt", "b.pt"):
        ran = _run("shrink", folder / "w.pt", "--max-macs", 8000, "--out", tmp_path / name)
        assert ran.exit_code == 0, ran.output
    assert _hash(tmp_path / "a.pt") == _hash(tmp_path / "b.pt")


def test_saving_what_was_loaded_gives_the_same_file(folder, tmp_path):
    save(load(folder / "w.pt"), tmp_path / "again.pt")
    assert _hash(tmp_path / "again.pt") == _hash(folder / "w.pt")


def test_json_on_stdout_is_all_there_is_on_stdout(folder, tmp_path):
    ran = _run("shrink", folder / "w.pt", "--tol", 0.2, "--out", tmp_path / "t.pt", "--json", "-")
    assert ran.exit_code == 0, ran.output
    assert json.loads(ran.stdout)["tolerance"] == 0.2
    assert "units removed" in ran.stderr


def test_own_data_without_labels(folder, tmp_path):
    x = load_data("digits").train.batch(torch.arange(700))[0]
    torch.save({"x": x}, tmp_path / "own.pt")
    spec = f"file:{tmp_path / 'own.pt'}"
    thin = tmp_path / "t.pt"
    options = ("--data", spec, "--tol", 0.2, "--out", thin, "--json", tmp_path / "j")
    ran = _run("shrink", folder / "w.pt", *options)
    assert ran.exit_code == 0, ran.output
    assert "Accuracy" not in ran.stdout
    record = json.loads((tmp_path / "j").read_text())
    assert record["accuracy"] is None
    assert record["data"]["spec"] == spec
    checked = _run("verify", folder / "w.pt", thin, "--data", spec)
    assert checked.exit_code == 0, checked.output
    assert "Logits differ by" in checked.stdout
    assert "Accuracy" not in checked.stdout


def test_a_network_equals_itself(folder):
    ran = _run("verify", folder / "w.pt", folder / "w.pt", "--confidence", 0.99)
    assert ran.exit_code == 0
    assert "On 200 test examples 0 changed their label (0.0%)" in " ".join(ran.stdout.split())
    assert "99% confidence" in ran.stdout
    assert "Logits differ by 0 on average, 0 at most" in ran.stdout


def _damaged(folder, tmp_path):
    whole = (folder / "w.pt").read_bytes()
    (tmp_path / "short.pt").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.pt").write_text("no network")
    broken = load(folder / "w.pt")
    with torch.no_grad():
        broken.fc1.weight[0, 0] = torch.nan
    save(broken, tmp_path / "nan.pt")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["shrink", "{t}/missing.pt"], "missing.pt"),
        (["shrink", "{t}/short.pt"], "short.pt"),
        (["shrink", "{t}/text.pt"], "text.pt"),
        (["shrink", "{f}/forgetful.pt"], "does not remember its data; name some by --data"),
        (["shrink", "{f}/w.pt", "--data", "nothing"], "unknown dataset 'nothing'"),
        (["shrink", "{f}/w.pt", "--data", "file:{t}/gone.npz"], "gone.npz"),
        (["shrink", "{f}/w.pt", "--data", "gaussian:10"], "choose data of that shape"),
        (["shrink", "{t}/nan.pt"], "a weight of the network is not finite"),
        (["shrink", "{f}/w.pt", "--tol", "0.001"], "are needed"),
        (["shrink", "{f}/w.pt", "--tol", "0"], "a tolerance of 0 cannot be proven"),
        (["shrink", "{f}/untrained.pt", "--tol", "0.01"], "no thinner network could be certified"),
        (["shrink", "{f}/w.pt", "--max-macs", "10"], "cannot be reached"),
        (["verify", "{f}/w.pt", "{t}/missing.pt"], "missing.pt"),
        (["verify", "{f}/forgetful.pt", "{f}/w.pt"], "does not remember its data"),
        (["verify", "{f}/w.pt", "{f}/seven.pt"], "outputs of shape [10] and [7]"),
        (["verify", "{f}/w.pt", "{f}/w.pt", "--split", "test", "--data", "file:{t}/x.pt"], "test"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(folder, tmp_path, arguments, message):
    _damaged(folder, tmp_path)
    filled = [a.format(f=folder, t=tmp_path) for a in arguments]
    if "shrink" in filled:
        filled += ["--out", tmp_path / "out.pt", "--json", tmp_path / "out.json"]
    before = {p: _hash(p) for f in (folder, tmp_path) for p in f.iterdir()}
    ran = _run(*filled)
    assert ran.exit_code == 1, ran.output
    assert ran.stdout == ""
    lines = ran.stderr.splitlines()
    assert lines[-1].startswith("error: ")
    assert sum(line.startswith("error: ") for line in lines) == 1
    assert "Traceback" not in ran.stderr
    assert message in lines[-1]
    assert {p: _hash(p) for f in (folder, tmp_path) for p in f.iterdir()} == before


def test_how_many_examples_are_needed_is_said(folder, tmp_path):
    ran = _run("shrink", folder / "w.pt", "--tol", 0.005, "--out", tmp_path / "t.pt")
    assert ran.exit_code == 1
    assert "300 certification examples cannot prove a tolerance of 0.005" in ran.stderr
    needed = int(re.search(r"(\d+) are needed", ran.stderr)[1])
    assert needed == 598
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "option",
    [
        ["--tol", "1.5"],
        ["--tol", "1"],
        ["--tol", "-0.1"],
        ["--tol", "nan"],
        ["--tol", "much"],
        ["--method", "magic"],
        ["--tol", "0.1", "--ratio", "0.5"],
        ["--tol", "0.05", "--max-macs", "9000"],
        ["--ratio", "0"],
        ["--ratio", "1.1"],
        ["--ratio", "nan"],
        ["--max-macs", "0"],
        ["--calibration", "1"],
        ["--confidence", "1"],
        ["--confidence", "nan"],
        ["--out", "/no/such/folder/t.pt"],
        ["--json", "/no/such/folder/t.json"],
        ["--plot", "/no/such/folder/t.png"],
        ["--device", "abacus"],
    ],
)
def test_wrong_options_are_usage_errors(folder, option):
    ran = _run("shrink", folder / "w.pt", *option)
    assert ran.exit_code == 2, ran.output
    assert option[0] in ran.stderr
    assert "Traceback" not in ran.output
    assert not (folder / "w.thin.pt").exists()


def test_the_model_is_never_written_over(folder):
    before = _hash(folder / "w.pt")
    ran = _run("shrink", folder / "w.pt", "--ratio", 0.5, "--out", folder / "w.pt")
    assert ran.exit_code == 2
    assert "--out" in ran.stderr
    assert _hash(folder / "w.pt") == before


def test_missing_arguments_are_usage_errors():
    assert _run("shrink").exit_code == 2
    assert _run("verify", "a.pt").exit_code == 2


@pytest.mark.parametrize("command", ["shrink", "verify"])
def test_help_has_an_example(command):
    ran = _run(command, "--help")
    assert ran.exit_code == 0
    assert re.search(rf"^ +fcompress {command} model.pt ", ran.stdout, re.M)
    for option in ("--data", "--json", "--confidence"):
        assert option in ran.stdout


def test_a_killed_shrink_leaves_no_half_file(folder, tmp_path):
    wide = build("mlp", in_features=64, classes=10, width=4.0, depth=3)
    save(wide, tmp_path / "big.pt", data=load_data("digits").info)
    before = {p.name: _hash(p) for p in tmp_path.iterdir()}
    script = "from fcompress.cli import main; main()"
    command = [
        sys.executable,
        "-c",
        script,
        "shrink",
        "big.pt",
        "--out",
        "t.pt",
        "--json",
        "t.json",
    ]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    seen = ""
    for line in process.stderr:
        seen += line
        if "ranking units" in line:
            break
    process.kill()
    process.wait()
    assert "ranking units" in seen
    assert {p.name: _hash(p) for p in tmp_path.iterdir()} == before
