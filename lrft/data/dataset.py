"""A tokenised set: flat arrays with offsets, in memory or mapped from a safetensors file.

A row is what is sampled, split and counted: one token sequence, or several that belong together, such as two answers
to one prompt. It may carry numbers, such as a label.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

_DTYPES = {"I32": np.int32, "I64": np.int64, "F32": np.float32, "F64": np.float64, "U8": np.uint8, "BOOL": np.bool_}
_NUMBERS = "numbers."


@dataclass(frozen=True)
class Row:
    """One tokenised sample on its way into a set.

    tokens: int32 (n,). trained: bool (n,). prompt_end: index of the first token of the last trained span of its first
    sequence. answer: reference text of that span. file, number: where it came from. cut: tokens cut off at the right.
    digest: first 8 bytes of a hash of the sample's content, for splitting. Not kept in the set.
    parts: tokens of each of its sequences, which lie end to end in `tokens`; empty where there is one.
    numbers: float64 (m,) by name; a row may lack what others of the set have.
    entry: number of the entry of data.train. weight: of each of its tokens in the loss, above 0.
    """

    tokens: np.ndarray
    trained: np.ndarray
    prompt_end: int
    answer: str
    file: str
    number: int
    cut: int = 0
    digest: int = 0
    entry: int = 0
    weight: float = 1.0
    parts: tuple[int, ...] = ()
    numbers: Mapping[str, np.ndarray] = field(default_factory=dict)

    @property
    def sequences(self) -> tuple[int, ...]:
        """Tokens of each of its sequences."""
        return self.parts or (len(self.tokens),)


class Rows:
    """A set of N tokenised samples. Read only.

    lengths: int64 (N,), tokens of each row, all its sequences together. longest: int64 (N,), those of its longest
    sequence. counts: int64 (N,), its sequences. Files with lines are named as file:line, others as file#record.
    """

    def __init__(self, arrays: dict[str, np.ndarray], files: Sequence[str]) -> None:
        for array in arrays.values():
            array.setflags(write=False)  # as those of a memory map are: what writes to them fails at once
        self._arrays, self._files = arrays, tuple(files)
        self._offsets = arrays["offsets"]
        self.lengths: np.ndarray = np.diff(self._offsets)
        self.counts: np.ndarray = np.diff(arrays["part_offsets"])
        self.longest: np.ndarray = (
            np.maximum.reduceat(arrays["parts"], arrays["part_offsets"][:-1]) if len(self.lengths) else self.lengths
        )

    @classmethod
    def of(cls, rows: Sequence[Row]) -> Rows:
        """Lay the rows out flat. The first token of a sequence is never trained: nothing stands before it."""
        files = {name: k for k, name in enumerate(dict.fromkeys(r.file for r in rows))}
        answers = [r.answer.encode() for r in rows]
        arrays = {
            "tokens": _flat([r.tokens for r in rows], np.int32),
            "trained": _flat([r.trained for r in rows], np.bool_),
            "offsets": _offsets([len(r.tokens) for r in rows]),
            "answers": np.frombuffer(b"".join(answers), dtype=np.uint8),
            "answer_offsets": _offsets([len(a) for a in answers]),
            "prompt_ends": np.array([r.prompt_end for r in rows], dtype=np.int64),
            "cuts": np.array([r.cut for r in rows], dtype=np.int64),
            "file": np.array([files[r.file] for r in rows], dtype=np.int32),
            "number": np.array([r.number for r in rows], dtype=np.int64),
            "parts": np.array([n for r in rows for n in r.sequences], dtype=np.int64),
            "part_offsets": _offsets([len(r.sequences) for r in rows]),
            "entry": np.array([r.entry for r in rows], dtype=np.int32),
            "weight": np.array([r.weight for r in rows], dtype=np.float32),
        }
        for name in dict.fromkeys(name for r in rows for name in r.numbers):
            arrays |= _numbers(name, [r.numbers.get(name, np.empty(0)) for r in rows])
        first = _offsets(arrays["parts"].tolist())[:-1]
        arrays["trained"][first[first < len(arrays["trained"])]] = False
        return cls(arrays, tuple(files))

    def __len__(self) -> int:
        return len(self.lengths)

    def _span(self, i: int) -> slice:
        if not 0 <= i < len(self):
            raise IndexError(f"row {i} is outside 0..{len(self) - 1}")
        return slice(int(self._offsets[i]), int(self._offsets[i + 1]))

    def sequences(self, i: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """(tokens, trained) of each sequence of row i: int32 (n,) and bool (n,)."""
        self._span(i)
        at = self._arrays["part_offsets"]
        edges = np.cumsum(self._arrays["parts"][int(at[i]) : int(at[i + 1])])[:-1]
        return list(zip(np.split(self.tokens(i), edges), np.split(self.trained(i), edges), strict=True))

    def numbers(self, name: str, i: int) -> np.ndarray:
        """What row i carries under this name: float64 (m,), empty for nothing. Raises KeyError where no row has it."""
        self._span(i)
        at = self._arrays[f"{_NUMBERS}{name}.offsets"]
        return self._arrays[f"{_NUMBERS}{name}"][int(at[i]) : int(at[i + 1])]

    @property
    def names(self) -> tuple[str, ...]:
        """Of the numbers that its rows carry."""
        named = [name for name in self._arrays if name.startswith(_NUMBERS) and not name.endswith(".offsets")]
        return tuple(name.removeprefix(_NUMBERS) for name in named)

    def with_numbers(self, name: str, values: Sequence[np.ndarray]) -> Rows:
        """The same rows, each with its `values` under this name."""
        return Rows({**self._arrays, **_numbers(name, values)}, self._files)

    def tokens(self, i: int) -> np.ndarray:
        """Token ids of row i, its sequences end to end: int32 (n,)."""
        return self._arrays["tokens"][self._span(i)]

    def trained(self, i: int) -> np.ndarray:
        """bool (n,): True at j when predicting token j from the tokens before it counts in the loss."""
        return self._arrays["trained"][self._span(i)]

    def source(self, i: int) -> str:
        """Where row i came from, such as train.jsonl:41."""
        self._span(i)
        return self._files[int(self._arrays["file"][i])] + str(int(self._arrays["number"][i]))

    def prompt(self, i: int) -> np.ndarray:
        """The tokens before the last trained span, what generation starts from: int32 (m,)."""
        return self.tokens(i)[: int(self._arrays["prompt_ends"][i])]

    def answer(self, i: int) -> str:
        """Reference text of the last trained span, without special tokens."""
        self._span(i)
        at = self._arrays["answer_offsets"]
        return self._arrays["answers"][int(at[i]) : int(at[i + 1])].tobytes().decode()

    def cut(self, i: int) -> int:
        """How many tokens `too_long: truncate` cut off at the right of row i."""
        self._span(i)
        return int(self._arrays["cuts"][i])

    @property
    def entries(self) -> np.ndarray:
        """The entry of data.train that each row is from: int32 (N,)."""
        return self._arrays["entry"]

    def weight(self, i: int) -> float:
        """What each trained token of row i counts in the loss: 1, an int, unless the row says otherwise."""
        weight = float(self._arrays["weight"][i])
        return 1 if weight == 1 else weight

    @cached_property
    def weighted(self) -> bool:
        """Whether some row has a weight other than 1."""
        return bool((self._arrays["weight"] != 1).any())

    def largest_token(self) -> int:
        """The highest token id of the whole set; -1 for an empty one."""
        return int(self._arrays["tokens"].max(initial=-1))

    def trained_tokens(self) -> int:
        """How many tokens of the whole set count in the loss."""
        return int(np.count_nonzero(self._arrays["trained"]))

    def slice(self, indices: Sequence[int] | np.ndarray) -> Rows:
        """A new set of the rows `indices`, in that order."""
        at = np.asarray(indices, dtype=np.int64)
        old = self._arrays
        arrays = {name: old[name][at] for name in ("prompt_ends", "cuts", "file", "number", "entry", "weight")}
        offsets_of = {"tokens": "offsets", "trained": "offsets", "answers": "answer_offsets", "parts": "part_offsets"}
        named = {f"{_NUMBERS}{name}": f"{_NUMBERS}{name}.offsets" for name in self.names}
        for flat, offsets in (offsets_of | named).items():
            parts = [old[flat][int(old[offsets][i]) : int(old[offsets][i + 1])] for i in at]
            arrays[flat] = _flat(parts, old[flat].dtype)
            arrays[offsets] = _offsets([len(p) for p in parts])
        return Rows(arrays, self._files)

    def rename(self, change: Callable[[str], str]) -> None:
        """Pass the names of the files that the rows came from through `change`."""
        self._files = tuple(change(name) for name in self._files)

    def save(self, path: str | Path) -> None:
        """Write one safetensors file; the names of the source files stand in its metadata."""
        save_file(self._arrays, str(path), metadata={"files": json.dumps(self._files)})

    @classmethod
    def load(cls, path: str | Path) -> Rows:
        """Map the file written by `save` into memory.

        Raises ValueError when it is not such a file or is damaged, OSError when it cannot be read.
        """
        arrays, metadata = _map(Path(path))
        try:
            return cls(arrays, json.loads(metadata["files"]))
        except KeyError as error:
            raise ValueError(f"{path} lacks {error}") from error


def _flat(parts: Sequence[np.ndarray], dtype: Any) -> np.ndarray:
    return np.concatenate(parts).astype(dtype) if parts else np.zeros(0, dtype=dtype)


def _offsets(lengths: Sequence[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)


def _numbers(name: str, values: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    return {
        f"{_NUMBERS}{name}": _flat(values, np.float64),
        f"{_NUMBERS}{name}.offsets": _offsets([len(v) for v in values]),
    }


def _map(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Arrays backed by the file itself: safetensors' numpy reader would copy the whole set into memory."""
    with path.open("rb") as file:
        head = file.read(8)
        if len(head) < 8:
            raise ValueError(f"{path} is not a safetensors file")
        size = struct.unpack("<Q", head)[0]
        if size > path.stat().st_size:
            raise ValueError(f"{path} is truncated")
        header = json.loads(file.read(size))
    if not isinstance(header, dict):
        raise ValueError(f"{path} is not a safetensors file")
    metadata = header.pop("__metadata__", {})
    arrays = {}
    for name, entry in header.items():
        dtype, shape, (start, end) = _DTYPES[entry["dtype"]], tuple(entry["shape"]), entry["data_offsets"]
        if np.prod(shape, dtype=np.int64) * np.dtype(dtype).itemsize != end - start:
            raise ValueError(f"{path}: {name} has a wrong size")
        # An empty stretch cannot be mapped.
        arrays[name] = (
            np.memmap(path, dtype=dtype, mode="r", offset=8 + size + start, shape=shape)
            if end > start
            else np.zeros(shape, dtype=dtype)
        )
    return arrays, metadata
