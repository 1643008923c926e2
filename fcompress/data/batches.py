"""What callers of the Python API hand over as data, made into batches that can be read again."""

import contextlib
import hashlib
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from fcompress.data.packing import Packing
from fcompress.data.splits import Split
from fcompress.errors import DataError, code_of_users, said_by

Batch = tuple[Tensor, Tensor | None]

_OTHERS = (
    "the data gives other examples at each pass (a shuffled or random source, or one that is used "
    "up), so that networks would not be compared on the same; give it as tensors or as a list of "
    "batches, or let its order and its transforms be fixed"
)
# A one-shot iterator is held in memory up to so many bytes.
MOST_BYTES = 2 << 30

# Entries of a dict batch that are labels, not inputs.
LABEL_KEYS = ("labels", "label")


class Batches:
    """Batches (inputs, labels or None) that come out the same, in the same order, each time.

    That they do is checked: what came first is remembered by a hash of each batch, and data that
    gives something else at a later pass is refused.

    Args:
        start: Begins a pass.
        order: Of data that is read by number: the numbers of the examples, in the order in which
            they come.
        examples: How many examples the source of these numbers has.
        again: How many examples more were drawn whose number had come already; left out.
        checked: Whether passes can differ at all.
        packing: Of several inputs that come packed already.

    Attributes:
        packing: How several inputs lie in the one tensor that comes out; known from the first
            batch on. None for a single input.
        keep: bool [examples]: which examples come out; None for all.
    """

    def __init__(
        self,
        start: Callable[[], Iterable[Any]],
        order: list[int] | None = None,
        examples: int = 0,
        again: int = 0,
        *,
        checked: bool = True,
        packing: Packing | None = None,
    ) -> None:
        self._start, self._checked = start, checked
        self.order, self.examples, self.again = order, examples, again
        self.packing, self._packed = packing, packing is not None
        self.keep: Tensor | None = None
        self._hashes: list[bytes] = []
        self._whole = False

    def __iter__(self) -> Iterator[Batch]:
        number = first = 0
        for number, (inputs, labels) in enumerate(self._read(), 1):
            if self._checked:
                self._check(number, hash_of(inputs))
            if self.keep is not None:
                kept = self.keep[first : first + len(inputs)]
                first += len(inputs)
                if first > len(self.keep):
                    raise self._misfit("more")
                inputs, labels = inputs[kept], None if labels is None else labels[kept]
                if not len(inputs):
                    continue
            yield inputs, labels
        if self._checked and number < len(self._hashes):
            raise DataError(_OTHERS)
        if self.keep is not None and first < len(self.keep):
            raise self._misfit("fewer")
        self._whole = True

    def repeats(self) -> bool:
        """Whether the first batch comes out as it did before; another pass is begun for it."""
        if not self._checked:
            return True
        try:
            return next(iter(self), None) is not None
        except DataError:
            return False

    def _misfit(self, holds: str) -> DataError:
        assert self.keep is not None
        return DataError(
            f"groups for {len(self.keep):,} examples, but the data holds {holds}; expected one for "
            "each, in the data's order"
        )

    def _check(self, number: int, found: bytes) -> None:
        """See that a batch is what it was before; `number` counts from 1."""
        if number <= len(self._hashes):
            same = self._hashes[number - 1] == found
        else:
            same = not self._whole
            self._hashes.append(found)
        if not same:
            raise DataError(_OTHERS)

    def _read(self) -> Iterator[Batch]:
        empty = True
        for batch in _each(self._start):
            with _users_code():
                inputs, labels = _parts(batch)
            if not isinstance(inputs, Tensor):
                if self.packing is None:
                    self.packing = Packing.of(inputs)
                inputs = self.packing.pack(inputs)
            elif self.packing is not None and not self._packed:
                raise DataError(f"a batch of one tensor after batches of {self.packing}")
            if labels is not None and labels.shape[:1] != inputs.shape[:1]:
                raise DataError(
                    f"a batch of {len(inputs)} inputs with labels of shape {list(labels.shape)}: "
                    "expected one class index an input"
                )
            empty = False
            yield inputs, labels
        if empty:
            raise DataError("the data holds no batch; expected at least one")


def as_batches(data: object, size: int = 256) -> Batches:
    """Bring data of any of the usual kinds into one form.

    Accepted: a `Split`; a tensor or array [N, ...] of inputs; a pair (inputs, labels) of two
    tensors with one label an example; a `DataLoader`; a `Dataset` of examples; any iterable of
    batches, each a tensor or a pair (inputs, labels). Several inputs stand in a dict by keyword,
    which may hold the labels as `labels` or `label`, or in a tuple by position, as in
    ((first, second), labels), with None for no labels; they come out packed. A one-shot iterator
    is drained into memory, once, and refused above 2 GiB. A `DataLoader` that shuffles keeps the
    one order that it draws first, without the examples that a sampler draws again, and whatever
    random transforms it has repeat themselves on each pass, as long as they draw from the global
    random states. These stay as they were. Whatever gives other inputs at a later pass all the same
    is refused then.

    Args:
        data: The data.
        size: Examples a batch, where the data is not in batches yet.

    Returns:
        A re-iterable of (inputs, labels or None). Inputs keep their dtype and device.

    Raises:
        DataError: Of no accepted kind, or a one-shot iterator of more than 2 GiB; while iterating:
            a batch of no accepted kind, none, or others than at the first pass; whatever the
            data's own code raises, in one line with its place.
    """
    with _users_code():
        return _as_batches(data, size)


