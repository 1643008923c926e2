"""Units that a ReLU silences: no correlation behind it, all of it before it."""

import pytest
import torch
from cases.recipe_runs import recipe, run
from torch import nn

from fcompress.data import load_data
from fcompress.errors import FcompressError
from fcompress.experiments import recipe as recipes
from fcompress.experiments.trials.trial import responses
from fcompress.measure.analysis import analyze

ALIVE, SILENCED = 6, 10


@pytest.fixture(scope="module")
def splits():
    return load_data("digits")


@pytest.fixture
def network():
    """Six units of their own; ten that answer to one direction, always below zero."""
    torch.manual_seed(0)
    hidden = nn.Linear(64, ALIVE + SILENCED)
    with torch.no_grad():
        common = torch.randn(64)
        hidden.weight[ALIVE:] = common * torch.linspace(0.5, 2, SILENCED)[:, None]
        hidden.bias[ALIVE:] = -1000.0
    return nn.Sequential(nn.Flatten(), hidden, nn.ReLU(), nn.Linear(ALIVE + SILENCED, 10)).eval()


def test_silenced_units_correlate_before_the_nonlinearity_only(network, splits):
    before = responses(network, splits, {"layer": "1", "seed": 0})
    assert before["examples"] == len(splits.need("test")) and before["name"] == "1"
    assert before["units"] == before["correlations"]["units"] == ALIVE + SILENCED
    behind = analyze(network, splits, groups=False).redundancy.layers[0]
    assert set(range(ALIVE, ALIVE + SILENCED)) <= set(behind.dead)
    assert behind.correlations.units <= ALIVE
    alike = SILENCED * (SILENCED - 1) // 2
    assert before["correlations"]["histogram"][-1] == alike
    assert before["correlations"]["quantiles"][-1] == pytest.approx(1, abs=1e-4)
    assert before["correlations"]["mean"] > alike / before["correlations"]["pairs"]


def test_the_first_examples_only(network, splits):
    few = responses(network, splits, {"layer": "1", "examples": 50})
    assert few["examples"] == 50
    assert few["correlations"] != responses(network, splits, {"layer": "1"})["correlations"]


def test_the_layer_is_needed_and_must_be_there(tmp_path):
    path = tmp_path / "own.toml"
    path.write_text(
        'family = "mlp"\ndata = "digits"\ntrain = "none"\nmeasure.responses = {}\n[smoke]\n'
    )
    with pytest.raises(FcompressError, match=r"measure\.responses: layer is missing"):
        recipes.read(str(path), "smoke")
    layer = "--set", 'measure.responses.layer="nosuch"'
    result = run(path, tmp_path / "out", *layer, code=1)
    assert "runs no layer 'nosuch'" in result.stderr and "Traceback" not in result.stderr


def test_page_and_figure_show_both(tmp_path):
    small = ["--set", "widths=0.0625", "--set", 'only=["He"]', "--set", "seeds=2"]
    run("fig2", tmp_path / "out", *small)
    page = (tmp_path / "out" / "summary.md").read_text()
    assert "before the nonlinearity" in page and "Of conv2." in page
    figure = (tmp_path / "out" / "figures" / "responses.svg").read_text()
    assert "conv2, before its nonlinearity" in figure
    assert recipe("report", tmp_path / "out").exit_code == 0
