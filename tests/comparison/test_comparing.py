"""compare(): every method on one network, each at its smallest within the tolerance."""

import json
import math
from functools import cache

import pytest
import torch
from cases import small_networks
from cases.trained import examples, trained, weights_of
from torch import nn
from torch.nn import functional as F

import fcompress
from fcompress.comparison.comparing import TRIES
from fcompress.comparison.options import NAMES, TORCH_PRUNING
from fcompress.comparison.searching import CLOSE, HOPELESS, Tried, bisect
from fcompress.comparison.torch_pruning import RIVALS
from fcompress.data.roles import roles_of
from fcompress.data.specs import load_data
from fcompress.errors import DataError

TOL = 0.1


def smooth(power: float, scale: float):
    """A method whose disagreement is scale * (amount / (1 - amount))^power, and its best amount."""

    def make(amount):
        changed = min(scale * (amount / (1 - amount)) ** power, 1.0)
        return Tried(round(1e6 * (1 - amount)), 1000 * changed)

    return make, 1 / (1 + (scale / 0.05) ** (1 / power))


@pytest.mark.parametrize("power", [1.0, 2.0, 3.5])
@pytest.mark.parametrize("scale", [1e-3, 1e-2, 0.2])
def test_the_search_finds_the_thinnest_network(power, scale):
    make, best = smooth(power, scale)
    found = bisect(make, 50, 100)
    macs = min(one.macs for one in found if one.within(50))
    assert (1 - best) * 1e6 - 1 <= macs <= (1 - best) * (1 + 1.5 * CLOSE) * 1e6
    assert len(found) <= 10
    assert len(bisect(make, 50, 4)) == 4


def test_the_search_when_nothing_or_everything_passes():
    assert not any(one.within(0.5) for one in bisect(lambda a: Tried(1, 1.0), 0.5, 20))
    assert min(one.macs for one in bisect(lambda a: Tried(round(1e4 * (1 - a)), 0), 5, 20)) < 105
    failing = bisect(lambda a: Tried(None, None, error="no"), 5, 20)
    assert len(failing) == HOPELESS


def test_the_names_are_those_of_the_methods():
    assert tuple(rival.name for rival in RIVALS) == TORCH_PRUNING
    assert len(set(NAMES)) == len(NAMES) == 13


@pytest.fixture(scope="module")
def model():
    return trained()


@pytest.fixture(scope="module")
def inputs():
    return examples(1000, seed=3)[0]


@pytest.fixture(scope="module")
def lines():
    return []


@pytest.fixture(scope="module")
def result(model, inputs, lines):
    state, before = torch.get_rng_state(), weights_of(model)
    found = fcompress.compare(model, inputs, TOL, progress=lambda event: lines.append(event))
    assert torch.equal(torch.get_rng_state(), state) and weights_of(model) == before
    return found


def test_every_method_has_a_row(result):
    assert {row.name for row in result.rows} == set(NAMES)
    macs = [row.macs for row in result.rows if row.macs is not None]
    assert macs == sorted(macs) and len(macs) > 8
    assert all((row.failed is None) == (row.macs is not None) for row in result.rows)
    assert result.search == 200 and result.test is None


def test_numbers_are_those_of_the_networks(result, model, inputs):
    search = search_of(inputs)
    for row in result.rows:
        if row.model is None:
            continue
        with torch.no_grad():
            changed = int((row.model(search).argmax(1) != model(search).argmax(1)).sum())
        assert row.changed == changed <= TOL * result.search
        cost = fcompress.count(row.model, search[:1])
        assert (row.macs, row.params) == (cost.macs, cost.params)
        assert row.latency_ms > 0
        made = [one for one in row.tried if one["macs"] is not None]
        good = [one for one in made if one["changed"] <= TOL * result.search]
        assert row.macs == min(one["macs"] for one in good)


def search_of(inputs):
    """The search split as `compare` cuts it."""
    return torch.cat([x for x, _ in roles_of(inputs).search])


