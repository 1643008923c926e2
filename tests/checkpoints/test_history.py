"""What a file says was done to its network is checked when it is read."""

import copy
import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from fcompress import build, export, load, save, shrink
from fcompress.cli import main
from fcompress.data import load_data
from fcompress.errors import CheckpointError
from fcompress.exports.describe import describe_file
from fcompress.training import TrainConfig, train

NAN = float("nan")
DAMAGE = {
    ("shrink", "method"): [3, None, "x" * 2000],
    ("shrink", "certified"): ["yes", 1, None],
    ("shrink", "tolerance"): ["5%", NAN, -1, 2, True, [0.05]],
    ("shrink", "void"): [3, ["x"]],
    ("shrink", "params"): [3, {}, {"before": "x", "after": 1}, {"before": 1.5, "after": 1}],
    ("shrink", "macs"): [None, {"before": -1, "after": 1}],
    ("shrink", "output"): [1.5, [], True],
    ("shrink", "seed"): ["x", -1, 2**70],
    ("shrink", "versions"): [3, {"torch": 3}, []],
    ("shrink", "certificate"): [3, [], {"compressed": 3}],
    ("shrink", "data"): [3, [1], {"spec": 3}, {"seed": "x"}],
    ("shrink", "agreement"): [None, 3, []],
    ("shrink", "agreement", "n"): ["x", 0, -5, 1.5, NAN, 10**30],
    ("shrink", "agreement", "same"): ["x", -1, NAN, 10**9],
    ("shrink", "agreement", "lower_bound"): ["x", NAN, 2, -0.5, None],
    ("shrink", "agreement", "confidence"): ["x", 0, 1, NAN, None],
    ("shrink", "agreement", "answer"): [3, {}, {"kind": 3}, {"kind": "nonsense"}],
    ("shrink", "agreement", "answer", "within"): ["x", -1, [], [0], {}, 0.1],
    ("shrink", "agreement", "answer", "cosine"): ["x", 2, 0.5],
    ("shrink", "agreement", "answer", "pad"): ["x", -1, 3],
    ("shrink", "agreement", "answer", "threshold"): ["x", 9, 0.5],
    ("train", "config"): [3, [], {"lr": [1]}],
    ("train", "epochs"): [3, [], [3], [None]],
    ("train", "epochs", 0, "train_accuracy"): ["x", None, NAN, 30],
    ("train", "epochs", 0, "epoch"): ["x", 0],
}
CASES = [(place, value) for place, values in DAMAGE.items() for value in values]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A network that was trained and compressed, in a file."""
    at = tmp_path_factory.mktemp("made")
    splits = load_data("digits")
    model = build("mlp", in_features=64, classes=10, width=0.5)
    model = train(model, splits, TrainConfig(epochs=1, device="cpu")).model
    result = shrink(model, splits, ratio=0.9, method="factor")
    save(model, at / "wide.pt")
    save(result.model, at / "thin.pt")
    export(result.model, at / "thin.safetensors", splits.search.batch(torch.arange(20))[0])
    return at


def damaged(history, place, value):
    """The history with one field replaced."""
    found = copy.deepcopy(history)
    action, *names = place
    entry = next(e for e in found if e["action"] == action)
    for name in names[:-1]:
        entry = entry[name]
    entry[names[-1]] = value
    return found


def written(made, to, history, **changes):
    content = {**torch.load(made / "thin.pt", weights_only=True), **changes}
    torch.save({**content, "history": history}, to)


@pytest.mark.parametrize(("place", "value"), CASES)
def test_a_damaged_field_is_named(made, tmp_path, place, value):
    history = torch.load(made / "thin.pt", weights_only=True)["history"]
    path = tmp_path / "m.pt"
    written(made, path, damaged(history, place, value))
    with pytest.raises(CheckpointError, match=r"history\[[01]\]") as caught:
        load(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


@pytest.mark.parametrize("versions", [3, [], {"torch": 3}, {"torch": None}, None])
def test_damaged_versions_are_named(made, tmp_path, versions):
    written(made, tmp_path / "m.pt", [], versions=versions)
    with pytest.raises(CheckpointError, match="versions"):
        load(tmp_path / "m.pt")


def test_whole_histories_are_read(made, tmp_path):
    for name in ("wide.pt", "thin.pt"):
        assert load(made / name).origin["history"]
    # What others write is theirs.
    strange = [[], "x", 3, None, {"action": 3}, {"action": []}, {"a": 1}, {"action": "paint"}]
    for history in (strange, [{"action": "shrink"}], [{"action": "train"}]):
        written(made, tmp_path / "m.pt", history)
        assert load(tmp_path / "m.pt").origin["history"] == history
        assert CliRunner().invoke(main, ["show", str(tmp_path / "m.pt")]).exit_code == 0


def test_what_is_damaged_is_not_saved_either(tmp_path):
    model = build("mlp", in_features=4, classes=3)
    with pytest.raises(CheckpointError, match="tolerance"):
        save(model, tmp_path / "m.pt", history=[{"action": "shrink", "tolerance": "5%"}])


@pytest.mark.parametrize("ending", ["pt", "safetensors"])
@pytest.mark.parametrize(
    ("place", "value"), [(p, v[0]) for p, v in DAMAGE.items() if p[0] == "shrink"][::4]
)
def test_every_command_says_it_in_one_line(made, tmp_path, ending, place, value):
    path = tmp_path / f"m.{ending}"
    history = damaged(torch.load(made / "thin.pt", weights_only=True)["history"], place, value)
    if ending == "pt":
        written(made, path, history)
    else:
        record = json.loads(_metadata(made / "thin.safetensors")["fcompress"])
        text = json.dumps({**record, "history": history})
        save_file(load_file(made / "thin.safetensors"), path, {"fcompress": text})
        with pytest.raises(CheckpointError, match=r"history\[1\]"):
            describe_file(path)
    wide = str(made / "wide.pt")
    for words in (
        ["show", str(path)],
        ["analyze", str(path)],
        ["verify", wide, str(path)],
        ["gain", wide, str(path)],
        ["shrink", str(path)],
        ["export", str(path), "--to", str(tmp_path / "x.safetensors")],
    ):
        ran = CliRunner().invoke(main, words)
        assert ran.exit_code == 1, words
        assert "history[1]" in ran.output and "bug" not in ran.output
        assert len(ran.output.strip().splitlines()) == 1


def _metadata(path):
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return file.metadata()


def test_random_damage_is_one_error_or_none(made, tmp_path):
    """Any value anywhere in a history: `CheckpointError`, or read and shown."""
    history = torch.load(made / "thin.pt", weights_only=True)["history"]
    rng = np.random.default_rng(0)
    nasty = [None, 3, -1, 10**30, NAN, float("inf"), "x", "", [], {}, [None], {"a": 1}, True, 0.5]
    refused = 0
    for _ in range(50):
        found = copy.deepcopy(history)
        holder, key = found, int(rng.integers(len(found)))
        for _ in range(int(rng.integers(1, 5))):
            inner = holder[key]
            if not isinstance(inner, dict | list) or not inner:
                break
            keys = list(inner) if isinstance(inner, dict) else list(range(len(inner)))
            holder, key = inner, keys[int(rng.integers(len(keys)))]
        holder[key] = nasty[int(rng.integers(len(nasty)))]
        path = tmp_path / "m.pt"
        written(made, path, found)
        try:
            load(path)
        except CheckpointError as error:
            assert "\n" not in str(error)
            refused += 1
        ran = CliRunner().invoke(main, ["show", str(path)])
        assert ran.exit_code in (0, 1) and "bug of" not in ran.output, (key, holder[key])
    assert 5 < refused < 50
