"""Tiny models made on the spot: real architectures of transformers with random weights."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

VOCABULARY = 97
WIDTH = 24


def llama(*, tied: bool = False, layers: int = 2, vocabulary: int = VOCABULARY) -> PreTrainedModel:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=WIDTH,
            intermediate_size=44,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=256,
            tie_word_embeddings=tied,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=2,
        )
    )


def gpt2() -> PreTrainedModel:
    """Conv1D layers, biases, learned positions, tied embeddings."""
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY,
            n_embd=WIDTH,
            n_layer=2,
            n_head=4,
            n_positions=256,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=2,
        )
    )


MODELS = {"llama": llama, "llama-tied": lambda: llama(tied=True), "gpt2": gpt2}


def make(name: str, seed: int = 0) -> PreTrainedModel:
    """A model whose biases and norms are not the trivial ones, in evaluation mode."""
    torch.manual_seed(seed)
    model = MODELS[name]()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
            elif "embed" not in parameter_name and "wte" not in parameter_name:
                parameter.mul_(4.0)  # far enough from linear that a wrong weight shows
    return model.eval()


def tokens(rows: int = 2, length: int = 11, seed: int = 1) -> torch.Tensor:
    return torch.randint(3, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed))


def logits(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=ids).logits


def disturb(parameters: list[nn.Parameter], seed: int = 2, size: float = 0.2) -> None:
    """Put trained tensors somewhere that no start is."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in parameters:
            p.add_(size * torch.randn(p.shape, generator=generator, dtype=p.dtype))


def save(model: PreTrainedModel, folder: Path, **options: object) -> Path:
    model.save_pretrained(folder, **options)
    return folder
