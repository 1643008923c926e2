"""Recipe files: what they say at each scale, and which trials they stand for."""

import json
import subprocess
import sys

import pytest

from fcompress.errors import FcompressError
from fcompress.experiments import names
from fcompress.experiments import recipe as recipes
from fcompress.experiments.recipe import SCALES, Recipe, known, read, recipe_of, summaries
from fcompress.experiments.report.figures import DRAWINGS
from fcompress.experiments.report.tables import PUBLISHED_AS, published_gains
from fcompress.experiments.trials import trial
from fcompress.experiments.trials.trial import MEASURES, network_name, trials_of

AT = [(name, scale) for name, _, _, scales in summaries() for scale in scales]


def write(folder, name="own", **parts):
    """A small recipe file; parts replace lines of it."""
    lines = {
        "family": 'family = "mlp"',
        "data": 'data = "gaussian:5,n=50,seed={seed}"',
        "measure": "measure.analyze = { examples = 20 }",
        "train": 'train = { epochs = 1, schedule = "constant" }',
        "rest": "",
        "smoke": "[smoke]\nwidths = [0.5, 1]",
        **parts,
    }
    path = folder / f"{name}.toml"
    path.write_text("\n".join(lines.values()))
    return str(path)


def only(recipe: Recipe) -> recipes.Curve:
    (curve,) = recipe.curves
    return curve


# --- the recipes of the project -------------------------------------------------------------------


@pytest.mark.parametrize(("name", "scale"), AT)
def test_every_recipe_says_something_whole(name, scale):
    recipe = read(name, scale)
    assert (recipe.name, recipe.scale) == (name, scale)
    assert recipe.title and recipe.source and recipe.finding and recipe.draw
    assert recipe.published is None or recipe.published in published_gains()
    found = trials_of(recipe)
    expected = 0
    for curve in recipe.curves:
        rates = 1
        if curve.train is not None and isinstance(curve.train.get("lr"), list):
            rates = len(curve.train["lr"])
        expected += len(curve.widths) * curve.seeds * rates
        if curve.random_labels:
            assert all(t.work["random_labels"] == t.seed for t in found if t.curve == curve.name)
    assert len(found) == expected
    assert [t.width for t in found] == sorted((t.width for t in found), reverse=True)
    assert recipe_of(json.loads(json.dumps(recipe.to_dict()))) == recipe
    if scale != "paper":
        assert recipe.note or not recipe.published, "a scale that is not the paper's says so"
    if recipe.published:
        assert all("analyze" in curve.measure for curve in recipe.curves)


def test_the_project_has_the_experiments_of_the_paper():
    """One for each set of published gains, and the figures without any."""
    stated = {read(name, "paper").published for name in known()} - {None}
    assert stated == set(published_gains())
    assert set(known()) >= {"fig1a", "fig1b", "fig1c", "fig2", "random_networks", "constructions"}
    for name in known():
        assert {"paper"} <= {scale for n, scale in AT if n == name}


def test_published_values_have_names_that_are_compared():
    for figure in published_gains().values():
        assert set(figure) == set(PUBLISHED_AS.values())


def test_names_stand_for_functions():
    assert set(names.MEASURES) == set(MEASURES)
    assert set(names.DRAWINGS) == set(DRAWINGS)


def test_paper_scale_is_the_papers():
    """Protocol section 4, in numbers."""
    mlps = read("fig4d", "paper")
    assert {c.widths for c in mlps.curves} == {(0.25, 0.5, 1.0, 2.0, 4.0)}
    assert {(c.seeds, c.train["epochs"]) for c in mlps.curves} == {(3, 50)}
    assert {tuple(c.train["lr"]) for c in mlps.curves} == {(1.0, 0.1, 0.01, 0.001, 0.0001)}
    assert len(trials_of(mlps)) == 5 * 2 * 2 * 3 * 5
    alexnets = read("fig4c", "paper")
    for curve in alexnets.curves:
        assert curve.data == "cifar10,crop=28,holdout=0" and curve.seeds == 3
        expected = {"batch_size": 128, "lr": 0.01, "schedule": "decay", "epochs": 500}
        assert curve.train == expected
    inits = [c.args["init"] for c in alexnets.curves]
    assert inits == ["glorot_normal", "he_normal", "lecun_normal"]
    labels = {c.name: c for c in read("fig4a", "paper").curves}
    assert [c.random_labels for c in labels.values()] == [False, True, False, True]
    assert {c.train["epochs"] for c in labels.values() if c.random_labels} == {5000}
    assert labels["ResNet56"].train["augment"] and labels["ResNet56"].train["weight_decay"] == 2e-4
    memorising = labels["ResNet56, random labels"].train
    assert memorising["lr"] == 0.1 and not {"augment", "weight_decay"} & memorising.keys()
    regularized = {c.name: c for c in read("fig4b", "paper").curves}
    assert regularized["all three"].train["epochs"] == 1000
    assert regularized["all three"].args["dropout"] == 0.5
    scaled = {
        (c.family, c.train["lr"] / c.train["batch_size"]) for c in read("lr_batch", "paper").curves
    }
    assert scaled == {("alexnet", 0.01 / 128), ("resnet56", 0.1 / 128)}
    inceptions = {c.name: c for c in read("fig3ab", "paper").curves}
    assert inceptions["Inception-v3"].widths == (0.25, 0.5, 1.0)
    assert inceptions["Inception-v3-layer"].widths == (0.25, 0.5, 1.0, 2.0, 4.0)


