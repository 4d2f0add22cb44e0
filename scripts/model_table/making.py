"""A tiny model of a family with a tokenizer, and rows to train it on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForImageTextToText, PreTrainedTokenizerFast

from model_table.families import FAMILIES, TOWERS, VOCABULARY
from model_table.others import class_of, is_text
from model_table.shrinking import shrunk

MOST_PARAMETERS = 6_000_000

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m['role'] + ': ' + m['content'] }}"
    "{{ eos_token if m['role'] == 'assistant' else '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
ROWS = [
    ("Who has a cat?", "Lily has a little cat."),
    ("Where?", "In the park."),
    ("What did Tom say to the big dog?", "He said: I want to play with you and find the red ball."),
    ("Why was she sad?", "She lost her toy."),
    ("Hi", "Hello, friend."),
    ("Tell a story.", "Once upon a time there was a girl named Lily, who loved to play outside in the sun."),
    ("Is it hot?", "Yes, very hot."),
    ("Did it rain?", "No, the sun was up."),
]


def make_model(family: str, folder: Path) -> Any:
    """A model with random weights in which every one matters, saved in `folder`."""
    config, auto = configuration(family)
    for part in (config, config.get_text_config()):
        for key, value in part.to_dict().items():
            if "drop" in key and isinstance(value, float):
                setattr(part, key, 0.0)
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in auto.from_config(config).parameters())
    if size > MOST_PARAMETERS:
        raise ValueError(f"{size:,} parameters at the least that its configuration was brought to")
    torch.manual_seed(0)
    model = auto.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            spread(name, parameter)
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return model


def configuration(family: str) -> tuple[Any, Any]:
    """The configuration of a tiny model, and the Auto class that builds it."""
    if family not in FAMILIES:
        return CONFIG_MAPPING[family].from_dict(shrunk(family)), class_of(family)
    kind, words = FAMILIES[family]
    auto = AutoModelForImageTextToText if family in TOWERS else class_of(kind)
    return AutoConfig.for_model(kind, **words), auto


def knows_text_alone(family: str) -> bool:
    return family not in TOWERS and (family in FAMILIES or is_text(family))


def spread(name: str, parameter: torch.Tensor) -> None:
    """Weights large enough that a wrong one shows; what is zero or not finite at random is made a number."""
    finite = bool(torch.isfinite(parameter).all())
    still = ("embed", "wte", "wpe", "conv", "time_", "norm", "ln_", "a_log", "dt_bias")
    if not finite or not parameter.any():
        parameter.normal_(0, 0.08)
    elif parameter.ndim > 1 and not any(word in name.lower() for word in still):
        parameter.mul_(0.12 / max(parameter.std().item(), 1e-6))


def make_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=min(480, VOCABULARY),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<pad>", "<s>", "</s>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator([text for row in ROWS for text in row], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", chat_template=TEMPLATE
    )


def write_rows(path: Path) -> Path:
    turns = [[{"role": "user", "content": q}, {"role": "assistant", "content": a}] for q, a in ROWS]
    path.write_text("".join(json.dumps({"messages": each}) + "\n" for each in turns))
    return path
