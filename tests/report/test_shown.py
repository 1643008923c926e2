"""Results where Python prints them: short, in notebooks, as tables, pictures and files."""

import io
import re
import sys
from dataclasses import replace

import pytest
import torch
from cases.shrunk import agreement, shrunk
from cases.trained import examples, trained
from matplotlib.figure import Figure
from rich.console import Console

import fcompress
from fcompress.checkpoints.checkpoint import load, save
from fcompress.compress.result import LayerChange
from fcompress.data.specs import reload_data
from fcompress.errors import DataError, FcompressError
from fcompress.forward.cost import count
from fcompress.models.provenance import origin_of
from fcompress.report.screens import show, shrink_screen
from fcompress.structure.groups import find_groups


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A network that remembers its data, trained shortly, and what training gave back."""
    splits = fcompress.load_data("digits")
    config = fcompress.default_config("mlp", epochs=3, device="cpu")
    network = fcompress.build("mlp", width=2, in_features=64, classes=10)
    path = tmp_path_factory.mktemp("digits") / "wide.pt"
    return fcompress.train(network, splits, config, out=path)


@pytest.fixture(scope="module")
def results(digits, tmp_path_factory):
    """One result of each kind, by name."""
    model = digits.model
    compressed = fcompress.shrink(load(digits.path), tol=0.2)
    few = torch.zeros(8, 1, 8, 8)
    analyses = [
        fcompress.analyze(
            fcompress.build("mlp", width=w, in_features=64, classes=10),
            fcompress.load_data("digits"),
            examples=50,
            groups=False,
        )
        for w in (0.25, 0.5)
    ]
    file = tmp_path_factory.mktemp("exported") / "a.safetensors"
    exported = fcompress.export(compressed.model, file, torch.zeros(4, 1, 8, 8))
    return {
        "shrink": compressed,
        "agreement": compressed.agreement,
        "analyze": analyses[0],
        "ablation": analyses[0].ablation,
        "redundancy": analyses[0].redundancy,
        "gain": fcompress.gain(analyses),
        "bench": fcompress.bench(model, few, batch=4, seconds=0.05, memory=False),
        "export": exported,
        "train": digits,
        "cost": count(model, few),
        "file": fcompress.describe_file(digits.path),
        "groups": find_groups(model, few),
    }


KINDS = (
    "shrink agreement analyze ablation redundancy gain bench export train cost file groups".split()
)


@pytest.mark.parametrize("kind", KINDS)
def test_every_result_is_three_lines_and_has_its_table(results, kind):
    result = results[kind]
    lines = repr(result).splitlines()
    assert 1 <= len(lines) <= 3 and max(map(len, lines)) <= 110
    assert lines[0].startswith(f"{type(result).__name__}: ")
    assert str(result) == repr(result)
    page = result._repr_html_()
    assert page.startswith("<div><b>") and page.count("<table>") == 1
    assert len(result._rows()) and len({tuple(row) for row in result._rows()}) == 1
    text = result.summary()
    assert len(text.splitlines()) >= 3 and "\x1b" not in text
    assert max(len(line) for line in text.splitlines() if " " in line.strip()) <= 80


def test_what_the_lines_say(results):
    told = repr(results["shrink"])
    assert "certified, at most" in told and f"{results['shrink'].macs['after']:,}" in told
    assert "PASS within 20%" in results["shrink"].summary()
    wanted = shrunk(tolerance=None, certified=False)
    assert "of the size asked for, at most 3.5% of labels change" in repr(wanted)
    failed = shrunk(certified=False)
    assert "not certified" in repr(failed) and "FAIL within 5%" in failed.summary()


def test_the_fields_of_a_deep_network_stay_out_of_sight():
    many = tuple(LayerChange(f"block{i}.conv", 64, 32, None) for i in range(500))
    deep = shrunk(layers=many)
    assert len(repr(deep)) < 400 and "500 of 500 layers" in repr(deep)
    assert len(deep._repr_html_()) < 30_000 and "300 more: to_frame()" in deep._repr_html_()


def test_names_are_no_markup():
    odd = shrunk(layers=(LayerChange("<script>[bold]", 4, 2, None),))
    assert "<script>" not in odd._repr_html_() and "&lt;script&gt;[bold]" in odd._repr_html_()


def test_tables_of_pandas(results, monkeypatch):
    class Pandas:
        DataFrame = staticmethod(list)

    monkeypatch.setitem(sys.modules, "pandas", Pandas)
    rows = results["shrink"].to_frame()
    assert [row["layer"] for row in rows] == [layer.name for layer in results["shrink"].layers]
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(FcompressError, match=r"not installed; install pandas or use to_dict\(\)"):
        results["shrink"].to_frame()


@pytest.mark.parametrize("kind", ["shrink", "analyze", "gain"])
def test_pictures_are_figures_of_no_window(results, kind):
    figure = results[kind].plot()
    assert isinstance(figure, Figure) and len(figure.axes) >= 2
    assert "matplotlib.pyplot" not in sys.modules or not _windows()


def _windows():
    return sys.modules["matplotlib.pyplot"].get_fignums()


def test_remembered_data_is_used(digits, results):
    assert results["shrink"].data == digits.data
    given = fcompress.shrink(load(digits.path), reload_data(digits.data), tol=0.2)
    assert given.agreement == results["shrink"].agreement
    with pytest.raises(DataError, match="does not remember any data"):
        fcompress.shrink(fcompress.build("mlp", in_features=64, classes=10))


def test_results_keep_their_networks(results, tmp_path):
    results["shrink"].save(tmp_path / "thin.pt")
    save(results["shrink"].model, tmp_path / "same.pt")
    assert (tmp_path / "thin.pt").read_bytes() == (tmp_path / "same.pt").read_bytes()
    again = load(tmp_path / "thin.pt")
    assert origin_of(again)["history"][-1]["action"] == "shrink"
    results["train"].save(tmp_path / "wide.pt")
    assert load(tmp_path / "wide.pt")(torch.zeros(1, 1, 8, 8)).shape == (1, 10)


def test_networks_of_ones_own_keep_their_history(tmp_path):
    result = fcompress.shrink(trained(), list(examples(2000)[0].split(100)), tol=0.2)
    result.save(tmp_path / "own.pt")
    with pytest.raises(FcompressError, match="arch"):
        load(tmp_path / "own.pt")
    again = load(tmp_path / "own.pt", arch=trained)
    assert origin_of(again)["history"][-1]["certified"] is True
    x = torch.randn(5, 6)
    assert torch.equal(again(x), result.model(x))


def printed(result, *, width=80, **options):
    file = io.StringIO()
    console = Console(file=file, width=width, force_terminal=True, highlight=False)
    show(console, shrink_screen(result, **options))
    return file.getvalue()


def test_the_verdict_comes_first_and_in_colour(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    for certified, word, colour in ((True, "PASS", "\x1b[1;32m"), (False, "FAIL", "\x1b[1;31m")):
        text = printed(shrunk(certified=certified))
        assert text.startswith(f"{colour}{word} within 5%: at most 3.5% of labels change")
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[1;3" not in printed(shrunk()).replace("\x1b[1m", "")


def test_no_word_is_broken_in_80_columns():
    reason = "a path of the code which no example took may read its units by their number " * 3
    long = "a/very/long/path/" * 8
    result = shrunk(
        warnings=(reason.strip(), f"see {long}"),
        agreement=agreement(5, 300, 0.0349, accuracy={"before": 0.9, "after": 0.89}),
    )
    plain = re.sub(r"\x1b\[[0-9;]*m", "", printed(result))
    lines = [line for line in plain.splitlines() if long not in line]
    assert max(map(len, lines)) <= 80
    words = set(" ".join(lines).split())
    assert {"number", "certification", "confidence"} <= words
    assert long in plain  # whole, to be copied


def test_layers_that_changed_come_first_and_the_others_on_request():
    layers = (LayerChange("same", 8, 8, "shared"), LayerChange("thin", 8, 2, None))
    result = replace(shrunk(), layers=layers, skipped=())
    short, full = printed(result), printed(result, full=True)
    assert "thin" in short and "same " not in short and "1 layer keeps all its units" in short
    assert full.index("thin") < full.index("same ") and "shared" in full
