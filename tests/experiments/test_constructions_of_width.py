"""The three constructions on MLPs of the registry: same function, known prunable and redundant."""

import json

import pytest
import torch
from cases.trained import weights_of

import fcompress
from fcompress.errors import UnsupportedNetworkError
from fcompress.experiments.measures.constructions import (
    KINDS,
    construct,
    constructions,
    figure,
    orthogonality,
)
from fcompress.measure.redundancy import measure_redundancy


def narrow(depth=2, units=6, inputs=20, classes=4, seed=1):
    args = {"width": 0.5, "hidden": 2 * units, "depth": depth, "classes": classes}
    return fcompress.build("mlp", seed=seed, in_features=inputs, **args).eval()


def points(count=400, inputs=20, seed=2):
    return torch.randn(count, inputs, generator=torch.Generator().manual_seed(seed))


def redundant(model, x, tolerance):
    return [layer.redundant(tolerance) for layer in measure_redundancy(model, [(x, None)]).layers]


@pytest.fixture(scope="module")
def digits():
    splits = fcompress.load_data("digits")
    model = fcompress.build("mlp", width=0.25, in_features=64, seed=0)
    config = fcompress.default_config("mlp", epochs=8, device="cpu")
    return fcompress.train(model, splits, config).model, splits


@pytest.mark.parametrize("depth", [1, 2, 4])
@pytest.mark.parametrize("which", KINDS)
def test_twice_the_width_computes_the_same(which, depth):
    model, x = narrow(depth), points()
    wide = construct(model, which, x)
    assert wide.spec.args == {**model.spec.args, "width": 1.0}
    assert [p.shape[0] for p in wide.parameters()][:-2] == [12] * 2 * depth
    with torch.no_grad():
        before, after = model(x), wide(x)
        # Negative control: the doubled half takes part where the weights are balanced.
        wide.get_parameter(f"fc{depth}.weight")[6:] = 0
        wide.get_parameter(f"fc{depth}.bias")[6:] = 0
        without = wide(x)
    # Balanced weights lose the digits of 32 times larger ones, in every layer.
    torch.testing.assert_close(after, before, rtol=0, atol=1e-5 * 4**depth)
    same = (without - before).abs().max() < 1e-5
    assert bool(same) == (which != "redundant")


@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("which", ["both", "redundant"])
def test_duplicates_are_redundant_to_the_unit(which, depth):
    model, x = narrow(depth), points()
    wide = construct(model, which, x)
    for tolerance in (0.0, 0.05, 0.15):
        found = zip(redundant(wide, x, tolerance), redundant(model, x, tolerance), strict=True)
        assert all(w == 6 + n for w, n in found)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_orthogonal_units_are_not_redundant(depth):
    model, x = narrow(depth, inputs=12), points(inputs=12)
    wide = construct(model, "prunable", x)
    measured = orthogonality(wide, x)
    assert [o.layer for o in measured] == list(wide.ablation_layers)
    for o in measured:
        # Twelve dimensions, six of them taken by u: just enough for six more.
        assert (o.directions, o.exact) == (12, 6)
        assert max(o.to_u, o.among_v, o.to_span) < 1e-5
    assert redundant(wide, x, 0.0) == redundant(model, x, 0.0)
    # At a tolerance, v gives its own share of the variance away as well: 5% of six units and a bit.
    allowed = zip(redundant(wide, x, 0.05), redundant(model, x, 0.05), strict=True)
    assert all(w - n <= 1 for w, n in allowed)
    # Negative control: random units in their place are correlated with u.
    with torch.no_grad():
        wide.fc1.weight[6:].normal_(generator=torch.Generator().manual_seed(3))
    assert orthogonality(wide, x)[0].to_u > 0.05


def test_too_few_dimensions_leave_some_correlation_and_far_too_few_are_refused():
    model = narrow(1, inputs=8)
    (measured,) = orthogonality(construct(model, "prunable", points(inputs=8)), points(inputs=8))
    assert measured.exact == 2 and measured.among_v < 1e-5 and 0.1 < measured.to_span <= 1
    few = points(inputs=8)
    few[:, 4:] = few[:, :4]
    with pytest.raises(UnsupportedNetworkError, match="varies in 4 dimensions only"):
        construct(model, "prunable", few)


def test_what_is_built_can_be_saved_and_leaves_the_model_alone(tmp_path):
    model, x = narrow(), points()
    model.train()
    before, state = weights_of(model), torch.get_rng_state()
    for which in KINDS:
        wide = construct(model, which, x)
        fcompress.save(wide, tmp_path / "wide.pt")
        again = fcompress.load(tmp_path / "wide.pt").eval()
        assert torch.equal(again(x), wide(x))
        assert again.origin["history"][-1] == {"action": "construct", "kind": which}
        assert weights_of(construct(model, which, x)) == weights_of(wide)
    assert weights_of(model) == before and model.training
    assert torch.equal(torch.get_rng_state(), state)


def test_only_whole_mlps_can_be_doubled():
    with pytest.raises(UnsupportedNetworkError, match="of the family mlp"):
        construct(fcompress.build("resnet20", width=0.25), "both", points())
    with pytest.raises(ValueError, match="expected one of both"):
        construct(narrow(), "neither", points())
    odd = fcompress.build("mlp", width=0.3, hidden=5, in_features=20)
    with pytest.raises(UnsupportedNetworkError, match="not as wide as its family builds it"):
        construct(odd, "both", points())


def test_digits_show_all_three(digits):
    model, splits = digits
    record = constructions(model, splits, {"seed": 0})
    assert json.loads(json.dumps(record)) == record
    found = record["networks"]
    n = found["narrow"]
    for which in KINDS:
        assert found[which]["units"] == 2 * n["units"] == 64
        assert found[which]["same_labels"] == 1.0
        assert found[which]["logit_difference"] < 1e-4
    for which in ("both", "prunable"):
        assert found[which]["labels_without_doubled"] == 1.0
        assert found[which]["removable"] == n["prunable"] + 32
        assert found[which]["ratio"]["removable"] > 2
    assert found["redundant"]["labels_without_doubled"] < 0.5
    assert found["redundant"]["removable"] == found["redundant"]["prunable"]
    assert found["redundant"]["prunable_share"] < 0.5 * n["prunable_share"]
    for which in ("both", "redundant"):
        assert found[which]["redundant"] == n["redundant"] + 32
        assert found[which]["ratio"]["redundant"] > 2
    # v gives 5% of itself away, and here it has to share five directions with u.
    assert found["prunable"]["redundant"] <= n["redundant"] + 3
    assert record["orthogonality"][0]["exact"] >= 24


def test_random_orders_do_not_find_what_is_prunable_by_construction(digits):
    model, splits = digits
    found = constructions(model, splits, {"seed": 0, "orders": 24})["networks"]
    for which in ("both", "prunable"):
        assert found[which]["ratio"]["prunable"] < 2.3
        assert found[which]["removable"] > 1.2 * found[which]["prunable"]


def test_the_figure_holds_the_counts(digits):
    model, splits = digits
    records = [constructions(model, splits, {"seed": s, "examples": 100}) for s in (0, 1)]
    assert records[0]["examples"] == 100
    left, right = figure(records, "digits").axes
    mean = sum(r["networks"]["redundant"]["redundant"] for r in records) / 2
    assert right.patches[3].get_height() == mean
    assert len(left.patches) == 8
