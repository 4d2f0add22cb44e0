"""A decoder without some of its heads and channels as a plain model of its own: what a pruned one is compared with."""

from __future__ import annotations

import copy
from typing import Any

import tiny
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

HEADS, GROUP, SIZE = 4, 2, 6
"""key-value heads of `family`, queries of each, and their size"""
CHANNELS = 20
CONFIGS = {"llama": LlamaConfig, "mistral": MistralConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}


def family(name: str, seed: int = 0) -> Any:
    """A tiny model of a family, with biases where it has them, whose heads are not its hidden size."""
    torch.manual_seed(seed)
    config = CONFIGS[name](
        vocab_size=tiny.VOCABULARY,
        hidden_size=tiny.WIDTH,
        intermediate_size=CHANNELS,
        num_hidden_layers=2,
        num_attention_heads=HEADS * GROUP,
        num_key_value_heads=HEADS,
        head_dim=SIZE,
        max_position_embeddings=64,
        pad_token_id=2,
        **({"attention_bias": True} if name == "llama" else {}),
    )
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model.eval()


def places(kept: list[int], size: int) -> list[int]:
    return [unit * size + at for unit in kept for at in range(size)]


def smaller(model: Any, heads: list[list[int]], channels: list[list[int]]) -> Any:
    """A plain model, or layers put together by hand, with these key-value heads and channels of each block."""
    small = copy.deepcopy(model)
    for block, units, lanes in zip(small.model.layers, heads, channels, strict=True):
        group, size = block.self_attn.num_key_value_groups, block.self_attn.head_dim
        for word, rows in (("q_proj", places(units, group * size)), ("k_proj", places(units, size))):
            only(getattr(block.self_attn, word), rows, 0)
        only(block.self_attn.v_proj, places(units, size), 0)
        only(block.self_attn.o_proj, places(units, group * size), 1)
        only(block.mlp.gate_proj, lanes, 0)
        only(block.mlp.up_proj, lanes, 0)
        only(block.mlp.down_proj, lanes, 1)
    return small


def only(layer: Any, places: list[int], dim: int) -> None:
    """Of a linear layer, these rows or columns."""
    weight = layer.weight.detach()
    layer.weight = torch.nn.Parameter(weight[places] if dim == 0 else weight[:, places], requires_grad=False)
    if dim == 0 and layer.bias is not None:
        layer.bias = torch.nn.Parameter(layer.bias.detach()[places], requires_grad=False)
    layer.out_features, layer.in_features = layer.weight.shape
