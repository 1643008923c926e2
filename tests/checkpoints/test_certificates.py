"""A certificate belongs to weights: changed ones keep the history and lose the certificate."""

import copy

import pytest
import torch
import torchvision
from cases.shrunk import shrunk as shrunk_result
from cases.trained import examples, trained
from click.testing import CliRunner
from torch import nn

import fcompress
from fcompress.cli import main
from fcompress.errors import ToleranceError
from fcompress.models.external import Architecture
from fcompress.models.fingerprint import CHANGED, fingerprint, judged
from fcompress.models.provenance import Described, describe, origin_of


def tensor_data():
    """Inputs of the trained network, as many as a certificate takes."""
    return examples(900, seed=9)[0]


def small_images():
    return torch.randn(64, 3, 32, 32, generator=torch.Generator().manual_seed(3))


def own_code():
    """A network that only its own code can build."""
    result = fcompress.shrink(trained(), tensor_data(), tol=0.2, method="factor")
    return result, untrained, tensor_data()


def untrained():
    layers = nn.Linear(6, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU()
    return nn.Sequential(*layers, nn.Dropout(0.2), nn.Linear(24, 4)).eval()


def registry():
    x = torch.randn(900, 6, generator=torch.Generator().manual_seed(1))
    model = fcompress.build("mlp", in_features=6, classes=3, width=1.0, depth=2, seed=1)
    return fcompress.shrink(model, x, tol=0.2, method="factor"), None, x


def torchvision_named():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = torchvision.models.squeezenet1_1(num_classes=4).eval()
    name = Architecture("torchvision:squeezenet1_1", {"num_classes": 4})
    entry = certified(model)
    describe(model, Described(name, None, (entry,)))
    return shrunk_result(model=model, certificate=entry["certificate"]), None, small_images()


def certified(model):
    """What a compression leaves in the history, about the weights as they are."""
    sizes = {"before": 2, "after": 1}
    agreement = {"n": 300, "same": 295, "confidence": 0.95, "lower_bound": 1 - 0.03941}
    about = {"compressed": fingerprint(model), "original": "of another", "data": None}
    return {
        "action": "shrink",
        "method": "hybrid",
        "certified": True,
        "tolerance": 0.04,
        "agreement": agreement,
        "params": sizes,
        "macs": sizes,
        "certificate": about,
    }


@pytest.fixture(scope="module", params=[registry, torchvision_named, own_code])
def shrunk(request):
    """A compressed network, what builds its original where no file can, and data for it."""
    return request.param()


@pytest.fixture
def network(shrunk):
    """The compressed network, its tensors given back afterwards."""
    result, make, data = shrunk
    before = {name: t.clone() for name, t in state(result.model).items()}
    yield result, make, data
    result.model.float()
    for name, tensor in state(result.model).items():
        tensor.data.copy_(before[name])


def state(model):
    return dict(model.named_parameters()) | dict(model.named_buffers())


def last(history):
    (entry,) = [e for e in history if e.get("action") == "shrink"]
    return entry


def saved(result, make, path):
    """The last entry in a file, and in the network that is loaded of it."""
    fcompress.save(result.model, path)
    file = last(fcompress.describe_file(path).history)
    loaded = fcompress.load(path, arch=make)
    assert last(origin_of(loaded)["history"]) == file
    return file, loaded


def shown(path):
    ran = CliRunner().invoke(main, ["show", str(path)])
    assert ran.exit_code == 0, ran.output
    return " ".join(ran.output.split())


def test_untouched_weights_keep_their_certificate(network, tmp_path):
    result, make, _ = network
    entry, loaded = saved(result, make, tmp_path / "a.pt")
    assert "void" not in entry
    assert entry["certificate"] == result.certificate == result.to_dict()["certificate"]
    assert result.certificate["compressed"] == fingerprint(loaded) == fingerprint(result.model)
    assert result.certificate["original"] != result.certificate["compressed"]
    assert "void" not in shown(tmp_path / "a.pt")
    # Saved twice, in the other mode, with other strides: the same weights.
    loaded.train()
    for parameter in loaded.parameters():
        if parameter.dim() == 2:
            parameter.data = parameter.data.t().contiguous().t()
    fcompress.save(loaded, tmp_path / "b.pt")
    assert last(fcompress.describe_file(tmp_path / "b.pt").history) == entry


def destroyed(model):
    with torch.no_grad():
        max(model.parameters(), key=torch.numel).zero_()


def fine_tuned(model):
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    shape = {"weight": next(p for p in model.parameters()).shape}["weight"]
    x = torch.randn(8, 6) if len(shape) == 2 else small_images()[:8]
    model.train()(x).square().mean().backward()
    optimizer.step()
    model.eval()


def halved(model):
    model.half()


def one_bit(model):
    with torch.no_grad():
        next(p for p in model.parameters() if p.numel()).view(-1)[0].mul_(1 + 2**-20)


def statistics(model):
    norm = next(
        (m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)), None
    )
    if norm is None:
        pytest.skip("no statistics in this network")
    norm.running_mean.add_(1)


