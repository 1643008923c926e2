"""Networks whose draws, counters and dependence on the batch show late or in large batches."""

import random
import secrets
import sys
import time
from datetime import datetime
from time import time_ns as clock

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fcompress.forward.hidden import clocks_ahead
from fcompress.forward.predictor import Predictor
from fcompress.forward.repeats import unsteadiness

datetime_before = datetime
X = torch.randn(300, 16, generator=torch.Generator().manual_seed(0))


class Own(nn.Module):
    """Two layers and what a function makes of what is between them."""

    def __init__(self, between, **own):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(16, 32), nn.Linear(32, 5)
        self.between = (between,)
        self.register_buffer("kept", torch.zeros(()))
        self.count = 0
        for name, value in own.items():
            setattr(self, name, value)

    def forward(self, x):
        return self.last(self.between[0](self, self.first(x).relu()))


def counted(own, hidden):
    own.count += 1
    return hidden * (2 if own.count % 20 == 0 else 1)


def in_a_buffer(own, hidden):
    own.kept += 1
    return hidden * (2 if int(own.kept) % 50 == 0 else 1)


def drifting(own, hidden):
    own.kept.add_(hidden.mean(), alpha=1e-5)
    return hidden - own.kept


def cached(own, hidden):
    own.seen = hidden
    own.count += 1
    own.kept += 1
    return hidden


def advanced(own):
    own.count += 1
    return own.count


DRAWING = {
    "rarely, Python": (lambda o, h: h * (1 + (random.random() < 0.2)), {}),
    "rarely, numpy": (lambda o, h: h * (1 + (np.random.rand() < 0.2)), {}),  # noqa: NPY002
    "numpy of its own": (
        lambda o, h: h * (1 + (o.g.random() < 0.2)),
        {"g": np.random.default_rng(0)},
    ),
    "Python of its own": (lambda o, h: h * (1 + (o.g.random() < 0.2)), {"g": random.Random(0)}),
    "torch of its own": (
        lambda o, h: h * (1 + (float(torch.rand((), generator=o.g)) < 0.2)),
        {"g": torch.Generator()},
    ),
    "of the system": (lambda o, h: h * (1 + (secrets.randbelow(5) == 0)), {}),
    "functional dropout": (lambda o, h: F.dropout(h, 0.01, training=True), {}),
    "a counter": (counted, {}),
    "a counter in a buffer": (in_a_buffer, {}),
    "a buffer that drifts": (drifting, {}),
}
SLOW = {
    "the hour": lambda o, h: h * (1 + int(time.time()) // 3600 % 2),
    "the minute, by another name": lambda o, h: h * (1 + clock() // (60 * 10**9) % 2),
    "seconds since it was made": lambda o, h: h if time.monotonic() - o.made < 30 else h * 2,
    "the day": lambda o, h: h * (1 + datetime.now().month % 7),
    "every thousandth pass": lambda o, h: h * (1 + (advanced(o) % 1000 == 0)),
    "after 5,000 passes": lambda o, h: h * (1 + (advanced(o) > 5000)),
    "in a buffer": lambda o, h: h * (1 + (float(o.kept.add_(1)) > 300)),
}
MIXING = {
    "mean of large batches": lambda o, h: h - h.mean(0) if len(h) > 64 else h,
    "the usual size only": lambda o, h: h * 2 if len(h) == 256 else h,
    "one example alone": lambda o, h: h * 2 if len(h) == 1 else h,
    "from the tenth on": lambda o, h: torch.cat([h[:9], h[9:] + h[:1]]) if len(h) > 9 else h,
    "statistics": lambda o, h: F.batch_norm(h, None, None, training=True),
}
STEADY = {
    "nothing": lambda o, h: h,
    "what is kept is not used": cached,
    "dropout that is off": lambda o, h: F.dropout(h, 0.5, training=o.training),
    "softmax of an example": lambda o, h: h.softmax(1),
    "a counter for a log": lambda o, h: (advanced(o) % 100 == 0 and None) or h,
    "a clock for a log": lambda o, h: (setattr(o, "at", (clock(), datetime.now())), h)[1],
    "what is warmed up once": lambda o, h: h if setattr(o, "ready", True) is None else None,
}


def of(between, **own):
    return unsteadiness(Predictor(Own(between, **own).eval()), X)


@pytest.mark.parametrize("name", DRAWING)
def test_what_a_network_draws_or_counts_by_itself_is_found(name):
    between, own = DRAWING[name]
    found = of(between, **own)
    assert found is not None and found.draws


@pytest.mark.parametrize("name", SLOW)
def test_what_moves_slowly_is_found_with_clocks_and_counters_further_on(name):
    before = time.time
    found = of(SLOW[name], made=time.monotonic())
    assert found is not None and found.draws
    assert time.time is before and datetime is datetime_before


def test_other_code_keeps_its_clocks():
    """What waits in another thread must not be over at once."""
    seen = []

    class Asks(nn.Module):
        def forward(self, x):
            seen.append((time.monotonic(), other(), clock() // 10**9, datetime.now().year))
            return x

    other = vars(__import__("time"))["monotonic"]
    with clocks_ahead(Asks(), 15_811_261):
        elsewhere = sys.modules["time"].monotonic()
        Asks()(torch.zeros(1))
    ((ahead, true, _, _),) = seen
    assert ahead - true > 15_000_000 and abs(elsewhere - true) < 60
    assert abs(time.monotonic() - true) < 60


@pytest.mark.parametrize("name", MIXING)
def test_dependence_on_the_batch_is_found_at_other_sizes(name):
    found = of(MIXING[name])
    assert found is not None and not found.draws


@pytest.mark.parametrize("name", STEADY)
def test_what_repeats_itself_is_left_alone(name):
    assert of(STEADY[name]) is None


def test_buffers_and_random_states_are_as_before():
    network = Own(in_a_buffer).eval()
    before = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    assert unsteadiness(Predictor(network), X) is not None
    assert float(network.kept) == 0
    assert random.getstate() == before[0]
    assert (np.random.get_state()[1] == before[1]).all()  # noqa: NPY002
    assert torch.get_rng_state().equal(before[2])
