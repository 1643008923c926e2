"""Every recipe at scale smoke, from the command to the figures, and again."""

import json
import xml.etree.ElementTree as ElementTree

import pytest
from cases.recipe_runs import recipe, run
from PIL import Image

from fcompress.experiments import recipe as recipes
from fcompress.experiments.names import DRAWINGS
from fcompress.experiments.trials.trial import trials_of

SMOKE = [name for name, _, _, scales in recipes.summaries() if "smoke" in scales]
# The others take minutes together.
QUICK = ("fig1c", "fig2", "constructions", "shrink_widths")
# These are run twice; together they draw everything that there is.
AGAIN = ("fig1c", "fig2", "fig4d", "alexnet_layers", "constructions", "fig5", "shrink_widths")


def written(folder):
    """Everything in a folder of results but the trials: path -> content."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A folder of trials for all recipes: those that they have in common are trained once."""
    return tmp_path_factory.mktemp("shared") / "trials"


@pytest.mark.parametrize(
    "name",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in SMOKE],
)
def test_smoke(name, shared, tmp_path):
    before = set(shared.glob("*")) if shared.is_dir() else set()
    result = run(name, tmp_path / "out", "--trials", shared)
    wanted = recipes.read(name, "smoke")
    every = trials_of(wanted)
    ids = {trial.id for trial in every}

    records = {path.stem: path for path in shared.glob("*.json")}
    assert ids <= set(records)
    new = ids - {path.stem for path in before}
    assert len(result.stderr.strip().splitlines()) == len(new), "a line of progress for each"
    log = (tmp_path / "out" / "log.jsonl").read_text().splitlines() if new else []
    assert {one for line in log for one in json.loads(line)["trials"]} == new
    for trial in every:
        record = json.loads(records[trial.id].read_text())
        assert record["work"] == trial.work
        assert set(record["measure"]) == set(trial.work["measure"])
        assert record["params"] > 0 and record["macs"] > 0 and record["versions"]["torch"]
        assert record["data"]["sha256"]
        if trial.work["train"] is None:
            assert record["train"] is None
        else:
            assert len(record["train"]["loss"]) == trial.work["train"]["epochs"]
            assert 0 <= record["train"]["test_accuracy"] <= 1

    out = tmp_path / "out"
    figures = {path.name for path in (out / "figures").iterdir()}
    assert figures == {f"{drawing}.{kind}" for drawing in wanted.draw for kind in ("png", "svg")}
    for drawing in wanted.draw:
        with Image.open(out / "figures" / f"{drawing}.png") as image:
            image.load()
            assert image.format == "PNG" and min(image.size) > 300
            assert len(image.convert("RGB").getcolors(2**24)) > 3, "nothing is drawn"
        root = ElementTree.parse(out / "figures" / f"{drawing}.svg").getroot()
        assert root.tag.endswith("}svg")
        text = " ".join("".join(node.itertext()) for node in root.iter())
        assert "smoke" in text and wanted.source.split(",")[0] in text

    content = json.loads((out / "results.json").read_text())
    assert [one["id"] for one in content["trials"]] == [trial.id for trial in every]
    page = (out / "summary.md").read_text()
    assert wanted.title in page and wanted.note in page and wanted.finding in page
    assert all(f"(figures/{drawing}.png)" in page for drawing in wanted.draw)
    assert f"`fcompress recipe run {name} --scale smoke`" in page
    assert not (out / "scratch").exists() and "summary.md" in result.stdout
    assert {path.name for path in out.iterdir()} <= {
        "recipe.json", "figures", "results.json", "summary.md", "log.jsonl", "written.json",
    }  # fmt: skip
    if name in AGAIN:
        content = written(out)
        modified = {path: path.stat().st_mtime_ns for path in shared.iterdir()}
        result = run(name, out)  # where the trials are, the folder knows
        assert result.stderr == "" and written(out) == content
        assert recipe("report", out).exit_code == 0
        assert written(out) == content
        assert {path: path.stat().st_mtime_ns for path in shared.iterdir()} == modified


def test_again_covers_every_drawing():
    assert {d for name in AGAIN for d in recipes.read(name, "smoke").draw} == set(DRAWINGS)


def test_both_folders_can_be_moved_together(tmp_path):
    small = ["--set", "curves.He.widths=0.0625", "--set", 'only=["He"]']
    run("fig1c", tmp_path / "a" / "out", "--trials", tmp_path / "a" / "trials", *small)
    (tmp_path / "a").rename(tmp_path / "b")
    assert "1 of 1 networks" in recipe("report", tmp_path / "b" / "out").stdout


def test_list():
    text = recipe("list").stdout
    listed = json.loads(recipe("list", "--json", "-").stdout)
    assert [one["name"] for one in listed] == sorted(recipes.known())
    for one in listed:
        assert one["name"] in text and one["title"] and one["source"]
        assert set(one["scales"]) <= set(recipes.SCALES)


def test_json_on_stdout_is_all_that_is_there(tmp_path):
    small = ["--set", "curves.He.widths=0.0625", "--set", 'only=["He"]']
    result = run("fig4c", tmp_path / "out", *small, "--json", "-")
    record = json.loads(result.stdout)
    assert record["recipe"]["curves"][0]["name"] == "He"
    assert record["accuracy"]["He"]["0.0625"]["networks"] == 1
    assert record["gains"] == {} and record["compared"] == [], "one width has no gain"
    assert {path.name for path in (tmp_path / "out" / "figures").iterdir()} == {
        "accuracy.png",
        "accuracy.svg",
    }
