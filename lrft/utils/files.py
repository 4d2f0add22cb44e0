"""Files that are whole or absent: written beside, fsynced, renamed. JSON and safetensors only, never pickle."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lrft.errors import CheckFailed, LrftError, UsageError
from lrft.utils.text import byte_size

if TYPE_CHECKING:
    from torch import Tensor

UNFINISHED = ".unfinished-"
# What `write_whole` and `point` name their half-written files, and what the safetensors library does.
LEFTOVER = re.compile(r"\..+\.unfinished-\w+|\.tmp[A-Za-z0-9]{6}")
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def room_for(path: Path, wanted: int | None = None) -> Iterator[None]:
    """Turn a full disk or a refused write below `path` into one plain sentence. `wanted` in bytes, when known."""
    try:
        yield
    except Exception as error:
        # safetensors wraps the operating system's error in its own type: the words are all that is left of it
        full = isinstance(error, OSError) and error.errno in NO_SPACE
        if not full and "No space left on device" not in str(error):
            if isinstance(error, PermissionError):
                raise LrftError(f"{path}: writing is not permitted", "Check the folder's owner and mode.") from error
            raise
        free = shutil.disk_usage(existing_parent(path)).free
        requires = f"needs {byte_size(wanted)}, " if wanted else ""
        raise LrftError(
            f"{path}: the disk is full ({requires}{byte_size(free)} are free)",
            "Complete files are intact. Free some space and repeat the command; training continues with --resume.",
        ) from error


def existing_parent(path: Path) -> Path:
    """The nearest folder at or above `path` that exists."""
    return next(p for p in [path, *path.resolve().parents] if p.exists())


def write_whole(path: Path, write: Callable[[Path], None]) -> None:
    """`write` a temporary file in the same folder, then make it `path` in one step, with the mode the umask gives."""
    with room_for(path):
        handle, name = tempfile.mkstemp(prefix=f".{path.name}{UNFINISHED}", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            write(temporary)
            apply_umask(temporary)
            sync(temporary)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        sync(path.parent)


def write_bytes(path: Path, content: bytes) -> None:
    def write(temporary: Path) -> None:
        temporary.write_bytes(content)

    write_whole(path, write)


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Strict JSON: NaN and infinity raise ValueError instead of writing what no other reader accepts."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Raises CheckFailed when the file is missing or is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckFailed(f"{path} is missing") from None
    except (ValueError, OSError) as error:
        raise CheckFailed(f"{path} cannot be read: {error}") from None


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """A safetensors file of contiguous CPU copies. {"format": "pt"} is in the metadata, as other tools expect."""
    from safetensors.torch import save_file

    flat: dict[str, Tensor] = {}
    places: set[int] = set()
    for name, tensor in tensors.items():
        mine = tensor.detach().cpu().contiguous()
        place = mine.untyped_storage().data_ptr()
        flat[name] = mine.clone() if place in places else mine  # the format has no tensors that share memory
        places.add(place)
    with room_for(path, sum(t.numel() * t.element_size() for t in flat.values())):
        write_whole(path, lambda temporary: save_file(flat, temporary, {"format": "pt", **(metadata or {})}))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Raises CheckFailed when the file is missing or is no whole safetensors file."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except FileNotFoundError:
        raise CheckFailed(f"{path} is missing") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckFailed(f"{path} is not a complete safetensors file: {error}") from None


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def scratch_for(out: Path) -> Iterator[Path]:
    """A new folder beside `out`, to become it by a rename; removed at the end otherwise.

    What killed processes have left of earlier ones is removed first: a living one holds a lock on its own.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    for left in out.parent.glob(f".{glob.escape(out.name)}{UNFINISHED}*"):
        handle = os.open(left, os.O_RDONLY)
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(left)
        os.close(handle)
    scratch = out.with_name(f".{out.name}{UNFINISHED}{os.getpid()}")
    scratch.mkdir()
    handle = os.open(scratch, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield scratch
    finally:
        os.close(handle)
        shutil.rmtree(scratch, ignore_errors=True)


def leftovers(folder: Path) -> Iterator[Path]:
    """What a process that was killed while it wrote into `folder` has left there."""
    found = (path for path in folder.iterdir() if LEFTOVER.fullmatch(path.name))
    return (path for path in found if path.is_symlink() or not path.is_dir())


def sync(path: Path) -> None:
    """Make a file's bytes, or a folder's list of names, survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def point(link: Path, target: Path) -> None:
    """Make the symbolic link `link` lead to `target` (relative, so that the folder can be moved), in one step."""
    temporary = link.with_name(f".{link.name}{UNFINISHED}{os.getpid()}")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(os.path.relpath(target, link.parent))
    temporary.replace(link)
    sync(link.parent)


def apply_umask(path: Path) -> None:
    """The mode that the umask gives to what is new: temporary files, and those of safetensors, are private at first."""
    mask = os.umask(0o022)  # which the operating system only tells by setting it
    os.umask(mask)
    path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)


def refuse_taken(out: Path) -> None:
    """Raises UsageError for a folder to be written that exists and has something in it."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} exists and is not empty", "Choose another folder with -o.")
