import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fcompress.compress.refitting.least_squares import HELD_OUT, RIDGES, Rectifier, fit


def _normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _miss(found, x, z):
    """Largest error of a fit, relative to the targets' spread."""
    return float((x @ found.weight.T + found.bias - z).abs().max() / z.std())


@settings(deadline=None, derandomize=True, max_examples=40)
@given(
    seed=st.integers(0, 1000),
    inputs=st.integers(1, 12),
    outputs=st.integers(1, 5),
    decades=st.floats(0, 2),
    offset=st.floats(-100, 100),
)
def test_an_exact_affine_map_is_recovered(seed, inputs, outputs, decades, offset):
    x = _normal(200, inputs, seed=seed)
    x = x * 10 ** (-decades * torch.rand(inputs, generator=torch.Generator().manual_seed(seed)))
    x = x + offset
    weight, bias = _normal(outputs, inputs, seed=seed + 1), _normal(outputs, seed=seed + 2)
    z = x @ weight.T + bias
    found = fit(x, z, torch.zeros(outputs, inputs))
    assert found.weight.dtype == found.bias.dtype == torch.float64
    assert _miss(found, x, z) < 1e-7


def test_dependent_inputs_are_no_trouble():
    x = _normal(100, 4)
    x = torch.cat([x, x[:, :2], 3 * x[:, 2:3] - x[:, 3:], torch.ones(100, 1)], 1)
    z = x @ _normal(3, 8, seed=1).T + 5
    assert _miss(fit(x, z, _normal(3, 8, seed=2)), x, z) < 1e-7


def test_without_a_bias_the_means_are_part_of_the_map():
    x = _normal(100, 4) + 3
    z = x @ _normal(2, 4, seed=1).T
    found = fit(x, z, torch.zeros(2, 4), centred=False)
    assert bool((found.bias == 0).all())
    assert _miss(found, x, z) < 1e-7
    # A constant cannot be had without a bias.
    assert _miss(fit(x, z + 10, torch.zeros(2, 4), centred=False), x, z + 10) > 0.1
    assert _miss(fit(x, z + 10, torch.zeros(2, 4)), x, z + 10) < 1e-7


def test_the_means_always_agree():
    x, z = _normal(40, 30) + 7, _normal(40, 3, seed=1) - 2
    for prior in (torch.zeros(3, 30), _normal(3, 30, seed=2)):
        found = fit(x, z, prior)
        torch.testing.assert_close((x @ found.weight.T + found.bias).mean(0), z.mean(0))


def test_a_right_prior_stays_and_a_wrong_one_does_not():
    x, weight = _normal(20, 60), _normal(3, 60, seed=1)
    z = x @ weight.T
    kept = fit(x, z, weight)
    torch.testing.assert_close(kept.weight, weight)
    # Rows fewer than inputs: what they do not say is left to the prior.
    near = weight + 0.01 * _normal(3, 60, seed=2)
    fresh = _normal(500, 60, seed=3)
    with_prior = _miss(fit(x, z, near), fresh, fresh @ weight.T)
    without = _miss(fit(x, z, torch.zeros(3, 60)), fresh, fresh @ weight.T)
    assert with_prior < 0.1 < 1 < without
    many = _normal(400, 60, seed=4)
    assert _miss(fit(many, many @ weight.T, -weight), fresh, fresh @ weight.T) < 1e-7


def test_what_the_rows_say_nothing_about_comes_from_the_prior():
    x = _normal(100, 6)
    x[:, 4] = 0.0
    x[:, 5] = 2.5
    prior = _normal(2, 6, seed=1)
    found = fit(x, x @ _normal(2, 6, seed=2).T, prior)
    torch.testing.assert_close(found.weight[:, 4:], prior[:, 4:])
    nothing = fit(torch.full((50, 6), 3.0), torch.full((50, 2), 4.0), prior.float())
    torch.testing.assert_close(nothing.weight, prior.float().double())
    torch.testing.assert_close(nothing.bias, 4 - 3 * nothing.weight.sum(1))
    assert nothing.ridge == math.inf


