"""Ways to break a file, from a flipped bit to a well-made archive of the wrong things."""

import gzip
import io
import json
import random
import struct
import zipfile

import numpy as np
import torch

INTERESTING = [0, 1, 0x7F, 0x80, 0xFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 2**63 - 1, 2**64 - 1]
NAMES = [
    "",
    "../../x",
    "/etc/passwd",
    "a\0b",
    "\n",
    "\x1b[2J",
    "x" * 5000,
    "__metadata__",
    "\ud800",
]


def mutated(content: bytes, rng: random.Random) -> bytes:
    """The content with one to three changes of its bytes."""
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        content = rng.choice(_BYTES)(content, rng)
    return content


def _cut(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(len(content) + 1)]


def _cut_at_boundary(content: bytes, rng: random.Random) -> bytes:
    """Just before, at or just after a signature of a zip archive, or a power of two."""
    marks = [2**n for n in range(1, 24) if 2**n < len(content)]
    for signature in (b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06", b"}", b"\x80\x02"):
        start = content.find(signature)
        while start >= 0 and len(marks) < 500:
            marks += [start, start + len(signature)]
            start = content.find(signature, start + 1)
    return content[: max(0, rng.choice(marks or [0]) + rng.choice([-1, 0, 1]))]


def _flip(content: bytes, rng: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 8])):
        if changed:
            changed[_place(content, rng)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _place(content: bytes, rng: random.Random) -> int:
    """Half of the time near the beginning or the end, where formats say what they hold."""
    near = min(len(content), 200)
    choice = rng.random()
    if choice < 0.25:
        return rng.randrange(near)
    if choice < 0.5:
        return len(content) - 1 - rng.randrange(near)
    return rng.randrange(len(content))


def _number(content: bytes, rng: random.Random) -> bytes:
    """A number of 1 to 8 bytes in place of what was there."""
    size = rng.choice([1, 2, 4, 8])
    value = rng.choice(INTERESTING) % 256**size
    at = _place(content, rng) if content else 0
    return content[:at] + value.to_bytes(size, rng.choice(["little", "big"])) + content[at + size :]


def _noise(content: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(content) + 1)
    return content[:at] + rng.randbytes(rng.randrange(1, 64)) + content[at + rng.randrange(64) :]


def _drop(content: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(content) + 1)
    return content[:at] + content[at + rng.randrange(1, 200) :]


def _repeat(content: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(content) + 1)
    part = content[at : at + rng.randrange(1, 500)]
    return content[:at] + part * rng.choice([2, 3, 50]) + content[at:]


def _append(content: bytes, rng: random.Random) -> bytes:
    return content + rng.choice([b"\0" * 100, rng.randbytes(50), content[-200:], content])


_BYTES = [_cut, _cut_at_boundary, _flip, _flip, _flip, _number, _number, _noise, _drop, _repeat,
          _append]  # fmt: skip


def rezipped(content: bytes, rng: random.Random) -> bytes:
    """An archive one of whose parts is changed, with checksums that are right."""
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old:
        entries = [(entry.filename, old.read(entry)) for entry in old.infolist()]
    chosen = rng.randrange(len(entries))
    if rng.random() < 0.6:  # where the structure is said
        heads = [i for i, (name, _) in enumerate(entries) if name.endswith((".pkl", ".npy"))]
        chosen = rng.choice(heads or [chosen])
    action = rng.random()
    packed = zipfile.ZIP_DEFLATED if rng.random() < 0.1 else zipfile.ZIP_STORED
    with zipfile.ZipFile(made, "w", packed) as new:
        for index, (name, data) in enumerate(entries):
            if index == chosen and action < 0.8:
                data = mutated(data, rng)
            elif index == chosen and action < 0.86:
                continue
            elif index == chosen and action < 0.93:
                name = rng.choice(NAMES[:5]) or "x"
            elif index == chosen:
                data = bytes(10**6)
            new.writestr(name, data)
    return made.getvalue()


def regzipped(content: bytes, rng: random.Random) -> bytes:
    """A gzip file of a changed content."""
    return gzip.compress(mutated(gzip.decompress(content), rng), 1)


def reheaded(content: bytes, rng: random.Random) -> bytes:
    """A safetensors file with a changed header of the right length."""
    length = struct.unpack("<Q", content[:8])[0]
    text, values = content[8 : 8 + length], content[8 + length :]
    if rng.random() < 0.5:
        text = mutated(text, rng)
    else:
        text = json.dumps(tree(json.loads(text), rng), default=str).encode()
    return struct.pack("<Q", len(text)) + text + values


def resaved(content: bytes, rng: random.Random) -> bytes:
    """What torch.save makes of a changed content."""
    made = io.BytesIO()
    torch.save(tree(torch.load(io.BytesIO(content), weights_only=True), rng), made)
    return made.getvalue()


def tree(value: object, rng: random.Random) -> object:
    """Plain values and tensors with one to three parts missing, more, or of another kind."""
    for _ in range(rng.choice([1, 1, 2, 3])):
        value = _changed(value, rng)
    return value


def _changed(value: object, rng: random.Random) -> object:
    if isinstance(value, dict) and value and rng.random() < 0.9:
        value = dict(value)
        key = rng.choice(list(value))
        action = rng.random()
        if action < 0.1:
            del value[key]
        elif action < 0.2:
            value[rng.choice([*NAMES, str(key) + "x", 5])] = rng.choice([value[key], None, 1])
        elif action < 0.25:
            value[rng.choice(NAMES)] = value.pop(key)
        else:
            value[key] = _changed(value[key], rng)
        return value
    if isinstance(value, list) and value and rng.random() < 0.7:
        at = rng.randrange(len(value))
        action = rng.random()
        if action < 0.2:
            return value[:at] + value[at + 1 :]
        if action < 0.3:
            return value + value[at : at + 1]
        return [*value[:at], _changed(value[at], rng), *value[at + 1 :]]
    if isinstance(value, torch.Tensor) and value.layout is torch.strided and rng.random() < 0.9:
        return _changed_tensor(value, rng)
    if isinstance(value, int) and rng.random() < 0.7:
        return rng.choice([value + 1, -value, 0, 2**31, 2**63, 10**30, float(value), bool(value)])
    return rng.choice(
        [None, True, -1, 2**70, float("nan"), float("inf"), "", "\x1b[2J\n", [], {}, [[]],
         {"a": {}}, [1, 2], torch.ones(2), "x" * 10_000, nest(50), nest(150)]
    )  # fmt: skip


def nest(depth: int) -> list:
    """A list in a list in a list."""
    found: list = []
    for _ in range(depth):
        found = [found]
    return found


def _changed_tensor(value: torch.Tensor, rng: random.Random) -> torch.Tensor:
    action = rng.randrange(10)
    if action == 0:
        return value[: len(value) // 2] if value.dim() else value[None]
    if action == 1:
        return value.unsqueeze(rng.randrange(value.dim() + 1))
    if action == 2:
        return value.flatten()[:1].expand(10**6)
    if action == 3:
        return torch.full_like(value, np.nan) if value.is_floating_point() else value - 10**6
    if action == 4:
        return value.new_empty([0, *value.shape[1:]])
    if action == 5:
        return value.to_sparse() if value.dim() else value.cfloat()
    if action == 6:
        return torch.cat([value.flatten(), value.flatten()])
    if action == 7:
        return value.t() if value.dim() == 2 else value.flatten()
    kinds = [torch.float16, torch.float64, torch.int8, torch.bool, torch.complex64, torch.bfloat16]
    return value.to(rng.choice(kinds))
