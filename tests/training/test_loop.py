"""Training: what it learns, what it keeps, and that a killed run ends as if it had not been."""

import copy
import os
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from fcompress.checkpoints import checkpoint
from fcompress.data import load_data
from fcompress.errors import FcompressError, TrainingError
from fcompress.models import build
from fcompress.training.config import OPTIMIZERS, TrainConfig, default_config, learning_rate
from fcompress.training.loop import accuracy, steps_of, train

DIGITS = {"in_channels": 1, "image_size": 8, "classes": 10}


@pytest.fixture(scope="module")
def digits():
    return load_data("digits")


def mlp(**changes):
    return build("mlp", **{**DIGITS, "hidden": 32, **changes})


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(a[0] == b[0] and torch.equal(a[1], b[1]) for a, b in pairs)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_learns(digits, optimizer):
    result = train(
        mlp(), digits, default_config("mlp", optimizer=optimizer, batch_size=16, epochs=10)
    )
    assert result.test_accuracy > 0.88
    assert result.epochs[-1].loss < result.epochs[0].loss
    assert result.test_accuracy == accuracy(result.model, digits.test)
    assert not result.model.training


@pytest.mark.parametrize("family", ["alexnet", "resnet20"])
def test_conv_networks_learn(digits, family):
    network = build(family, width=0.25, **DIGITS)
    result = train(network, digits, default_config(family, batch_size=32, epochs=3))
    assert result.test_accuracy > 0.6


def test_random_labels_are_learnt_by_heart_and_not_generalised():
    splits = load_data("digits", random_labels=0)
    config = TrainConfig(epochs=100, optimizer="adam", lr=3e-3, batch_size=64)
    result = train(mlp(hidden=512), splits, config)
    assert result.epochs[-1].train_accuracy >= 0.99
    assert result.test_accuracy < 0.25


def test_the_caller_keeps_his_network_and_his_random_state(digits):
    network = mlp().eval()
    before, state, threads = copy.deepcopy(network), torch.get_rng_state(), torch.get_num_threads()
    result = train(network, digits, TrainConfig(epochs=1))
    assert same_weights(network, before) and not network.training
    assert not same_weights(network, result.model)
    assert torch.equal(torch.get_rng_state(), state) and torch.get_num_threads() == threads


def test_the_seed_decides(digits):
    # AlexNet has dropout: the global random state must not matter either.
    network = build("alexnet", width=0.05, dropout=0.5, **DIGITS)
    split = replace(digits.train, rows=digits.train.rows[:200], labels=digits.train.labels[:200])
    few = replace(digits, train=split)
    results = []
    for seed, state in ((1, 5), (1, 6), (2, 5)):
        torch.manual_seed(state)
        config = TrainConfig(epochs=2, batch_size=32, seed=seed, augment=True)
        results.append(train(network, few, config).model)
    assert same_weights(results[0], results[1])
    assert not same_weights(results[0], results[2])


def test_the_order_is_a_function_of_seed_and_epoch_and_covers_every_example():
    def steps(seed):
        return steps_of(65, 32, torch.Generator().manual_seed(seed))

    assert torch.equal(torch.cat(steps(1)), torch.cat(steps(1)))
    assert not torch.equal(torch.cat(steps(1)), torch.cat(steps(2)))
    assert torch.cat(steps(1)).sort().values.tolist() == list(range(65))
    # 65 = 32 + 33, not 32 + 32 + 1: batch norm cannot normalise a batch of one.
    assert [len(step) for step in steps(1)] == [32, 33]
    assert [len(step) for step in steps_of(66, 32, torch.Generator())] == [32, 32, 2]


def test_a_last_batch_of_one_does_not_stop_batch_norm(digits):
    split = replace(digits.train, rows=digits.train.rows[:33], labels=digits.train.labels[:33])
    norm = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Linear(8, 10))
    train(norm, replace(digits, train=split), TrainConfig(epochs=1, batch_size=32))


def test_schedules():
    config = TrainConfig(epochs=8, lr=1.0, schedule="constant")
    assert [learning_rate(config, t) for t in (0, 3.5, 7.9)] == [1, 1, 1]
    decay = replace(config, schedule="decay")
    assert learning_rate(decay, 2.9) == pytest.approx(0.95**2)
    step = replace(config, schedule="step")
    rates = [learning_rate(step, t) for t in (3.9, 4, 5.9, 6)]
    assert rates == pytest.approx([1, 0.1, 0.1, 0.01])
    cosine = replace(config, schedule="cosine")
    assert learning_rate(cosine, 0) == 1 and learning_rate(cosine, 4) == pytest.approx(0.5)
    assert learning_rate(cosine, 8) == pytest.approx(0, abs=1e-12)