def _by_held_out_rows(x, z, prior):
    """The best ridge by its definition: an augmented least squares problem for each."""
    x, z = x - x.mean(0), z - z.mean(0)
    cut = len(x) - round(HELD_OUT * len(x))
    scale = float(x[:cut].square().sum(0).mean())
    floor = torch.finfo(torch.float64).eps * x.shape[1]
    errors = {math.inf: float((x[cut:] @ prior.T - z[cut:]).square().sum())}
    for ridge in (floor, *RIDGES):
        pull = (ridge * scale) ** 0.5 * torch.eye(x.shape[1], dtype=torch.float64)
        stacked = torch.cat([x[:cut], pull])
        wanted = torch.cat([z[:cut], pull @ prior.T])
        weight = torch.linalg.lstsq(stacked, wanted, driver="gelsd").solution.T
        errors[ridge] = float((x[cut:] @ weight.T - z[cut:]).square().sum())
    return min(errors, key=errors.get)


@pytest.mark.parametrize("noise", [0.1, 1.0, 10.0, 100.0])
@pytest.mark.parametrize("rows", [30, 120, 1000])
def test_the_ridge_is_what_suits_held_out_rows(noise, rows):
    x = _normal(rows, 40) * torch.logspace(0, -1.5, 40, dtype=torch.float64)
    weight = _normal(3, 40, seed=1)
    z = x @ weight.T + noise * _normal(rows, 3, seed=2)
    prior = weight + 0.3 * _normal(3, 40, seed=3)
    found = fit(x, z, prior)
    assert found.ridge == pytest.approx(_by_held_out_rows(x, z, prior))


def test_noise_calls_for_trust_in_the_prior():
    x, weight = _normal(100, 40), _normal(3, 40, seed=1)
    prior = weight + 0.05 * _normal(3, 40, seed=2)
    ridges = [
        fit(x, x @ weight.T + noise * _normal(100, 3, seed=3), prior).ridge
        for noise in (0.0, 0.5, 100.0)
    ]
    assert ridges[0] < 1e-10 < ridges[1] < ridges[2]


def test_the_final_fit_uses_all_rows():
    x, weight = _normal(100, 10), _normal(2, 10, seed=1)
    z = x @ weight.T + 0.1 * _normal(100, 2, seed=2)
    found = fit(x, z, torch.zeros(2, 10))
    centred = x - x.mean(0)
    pull = found.ridge * float(centred.square().sum(0).mean())
    gram = centred.T @ centred + pull * torch.eye(10, dtype=torch.float64)
    torch.testing.assert_close(found.weight, torch.linalg.solve(gram, centred.T @ z).T)


def test_single_precision_rows_give_single_precision_results():
    x = _normal(2000, 20)
    weight = _normal(4, 20, seed=1)
    z = (x @ weight.T + 1).float()
    found = fit(x.float(), z, torch.zeros(4, 20))
    assert found.weight.dtype == torch.float64
    assert _miss(found, x, z.double()) < 1e-4


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_next_to_no_rows(rows):
    x, prior = _normal(rows, 4), _normal(2, 4, seed=1)
    z = _normal(rows, 2, seed=2)
    found = fit(x, z, prior)
    assert bool(found.weight.isfinite().all())
    torch.testing.assert_close((x @ found.weight.T + found.bias).mean(0), z.mean(0))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_rows_that_are_no_numbers_leave_the_prior(value):
    x, z, prior = _normal(50, 4), _normal(50, 2, seed=1), _normal(2, 4, seed=2)
    for broken in (slice(0, 5), slice(45, 50), slice(0, 50)):
        rows = x.clone()
        rows[broken, 1] = value
        assert torch.equal(fit(rows, z, prior).weight, prior)


