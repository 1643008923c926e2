"""Examples that are nearly the same, and data in which near neighbours are natural."""

import numpy as np
import pytest
import torch
from cases.trained import examples, trained

import fcompress
from fcompress.certify.screening import screened
from fcompress.data import load_data
from fcompress.data.near_copies import Sketches, near_copies
from fcompress.data.roles import roles_of
from fcompress.errors import ResultWarning


def _sketch(x):
    found = Sketches()
    for part in x.split(300):
        found.add(part)
    return found.all()


def _digits():
    splits = load_data("digits")
    parts = [torch.cat([x for x, _ in s.batches()]) for s in splits.present().values()]
    return torch.cat(parts)


def _draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


KINDS = {
    "digits": _digits,
    "noise": lambda: _draw(2000, 3, 12, 12),
    "few dimensions in many": lambda: _draw(3000, 5) @ _draw(5, 40, seed=1),
    "bytes": lambda: (torch.rand(1500, 1, 9, 9) * 255).byte(),
}
DENSE = {
    "a line": lambda: _draw(3000, 1),
    "a plane": lambda: _draw(3000, 2) @ _draw(2, 30, seed=1),
    "tones": lambda: torch.sin(torch.rand(1200, 1) * torch.arange(800.0) / 9),
    "a curve": lambda: torch.sin(torch.linspace(0, 6, 3000)[:, None] * torch.arange(1, 30)),
    "nearly blank pictures": lambda: torch.cat([_draw(1500, 64) / 100, 3 + _draw(1500, 64)]),
    "clusters": lambda: _draw(10, 50).repeat(200, 1) + _draw(2000, 50, seed=2) / 10,
}


@pytest.mark.parametrize("kind", [*KINDS, *DENSE])
def test_data_without_copies_has_next_to_none(kind):
    x = {**KINDS, **DENSE}[kind]()
    x = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))]
    found = near_copies(_sketch(x[: len(x) // 2]), _sketch(x[len(x) // 2 :]))
    assert int((found.shared | found.repeated).sum()) <= len(x) / 250


@pytest.mark.parametrize("kind", ["digits", "noise", "few dimensions in many", "bytes"])
def test_noisy_copies_are_found(kind):
    x = KINDS[kind]().float()
    half = len(x) // 2
    noise = 0.005 * x.std() * _draw(*x[:60].shape, seed=5)
    asked = torch.cat([x[half:], x[:30] + noise[:30], x[half : half + 30] + noise[30:]])
    found = near_copies(_sketch(x[:half]), _sketch(asked))
    assert found.shared[-60:-30].mean() > 0.9 and found.repeated[-30:].mean() > 0.9
    assert int((found.shared | found.repeated)[:-60].sum()) <= 3


@pytest.mark.parametrize("times", [2, 5, 20])
def test_many_copies_of_each_are_found(times):
    x = _draw(2000 // times, 40)
    copies = (x[:, None] + 1e-3 * _draw(len(x), times, 40, seed=1)).flatten(0, 1)
    copies = copies[torch.randperm(len(copies), generator=torch.Generator().manual_seed(0))]
    found = near_copies(_sketch(copies[:1400]), _sketch(copies[1400:]))
    left = int((~(found.shared | found.repeated)).sum())
    # Of each that the first part does not show one is left; rarely one is missed.
    unseen = len(x) * 0.7**times * (1 - 0.3**times) if times > 2 else 0.3 * len(x)
    assert left < 1.25 * unseen + 30


def test_names_have_no_distance():
    tokens = torch.randint(0, 100, (500, 8))
    assert len(_sketch(tokens)) == 0
    roles, copies = screened(roles_of([tokens]))
    assert copies.near == 0 and len(roles.certification) == 150


def test_near_copies_prove_nothing_and_are_said():
    x, _ = examples(1200)
    x = torch.cat([x, _draw(1200, 10, seed=3)], 1)[:, :6].repeat(1, 1)
    wide = torch.cat([x, x + 1e-4 * _draw(*x.shape, seed=4)])
    with pytest.warns(ResultWarning, match="of 720 certification examples are nearly the same"):
        result = fcompress.shrink(trained(), wide, tol=0.2)
    copies = result.copies
    assert copies.near > 500 and copies.shared == copies.repeated == 0
    assert result.independent == result.agreement.n == 720 - copies.left_out
    assert result.to_dict()["copies"]["near_shared"] == copies.near_shared
    assert any("--groups" in line for line in result.warnings)
    plain = fcompress.shrink(trained(), x, tol=0.2)
    assert plain.copies.near == 0 and not any("nearly" in line for line in plain.warnings)


def test_sketches_keep_distances():
    x = _draw(200, 500)
    sketch = _sketch(x)
    true = torch.pdist(x).numpy()
    found = torch.pdist(torch.from_numpy(sketch)).numpy()
    assert abs(np.mean(found / true) - 1) < 0.05 and np.std(found / true) < 0.2