def test_rivals_get_no_more_networks_than_ours(result):
    ours = max(len(result[name].tried) for name in ("prune", "factor", "hybrid"))
    assert result.candidates == ours
    assert all(len(result[name].tried) <= ours for name in TORCH_PRUNING)


def test_progress_says_which_method_is_done(result, lines):
    steps = [event for event in lines if event.stage == "comparing"]
    assert [event.done for event in steps] == [*range(14), 13]
    assert all(event.of == 13 for event in steps)
    assert any("tp-l2-layer, pruning ratio 0.900: " in str(event) for event in lines)


def test_a_result_is_plain_values(result, tmp_path):
    record = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert {row["name"] for row in record["rows"]} == set(NAMES)
    assert "model" not in record["rows"][0] and record["versions"]["torch-pruning"]
    result.report(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    for row in result.rows:
        assert row.name in page
        assert row.macs is None or f"{row.macs:,}" in page
    assert page.count("<script src") == 0 and "certification split was not used" in page


def test_the_same_again_gives_the_same_again(result, model, inputs):
    names = ["hybrid", "tp-random-layer", "tp-taylor-global"]
    # Alone a rival may try as many networks as ours did together.
    again = fcompress.compare(model, inputs, TOL, methods=names)
    for name in names:
        one, two = result[name], again[name]
        assert one.tried[: len(two.tried)] == two.tried[: len(one.tried)]


class Unreadable:
    """Examples that nobody may look at."""

    def __len__(self):
        return 100

    def __getattr__(self, name):
        raise AssertionError("the certification split was used")


def test_the_certification_split_is_not_used(monkeypatch):
    digits = load_data("digits")
    wide = fcompress.build("mlp", width=0.25, in_features=64, classes=10)
    steps = torch.optim.Adam(wide.parameters(), lr=1e-2)
    for _ in range(2):
        for x, y in digits.train.batches(64):
            steps.zero_grad()
            F.cross_entropy(wide(x), y).backward()
            steps.step()
    object.__setattr__(digits, "certification", Unreadable())
    names = ["factor", "tp-l2-layer"]
    found = fcompress.compare(wide, digits, 0.2, methods=names)
    assert found.test == len(digits.test)
    for row in found.rows:
        wanted = fcompress.verify(wide.eval(), row.model, digits.test)
        assert (row.test.same, row.test.n) == (wanted.same, wanted.n)
    with pytest.raises(AssertionError, match="was used"):  # the control
        fcompress.shrink(wide, digits, tol=0.2)


class Heads(nn.Module):
    """Two classes and three, from one body."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 24), nn.ReLU())
        self.first, self.second = nn.Linear(24, 2), nn.Linear(24, 3)

    def forward(self, x):
        found = self.body(x)
        return {"logits": self.first(found), "other": self.second(found)}


class Pair(nn.Module):
    """Reads two inputs."""

    def __init__(self):
        super().__init__()
        self.left, self.right, self.out = nn.Linear(6, 24), nn.Linear(4, 24), nn.Linear(24, 3)

    def forward(self, left, right):
        return self.out(torch.relu(self.left(left) + self.right(right)))


class Text(nn.Module):
    """Reads tokens by attention, whose widths have to fit its heads."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(20, 16)
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0)
        self.out = nn.Linear(16, 3)

    def forward(self, tokens):
        return self.out(self.layer(self.embedding(tokens)).mean(1))


def dense() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 12, 3, padding=1), nn.ReLU(),
        nn.Conv2d(12, 3, 1),
    )  # fmt: skip


def numbers() -> nn.Module:
    return nn.Sequential(
        nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 2)
    )


@cache
def drawn(*shape: int):
    return torch.randn(300, *shape, generator=torch.Generator().manual_seed(1))


KINDS = {
    "heads": (Heads, lambda: drawn(6), {}),
    "pair": (
        Pair,
        lambda: [
            {"left": a, "right": b}
            for a, b in zip(drawn(6).split(50), drawn(4).split(50), strict=True)
        ],
        {},
    ),
    "text": (Text, lambda: (drawn(7).abs() * 6).long() % 20, {}),
    "positions": (dense, lambda: drawn(1, 6, 6), {"answer": "positions"}),
    "sigmoid": (numbers, lambda: 4 * drawn(6), {"answer": "sigmoid"}),
    "regression": (numbers, lambda: drawn(6), {"answer": "regression", "within": "30%"}),
    "embedding": (numbers, lambda: drawn(6), {"answer": "embedding"}),
}