def test_nothing_handed_over_is_changed():
    x, z, prior = _normal(50, 4), _normal(50, 2, seed=1), _normal(2, 4, seed=2)
    before = [t.clone() for t in (x, z, prior)]
    one, two = fit(x, z, prior), fit(x, z, prior)
    assert all(torch.equal(a, b) for a, b in zip((x, z, prior), before, strict=True))
    assert torch.equal(one.weight, two.weight)
    assert torch.equal(one.bias, two.bias)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_what_a_relu_hides_need_not_fit(sign):
    """Outputs that are switched off may be anything off: the visible part then fits better."""
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(2000, 5, generator=generator)
    seen = x @ torch.randn(5, 3, generator=generator)
    z = torch.where(seen > 0, seen, seen * 8 * torch.rand(2000, 3, generator=generator)) * sign
    rectifier = Rectifier(z * sign <= 0, torch.zeros(3), torch.full((3,), sign < 0))
    prior = torch.zeros(3, 5)

    def visible(found):
        y = x.double() @ found.weight.T + found.bias
        return float(((sign * y).relu() - (sign * z).double().relu()).square().mean())

    plain, spared = fit(x, z, prior), fit(x, z, prior, rectifier=rectifier)
    assert visible(spared) < 0.5 * visible(plain)
    # Where everything fits, nothing is spared.
    w = torch.randn(3, 5, generator=generator)
    exact = fit(
        x, x @ w.T, w, rectifier=Rectifier(x @ w.T <= 0, torch.zeros(3), torch.zeros(3) > 0)
    )
    assert torch.allclose(exact.weight, w.double(), atol=1e-4)


@pytest.mark.parametrize("noise", [0.0, 0.3])
@pytest.mark.parametrize("centred", [True, False])
def test_fewer_rows_than_inputs_have_the_solution_that_many_would(noise, centred):
    x, weight = _normal(50, 80) + 1, _normal(3, 80, seed=1)
    z = x @ weight.T + noise * _normal(50, 3, seed=2)
    prior = weight + 0.3 * _normal(3, 80, seed=3)
    found = fit(x, z, prior, centred=centred)
    mean_x, mean_z = (x.mean(0), z.mean(0)) if centred else (0 * x[0], 0 * z[0])
    x, z = x - mean_x, z - mean_z
    scale = float(x.square().sum(0).mean())
    pull = (float(found.ridge) * scale) ** 0.5 * torch.eye(80, dtype=torch.float64)
    stacked, wanted = torch.cat([x, pull]), torch.cat([z, pull @ prior.T])
    exact = torch.linalg.lstsq(stacked, wanted, driver="gelsd").solution.T
    torch.testing.assert_close(found.weight, exact, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.bias, mean_z - found.weight @ mean_x)


@pytest.mark.parametrize("inputs", [5, 60])  # fewer and more than rows
def test_sets_of_rows_side_by_side_are_solved_as_one_by_one(inputs):
    sets = 4
    x, z = _normal(sets, 40, inputs), _normal(sets, 40, 3, seed=1)
    x[1], z[2] = 0.0, math.nan  # nothing to fit, no numbers
    z[3] = x[3] @ _normal(inputs, 3, seed=2)
    prior = _normal(sets, 3, inputs, seed=3)
    rectifier = Rectifier(z <= 0, torch.zeros(sets, 40, 3), torch.zeros(sets, 1, 3) > 0)
    found = fit(x, z, prior, rectifier=rectifier)
    for i in range(sets):
        own = Rectifier(z[i] <= 0, torch.zeros(40, 3), torch.zeros(1, 3) > 0)
        alone = fit(x[i], z[i], prior[i], rectifier=own)
        torch.testing.assert_close(found.weight[i], alone.weight)
        torch.testing.assert_close(found.bias[i], alone.bias, equal_nan=True)
        assert float(found.ridge[i]) == pytest.approx(float(alone.ridge))
    assert torch.equal(found.weight[1:3], prior[1:3])
