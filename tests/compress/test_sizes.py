"""How many search and certification examples are used: by work, and never by the tolerance."""

import numpy as np
import pytest
import torch
from cases.trained import examples, trained
from hypothesis import given, settings
from hypothesis import strategies as st

import fcompress
from fcompress.compress import amounts
from fcompress.data.roles import Examples, roles_of
from fcompress.errors import ToleranceError

X = torch.arange(2000.0).reshape(1000, 2)


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(1, 1200),
    left_out=st.lists(st.integers(0, 999), max_size=300),
    split=st.booleans(),
)
def test_the_first_of_what_counts_and_no_more_is_read(count, left_out, split):
    keep = torch.ones(1000, dtype=torch.bool)
    keep[left_out] = False
    read = []

    class Read:
        def __len__(self):
            return 1000

        def batches(self, size):
            for part in X.split(size):
                read.append(len(part))
                yield part, None

    held = Examples(None, None, Read()) if split else Examples(X, None)
    chosen = held.only(keep).most(count)
    found = torch.cat([x for x, _ in chosen])
    expected = X[keep][:count]
    assert found.equal(expected) and len(chosen) == len(expected)
    last = int(expected[-1, 0]) // 2
    assert not split or sum(read) <= last // 256 * 256 + 256
    assert held.most(count).first(2000).equal(X[:count])


@pytest.mark.parametrize("macs", [1, 10**7, 10**8, 10**9, 4 * 10**9, 10**12])
def test_work_decides_and_never_less_than_a_floor(macs):
    data = np.zeros((60_000, 1), "float32") + np.arange(60_000)[:, None]
    used = amounts.used(roles_of(data), macs)
    assert len(used.search) == min(12_000, max(2000, int(6e11 / macs)))
    assert len(used.certification) == min(18_000, max(10_000, int(6e12 / macs)))
    assert len(used.calibration) == 30_000


def test_a_looser_tolerance_never_gives_less_on_the_same_examples(monkeypatch):
    for name in ("SEARCH_MACS", "CERTIFICATION_MACS"):
        monkeypatch.setattr(amounts, name, 1)
    monkeypatch.setattr(amounts, "SEARCH_LEAST", 150)
    monkeypatch.setattr(amounts, "CERTIFICATION_LEAST", 200)
    data = examples(1500, seed=9)[0]
    network, kept = trained(), []
    for tol in (0.02, 0.05, 0.1, 0.3):
        try:
            result = fcompress.shrink(network, data, tol=tol, method="factor")
        except ToleranceError:
            assert not kept
            continue
        assert result.agreement.n == 200
        assert {c["n"] for c in result.candidates} == {150}
        kept.append(result.macs["after"])
    assert len(kept) > 1 and kept == sorted(kept, reverse=True)
    # Too few are left for a tolerance that all of them could have shown.
    with pytest.raises(ToleranceError, match="200"):
        fcompress.shrink(network, data, tol=0.01, method="factor")