QUICK = ("heads", "pair", "sigmoid")


@pytest.mark.parametrize(
    "kind", [pytest.param(k, marks=() if k in QUICK else pytest.mark.slow) for k in KINDS]
)
def test_whatever_a_network_takes_and_gives(kind):
    build, data, values = KINDS[kind]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build().eval()
    names = ["factor", "tp-l2-layer", "tp-taylor-global"]
    found = fcompress.compare(network, data(), 0.4, methods=names, **values)
    assert found.search == 60
    for name in names:
        row = found[name]
        assert row.failed is None, row.failed
        assert row.macs < found.macs and row.changed <= 0.4 * 60
    one = next(iter(data())) if kind == "pair" else data()[:5]
    before, after = (
        (m(**one) if kind == "pair" else m(one)) for m in (network, found["tp-l2-layer"].model)
    )
    shapes = [
        [t.shape for t in (o.values() if isinstance(o, dict) else [o])] for o in (before, after)
    ]
    assert shapes[0] == shapes[1]


def test_a_method_that_fails_says_why():
    names = ["tp-l1-layer", "tp-bn-scale-global", "factor"]
    found = fcompress.compare(small_networks.build("PaddedShortcut"), drawn(3, 8, 8), methods=names)
    assert found["tp-l1-layer"].failed.startswith("IndexError: ")
    assert found["tp-l1-layer"].tried == ({"macs": None, "changed": None},) * HOPELESS
    assert found["factor"].macs < found.macs and found.rows[0].name == "factor"


def test_where_ours_can_do_nothing_the_others_still_stand():
    names = ["tp-bn-scale-global", "tp-l1-layer", "hybrid"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(6, 3))
    found = fcompress.compare(network, drawn(6), methods=names)
    assert found["hybrid"].failed == "nothing in this network can be excised: output layer"
    assert found["tp-bn-scale-global"].failed == "the network has no batch norm"
    assert found["tp-l1-layer"].macs == found.macs and found.candidates == TRIES


@pytest.mark.slow
def test_distilled_networks_stand_beside_the_others(model, inputs):
    names = ["factor", "tp-l2-layer"]
    few = {"methods": names, "distill": True, "distill_effort": 0.5, "calibration": 64}
    found = fcompress.compare(model, inputs[:400], 0.3, **few)
    assert {row.name for row in found.rows} == {"factor", "factor+distill", "tp-l2-layer"}
    assert "distilled" in found["factor+distill"].summary
    assert found["factor+distill"].macs < found.macs


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"methods": ["magic"]}, "'magic' is none of prune, factor"),
        ({"methods": []}, "expected some of prune"),
        ({"tol": 1.5}, "tol=1.5: expected a share"),
        ({"tol": math.nan}, "tol=nan: expected a share"),
    ],
)
def test_arguments_are_checked(model, inputs, values, said):
    with pytest.raises(ValueError, match=said):
        fcompress.compare(model, inputs, **values)


def test_too_few_examples_are_refused(model):
    with pytest.raises(DataError):
        fcompress.compare(model, drawn(6)[:3])


@pytest.mark.slow
def test_a_residual_network_on_digits():
    digits = load_data("digits")
    config = fcompress.default_config("resnet20", epochs=6, device="cpu")
    wide = fcompress.build("resnet20", in_channels=1, image_size=8, classes=10)
    wide = fcompress.train(wide, digits, config).model
    found = fcompress.compare(wide, digits, TOL)
    assert {row.name for row in found.rows} == set(NAMES) and found.test == len(digits.test)
    done = [row for row in found.rows if row.failed is None]
    assert len(done) > 8 and all(row.changed <= TOL * found.search for row in done)
    assert found["hybrid"].macs < min(row.macs for row in done if row.name in TORCH_PRUNING)
