"""What only a GPU is asked: how much of an 8B model it holds, and which share of its arithmetic a step uses."""

from __future__ import annotations

import time
from typing import Any

SHARE_FOR_WEIGHTS = 0.4
BYTES = 2  # of a weight in bfloat16
MATRIX = 8192
PRODUCTS = 20


def linear_weights(config: Any) -> tuple[int, int]:
    """(Weights of one layer's linear maps, weights of the head) of a Llama; `config` has transformers' names."""
    head = config.hidden_size // config.num_attention_heads
    attention = 2 * config.hidden_size * head * (config.num_attention_heads + config.num_key_value_heads)
    return attention + 3 * config.hidden_size * config.intermediate_size, config.hidden_size * config.vocab_size


def layers_that_fit(config: Any, memory: float) -> int:
    """How many layers leave most of `memory` bytes to training; at most those of `config`."""
    layer, head = linear_weights(config)
    return max(1, min(config.num_hidden_layers, int((SHARE_FOR_WEIGHTS * memory / BYTES - 2 * head) / layer)))


def step_flops(config: Any, tokens: int, labelled: int) -> float:
    """Of the frozen base in one step: 2 per weight and token forward, 2 backward; the head where tokens are labelled.

    Attention's own products and the adapter's are not counted.
    """
    layer, head = linear_weights(config)
    return 4.0 * (config.num_hidden_layers * layer * tokens + head * labelled)


def matmul_rate() -> float:
    """bfloat16 operations per second of this GPU in a large square product: what utilisation is counted against."""
    import torch

    a, b = (torch.randn(MATRIX, MATRIX, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    a @ b
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(PRODUCTS):
        a @ b
    torch.cuda.synchronize()
    return PRODUCTS * 2 * MATRIX**3 / (time.perf_counter() - began)
