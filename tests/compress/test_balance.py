"""Calibration that listens to rare labels as much as to frequent ones."""

import pytest
import torch
from cases.trained import CLASSES, examples, trained
from torch import nn

from fcompress.compress.balance import MOST_TIMES, balanced
from fcompress.compress.pipeline import shrink
from fcompress.errors import UnsupportedNetworkError
from fcompress.forward.answers.scoring import Scoring
from fcompress.forward.predictor import Predictor


def skewed(model):
    """Inputs to which the original gives label 0 rarely."""
    x, _ = examples(3000, seed=3)
    given = model(x).argmax(1)
    rare = (given == 0).nonzero().flatten()
    return x[torch.cat([(given != 0).nonzero().flatten(), rare[: len(rare) // 20]])]


def test_labels_are_equally_frequent_as_far_as_there_are_examples():
    model = trained()
    x = skewed(model)
    found = balanced(Predictor(model), x, seed=1)
    before, after = (model(some).argmax(1).bincount(minlength=CLASSES) for some in (x, found))
    assert before[0] < 0.1 * before[1:].min()
    assert after[0] == min(MOST_TIMES * before[0], len(x) // CLASSES)
    assert (after[1:] >= (before[1:]).clamp(max=len(x) // CLASSES)).all()
    assert {tuple(row.tolist()) for row in found} <= {tuple(row.tolist()) for row in x}
    assert torch.equal(found, balanced(Predictor(model), x, seed=1))
    assert not torch.equal(found, balanced(Predictor(model), x, seed=2))


def test_other_answers_are_refused():
    x, _ = examples(200)
    for answer in ("sigmoid", "top-2"):
        with pytest.raises(UnsupportedNetworkError, match=r"--balance.* one class for each"):
            balanced(Predictor(trained(), scoring=Scoring(labels=answer)), x)
    with pytest.raises(UnsupportedNetworkError, match="balance=True"):
        shrink(nn.Linear(6, 1), x, answer="sigmoid", balance=True)


def test_a_network_is_compressed_for_rare_labels_too():
    model = trained()
    x = skewed(model)
    plain, fair = (shrink(model, x, ratio=0.35, balance=balance) for balance in (False, True))
    fresh, _ = examples(3000, seed=4)
    rare = fresh[model(fresh).argmax(1) == 0]
    kept = [(one.model(rare).argmax(1) == 0).double().mean() for one in (plain, fair)]
    assert kept[1] >= kept[0]