def _as_batches(data: object, size: int) -> Batches:
    if isinstance(data, Batches):
        return data
    if isinstance(data, Split):
        return Batches(lambda: data.batches(size), checked=False, packing=data.packing)
    if isinstance(data, np.ndarray | Tensor):
        inputs = _dense(data)
        return Batches(lambda: inputs.split(size), checked=False)
    if _is_whole_pair(data):
        inputs, labels = (_dense(part) for part in data)  # type: ignore[attr-defined]
        return Batches(
            lambda: zip(inputs.split(size), labels.split(size), strict=True), checked=False
        )
    if isinstance(data, Dataset) and not isinstance(data, IterableDataset):
        return _loader_batches(DataLoader(data, batch_size=size))
    if isinstance(data, DataLoader):
        return _loader_batches(data)
    if isinstance(data, str | bytes | dict) or not isinstance(data, Iterable):
        raise DataError(
            f"data of type {type(data).__name__}: expected a tensor, a pair (inputs, labels), a "
            "DataLoader, or an iterable of batches"
        )
    held: Iterable[Any] = _drained(data) if isinstance(data, Iterator) else data
    return Batches(lambda: held, checked=not isinstance(held, list | tuple))


def _users_code() -> contextlib.AbstractContextManager[None]:
    """Around code of the data's own: what it raises becomes one error of ours."""
    return code_of_users(
        lambda error: DataError(
            f"the data cannot be read: {said_by(error)}; let it give every example"
        )
    )


def _each(start: Callable[[], Iterable[Any]]) -> Iterator[Any]:
    """What an iterable gives; only its own code runs inside `_users_code`, not its reader's."""
    end = object()
    with _users_code():
        items = iter(start())
    while True:
        with _users_code():
            item = next(items, end)
        if item is end:
            return
        yield item


def hash_of(inputs: Tensor) -> bytes:
    """8 bytes that tell one batch of inputs from another."""
    values = inputs.detach().cpu().contiguous()
    digest = hashlib.blake2b(str((values.dtype, tuple(values.shape))).encode(), digest_size=8)
    digest.update(values.flatten().view(torch.uint8).numpy().data)
    return digest.digest()


def _drained(data: Iterator[Any]) -> list[Any]:
    """What a one-shot iterator gives, in memory.

    Raises:
        DataError: It does not fit into `MOST_BYTES`.
    """
    held: list[Any] = []
    size = 0
    for batch in _each(lambda: data):
        size += _bytes_of(batch)
        if size > MOST_BYTES:
            raise DataError(
                f"a one-shot iterator of more than {MOST_BYTES / 2**30:g} GiB, which has to be "
                "held in memory because it can be read only once; give a DataLoader, or a list of "
                "fewer batches"
            )
        held.append(batch)
    return held


def _bytes_of(batch: Any) -> int:
    if isinstance(batch, Tensor | np.ndarray):
        return int(batch.nbytes)
    parts = batch.values() if isinstance(batch, Mapping) else batch
    if isinstance(parts, str | bytes) or not isinstance(parts, Iterable):
        return 0
    return sum(_bytes_of(part) for part in parts)


def _is_whole_pair(data: object) -> bool:
    """Whether data is (inputs, labels) for the whole set, not two batches of inputs."""
    if not isinstance(data, tuple | list) or len(data) != 2:
        return False
    inputs, labels = data
    return (
        isinstance(inputs, np.ndarray | Tensor)
        and isinstance(labels, np.ndarray | Tensor)
        and labels.ndim == 1
        and inputs.ndim > 1
        and len(inputs) == len(labels)
    )


def _parts(batch: Any) -> tuple[Any, Tensor | None]:
    """Inputs, one tensor or several by name or number, and labels of a batch."""
    parts = [batch]
    if isinstance(batch, tuple | list) and 1 <= len(batch) <= 2:
        parts = list(batch)
    inputs, labels = parts[0], parts[1] if len(parts) == 2 else None
    if isinstance(inputs, Mapping):
        inputs = dict(inputs)
        found = next((inputs.pop(key) for key in LABEL_KEYS if key in inputs), None)
        labels = found if labels is None else labels
        inputs = {key: _as_dense(value) for key, value in inputs.items()}
    elif isinstance(inputs, tuple | list) and len(parts) == 2 and inputs:
        inputs = {number: _as_dense(value) for number, value in enumerate(inputs)}
    else:
        inputs = _as_dense(inputs)
    labels = _as_dense(labels)
    if not isinstance(inputs, Tensor | dict) or not isinstance(labels, Tensor | None):
        kinds = ", ".join(type(part).__name__ for part in parts)
        raise DataError(
            f"a batch of type {type(batch).__name__} ({kinds}): expected a tensor of inputs or a "
            "pair (inputs, labels); several inputs go in a dict, or in ((first, second), labels) "
            "with labels or None"
        )
    return inputs, labels


