"""The weight files of a model folder, and their fingerprint. Read without torch and without transformers."""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lrft.errors import LrftError, MissingError

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def cache_dir() -> Path:
    """`$LRFT_CACHE`, or `~/.cache/lrft`: converted models and remembered fingerprints. Not created here."""
    return Path(os.environ.get("LRFT_CACHE") or "~/.cache/lrft").expanduser()


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model folder, chosen as transformers does: the single file, else the index.

    Raises MissingError when the folder is no model, holds only pickles, or lacks a shard; LrftError when the
    index cannot be read.
    """
    if not (folder / "config.json").is_file():
        raise MissingError(f"{folder} is not a model folder (no config.json)", _instead_of(folder))
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    if not index.is_file():
        raise _no_safetensors(folder)
    try:
        shards = sorted({Path(name).as_posix() for name in json.loads(index.read_text("utf-8"))["weight_map"].values()})
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise LrftError(f"{index} is not an index of safetensors shards: {error}") from error
    for shard in shards:
        if Path(shard).is_absolute() or ".." in Path(shard).parts:
            raise LrftError(f"{index} names {shard!r}, which is not a file in its folder")
    absent = [shard for shard in shards if not (folder / shard).is_file()]
    if absent:
        raise MissingError(f"{folder} lacks {len(absent)} of {len(shards)} shards, the first is {absent[0]}")
    return [folder / shard for shard in shards]


def _instead_of(folder: Path) -> str | None:
    """What to do with a folder that is no model."""
    ggufs = sorted(folder.glob("*.gguf"))
    if ggufs:
        return f"It contains {ggufs[0].name}: use that file instead of the folder."
    if any((folder / name).is_file() for name in ("lrft.json", "adapter_config.json", "run.json")):
        merged = f"lrft merge {folder} -o FOLDER writes a model"
        return f"It contains an adapter: {merged}, and adapter.start_from: {folder} trains it further."
    return None


def _no_safetensors(folder: Path) -> MissingError:
    pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
    if pickles:
        return MissingError(
            f"{folder} has its weights only as pickles ({pickles[0]}); loading a pickle can execute arbitrary code",
            "Use a revision with model.safetensors, or convert the weights in a trusted environment.",
        )
    return MissingError(f"{folder} has no weights: no model.safetensors, no model.safetensors.index.json")


def fingerprint(folder: Path) -> str:
    """sha256 over names, dtypes, shapes and bytes of all stored tensors; the same however they are sharded.

    Raises MissingError as `weight_files`, LrftError when a file is damaged.
    """
    files = weight_files(folder)

    def compute() -> str:
        with ThreadPoolExecutor() as pool:  # hashlib releases the interpreter lock
            digests = [digest for of_file in pool.map(_tensor_digests, files) for digest in of_file]
        return hashlib.sha256("\n".join(sorted(digests)).encode()).hexdigest()

    return remembered("fingerprints", files, compute)


def remembered(kind: str, files: list[Path], compute: Callable[[], str]) -> str:
    """`compute()`, a function of the content of `files`; or what it said before, while they are unchanged.

    Kept below `cache_dir()`/`kind`, by path, size and times of the files: of modification, which a copy can bring
    along, and of change, which only the operating system sets.
    """
    stats = [path.stat() for path in files]
    seen = [
        (str(path.resolve()), s.st_size, s.st_mtime_ns, s.st_ctime_ns) for path, s in zip(files, stats, strict=True)
    ]
    note = cache_dir() / kind / hashlib.sha256(json.dumps(seen).encode()).hexdigest()
    with contextlib.suppress(OSError):
        return note.read_text("ascii")
    value = compute()
    # A file of the last two seconds may be written again within one tick of its clock: not remembered.
    if time.time() - max(stat.st_mtime for stat in stats) > 2:
        with contextlib.suppress(OSError):  # only speed is lost where the cache cannot be written
            note.parent.mkdir(parents=True, exist_ok=True)
            part = note.with_suffix(f".{os.getpid()}")
            part.write_text(value, "ascii")
            part.rename(note)
    return value


def _tensor_digests(path: Path) -> list[str]:
    """One line per tensor of a safetensors file: name, dtype, shape and the sha256 of its bytes."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            start = 8 + int.from_bytes(content[:8], "little")
            header = json.loads(content[8:start])
            header.pop("__metadata__", None)
            if start + max((e["data_offsets"][1] for e in header.values()), default=0) != len(content):
                raise LrftError(f"{path} is damaged: its length does not match its header")
            return [_digest_line(content, start, name, entry) for name, entry in header.items()]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise LrftError(f"{path} is not a safetensors file: {error}") from error


def _digest_line(content: mmap.mmap, start: int, name: str, entry: dict[str, list[int]]) -> str:
    begin, end = (start + offset for offset in entry["data_offsets"])
    with memoryview(content) as view, view[begin:end] as data:  # no copy of the tensor
        digest = hashlib.sha256(data).hexdigest()
    content.madvise(mmap.MADV_DONTNEED)  # pages that were read would count as this process's memory
    return json.dumps([name, entry["dtype"], entry["shape"], digest])
