"""Networks of transformers: what files and folders say of them, and what they may not do."""

import copy
import json
import warnings

import pytest
import torch
from cases.huggingface import CASES, LENGTH, TOPICS, trained, unseen, write_tokenizer
from torch import nn

import fcompress
from fcompress.cli.network_options import NetworkOptions
from fcompress.cli.opening import open_network
from fcompress.errors import ArchitectureError, CheckpointError, FcompressError
from fcompress.models.external import Architecture, build_network, named
from fcompress.models.huggingface import fitting_config
from fcompress.models.provenance import described

transformers = pytest.importorskip("transformers")
KINDS = {"bert": "bert", "gpt2": "gpt2", "llama": "llama", "vit": "vit"} | {
    "convnext": "convnext",
    "whisper": "whisper",
}


@pytest.fixture(scope="module", autouse=True)
def _quiet():
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()


def built(name: str) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return CASES[name].build().eval()


def example(name: str, count: int = 6) -> dict[str, torch.Tensor]:
    if name in ("vit", "convnext"):
        seed = torch.Generator().manual_seed(1)
        return {"pixel_values": torch.randn(count, 1, 8, 8, generator=seed)}
    return unseen(name, count)[0]


def logits(model: nn.Module, name: str) -> torch.Tensor:
    with torch.no_grad():
        return model(**example(name)).logits


@pytest.fixture
def folder(tmp_path):
    """BERT with random weights, as save_pretrained writes it."""
    place = tmp_path / "bert"
    built("bert").save_pretrained(place)
    return place


def changed_config(folder, **entries) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **entries}))


@pytest.mark.parametrize("name", list(CASES))
def test_a_saved_network_needs_no_folder(name, tmp_path):
    model = built(name)
    assert described(model).architecture.name == f"hf:{KINDS[name]}"
    fcompress.save(model, tmp_path / "net.pt")
    again = fcompress.load(tmp_path / "net.pt")
    assert type(again) is type(model)
    assert torch.equal(logits(again, name), logits(model, name))


@pytest.mark.parametrize("name", ["bert", "gpt2", "whisper"])
@pytest.mark.parametrize("shards", ["50KB", "1GB"])
def test_a_folder_opens_on_the_command_line(name, shards, tmp_path):
    model = built(name)
    model.save_pretrained(tmp_path / "net", max_shard_size=shards)
    again = open_network(tmp_path / "net", NetworkOptions())
    assert torch.equal(logits(again, name), logits(model, name))
    if shards == "1GB":
        how = NetworkOptions(arch=f"hf:{tmp_path / 'net'}")
        again = open_network(tmp_path / "net" / "model.safetensors", how)
        assert torch.equal(logits(again, name), logits(model, name))


def test_an_exchanged_layer_makes_it_a_network_of_its_own():
    model = built("bert")
    model.classifier = nn.Sequential(nn.Linear(48, 8), nn.ReLU(), nn.Linear(8, TOPICS))
    assert described(model) is None


# Nothing that a folder asks for is run ------------------------------------------------------


def test_code_of_the_folder_is_not_run(folder, tmp_path):
    mark = tmp_path / "was-run"
    code = f"open({str(mark)!r}, 'w')\nclass Own: pass\n"
    for name in ("modeling_own.py", "configuration_own.py"):
        (folder / name).write_text(code)
    maps = {"AutoConfig": "configuration_own.Own", "AutoModel": "modeling_own.Own"}
    changed_config(folder, auto_map=maps)
    assert isinstance(open_network(folder, NetworkOptions()), nn.Module)
    changed_config(folder, architectures=["Own"])
    with pytest.raises(ArchitectureError, match="Own is no class of transformers for bert"):
        open_network(folder, NetworkOptions())
    assert not mark.exists()


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("bert", "GPT2LMHeadModel"),
        ("bert", "BertTokenizer"),
        ("bert", "os.system"),
        ("bert", "__class__"),
        ("os", "system"),
        ("no-such-kind", "BertForMaskedLM"),
    ],
)
def test_only_classes_of_its_lists_are_built(kind, name):
    with pytest.raises(ArchitectureError, match="transformers"):
        build_network(Architecture(f"hf:{kind}", {"class": name, "config": {}}))


