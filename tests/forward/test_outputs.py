"""What a network returns, however nested: named, sorted into heads and others, read together."""

from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fcompress.errors import UnsupportedNetworkError
from fcompress.forward.answers.heads import Joint, answering, sorted_outputs
from fcompress.forward.answers.parts import DRAWN
from fcompress.forward.answers.scoring import Scoring
from fcompress.forward.outputs import output_tensors
from fcompress.forward.predictor import Predictor
from fcompress.structure.groups import find_groups
from fcompress.structure.reach import coverage

ONE = torch.zeros(2, 3)


@dataclass
class Answer:
    logits: Any
    states: Any = None


class ModelOutput(OrderedDict):
    """As transformers has it: a mapping with attributes."""

    @property
    def logits(self):
        return self["logits"]


class DynamicCache:
    def __init__(self):
        self.keys = [ONE]


class Slotted:
    __slots__ = ("a", "b")

    def __init__(self, a):
        self.a = a


Named = namedtuple("Named", "scores extra")


@pytest.mark.parametrize(
    ("output", "names"),
    [
        (ONE, ["output"]),
        ((ONE, None, ONE), ["0", "2"]),
        ({"a": ONE, "b": [ONE, {"c": ONE}], "d": 3, "e": "x"}, ["a", "b.0", "b.1.c"]),
        (Answer(ONE, (ONE, ONE)), ["logits", "states.0", "states.1"]),
        (Answer(ONE), ["logits"]),
        (ModelOutput(logits=ONE, hidden_states=(ONE,)), ["logits", "hidden_states.0"]),
        (Named(ONE, Answer(ONE)), ["scores", "extra.logits"]),
        (SimpleNamespace(logits=ONE, more={"x": ONE}), ["logits", "more.x"]),
        (Slotted(ONE), ["a"]),
        ({0: ONE, "0": ONE}, ["0", "0'"]),
        # What is handed over to go on from is no answer.
        ({"logits": ONE, "past_key_values": ((ONE, ONE),)}, ["logits"]),
        ((ONE, DynamicCache()), ["0"]),
        (None, []),
    ],
)
def test_every_tensor_has_a_name(output, names):
    assert list(output_tensors(output)) == names


def test_outputs_that_hold_themselves_come_to_an_end():
    endless: dict[str, Any] = {"a": ONE}
    endless["self"] = endless
    assert list(output_tensors(endless)) == ["a"]


class Wired(nn.Module):
    """Returns whatever `pick` makes of its parts."""

    def __init__(self, pick):
        super().__init__()
        torch.manual_seed(0)
        self.trunk, self.embed = nn.Linear(8, 16), nn.Linear(16, 12)
        self.one, self.two = nn.Linear(12, 3), nn.Linear(16, 4)
        self.pick = (pick,)

    def forward(self, x):
        trunk = torch.relu(self.trunk(x))
        embedding = self.embed(trunk)
        parts = SimpleNamespace(
            x=x, trunk=trunk, embedding=embedding, two=self.two(trunk),
            one=self.one(torch.relu(embedding)),
        )  # fmt: skip
        return self.pick[0](parts)


INPUTS = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))


def sorted_of(pick):
    return sorted_outputs(Predictor(Wired(pick).eval()), INPUTS)


@pytest.mark.parametrize(
    ("pick", "heads"),
    [
        (lambda p: {"logits": p.one, "side": p.two}, ["logits", "side"]),
        (lambda p: (p.one, p.two.log_softmax(1)), ["0", "1"]),
        (lambda p: (p.one, p.two.softmax(1)), ["0", "1"]),
        (lambda p: Answer(p.one, [p.two]), ["logits", "states.0"]),
        # Read by another layer, behind something, or named: no heads.
        (lambda p: {"logits": p.one, "e": p.embedding}, ["logits"]),
        (lambda p: {"logits": p.one, "e": F.normalize(p.two)}, ["logits"]),
        (lambda p: {"logits": p.one, "text_embeds": p.two}, ["logits"]),
        (lambda p: {"logits": p.one, "states": [p.trunk, p.embedding]}, ["logits"]),
        (lambda p: {"logits": p.one, "value": p.two[:, :1]}, ["logits"]),
        (lambda p: {"logits": p.one, "x": p.x, "n": p.two.argmax(1)}, ["logits"]),
        (lambda p: {"logits": p.one, "sum": p.two.sum()}, ["logits"]),
    ],
)
def test_heads_are_what_a_layer_writes_and_none_reads(pick, heads):
    assert [head.name for head in sorted_of(pick).heads] == heads


def test_what_follows_from_a_head_and_what_is_an_input():
    found = sorted_of(
        lambda p: {"logits": p.one, "p": p.one.softmax(1), "label": p.one.argmax(1), "x": p.x}
    )
    assert dict(found.following) == {"p": "logits", "label": "logits"}
    assert found.given == {"x"} and [h.name for h in found.heads] == ["logits"]
    twice = sorted_of(lambda p: (p.one, p.one))
    assert dict(twice.following) == {"1": "0"}


