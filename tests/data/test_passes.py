"""Data that comes out otherwise at a second pass, or not at all."""

import numpy as np
import pytest
import torch
from cases.trained import examples, trained, weights_of
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

import fcompress
from fcompress.data import as_batches
from fcompress.data.roles import roles_of
from fcompress.errors import DataError, ResultWarning

X, _ = examples()
REFUSED = "gives other examples at each pass"


class Augmented(Dataset):
    """A transform with a random state of its own, which no global seed reaches."""

    def __init__(self):
        self.random = np.random.default_rng(0)

    def __len__(self):
        return len(X)

    def __getitem__(self, row):
        return X[row] + torch.from_numpy(self.random.normal(size=6)).float() / 10


class Shuffled:
    """An iterable that is in another order each time."""

    def __init__(self):
        self.random = np.random.default_rng(0)

    def __iter__(self):
        return iter(X[torch.from_numpy(self.random.permutation(len(X)))].split(100))


class Used:
    """Iterable twice, but what it reads from is used up."""

    def __init__(self):
        self.batches = iter(X.split(100))

    def __iter__(self):
        yield from self.batches


class Shorter:
    """Leaves out the last batch the second time."""

    def __init__(self):
        self.left = 13

    def __iter__(self):
        self.left -= 1
        return iter(X.split(100)[: self.left])


class Stream(IterableDataset):
    def __init__(self, seed=None):
        self.random = None if seed is None else np.random.default_rng(seed)

    def __iter__(self):
        noise = 0 if self.random is None else self.random.normal()
        return iter(X + noise)


UNSTEADY = {
    "transforms of their own": lambda: DataLoader(Augmented(), 100),
    "the dataset itself": Augmented,
    "another order": Shuffled,
    "used up": Used,
    "shorter": Shorter,
    "a stream": lambda: DataLoader(Stream(0), 100),
}
STEADY = {
    "loader": lambda: DataLoader(TensorDataset(X), 100),
    "shuffled loader": lambda: DataLoader(TensorDataset(X), 100, shuffle=True),
    "stream": lambda: DataLoader(Stream(), 100),
    "generator": lambda: (x for x in X.split(100)),
    "map": lambda: map(torch.clone, X.split(100)),
    "list": lambda: list(X.split(100)),
}


@pytest.mark.parametrize("kind", UNSTEADY)
def test_what_comes_otherwise_is_refused(kind):
    batches = as_batches(UNSTEADY[kind]())
    first = torch.cat([x for x, _ in batches])
    assert len(first) == len(X)
    with pytest.raises(DataError) as error:
        list(batches)
    assert "\n" not in str(error.value)
    assert REFUSED in str(error.value) or "holds no batch" in str(error.value)


@pytest.mark.parametrize("kind", STEADY)
def test_what_comes_again_is_not(kind):
    batches = as_batches(STEADY[kind]())
    next(iter(batches))  # a pass that is broken off
    first, second = (torch.cat([x for x, _ in batches]) for _ in range(2))
    assert torch.equal(first, second) and batches.repeats()


@pytest.mark.parametrize("kind", ["transforms of their own", "another order", "a stream"])
def test_shrink_holds_what_came_first_and_says_so(kind):
    with pytest.warns(ResultWarning, match="other examples at each pass"):
        result = fcompress.shrink(trained(), UNSTEADY[kind](), tol=0.2)
    assert result.certified and result.agreement.n == 360 and not result.data["repeats"]


@pytest.mark.parametrize("kind", ["shuffled loader", "stream", "generator"])
def test_shrink_says_nothing_of_others(kind):
    result = fcompress.shrink(trained(), STEADY[kind](), tol=0.2)
    assert result.data["repeats"]
    assert not any("pass" in line or "sampler" in line for line in result.warnings)


def test_verify_of_data_that_is_read_anew_is_refused():
    with pytest.raises(DataError, match=REFUSED):
        fcompress.verify(trained(), trained(), UNSTEADY["transforms of their own"]())


def test_an_iterator_too_large_to_hold_is_refused(monkeypatch):
    monkeypatch.setattr("fcompress.data.batches.MOST_BYTES", 6 * 4 * 500)
    kinds = (
        (x for x in X.split(100)),
        zip(X.split(100), X[:, 0].split(100), strict=True),
        iter([{"a": X}]),
    )
    for data in kinds:
        with pytest.raises(DataError, match="one-shot iterator of more than"):
            as_batches(data)
    assert sum(len(x) for x, _ in as_batches(iter(X[:400].split(100)))) == 400


def test_a_sampler_that_draws_again_is_read_once():
    data = TensorDataset(X)
    weights = torch.arange(len(X)).float() + 1
    for sampler in (
        RandomSampler(data, replacement=True),
        WeightedRandomSampler(weights, len(X), replacement=True),
    ):
        roles = roles_of(DataLoader(data, 50, sampler=sampler))
        parts = (roles.calibration, roles.search, roles.certification)
        kept = torch.cat([part.inputs for part in parts])
        assert len(kept.unique(dim=0)) == len(kept) == len(X) - roles.info["drawn_again"]
        assert roles.info["drawn_again"] > 300
    with pytest.warns(ResultWarning, match="drew .* examples again"):
        fcompress.shrink(trained(), DataLoader(data, 50, sampler=sampler), tol=0.3)


def test_data_that_does_not_fit_into_memory_is_said(monkeypatch):
    monkeypatch.setattr("fcompress.data.roles.MOST_BYTES", 6 * 4 * 600)
    with pytest.warns(ResultWarning, match="the first 600 examples were used"):
        result = fcompress.shrink(trained(), DataLoader(TensorDataset(X), 100), tol=0.3)
    assert result.agreement.n == 180


def test_copies_make_no_bound_stronger_when_networks_are_compared():
    x = torch.cat([X[:300], X[:100], X[:1].repeat(50, 1)])
    with pytest.warns(ResultWarning, match="150 of 450 examples are copies"):
        found = fcompress.verify(trained(), trained(1), x)
    once = fcompress.verify(trained(), trained(1), X[:300])
    assert found.n == 450 and found.upper_bound == once.upper_bound
    assert once.warnings == ()
    # Where it is the copies that change, all of them count.
    changed = (trained()(X[:300]).argmax(1) != trained(1)(X[:300]).argmax(1)).nonzero()[0]
    with pytest.warns(ResultWarning, match="150 of 450 examples are copies"):
        often = fcompress.verify(
            trained(), trained(1), torch.cat([X[:300], X[changed].repeat(150, 1)])
        )
    assert often.changed >= 150 and often.upper_bound > 150 / 450


def test_steady_loaders_give_the_same_network():
    one, other = (
        fcompress.shrink(trained(), DataLoader(TensorDataset(X), size), tol=0.2)
        for size in (64, 100)
    )
    assert weights_of(one.model) == weights_of(other.model)
