"""What stands in a report, without a browser."""

import json
import re
import warnings
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import torch
from cases.pages import HOSTILE, deep, labelled
from cases.shrunk import shrunk
from cases.trained import examples as inputs
from cases.trained import trained
from click.testing import CliRunner

import fcompress
from fcompress.cli import main
from fcompress.compress.evidence import Evidence
from fcompress.errors import FcompressError
from fcompress.report.html import page_of, page_of_files, write_page
from fcompress.report.html.figures import png


class Reader(HTMLParser):
    """Which elements there are, and what they would load."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses += [v for k, v in attributes if k in ("src", "href", "srcset", "data")]


def data_of(page: str) -> dict:
    return json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])


@pytest.fixture(scope="module")
def result():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fcompress.ResultWarning)
        return fcompress.shrink(trained(), list(inputs()[0].split(100)), tol=0.2)


@pytest.fixture(scope="module")
def analysis():
    return fcompress.analyze(trained(), inputs(200)[0], groups=False)


def test_a_real_result_has_everything(result, tmp_path):
    assert result.report(tmp_path / "x.html") is None
    page = (tmp_path / "x.html").read_text()
    assert page == page_of(result)
    found = data_of(page)
    flow = result.evidence.flow
    assert [one[0] for one in found["flow"]["layers"]] == ["0", "3", "6"]
    assert sum(one.macs_before for one in flow.layers) == result.macs["before"]
    assert sum(one.macs_after for one in flow.layers) == result.macs["after"]
    assert all(one.ms_before > 0 and one.ms_after > 0 for one in flow.layers)
    units = {one["name"]: one for one in found["units"]}
    after = {layer.name: layer.units_after for layer in result.layers}
    for name in ("0", "3"):
        assert units[name]["kept"] == after[name] == sum(units[name]["stays"])
        assert len(units[name]["listened"]) == 24 and units[name]["side"] == 24
    assert len(found["tradeoff"]["points"]) == len(result.candidates)
    verdict = " ".join(re.sub(r"<[^>]+>", "", page).split())
    assert "PASS within 20%" in verdict and "95% confidence" in verdict


def test_changed_examples_are_those_that_change(result):
    found = result.evidence.examples
    assert found.split == "certification"
    assert found.looked_at == 360 or len(found.shown) == 24
    assert len(found.shown) == min(24, result.agreement.changed)
    model = trained()
    for one in found.shown:
        x = one.values[None]
        scores = [m(x)[0] for m in (model, result.model)]
        assert [str(int(s.argmax())) for s in scores] == [one.before, one.after]
        for score, margin in zip(scores, (one.margin_before, one.margin_after), strict=True):
            best = score.double().softmax(0).topk(2).values
            assert margin == pytest.approx(float(best[0] - best[1]), abs=1e-6)


def test_pages_load_nothing(result, analysis):
    for page in (page_of(result), page_of(analysis), page_of(deep(200))):
        found = Reader(page)
        assert all(a.startswith(("#", "data:")) for a in found.addresses)
        assert not {"link", "iframe", "object", "embed"} & set(found.tags)
        assert (
            "url(" not in page.replace("url(#${clip})", "")
            and "@import" not in page
            and "fetch(" not in page
        )
        assert "default-src 'none'" in page


def test_the_page_of_a_deep_network_is_small():
    units = deep(200).evidence.units * 20
    result = deep(200)
    page = page_of(replace(result, evidence=replace(result.evidence, units=units)))
    assert len(page.encode()) < 2_000_000


def test_no_name_is_markup():
    page = page_of(deep(3, name=HOSTILE + "{}{}"), command=HOSTILE, network=HOSTILE)
    assert Reader(page).tags.count("script") == 2  # the data and the program
    assert HOSTILE not in page
    assert data_of(page)["flow"]["layers"][0][0].startswith(HOSTILE)


@pytest.mark.parametrize(
    "changes",
    [
        {"agreement": labelled({0: (60, 0)})},
        {"evidence": Evidence()},
        {"candidates": (), "layers": (), "skipped": ()},
        {
            "tolerance": None,
            "target": {"limits": {"macs": 5}, "reached": {"macs": 4}, "batch": None},
        },
        {"data": {"class_names": ["a"], "sizes": {"search": 3}, "mean": [0.5]}, "test": None},
        {"warnings": ("a < b",), "accuracy": {"before": 0.9, "after": 0.8}},
    ],
    ids=lambda changes: "-".join(changes),
)
def test_results_with_less_or_more_have_a_page(changes):
    assert page_of(shrunk(**changes)).endswith("</html>\n")


def test_private_examples_stay_out(result):
    page = page_of(result, examples=False)
    assert 'class="examples"' in page_of(result)
    assert 'class="examples"' not in page and "left out of this page" in page


def test_an_analysis_has_its_curves_and_matrices(analysis):
    found = data_of(page_of(analysis))
    assert [one["name"] for one in found["layers"]] == ["2", "4"]
    for one in found["layers"]:
        assert one["ablation"][0] == [0.0, 1.0] and one["variance"][-1] == [1.0, 1.0]
        assert one["side"] == 24 or one["compared"] < 24
        assert sum(one["histogram"]) == one["compared"] * (one["compared"] - 1) // 2
    assert "picture" not in json.dumps(analysis.to_dict())


def test_unwritable_places_are_one_line(result, tmp_path):
    with pytest.raises(FcompressError, match="its folder does not exist; create it first"):
        write_page(tmp_path / "no" / "x.html", result)
    with pytest.raises(FcompressError, match="cannot write"):
        write_page(tmp_path, result)
    with pytest.raises(TypeError, match="a dict has no report"):
        page_of({})


def test_results_side_by_side(result, tmp_path):
    for name, one in (("five", result), ("size", replace(result, tolerance=None))):
        (tmp_path / f"{name}.json").write_text(json.dumps(one.to_dict()))
    page = page_of_files([tmp_path / "five.json", tmp_path / "size.json"])
    found = data_of(page)["results"]
    assert [one["name"] for one in found] == ["five", "size"]
    assert len(found[0]["points"]) == len(result.candidates)
    for wrong, said in (("{}", "holds no result of shrink"), ("[", "is no JSON")):
        (tmp_path / "wrong.json").write_text(wrong)
        with pytest.raises(FcompressError, match=said):
            page_of_files([tmp_path / "wrong.json"])
    bad = {**result.to_dict(), "macs": {}}
    (tmp_path / "wrong.json").write_text(json.dumps(bad))
    with pytest.raises(FcompressError, match="is not as shrink --json wrote it"):
        page_of_files([tmp_path / "wrong.json"])
    with pytest.raises(FcompressError, match="No such file"):
        page_of_files([tmp_path / "none.json"])


def test_a_picture_is_a_png():
    import base64
    import io

    from PIL import Image

    values = torch.arange(2 * 3 * 3, dtype=torch.uint8).view(2, 3, 3)
    for shown in (values, values[..., :1]):
        encoded = png(shown).removeprefix("data:image/png;base64,")
        opened = Image.open(io.BytesIO(base64.b64decode(encoded)))
        assert torch.tensor(list(opened.tobytes())).view(shown.shape).equal(shown.long())


def test_the_command_line_writes_pages_and_keeps_candidates(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        return CliRunner().invoke(main, [str(a) for a in arguments])

    data = fcompress.load_data("digits")
    torch.manual_seed(0)
    model = fcompress.build("mlp", in_features=64, classes=10, hidden=64)
    config = fcompress.default_config("mlp", epochs=2, device="cpu")
    model = fcompress.train(model, data, config).model
    fcompress.save(model, "m.pt", data=data.info)
    ran = run("shrink", "m.pt", "--tol", 0.3, "--report", "r.html", "--json", "r.json",
              "--keep-candidates", "kept", "--out", "t.pt")  # fmt: skip
    assert ran.exit_code == 0, ran.output
    page = (tmp_path / "r.html").read_text()
    assert "fcompress shrink m.pt --tol 0.3 --report r.html" in page
    assert "fcompress.load(&#34;t.pt&#34;)" in page
    kept = json.loads((tmp_path / "kept" / "candidates.json").read_text())["candidates"]
    record = json.loads((tmp_path / "r.json").read_text())
    assert [{k: v for k, v in one.items() if k != "file"} for one in kept] == record["candidates"]
    assert {one["file"] for one in kept} == {p.name for p in (tmp_path / "kept").glob("*.pt")}
    for one in kept:
        thin = fcompress.load(tmp_path / "kept" / one["file"])
        assert fcompress.count(thin, data.test.batch(torch.arange(1))[0]).macs == one["macs"]
    passed = [one for one in kept if one["certification"] == "passed"]
    assert max(one["removed"] for one in passed) == next(
        one["removed"] for one in kept if one["macs"] == record["macs"]["after"]
    )
    shown = run("show", f"kept/{kept[0]['file']}").output
    assert "a candidate of hybrid, not certified" in shown
    again = run("report", "r.json", "--out", "p.html")
    assert again.exit_code == 0 and "Written: p.html" in again.output
    # Ours is replaced, somebody's page is not; nor is a folder of something else written to.
    assert run("report", "r.json", "--out", "p.html").exit_code == 0
    (tmp_path / "mine.html").write_text("<html>precious")
    refused = run("report", "r.json", "--out", "mine.html")
    assert refused.exit_code == 1 and "not plainly a report" in refused.output
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "x").write_text("precious")
    refused = run("shrink", "m.pt", "--keep-candidates", "other")
    assert refused.exit_code == 1 and "is not empty" in refused.output
    idle = run("shrink", "m.pt", "--no-examples")
    assert idle.exit_code == 2 and "it needs --report" in idle.output
