"""safetensors, tensor by tensor, against the library's own reader and writer."""

from __future__ import annotations

import errno
import json
import os
import random
import struct
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lrft.errors import CheckFailed
from lrft.utils import safetensors_stream
from lrft.utils.safetensors_stream import DTYPES, TensorReader, TensorWriter, raw


def tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    found = {f"t.{name}": (torch.randn(3, 5) * 50).to(dtype) for name, dtype in DTYPES.items()}
    return found | {"scalar": torch.tensor(2.5), "empty": torch.zeros(0, 4), "vector": torch.arange(7)}


def test_reads_what_the_library_writes(tmp_path: Path) -> None:
    save_file(tensors(), tmp_path / "a.safetensors", {"format": "pt"})
    with TensorReader(tmp_path / "a.safetensors") as reader:
        assert reader.metadata == {"format": "pt"}
        assert reader.entries.keys() == tensors().keys()
        for name, expected in tensors().items():
            found = reader.tensor(name)
            assert (found.dtype, found.shape) == (expected.dtype, expected.shape), name
            assert torch.equal(found, expected), name
            assert content(reader, name) == bytes(raw(expected)), name


def content(reader: TensorReader, name: str) -> bytes:
    data = bytearray(reader.entries[name].size)
    reader.read(name, 0, memoryview(data))
    return bytes(data)


