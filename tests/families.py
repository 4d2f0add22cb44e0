"""Configurations of families of transformers at tiny sizes, and models of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from lrft.model.classes import auto_class

IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
SMALL = {
    **{"vocab_size": 400, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256},
    **IDS,
}
VISION = {
    **{"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 1, "num_attention_heads": 2},
    **{"image_size": 28, "patch_size": 14},
}
CROSS = {
    "text_config": {**SMALL, "num_hidden_layers": 3, "cross_attention_layers": [1]},
    "vision_config": {
        **{**VISION, "num_global_layers": 1, "attention_heads": 2, "vision_output_dim": 48},
        **{"intermediate_layers_indices": [0], "supported_aspect_ratios": [[1, 1]]},
    },
    "image_token_index": 390,
}
LLAVA = {
    "text_config": {**SMALL, "model_type": "llama"},
    "vision_config": {**VISION, "model_type": "clip_vision_model"},
    "image_token_index": 390,
}
MAMBA = {"vocab_size": 300, "hidden_size": 24, "state_size": 8, "num_hidden_layers": 2, **IDS}
ROUTED = {**SMALL, "num_local_experts": 4, "num_experts_per_tok": 2}
GATED = {
    **SMALL,
    **{"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 24},
}
LATENT = {
    **{**SMALL, "num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8},
    **{"qk_rope_head_dim": 8, "v_head_dim": 12, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1},
    **{"moe_intermediate_size": 24, "first_k_dense_replace": 1, "topk_group": 1},
}


def model_of(kind: str, words: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **words)
    config.architectures = {"mllama": ["MllamaForConditionalGeneration"]}.get(kind)
    return auto_class(config, Path("here")).from_config(config).eval()
