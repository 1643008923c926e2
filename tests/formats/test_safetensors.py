"""The safetensors format: as its own library has it, the same bytes each time, read with care."""

import io
import json
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file

from fcompress.errors import CheckpointError
from fcompress.formats.safetensors import (
    DTYPES,
    is_safetensors,
    read_safetensors,
    write_safetensors,
)
from fcompress.formats.torch_zip import write_archive


def tensors():
    generator = torch.Generator().manual_seed(0)
    found = {
        name: torch.randint(0, 2, (2, 3), generator=generator).to(dtype)
        for name, dtype in DTYPES.items()
    }
    return {
        **found,
        "scalar": torch.tensor(5.0),
        "empty": torch.empty(0, 3),
        "turned": torch.randn(4, 3, generator=generator).t(),
        "part": torch.randn(9, generator=generator)[3:5],
    }


def packed(header, values=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + values


def same(one, other):
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert (tensor.dtype, tensor.shape) == (other[name].dtype, other[name].shape), name
        assert torch.equal(bits(tensor), bits(other[name])), name


def bits(tensor):
    return tensor.contiguous().flatten().view(torch.uint8)


@pytest.fixture
def written(tmp_path):
    path = tmp_path / "x.safetensors"
    with path.open("wb") as file:
        write_safetensors(file, tensors(), {"made": "by \u00fc\n"})
    return path


def test_what_is_written_is_read(written):
    found, metadata = read_safetensors(written)
    same(found, tensors())
    assert metadata == {"made": "by \u00fc\n"}
    for tensor in found.values():
        assert tensor.untyped_storage().nbytes() == tensor.nbytes


def test_bytes_depend_on_the_content_only(written):
    again = io.BytesIO()
    write_safetensors(again, tensors(), {"made": "by \u00fc\n"})
    assert again.getvalue() == written.read_bytes()


def test_the_library_of_the_format_agrees(written, tmp_path):
    same(load_file(written), tensors())
    ours = {name: tensor.contiguous().clone() for name, tensor in tensors().items()}
    save_file(ours, tmp_path / "y.safetensors", {"made": "elsewhere"})
    found, metadata = read_safetensors(tmp_path / "y.safetensors")
    same(found, tensors())
    assert metadata == {"made": "elsewhere"}


def test_what_is_not_such_a_file(written, tmp_path):
    assert is_safetensors(written)
    write_archive(tmp_path / "x.pt", {"a": torch.ones(2)})
    assert not is_safetensors(tmp_path / "x.pt")
    assert not is_safetensors(tmp_path / "none")
    with pytest.raises(CheckpointError, match="there is no such file"):
        read_safetensors(tmp_path / "none")
    with pytest.raises(CheckpointError, match="cannot be read: Is a directory"):
        read_safetensors(tmp_path)


def entry(**changes):
    return {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}}


def _twice():
    """A header that the library reads: the second entry of a name counts."""
    one = json.dumps(entry())[1:-1]
    return f"{{{one},{one}}}".encode()


# What is in brackets is the library's message, or ours where the library reads such a file.
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "its header does not fit in it"),
        (b"\xff" * 20, "its header does not fit in it"),
        (struct.pack("<Q", 2**24 + 1) + b"{" * (2**24 + 1), "its header does not fit in it"),
        (packed(b"{no json}"), "its header is not JSON"),
        (packed(b"[" * 100_000), "its header is not JSON"),
        (packed(b"9" * 10_000), "its header is not JSON"),
        (packed(b'"\xff"'), "its header is not JSON"),
        (packed(b'{"a":1,"a":2}'), "its header is not JSON"),
        (packed(b"[]"), "its header is not an object"),
        (packed({"__metadata__": {"a": 1}}), "damaged ("),
        (packed({"a": 1}), "the entry of 'a' is not"),
        (packed(entry(dtype="F31"), bytes(8)), "the entry of 'a' is not"),
        (packed(entry(dtype=["F32"]), bytes(8)), "the entry of 'a' is not"),
        (packed(entry(shape=[2.0]), bytes(8)), "damaged ("),
        (packed(entry(shape=[True, 2]), bytes(8)), "damaged ("),
        (packed(entry(shape=[-2, -1]), bytes(8)), "damaged ("),
        (packed(entry(shape=[1] * 64 + [2]), bytes(8)), "the entry of 'a' is not"),
        (packed(entry(data_offsets=[0]), bytes(8)), "damaged ("),
        (packed(entry(extra=1), bytes(8)), "the entry of 'a' is not"),
        (packed(entry(shape=[3]), bytes(8)), "damaged ("),
        (packed(entry(shape=[2**40]), bytes(8)), "damaged ("),
        (packed(entry(data_offsets=[8, 0]), bytes(8)), "damaged ("),
        (packed(entry(data_offsets=[4, 12]), bytes(12)), "damaged ("),
        (packed(entry(), bytes(7)), "damaged ("),
        (packed(entry(), bytes(9)), "damaged ("),
        (packed(_twice(), bytes(8)), "its header is not JSON"),
        (
            packed({**entry(), "b": entry()["a"]}, bytes(16)),
            "damaged (",
        ),
        (packed(entry(shape=[2**40], data_offsets=[0, 2**42])), "damaged ("),
        (packed(entry(shape=[0, 2**62, 2**62], data_offsets=[0, 0])), "no tensor can have"),
        (
            packed(entry(dtype="BOOL", data_offsets=[0, 2]), b"\1\2"),
            "something other than true and false",
        ),
    ],
)
def test_damage_is_named(content, message, tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        read_safetensors(path)
    assert message in str(caught.value)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_what_the_format_lacks_is_not_written():
    with pytest.raises(CheckpointError, match="complex128"):
        write_safetensors(io.BytesIO(), {"a": torch.ones(1, dtype=torch.complex128)}, {})
    with pytest.raises(CheckpointError, match="cannot be written"):
        write_safetensors(io.BytesIO(), {"__metadata__": torch.ones(1)}, {})
    with pytest.raises(CheckpointError, match="more than 16,777,216"):
        write_safetensors(io.BytesIO(), {}, {"a": "b" * 2**24})
