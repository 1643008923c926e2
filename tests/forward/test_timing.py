"""How long networks take: turns, medians and means, on a clock that the networks move."""

import pytest
import torch
from torch import nn

from fcompress.errors import UnsupportedNetworkError
from fcompress.forward import running
from fcompress.forward.timing import latency, single_latency, timed


class Clock(nn.Module):
    """Lets time pass: each run takes as long as the next number says."""

    def __init__(self, times, now):
        super().__init__()
        self.times, self.now, self.seen = iter(times), now, []

    def forward(self, x):
        self.now[0] += next(self.times)
        self.seen.append((self.now[0], float(x.flatten()[0])))
        return x


@pytest.fixture
def now(monkeypatch):
    found = [0.0]
    monkeypatch.setattr(running, "now", lambda device: found[0])
    return found


def test_latency_is_the_median_of_interleaved_runs_after_warming_up(now):
    slow = Clock([9.0, 9.0, 0.5, 0.1, 0.3, 0.2, 7.0], now)
    fast = Clock([9.0, 9.0, 0.01, 0.04, 0.02, 0.05, 0.03], now)
    assert latency([slow, fast], torch.zeros(1), runs=5, seconds=60) == pytest.approx([300, 30])
    assert next(slow.times, None) is next(fast.times, None) is None
    order = sorted([*((at, "slow") for at, _ in slow.seen), *((at, "fast") for at, _ in fast.seen)])
    assert [name for _, name in order] == ["slow", "fast"] * 7


def test_quartiles_are_those_of_all_runs(now):
    model = Clock([9.0, 9.0, 1.0, 2.0, 3.0, 4.0, 5.0], now)
    (found,) = timed([model], [torch.zeros(1)], runs=5)
    assert (found.lower, found.median, found.upper) == pytest.approx((2000, 3000, 4000))
    assert (found.average, found.runs, found.batches) == (pytest.approx(3000), 5, 1)


def test_the_average_is_over_batches_and_no_accident_counts(now):
    # Of four batches the last takes long each time; one run of the first is an accident.
    one_round = [1.0, 1.0, 1.0, 9.0]
    model = Clock([0.0, 0.0, *one_round, 50.0, 1.0, 1.0, 9.0, *one_round], now)
    batches = [torch.full((1,), float(number)) for number in range(4)]
    (found,) = timed([model], batches, runs=3, seconds=1e6)
    assert found.average == pytest.approx(3000) and found.median == pytest.approx(1000)
    assert [batch for _, batch in model.seen][2:] == [0.0, 1.0, 2.0, 3.0] * 3
    again = Clock([0.0, 0.0, *one_round * 3], now)
    assert single_latency([again], torch.arange(4.0)) == pytest.approx([3000])


def test_it_stops_when_the_time_is_up(now):
    model = Clock([0.0] * 100, now)
    latency([model], torch.zeros(1), runs=90, seconds=0)
    assert len(model.seen) == 2 + 5
    slow = Clock([1.0] * 100, now)
    (found,) = timed([slow], [torch.zeros(1)] * 20, seconds=3.0)
    assert found.batches == 8 and found.runs == 24


def test_what_a_network_is_given_stays_as_it_is():
    class InPlace(nn.Module):
        def forward(self, x):
            return x.add_(1)

    inputs = torch.zeros(3)
    latency([InPlace()], inputs, runs=2, seconds=0)
    assert not inputs.any()
    with pytest.raises(UnsupportedNetworkError, match=r"does not run on an example of shape"):
        latency([nn.Linear(3, 2)], torch.zeros(1, 4))