# --- reading --------------------------------------------------------------------------------------


def test_a_file_of_ones_own_with_nothing_but_a_family(tmp_path):
    recipe = read(write(tmp_path), "smoke")
    assert (recipe.name, recipe.title, recipe.draw, recipe.published) == ("own", "own", (), None)
    curve = only(recipe)
    assert (curve.name, curve.widths, curve.seeds) == ("mlp", (0.5, 1.0), 1)
    assert not curve.random_labels and curve.train["epochs"] == 1


def test_scales_add_to_the_top_and_curves_to_both(tmp_path):
    path = write(
        tmp_path,
        rest="[curves.a]\nargs = { hidden = 8 }\n[curves.b]\ntrain = { lr = 0.5 }",
        smoke='[smoke]\ntrain = { epochs = 3 }\nargs = { depth = 2 }\nonly = ["b"]\n'
        "[small]\ncurves.b.train = { lr = 0.25 }\ncurves.a.widths = 2",
    )
    only_b = only(read(path, "smoke"))
    assert only_b.name == "b" and only_b.args == {"depth": 2}
    assert only_b.train == {"epochs": 3, "schedule": "constant", "lr": 0.5}
    a, b = read(path, "small").curves
    assert (a.widths, b.widths) == ((2.0,), (1.0,))
    assert a.args == {"hidden": 8} and a.train == {"epochs": 1, "schedule": "constant"}
    assert b.train == {"epochs": 1, "schedule": "constant", "lr": 0.25}
    with pytest.raises(FcompressError, match="no scale paper; it has: smoke, small"):
        read(path, "paper")


def test_like_replaces_the_curves_and_keeps_the_rest(tmp_path):
    write(tmp_path, name="base", rest='title = "base"\n[curves.a]\nseeds = 4')
    path = tmp_path / "other.toml"
    path.write_text('like = "base"\ndraw = ["growth"]\n[curves.b]\n[smoke]\nseeds = 2\n')
    recipe = read(str(path), "smoke")
    assert recipe.title == "base" and recipe.draw == ("growth",) and recipe.name == "other"
    curve = only(recipe)
    assert (curve.name, curve.seeds, curve.widths) == ("b", 2, (0.5, 1.0))
    path.write_text('like = "base"\n')
    assert [(c.name, c.seeds) for c in read(str(path), "smoke").curves] == [("a", 4)]
    path.write_text('like = "fig4c"\n')  # of the project, from anywhere
    assert [c.name for c in read(str(path), "smoke").curves] == ["Glorot", "He", "LeCun"]


def test_untrained_networks(tmp_path):
    path = write(tmp_path, train='train = "none"', rest="[curves.a]\n[curves.b]\ntrain.epochs = 2")
    a, b = read(path, "smoke").curves
    assert a.train is None and b.train == {"epochs": 2}
    path = write(tmp_path, rest='[curves.a]\ntrain = "none"')
    assert only(read(path, "smoke")).train is None
    assert {t.work["train"] for t in trials_of(read(path, "smoke"))} == {None}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (["seeds=3"], {"seeds": 3}),
        (["widths=[2, 0.25, 2]"], {"widths": (0.25, 2.0)}),
        (["widths=2"], {"widths": (2.0,)}),
        (["data=digits"], {"data": "digits"}),
        (["data=gaussian:7,n=30"], {"data": "gaussian:7,n=30"}),
        (['data="gaussian:7"'], {"data": "gaussian:7"}),
        (["random_labels=true"], {"random_labels": True}),
        (["args.init=he_normal", "args.hidden=9"], {"args": {"init": "he_normal", "hidden": 9}}),
        (["train.lr=[0.1, 1]", "train.epochs=7"],
         {"train": {"epochs": 7, "schedule": "constant", "lr": [0.1, 1]}}),
        (["train=none"], {"train": None}),
        (["measure.analyze.orders=1"], {"measure": {"analyze": {"examples": 20, "orders": 1}}}),
        (["curves.mlp.seeds=2"], {"seeds": 2}),
        (["seeds=2", "seeds=5"], {"seeds": 5}),
        ([" seeds = 2 "], {"seeds": 2}),
    ],
)  # fmt: skip
def test_changes(tmp_path, changes, expected):
    before = only(read(write(tmp_path), "smoke"))
    after = only(read(write(tmp_path), "smoke", changes))
    for key in vars(before):
        assert getattr(after, key) == expected.get(key, getattr(before, key)), key


