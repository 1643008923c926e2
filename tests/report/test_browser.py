"""Reports in a real browser: no error, no request; read, sorted, filtered, pointed at."""

import re
from dataclasses import replace

import pytest
from cases.browser import Opened, started
from cases.pages import HOSTILE, LONG, deep, labelled
from cases.shrunk import shrunk

from fcompress.compress.evidence import Evidence
from fcompress.report.html import write_page


@pytest.fixture(scope="module")
def browser():
    with started() as found:
        yield found


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Reports of a network of 3 layers and of one of 200, with what is in them."""
    folder = tmp_path_factory.mktemp("pages")
    fares = {label: (30 + label, label % 4) for label in range(12)}
    found = {
        "small": deep(3, agreement=labelled(fares)),
        "deep": deep(200, agreement=labelled(fares)),
        "hostile": deep(3, name=HOSTILE + LONG + "{}.{}", agreement=labelled({0: (60, 0)})),
        "bare": shrunk(evidence=Evidence(), candidates=(), layers=(), skipped=()),
    }
    for name, result in found.items():
        write_page(folder / f"{name}.html", result, command="fcompress shrink wide.pt")
    return folder, found


def number(text: str) -> float:
    return float(text.replace(",", "").replace("%", ""))


QUICK = [("small", 390), ("deep", 1280)]
SLOW = [("small", 1280), ("deep", 390), *((n, w) for n in ("hostile", "bare") for w in (390, 1280))]


@pytest.mark.parametrize(
    ("name", "width"), [*QUICK, *(pytest.param(*one, marks=pytest.mark.slow) for one in SLOW)]
)
def test_pages_open_without_an_error_or_a_request(browser, pages, name, width):
    with Opened(browser, pages[0] / f"{name}.html", width) as page:
        assert page.errors == [] and page.requests == []
        assert not page.overflows()


@pytest.mark.parametrize(
    ("name", "width", "scheme"),
    [("small", 1280, "light"), pytest.param("deep", 390, "dark", marks=pytest.mark.slow)],
)
def test_nothing_serious_stands_in_the_way_of_a_screen_reader(browser, pages, name, width, scheme):
    with Opened(browser, pages[0] / f"{name}.html", width, scheme) as page:
        assert page.hindrances() == []


@pytest.mark.slow
def test_what_checks_pages_finds_faults(browser, tmp_path):
    """The control: a page with an error, a request, a wide table and nothing for readers."""
    bad = tmp_path / "bad.html"
    bad.write_text(
        "<html lang=en><title>x</title><img src='missing.png'><script>nothing.there</script>"
        "<p style='width:3000px;color:#eee;background:#fff'>faint</p>"
    )
    with Opened(browser, bad) as page:
        assert page.errors and page.requests and page.overflows()
        assert {line.split(":")[0] for line in page.hindrances()} >= {"image-alt", "color-contrast"}


def test_tables_are_sorted_and_filtered(browser, pages):
    with Opened(browser, pages[0] / "deep.html") as page:
        layers = pages[1]["deep"].evidence.flow.layers
        macs = [one.macs_before for one in layers]
        heading = page.page.get_by_role("button", name="MACs before")
        heading.click()
        assert [number(t) for t in page.column("layer-table", 5)] == sorted(macs, reverse=True)
        assert page.page.locator("#layer-table th[aria-sort]").inner_text() == "MACs before"
        heading.press("Enter")
        assert [number(t) for t in page.column("layer-table", 5)] == sorted(macs)
        page.page.locator("#layer-table").get_by_role("button", name="#").click()
        assert page.column("layer-table", 1) == [one.name for one in layers]
        page.page.get_by_label("Filter").first.fill("STAGE19. linear")
        assert page.column("layer-table", 1) == ["stage19.conv199"]
        assert page.page.locator("[data-count=layer-table]").inner_text() == "1 of 200"
        page.page.get_by_label("Filter").first.fill("nothing of the kind")
        assert page.column("layer-table", 1) == []


def test_the_architecture_answers_to_pointer_and_keys(browser, pages):
    with Opened(browser, pages[0] / "small.html") as page:
        layers = pages[1]["small"].evidence.flow.layers
        tip = page.page.locator("#tip")
        assert tip.is_hidden()
        bars = page.page.locator("[data-chart=architecture] .hit")
        assert bars.count() == 3
        bars.nth(1).hover()
        one = layers[1]
        assert one.name in tip.inner_text()
        assert f"{one.units_before} → {one.units_after} units" in tip.inner_text()
        assert f"{one.macs_before:,} → {one.macs_after:,} MACs" in tip.inner_text()
        page.page.mouse.move(2, 2)
        assert tip.is_hidden()
        picture = page.page.locator("[data-chart=architecture] svg")
        picture.focus()
        for layer in layers:
            picture.press("ArrowRight")
            assert layer.name in tip.inner_text()
        picture.press("Escape")
        assert tip.is_hidden()
        # The outputs of layers 0 and 2 are joined, those of 0 are read by 1 and 2.
        assert page.page.locator("[data-chart=architecture] path.join").count() == 2
        assert page.page.locator("[data-chart=architecture] path.read").count() == 1


@pytest.mark.slow
def test_another_layer_draws_its_own_units(browser, pages):
    with Opened(browser, pages[0] / "small.html") as page:
        units = pages[1]["small"].evidence.units
        for place, one in enumerate(units):
            page.page.get_by_label("Layer", exact=True).select_option(str(place))
            dots = page.page.locator("[data-chart=map] circle")
            assert dots.count() == len(one.order)
            kept = page.page.locator("[data-chart=map] circle.stay")
            assert kept.count() == one.kept
            assert (
                f"{len(one.order)} units, {one.kept} kept"
                in page.page.locator("#chosen").inner_text()
            )
        tips = [dots.nth(i).get_attribute("data-tip") for i in range(dots.count())]
        told = {int(re.match(r"unit (\d+)", text)[1]): text for text in tips}
        twins = [told[0], told[1]]
        assert all("others explain 100%" in text for text in twins), twins


def test_numbers_are_those_of_the_json(browser, pages):
    result = pages[1]["deep"]
    record = result.to_dict()
    with Opened(browser, pages[0] / "deep.html") as page:
        for heading, key in ((5, "macs_before"), (6, "macs_after")):
            shown = [number(t) for t in page.column("layer-table", heading)]
            assert shown == [one[key] for one in record["flow"]["layers"]]
        shown = [number(t) for t in page.column("layer-table", 8)]
        assert shown == [float(f"{one['ms_before']:.3g}") for one in record["flow"]["layers"]]
        page.page.get_by_text(f"All {len(record['candidates'])} candidates").click()
        tried = sorted(record["candidates"], key=lambda one: -one["macs"])
        assert [number(t) for t in page.column("candidate-table", 1)] == [c["macs"] for c in tried]
        assert [t.split()[0] for t in page.column("candidate-table", 3)] == [
            f"{c['changed']}" for c in tried
        ]
        found = record["agreement"]["by_label"]["labels"]
        assert [number(t) for t in page.column("label-table", 1)] == [one["n"] for one in found]
        assert [number(t) for t in page.column("label-table", 2)] == [
            one["changed"] for one in found
        ]
        tiles = page.page.locator(".sizes > div")
        for tile, key in ((0, "params"), (1, "macs"), (2, "bytes")):
            exact = f"{record[key]['before']:,} before, {record[key]['after']:,} after"
            assert tiles.nth(tile).get_attribute("title") == exact
        marks = page.page.locator("[data-chart=tradeoff] circle")
        beyond = [c for c in tried if c["changed"] / c["n"] > 2.5 * record["tolerance"]]
        assert marks.count() == len(tried) - len(beyond) and beyond


@pytest.mark.slow
def test_names_of_layers_are_text(browser, pages):
    with Opened(browser, pages[0] / "hostile.html", 390) as page:
        name = pages[1]["hostile"].evidence.flow.layers[0].name
        assert len(name) > 300 and page.column("layer-table", 1)[0] == name
        page.page.locator("[data-chart=architecture] .hit").first.hover()
        assert name in page.page.locator("#tip").inner_text()
        assert page.errors == [] and page.requests == []


@pytest.mark.slow
def test_what_is_missing_is_said(browser, pages):
    with Opened(browser, pages[0] / "bare.html") as page:
        text = page.page.locator("main").inner_text()
        for said in ("No network was tried", "Everything could be pruned", "are no labels"):
            assert said in text
        assert text.count("Not shown:") == 2 and "Left out:" in text


@pytest.mark.slow
def test_paper_gets_all_of_it(browser, pages):
    with Opened(browser, pages[0] / "deep.html") as page:
        page.page.emulate_media(media="print")
        assert page.page.locator("nav").is_hidden()
        region = page.page.get_by_role("region", name="Layers")
        assert region.evaluate("e => getComputedStyle(e).overflow") == "visible"
        assert page.page.pdf()[:4] == b"%PDF"


@pytest.mark.slow
def test_examples_are_pictures_texts_and_numbers(browser, pages, tmp_path):
    with Opened(browser, pages[0] / "small.html") as page:
        shown = page.page.locator(".examples li")
        assert shown.count() == 3
        picture = shown.first.locator("img")
        assert picture.evaluate("e => [e.complete, e.naturalWidth, e.naturalHeight]") == [
            True,
            8,
            8,
        ]
        assert [t.split()[0] for t in shown.locator(".from").all_inner_texts()] == ["cat"] * 3
        assert "margin 0.5 → 0.25" in shown.first.inner_text()
    write_page(tmp_path / "private.html", pages[1]["small"], examples=False)
    with Opened(browser, tmp_path / "private.html") as page:
        assert page.page.locator(".examples, img").count() == 0
        assert "left out of this page" in page.page.locator("#examples").inner_text()


@pytest.mark.slow
def test_nothing_removed_reads_well(browser, tmp_path):
    whole = deep(3)
    flow = whole.evidence.flow
    same = tuple(
        replace(one, units_after=one.units_before, macs_after=one.macs_before)
        for one in flow.layers
    )
    evidence = replace(whole.evidence, flow=replace(flow, layers=same))
    macs = {"before": 100, "after": 100}
    write_page(tmp_path / "x.html", replace(whole, evidence=evidence, macs=macs, candidates=()))
    with Opened(browser, tmp_path / "x.html") as page:
        assert page.errors == []
        assert page.column("layer-table", 4) == ["100%"] * 3