def write(path: Path, given: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> None:
    words = {dtype: name for name, dtype in DTYPES.items()}
    announced = {name: (words[t.dtype], tuple(t.shape), t.numel() * t.element_size()) for name, t in given.items()}
    with TensorWriter(path, announced, metadata or {}) as writer:
        for name, tensor in given.items():
            writer.write(name, 0, raw(tensor))


def test_the_library_reads_what_is_written(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write(path, tensors(), {"format": "pt", "näme": "ü"})
    found = load_file(path)
    assert found.keys() == tensors().keys()
    for name, expected in tensors().items():
        assert found[name].dtype == expected.dtype
        assert torch.equal(found[name], expected), name
    (length,) = struct.unpack("<Q", path.read_bytes()[:8])
    assert length % 8 == 0
    with TensorReader(path) as reader:
        assert reader.metadata == {"format": "pt", "näme": "ü"}


def test_a_transposed_tensor_is_written_as_it_reads() -> None:
    tensor = torch.arange(6.0).reshape(2, 3).T
    assert bytes(raw(tensor)) == bytes(raw(tensor.contiguous()))


def test_pieces_are_read_and_written_in_any_order_by_any_thread(tmp_path: Path) -> None:
    save_file(tensors(), tmp_path / "a.safetensors", {"format": "pt"})
    with TensorReader(tmp_path / "a.safetensors") as reader:
        announced = {name: (e.dtype, e.shape, e.size) for name, e in reader.entries.items()}
        pieces = [(name, at, min(at + 5, e.size)) for name, e in reader.entries.items() for at in range(0, e.size, 5)]
        random.Random(0).shuffle(pieces)
        with TensorWriter(tmp_path / "b.safetensors", announced, reader.metadata) as writer:

            def move(piece: tuple[str, int, int]) -> None:
                name, first, last = piece
                data = memoryview(bytearray(last - first))
                reader.read(name, first, data)
                writer.write(name, first, data)

            with ThreadPoolExecutor(4) as pool:
                list(pool.map(move, pieces))
    assert (tmp_path / "b.safetensors").read_bytes() == (tmp_path / "a.safetensors").read_bytes()


def test_every_byte_is_written_once(tmp_path: Path) -> None:
    announced = {"a": ("F32", (2,), 8), "b": ("F32", (1,), 4)}
    for name, at, data in (("b", 0, b"00000"), ("b", 1, b"0000"), ("b", -4, b"0000"), ("a", 8, b"0")):
        refused = TensorWriter(tmp_path / "x", announced, {})
        with pytest.raises(ValueError, match=f"{name} is not as long as that"), refused as writer:
            writer.write(name, at, memoryview(data))

    def write_twice() -> None:
        with TensorWriter(tmp_path / "x", announced, {}) as writer:
            writer.write("a", 0, memoryview(b"00000000"))
            writer.write("a", 0, memoryview(b"00000000"))

    with pytest.raises(ValueError, match="a is not as long as that, or has these bytes already"):
        write_twice()
    for given in (b"00000000", b"0000000", b""):
        unfinished = TensorWriter(tmp_path / "x", announced, {})
        left = "b" if len(given) == 8 else "a, b"
        with pytest.raises(ValueError, match=f"announced but not written: {left}$"), unfinished as writer:
            writer.write("a", 0, memoryview(given))


def test_what_the_disk_refuses_later_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told once, to the thread that saves while others write."""

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(safetensors_stream, "SAVED_AT_ONCE", 8)
    monkeypatch.setattr(os, "fdatasync", full)
    unfinished = TensorWriter(tmp_path / "x", {"a": ("F32", (2,), 8)}, {})
    wait([unfinished._saving])
    with pytest.raises(OSError, match="No space left"), unfinished as writer:
        writer.write("a", 0, memoryview(b"00000000"))


def test_reading_stops_at_the_tensors_end_and_at_the_files(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(file_of(*whole()))
    with TensorReader(path) as reader:
        for at in (-1, 5):
            with pytest.raises(ValueError, match=f"a has no bytes {at} to {at + 4}"):
                reader.read("a", at, memoryview(bytearray(4)))
        os.truncate(path, path.stat().st_size - 1)
        with pytest.raises(CheckFailed, match="ends inside b"):
            reader.tensor("b")


def whole() -> tuple[dict[str, Any], bytes]:
    header = {
        "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
        "b": {"dtype": "F32", "shape": [1], "data_offsets": [8, 12]},
    }
    return header, b"\0" * 12


def file_of(header: Any, data: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def changed(name: str, **values: Any) -> bytes:
    header, data = whole()
    header[name] |= values
    return file_of(header, data)


DAMAGED = {
    "empty": b"",
    "three bytes": b"abc",
    "length without header": struct.pack("<Q", 10),
    "header longer than the file": struct.pack("<Q", 1 << 40) + b"{}",
    "no JSON": struct.pack("<Q", 4) + b"\xff\xfe{}",
    "a list": file_of([1], b""),
    "not an entry": file_of({"a": 3}, b""),
    "no offsets": file_of({"a": {"dtype": "F32", "shape": [1]}}, b"0000"),
    "one byte short": file_of(whole()[0], whole()[1][:-1]),
    "one byte long": file_of(whole()[0], whole()[1] + b"0"),
    "shape too large": changed("a", shape=[3]),
    "dtype too narrow": changed("a", dtype="F16"),
    "overlap": changed("b", data_offsets=[4, 8]),
    "negative": changed("a", data_offsets=[-8, 0]),
    "backwards": changed("b", data_offsets=[12, 8]),
    "three offsets": changed("b", data_offsets=[8, 12, 16]),
    "words for offsets": changed("b", data_offsets=["8", "12"]),
}


def test_the_whole_file_that_is_damaged_below_reads(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(file_of(*whole()))
    with TensorReader(path) as reader:
        assert torch.equal(reader.tensor("b"), torch.zeros(1))


@pytest.mark.parametrize("damage", DAMAGED)
def test_damage_is_found_when_opening(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(DAMAGED[damage])
    with pytest.raises(CheckFailed, match=r"a.safetensors is not a complete safetensors file"):
        TensorReader(path)


def test_a_dtype_that_is_not_known_can_be_copied_and_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(file_of({"a": {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}}, b"abcd"))
    with TensorReader(path) as reader:
        assert content(reader, "a") == b"abcd"
        with pytest.raises(CheckFailed, match="a is stored as F8_E4M3"):
            reader.tensor("a")
