"""A `.gguf` file, converted once into a folder of safetensors in float32."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

from lrft.errors import LrftError, MissingError
from lrft.model.conversion import kept
from lrft.model.load import quiet
from lrft.model.weights import remembered
from lrft.utils.files import sha256


def converted(gguf: Path, where: str) -> Path:
    """The folder made from `gguf`, named by its checksum; made now unless it is there and as it was recorded.

    Raises MissingError when the package gguf is not installed, LrftError when the file cannot be converted.
    """
    with gguf.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise LrftError(f"{where}: {gguf} is not a GGUF file")
    digest = remembered("digests", [gguf], lambda: sha256(gguf))
    return kept(digest, lambda folder: _convert(gguf, folder), where=where, source=gguf.name)


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