def test_a_change_of_one_curve_and_of_what_is_drawn():
    recipe = read("fig4c", "smoke", ["curves.He.seeds=2", 'draw=["params"]', 'only=["He","LeCun"]'])
    assert [(c.name, c.seeds) for c in recipe.curves] == [("He", 2), ("LeCun", 1)]
    assert recipe.draw == ("params",)
    assert read("fig4c", "smoke", ["published="]).published is None
    assert read("fig4c", "smoke", ['published=""']).published is None


def test_a_change_makes_a_difference_to_settings_of_a_curve_too():
    """What a curve itself says stands above what is changed for all."""
    lr = [c.train["lr"] for c in read("lr_batch", "smoke", ["train.lr=0.5"]).curves]
    assert lr == [0.0025, 0.5, 0.04]


# --- trials ---------------------------------------------------------------------------------------


def test_rates_and_seeds_become_trials(tmp_path):
    path = write(tmp_path, train="train = { epochs = 1, lr = [0.1, 0.2] }", rest="seeds = 3")
    found = trials_of(read(path, "smoke"))
    assert len(found) == len({t.id for t in found}) == 2 * 3 * 2
    cells = {(t.width, t.seed, t.work["train"]["lr"]) for t in found}
    assert cells == {(w, s, r) for w in (0.5, 1.0) for s in range(3) for r in (0.1, 0.2)}
    assert {t.work["data"] for t in found if t.seed == 2} == {"gaussian:5,n=50,seed=2"}
    assert all(t.work["args"]["width"] == t.width for t in found)
    assert all(t.id.startswith(f"mlp-{t.width:g}x-seed{t.seed}-") for t in found)


@pytest.mark.parametrize("scale", ["smoke", "paper"])
def test_recipes_share_trials(scale):
    """The same networks, whatever is drawn of them, are trained once."""
    found = {name: trials_of(read(name, scale)) for name in known() if (name, scale) in AT}
    ids = {name: {t.id for t in own} for name, own in found.items()}
    assert ids["fig1c"] == ids["fig4c"] and ids["alexnet_layers"] < ids["fig4c"]
    assert ids["fig1b"] == ids["fig4a"] and ids["fig1a"] == ids["fig3ab"]
    assert ids["fig4a"].isdisjoint(ids["fig4d"])
    assert ids["fig2"].isdisjoint(ids["fig4c"]), "more is measured of the networks"
    networks = {name: {network_name(t.work) for t in own} for name, own in found.items()}
    assert networks["fig2"] < networks["fig4c"]


@pytest.mark.parametrize(
    "change",
    [
        "args.hidden=9",
        "data=gaussian:6,n=50,seed={seed}",
        "random_labels=true",
        "train.epochs=2",
        "train.lr=0.01",
        "train.augment=true",
        "measure.analyze.orders=2",
        "measure.shrunk.tolerances=[0.1]",
        "family=alexnet",
        "train=none",
    ],
)
def test_identity_changes_with_whatever_decides_the_result(tmp_path, change):
    before = trials_of(read(write(tmp_path), "smoke"))
    after = trials_of(read(write(tmp_path), "smoke", [change]))
    assert {t.id for t in before}.isdisjoint(t.id for t in after)


def test_identity_does_not_change_with_names_and_drawings(tmp_path):
    ids = [
        {t.id for t in trials_of(read(write(tmp_path, name=name, **parts), "smoke", changes))}
        for name, parts, changes in [
            ("own", {}, []),
            ("other", {"rest": 'title = "x"\ndraw = ["growth"]\n[curves."another name"]'}, []),
            ("own", {}, ["train.epochs=1", "widths=[1, 0.5]"]),
        ]
    ]
    assert ids[0] == ids[1] == ids[2]


def test_identity_is_that_of_the_format(tmp_path, monkeypatch):
    recipe = read(write(tmp_path), "smoke")
    before = trials_of(recipe)
    monkeypatch.setattr(trial, "FORMAT", trial.FORMAT + 1)
    assert {t.id for t in before}.isdisjoint(t.id for t in trials_of(recipe))


def test_listing_the_recipes_needs_no_torch():
    code = (
        "import sys; from fcompress.experiments import recipe\n"
        "assert list(recipe.summaries())\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
    assert set(SCALES) == {scale for _, scale in AT}