def test_pickles_are_not_opened(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="pickles are not opened"):
        open_network(folder, NetworkOptions())


def test_weights_elsewhere_are_not_opened(folder):
    (folder / "model.safetensors").rename(folder.parent / "outside.safetensors")
    index = {"weight_map": {"classifier.bias": "../outside.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="names a file elsewhere"):
        open_network(folder, NetworkOptions())


def test_weights_that_are_missing_are_not_drawn_at_random(folder):
    from safetensors.torch import load_file, save_file

    state = load_file(folder / "model.safetensors")
    del state["classifier.weight"]
    save_file(state, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"lack classifier\.weight"):
        open_network(folder, NetworkOptions())


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({"architectures": None}, "names no class"),
        ({"model_type": None}, "says no model_type"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantised weights"),
    ],
)
def test_folders_that_are_no_good(folder, entries, said):
    changed_config(folder, **entries)
    with pytest.raises(ArchitectureError, match=said):
        named(f"hf:{folder}", {})


# Folders out --------------------------------------------------------------------------------


def narrowed(model: nn.Module, widths: list[int]) -> nn.Module:
    """The MLPs of a small Llama with other widths."""
    model = copy.deepcopy(model)
    for layer, width in zip(model.model.layers, widths, strict=True):
        for name in ("gate_proj", "up_proj"):
            linear = getattr(layer.mlp, name)
            linear.weight = nn.Parameter(linear.weight[:width].clone())
            linear.out_features = width
        linear = layer.mlp.down_proj
        linear.weight = nn.Parameter(linear.weight[:, :width].clone())
        linear.in_features = width
    return model


@pytest.mark.parametrize("widths", [[96, 96], [40, 40], [40, 56]])
def test_a_folder_opens_by_transformers_where_it_can_say_the_widths(widths, tmp_path):
    model = narrowed(built("llama"), widths)
    place = tmp_path / "thin"
    result = fcompress.export(model, place, [example("llama")], answer="tokens")
    assert result.n == result.same == 6
    assert torch.equal(logits(fcompress.load(place), "llama"), logits(model, "llama"))
    said = json.loads((place / "config.json").read_text())["fcompress"]
    assert said["widths"]["model.layers.1.mlp.down_proj"] == [48, widths[1]]
    if len(set(widths)) == 1:
        again = type(model).from_pretrained(place)
        assert again.config.intermediate_size == widths[0]
        assert torch.equal(logits(again, "llama"), logits(model, "llama"))
    else:
        assert said["opens_with"] == "fcompress.load"
        with pytest.raises(OSError, match="no file named"):
            type(model).from_pretrained(place)


def test_a_configuration_that_takes_a_width_for_each_layer_is_found():
    config = transformers.Gemma3nTextConfig(
        vocab_size=32,
        vocab_size_per_layer_input=32,
        hidden_size=16,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        hidden_size_per_layer_input=4,
        num_kv_shared_layers=0,
        laurel_rank=4,
        layer_types=["full_attention"] * 2,
        activation_sparsity_pattern=[0.0, 0.0],
    )
    model = transformers.Gemma3nForCausalLM(config)
    record = described(model).architecture
    kind = record.name.partition(":")[2]
    for widths in ([40, 56], [40, 96], [24, 24]):
        state = narrowed(model, widths).state_dict()
        assert fitting_config(kind, record.args, state)["intermediate_size"] == widths
    assert fitting_config(kind, record.args, {**state, "another": torch.zeros(1)}) is None


def test_a_folder_of_somebody_is_not_replaced(folder):
    before = (folder / "model.safetensors").read_bytes()
    with pytest.raises(FcompressError, match="not written by fcompress"):
        fcompress.export(built("bert"), folder, [example("bert")])
    assert (folder / "model.safetensors").read_bytes() == before


def test_other_networks_have_no_folder(tmp_path):
    with pytest.raises(FcompressError, match="networks of transformers"):
        fcompress.export(nn.Linear(4, 3), tmp_path / "thin", torch.randn(8, 4))


# Several inputs in programs -----------------------------------------------------------------


@pytest.mark.slow
def test_programs_keep_names_and_take_shorter_texts(tmp_path):
    onnx = pytest.importorskip("onnx")
    model = built("bert")
    short = {name: value[:3, : LENGTH // 2] for name, value in example("bert").items()}
    with torch.no_grad():
        expected = model(**short).logits
    for ending in (".onnx", ".pt2"):
        path = tmp_path / f"net{ending}"
        assert fcompress.export(model, path, [example("bert")], original=model).same == 6
        program = fcompress.open_program(path, trust_pickle=True)
        torch.testing.assert_close(program(**short), expected, rtol=1e-4, atol=1e-5)
        found = fcompress.verify(model, program, [example("bert")])
        assert (found.n, found.changed) == (6, 0)
    inputs = onnx.load(tmp_path / "net.onnx").graph.input
    axes = {i.name: [d.dim_param for d in i.type.tensor_type.shape.dim] for i in inputs}
    assert axes == {name: ["batch", "sequence"] for name in ("input_ids", "attention_mask")}


# From beginning to end ----------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", list(CASES))
def test_shrunk_saved_opened_and_exported(name, tmp_path):
    model, answer = trained(name), CASES[name].answer
    inputs, _ = unseen(name, 1000)
    data = [{key: value[i : i + 100] for key, value in inputs.items()} for i in range(0, 1000, 100)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = fcompress.shrink(model, data, tol=0.05, answer=answer)
    assert result.agreement.upper_bound <= 0.05
    assert result.params["after"] < 0.75 * result.params["before"]
    fcompress.save(result.model, tmp_path / "thin.pt")
    again = fcompress.load(tmp_path / "thin.pt")
    with torch.no_grad():
        assert torch.equal(again(**inputs).logits, result.model(**inputs).logits)
    for ending in (".pt2", ".onnx", ".safetensors", ""):
        path = tmp_path / f"thin{ending}"
        found = fcompress.export(again, path, data, answer=answer, examples=100)
        assert found.largest_difference <= found.allowed_difference


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "attention", "heads"), [("gpt2", "h.1.attn.c_attn", 4), ("llama", "1.self_attn.k", 2)]
)
def test_heads_and_hidden_units_of_language_models_go(name, attention, heads, tmp_path):
    """Layers stay, so it is heads that go; keys and values of llama with the queries they serve."""
    model, answer = trained(name), CASES[name].answer
    inputs, _ = unseen(name, 600)
    data = [{key: value[i : i + 100] for key, value in inputs.items()} for i in range(0, 600, 100)]
    result = fcompress.shrink(model, data, ratio=0.4, answer=answer, keep_depth=True)
    widths = {r.name: (r.units_before, r.units_after) for r in result.layers}
    before, after = next(w for layer, w in widths.items() if attention in layer)
    assert after < before and after % (before // heads) == 0
    assert sum(after < before for layer, (before, after) in widths.items() if "mlp" in layer) >= 2
    for module in result.model.modules():
        if isinstance(module, transformers.pytorch_utils.Conv1D):
            assert (module.nx, module.nf) == tuple(module.weight.shape)
    fcompress.save(result.model, tmp_path / "thin.pt")
    again = fcompress.load(tmp_path / "thin.pt")
    for ending in (".onnx", ""):
        path = tmp_path / f"thin{ending}"
        found = fcompress.export(again, path, data, answer=answer, examples=100)
        assert found.same == found.n
    opened = fcompress.load(tmp_path / "thin")
    with torch.no_grad():
        expected = result.model(**inputs).logits
        assert torch.equal(again(**inputs).logits, expected)
        assert torch.equal(opened(**inputs).logits, expected)
    for network in (result.model, again, opened):
        tied = network.get_output_embeddings().weight is network.get_input_embeddings().weight
        assert tied == (name == "gpt2")


def test_the_tokeniser_of_the_tests_is_what_they_encode_by(tmp_path):
    write_tokenizer(tmp_path)
    from cases.huggingface import ids_of, texts
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text, _ in texts(5):
        assert tokenizer.encode(text).ids == ids_of(text)
