"""Sizes of tiny models of transformers, by the kind of what they hold."""

from __future__ import annotations

import tiny

SMALL = {
    "vocab_size": tiny.VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 12}
ROUTED = {
    **{"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1, "moe_intermediate_size": 12},
    **{"first_k_dense_replace": 1, "n_group": 1, "topk_group": 1},
}
LINEAR = {
    **{"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 4, "linear_value_head_dim": 4},
    "layer_types": ["linear_attention", "full_attention"],
}
HEADS = {"head_dim": 4}
SSM = {"num_heads": 8, "head_dim": 4, "expand": 2, "n_groups": 1, "chunk_size": 8, "state_size": 4}
