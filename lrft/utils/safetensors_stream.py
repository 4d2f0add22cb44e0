"""safetensors files written and read piece by piece, in constant memory, by any number of threads.

The library's own writer wants every tensor of a file at once; a merge must not. The format is 8 bytes of header length,
a JSON header with each tensor's dtype, shape and place, and the bytes end to end.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from io import BufferedReader, BufferedWriter
from pathlib import Path
from threading import Lock

import torch
from torch import Tensor

from lrft.errors import CheckFailed

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
SAVED_AT_ONCE = 2**24  # bytes


@dataclass(frozen=True)
class Entry:
    """One tensor of a file: its dtype as safetensors spells it, its shape, and its bytes from start to end."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def size(self) -> int:
        return self.end - self.start


class TensorReader:
    """An open safetensors file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file: BufferedReader = path.open("rb")
        try:
            (length,) = struct.unpack("<Q", self.file.read(8))
            if length > path.stat().st_size:
                raise ValueError("its header is longer than the file")
            header = json.loads(self.file.read(length))
            self.metadata: dict[str, str] = header.pop("__metadata__", {})
            begin = 8 + length
            self.entries = {
                name: Entry(e["dtype"], tuple(e["shape"]), *(begin + offset for offset in e["data_offsets"]))
                for name, e in header.items()
            }
            self._check_places(begin, path.stat().st_size)
        except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
            self.file.close()
            raise CheckFailed(f"{path} is not a complete safetensors file: {error}") from None

    def _check_places(self, at: int, end: int) -> None:
        """Raises ValueError unless the tensors lie end to end, each as long as its dtype and shape say."""
        for name, entry in sorted(self.entries.items(), key=lambda item: (item[1].start, item[1].end)):
            known = DTYPES.get(entry.dtype)
            if known is not None and math.prod(entry.shape) * known.itemsize != entry.size:
                raise ValueError(f"{name} has a length that does not match its shape")
            if entry.start != at or entry.size < 0:
                raise ValueError(f"{name} does not begin where the one before it ends")
            at = entry.end
        if at != end:
            raise ValueError("its tensors do not fill the file")

    def __enter__(self) -> TensorReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def dtype(self, name: str) -> torch.dtype:
        """Raises CheckFailed for one that is not among DTYPES (8-bit floats, packed formats)."""
        word = self.entries[name].dtype
        if word not in DTYPES:
            raise CheckFailed(f"{self.path}: {name} is stored as {word}, which cannot be merged into")
        return DTYPES[word]

    def read(self, name: str, at: int, into: memoryview) -> None:
        """Fill `into` with a tensor's bytes from its byte `at` on."""
        entry, done = self.entries[name], 0
        if at < 0 or at + len(into) > entry.size:
            raise ValueError(f"{name} has no bytes {at} to {at + len(into)}")
        while done < len(into):
            got = os.preadv(self.file.fileno(), [into[done:]], entry.start + at + done)
            if not got:
                raise CheckFailed(f"{self.path} ends inside {name}")
            done += got

    def tensor(self, name: str) -> Tensor:
        """A whole tensor in memory of its own. Raises CheckFailed as `dtype`."""
        tensor = torch.empty(self.entries[name].shape, dtype=self.dtype(name))
        self.read(name, 0, raw(tensor))
        return tensor


class TensorWriter:
    """Writes a safetensors file whose tensors are announced first and then given piece by piece, in any order.

    A thread of its own brings bytes to the disk while more are made, so that little is left for a sync at the end.
    """

    def __init__(self, path: Path, tensors: Mapping[str, tuple[str, Sequence[int], int]], metadata: Mapping[str, str]):
        """`tensors`: name -> (dtype as safetensors spells it, shape, bytes)."""
        header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
        self.entries: dict[str, Entry] = {}
        """places are counted from the end of the header"""
        at = 0
        for name, (dtype, shape, size) in tensors.items():
            self.entries[name] = Entry(dtype, tuple(shape), at, at + size)
            header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}
            at += size
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # tensors begin on a multiple of 8, as readers of mapped files like it
        self._begin = 8 + len(text)
        self._left = {name: entry.size for name, entry in self.entries.items()}
        self._lock = Lock()
        self.file: BufferedWriter = path.open("wb")
        self.file.write(struct.pack("<Q", len(text)) + text)
        self._saver, self._unsaved = ThreadPoolExecutor(1), 0
        self._saving: Future[None] = self._saver.submit(self.file.flush)

    def __enter__(self) -> TensorWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self.file, self._saver:
            unwritten = [name for name, left in self._left.items() if left]
            if kind is None and unwritten:
                raise ValueError(f"announced but not written: {', '.join(unwritten)}")
            if kind is None:
                self._saving.result()

    def write(self, name: str, at: int, data: memoryview) -> None:
        """A tensor's bytes from its byte `at` on. Each byte is to be given once."""
        entry, done = self.entries[name], 0
        with self._lock:
            self._left[name] -= len(data)
        if at < 0 or at + len(data) > entry.size or self._left[name] < 0:
            raise ValueError(f"{name} is not as long as that, or has these bytes already")
        while done < len(data):
            done += os.pwrite(self.file.fileno(), data[done:], self._begin + entry.start + at + done)
        with self._lock:
            self._unsaved += len(data)
            if self._unsaved >= SAVED_AT_ONCE and self._saving.done():
                self._saving.result()  # an error of the disk is told once, to the first who asks
                self._saving, self._unsaved = self._saver.submit(os.fdatasync, self.file.fileno()), 0


def raw(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous CPU tensor, without a copy. (numpy has no bfloat16: seen as integers.)"""
    flat = tensor.contiguous().flatten()
    return memoryview(flat.view(torch.uint8).numpy().data)