@pytest.mark.parametrize("change", [destroyed, fine_tuned, halved, one_bit, statistics])
def test_other_weights_void_it(network, change, tmp_path):
    result, make, data = network
    before = last(origin_of(result.model)["history"])
    change(result.model)
    if change is halved and make is not None:
        own = make
        make = lambda: own().half()  # noqa: E731
    entry, loaded = saved(result, make, tmp_path / "a.pt")
    assert entry == {**before, "void": CHANGED}
    text = shown(tmp_path / "a.pt")
    assert f"certificate void: {CHANGED}" in text
    assert "certified for" not in text and "confidence" not in text
    # Still so when it is saved again, and in an export, which promises nothing.
    fcompress.save(loaded, tmp_path / "b.pt")
    assert last(fcompress.describe_file(tmp_path / "b.pt").history) == entry
    if change is not halved:
        exported = fcompress.export(loaded, tmp_path / "c.safetensors", data[:50])
        assert exported.tolerance is None
        assert last(fcompress.describe_file(tmp_path / "c.safetensors").history) == entry
        assert CHANGED in shown(tmp_path / "c.safetensors")


def test_weights_that_are_put_back_are_certified_again(network, tmp_path):
    result, make, _ = network
    weight = next(result.model.parameters())
    kept = weight.detach().clone()
    weight.data.zero_()
    assert "void" in saved(result, make, tmp_path / "a.pt")[0]
    weight.data.copy_(kept)
    assert "void" not in saved(result, make, tmp_path / "a.pt")[0]


def test_counters_of_batch_norms_do_not_count():
    model = trained()
    before = fingerprint(model)
    model[1].num_batches_tracked += 7
    assert fingerprint(model) == before
    assert fingerprint(copy.deepcopy(model).double()) != before
    assert fingerprint(model.state_dict()) == before
    model[1].running_mean += 1
    assert fingerprint(model) != before


def test_any_tensor_has_a_fingerprint():
    kinds = [torch.bfloat16, torch.bool, torch.complex64, torch.int8, torch.float64]
    tensors = [torch.ones(2, 3).to(kind) for kind in kinds]
    tensors += [
        torch.tensor(3.0),
        torch.zeros(0, 2),
        torch.ones(3, 2).t(),
        torch.eye(2).to_sparse(),
    ]
    found = {fingerprint({"a": tensor}) for tensor in tensors}
    assert len(found) == len(tensors)
    # Names, shapes and the split between tensors count.
    x = torch.arange(6.0)
    others = [{"a": x}, {"b": x}, {"a": x.view(2, 3)}, {"a": x[:3], "b": x[3:]}, {}]
    assert len({fingerprint(other) for other in others}) == len(others)
    assert fingerprint({"a": x, "b": x}) == fingerprint({"b": x, "a": x})


def test_only_the_last_compression_is_judged(tmp_path):
    x = tensor_data()
    result = fcompress.shrink(trained(), x, ratio=0.9, method="factor")
    again = fcompress.shrink(result.model, x, ratio=0.95, method="factor")
    fcompress.save(again.model, tmp_path / "a.pt")
    one, two = fcompress.describe_file(tmp_path / "a.pt").history
    assert "void" not in one and "void" not in two
    assert two["certificate"]["original"] == one["certificate"]["compressed"]
    assert shown(tmp_path / "a.pt").count("superseded by the compression after it") == 1
    # What was changed in memory before it was compressed again had lost its certificate.
    one_bit(result.model)
    third = fcompress.shrink(result.model, x, ratio=0.95, method="factor")
    fcompress.save(third.model, tmp_path / "b.pt")
    one, two = fcompress.describe_file(tmp_path / "b.pt").history
    assert one["void"] == CHANGED and "void" not in two


def test_files_of_earlier_versions_are_not_void(tmp_path):
    model = fcompress.build("mlp", in_features=6, classes=3, depth=2, seed=1)
    x = torch.randn(900, 6, generator=torch.Generator().manual_seed(1))
    result = fcompress.shrink(model, x, tol=0.2, method="factor")
    entry = last(origin_of(result.model)["history"])
    old = {key: value for key, value in entry.items() if key != "certificate"}
    destroyed(result.model)
    fcompress.save(result.model, tmp_path / "a.pt", history=[old])
    assert fcompress.describe_file(tmp_path / "a.pt").history == (old,)
    assert "not tied to weights (written by an earlier version)" in shown(tmp_path / "a.pt")


@pytest.mark.parametrize("history", [[], ["x"], [{"action": "shrink"}], [{"action": "train"}],
    [{"action": "shrink", "certificate": 3}]])  # fmt: skip
def test_histories_of_others_are_left_as_they_are(history):
    assert judged(history, nn.Linear(2, 2)) == history


def test_an_export_promises_what_holds(tmp_path):
    model = trained()
    result = fcompress.shrink(model, tensor_data(), tol=0.2, method="factor")
    kept = fcompress.export(result.model, tmp_path / "a.safetensors", tensor_data(), original=model)
    assert kept.tolerance == 0.2
    with torch.no_grad():
        result.model[-1].weight.neg_()
    # Nothing is promised of it; where the user says a tolerance, that is held.
    free = fcompress.export(result.model, tmp_path / "b.safetensors", tensor_data(), original=model)
    assert free.tolerance is None and free.agreement.rate < 0.8
    with pytest.raises(ToleranceError, match="more than the tolerance"):
        fcompress.export(
            result.model, tmp_path / "b.safetensors", tensor_data(), original=model, tol=0.2
        )


def test_show_rounds_a_bound_up(tmp_path):
    model = fcompress.build("mlp", in_features=6, classes=3)
    fcompress.save(model, tmp_path / "a.pt", history=[certified(model)])
    assert "at most 4.0% change" in shown(tmp_path / "a.pt")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_moved_network_has_the_same_fingerprint():
    model = trained()
    assert fingerprint(model) == fingerprint(copy.deepcopy(model).cuda())