def test_weight_decay_spares_vectors(digits):
    # A rate so small that the loss moves nothing to speak of, and a decay of lr * wd = 0.01 a step.
    network = mlp()
    with torch.no_grad():
        network.out.bias.fill_(1.0)
    config = TrainConfig(
        epochs=1, batch_size=797, lr=1e-7, weight_decay=1e5, schedule="constant", optimizer="sgd"
    )
    trained = train(network, digits, config).model
    assert torch.allclose(trained.fc1.weight, 0.99 * network.fc1.weight, atol=1e-6)
    assert torch.allclose(trained.out.bias, network.out.bias, atol=1e-6)


def test_auxiliary_logits_count_with_their_weight(digits):
    class TwoHeads(nn.Module):
        def __init__(self):
            super().__init__()
            self.main, self.aux = nn.Linear(64, 10), nn.Linear(64, 10)

        def forward(self, x):
            x = x.flatten(1)
            return (self.main(x), self.aux(x)) if self.training else self.main(x)

    network = TwoHeads()
    with torch.no_grad():
        network.aux.weight.copy_(network.main.weight)
        network.aux.bias.copy_(network.main.bias)
    config = TrainConfig(epochs=1, batch_size=797, optimizer="sgd", lr=0.1)
    trained = train(network, digits, config).model
    moved = (trained.main.weight - network.main.weight).detach()
    assert float(moved.abs().max()) > 1e-3
    assert torch.allclose(trained.aux.weight - network.aux.weight, 0.4 * moved, atol=1e-6)


def test_progress_tells_every_step_and_every_epoch(digits):
    seen = []
    train(mlp(), digits, TrainConfig(epochs=2, batch_size=400), progress=seen.append)
    assert [bool(event.line) for event in seen] == [False, False, True] * 2
    assert [(event.done, event.of) for event in seen if not event.line] == [
        (1, 4), (2, 4), (3, 4), (4, 4),
    ]  # fmt: skip
    assert [(event.done, event.of) for event in seen if event.line] == [(1, 2), (2, 2)]
    assert seen[2].line.startswith("epoch 1/2: loss ")


# --- files ---------------------------------------------------------------------------------------


