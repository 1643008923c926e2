"""Answers in parts: the search and the certificate, on networks whose true shares are known."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from fcompress import shrink, verify
from fcompress.certify.bounded_mean import examples_for_mean
from fcompress.certify.fixed_sequence import refusal
from fcompress.certify.outlook import Outlook
from fcompress.certify.screening import check_reachable
from fcompress.compress.search import measure, within
from fcompress.errors import FcompressError, ToleranceError
from fcompress.forward.answers.scoring import Scoring
from fcompress.forward.predictor import Predictor
from fcompress.showing.progress import silent
from tests.cases.language import LENGTH, pieces, trained_language

PLACES, STEPS = 12, 120
TOKENS = Scoring(labels="tokens")


class Shares(nn.Module):
    """Changes a share of the positions of each example: on average `rate` of them.

    Examples come as a number in [0, 1) for each position, and one before for how hard they are.
    """

    def __init__(self, rate):
        super().__init__()
        self.rate = rate

    def forward(self, x):
        changed = (x[:, 1:] < 2 * self.rate * x[:, :1]).double()
        return torch.stack([1 - changed, changed], 2)


class Split:
    """Examples as one batch."""

    def __init__(self, x):
        self.x = x

    def __len__(self):
        return len(self.x)

    def __iter__(self):
        yield self.x, None


class Builder:
    """As much of a `CandidateBuilder` as `within` needs: network k changes rates[k - 1]."""

    def __init__(self, rates, random, seen=200, unseen=300):
        self.rates, self.steps, self.tried = rates, len(rates), []
        self.distill_effort, self.report = None, silent
        self.original = Predictor(Shares(0.0), scoring=TOKENS)
        self.context = SimpleNamespace(original=self.original)
        search, certification = (
            Split(torch.from_numpy(random.random((n, PLACES + 1)))) for n in (seen, unseen)
        )
        self.roles = SimpleNamespace(search=search, certification=certification)

    def make(self, removed):
        network = self.original.of(Shares(self.rates[removed - 1]))
        reference = torch.zeros(len(self.roles.search), PLACES, dtype=torch.long)
        batches = [self.roles.search.x]
        found = measure(removed, {}, network, 1000 - removed, batches, reference)
        self.tried.append(found)
        return found


RATES = 0.4 * (np.arange(1, STEPS + 1) / STEPS) ** 2


def certified(seed, tolerance, confidence=0.95):
    """How many units go, and the agreement; 0 where nothing is certified."""
    builder = Builder(RATES, np.random.default_rng(seed))
    try:
        found = within(builder, tolerance, confidence)
    except ToleranceError:
        return 0, None
    return found.candidate.removed, found.agreement


@pytest.mark.parametrize("seed", range(4))
def test_a_looser_tolerance_never_gives_less(seed):
    found = [certified(seed, t)[0] for t in (0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3)]
    assert found == sorted(found) and len(set(found)) > 4


def test_the_bound_of_a_certificate_is_within_its_tolerance():
    for seed in range(3):
        removed, agreement = certified(seed, 0.05)
        assert removed and agreement.upper_bound <= 0.05 and agreement.deviation > 0
        # As far as that, the true share is not far below.
        assert 0.02 < RATES[removed - 1] < 0.06


@pytest.mark.slow
@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_certificates_are_wrong_no_more_often_than_promised(confidence):
    runs, wrong, above = 1000, 0, 0
    for seed in range(runs):
        removed, agreement = certified(seed, 0.05, confidence)
        if removed:
            wrong += RATES[removed - 1] > 0.05
            above += RATES[removed - 1] > agreement.upper_bound
    allowed = runs * (1 - confidence) + 3.2 * math.sqrt(runs * confidence * (1 - confidence))
    assert wrong <= allowed and above <= allowed


def candidate(changed, deviation, n=200):
    return SimpleNamespace(changed=changed, deviation=deviation, n=n)


@pytest.mark.parametrize("deviation", [None, 0.0, 0.02, 0.1])
def test_an_outlook_gets_better_with_the_tolerance(deviation):
    for changed in (5, 11, 30):
        one = candidate(changed, deviation)
        outlooks = [Outlook(400, t, 0.95) for t in np.linspace(0.005, 0.4, 20)]
        passes = [o.passes(one) for o in outlooks]
        beyond = [o.beyond(one) for o in outlooks]
        assert passes == sorted(passes) and beyond == sorted(beyond, reverse=True)
        assert not any(p and b for p, b in zip(passes, beyond, strict=True))
        assert passes[-1] and not beyond[-1] and beyond[0]


def test_too_few_examples_for_any_share():
    with pytest.raises(ToleranceError, match=r"65 certification examples cannot prove.* 66 are"):
        check_reachable(0.05, 65, 0.95, in_parts=True)
    check_reachable(0.05, 66, 0.95, in_parts=True)
    check_reachable(0.05, 59, 0.95)


def test_what_would_help_is_said_of_shares():
    first = candidate(8.0, 0.05)
    tested = SimpleNamespace(changed=12.0, deviation=0.06, n=300, upper_bound=0.05851)
    said = refusal([first], [first], [tested], 0.05, 0.95, "positions")
    assert "changed 4.00% of the positions of 300 certification examples" in said
    assert "which proves 5.86%" in said and "bring more data" in said
    needed = int(said.split("needs about ")[1].split()[0].replace(",", ""))
    assert needed == examples_for_mean(0.04, 0.06, 0.05)
    hopeless = SimpleNamespace(changed=18.0, deviation=0.06, n=300, upper_bound=0.08)
    assert "more data would not help" in refusal([first], [first], [hopeless], 0.05, 0.95)
    nothing = refusal([first], [], [], 0.05, 1, "positions")
    assert "best changed 4.00% of the positions of 200 search" in nothing


@pytest.mark.slow
@pytest.mark.parametrize("tolerance", [0.05, 0.1])
def test_a_language_model_keeps_its_next_tokens(tolerance):
    """Trained on real text, shrunk, and compared on text that nothing else has seen."""
    model, text = trained_language(), pieces()[0]
    seen, fresh = text[3000:5000, :LENGTH], text[5000:, :LENGTH]
    with torch.no_grad():
        right = (model(fresh).argmax(2) == text[5000:, 1:]).double().mean()
        often = text[5000:, 1:].flatten().bincount().max() / text[5000:, 1:].numel()
    assert right > 1.5 * often  # than by always saying what is most frequent
    result = shrink(model, list(seen.split(128)), tolerance, answer="tokens", calibration=256)
    assert result.certified and result.agreement.upper_bound <= tolerance
    assert result.macs["after"] < 0.9 * result.macs["before"]
    with torch.no_grad():
        changed = (model(fresh).argmax(2) != result.model(fresh).argmax(2)).double().mean(1)
    assert 0 < float(changed.mean()) < result.agreement.upper_bound
    checked = verify(model, result.model, [fresh])  # as it carries
    assert checked.labels == "tokens"
    assert checked.changed == pytest.approx(float(changed.sum()))
    # What so few examples cannot prove is refused.
    with pytest.raises(FcompressError):
        shrink(model, list(seen[:150].split(50)), 0.002, answer="tokens")
