"""Check of a .gguf file: read back by transformers, its logits against those of base + adapter, and its tokens."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import torch

from lrft.adapters.peft_import import placed, read_any
from lrft.adapters.storage import load_saved
from lrft.errors import CheckFailed, LrftError
from lrft.loading.saved import load_as_trained
from lrft.model.gguf import read_gguf
from lrft.model.load import load_tokenizer
from lrft.runs.locate import trusts_remote_code
from lrft.runs.probe import probe
from lrft.verification.merge import Difference, compare, logits

# Largest logit difference over the largest logit, by the dtype of the matrices.
TOLERANCE = {"f32": 1e-4, "f16": 1e-2, "bf16": 5e-2, "q8_0": 1e-1}


def verify_gguf(file: Path, adapter: Path, *, base_folder: Path, dtype: str) -> Difference:
    """Compare on the probe of the adapter's run.

    Raises CheckFailed above the tolerance of `dtype`, or when the file's tokenizer or end token is another one;
    LrftError when transformers cannot read the file.
    """
    rows, trusted = probe(adapter, base_folder), trusts_remote_code(adapter)
    saved = read_any(adapter)
    model = load_as_trained(saved, base_folder, trust_remote_code=trusted, widen=True)
    attached = load_saved(model, placed(saved, model))
    expected = logits(model, rows)
    with attached.disabled():
        untouched = logits(model, rows)
    del model, attached
    with contextlib.redirect_stderr(io.StringIO()):  # a progress bar
        try:
            read, tokenizer = read_gguf(file)
        except LrftError as error:
            error.hint = error.hint or f"{file} is written and was not checked; llama.cpp may well read it."
            raise
    own = adapter if (adapter / "tokenizer_config.json").is_file() else base_folder
    refuse_other_tokens(file, tokenizer, load_tokenizer(own, trusted), rows)
    found = compare(
        logits(read.to(expected[0].device), rows), expected, untouched, tolerance=TOLERANCE[dtype], dtype="float32"
    )
    if not found.relative <= found.tolerance:
        raise CheckFailed(
            f"{file.name} and adapter differ by {found.relative:.1e} of the largest logit (tolerance "
            f"{found.tolerance:.0e}); same first token at {found.same_first:.2%} of positions",
            f"The folder was kept for inspection: {file.parent}.",
        )
    return found


def refuse_other_tokens(file: Path, tokenizer: Any, trained: Any, rows: list[torch.Tensor]) -> None:
    """Raises CheckFailed when the file's tokenizer reads the probe's texts as other tokens, or has other ones."""
    texts = [trained.decode(row) for row in rows]
    for text in texts:
        wanted, got = (t(text, add_special_tokens=False)["input_ids"] for t in (trained, tokenizer))
        if wanted != got:
            raise CheckFailed(f"the tokenizer in {file.name} splits a text of the probe otherwise: {text[:60]!r}")
    if len(tokenizer) != len(trained):
        raise CheckFailed(f"{file.name} has {len(tokenizer):,} tokens, the trained tokenizer has {len(trained):,}")
