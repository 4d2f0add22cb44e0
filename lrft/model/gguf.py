"""A `.gguf` file, converted once into a folder of safetensors in float32."""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import shutil
from pathlib import Path
from typing import Any

from lrft.errors import LrftError, MissingError
from lrft.model.load import quiet
from lrft.model.weights import cache_dir, fingerprint, remembered
from lrft.utils.files import sha256, sync

RECORD = "converted.json"  # written last: a folder that has it is complete


def converted(gguf: Path, where: str) -> Path:
    """The folder made from `gguf`, named by its checksum; made now unless it is there and as it was recorded.

    Raises MissingError when the package gguf is not installed, LrftError when the file cannot be converted.
    """
    with gguf.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise LrftError(f"{where}: {gguf} is not a GGUF file")
    digest = remembered("digests", [gguf], lambda: sha256(gguf))
    models = cache_dir() / "models"
    folder, part = models / digest[:16], models / f"{digest[:16]}.part"
    try:
        models.mkdir(parents=True, exist_ok=True)
        with (models / f"{digest[:16]}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # a second process waits here, then finds the first one's result
            if not _intact(folder):
                # Whoever holds the lock may remove what an interrupted conversion left behind.
                shutil.rmtree(part, ignore_errors=True)
                shutil.rmtree(folder, ignore_errors=True)
                _convert(gguf, part)
                _record(part, source=gguf.name, sha256=digest)
                part.rename(folder)
    except OSError as error:
        raise LrftError(f"{where}: {gguf.name} could not be converted under {models}: {error}") from error
    return folder


def read_gguf(gguf: Path, config: Any = None) -> tuple[Any, Any]:
    """(model in float32, tokenizer) of a file, on the CPU. config: a configuration to read the weights into, in the
    place of the file's own.

    Raises MissingError when the package gguf is not installed, LrftError when transformers cannot read it.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils import is_gguf_available

    if not is_gguf_available():
        raise MissingError(f"Reading {gguf.name} requires the package gguf", "pip install 'lrft[gguf]'")
    place: dict[str, Any] = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(**place)
            own = {} if config is None else {"config": config}
            # Without dequantize=True it stays quantized: it can neither be saved nor carry adapters.
            model = AutoModelForCausalLM.from_pretrained(
                **place, **own, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
            )
    except Exception as error:  # the reader raises whatever a damaged or unknown file makes it stumble over
        raise LrftError(f"transformers cannot read {gguf}: {type(error).__name__}: {error}") from error
    return model, tokenizer


def _convert(gguf: Path, folder: Path) -> None:
    """Writes weights (float32), configuration, generation configuration and tokenizer of `gguf`."""
    model, tokenizer = read_gguf(gguf)
    folder.mkdir()
    # transformers imports DeepSpeed here where that is installed, and it speaks: not into what a command prints.
    with quiet(), contextlib.redirect_stdout(io.StringIO()):
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _record(folder: Path, **facts: str) -> None:
    facts["fingerprint"] = fingerprint(folder)
    (folder / RECORD).write_text(json.dumps(facts, indent=2) + "\n", "utf-8")
    for path in (*folder.iterdir(), folder):  # on disk before the rename says that it is complete
        sync(path)


def _intact(folder: Path) -> bool:
    """True when `folder` holds a complete conversion whose weights are those that were recorded."""
    try:
        recorded = json.loads((folder / RECORD).read_text("utf-8"))["fingerprint"]
        return bool(fingerprint(folder) == recorded)
    except (OSError, ValueError, KeyError, LrftError):
        return False
