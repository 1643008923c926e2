"""The module: who answers which rows, and how sure is sure."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from fcompress.cascades.margins import margins, record_of, scoring_from
from fcompress.cascades.network import Cascade, check_alone
from fcompress.errors import CheckpointError, UnsupportedNetworkError
from fcompress.forward.answers.heads import Head, Joint
from fcompress.forward.answers.scoring import Scoring


class Counting(nn.Module):
    """Class scores, and how many rows it has seen."""

    def __init__(self, form, seed, inplace=False):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.layer = nn.Linear(5, 3)
        self.form, self.inplace, self.rows = form, inplace, 0

    def forward(self, x, extra=None):
        self.rows += len(x)
        if self.inplace:
            x.mul_(2.0)
        found = self.layer(x) + (0 if extra is None else extra)
        return self.form(found)


@dataclass
class Output:
    logits: torch.Tensor
    note: str = "same"


FORMS = {
    "tensor": lambda y: y,
    "tuple": lambda y: (y, 2 * y),
    "dict": lambda y: {"logits": y, "more": [y + 1]},
    "dataclass": Output,
}


def leaves(found):
    if isinstance(found, Output):
        return [found.logits]
    return [one for one in torch.utils._pytree.tree_leaves(found) if torch.is_tensor(one)]


def inputs(n=200, seed=0):
    return torch.randn(n, 5, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("form", FORMS)
def test_only_rows_that_are_not_sure_go_to_the_original_and_all_outputs_are_merged(form):
    small, large = Counting(FORMS[form], 1), Counting(FORMS[form], 2)
    cascade = Cascade(small, large, 0.1, Scoring()).eval()
    x, extra = inputs(), torch.linspace(0, 1, 200).unsqueeze(1)
    late = cascade.deferred(x, extra=extra)
    small.rows = large.rows = 0
    found = cascade(x, extra=extra)
    assert small.rows == 200 and 20 < large.rows == int(late.sum()) < 180
    for ours, first, second in zip(
        leaves(found), leaves(small(x, extra)), leaves(large(x, extra)), strict=True
    ):
        assert torch.equal(ours[~late], first[~late])
        assert torch.allclose(ours[late], second[late], atol=1e-6)
        assert not torch.allclose(ours[late], first[late])
    assert type(found) is type(small(x, extra))


@pytest.mark.parametrize(("threshold", "rows"), [(0.0, 0), (2.0, 50)])
def test_all_and_none(threshold, rows):
    small, large = Counting(FORMS["tensor"], 1), Counting(FORMS["tensor"], 2)
    x = inputs(50)
    found = Cascade(small, large, threshold, Scoring())(x)
    assert large.rows == rows
    assert torch.equal(found, (large if rows else small)(x))


def test_scores_that_are_not_finite_are_deferred():
    small, large = Counting(FORMS["tensor"], 1), Counting(FORMS["tensor"], 2)
    x = inputs(6)
    x[1], x[4] = torch.nan, torch.inf
    cascade = Cascade(small, large, 0.0, Scoring())
    assert cascade.deferred(x).tolist() == [False, True, False, False, True, False]


def test_a_network_that_works_in_place_leaves_the_inputs_to_the_original():
    x = inputs()
    plain = Cascade(Counting(FORMS["tensor"], 1), Counting(FORMS["tensor"], 2), 0.3, Scoring())
    small = Counting(FORMS["tensor"], 1, inplace=True)
    small.layer.weight.data /= 2
    cascade = Cascade(small, plain.original, 0.3, Scoring())
    assert torch.allclose(cascade(x), plain(x), atol=1e-5)


def test_outputs_without_a_row_for_each_example_are_refused():
    shared = [lambda y: (y, y.mean(0)), lambda y: {"logits": y, "loss": y.mean()}]
    for form in shared:
        cascade = Cascade(Counting(form, 1), Counting(form, 2), 0.3, Scoring())
        with pytest.raises(UnsupportedNetworkError, match="row for each example in each output"):
            cascade(inputs())


def test_kinds_without_a_margin_are_refused():
    layers = nn.Linear(5, 3), nn.Linear(5, 3)
    for scoring in (
        Scoring(labels="regression", within=0.1),
        Scoring(labels="embedding"),
        Scoring(labels="same", same=lambda a, b: a == b),
    ):
        with pytest.raises(UnsupportedNetworkError, match="leave cascade out"):
            Cascade(*layers, 0.5, scoring)
    with pytest.raises(UnsupportedNetworkError, match="give the original"):
        check_alone(Cascade(*layers, 0.5, Scoring()))


def test_margins_of_each_kind():
    p = torch.tensor([[0.5, 0.3, 0.15, 0.05], [0.25, 0.25, 0.26, 0.24]])
    assert torch.allclose(margins(Scoring(), p.log()), torch.tensor([0.2, 0.01]).double())
    ended = Scoring(labels="classes", ending="softmax")
    assert torch.allclose(margins(ended, p), torch.tensor([0.2, 0.01]).double())
    top = Scoring(labels="top-2")
    assert torch.allclose(margins(top, p.log()), torch.tensor([0.15, 0.0]).double(), atol=1e-6)
    yes = torch.tensor([[0.9, 0.4], [0.95, 0.01]])
    sigmoid = Scoring(labels="sigmoid")
    assert torch.allclose(margins(sigmoid, yes.logit()), torch.tensor([0.2, 0.9]).double())
    # At each position of one example; the least counts.
    dense = Scoring(labels="positions")
    assert torch.allclose(margins(dense, p.log().T.unsqueeze(0)), torch.tensor([0.01]).double())
    single = Scoring(None, "sigmoid")
    assert torch.allclose(margins(single, torch.tensor([[0.0]])), torch.zeros(1).double())


def test_margins_of_classes_are_those_of_one_position():
    scores = 5 * torch.randn(50, 7, generator=torch.Generator().manual_seed(1))
    scores[3, 2], scores[4, 1], scores[5, 0] = torch.nan, torch.inf, -torch.inf
    found = margins(Scoring(labels="classes"), scores)
    dense = margins(Scoring(labels="positions"), scores.unsqueeze(2))
    assert torch.allclose(found, dense, rtol=0, atol=1e-12, equal_nan=True)
    assert found.isnan().nonzero().flatten().tolist() == [3, 4, 5]


def test_padding_of_tokens_does_not_count():
    scoring = Scoring(labels="tokens", pad=0)
    logits = torch.tensor([[[3.0, 0.0, 0.0], [0.0, 0.0, 0.0]]]).expand(3, -1, -1)
    ids = torch.tensor([[5, 0], [5, 5], [0, 0]])
    scores = scoring.chosen(logits, scoring.counted((ids,), {}))
    found = margins(scoring, scores)
    assert found[0] > 0.8 and found[1] < 1e-6 and found[2] == 1


def test_the_least_sure_head_decides():
    joint = Joint(main=Scoring(), heads=(Head("b", 2),), classes=3)
    main = torch.tensor([[9.0, 0.0, 0.0], [9.0, 0.0, 0.0], [0.1, 0.0, 0.0]])
    other = torch.tensor([[9.0, 0.0], [0.1, 0.0], [9.0, 0.0]])
    found = margins(joint, torch.cat([main, other], 1))
    assert found[0] > 0.99 and found[1] < 0.06 and found[2] < 0.04
    assert torch.equal(margins(scoring_from(record_of(joint)), torch.cat([main, other], 1)), found)


def test_margins_tell_near_certainties_apart():
    found = margins(Scoring(), torch.tensor([[20.0, 0.0], [21.0, 0.0], [25.0, 0.0]]))
    assert found[0] < found[1] < found[2] < 1


@pytest.mark.parametrize(
    "change", [{"labels": 3}, {"ending": "tanh"}, {"heads": [[1]]}, {"classes": 0}, {"pad": "x"}]
)
def test_damaged_records_are_refused(change):
    with pytest.raises(CheckpointError):
        scoring_from({**record_of(Scoring()), **change})
