"""Small models that the pages in docs are measured on: random weights, rows of text, `lrft` as a command."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from lrft.utils import files

if TYPE_CHECKING:
    from tokenizers import Tokenizer

START, END = "<s>", "</s>"


def write_rows(path: Path, rows: Iterable[Mapping[str, str]]) -> None:
    files.write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def lrft(*arguments: str) -> str:
    """What a command prints. Raises CalledProcessError when it fails."""
    return subprocess.run(
        [sys.executable, "-m", "lrft", *arguments], check=True, stdout=subprocess.PIPE, text=True
    ).stdout


def write_llama(folder: Path, tokenizer: Tokenizer, *, blocks: int, inner: int, **special: str) -> None:
    """A Llama of width 256 with random weights, always the same, and its tokenizer. START and END are among its words.

    inner: width of the MLP. special: of PreTrainedTokenizerFast, beside START, END and the pad token, which is END.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=START, eos_token=END, pad_token=END, **special
    ).save_pretrained(folder)
    start, end = (tokenizer.token_to_id(word) for word in (START, END))
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=256,
        intermediate_size=inner,
        num_hidden_layers=blocks,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=64,
        tie_word_embeddings=False,
        bos_token_id=start,
        eos_token_id=end,
        pad_token_id=end,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
