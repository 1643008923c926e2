"""How each label fares: planted counts, warnings, and the promise for every label."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from fcompress.certify.agreement import verify
from fcompress.certify.bounds import upper_bound
from fcompress.certify.fixed_sequence import holds, with_promise
from fcompress.certify.per_label import by_label, drawn_shares, warnings_by_label


class Half(nn.Module):
    """The scores that stand in one half of the channels of an input."""

    def __init__(self, which):
        super().__init__()
        self.which = which

    def forward(self, x):
        return x.chunk(2, 1)[self.which]


def compared(before, after, labels=None, size=64):
    """Agreement of two networks that give these scores."""
    both = torch.cat([before, after], 1)
    labels = labels or ("classes" if before.shape[1] > 1 else "sigmoid")
    return verify(Half(0), Half(1), list(both.split(size)), labels=labels)


def one_hot(labels, classes):
    return torch.nn.functional.one_hot(torch.as_tensor(labels), classes).float()


def test_classes_with_known_counts():
    ours = [0] * 60 + [1] * 30 + [2] * 10
    theirs = [0] * 58 + [1, 1] + [1] * 29 + [0] + [0] * 7 + [1] * 3
    found = compared(one_hot(ours, 4), one_hot(theirs, 4), size=7)
    fares = found.by_label
    assert [(f.label, f.n, f.changed, f.given) for f in fares.labels] == [
        (0, 60, 2, 66),
        (1, 30, 1, 34),
        (2, 10, 10, 0),
    ]
    assert fares.never == 1
    assert sum(f.changed for f in fares.labels) == found.changed
    assert [f.bound for f in fares.labels] == [
        upper_bound(2, 60),
        upper_bound(1, 30),
        upper_bound(10, 10),
    ]
    # All of these hold at once.
    assert fares.labels[0].bound_together == upper_bound(2, 60, 1 - 0.05 / 3)
    assert [f.name for f in fares.vanished] == ["label 2"]
    assert [f.label for f in fares.worst()] == [2, 0, 1]
    record = found.to_dict()
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert record["by_label"]["labels"][2]["changed"] == 10
    assert record["by_label"]["promise"] is None


def test_the_counts_do_not_depend_on_the_batches():
    generator = torch.Generator().manual_seed(0)
    before, after = torch.randn(2, 90, 5, 3, 4, generator=generator)
    first = compared(before, after, "positions", 90).by_label
    for size in (1, 17):
        assert compared(before, after, "positions", size).by_label == first


def test_sigmoid_heads_have_two_sides():
    before = torch.ones(40, 2)
    before[:10, 1] = -1
    after = before.clone()
    after[:10, 1] = 1  # every "no" of label 1 is lost
    after[0, 0] = -1
    fares = compared(before, after, "sigmoid").by_label
    assert [(f.name, f.n, f.changed, f.given) for f in fares.labels] == [
        ('label 0 "yes"', 40, 1, 39),
        ('label 1 "no"', 10, 10, 0),
        ('label 1 "yes"', 30, 0, 40),
    ]
    single = compared(before[:, 1:], after[:, 1:]).by_label
    assert [(f.label, f.side, f.n, f.changed) for f in single.labels] == [
        (0, "no", 10, 10),
        (0, "yes", 30, 0),
    ]


def test_examples_without_numbers():
    before, after = one_hot([0, 1, 1, 0], 2), one_hot([0, 1, 1, 1], 2)
    before[0], after[1] = torch.nan, torch.nan
    fares = compared(before, after).by_label
    # The original gives the first no label; what the compressed network cannot say is changed.
    assert [(f.label, f.n, f.changed, f.given) for f in fares.labels] == [
        (0, 1, 1, 1),
        (1, 2, 1, 2),
    ]


@pytest.mark.parametrize("classes", [1, 4])
def test_positions_as_counted_by_hand(classes):
    generator = torch.Generator().manual_seed(1)
    before = torch.randn(50, classes, 6, 5, generator=generator)
    before[:, -1] -= 1.5  # a rare one
    after = torch.where(torch.rand(50, 1, 6, 5, generator=generator) < 0.2, -before, before)
    result = compared(before, after, "positions", 8)

    def labels(scores):
        found = (scores > 0).long()[:, 0] if classes == 1 else scores.argmax(1)
        return found.flatten(1)

    ours, theirs = labels(before), labels(after)
    found = {f.label: f for f in result.by_label.labels}
    assert sorted(found) == ours.unique().tolist()
    for label, fare in found.items():
        mine, other = ours == label, theirs == label
        assert fare.positions == int(mine.sum())
        assert fare.n == int(mine.any(1).sum())
        assert fare.given == int(other.sum())
        assert fare.positions_changed == pytest.approx(float((mine & ~other).sum() / mine.sum()))
        assert fare.iou == pytest.approx(float((mine & other).sum() / (mine | other).sum()))
        assert fare.name == f"class {label}"
        # By one position of the class for each example that shows it.
        changed = 0
        for number in range(50):
            where = mine[number].nonzero().flatten()
            if len(where):
                (share,) = drawn_shares(number, np.array([label]))
                changed += int(theirs[number, where[int(share * len(where))]] != label)
        assert fare.changed == changed
    # The number of examples that stand for all positions is as it was.
    assert result.n == 50


def test_positions_of_an_example_without_numbers():
    before = torch.zeros(2, 2, 2, 2)
    before[:, 1, 0] = 1
    after = before.clone()
    after[1, 0, 0, 0] = torch.inf
    found = compared(before, after, "positions").by_label
    assert [(f.n, f.positions, f.positions_changed) for f in found.labels] == [(2, 4, 0.5)] * 2
    assert [f.iou for f in found.labels] == [0.5, 0.5]


def test_draws_are_uniform_and_independent_of_each_other():
    shares = np.array([drawn_shares(number, np.arange(20)) for number in range(2000)])
    assert shares.min() >= 0 and shares.max() < 1
    assert abs(shares.mean() - 0.5) < 0.005 and abs(shares.var() - 1 / 12) < 0.002
    between = np.corrcoef(shares.T) - np.eye(20)
    assert abs(between).max() < 4.5 / 2000**0.5
    assert abs(np.corrcoef(shares[:-1, 0], shares[1:, 0])[0, 1]) < 4.5 / 2000**0.5


def test_memory_grows_with_classes_only():
    counts = compared(one_hot([0] * 3000 + [4999], 5000), one_hot([0] * 3001, 5000)).by_label
    assert [(f.label, f.n, f.changed) for f in counts.labels] == [(0, 3000, 0), (4999, 1, 1)]
    assert counts.never == 4998


def fares(*rows, kind="classes", confidence=0.95):
    """Rows of (examples, changed), given as often as what remains."""
    return by_label(kind, _columns(rows), confidence)


def _columns(rows):
    return [[n for n, _ in rows], [c for _, c in rows], [n - c for n, c in rows]]


def test_a_label_that_changes_far_more_is_named():
    found = fares((900, 30), (800, 30), (57, 14))
    (line,) = warnings_by_label(found, 0.05)
    assert line.startswith("label 2 (14 of its 57 examples changed, 24.6%) changes far more than")
    assert "tolerance of 0.05; per_label" in line
    assert list(warnings_by_label(found, None)) == []
    assert list(warnings_by_label(None, 0.05)) == []
    assert list(warnings_by_label(fares((900, 30), (57, 4)), 0.05)) == []
    # One more than the tolerance allows by chance is nothing; nor is one of two examples.
    assert list(warnings_by_label(fares((900, 50), (60, 6), (2, 1)), 0.05)) == []


def test_many_labels_are_judged_together():
    # 4 of 20 at 5% happen once in 60 labels; among 200 that is no news, of one label it is.
    many = fares(*[(20, 0)] * 199, (20, 4))
    assert list(warnings_by_label(many, 0.05)) == []
    assert len(list(warnings_by_label(fares((20, 4)), 0.05))) == 1
    (line,) = warnings_by_label(fares(*[(20, 0)] * 150, *[(40, 20)] * 50), 0.05)
    assert line.count("label") >= 5 and "and 45 more change far more" in line
    # Three times the tolerance with enough examples is said however many labels there are.
    assert len(list(warnings_by_label(fares(*[(60, 0)] * 999, (60, 10)), 0.05))) == 1


def test_what_vanishes_is_named_once():
    found = fares((900, 0), (40, 40))
    (line,) = warnings_by_label(found, 0.05)
    assert line == (
        "the compressed network never gives label 1 (40 of its 40 examples changed, 100.0%), "
        "which the original gives"
    )
    assert list(warnings_by_label(found, None)) == [line]
    dense = by_label("positions", [[90, 30], [0, 30], [9000, 0], [8900, 100], [0, 100]], 0.95)
    (line,) = warnings_by_label(dense, 0.05)
    assert "class 1 (100.0% of its 100 positions changed, IoU 0.00)" in line


def test_every_label_has_to_pass():
    good = fares((900, 20), (100, 1), (57, 20))
    assert [f.label for f in good.enough(0.05)] == [0, 1]
    assert good.holds(0.05)
    promise = good.promised(0.05).promise
    assert (promise.labels, promise.needed, promise.too_few) == (2, 59, ("label 2",))
    assert "intersection-union" in promise.test
    lines = list(warnings_by_label(good.promised(0.05), 0.05))
    assert lines[-1].startswith("nothing is promised of label 2: a tolerance of 0.05 for a label")
    assert "per_label" not in lines[0]
    bad = fares((900, 20), (100, 3))
    assert not bad.holds(0.05) and [f.label for f in bad.beyond(0.05)] == [1]
    assert bad.holds(0.1)
    # Nothing can be proven: that is no promise that holds.
    assert not fares((10, 0), (10, 0)).holds(0.05)


def test_the_search_looks_at_the_weakest_label():
    assert fares((600, 10), (100, 1)).would_hold(0.05, 1.5)
    assert not fares((600, 10), (100, 4)).would_hold(0.05, 1.5)
    # Too few to be promised: together they stay within the tolerance.
    assert fares((600, 10), (20, 1), (20, 1)).would_hold(0.05, 1.5)
    assert not fares((600, 10), (20, 3)).would_hold(0.05, 1.5)


def test_the_whole_and_each_label_decide_together():
    result = compared(one_hot([0] * 400 + [1] * 100, 2), one_hot([0] * 490 + [1] * 10, 2))
    result = replace(result, lower_bound=0.97, by_label=fares((400, 4), (100, 5)))
    assert holds(result, 0.05) and not holds(result, 0.05, 0.05) and not holds(result, 0.01, 0.2)
    assert holds(result, 0.05, 0.15)
    assert with_promise(result, None) is result
    assert with_promise(result, 0.15).by_label.promise.tolerance == 0.15
    assert not holds(replace(result, by_label=None), 0.05, 0.15)
