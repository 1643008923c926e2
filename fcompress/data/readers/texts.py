"""A user's own texts: `text:PATH.txt` or `.jsonl`, made into token ids by a tokeniser's file."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fcompress.data.examples import Raw, Request, Stored, sha256_of
from fcompress.data.packing import Packing
from fcompress.data.splits import own_sizes
from fcompress.errors import CheckpointError, DataError, first_line
from fcompress.formats.limits import check_memory
from fcompress.models.huggingface import CONFIG, read_json

TOKENIZER = "tokenizer.json"
IDS, MASK, TYPES = "input_ids", "attention_mask", "token_type_ids"
# Tokens of an example where nothing else is said, and the most that may be asked for.
LENGTH, MOST = 512, 2**20
# Fields of a line of JSON.
_TEXT, _PAIR, _WORDS, _LABEL = "text", "text_pair", "tokens", "label"
_PADS = ("<pad>", "[PAD]", "<|endoftext|>", "</s>")
_MASKS = ("[MASK]", "<mask>")


@dataclass(frozen=True)
class _Line:
    """An example as it stands in the file: a text, maybe with a second one, or words."""

    text: str | list[str]
    pair: str | None = None
    label: int | str | None = None


@dataclass(frozen=True)
class _Tokenizer:
    """What the files of a tokeniser say.

    Attributes:
        run: `tokenizers.Tokenizer`, which runs no code of the file.
        pad: Id of padding.
        mask: Id of a token that is to be guessed, or None.
        inputs: Names of inputs that the network takes; empty where nothing is said.
        most: Tokens that the network takes at most, or None.
    """

    run: Any
    pad: int
    mask: int | None
    inputs: tuple[str, ...]
    most: int | None


def read_texts(request: Request) -> Raw:
    """Read texts, one a line, as token ids padded to one length.

    `.txt`: each line that is not empty is an example. `.jsonl`: each line is an object with `text`
    (and `text_pair`), or with `tokens`, a list of words; and maybe `label`, a class index or name.
    The options: `tokenizer`, a folder with tokenizer.json; `length`, of an example in tokens, what
    is longer is cut; `mask`, percent of the tokens that are replaced by the mask token, drawn once.

    Returns:
        Examples of the inputs input_ids and attention_mask [N, length], int64, packed, and
        token_type_ids where the network takes them.

    Raises:
        DataError: A file is missing or damaged, there is no tokeniser, or an option is no good.
    """
    path = Path(request.argument)
    if not path.is_file():
        raise DataError(f"text:{request.argument}: there is no such file")
    folder = request.options.get("tokenizer")
    if not folder:
        raise DataError(
            f"text:{path} needs a tokeniser: add ,tokenizer=DIR, a folder with {TOKENIZER}, or "
            "--arch hf:DIR, whose own is then taken"
        )
    check_memory(16.0 * path.stat().st_size, f"{path}", "give fewer texts", DataError)
    tokenizer = _opened(Path(folder))
    lines = list(_lines(path))
    if not lines:
        raise DataError(f"{path} holds no text; expected one on each line")
    labels, names = _labels(path, lines, Path(folder))
    found = [_encoded(tokenizer, line) for line in lines]
    typed = TYPES in tokenizer.inputs or (
        not tokenizer.inputs and any(any(encoding.type_ids) for encoding in found)
    )
    length = _length(request, found, tokenizer, typed)
    if max(len(encoding.ids) for encoding in found) > length:
        tokenizer.run.enable_truncation(length)  # which keeps the special tokens at the end
        found = [_encoded(tokenizer, line) for line in lines]
    inputs = _padded(found, tokenizer, length, typed)
    share = request.number("mask", 0)
    if share:
        inputs[IDS] = _masked(inputs, found, share, tokenizer, folder)
    packing = Packing.of(inputs)
    packed = packing.pack(inputs)
    return Raw(
        examples=Stored(packed),
        labels=labels,
        classes=None if labels is None else max(len(names), int(labels.max()) + 1),
        class_names=names,
        sizes=own_sizes(len(packed), request.roles),
        sha256=sha256_of([packed, labels]),
        statistics=([], []),
        packing=packing,
    )


def _lines(path: Path) -> Iterator[_Line]:
    if path.suffix not in (".txt", ".jsonl"):
        raise DataError(f"{path}: expected a file ending in .txt or .jsonl")
    try:
        with path.open(encoding="utf-8") as file:
            for number, text in enumerate(file, 1):
                if not text.strip():
                    continue
                yield _Line(text.strip()) if path.suffix == ".txt" else _of_json(path, number, text)
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no text in UTF-8 ({error.reason}); convert it") from error


def _of_json(path: Path, number: int, text: str) -> _Line:
    where = f"{path}, line {number}"
    try:
        said = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: no JSON ({first_line(error)})") from error
    if not isinstance(said, dict) or (_TEXT in said) == (_WORDS in said):
        raise DataError(
            f'{where}: expected an object with "{_TEXT}", a text, or "{_WORDS}", a list of words'
        )
    found: Any = said.get(_TEXT, said.get(_WORDS))
    pair, label = said.get(_PAIR), said.get(_LABEL)
    words = isinstance(found, list) and found and all(isinstance(word, str) for word in found)
    if not (words if _WORDS in said else isinstance(found, str)):
        raise DataError(f'{where}: "{_TEXT}" is a text and "{_WORDS}" a list of words')
    if not isinstance(pair, str | None) or (pair is not None and words):
        raise DataError(f'{where}: "{_PAIR}" is a second text beside "{_TEXT}"')
    if type(label) not in (int, str, type(None)):
        raise DataError(f'{where}: "{_LABEL}" is a class index, or the name of a class')
    return _Line(found, pair, label)


def _labels(path: Path, lines: list[_Line], folder: Path) -> tuple[Tensor | None, tuple[str, ...]]:
    """Class indices, and names of classes: numbered as the folder says, else by the alphabet."""
    given = [line.label for line in lines]
    kinds = {type(label) for label in given}
    if kinds == {type(None)}:
        return None, ()
    if len(kinds) > 1:
        raise DataError(f'{path}: some lines have a "{_LABEL}" of another kind, or none')
    if kinds == {str}:
        names = tuple(sorted({str(label) for label in given}))
        known = _classes(folder)
        names = known if set(names) <= set(known) else names
        index = {name: number for number, name in enumerate(names)}
        return torch.tensor([index[str(label)] for label in given]), names
    if not all(isinstance(label, int) and 0 <= label < 2**20 for label in given):
        raise DataError(f"{path}: labels below 0 or above a million; expected class indices")
    return torch.tensor(given), ()


def _classes(folder: Path) -> tuple[str, ...]:
    """Names of the classes that a configuration beside the tokeniser has, in their order."""
    try:
        said = read_json(folder / CONFIG).get("label2id")
    except CheckpointError:
        return ()
    numbers = said if isinstance(said, dict) else {}
    names = sorted(numbers, key=lambda name: str(numbers[name]).zfill(20))
    return tuple(names) if [numbers[name] for name in names] == [*range(len(names))] else ()


def _opened(folder: Path) -> _Tokenizer:
    """A tokeniser, out of its file of plain values.

    Raises:
        DataError: The package tokenizers or the file is missing, or the file is damaged.
    """
    try:
        package = importlib.import_module("tokenizers")
    except ImportError as error:
        raise DataError(
            f"texts need the package tokenizers ({error}); install it: pip install 'fcompress[hf]'"
        ) from error
    file = folder.expanduser() / TOKENIZER
    if not file.is_file():
        raise DataError(
            f"{folder} has no {TOKENIZER}; load the tokeniser with transformers and call "
            "save_pretrained, which writes it"
        )
    try:
        run = package.Tokenizer.from_file(str(file))
    except Exception as error:  # of the package, which has one type for all
        raise DataError(f"{file} is no tokeniser, or damaged ({first_line(error)})") from error
    run.no_padding()
    run.no_truncation()
    try:
        beside = folder / "tokenizer_config.json"
        said = read_json(beside) if beside.is_file() else {}
    except CheckpointError as error:
        raise DataError(str(error)) from error
    inputs, most = said.get("model_input_names"), said.get("model_max_length")
    return _Tokenizer(
        run=run,
        pad=_id_of(run, said.get("pad_token"), _PADS) or 0,
        mask=_id_of(run, said.get("mask_token"), _MASKS),
        inputs=tuple(map(str, inputs)) if isinstance(inputs, list) else (),
        most=most if type(most) is int and 0 < most <= MOST else None,
    )


def _id_of(run: Any, said: Any, usual: tuple[str, ...]) -> int | None:
    """The id of a special token, by its name in the configuration or a usual one."""
    name = said.get("content") if isinstance(said, dict) else said
    for one in (name, *usual):
        if isinstance(one, str) and (found := run.token_to_id(one)) is not None:
            return int(found)
    return None


def _encoded(tokenizer: _Tokenizer, line: _Line) -> Any:
    return tokenizer.run.encode(line.text, line.pair, is_pretokenized=isinstance(line.text, list))


def _length(request: Request, found: list[Any], tokenizer: _Tokenizer, typed: bool) -> int:
    """Tokens of an example: as asked for, as the network has seen, or the longest there is."""
    longest = max(len(encoding.ids) for encoding in found)
    known = None
    if request.shape is not None and len(request.shape) == 1:
        known = request.shape[0] // (8 * (3 if typed else 2))
    length = request.number("length", known or min(longest, tokenizer.most or LENGTH), least=1)
    check_memory(24.0 * length * len(found), "the token ids", "give fewer texts", DataError)
    return length


def _padded(found: list[Any], tokenizer: _Tokenizer, length: int, typed: bool) -> dict[str, Tensor]:
    """Inputs [N, length] by name; padding goes to the end."""
    ids = torch.full((len(found), length), tokenizer.pad)
    mask, types = torch.zeros_like(ids), torch.zeros_like(ids)
    for row, encoding in enumerate(found):
        count = len(encoding.ids)
        ids[row, :count] = torch.tensor(encoding.ids)
        types[row, :count] = torch.tensor(encoding.type_ids)
        mask[row, :count] = 1
    return {IDS: ids, MASK: mask, **({TYPES: types} if typed else {})}


def _masked(
    inputs: dict[str, Tensor], found: list[Any], share: int, tokenizer: _Tokenizer, folder: str
) -> Tensor:
    """Ids of which a share of those of words is replaced by the mask token."""
    if share > 100:
        raise DataError(f"option mask={share}: expected percent of the tokens, 1 to 100")
    if tokenizer.mask is None:
        raise DataError(f"option mask={share}: the tokeniser of {folder} has no mask token")
    ids = inputs[IDS]
    special = torch.ones_like(ids, dtype=torch.bool)
    for row, encoding in enumerate(found):
        own = encoding.special_tokens_mask
        special[row, : len(own)] = torch.tensor(own) != 0
    drawn = torch.rand(ids.shape, generator=torch.Generator().manual_seed(0)) * 100 < share
    return torch.where(drawn & ~special, tokenizer.mask, ids)
