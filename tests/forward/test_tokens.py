"""Next tokens as answers: padding is left out, whoever says where it is."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fcompress import analyze, export, load, save, shrink, verify
from fcompress.certify.bounded_mean import betting_bound
from fcompress.errors import DataError, FcompressError, UnsupportedNetworkError
from fcompress.forward.answers import parts, tokens
from fcompress.forward.answers.asked import asked
from fcompress.forward.answers.heads import answering
from fcompress.forward.answers.scoring import Scoring
from fcompress.forward.answers.understanding import understood
from fcompress.forward.predictor import Predictor

N, LENGTH, VOCABULARY = 600, 12, 9
TOKENS = Scoring(labels="tokens")


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def sequences(n=N, seed=0, shortest=1):
    """Ids [n, LENGTH] that end in zeros, and where they are no zeros."""
    random = np.random.default_rng(seed)
    ids = torch.from_numpy(random.integers(1, VOCABULARY, (n, LENGTH)))
    kept = torch.arange(LENGTH) < torch.from_numpy(random.integers(shortest, LENGTH + 1, (n, 1)))
    return ids * kept, kept


class Reader(nn.Module):
    """Logits [n, positions, vocabulary]; nothing of them at padding is a number."""

    def __init__(self, spoil=False):
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, 8)
        self.up, self.down = nn.Linear(8, 40), nn.Linear(40, VOCABULARY)
        self.spoil = spoil

    def forward(self, input_ids, attention_mask=None):
        x = self.embed(input_ids)
        x = x.cumsum(1) / torch.arange(1, x.shape[1] + 1).view(-1, 1)
        x = self.down(F.relu(self.up(x)))
        if self.spoil and attention_mask is not None:
            x = torch.where(attention_mask.unsqueeze(2) != 0, x, torch.nan)
        return x


class Scene(Reader):
    """With a label of the whole sequence beside the tokens."""

    def __init__(self):
        super().__init__()
        self.scene = nn.Linear(8, 3)

    def forward(self, input_ids):
        logits = super().forward(input_ids)
        return {"logits": logits, "scene": self.scene(self.embed(input_ids).mean(1))}


def trained(model, steps=60):
    """One that says which of two tokens came last."""
    torch.manual_seed(0)
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    ids, kept = sequences(seed=9)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(ids)[kept], ids[kept]).backward()
        optimizer.step()
    return model.eval()


@pytest.fixture(scope="module")
def model():
    return trained(Reader())


def pair(model, seed=1):
    """The network and one that answers otherwise here and there."""
    other = Reader().eval()
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        other.down.weight += 0.3 * draw(VOCABULARY, 40, seed=seed)
    return other


def masked(ids, kept, size=100, **more):
    """Batches as a tokenizer gives them."""
    keys = {"input_ids": ids, "attention_mask": kept.long(), **more}
    return [
        dict(zip(keys, part, strict=True))
        for part in zip(*(value.split(size) for value in keys.values()), strict=True)
    ]


def by_hand(model, other, ids, kept):
    """Changed share of each sequence."""
    differ = (model(ids).argmax(2) != other(ids).argmax(2)) & kept
    return differ.double().sum(1) / kept.double().sum(1)


def test_padding_does_not_count_whoever_says_where_it_is(model):
    ids, kept = sequences()
    other = pair(model)
    shares = by_hand(model, other, ids, kept)
    # Short sequences come several times; the bound is the weaker one of all and of the distinct.
    first = [row for row, one in enumerate(ids) if not (ids[:row] == one).all(1).any()]
    bound = max(betting_bound(some.numpy()) for some in (shares, shares[first]))
    found = verify(model, other, masked(ids, kept), answer="tokens")
    named = verify(model, other, ids.split(37), answer="tokens", pad=0)
    only = verify(model, other, [{"input_ids": ids}], pad=0)
    for one in (found, named, only):
        assert one.labels == "tokens" and one.n == N
        assert one.changed == pytest.approx(float(shares.sum()))
        assert one.upper_bound == pytest.approx(bound)
        differ = (model(ids).argmax(2) != other(ids).argmax(2))[kept]
        assert one.positions == pytest.approx(1 - float(differ.double().mean()))
        assert one.by_label.kind == "tokens"
    everything = verify(model, other, [ids], answer="tokens")
    assert abs(everything.changed - found.changed) > 1
    # Padding may be no numbers at all; a position that counts may not.
    spoilt = Reader(spoil=True)
    spoilt.load_state_dict(other.state_dict())
    again = verify(model, spoilt.eval(), masked(ids, kept), answer="tokens")
    assert again.changed == pytest.approx(found.changed)


def test_a_position_that_is_no_number_changes_its_sequence():
    scores = tokens.with_padding(draw(3, 4, 5), torch.tensor([[1, 1, 1, 0]] * 3).bool())
    broken = scores.clone()
    broken[1, 2, 0] = torch.nan
    ours, theirs = TOKENS.labels_of(scores), TOKENS.labels_of(broken)
    assert theirs[1].tolist() == [-1, -1, -1, parts.PADDED]
    assert TOKENS.lost(ours, theirs).tolist() == [0, 1, 0]
    assert TOKENS.broken(theirs).tolist() == [False, True, False]


def test_sequences_of_padding_are_said_and_not_counted(model):
    ids, kept = sequences(60)
    ids[[3, 7]] = 0
    kept[[3, 7]] = False
    other = pair(model)
    with pytest.warns(UserWarning, match="2 of 60 examples have no position that is no padding"):
        found = verify(model, other, [ids], answer="tokens", pad=0)
    assert (found.n, found.empty) == (58, 2)
    rest = kept.any(1)
    assert found.changed == pytest.approx(float(by_hand(model, other, ids[rest], kept[rest]).sum()))
    with pytest.raises(DataError, match="no examples with a position that is no padding"):
        verify(model, other, [torch.zeros(5, LENGTH, dtype=torch.long)], answer="tokens", pad=0)


def test_true_next_tokens_are_those_that_are_given(model):
    ids, kept = sequences()
    truth = torch.where(kept, ids, -100)
    truth[:, 0] = -100
    truth[5] = -100
    right = (model(ids).argmax(2) == truth) & (truth >= 0)
    known = (truth >= 0).sum(1)
    shares = right.sum(1)[known > 0] / known[known > 0]
    found = verify(model, model, masked(ids, kept, labels=truth), answer="tokens")
    assert found.accuracy["before"] == pytest.approx(float(shares.double().mean()))
    with pytest.raises(DataError, match="next tokens an input"):
        verify(model, model, [(ids, ids[:, 0])], answer="tokens")


def test_the_next_tokens_of_the_original_are_counted_one_by_one(model):
    ids, kept = sequences()
    other = pair(model)
    ours, theirs = model(ids).argmax(2), other(ids).argmax(2)
    found = verify(model, other, ids.split(37), answer="tokens", pad=0).by_label
    assert found is not None and len(found.labels) == len(ours[kept].unique())
    assert sum(one.positions for one in found.labels) == int(kept.sum())
    for one in found.labels:
        mine, yours = (ours == one.label) & kept, (theirs == one.label) & kept
        assert (one.positions, one.given) == (int(mine.sum()), int(yours.sum()))
        assert one.n == int(mine.any(1).sum()) and one.name == f"token {one.label}"
        assert one.positions_changed == pytest.approx(float((theirs != ours)[mine].double().mean()))
        assert one.iou == pytest.approx(int((mine & yours).sum()) / int((mine | yours).sum()))
    # Padding does not count: where everything does there are more positions.
    everything = verify(model, other, [ids], answer="tokens").by_label
    assert sum(one.positions for one in everything.labels) == ids.numel()


def test_a_tolerance_for_every_token(model):
    ids, _ = sequences(1500, 4, shortest=6)
    how = {"answer": "tokens", "pad": 0, "calibration": 128}
    result = shrink(model, list(ids.split(100)), 0.1, tol_label=0.3, **how)
    promise = result.agreement.by_label.promise
    assert result.certified and promise.labels > 3
    assert all(one.bound <= 0.3 for one in result.agreement.by_label.enough(0.3))
    plain = shrink(model, list(ids.split(100)), 0.1, **how)
    assert plain.agreement.by_label.promise is None
    assert plain.macs["after"] <= result.macs["after"]


@pytest.mark.parametrize("ending", ["softmax", "flat", "other axis", "logits"])
def test_a_last_softmax_is_seen(model, ending):
    """Costs are those of the logits before it, whatever moves the probabilities behind it."""
    ids, _ = sequences(200)
    network = Ending(model, ending).eval()
    found = understood(Predictor(network, None, Scoring(labels="tokens", pad=0)), [(ids, None)])
    plain = Predictor(model, None, Scoring(labels="tokens", pad=0))
    seen = ending in ("softmax", "flat")
    assert found.scoring.ending == ("softmax" if seen else None)
    with found.evaluating(), plain.evaluating():
        ours, expected = (
            one.scoring.log_probabilities(one.scores(ids), 2.0) for one in (found, plain)
        )
    assert torch.allclose(ours, expected, atol=1e-4) == (seen or ending == "logits")


class Ending(nn.Module):
    """Probabilities of the next token."""

    def __init__(self, reader, ending):
        super().__init__()
        self.reader, self.ending = reader, ending

    def forward(self, x):
        logits = self.reader(x)
        if self.ending == "flat":
            return logits.flatten(0, 1).softmax(1).view(logits.shape)
        axis = {"softmax": 2, "other axis": 1}.get(self.ending)
        return logits if axis is None else logits.softmax(axis)


def test_divergence_is_averaged_over_the_positions_that_count():
    kept = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0]]).bool()
    one, other = draw(2, 4, 5).double(), draw(2, 4, 5, seed=1).double()
    log, wanted = (
        TOKENS.log_probabilities(tokens.with_padding(logits, kept)) for logits in (one, other)
    )
    p, q = other.softmax(2), one.softmax(2)
    each = (p * (p / q).log()).sum(2)
    expected = (each[0, :3].mean() + each[1, 0]) / 2
    assert float(TOKENS.divergence(log, wanted)) == pytest.approx(float(expected))
    warm = TOKENS.log_probabilities(tokens.with_padding(one, kept), 2.0)
    assert warm[0, :, 1].tolist() == pytest.approx((one[0, 1] / 2).log_softmax(0).tolist())


def test_fisher_information_is_the_curvature_of_the_divergence():
    kept = torch.tensor([[True, True, False]])
    base = draw(1, 3, 4).double()
    logits = base.expand(60_000, 3, 4).clone().requires_grad_()
    scores = tokens.with_padding(logits, kept.expand(60_000, 3))
    TOKENS.surprise(scores, torch.Generator().manual_seed(0)).backward()
    grads = logits.grad.flatten(1)
    fisher = grads.T @ grads / len(grads)
    assert float(fisher[8:].abs().max()) == 0  # padding
    step = 0.05 * draw(1, 3, 4, seed=3).double()
    log = [TOKENS.log_probabilities(tokens.with_padding(x, kept)) for x in (base + step, base)]
    predicted = step.flatten() @ fisher @ step.flatten() / 2
    assert float(predicted) == pytest.approx(float(TOKENS.divergence(*log)), rel=0.1)


@pytest.mark.parametrize("by_name", [True, False])
def test_shrunk_kept_and_exported(model, by_name, tmp_path):
    ids, kept = sequences(1500, 4, shortest=6)
    data = masked(ids, kept) if by_name else list(ids.split(100))
    how = {} if by_name else {"pad": 0}
    result = shrink(model, data, 0.1, answer="tokens", calibration=128, **how)
    assert result.certified and result.agreement.upper_bound <= 0.1
    assert result.macs["after"] < 0.9 * result.macs["before"]
    fresh, real = sequences(800, 5, shortest=6)
    assert float(by_hand(model, result.model, fresh, real).mean()) < 0.1
    # It carries how it is read.
    more = masked(fresh, real) if by_name else [fresh]
    shares = by_hand(model, result.model, fresh, real)
    assert verify(model, result.model, more).changed == pytest.approx(float(shares.sum()))
    save(result.model, tmp_path / "small.pt")
    again = load(tmp_path / "small.pt", arch=Reader)
    assert verify(model, again, more).changed == pytest.approx(float(shares.sum()))
    if not by_name:
        written = export(result.model, tmp_path / "small.pt2", [fresh], original=model)
        assert written.n == 800 and written.same == 800


def test_another_head_counts_too():
    network = trained_scene()
    ids, kept = sequences(40)
    predictor = answering(Predictor(network, None, Scoring(labels="tokens", pad=0)), ids)
    assert [head.name for head in predictor.scoring.heads] == ["scene"]
    with predictor.evaluating():
        labels = predictor.labels(ids)
        whole = network(ids)
    chosen = torch.where(kept, whole["logits"].argmax(2), parts.PADDED)
    assert torch.equal(labels, torch.cat([chosen, whole["scene"].argmax(1, keepdim=True)], 1))
    other = labels.clone()
    other[0, -1] += 1
    assert predictor.scoring.lost(labels, other).tolist() == [1.0] + [0.0] * 39


def trained_scene():
    torch.manual_seed(0)
    return Scene().eval()


def test_analysed(model):
    ids, _ = sequences(120)
    found = analyze(model, [ids], answer="tokens", pad=0, examples=30, orders=1, by_layer=False)
    assert 0 < found.ablation.network.agreement[0][-1] < 1
    # Accuracy is about positions with a true next token, in sequences that have one.
    truth = torch.where(ids > 0, ids, -100)
    truth[::3] = -100
    how = {"answer": "tokens", "pad": 0, "orders": 1, "by_layer": False, "groups": False}
    right = analyze(model, [(ids, truth)], **how)
    assert right.accuracy == verify(model, model, [(ids, truth)], pad=0).accuracy["before"]
    assert analyze(model, [(ids, truth.fill_(-100))], **how).accuracy is None


@pytest.mark.parametrize(
    ("data", "how", "message"),
    [
        ([draw(40, 3)], {"pad": 0}, r"pad=0 \(--pad\) names a token"),
        ([sequences(40)[0]], {}, "logits \\[examples, positions, vocabulary\\]"),
    ],
)
def test_what_cannot_be_read_is_one_line(data, how, message):
    flat = nn.Sequential(nn.Linear(3, 4)) if "pad" in how else Flat()
    with pytest.raises(FcompressError, match=message):
        verify(flat, flat, data, answer="tokens", **how)


class Flat(nn.Module):
    """Scores of the whole sequence."""

    def forward(self, x):
        return F.one_hot(x, VOCABULARY).float().mean(1)


def test_a_mask_of_another_length(model):
    ids, kept = sequences(40)
    with pytest.raises(FcompressError, match="one entry for each position"):
        verify(model, model, masked(ids, kept[:, 1:]), answer="tokens")
    with pytest.raises(UnsupportedNetworkError):
        verify(model, model, [ids])


@pytest.mark.parametrize(("kind", "pad"), [("classes", 0), ("tokens", -1)])
def test_pad_belongs_to_tokens(kind, pad):
    with pytest.raises(ValueError, match="pad"):
        asked(kind, pad=pad)
    assert asked(pad=3).kind == "tokens"
