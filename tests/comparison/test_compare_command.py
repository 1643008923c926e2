"""`fcompress compare`."""

import json

import pytest
from cases.trained import trained
from click.testing import CliRunner

from fcompress import build, default_config, load_data, save, train
from fcompress.cli import main

METHODS = ["--method", "factor", "--method", "tp-l2-layer", "--method", "tp-bn-scale-global"]


def run(*arguments):
    return CliRunner().invoke(main, ["compare", *map(str, arguments)])


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    digits = load_data("digits")
    config = default_config("mlp", epochs=2, device="cpu")
    wide = train(build("mlp", width=0.25, in_features=64, classes=10), digits, config).model
    path = tmp_path_factory.mktemp("compare") / "wide.pt"
    save(wide, path)
    return path


def test_everything_is_shown_and_written(model, tmp_path):
    files = [tmp_path / name for name in ("c.json", "c.png", "c.html")]
    written = ["--json", files[0], "--plot", files[1], "--report", files[2]]
    done = run(model, "--tol", 0.2, *METHODS, *written)
    assert done.exit_code == 0, done.output
    record = json.loads(files[0].read_text())
    rows = {row["name"]: row for row in record["rows"]}
    for name in ("factor", "tp-l2-layer"):
        assert rows[name]["failed"] is None
        line = next(x for x in done.stdout.splitlines() if x.strip().startswith(name))
        kept = rows[name]["macs"] / record["macs"]
        changed = rows[name]["changed"] / record["search"], rows[name]["test"]["rate"]
        wanted = f"{rows[name]['macs']:,}", f"{kept:.1%}", f"{changed[0]:.1%}"
        assert {*wanted, f"{1 - changed[1]:.1%}"} <= set(line.split())
    assert "tp-bn-scale-global: the network has no batch norm" in done.stdout
    assert "the certification split was not used" in done.stdout
    assert "[3 of 3] tp-bn-scale-global" in done.stderr
    assert files[1].read_bytes().startswith(b"\x89PNG")
    page = files[2].read_text()
    assert "fcompress compare " in page and "tp-l2-layer" in page
    again = run(model, "--tol", 0.2, *METHODS[:2], *written)  # its own files may be replaced
    assert again.exit_code == 0, again.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--method", "magic"], "Invalid value for '--method'"),
        (["--tol", "1"], "Invalid value for '--tol'"),
        (["--distill-effort", "2"], "--distill-effort has no effect here: it needs --distill"),
        (["--report", "{f}"], "wide.pt"),
    ],
)
def test_usage_is_checked(model, arguments, said):
    done = run(model, *(one.format(f=model) for one in arguments))
    assert done.exit_code == 2 and said in done.output


def test_a_network_without_data_is_one_line(tmp_path):
    save(trained(), tmp_path / "own.pt")
    done = run(tmp_path / "own.pt")
    assert done.exit_code == 1 and done.output.startswith("error: ")
    assert len(done.output.splitlines()) == 1
