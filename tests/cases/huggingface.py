"""Small networks of transformers, built from its own configurations and trained for seconds.

Nothing is downloaded: weights are random at first, and the tasks are made here. Words stand for
texts, waves for sounds, and the images are the digits that come with the package.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fcompress

WORDS = [f"w{number}" for number in range(30)]
TOPICS = 3
LENGTH = 16
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
VOCABULARY = {word: number for number, word in enumerate(SPECIAL + WORDS)}
PAD, CLS, SEP, MASK = (VOCABULARY[word] for word in ("[PAD]", "[CLS]", "[SEP]", "[MASK]"))


def texts(count: int, seed: int = 0) -> list[tuple[str, int]]:
    """Texts of 6 to 14 words and their topic: the third of the vocabulary most words are from."""
    generator = torch.Generator().manual_seed(seed)
    share = len(WORDS) // TOPICS
    made = []
    for _ in range(count):
        topic = int(torch.randint(TOPICS, (), generator=generator))
        length = int(torch.randint(6, LENGTH - 1, (), generator=generator))
        own = torch.rand(length, generator=generator) < 0.7
        drawn = torch.randint(len(WORDS), (length,), generator=generator)
        drawn = torch.where(own, topic * share + drawn % share, drawn)
        made.append((" ".join(WORDS[i] for i in drawn), topic))
    return made


def sentences(count: int, seed: int = 0) -> list[str]:
    """Texts in which each word is followed by one of three, by chance."""
    after = torch.randint(
        len(WORDS), (len(WORDS), 3), generator=torch.Generator().manual_seed(0)
    ).tolist()
    generator = torch.Generator().manual_seed(seed + 1)
    made = []
    for _ in range(count):
        word = int(torch.randint(len(WORDS), (), generator=generator))
        said = []
        for choice in torch.randint(4, (LENGTH - 2,), generator=generator).tolist():
            said.append(WORDS[word])
            word = after[word][max(choice - 1, 0)]
        made.append(" ".join(said))
    return made


def ids_of(text: str) -> list[int]:
    """What the tokeniser of these networks gives, without padding."""
    return [CLS, *(VOCABULARY[word] for word in text.split()), SEP]


def encoded(lines: list[str]) -> dict[str, Tensor]:
    """Texts as a network takes them, padded to one length."""
    rows = [ids_of(line) for line in lines]
    ids = torch.tensor([row + [PAD] * (LENGTH - len(row)) for row in rows])
    return {"input_ids": ids, "attention_mask": (ids != PAD).long()}


def sounds(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Spectrograms [n, 16, 32] of a tone that rises, falls or stays, in noise; and which it is."""
    generator = torch.Generator().manual_seed(seed + 2)
    label = torch.randint(3, (count,), generator=generator)
    start = 4 + 8 * torch.rand(count, 1, generator=generator)
    time = torch.arange(32)[None] / 32
    pitch = start + (label[:, None] - 1) * 4 * time
    bins = torch.arange(16)[None, :, None]
    clean = torch.exp(-((bins - pitch[:, None]) ** 2) / 2)
    return clean + 0.3 * torch.randn(count, 16, 32, generator=generator), label


def _bert() -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=96,
        max_position_embeddings=32,
        num_labels=TOPICS,
        pad_token_id=PAD,
    )
    return BertForSequenceClassification(config)


def _gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=len(VOCABULARY),
        n_embd=48,
        n_layer=2,
        n_head=4,
        n_positions=32,
        bos_token_id=CLS,
        eos_token_id=SEP,
        pad_token_id=PAD,
    )
    return GPT2LMHeadModel(config)


def _llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=32,
        bos_token_id=CLS,
        eos_token_id=SEP,
        pad_token_id=PAD,
    )
    return LlamaForCausalLM(config)


def _vit() -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        image_size=8,
        patch_size=2,
        num_channels=1,
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=96,
        num_labels=10,
    )
    return ViTForImageClassification(config)


def _convnext() -> nn.Module:
    from transformers import ConvNextConfig, ConvNextForImageClassification

    config = ConvNextConfig(
        num_channels=1,
        patch_size=2,
        num_stages=2,
        hidden_sizes=[24, 48],
        depths=[1, 2],
        layer_scale_init_value=1.0,
        num_labels=10,
    )
    return ConvNextForImageClassification(config)


