"""Networks that hold on to something that cannot be copied."""

import threading
import warnings

import pytest
import torch
from cases.trained import examples
from torch import nn

import fcompress
from fcompress.errors import FcompressError
from fcompress.forward.copying import deep_copy


class Keeps(nn.Module):
    """A network that keeps something of every pass, in one of several ways."""

    def __init__(self, how):
        super().__init__()
        self.a, self.b = nn.Linear(6, 24), nn.Linear(24, 4)
        self.how, self.last = how, None

    def forward(self, x):
        hidden = self.a(x).relu()
        self.last = {
            "attribute": lambda: hidden,
            "list": lambda: [hidden, None],
            "nested": lambda: {"maps": [(hidden, 1)]},
            "loss": lambda: hidden.square().mean(),
        }[self.how]()
        return self.b(hidden)


def old_norm():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.Sequential(nn.utils.weight_norm(nn.Linear(6, 24)), nn.ReLU(), nn.Linear(24, 4))


MODELS = {how: lambda how=how: Keeps(how) for how in ("attribute", "list", "nested", "loss")}
MODELS["old norm"] = old_norm


def after_a_step(name):
    torch.manual_seed(0)
    model, x = MODELS[name](), torch.randn(8, 6)
    model(x).sum().backward()
    return model, x


@pytest.mark.parametrize("name", MODELS)
def test_a_copy_has_the_values_and_no_history(name):
    model, x = after_a_step(name)
    with pytest.raises(RuntimeError, match="deepcopy"):
        __import__("copy").deepcopy(model)
    copied = deep_copy(model)
    torch.testing.assert_close(copied(x), model(x))
    own = {p.data_ptr() for p in model.parameters()}
    assert not own & {p.data_ptr() for p in copied.parameters()}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("method", ["prune", "hybrid"])
def test_it_can_be_shrunk_after_a_step_of_training(name, method):
    model, _ = after_a_step(name)
    x, _ = examples(600)
    last = getattr(model, "last", None)
    before = [p.clone() for p in model.parameters()]
    result = fcompress.shrink(model.eval(), x, tol=0.2, method=method)
    assert result.macs["after"] < result.macs["before"]
    assert getattr(model, "last", None) is last, "the caller's network is as it was"
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


def test_what_cannot_be_copied_is_one_line():
    model = nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 4))
    model.lock = threading.Lock()
    with pytest.raises(FcompressError, match=r"Sequential cannot be copied: .*keep what cannot"):
        deep_copy(model)