def _as_dense(found: Any) -> Any:
    return _dense(found) if isinstance(found, np.ndarray | Tensor) else found


def _dense(found: np.ndarray | Tensor) -> Tensor:
    """An array or tensor as a tensor that holds its numbers.

    Raises:
        DataError: Not dense, not real, or without an axis for the examples.
    """
    if isinstance(found, np.ndarray):
        found = _plain_array(found)
    try:
        tensor = torch.as_tensor(found)
    except TypeError as error:
        raise DataError(f"an array of type {found.dtype}: expected numbers") from error
    if tensor.is_nested or tensor.layout != torch.strided or tensor.is_meta:
        raise DataError("a sparse, nested or meta tensor: expected a dense one; convert it first")
    if tensor.is_complex() or tensor.is_quantized or not tensor.dim():
        raise DataError(
            f"a tensor of type {tensor.dtype} and shape {list(tensor.shape)}: expected real "
            "numbers, the first axis for the examples"
        )
    return tensor


def _plain_array(found: np.ndarray) -> np.ndarray:
    """An array as torch takes it: of this machine's byte order, forward, writable.

    Raises:
        DataError: Some of its values are masked.
    """
    if isinstance(found, np.ma.MaskedArray) and np.ma.is_masked(found):
        raise DataError("an array with masked values; fill them in, or leave these examples out")
    plain = np.asarray(found)
    if plain.dtype.isnative and plain.flags.writeable and min(plain.strides, default=0) >= 0:
        return plain
    return plain.astype(plain.dtype.newbyteorder("="))


def _loader_batches(loader: DataLoader) -> Batches:
    if loader.batch_sampler is None or isinstance(loader.dataset, IterableDataset):
        return Batches(lambda: _repeatable(loader))
    with _state_kept(loader.generator):
        _seed()
        batches = list(loader.batch_sampler)
    batches, order, again = _once(batches)
    pinned: DataLoader = DataLoader(
        loader.dataset,
        batch_sampler=batches,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
    )
    examples = len(loader.dataset)  # type: ignore[arg-type]
    return Batches(lambda: _all_of(pinned, len(batches)), order, examples, again)


def _all_of(loader: DataLoader, count: int) -> Iterator[Any]:
    """`_repeatable`, of so many batches.

    Raises:
        DataError: Fewer came: a dataset that raises `StopIteration` looks like the end.
    """
    given = 0
    for batch in _repeatable(loader):
        yield batch
        given += 1
    if given < count:
        raise DataError(
            f"the data ends after {given:,} of {count:,} batches; let it give every example"
        )


def _once(batches: list[Any]) -> tuple[list[Any], list[int] | None, int]:
    """A sampler's batches without numbers that came before; the numbers; how many were left out.

    A sampler that draws with replacement gives some examples many times, which prove no more than
    once. Batches that are no lists of numbers stay as they are.
    """
    if not all(isinstance(b, list | tuple) and all(type(i) is int for i in b) for b in batches):
        return batches, None, 0
    known: set[int] = set()
    kept = [[i for i in b if not (i in known or known.add(i))] for b in batches]  # type: ignore[func-returns-value]
    order = [i for batch in kept for i in batch]
    return [b for b in kept if b], order, sum(map(len, batches)) - len(order)


def _repeatable(loader: DataLoader) -> Iterator[Any]:
    """Iterate under a private random state that starts the same each time."""
    with _state_kept():
        _seed()
        private = _state()
    batches = None
    while True:
        # The consumer runs between two batches and must find its own state there.
        with _state_kept():
            _restore(private)
            try:
                batches = iter(loader) if batches is None else batches
                batch = next(batches)
            except StopIteration:
                return
            private = _state()
        yield batch


def _seed() -> None:
    torch.default_generator.manual_seed(0)  # torch.manual_seed would seed the GPUs as well
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - transforms of others draw from the global state


def _state() -> tuple[Any, ...]:
    return torch.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002


def _restore(state: tuple[Any, ...]) -> None:
    torch.set_rng_state(state[0])
    random.setstate(state[1])
    np.random.set_state(state[2])  # noqa: NPY002


@contextlib.contextmanager
def _state_kept(generator: torch.Generator | None = None) -> Iterator[None]:
    """Put the global random states, and a loader's own, back as they were."""
    before, own = _state(), None if generator is None else generator.get_state()
    try:
        yield
    finally:
        _restore(before)
        if generator is not None and own is not None:
            generator.set_state(own)
