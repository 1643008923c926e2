"""The reconstruction family of the comparison: exact where the papers are, and fair on the rest."""

import pytest
import torch
from cases.small_networks import build, example, wake
from cases.trained import weights_of

import fcompress
from benchmarks.rivals.base import Setting
from benchmarks.rivals.channels import same_share, wide_of
from benchmarks.rivals.folding import Folding, k_means, unit_values
from benchmarks.rivals.osscar import Osscar, Tableau, orders_of, readings_of, swapped
from benchmarks.rivals.reconstruction import GramCompensation, Interpolative, magnitudes, pivoted_qr
from fcompress.structure.groups import find_groups
from fcompress.surgery.excision import excise
from fcompress.surgery.preparation import prepare

WIRINGS = ["Mlp", "ConvFlatten", "Residual", "Dense", "Depthwise", "Grouped"]
EXACT = [
    Interpolative(recalibrated=False),
    GramCompensation(ridge=1e-9, recalibrated=False),
    Osscar(ridge=1e-13, recalibrated=False),
]
ALL = [
    Interpolative(),
    Interpolative(threshold=True),
    GramCompensation(),
    GramCompensation(wanda=False),
    Folding(),
    Osscar(),
]
NAMES = [f"{r.name}-{i}" for i, r in enumerate(ALL)]


def setting_of(model, inputs, batch=24, seed=3):
    structure = find_groups(model, inputs[:4])
    assert structure.groups
    return Setting(model, structure, list(inputs.split(batch)), seed)


def inputs_like(name, count=96):
    generator = torch.Generator().manual_seed(5)
    shape = example(name).shape[1:]
    return torch.randn(count, *shape, generator=generator, dtype=torch.float64)


def with_twins(name, *, equal_readers):
    """A network where the second half of every group repeats the first half."""
    model = build(name)
    inputs = inputs_like(name)
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    with torch.no_grad():
        for group in find_groups(model, inputs[:4]).groups:
            half = group.size // 2
            for slot in group.slots:
                values = unit_values(tensors[slot.tensor], slot).clone()
                if slot.role != "consumer" or equal_readers:
                    values[half : 2 * half] = values[:half]
                else:
                    values[half : 2 * half] *= 1e-3
                inside = (slot.units >= 0).nonzero().flatten()
                places = inside[slot.units[inside].argsort(stable=True)].view(group.size, -1)
                tensors[slot.tensor].movedim(slot.dim, 0)[places] = values
    return model, inputs


def relative_change(model, thin, inputs):
    with torch.no_grad():
        before, after = model(inputs), thin(inputs)
    return float((before - after).norm() / before.norm())