def test_the_checkpoint_knows_its_data_and_history(digits, tmp_path):
    out = tmp_path / "a.pt"
    result = train(mlp(), digits, TrainConfig(epochs=2), out=out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pt"]
    loaded = checkpoint.load(out)
    assert same_weights(loaded, result.model)
    assert loaded.origin["data"] == digits.info == result.data
    (done,) = loaded.origin["history"]
    assert done["action"] == "train" and len(done["epochs"]) == 2
    assert done["config"]["lr"] == 0.05
    # Training goes on from a loaded network: the history grows.
    again = train(loaded, digits, TrainConfig(epochs=1))
    assert [step["action"] for step in again.model.origin["history"]] == ["train", "train"]


SCRIPT = """
import sys
from pathlib import Path
from fcompress.data import load_data
from fcompress.models import build
from fcompress.training import TrainConfig, train

def tell(event):
    print("epoch" if event.line else "step", flush=True)

network = build("alexnet", width=0.1, dropout=0.3, in_channels=1, image_size=8, classes=10)
config = TrainConfig(epochs=5, batch_size=40, augment=True, device="cpu")
train(network, load_data("digits"), config, out=Path(sys.argv[1]), resume=True, progress=tell)
"""


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_weights(tmp_path):
    def start(out):
        # One thread: for steps this small, more of them only get in each other's way.
        return subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(out)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    whole, killed = tmp_path / "whole.pt", tmp_path / "killed.pt"
    assert start(whole).wait() == 0
    process = start(killed)
    lines = iter(process.stdout)
    for _ in range(2):
        while next(lines).strip() != "epoch":
            pass
    # In the middle of the third epoch, of which nothing must remain.
    assert [next(lines).strip() for _ in range(3)] == ["step"] * 3
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.stdout.close()
    assert (tmp_path / "killed.pt.resume").exists()
    checkpoint.load(killed)  # whole, though its run was killed
    process = start(killed)
    output = process.communicate()[0].split()
    assert process.returncode == 0 and output.count("epoch") == 3
    one, other = checkpoint.load(whole), checkpoint.load(killed)
    assert same_weights(one, other)
    records = [
        [{**e, "seconds": 0} for e in n.origin["history"][0]["epochs"]] for n in (one, other)
    ]
    assert records[0] == records[1] and len(records[0]) == 5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["killed.pt", "whole.pt"]


class Interrupted(Exception):
    pass


def interrupt_after(epochs):
    def progress(event):
        if event.line.startswith(f"epoch {epochs}/"):
            raise Interrupted

    return progress


def interrupted_run(splits, out, config, epochs=1):
    with pytest.raises(Interrupted):
        train(mlp(), splits, config, out=out, progress=interrupt_after(epochs))


def test_resume_file_opens_without_running_code(digits, tmp_path):
    interrupted_run(digits, tmp_path / "a.pt", TrainConfig(epochs=3, optimizer="adam"))
    content = torch.load(tmp_path / "a.pt.resume", weights_only=True)
    assert set(content) == {"format", "run", "model", "optimizer", "epochs"}


def test_an_interrupt_between_state_and_checkpoint_loses_nothing(digits, tmp_path):
    out, config = tmp_path / "a.pt", TrainConfig(epochs=2)
    interrupted_run(digits, out, config, epochs=2)
    expected = out.read_bytes()
    out.unlink()
    train(mlp(), digits, config, out=out, resume=True)
    assert same_weights(checkpoint.load(out), train(mlp(), digits, config).model)
    assert len(out.read_bytes()) == len(expected)


def test_resume_errors(digits, tmp_path):
    out, config = tmp_path / "a.pt", TrainConfig(epochs=2)

    def refused(text, **changes):
        arguments = {"model": mlp(), "splits": digits, "config": config, "resume": True, **changes}
        with pytest.raises(TrainingError) as error:
            train(out=out, **arguments)
        assert text in str(error.value) and "\n" not in str(error.value)

    interrupted_run(digits, out, config)
    refused("--resume", resume=False)
    refused("lr was 0.05, now 0.1", config=replace(config, lr=0.1))
    refused("hidden was 32, now 16", model=mlp(hidden=16))
    refused("data random_labels was None, now 1", splits=load_data("digits", random_labels=1))
    path = tmp_path / "a.pt.resume"
    content = path.read_bytes()
    for damaged in (content[: len(content) // 2], b"", b"hello"):
        path.write_bytes(damaged)
        refused("a.pt.resume is truncated or damaged")
    path.write_bytes(content)
    train(mlp(), digits, config, out=out, resume=True)
    assert not path.exists()
    refused("a.pt is finished")


# --- what cannot be trained --------------------------------------------------------------------


def test_divergence_keeps_the_last_good_checkpoint(digits, tmp_path):
    out = tmp_path / "a.pt"
    config = TrainConfig(epochs=4, optimizer="sgd", lr=0.01, schedule="constant")

    steps = []

    def burst_in_the_third_epoch(module, inputs, output):
        if module.training:
            steps.append(1)
            return output * float("inf") if len(steps) > 2 * 7 else None

    network = mlp()
    network.out.register_forward_hook(burst_in_the_third_epoch)
    with pytest.raises(TrainingError, match="diverged") as error:
        train(network, digits, config, out=out)
    assert "epoch 3" in str(error.value) and "after epoch 2" in str(error.value)
    assert "\n" not in str(error.value)
    kept = checkpoint.load(out)
    assert len(kept.origin["history"][0]["epochs"]) == 2
    assert same_weights(kept, train(mlp(), digits, replace(config, epochs=2)).model)
    assert not (tmp_path / "a.pt.resume").exists()


def test_divergence_at_once_writes_nothing(digits, tmp_path):
    config = TrainConfig(epochs=2, optimizer="sgd", lr=1e30)
    with pytest.raises(TrainingError, match="nothing was written; take a smaller learning rate"):
        train(mlp(), digits, config, out=tmp_path / "a.pt")
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_trained(digits, tmp_path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(40, 3)))
    unlabelled = load_data(f"file:{tmp_path / 'x.npy'}")
    network = build("mlp", in_features=3, classes=2)
    with pytest.raises(TrainingError, match="no labels"):
        train(network, unlabelled, TrainConfig())
    with pytest.raises(TrainingError, match="no training split"):
        train(network, replace(unlabelled, train=None), TrainConfig())
    gaussian = load_data("gaussian:3,n=20")
    with pytest.raises(TrainingError, match="cannot be augmented"):
        train(network, gaussian, TrainConfig(augment=True))
    with pytest.raises(TrainingError, match="cannot write"):
        train(network, gaussian, TrainConfig(), out=tmp_path / "no" / "a.pt")
    with pytest.raises(TrainingError, match="no file format"):
        train(nn.Linear(3, 2), gaussian, TrainConfig(), out=tmp_path / "a.pt")


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": 0}, {"batch_size": 1}, {"lr": 0.0}, {"lr": float("nan")}, {"weight_decay": -1.0},
        {"optimizer": "lion"}, {"schedule": "linear"}, {"device": "tpu"},
    ],
)  # fmt: skip
def test_wrong_settings(wrong):
    with pytest.raises(TrainingError, match="expected"):
        TrainConfig(**wrong)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu(digits):
    with pytest.raises(FcompressError, match="no GPU"):
        train(mlp(), digits, TrainConfig(device="cuda"))


def test_default_settings():
    assert default_config("resnet20").lr == 0.1
    assert (
        default_config("resnet20", optimizer="adam").lr
        == default_config("mlp", optimizer="adam").lr
    )
    assert default_config("inception_v3").optimizer == "rmsprop"
    assert default_config("mlp", lr=3.0, epochs=9) == TrainConfig(epochs=9, lr=3.0)
