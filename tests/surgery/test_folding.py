"""Weights that are computed at every call become plain ones, and the network stays what it was."""

import warnings

import pytest
import torch
from cases.trained import examples
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize, prune

import fcompress
from fcompress.structure.groups import find_groups
from fcompress.surgery.folding import fold_weights, folded_weights
from fcompress.surgery.preparation import prepare


def old(wrap):
    def made(layer):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return wrap(layer)

    return made


class Symmetric(nn.Module):
    def forward(self, weight):
        return weight.triu() + weight.triu(1).T


class Noisy(nn.Module):
    def forward(self, weight):
        return weight + torch.randn_like(weight)


class Standardised(nn.Conv2d):
    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


def masked(layer):
    return prune.ln_structured(layer, "weight", amount=0.3, n=2, dim=0)


def own(layer):
    parametrize.register_parametrization(layer, "weight", Symmetric())
    return layer


WRAPS = {
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "older weight_norm": old(nn.utils.weight_norm),
    "older spectral_norm": old(nn.utils.spectral_norm),
    "mask": masked,
    "one of the user's": own,
}


def network(wrap, width=24):
    torch.manual_seed(0)
    return nn.Sequential(
        wrap(nn.Linear(6, width)) if wrap is not own else nn.Linear(6, width),
        nn.ReLU(),
        wrap(nn.Linear(width, width)),
        nn.ReLU(),
        nn.Linear(width, 4),
    )


@pytest.mark.parametrize("kind", WRAPS)
def test_a_computed_weight_becomes_a_plain_one(kind):
    model, x = network(WRAPS[kind]).train(), torch.randn(16, 6)
    model(x).sum().backward()
    model.eval()
    before, names = model(x).detach(), dict(model.named_parameters())
    copied = prepare(model, x)
    torch.testing.assert_close(copied(x), before)
    assert {"0.weight", "2.weight", "4.weight"} <= set(dict(copied.named_parameters()))
    assert set(dict(model.named_parameters())) == set(names), "the caller's network is left alone"
    torch.testing.assert_close(model(x), before)
    groups = find_groups(copied, x[:4]).groups
    assert [(g.name, g.size) for g in groups] == [("0", 24), ("2", 24)]


def test_what_a_file_brings_is_not_folded():
    model = network(parametrizations.weight_norm)
    given = [name for name, _ in model.named_parameters() if name.startswith("0.")]
    assert fold_weights(model, given) == ["2.weight"]
    assert parametrize.is_parametrized(model[0])


def test_a_weight_that_is_another_each_time_is_left():
    model = nn.Sequential(nn.Linear(6, 4))
    parametrize.register_parametrization(model[0], "weight", Noisy())
    assert fold_weights(model) == []
    assert parametrize.is_parametrized(model[0])


def test_modes_and_shared_memory_return():
    model = network(parametrizations.spectral_norm).train()
    fold_weights(model)
    assert all(module.training for module in model.modules())
    shared = network(parametrizations.orthogonal).eval()
    state = {name: tensor.clone() for name, tensor in shared.state_dict().items()}
    prepare(shared, torch.zeros(2, 6), share=True)
    for name, tensor in shared.state_dict().items():
        assert torch.equal(tensor, state[name]), name


@pytest.mark.parametrize("kind", ["weight_norm", "mask"])
def test_shrunk_saved_and_opened_again(kind, tmp_path):
    x, y = examples()
    model = network(WRAPS[kind])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    result = fcompress.shrink(model.eval(), x, tol=0.1)
    assert result.folded == ("0.weight", "2.weight")
    assert result.params["after"] < result.params["before"]
    code = tmp_path / "code.py"
    code.write_text(
        "import warnings, torch\nfrom torch import nn\n"
        "from torch.nn.utils import parametrizations, prune\n"
        "def masked(l): return prune.ln_structured(l, 'weight', amount=0.3, n=2, dim=0)\n"
        f"wrap = {'masked' if kind == 'mask' else 'parametrizations.weight_norm'}\n"
        "def make(): return nn.Sequential(wrap(nn.Linear(6, 24)), nn.ReLU(), "
        "wrap(nn.Linear(24, 24)), nn.ReLU(), nn.Linear(24, 4))\n"
    )
    path = tmp_path / "small.pt"
    fcompress.save(result.model, path)
    opened = fcompress.load(path, arch=f"{code}:make")
    torch.testing.assert_close(opened(x[:8]), result.model(x[:8]))


def test_standardised_convolutions_are_named_too():
    model = nn.Sequential(Standardised(1, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 3)).eval()
    copied = prepare(model, torch.randn(2, 1, 8, 8))
    assert folded_weights(model, copied) == ("0.weight",)
