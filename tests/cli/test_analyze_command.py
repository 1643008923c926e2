import json

import pytest
import torch
from click.testing import CliRunner

from fcompress.checkpoints.checkpoint import load, save
from fcompress.cli import main
from fcompress.data import load_data
from fcompress.measure.analysis import analyze
from fcompress.models import build
from fcompress.training.loop import TrainConfig, train

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Networks trained on digits, named by width, and an untrained one that knows no data."""
    folder = tmp_path_factory.mktemp("networks")
    splits = load_data("digits")
    for width in (0.25, 0.5, 1.0):
        model = build("mlp", width=width, in_features=64, classes=10, depth=2)
        trained = train(model, splits, TrainConfig(epochs=3, lr=0.05, device="cpu"))
        save(trained.model, folder / f"{width}.pt", data=splits.info)
    save(build("mlp", in_features=64, classes=10), folder / "forgetful.pt")
    return folder


def _run(*arguments):
    return CliRunner().invoke(main, [str(a) for a in arguments])


def test_analyze_prints_a_table_and_writes_json_and_picture(folder, tmp_path):
    ran = _run(
        *("analyze", folder / "1.0.pt"),
        *("--json", tmp_path / "a.json", "--plot", tmp_path / "a.png"),
    )
    assert ran.exit_code == 0, ran.output
    for words in ("mlp 1x on digits (test split): 200 examples, accuracy", "relu1", "Prunable:"):
        assert words in ran.stdout
    assert "at tolerance 0.5" in ran.stdout
    assert "Not pruned: out: output layer" in ran.stdout
    assert (tmp_path / "a.png").read_bytes().startswith(PNG)
    record = json.loads((tmp_path / "a.json").read_text())
    expected = json.loads(json.dumps(analyze(load(folder / "1.0.pt")).to_dict()))
    assert record == expected
    assert record["examples"] == 200
    assert 0.5 < record["accuracy"] <= 1
    assert record["cost"]["params"] == 64 * 128 + 128 + 128 * 128 + 128 + 1290
    assert record["layer_costs"]["relu2"] == {"params": 128 * 128 + 128, "macs": 128 * 128}
    assert record["data"]["split"] == "test"
    assert {s["name"] for s in record["skipped"]} == {"out"}
    assert sum(record["groups"].values()) == 256
    share = record["ablation"]["network"]["prunable_share"]["0.2"]
    assert f"{share:.1%}" in ran.stdout


def test_labels_that_change_within_the_first_step_are_pointed_out(folder, tmp_path):
    """At a tolerance of 0 a single label decides."""
    said = "The labels change within the first step, 16.7% of the units"
    ran = _run("analyze", folder / "1.0.pt", "--no-layers", "--tolerance", 0)
    assert ran.exit_code == 0 and said in ran.stdout and "--steps 24 measures it" in ran.stdout
    ran = _run("analyze", folder / "1.0.pt", "--no-layers")
    assert ran.exit_code == 0 and "within the first step" not in ran.stdout
    finer = ["--steps", 48, "--json", tmp_path / "fine.json"]
    ran = _run("analyze", folder / "1.0.pt", "--no-layers", "--tolerance", 0, *finer)
    assert said not in ran.stdout
    record = json.loads((tmp_path / "fine.json").read_text())
    assert len(record["ablation"]["network"]["agreement"][0]) == 49
    assert _run("analyze", folder / "1.0.pt", "--steps", 0).exit_code == 2


def test_a_terminal_of_80_columns_shows_whole_numbers(tmp_path, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # which makes of the output a terminal
    monkeypatch.setenv("COLUMNS", "80")
    digits = {"in_channels": 1, "image_size": 8, "classes": 10}
    save(build("resnet20", width=2, **digits), tmp_path / "wide.pt", data=load_data("digits").info)
    ran = _run("analyze", tmp_path / "wide.pt", "--no-layers", "--examples", 5)
    assert ran.exit_code == 0, ran.output
    assert "layer3.2.relu2" in ran.stdout and "23,552" in ran.stdout
    assert "…" not in ran.stdout and "in a wider terminal" in ran.stdout
    monkeypatch.setenv("COLUMNS", "120")
    ran = _run("analyze", tmp_path / "wide.pt", "--no-layers", "--examples", 5)
    assert "…" not in ran.stdout and "in a wider terminal" not in ran.stdout


def test_analyze_takes_other_data_and_tolerances(folder, tmp_path):
    torch.save({"x": torch.rand(60, 1, 8, 8)}, tmp_path / "own.pt")
    ran = _run(
        *("analyze", folder / "0.5.pt", "--data", f"file:{tmp_path / 'own.pt'}"),
        *("--tolerance", "0.3", "--redundancy-tolerance", "0.1", "--unit", "map"),
        *("--no-layers", "--examples", 5, "--json", tmp_path / "a.json", "--device", "cpu"),
    )
    assert ran.exit_code == 0, ran.output
    assert "accuracy" not in ran.stdout
    record = json.loads((tmp_path / "a.json").read_text())
    assert record["accuracy"] is None
    assert record["examples"] == 5
    assert record["ablation"]["tolerances"] == [0.3]
    assert record["redundancy"]["tolerances"] == [0.1]
    assert record["ablation"]["unit"] == "map"
    assert record["ablation"]["layers"] == []
    assert record["data"]["spec"].startswith("file:")


def test_gain_prints_a_table_and_writes_json_and_picture(folder, tmp_path):
    files = [folder / f"{width}.pt" for width in (1.0, 0.25, 0.5)]
    ran = _run("gain", *files, "--json", tmp_path / "g.json", "--plot", tmp_path / "g.png")
    assert ran.exit_code == 0, ran.output
    assert "mlp: 3 networks" in ran.stdout
    assert "non-redundant" in ran.stdout
    assert (tmp_path / "g.png").read_bytes().startswith(PNG)
    record = json.loads((tmp_path / "g.json").read_text())
    assert record["widths"] == [0.25, 0.5, 1.0]
    curves = {c["quantity"]: c for c in record["network"]}
    assert f"{curves['redundant']['gain']:.2f}" in ran.stdout
    share = analyze(load(folder / "1.0.pt")).redundancy.share(0.05)
    assert curves["redundant"]["mean"][-1] == pytest.approx(share)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["analyze", "missing.pt"], "missing.pt"),
        (["analyze", "forgetful.pt"], "does not remember its data; name some"),
        (["analyze", "1.0.pt", "--data", "nothing"], "unknown dataset 'nothing'"),
        (["gain", "1.0.pt"], "at least two widths"),
        (["gain", "1.0.pt", "0.25.pt"], "not successive doublings"),
        (["gain", "1.0.pt", "forgetful.pt"], "width only; depth is"),
    ],
)
def test_mistakes_are_one_line(folder, arguments, message):
    ran = _run(*[folder / a if a.endswith(".pt") else a for a in arguments])
    assert ran.exit_code == 1
    assert ran.stdout == ""
    assert ran.stderr.startswith("error: ")
    assert ran.stderr.count("\n") == 1
    assert message in ran.stderr


@pytest.mark.parametrize(
    "option",
    [
        ["--tolerance", "1"],
        ["--tolerance", "-0.1"],
        ["--unit", "neuron"],
        ["--examples", "0"],
        ["--json", "/no/such/folder/a.json"],
    ],
)
def test_wrong_options_are_usage_errors(folder, option):
    for command in ("analyze", "gain"):
        ran = _run(command, folder / "1.0.pt", *option)
        assert ran.exit_code == 2
        assert option[0] in ran.stderr


def test_help_has_an_example():
    for command in ("analyze", "gain"):
        ran = _run(command, "--help")
        assert ran.exit_code == 0
        assert f"fcompress {command} " in ran.stdout
