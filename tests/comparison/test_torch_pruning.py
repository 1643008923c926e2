"""torch-pruning as a rival: what it makes, and that it leaves everything else as it was."""

import copy
import random
import warnings
from functools import cache

import pytest
import torch
from cases.trained import examples, trained, weights_of
from torch import nn

import fcompress
from fcompress.comparison import torch_pruning as pruning
from fcompress.errors import UnsupportedNetworkError
from fcompress.forward.answers.scoring import Scoring
from fcompress.forward.predictor import Predictor


@cache
def network():
    model = trained()
    model.zero_grad(set_to_none=True)
    return model


def given(model=None, inputs=None, **values):
    inputs = examples(512, seed=9)[0] if inputs is None else inputs
    return pruning.Given(Predictor(model or network(), **values), inputs.split(64), 0)


def test_recalibration_takes_the_mean_over_batches():
    norm = nn.BatchNorm1d(3, momentum=0.1)
    model = nn.Sequential(nn.Dropout(0.5), norm)
    norm.running_mean.fill_(7.0)
    x = torch.randn(64, 3, generator=torch.Generator().manual_seed(0)) * 2 + 1
    pruning.recalibrate(model, x.split(16))
    variances = torch.stack([b.var(0) for b in x.split(16)]).mean(0)
    torch.testing.assert_close(norm.running_mean, x.mean(0))
    torch.testing.assert_close(norm.running_var, variances)
    assert norm.momentum == 0.1 and not any(m.training for m in model.modules())


@pytest.mark.parametrize("rival", pruning.RIVALS, ids=lambda r: r.name)
def test_it_makes_thin_networks(rival):
    one = given()
    model = one.original.network
    before = weights_of(model)
    states = torch.get_rng_state(), random.getstate()
    thin = rival.make(one, 0.5)
    assert weights_of(model) == before and all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), states[0]) and random.getstate() == states[1]
    assert all(p.grad is None for p in thin.parameters())
    wide, cost = (fcompress.count(m, one.batches[0]) for m in (model, thin))
    assert cost.macs < 0.6 * wide.macs
    assert thin(one.batches[0]).shape == model(one.batches[0]).shape
    assert weights_of(rival.make(one, 0.5)) == weights_of(thin)
    assert fcompress.count(rival.make(one, 0.8), one.batches[0]).macs < cost.macs


def test_it_is_recalibrated():
    one = given()
    thin = pruning.Pruning("l2", False).make(one, 0.5)
    norm = next(m for m in thin.modules() if isinstance(m, nn.BatchNorm1d))
    layer = next(m for m in thin.modules() if isinstance(m, nn.Linear))
    seen = layer(torch.cat(list(one.batches)))
    torch.testing.assert_close(norm.running_mean, seen.mean(0), rtol=1e-4, atol=1e-5)


def test_places_of_response_normalisation_stay():
    model = fcompress.build("alexnet", width=0.125, in_channels=1, image_size=12).eval()
    x = torch.randn(4, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    thin = pruning.Pruning("l2", False).make(given(model, x), 0.5)
    rows = {tuple(row.tolist()): i for i, row in enumerate(model.conv1.weight.flatten(1))}
    kept = [rows[tuple(row.tolist())] for row in thin.conv1.weight.flatten(1)]
    assert thin.lrn1.positions.tolist() == kept and len(kept) == 6
    assert thin(x).shape == (4, 10)


def test_batch_norm_scale_needs_batch_norm():
    plain = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)).eval()
    with pytest.raises(UnsupportedNetworkError, match="no batch norm"):
        pruning.Pruning("bn-scale", True).make(given(plain), 0.5)


def test_taylor_gradients_need_no_labels():
    one = given()
    x = torch.cat(list(one.batches))
    model = one.original.network
    scores = model(x)
    loss = nn.functional.cross_entropy(scores, scores.argmax(1), reduction="sum")
    wanted = torch.autograd.grad(loss, list(model.parameters()))
    for gradient, (name, _) in zip(wanted, model.named_parameters(), strict=True):
        torch.testing.assert_close(one.gradients[name], gradient, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", ["sigmoid", "regression"])
def test_taylor_weighs_answers_that_are_no_classes(kind):
    one = given(scoring=Scoring(labels=kind, within=0.1 if kind == "regression" else None))
    assert all(bool(g.isfinite().all()) for g in one.gradients.values())
    assert any(float(g.abs().max()) > 0 for g in one.gradients.values())
    again = given(scoring=one.original.scoring).gradients
    assert all(torch.equal(again[name], g) for name, g in one.gradients.items())


def test_frozen_networks_are_pruned_too():
    model = copy.deepcopy(network())
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    one, other = given(model), given()
    for score in ("l1", "taylor"):
        rival = pruning.Pruning(score, True)
        assert weights_of(rival.make(one, 0.5)) == weights_of(rival.make(other, 0.5))
    assert not any(p.requires_grad for p in model.parameters())


class Loud(nn.Linear):
    """Prints and warns whenever it runs."""

    def forward(self, x):
        print("printed")
        warnings.warn("warned", stacklevel=1)
        return super().forward(x)


def test_what_is_printed_while_it_runs_is_lost(capsys):
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), Loud(8, 4)).eval()
    one = given(model)
    with pruning._apart(0, torch.device("cpu")):
        model(one.batches[0])
    assert capsys.readouterr() == ("", "")
    with pytest.warns(UserWarning, match="warned"):  # the control
        model(one.batches[0])
    assert capsys.readouterr().out == "printed\n"


def test_a_graph_that_grows_without_end_is_given_up(monkeypatch):
    monkeypatch.setattr(pruning, "MOST_DEPENDENCIES", 0)
    has = pruning.torch_pruning.dependency.Group.has_pruning_op
    with pytest.raises(UnsupportedNetworkError, match="more than 0 dependencies"):
        pruning.Pruning("l1", True).make(given(), 0.5)
    assert pruning.torch_pruning.dependency.Group.has_pruning_op is has


def test_outputs_that_would_change_their_shape_are_a_reason():
    one = given()
    wrong = pruning.Given(one.original, one.batches, 0, outputs=("0",))
    with pytest.raises(UnsupportedNetworkError, match=r"shape of an output: \[2, 2\], before"):
        pruning.Pruning("l1", False).make(wrong, 0.5)


def test_a_reason_is_what_went_wrong_first():
    try:
        try:
            raise RuntimeError("shape\n is invalid")
        except RuntimeError as error:
            raise fcompress.DataError("give other data") from error
    except fcompress.DataError as error:
        assert pruning.reason_of(error) == "RuntimeError: shape is invalid"
    assert pruning.reason_of(fcompress.DataError("no data")) == "no data"
