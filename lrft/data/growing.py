"""A set that grows: its arrays lie in files without a name, and memory holds the rows of one part."""

from __future__ import annotations

import tempfile
from array import array
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import numpy as np

from lrft.data.dataset import PART, Row, Rows, laid_out
from lrft.utils.files import room_for


class GrowingRows:
    """Rows are added one by one; `finished` returns them as a set whose arrays are mapped from the files.

    A context manager, which closes the files: what is mapped stays. The operating system frees them with the set, also
    when the process is killed.
    """

    def __init__(self, folder: Path | None) -> None:
        """folder: where the files lie; None for the system's folder of temporary files."""
        self._folder = folder
        self._part: list[Row] = []
        self._arrays: dict[str, tuple[IO[bytes], Any]] = {}
        self._ends: dict[str, int] = {}
        self._files: dict[str, int] = {}
        self._numbers: dict[str, None] = {}
        self._count = 0
        self._digests = array("Q")
        self._held_out = array("b")
        self._open = ExitStack()

    def __enter__(self) -> GrowingRows:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def add(self, row: Row, held_out: bool) -> None:
        """held_out: it belongs to the validation data."""
        self._part.append(row)
        self._digests.append(row.digest)
        self._held_out.append(held_out)
        if len(self._part) == PART:
            self._write()

    def finished(self) -> tuple[Rows, np.ndarray, np.ndarray]:
        """The rows, the digests of their contents: uint64 (N,), and which are held out: bool (N,)."""
        self._write()
        rows = Rows({name: self._mapped(*found) for name, found in self._arrays.items()}, tuple(self._files))
        return rows, np.frombuffer(self._digests, dtype=np.uint64), np.frombuffer(self._held_out, dtype=np.bool_)

    def _write(self) -> None:
        rows, self._part = self._part, []
        for row in rows:
            self._files.setdefault(row.file, len(self._files))
            self._numbers |= dict.fromkeys(row.numbers)
        with room_for(self._folder or Path(tempfile.gettempdir())):
            for name, values in laid_out(rows, self._files, self._numbers).items():
                self._append(name, values)
        self._count += len(rows)

    def _append(self, name: str, values: np.ndarray) -> None:
        """The first rows may lack an array of numbers: none of them has any."""
        new = name not in self._arrays
        if new:
            self._arrays[name] = self._open.enter_context(_unnamed(self._folder)), values.dtype
        if name.endswith("offsets"):
            before = np.zeros(self._count + 1, dtype=np.int64) if new else values[:0]
            values = np.concatenate([before, values[1:] + self._ends.get(name, 0)])
            self._ends[name] = int(values[-1]) if len(values) else self._ends.get(name, 0)
        self._arrays[name][0].write(values.data)

    @staticmethod
    def _mapped(file: IO[bytes], dtype: Any) -> np.ndarray:
        file.flush()
        size = file.tell() // dtype.itemsize
        # An empty file cannot be mapped.
        return np.asarray(np.memmap(file, dtype=dtype, mode="r")) if size else np.zeros(0, dtype=dtype)


def _unnamed(folder: Path | None) -> IO[bytes]:
    return tempfile.TemporaryFile(dir=folder)