@pytest.mark.parametrize(
    "pick",
    [
        lambda p: {"logits": p.one, "embedding": p.embedding},
        lambda p: (p.one, (p.embedding, None)),
        lambda p: Answer(p.one, [p.embedding]),
        lambda p: Named(p.one, {"e": Answer(p.embedding)}),
        lambda p: SimpleNamespace(logits=p.one, e=p.embedding),
    ],
)
def test_units_of_any_output_stay(pick):
    network = Wired(pick).eval()
    structure = find_groups(network, INPUTS)
    left = {g.name: g.reason for g in structure.not_pruned}
    assert left["embed"] == "output layer" and left["one"] == "output layer"
    assert [group.name for group in structure.groups] == ["trunk"]
    assert coverage(network, INPUTS).error is None


def test_hidden_states_that_are_outputs_leave_nothing_to_prune():
    structure = find_groups(Wired(lambda p: [p.one, p.trunk, p.embedding]).eval(), INPUTS)
    assert not structure.groups


def test_labels_of_all_heads_are_read_together():
    network = Wired(lambda p: {"logits": p.one, "b": p.two.softmax(1)}).eval()
    predictor = answering(Predictor(network), INPUTS)
    assert isinstance(predictor.scoring, Joint)
    with predictor.evaluating():
        whole, scores = network(INPUTS), predictor.scores(INPUTS)
    labels = predictor.scoring.labels_of(scores)
    assert torch.equal(labels, torch.stack([whole["logits"].argmax(1), whole["b"].argmax(1)], 1))
    log = predictor.scoring.log_probabilities(scores.double())
    assert log.shape == (5, 4, 2)
    assert torch.allclose(log[:, :, 1].exp().float(), whole["b"], atol=1e-6)
    assert torch.allclose(log.exp().sum(1), torch.ones(5, 2, dtype=torch.float64))
    # The divergence is the sum of the heads'.
    other = scores.roll(1, 0).double()
    found = predictor.scoring.log_probabilities(other)
    alone = [
        Scoring().divergence(
            Scoring().log_probabilities(other[:, part]),
            Scoring().log_probabilities(scores[:, part].double()),
        )
        for part in (slice(3), slice(3, 7))
    ]
    assert float(predictor.scoring.divergence(found, log)) == pytest.approx(float(sum(alone)))
    # Accuracy is the main head's.
    truth = predictor.scoring.truth(labels[:, 0], 2)
    assert predictor.scoring.shares(labels, truth).tolist() == [1.0] * 5
    scores[2, 5] = torch.nan
    assert predictor.scoring.labels_of(scores)[2].tolist() == [int(labels[2, 0]), -1]


def test_positions_beside_another_head():
    class Dense(nn.Module):
        def __init__(self):
            super().__init__()
            self.map, self.head = nn.Conv2d(2, 3, 1), nn.Linear(2, 4)

        def forward(self, x):
            return {"logits": self.map(x), "scene": self.head(x.mean((2, 3)))}

    x = torch.randn(4, 2, 5, 5)
    predictor = answering(Predictor(Dense().eval(), None, Scoring(None, "positions")), x)
    with predictor.evaluating():
        labels = predictor.labels(x)
        whole = predictor.network(x)
    assert torch.equal(labels[:, :-1], whole["logits"].argmax(1).flatten(1))
    assert torch.equal(labels[:, -1], whole["scene"].argmax(1))
    compared = predictor.scoring.compared(labels)
    assert torch.equal(compared, labels)
    wide = torch.arange(4 * 200).reshape(4, 200)
    compared = predictor.scoring.compared(torch.cat([wide, labels[:, -1:]], 1))
    assert compared.shape == (4, DRAWN + 1)
    plain = Scoring(None, "positions")
    assert torch.equal(compared[:, :-1], plain.compared(wide))
    # A position that changed is one of 25; the other head's label is all of an example's answer.
    other = labels.clone()
    other[0, 3] += 1
    other[1, -1] += 1
    lost = predictor.scoring.lost(labels, other)
    assert lost.tolist() == pytest.approx([1 / 25, 1, 0, 0])


def test_without_a_logits_the_first_head_of_a_mapping_is_the_main_one():
    network = Wired(lambda p: {"x": p.x, "a": p.two, "b": p.one}).eval()
    predictor = answering(Predictor(network), INPUTS)
    with predictor.evaluating():
        assert predictor.labels(INPUTS).shape == (5, 2)
    said = Predictor(network, None, Scoring("b"))
    assert answering(said, INPUTS) is said
    dense = Predictor(Wired(lambda p: (p.two[:, :, None], p.one)).eval())
    with pytest.raises(UnsupportedNetworkError, match="for a label at every position"):
        answering(dense, INPUTS)
    alone = Predictor(Wired(lambda p: {"e": p.embedding, "v": p.one[:, :1]}).eval())
    with pytest.raises(UnsupportedNetworkError, match="--output"), alone.evaluating():
        answering(alone, INPUTS).scores(INPUTS)
