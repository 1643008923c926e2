import json
import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fcompress.certify.agreement import verify
from fcompress.certify.bounds import examples_needed, most_changes, upper_bound
from fcompress.certify.labels import changed_labels, check_labels, predicted, reference_labels
from fcompress.errors import DataError, FcompressError
from fcompress.forward.answers.scoring import Scoring
from fcompress.forward.predictor import Predictor


def _tail(changed, n, p):
    """P(at most `changed` of n), exactly for a fraction p."""
    return sum(math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(changed + 1))


# Found by bisection of the exactly summed binomial tail, in fractions.
KNOWN = [
    (0, 10, 0.95, 0.2588655509),
    (1, 10, 0.95, 0.3941633024),
    (5, 10, 0.95, 0.7775588990),
    (9, 10, 0.95, 0.9948838031),
    (10, 10, 0.95, 1.0),
    (0, 59, 0.95, 0.0495076099),
    (5, 100, 0.95, 0.1022533777),
    (31, 1000, 0.95, 0.0416100735),
    (31, 1000, 0.99, 0.0462438593),
    (0, 300, 0.99, 0.0152333479),
]


@pytest.mark.parametrize(("changed", "n", "confidence", "bound"), KNOWN)
def test_the_bound_is_clopper_pearson(changed, n, confidence, bound):
    found = upper_bound(changed, n, confidence)
    assert found == pytest.approx(bound, abs=2e-10)
    if changed < n:
        # By definition: at the bound, so few changes have probability 1 - confidence.
        at = Fraction(found)
        assert float(_tail(changed, n, at)) == pytest.approx(1 - confidence, rel=1e-9)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(n=st.integers(1, 400), share=st.floats(0, 1), confidence=st.floats(0.5, 0.999))
def test_the_bound_covers_and_grows(n, share, confidence):
    changed = min(n, int(share * n))
    bound = upper_bound(changed, n, confidence)
    if changed == n:
        assert bound == 1
    else:
        assert changed / n < bound < 1
        assert _tail(changed, n, bound) == pytest.approx(1 - confidence, rel=1e-6)
        assert upper_bound(changed + 1, n, confidence) > bound
        assert upper_bound(changed, n + 1, confidence) < bound
        assert upper_bound(changed, n, (1 + confidence) / 2) > bound


def test_the_bound_holds_as_often_as_it_says():
    share, n = 0.1, 50
    covered = sum(
        math.comb(n, k) * share**k * (1 - share) ** (n - k)
        for k in range(n + 1)
        if upper_bound(k, n) >= share
    )
    assert covered >= 0.95


def test_large_counts_do_not_overflow():
    assert upper_bound(5_000, 100_000) == pytest.approx(0.05115, abs=1e-5)
    assert upper_bound(99_999, 100_000) < 1


@settings(deadline=None, derandomize=True, max_examples=60)
@given(n=st.integers(1, 2000), tolerance=st.floats(1e-4, 0.99))
def test_most_changes_is_the_last_that_the_bound_allows(n, tolerance):
    most = most_changes(n, tolerance)
    assert -1 <= most < n
    if most >= 0:
        assert upper_bound(most, n) <= tolerance
    assert upper_bound(most + 1, n) > tolerance


def test_examples_needed_is_the_fewest_that_can_do():
    assert examples_needed(0.05) == 59
    assert examples_needed(0.01) == 299
    assert examples_needed(0.2) == 14
    for tolerance in (0.9, 0.5, 0.3, 0.1, 0.037, 1e-3, 1e-5):
        for confidence in (0.5, 0.9, 0.95, 0.999):
            needed = examples_needed(tolerance, confidence)
            assert upper_bound(0, needed, confidence) <= tolerance
            if needed > 1:
                assert upper_bound(0, needed - 1, confidence) > tolerance


def test_labels_of_equal_and_of_broken_scores():
    scores = torch.tensor(
        [[1.0, 2.0, 0.0], [3.0, 3.0, 3.0], [torch.nan, 1.0, 0.0], [0, torch.inf, 0]]
    )
    assert predicted(scores).tolist() == [1, 0, -1, -1]


def _pair(seed=0):
    torch.manual_seed(seed)
    wide = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3))
    thin = nn.Sequential(nn.Linear(5, 2), nn.ReLU(), nn.Dropout(0.5), nn.Linear(2, 3))
    return wide, thin, torch.randn(101, 5), torch.randint(3, (101,))


def test_verify_counts_what_can_be_counted_by_hand():
    wide, thin, x, y = _pair()
    with torch.no_grad():
        before, after = wide.eval()(x), thin.eval()(x)
    wide.train()
    same = int((before.argmax(1) == after.argmax(1)).sum())
    result = verify(wide, thin, [(x, y)])
    assert (result.n, result.same, result.changed) == (101, same, 101 - same)
    assert result.rate == same / 101
    assert result.confidence == 0.95
    assert result.upper_bound == pytest.approx(upper_bound(101 - same, 101), abs=1e-15)
    assert result.lower_bound == 1 - upper_bound(101 - same, 101)
    gap = (before.double() - after.double()).abs()
    assert result.largest_difference == float(gap.max())
    assert result.mean_difference == pytest.approx(float(gap.mean()))
    right = [float((s.argmax(1) == y).double().mean()) for s in (before, after)]
    assert list(result.accuracy.values()) == pytest.approx(right)
    assert list(result.accuracy) == ["before", "after"]
    assert json.loads(json.dumps(result.to_dict(), allow_nan=False)) == result.to_dict()
    # Modes are as they were.
    assert wide.training
    assert not thin.training


