import gc
import weakref

import numpy as np
import pytest
import torch

from fcompress.measure import moments
from fcompress.measure.moments import Moments, unit_rows


def _moments(rows, cuts):
    collected = Moments(rows.shape[1])
    for part in rows.tensor_split(cuts):
        collected.update(part)
    return collected


@pytest.mark.parametrize("cuts", [[], [1], [1, 2, 3, 500], [7, 7, 333], list(range(1, 1000))])
def test_any_batching_gives_the_whole_data_moments(cuts):
    rows = torch.randn(1000, 9, generator=torch.Generator().manual_seed(0)).double()
    rows = rows * torch.logspace(-3, 3, 9) + torch.linspace(-50, 50, 9)
    collected = _moments(rows, cuts)
    whole = rows.numpy()
    scale = np.sqrt(np.outer(whole.var(0), whole.var(0)))
    assert collected.count == 1000
    assert np.allclose(collected.mean, whole.mean(0), rtol=1e-13, atol=1e-13)
    covariance = np.cov(whole.T, ddof=0)
    assert (np.abs(collected.covariance().numpy() - covariance) / scale).max() < 1e-11
    assert np.allclose(collected.second_moment(), whole.T @ whole / 1000, rtol=1e-12)
    assert np.array_equal(collected.largest, np.abs(whole).max(0))


def test_a_large_mean_costs_no_digits_of_the_variance():
    generator = torch.Generator().manual_seed(1)
    rows = 1e7 + torch.randn(4000, 3, generator=generator, dtype=torch.float64)
    covariance = _moments(rows, [100, 1000]).covariance()
    expected = np.cov(rows.numpy().T, ddof=0)
    assert np.abs(covariance.numpy() - expected).max() < 1e-8
    # Negative control: plain sums of squares lose them.
    mean = rows.mean(0)
    plain = rows.T @ rows / len(rows) - torch.outer(mean, mean)
    assert np.abs(plain.numpy() - expected).max() > 1e-4


def test_large_batches_are_taken_in_pieces(monkeypatch):
    rows = torch.randn(97, 4, generator=torch.Generator().manual_seed(2))
    whole = _moments(rows, []).covariance()
    monkeypatch.setattr(moments, "CHUNK_VALUES", 10)
    assert torch.allclose(_moments(rows, []).covariance(), whole, rtol=1e-12, atol=1e-15)


def test_positions_become_rows_of_their_unit():
    values = torch.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5).float()
    rows = unit_rows(values, 0)
    assert rows.shape == (40, 3)
    assert torch.equal(rows[:, 1], values[:, 1].flatten())
    assert torch.equal(unit_rows(values, 2)[:, 4], values[..., 4].flatten())
    assert torch.equal(unit_rows(values[:, :, 0, 0], 0), values[:, :, 0, 0])


def test_no_batch_is_kept():
    collected = Moments(4)
    references = []
    for _ in range(200):
        batch = torch.randn(8, 4)
        references.append(weakref.ref(batch))
        collected.update(batch)
        del batch
    gc.collect()
    assert not any(reference() is not None for reference in references)
    held = [value for value in vars(collected).values() if isinstance(value, torch.Tensor)]
    assert sum(value.numel() for value in held) == 4 * 4 + 4 + 4


def test_results_are_copies():
    collected = _moments(torch.ones(3, 2), [])
    collected.mean.fill_(7)
    collected.largest.fill_(7)
    assert torch.equal(collected.mean, torch.ones(2).double())
    assert torch.equal(collected.largest, torch.ones(2).double())


def test_wrong_rows_and_no_rows_are_refused():
    collected = Moments(4)
    with pytest.raises(ValueError, match=r"expected \[n, 4\]"):
        collected.update(torch.zeros(3, 5))
    collected.update(torch.zeros(0, 4))
    with pytest.raises(ValueError, match="no rows"):
        collected.covariance()
