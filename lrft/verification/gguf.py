"""Check of a .gguf file: read back by transformers, its logits against those of base + adapter, and its tokens."""

from __future__ import annotations

import contextlib
import io
import math
from dataclasses import dataclass
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
TOLERANCE |= {"q6_k": 0.15, "q5_k_m": 0.25, "q4_k_m": 0.4, "q4_k_s": 0.4, "q3_k_m": 0.6}


# Keys of a configuration that say nothing about logits, or that a file cannot have.
NOT_IN_LOGITS = ("architectures", "dtype", "use_cache", "initializer_range", "transformers_version")


@dataclass(frozen=True)
class Read:
    """unread: keys of the configuration that transformers does not read from the file, and that its logits need. They
    were then taken from the base: the difference is that of the weights."""

    difference: Difference
    unread: tuple[str, ...] = ()


def verify_gguf(file: Path, adapter: Path, *, base_folder: Path, dtype: str) -> Read:
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
    config = model.config
    del model, attached
    own = adapter if (adapter / "tokenizer_config.json").is_file() else base_folder
    trained = load_tokenizer(own, trusted)

    def difference(config: Any = None) -> tuple[Difference, Any]:
        """(as transformers reads the file, the configuration that it was read with). config: None for the file's."""
        with contextlib.redirect_stderr(io.StringIO()):  # a progress bar
            read, tokenizer = read_gguf(file, config)
        refuse_other_tokens(file, tokenizer, trained, rows)
        got = logits(read.to(expected[0].device), rows)
        return compare(got, expected, untouched, tolerance=TOLERANCE[dtype], dtype="float32"), read.config

    try:
        found, read_as = difference()
    except LrftError as error:
        error.hint = error.hint or f"{file} is written and was not checked; llama.cpp may well read it."
        raise
    if found.relative <= found.tolerance:
        return Read(found)
    with contextlib.suppress(LrftError):  # of weights that do not fit, as a pruned model's
        again, _ = difference(config)
        if again.relative <= again.tolerance:
            return Read(again, differing(config, read_as))
    raise CheckFailed(
        f"{file.name} and adapter differ by {found.relative:.1e} of the largest logit (tolerance "
        f"{found.tolerance:.0e}); same first token at {found.same_first:.2%} of positions",
        f"The folder was kept for inspection: {file.parent}.",
    )


def differing(config: Any, other: Any) -> tuple[str, ...]:
    """Keys that two configurations have different values for."""
    one, two = config.to_dict(), other.to_dict()
    keys = (key for key in one if not key.startswith("_") and not key.endswith("token_id"))
    return tuple(key for key in keys if key not in NOT_IN_LOGITS and not same(one[key], two.get(key)))


def same(one: Any, other: Any) -> bool:
    """Equal, numbers as far as float32 goes: the file has no other."""
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-6)
    return bool(one == other)


def refuse_other_tokens(file: Path, tokenizer: Any, trained: Any, rows: list[torch.Tensor]) -> None:
    """Raises CheckFailed when the file has other tokens than the trained tokenizer, or when they read the probe's texts
    otherwise. Those are without special tokens: around them transformers' reader splits on its own."""
    found, missing = tokens_in(file), []
    for token, number in trained.get_vocab().items():
        if number >= len(found) or found[number] not in (token, token.replace("▁", " ")):
            missing.append(token)
    if missing:
        raise CheckFailed(f"{file.name} lacks {len(missing):,} tokens of the trained tokenizer, {missing[0]!r} first")
    for text in (trained.decode(row, skip_special_tokens=True) for row in rows):
        wanted, got = (t(text, add_special_tokens=False)["input_ids"] for t in (trained, tokenizer))
        if wanted != got:
            raise CheckFailed(f"the tokenizer in {file.name} splits a text of the probe otherwise: {text[:60]!r}")


def tokens_in(file: Path) -> list[str]:
    """The file's tokens, by their ids."""
    from gguf import GGUFReader

    return list(GGUFReader(file).fields["tokenizer.ggml.tokens"].contents())