@pytest.mark.parametrize("rival", EXACT, ids=lambda r: r.name)
@pytest.mark.parametrize("name", WIRINGS)
def test_twins_go_without_a_trace(name, rival):
    model, inputs = with_twins(name, equal_readers=False)
    setting = setting_of(model, inputs)
    before = weights_of(model)
    thin = rival.make(setting, 0.4)
    assert weights_of(model) == before
    assert fcompress.count(thin, inputs).macs < fcompress.count(model, inputs).macs
    # Units that no calibration input wakes may go too, so these are the inputs that count.
    assert relative_change(model, thin, inputs) < 1e-6
    originals = {g.name: torch.arange(g.size - g.size // 2) for g in setting.structure.groups}
    cut = excise(model, setting.structure.groups, originals)
    assert relative_change(model, cut, inputs) > 1e-5  # what the folding is worth


@pytest.mark.parametrize("name", WIRINGS)
def test_equal_units_fold_without_a_trace(name):
    model, inputs = with_twins(name, equal_readers=True)
    setting = setting_of(model, inputs)
    before = weights_of(model)
    thin = Folding(repaired=False).make(setting, 0.4)
    assert weights_of(model) == before
    assert fcompress.count(thin, inputs).macs < fcompress.count(model, inputs).macs
    assert relative_change(model, thin, inputs_like(name, 8)) < 1e-6
    kept = {g.name: torch.arange(g.size - g.size // 2) for g in setting.structure.groups}
    cut = excise(model, setting.structure.groups, kept)
    assert relative_change(model, cut, inputs) > 1e-3


def small(family):
    args = {"mlp": {"hidden": 24, "depth": 2}, "alexnet": {"width": 0.1}}
    size = 28 if family == "alexnet" else 8
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = fcompress.build(
            family,
            in_channels=1,
            image_size=size,
            classes=5,
            **args.get(family, {"width": 0.25}),
        )
        inputs = torch.rand(32, 1, size, size)
    model = prepare(model, inputs[:2]).eval()
    wake(model)
    model.drop_training_parts()
    return model, inputs


@pytest.fixture(scope="module")
def settings():
    """Settings by network, so that the statistics of one are not collected for every test."""
    found = {name: setting_of(*small(name), batch=16) for name in ("mlp", "alexnet", "resnet20")}
    return found | {"Dense": setting_of(build("Dense"), inputs_like("Dense"))}


@pytest.mark.parametrize("network", ["mlp", "alexnet", "resnet20", "Dense"])
def test_larger_amounts_are_thinner(settings, network):
    setting = settings[network]
    before = weights_of(setting.model)
    wide = fcompress.count(setting.model, setting.batches[0]).macs
    for rival in ALL:
        macs = [wide]
        for amount in (0.4, 0.95):
            thin = rival.make(setting, amount)
            macs.append(fcompress.count(thin, setting.batches[0]).macs)
            with torch.no_grad():
                assert thin(setting.batches[0]).isfinite().all(), rival
            assert not any(m.training for m in thin.modules())
        assert macs == sorted(macs, reverse=True) and len(set(macs)) == 3, rival
    assert weights_of(setting.model) == before


@pytest.mark.parametrize("rival", ALL, ids=NAMES)
def test_the_same_twice(settings, rival):
    random_state = torch.get_rng_state()
    first, second = (rival.make(settings["mlp"], 0.5) for _ in range(2))
    assert weights_of(first) == weights_of(second)
    assert torch.equal(torch.get_rng_state(), random_state)


def test_one_accuracy_takes_more_where_more_is_redundant():
    model, inputs = with_twins("Mlp", equal_readers=False)
    structure = find_groups(model, inputs[:4])
    with torch.no_grad():  # the first group has twins, the second gets units of its own
        model[2].weight.copy_(build("Mlp", seed=9)[2].weight)
    setting = Setting(model, structure, [inputs], 0)
    thin = Interpolative(threshold=True, recalibrated=False).make(setting, 0.3)
    assert (len(thin[0].weight), len(thin[2].weight)) == (5, 6)
    assert relative_change(model, thin, inputs) < 1e-6


def test_pivots_are_distances_from_those_before():
    generator = torch.Generator().manual_seed(0)
    columns = torch.randn(30, 6, generator=generator, dtype=torch.float64)
    columns = torch.cat(
        [columns, columns[:, :2] @ torch.randn(2, 2, generator=generator).double()], 1
    )
    order, pivots = pivoted_qr(columns)
    assert sorted(order.tolist()) == list(range(8))
    assert (pivots.diff() <= 0).all() and (pivots[6:] == 0).all() and pivots[5] > 0.1
    for k in range(6):
        before, after = columns[:, order[:k]], columns[:, order[k:]]
        if k:
            after = after - before @ torch.linalg.lstsq(before, after).solution
        assert after.norm(dim=0).max() == pytest.approx(float(pivots[k]), rel=1e-9)


def test_tableau_knows_every_change_of_the_error():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, 9, generator=generator, dtype=torch.float64)
    weights = torch.randn(9, 4, generator=generator, dtype=torch.float64)
    blocks = torch.tensor([[0, 4], [1, 2], [7, 3], [5, 8]])  # column 6 is always there

    def error(units):
        columns = [6, *blocks[units].flatten().tolist()]
        best = x[:, columns] @ torch.linalg.lstsq(x[:, columns], x @ weights).solution
        return float((x @ weights - best).square().sum())

    staying = torch.tensor([True, True, False, True])
    tableau = Tableau(x.T @ x, weights, blocks).start(staying)
    for unit, comes in ((None, False), (1, False), (2, True), (0, False), (0, True)):
        if unit is not None:
            tableau.sweep(unit, 1.0 if comes else -1.0)
            staying[unit] = comes
        for other in range(4):
            changed = staying.clone()
            changed[other] = not staying[other]
            expected = abs(error(changed) - error(staying))
            assert float(tableau.effects()[other]) == pytest.approx(expected, rel=1e-8)
    fresh = Tableau(x.T @ x, weights, blocks).start(staying)
    assert torch.allclose(tableau.matrix, fresh.matrix)
    assert torch.allclose(tableau.weights, fresh.weights)


def test_swaps_repair_a_bad_choice():
    model, inputs = with_twins("Mlp", equal_readers=False)
    setting = setting_of(model, inputs)
    readings = readings_of(setting)["0"]
    # Units 0 and 4 are twins, so are 1 and 5: neither of the second pair is kept.
    found = swapped(readings, torch.tensor([0, 2, 3, 4, 8]), 8)
    assert {1, 5} & set(found.tolist()) and not {0, 4} <= set(found.tolist())


def test_solving_again_beats_the_old_weights():
    model, inputs = build("Residual"), inputs_like("Residual")
    setting = setting_of(model, inputs)
    thin = Osscar(recalibrated=False).make(setting, 0.4)
    cut = excise(model, wide_of(setting).groups, same_share(orders_of(setting), 0.4))
    assert relative_change(model, thin, inputs) < 0.7 * relative_change(model, cut, inputs)


def test_repair_gives_folded_units_the_statistics_of_their_clusters():
    model, inputs = build("Mlp"), inputs_like("Mlp", 200)
    thin = Folding().make(setting_of(model, inputs), 0.5)
    with torch.no_grad():
        wide, mine = model[0](inputs), thin[0](inputs)
        raw = Folding(repaired=False).make(setting_of(model, inputs), 0.5)[0](inputs)
    # Means over clusters, weighted by their sizes, are the mean over all units.
    assert len(thin[0].weight) == 4
    assert wide.std(0).min() < mine.std(0).min() and mine.std(0).max() < wide.std(0).max()
    assert (mine.std(0) > raw.std(0) - 1e-12).all()  # averaging had cost variance
    assert torch.allclose(mine.mean(0), raw.mean(0))


def test_k_means_finds_blobs():
    generator = torch.Generator().manual_seed(0)
    centres = torch.tensor([[0.0, 0.0], [9.0, 0.0], [0.0, 9.0]], dtype=torch.float64)
    truth = torch.tensor([0, 1, 1, 2, 0, 2, 1, 0, 2, 2])
    points = centres[truth] + 0.1 * torch.randn(10, 2, generator=generator, dtype=torch.float64)
    assert torch.equal(k_means(points, 3, generator), truth)
    assert k_means(points[:1].expand(4, 2), 3, generator).unique().numel() == 3
    assert torch.equal(k_means(points, 10, generator), torch.arange(10))


def test_magnitude_takes_all_producers_in():
    model = build("Residual")
    setting = setting_of(model, inputs_like("Residual"))
    with torch.no_grad():
        for weight in (model.stem.weight, model.a2.weight):
            weight[2] *= 1e-3
    assert int(magnitudes(setting)["stem"].argmin()) == 2
