"""Total variation and the permutation test, against answers that are known."""

import itertools
import math

import numpy as np
import pytest
import torch

from fcompress.experiments.measures.variation import (
    fourier_variation,
    holm,
    midranks,
    rank_test,
    total_variation,
)


def test_total_variation_of_known_images():
    flat = torch.full((1, 4, 6), 0.7)
    step = torch.zeros(1, 4, 6)
    step[:, :, 3:] = 2.0  # 4 rows, one step of 2 in each
    dot = torch.zeros(1, 4, 6)
    dot[0, 1, 2] = 1.0  # four neighbours
    corner = torch.zeros(1, 4, 6)
    corner[0, 0, 0] = 1.0
    checks = (torch.arange(4)[:, None] + torch.arange(6)).remainder(2)[None].float()
    images = torch.stack([flat, step, dot, corner, checks])
    assert total_variation(images).tolist() == [0, 8, 4, 2, 4 * 5 + 3 * 6]
    assert total_variation(images.repeat(1, 3, 1, 1)).tolist() == [0, 24, 12, 6, 114]


def test_fourier_variation_of_known_images():
    dot = torch.zeros(1, 1, 8, 8)
    dot[0, 0, 3, 5] = 1.0  # all frequencies are equally strong
    flat = torch.full((1, 1, 8, 8), 0.5)  # one frequency: 0.5 * 64 / 8 = 4, with 4 neighbours
    wave = torch.cos(2 * math.pi * 2 * torch.arange(8.0) / 8).repeat(8, 1)[None, None]
    # Two frequencies of 64 / 2 / 8 = 4 each; they are no neighbours of each other.
    found = fourier_variation(torch.cat([dot, flat, wave]))
    assert found.tolist() == pytest.approx([0, 16, 32], abs=1e-5)


def test_fourier_variation_does_not_see_where_things_are():
    image = torch.rand(1, 2, 9, 12, generator=torch.Generator().manual_seed(0))
    moved = image.roll((3, 5), dims=(2, 3))
    assert fourier_variation(moved).item() == pytest.approx(fourier_variation(image).item())


def test_midranks_share_ties():
    assert midranks(np.array([3.0, 1.0, 3.0, 2.0, 3.0])).tolist() == [4, 1, 4, 2, 4]


def enumerated(thin, wide):
    """p and effect by counting pairs of every assignment."""
    values = [*thin, *wide]

    def effect(second):
        first = [i for i in range(len(values)) if i not in second]
        pairs = [(values[a], values[b]) for a in first for b in second]
        return sum((b > a) - (b < a) for a, b in pairs) / len(pairs)

    seen = effect(tuple(range(len(thin), len(values))))
    every = [effect(c) for c in itertools.combinations(range(len(values)), len(wide))]
    return sum(abs(e) >= abs(seen) - 1e-12 for e in every) / len(every), seen


@pytest.mark.parametrize("seed", range(8))
def test_the_test_against_enumeration(seed):
    generator = np.random.default_rng(seed)
    thin = generator.integers(0, 6, 3 + seed % 3).tolist()
    wide = generator.integers(seed % 3, 6 + seed % 3, 4).tolist()
    p, effect = enumerated(thin, wide)
    exact = rank_test(thin, wide)
    assert exact.exact and exact.permutations == math.comb(len(thin) + 4, 4)
    assert exact.p == pytest.approx(p) and exact.effect == pytest.approx(effect)
    assert exact.superiority == pytest.approx((effect + 1) / 2)
    # With fewer permutations than assignments they are drawn at random.
    drawn = rank_test(np.repeat(thin, 1), wide, permutations=30, seed=seed)
    assert not drawn.exact and drawn.permutations == 30
    assert drawn.p * 31 == pytest.approx(round(drawn.p * 31)) and drawn.p >= 1 / 31


def test_known_values():
    # Complete separation of 5 and 5: two of 252 assignments are as extreme.
    apart = rank_test([1, 2, 3, 4, 5], [6, 7, 8, 9, 10])
    assert (apart.p, apart.effect, apart.superiority) == (2 / 252, 1.0, 1.0)
    back = rank_test([6, 7, 8, 9, 10], [1, 2, 3, 4, 5])
    assert (back.p, back.effect) == (2 / 252, -1.0)
    same = rank_test([1, 1, 1], [1, 1])
    assert (same.p, same.effect, same.superiority) == (1.0, 0.0, 0.5)


def test_random_permutations_agree_with_all_of_them():
    generator = np.random.default_rng(3)
    thin, wide = generator.normal(0, 1, 8), generator.normal(0.8, 1, 8)
    exact = rank_test(thin, wide, permutations=20_000)
    drawn = rank_test(thin, wide, permutations=12_000)
    assert exact.exact and not drawn.exact
    assert 0.01 < exact.p < 0.9
    assert abs(drawn.p - exact.p) < 4 * math.sqrt(exact.p * (1 - exact.p) / 12_000)


def test_p_is_uniform_where_the_groups_are_alike():
    generator = np.random.default_rng(0)
    rounds = 600
    p = np.array(
        [
            rank_test(*generator.normal(size=(2, 20)), permutations=400, seed=i).p
            for i in range(rounds)
        ]
    )
    for level in (0.05, 0.25, 0.5, 0.75):
        margin = 4 * math.sqrt(level * (1 - level) / rounds)
        assert abs((p <= level).mean() - level) < margin


def test_a_shift_is_found():
    generator = np.random.default_rng(1)
    found = [
        rank_test(generator.normal(0, 1, 60), generator.normal(-1, 1, 60), permutations=2000)
        for _ in range(20)
    ]
    assert all(test.p < 0.05 and -0.9 < test.effect < -0.2 for test in found)
    assert sum(test.p < 0.001 for test in found) > 15


def test_the_seed_decides():
    thin, wide = np.random.default_rng(2).normal(size=(2, 30))
    p = [rank_test(thin, wide, permutations=500, seed=s).p for s in (0, 0, 1, 2, 3)]
    assert p[0] == p[1] and len(set(p)) > 1


def test_holm():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


@pytest.mark.parametrize(
    ("thin", "wide", "permutations"),
    [([], [1.0], 10), ([1.0], [], 10), ([1.0], [float("nan")], 10), ([1.0], [2.0], 0)],
)
def test_what_cannot_be_tested(thin, wide, permutations):
    with pytest.raises(ValueError, match="expected at least one finite value"):
        rank_test(thin, wide, permutations=permutations)
