"""Numbers, paths and kinds of the wrong type are one line in Python, too; numpy's are taken."""

from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn

import fcompress
from fcompress.compress.options import ShrinkOptions
from fcompress.errors import FcompressError
from fcompress.forward.answers.asked import asked
from fcompress.measure.options import AnalyzeOptions
from fcompress.training import TrainConfig

X = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
NO_NUMBERS = ["0.5", b"1", True, np.bool_(True), 1j, [0.5], (), {}, None.__class__, float("nan"),
    float("inf"), -1e400, 10**5000, np.array([0.5, 0.6]), torch.zeros(3), object()]  # fmt: skip
TAKEN = [0.5, np.float32(0.5), np.array(0.5), torch.tensor(0.5), Fraction(1, 2), Decimal("0.5")]
PLACES = {
    "tol": lambda value: ShrinkOptions(tol=value),
    "ratio": lambda value: ShrinkOptions(ratio=value),
    "confidence": lambda value: ShrinkOptions(confidence=value),
    "tol_label": lambda value: ShrinkOptions(tol_label=value),
    "distill_seconds": lambda value: ShrinkOptions(distill_seconds=value),
    "cosine": lambda value: asked("embedding", cosine=value),
    "threshold": lambda value: asked("pairs", threshold=value),
    "score": lambda value: asked("detections", score=value),
    "iou": lambda value: asked("detections", iou=value),
    "lr": lambda value: TrainConfig(lr=value),
    "weight_decay": lambda value: TrainConfig(weight_decay=value),
    "tolerance": lambda value: AnalyzeOptions(tolerances=[value]),
}


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()


@pytest.mark.parametrize("name", PLACES)
def test_what_is_no_number_is_refused_in_one_line(name):
    for value in NO_NUMBERS:
        with pytest.raises(FcompressError, match=f"{name}[ =]") as caught:
            PLACES[name](value)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


@pytest.mark.parametrize("name", PLACES)
def test_numbers_of_all_kinds_are_taken_as_pythons_own(name):
    for value in TAKEN:
        found = PLACES[name](value)
        held = found.tolerances[0] if name == "tolerance" else getattr(found, name)
        assert type(held) is float and held == 0.5


def test_how_far_outputs_may_move_can_be_one_number_for_each():
    net, each = network(), [0.1, 0.2, 0.3]
    for within in (each, tuple(each), np.array(each), torch.tensor(each), np.float32(0.1), "10%"):
        assert fcompress.verify(net, net, X, answer="regression", within=within).changed == 0
    for within in ([0.1, 0.2], (0.1,) * 4, np.array([0.1, -1, 0.1]), [], "x", "0%", [[0.1] * 3]):
        with pytest.raises((FcompressError, ValueError), match="within"):
            fcompress.verify(net, net, X, answer="regression", within=within)


PATHS = [None, 3, b"x.pt", [], object(), 1.5]


@pytest.mark.parametrize("path", PATHS)
def test_what_is_no_path_is_refused(path):
    net = fcompress.build("mlp", in_features=4, classes=3)
    for use in (
        lambda: fcompress.save(net, path),
        lambda: fcompress.load(path),
        lambda: fcompress.describe_file(path),
        lambda: fcompress.open_program(path),
        lambda: fcompress.export(net, path, X),
    ):
        with pytest.raises(FcompressError, match="no path of a file"):
            use()


@pytest.mark.parametrize("spec", [None, 3, b"digits", ["digits"], object()])
def test_what_is_no_data_is_refused(spec):
    with pytest.raises(FcompressError, match="is no dataset"):
        fcompress.load_data(spec)


def test_functions_of_users_that_say_something_else():
    net = network()
    for same in (lambda a, b: None, lambda a, b: 1 / 0, lambda a, b: exit(3), lambda a, b: "x"):
        with pytest.raises(FcompressError, match="the function <lambda>") as caught:
            fcompress.verify(net, net, X, same=same)
        assert "\n" not in str(caught.value)
    with pytest.raises(FcompressError, match=r"test_arguments\.py, line .*ZeroDivisionError"):
        fcompress.verify(net, net, X, groups=(1 / 0 for _ in range(3)))


def test_training_with_something_else():
    net, data, config = network(), fcompress.load_data("digits"), TrainConfig(epochs=1)
    for given in ((None, data, config), (net, X, config), (net, data, 3), ("m.pt", data, config)):
        with pytest.raises(FcompressError, match="expected"):
            fcompress.train(*given)


@pytest.mark.parametrize("thing", [None, 3, "m.pt", nn.Linear, X, [3]])
def test_what_is_no_network_is_refused(thing, tmp_path):
    calls = [
        lambda: fcompress.shrink(thing, X, tol=0.3),
        lambda: fcompress.analyze(thing, X),
        lambda: fcompress.export(thing, tmp_path / "a.pt2", X),
    ]
    if thing is not None:
        calls.append(lambda: fcompress.export(network(), tmp_path / "a.pt2", X, original=thing))
    for call in calls:
        with pytest.raises(FcompressError, match=r"expected a torch\.nn\.Module"):
            call()


@pytest.mark.parametrize("progress", [3, "x", [print]])
def test_who_is_told_has_to_be_a_function(progress):
    for call in (fcompress.shrink, fcompress.analyze):
        with pytest.raises(FcompressError, match="progress="):
            call(network(), X, progress=progress)