def _whisper() -> nn.Module:
    from transformers import WhisperConfig, WhisperForAudioClassification

    config = WhisperConfig(
        vocab_size=len(VOCABULARY),
        num_mel_bins=16,
        max_source_positions=16,
        d_model=48,
        encoder_layers=2,
        encoder_attention_heads=4,
        encoder_ffn_dim=96,
        decoder_layers=1,
        decoder_attention_heads=4,
        decoder_ffn_dim=48,
        classifier_proj_size=48,
        num_labels=3,
        pad_token_id=PAD,
        bos_token_id=CLS,
        eos_token_id=SEP,
        decoder_start_token_id=CLS,
    )
    return WhisperForAudioClassification(config)


def _of_texts(count: int, seed: int) -> tuple[dict[str, Tensor], Tensor]:
    lines, topics = zip(*texts(count, seed), strict=True)
    return encoded(list(lines)), torch.tensor(topics)


def _of_sentences(count: int, seed: int) -> tuple[dict[str, Tensor], Tensor]:
    inputs = encoded(sentences(count, seed))
    ids = inputs["input_ids"]
    following = torch.cat([ids[:, 1:], torch.full_like(ids[:, :1], PAD)], 1)
    return inputs, torch.where(following == PAD, -100, following)


def _of_digits(count: int, seed: int) -> tuple[dict[str, Tensor], Tensor]:
    splits = fcompress.load_data("digits")
    unseen = (splits.calibration, splits.search, splits.certification, splits.test)
    parts = [splits.train] if seed == 0 else unseen
    x, y = map(torch.cat, zip(*(b for part in parts for b in part.batches()), strict=True))
    return {"pixel_values": x[:count]}, y[:count]


def _of_sounds(count: int, seed: int) -> tuple[dict[str, Tensor], Tensor]:
    x, y = sounds(count, seed)
    return {"input_features": x}, y


@dataclass(frozen=True)
class Case:
    """A kind of network: how it is built, and examples and labels by number and seed."""

    build: Callable[[], nn.Module]
    data: Callable[[int, int], tuple[dict[str, Tensor], Tensor]]
    steps: int = 150
    answer: str | None = None


CASES = {
    "bert": Case(_bert, _of_texts),
    "gpt2": Case(_gpt2, _of_sentences, answer="tokens"),
    "llama": Case(_llama, _of_sentences, answer="tokens"),
    "vit": Case(_vit, _of_digits, steps=300),
    "convnext": Case(_convnext, _of_digits, steps=200),
    "whisper": Case(_whisper, _of_sounds),
}


@cache
def trained(name: str) -> nn.Module:
    """One of `CASES`, trained on its task; seconds. It must not be changed."""
    case = CASES[name]
    inputs, labels = case.data(2000, 0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = case.build().train()
        optimizer = torch.optim.Adam(model.parameters())
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, case.steps)
        for _ in range(case.steps):
            rows = torch.randint(len(labels), (48,))
            logits = model(**{key: value[rows] for key, value in inputs.items()}).logits
            optimizer.zero_grad()
            F.cross_entropy(logits.flatten(0, -2), labels[rows].flatten()).backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def unseen(name: str, count: int = 1200) -> tuple[dict[str, Tensor], Tensor]:
    """Examples that the network of that name was not trained on, and their labels."""
    return CASES[name].data(count, 1)


def accuracy(name: str, model: nn.Module) -> float:
    """Share of right labels on unseen examples."""
    inputs, labels = unseen(name)
    with torch.no_grad():
        found = model(**inputs).logits.argmax(-1)
    counted = labels != -100
    return float((found == labels)[counted].double().mean())


def write_tokenizer(folder: Path) -> None:
    """The files of a tokeniser that splits texts at spaces, as transformers writes them."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    tokenizer = Tokenizer(models.WordLevel(VOCABULARY, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)],
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    said = {"pad_token": "[PAD]", "mask_token": "[MASK]"}
    (folder / "tokenizer_config.json").write_text(json.dumps(said))
