"""Networks that recipes keep: the same results, trained once whatever is measured of them."""

import json

import pytest
import torch
from cases.recipe_runs import run
from click.testing import CliRunner

from fcompress import load
from fcompress.cli import main

OWN = """
draw = ["accuracy"]
train = { epochs = 2 }
measure.analyze = { examples = 30, by_layer = false, orders = 1 }
[curves.alexnet]
family = "alexnet"
data = "digits"
widths = [0.03125, 0.0625]
[curves.mlp]
family = "mlp"
data = "gaussian:10,n=200,seed={seed}"
train = { lr = [0.1, 0.01] }
widths = [0.25]
[curves.untrained]
family = "mlp"
data = "digits"
train = "none"
[smoke]
"""
OTHER = ["--set", 'measure.responses={layer="conv2", examples=20}', "--set", 'only=["alexnet"]']


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    path = tmp_path_factory.mktemp("kept") / "own.toml"
    path.write_text(OWN)
    return path


@pytest.fixture(scope="module")
def kept(own):
    run(own, own.parent / "first", "--networks", own.parent / "networks")
    return own.parent / "networks"


def records(out):
    found = [json.loads(path.read_text()) for path in (out / "trials").iterdir()]
    return {json.dumps(record["work"], sort_keys=True): record for record in found}


def test_every_trained_network_is_kept_in_a_file_of_its_own(kept):
    names = sorted(path.name for path in kept.iterdir())
    assert len(names) == 4 and all(name.endswith(".pt") for name in names), names
    assert [name.split("-seed0-")[0] for name in names] == [
        "alexnet-0.03125x", "alexnet-0.0625x", "mlp-0.25x", "mlp-0.25x",
    ]  # fmt: skip
    assert not (kept.parent / "first" / "scratch").exists()


def test_records_are_those_of_a_run_that_keeps_nothing(own, kept):
    run(own, own.parent / "plain", "--set", 'only=["alexnet", "untrained"]')
    first, plain = records(own.parent / "first"), records(own.parent / "plain")
    assert len(plain) == 3
    for work, record in plain.items():
        assert first[work] == record


def test_another_measure_trains_nothing_again(own, kept):
    before = {path: path.stat().st_mtime_ns for path in kept.iterdir()}
    run(own, own.parent / "other", "--networks", kept, *OTHER)
    assert {path: path.stat().st_mtime_ns for path in kept.iterdir()} == before
    run(own, own.parent / "other-plain", *OTHER)
    other = records(own.parent / "other")
    assert other == records(own.parent / "other-plain")
    assert all("responses" in record["measure"] for record in other.values())


@pytest.mark.parametrize("trained", ["another width", "another rate", "no network"])
def test_a_file_that_is_not_what_its_name_says(own, kept, tmp_path, trained):
    narrow, wide = sorted(kept.glob("alexnet-*"))
    networks = tmp_path / "networks"
    networks.mkdir()
    wrong = networks / wide.name
    if trained == "no network":
        wrong.write_bytes(wide.read_bytes()[:1000])
    elif trained == "another width":
        wrong.write_bytes(narrow.read_bytes())
    else:
        other = tmp_path / "other"
        run(own, tmp_path / "a", "--networks", other, "--set", "train.lr=0.2", *OTHER)
        wrong.write_bytes(next(other.glob("alexnet-0.0625x*")).read_bytes())
    content = wrong.read_bytes()
    result = run(own, tmp_path / "b", "--networks", networks, *OTHER, code=1)
    assert str(wrong) in result.stderr and "Traceback" not in result.stderr
    assert wrong.read_bytes() == content


def test_a_kept_network_is_a_checkpoint_like_any_other(kept):
    path = sorted(kept.iterdir())[0]
    network = load(path)
    assert network(torch.zeros(1, 1, 8, 8)).shape == (1, 10)
    result = CliRunner().invoke(main, ["analyze", str(path), "--device", "cpu"])
    assert result.exit_code == 0 and "alexnet" in result.stdout


def test_a_folder_that_cannot_be_made(own, tmp_path):
    (tmp_path / "file").write_text("")
    bad = tmp_path / "file" / "networks"
    result = run(own, tmp_path / "out", "--networks", bad, code=1)
    assert "cannot make the folder" in result.stderr and "Traceback" not in result.stderr