@pytest.mark.parametrize("size", [1, 10, 64])
def test_verify_does_not_depend_on_the_batches(size):
    wide, thin, x, y = _pair()
    whole = verify(wide, thin, [(x, y)])
    parts = verify(wide, thin, list(zip(x.split(size), y.split(size), strict=True)))
    assert (parts.n, parts.same, parts.accuracy) == (whole.n, whole.same, whole.accuracy)
    assert parts.largest_difference == pytest.approx(whole.largest_difference, rel=1e-5)
    assert parts.mean_difference == pytest.approx(whole.mean_difference, rel=1e-5)


def test_verify_takes_what_shrink_takes():
    wide, thin, x, y = _pair()
    expected = verify(wide, thin, [(x, y)])
    loader = DataLoader(TensorDataset(x, y), batch_size=20)
    for data in (loader, iter([(x, y)]), ((a, b) for a, b in [(x, y)]), (x, y)):
        assert verify(wide, thin, data).same == expected.same
    for data in (x, [x], [x[:50], x[50:]], [(x, None)], DataLoader(x, batch_size=7)):
        result = verify(wide, thin, data)
        assert result.same == expected.same
        assert result.accuracy is None


def test_accuracy_needs_a_label_for_every_example():
    wide, thin, x, y = _pair()
    assert verify(wide, thin, [(x[:50], y[:50]), (x[50:], None)]).accuracy is None


def test_a_network_agrees_with_itself():
    wide, _, x, _ = _pair()
    result = verify(wide, wide, [(x, None)])
    assert (result.rate, result.largest_difference, result.mean_difference) == (1.0, 0.0, 0.0)
    assert result.lower_bound == pytest.approx(0.05 ** (1 / 101))


class Broken(nn.Module):
    """Gives no numbers where the first feature is positive."""

    def __init__(self, inner, value=torch.nan):
        super().__init__()
        self.inner, self.value = inner, value

    def forward(self, x):
        return torch.where(x[:, :1] > 0, self.value, self.inner(x))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_outputs_that_are_no_numbers_are_changed_labels(value):
    wide, _, x, _ = _pair()
    broken = int((x[:, 0] > 0).sum())
    result = verify(wide, Broken(wide, value), [(x, None)])
    assert result.changed == broken
    # They agree with nothing, not even with each other.
    assert verify(Broken(wide, value), Broken(wide, value), [(x, None)]).changed == broken
    assert not math.isfinite(result.largest_difference)
    plain = result.to_dict()
    assert plain["largest_difference"] is None
    assert plain["mean_difference"] is None
    json.dumps(plain, allow_nan=False)


def test_no_reference_without_numbers():
    wide, _, x, _ = _pair()
    with pytest.raises(FcompressError, match=r"not finite for \d+ of 101 examples"):
        reference_labels(Broken(wide), x.split(20))


def test_changed_labels_are_those_of_verify():
    wide, thin, x, _ = _pair()
    reference = reference_labels(wide, x.split(30))
    assert changed_labels(wide, x.split(7), reference) == (0, 101)
    assert changed_labels(thin, x.split(7), reference) == (verify(wide, thin, [x]).changed, 101)


def test_what_cannot_be_compared_is_named():
    wide, thin, x, _ = _pair()
    with pytest.raises(FcompressError, match=r"outputs of shape \[3\] and \[2\]"):
        verify(wide, nn.Linear(5, 2), [x])
    with pytest.raises(FcompressError, match=r"outputs of shape \[1\] and \[3\]"):
        verify(nn.Linear(5, 1), thin, [x], labels="sigmoid")
    with pytest.raises(FcompressError, match="expected one score per class"):
        verify(nn.Linear(5, 1), thin, [x], labels="classes")
    with pytest.raises(FcompressError, match="expected one score per class"):
        verify(nn.Flatten(0), thin, [x])
    with pytest.raises(DataError, match="at least one"):
        verify(wide, thin, [])
    with pytest.raises(DataError, match="at least one"):
        verify(wide, thin, [x[:0]])
    for confidence in (0.0, 1.0, 1.5, math.nan):
        with pytest.raises(ValueError, match=r"expected a number in \(0, 1\)"):
            verify(wide, thin, [x], confidence=confidence)


def test_a_class_that_is_rare_at_every_position_is_a_label_all_the_same():
    scores = torch.zeros(40, 2, 16)
    scores[:, 0] = 1
    network = Predictor(nn.Identity(), scoring=Scoring(labels="positions"))
    with pytest.raises(FcompressError, match="the same label, 0, to all 40"):
        check_labels(network, [scores])
    scores[7, 1, 3] = 2  # one position of one example
    check_labels(network, [scores])
