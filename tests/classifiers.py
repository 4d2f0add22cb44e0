"""Tiny bases of decoders and encoders, and labelled rows that they can learn."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import runs
import tiny_tokenizers
import torch
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    DistilBertConfig,
    DistilBertForMaskedLM,
    LlamaConfig,
    LlamaForCausalLM,
    ModernBertConfig,
    ModernBertForMaskedLM,
    PreTrainedModel,
    RobertaConfig,
    RobertaForMaskedLM,
)

from lrft.model.head import Head

WIDTH = 24
SIZES: dict[str, Any] = {
    **{"hidden_size": WIDTH, "intermediate_size": 44, "num_hidden_layers": 2, "num_attention_heads": 4},
    **{"max_position_embeddings": 128, "pad_token_id": 2},
}
STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
ENDS = {"bos_token_id": 0, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
DISTIL: dict[str, Any] = {"dim": WIDTH, "hidden_dim": 44, "n_layers": 2, "n_heads": 4, "pad_token_id": 2}
DISTIL |= {"dropout": 0.0, "attention_dropout": 0.0, "seq_classif_dropout": 0.0}
BASES: dict[str, Callable[[int], PreTrainedModel]] = {
    "llama": lambda n: LlamaForCausalLM(LlamaConfig(vocab_size=n, num_key_value_heads=2, **SIZES)),
    "bert": lambda n: BertForMaskedLM(BertConfig(vocab_size=n, **SIZES, **STILL)),
    "modernbert": lambda n: ModernBertForMaskedLM(ModernBertConfig(vocab_size=n, **SIZES, **ENDS)),
    "roberta": lambda n: RobertaForMaskedLM(RobertaConfig(vocab_size=n, **SIZES, **STILL)),
    "distilbert": lambda n: DistilBertForMaskedLM(DistilBertConfig(vocab_size=n, **DISTIL)),
}
LABELS = ("bad", "good", "so so")
HEAD = Head("sequence", LABELS, "single_label_classification", pad_id=2)
WORDS = {"good": ["hello", "world"], "bad": ["forty", "two"], "so so": ["time", "what"]}


def save_base(folder: Path, name: str, **options: Any) -> Path:
    tokenizer = tiny_tokenizers.chatml()
    torch.manual_seed(0)
    model = BASES[name](len(tokenizer))
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter.ndim == 2 and "embed" not in parameter_name:
                parameter.mul_(3.0)  # far enough from linear that a wrong gradient shows
    model.save_pretrained(folder, **options)
    tokenizer.save_pretrained(folder)
    return folder


def stock(folder: Path, head: Head, **options: Any) -> Any:
    """As transformers loads it."""
    given = {"num_labels": head.outputs, "pad_token_id": head.pad_id, "problem_type": head.problem, **options}
    return AutoModelForSequenceClassification.from_pretrained(folder, **given).eval()


def rows(n: int, seed: int = 0) -> list[dict[str, Any]]:
    """Texts of one to eight words, whose words tell the label."""
    chosen = random.Random(seed)
    made = []
    for k in range(n):
        label = LABELS[k % len(LABELS)]
        words = [chosen.choice(WORDS[label]) for _ in range(chosen.randint(1, 8))]
        made.append({"text": " ".join(words), "label": label})
    return made


def place(root: Path, name: str = "llama", made: list[dict[str, Any]] | None = None) -> runs.Place:
    """A place whose recipe trains a classifier."""
    save_base(root / "base", name)
    runs.write_rows(root / "train.jsonl", rows(24) if made is None else made)
    runs.write_rows(root / "validation.jsonl", rows(9, seed=1) if made is None else made[:6])
    found = runs.Place(root)
    path = found.write_recipe()
    path.write_text(path.read_text().replace("training:\n", "training:\n  objective: classification\n"))
    return found


def labels_of(folder: Path) -> dict[str, str]:
    found: dict[str, str] = json.loads((folder / "config.json").read_text())["id2label"]
    return found
