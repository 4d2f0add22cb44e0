"""Families of language models and the configuration of a tiny one of each.

A family is (model type of transformers, what its configuration is given over `SMALL`). Those of `TOWERS` also see or
hear: their text part is given as `text_config`.
"""

from __future__ import annotations

from typing import Any

VOCABULARY = 512
IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
SMALL = {
    **{"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512},
    **IDS,
}
HEADS = SMALL | {"head_dim": 8}
MIXED = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 8}
LOCAL = {"num_local_experts": 4, "num_experts_per_tok": 2}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
SHARED = EXPERTS | {"shared_expert_intermediate_size": 24}
ROUTED = {
    **{"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "n_group": 1, "topk_group": 1},
    "n_shared_experts": 1,
}
LATENT = {
    **{"q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8},
    "num_key_value_heads": 4,
}
OLDER = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512, **IDS}
PLAIN = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, **IDS}
DELTA = {
    **{"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8},
    "layer_types": ["linear_attention", "full_attention"],
}
STATE = {
    **{"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_d_state": 8, "mamba_expand": 2},
    "mamba_chunk_size": 8,
}
CONVOLUTION = {"layer_types": ["conv", "full_attention"]}

GEMMA_3N = HEADS | {
    **{"num_hidden_layers": 4, "intermediate_size": [48] * 4, "sliding_window": 8, "laurel_rank": 4},
    **{"layer_types": MIXED["layer_types"] * 2, "num_kv_shared_layers": 2, "activation_sparsity_pattern": [0.0] * 4},
    **{"vocab_size_per_layer_input": VOCABULARY, "hidden_size_per_layer_input": 8, "altup_num_inputs": 4},
}
GEMMA_4 = HEADS | {
    **MIXED,
    **{"vocab_size_per_layer_input": VOCABULARY, "hidden_size_per_layer_input": 8, "global_head_dim": 8},
    "num_kv_shared_layers": 0,
}
LLAMA_4 = HEADS | {
    **{"num_local_experts": 4, "num_experts_per_tok": 1, "intermediate_size_mlp": 48, "interleave_moe_layer_step": 2},
    **{"attention_chunk_size": 16, "moe_layers": [1], "no_rope_layers": [1, 0]},
    "layer_types": ["chunked_attention", "full_attention"],
}

TEXT: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama 2, 3": ("llama", SMALL),
    "Mistral": ("mistral", HEADS | {"sliding_window": 8}),
    "Ministral": ("ministral", HEADS | MIXED),
    "Ministral 3": ("ministral3", HEADS),
    "Mixtral": ("mixtral", SMALL | LOCAL),
    "Qwen 2, 2.5": ("qwen2", SMALL),
    "Qwen 2 MoE": ("qwen2_moe", SMALL | SHARED),
    "Qwen 3": ("qwen3", HEADS),
    "Qwen 3 MoE": ("qwen3_moe", HEADS | EXPERTS),
    "Qwen 3 Next": ("qwen3_next", HEADS | SHARED | DELTA),
    "Qwen 3.5 (text)": ("qwen3_5_text", HEADS | DELTA),
    "Qwen 3.5 MoE (text)": ("qwen3_5_moe_text", HEADS | SHARED | DELTA),
    "Gemma": ("gemma", HEADS),
    "Gemma 2": ("gemma2", HEADS | {"sliding_window": 8, "query_pre_attn_scalar": 8}),
    "Gemma 3 (text)": ("gemma3_text", HEADS | MIXED | {"query_pre_attn_scalar": 8}),
    "Gemma 3n (text)": ("gemma3n_text", GEMMA_3N),
    "Gemma 4 (text)": ("gemma4_text", GEMMA_4),
    "VaultGemma": ("vaultgemma", HEADS | MIXED),
    "RecurrentGemma": (
        "recurrent_gemma",
        HEADS
        | {"num_hidden_layers": 3, "lru_width": 32, "attention_window_size": 8, "conv1d_width": 4}
        | {"block_types": ["recurrent", "recurrent", "attention"]},
    ),
    "Phi 1, 2": ("phi", SMALL | {"num_key_value_heads": 4}),
    "Phi 3, 4": ("phi3", SMALL),
    "Phi 3.5 MoE": ("phimoe", SMALL | LOCAL),
    "GPT-2": ("gpt2", OLDER),
    "GPT-Neo": (
        "gpt_neo",
        PLAIN
        | {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "intermediate_size": 48}
        | {"window_size": 8, "max_position_embeddings": 512},
    ),
    "GPT-J": ("gptj", OLDER | {"rotary_dim": 4}),
    "GPT-NeoX, Pythia": ("gpt_neox", SMALL | {"num_key_value_heads": None}),
    "GPT-BigCode": ("gpt_bigcode", OLDER),
    "gpt-oss": ("gpt_oss", HEADS | LOCAL | MIXED),
    "CodeGen": ("codegen", OLDER | {"rotary_dim": 4}),
    "OPT": ("opt", PLAIN | {"ffn_dim": 48, "word_embed_proj_dim": 32, "max_position_embeddings": 512}),
    "BLOOM": ("bloom", {"vocab_size": VOCABULARY, "hidden_size": 32, "n_layer": 2, "n_head": 4, **IDS}),
    "Falcon": ("falcon", PLAIN),
    "Falcon (ALiBi)": ("falcon", PLAIN | {"alibi": True, "new_decoder_architecture": False}),
    "Falcon Mamba": ("falcon_mamba", PLAIN | {"state_size": 8}),
    "Falcon H1": ("falcon_h1", HEADS | STATE | {"mamba_d_ssm": 64}),
    "MPT": ("mpt", {"vocab_size": VOCABULARY, "d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 512, **IDS}),
    "StableLM": ("stablelm", SMALL),
    "StarCoder 2": ("starcoder2", SMALL),
    "OLMo": ("olmo", SMALL),
    "OLMo 2": ("olmo2", SMALL),
    "OLMo 3": ("olmo3", SMALL | MIXED),
    "OLMoE": ("olmoe", SMALL | EXPERTS),
    "FlexOlmo": ("flex_olmo", SMALL | EXPERTS),
    "Granite": ("granite", SMALL | {"logits_scaling": 2.0, "residual_multiplier": 0.5, "embedding_multiplier": 2.0}),
    "Granite MoE": ("granitemoe", SMALL | LOCAL),
    "Granite 4 (hybrid)": (
        "granitemoehybrid",
        SMALL | LOCAL | STATE | {"shared_intermediate_size": 24, "layer_types": ["mamba", "attention"]},
    ),
    "Command R": ("cohere", SMALL),
    "Command R7B, A": ("cohere2", SMALL | MIXED),
    "GLM": ("glm", HEADS),
    "GLM 4": ("glm4", HEADS),
    "GLM 4.5 (MoE)": ("glm4_moe", HEADS | ROUTED | {"first_k_dense_replace": 1}),
    "GLM 4.7 Flash": ("glm4_moe_lite", SMALL | LATENT | ROUTED | {"mlp_layer_types": ["dense", "sparse"]}),
    "SmolLM 3": ("smollm3", SMALL),
    "Nemotron": ("nemotron", SMALL),
    "Nemotron H": (
        "nemotron_h",
        HEADS
        | {"layers_block_type": ["mamba", "attention", "mlp"], "num_hidden_layers": 3, "mamba_num_heads": 8}
        | {"mamba_head_dim": 8, "n_groups": 1, "ssm_state_size": 8, "chunk_size": 8},
    ),
    "MiniMax": ("minimax", HEADS | LOCAL | {"layer_types": ["linear_attention", "full_attention"], "block_size": 8}),
    "MiniMax M2": ("minimax_m2", HEADS | LOCAL),
    "DeepSeek V2": ("deepseek_v2", SMALL | LATENT | ROUTED | {"first_k_dense_replace": 1}),
    "DeepSeek V3": ("deepseek_v3", SMALL | LATENT | ROUTED | {"first_k_dense_replace": 1}),
    "LFM 2": ("lfm2", SMALL | CONVOLUTION | {"block_ff_dim": 32, "block_multiple_of": 8}),
    "LFM 2 MoE": ("lfm2_moe", SMALL | CONVOLUTION | EXPERTS | {"num_dense_layers": 1}),
    "Mamba": ("mamba", PLAIN | {"state_size": 8}),
    "Mamba 2": (
        "mamba2",
        PLAIN | {"state_size": 8, "num_heads": 8, "head_dim": 8, "expand": 2, "n_groups": 1, "chunk_size": 8},
    ),
    "Jamba": (
        "jamba",
        SMALL
        | {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1}
        | {"num_experts": 4, "num_experts_per_tok": 2, "mamba_d_state": 8, "mamba_dt_rank": 4}
        | {"use_mamba_kernels": False},
    ),
    "Bamba": ("bamba", SMALL | STATE | {"attn_layer_indices": [1]}),
    "Zamba 2": (
        "zamba2",
        SMALL
        | {"num_hidden_layers": 3, "layer_types": ["mamba", "hybrid", "hybrid"], "mamba_d_state": 8}
        | {"layers_block_type": ["mamba", "hybrid", "hybrid"], "n_mamba_heads": 8, "mamba_ngroups": 1}
        | {"chunk_size": 8, "num_mem_blocks": 1, "use_shared_attention_adapter": False, "adapter_rank": 4}
        | {"num_key_value_heads": 4},
    ),
    "RWKV 4": ("rwkv", PLAIN | {"attention_hidden_size": 32, "context_length": 512}),
    "ERNIE 4.5": ("ernie4_5", HEADS),
    "ERNIE 4.5 MoE": (
        "ernie4_5_moe",
        SMALL
        | {"moe_num_experts": 4, "moe_k": 2, "moe_num_shared_experts": 1, "moe_intermediate_size": 24}
        | {"moe_layer_start_index": 1},
    ),
    "Hunyuan": ("hunyuan_v1_dense", HEADS),
    "EXAONE 4": ("exaone4", HEADS | MIXED),
    "Seed OSS": ("seed_oss", HEADS),
    "DBRX": (
        "dbrx",
        {"vocab_size": VOCABULARY, "d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 512, **IDS}
        | {"attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0}}
        | {"ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2, "hidden_size": 32}},
    ),
    "BitNet": ("bitnet", SMALL),
    "Llama 4 (text)": ("llama4_text", LLAMA_4),
    "Helium": ("helium", HEADS),
}

# Those that the plain configurations are enough for, by transformers' own names.
TEXT |= {kind: (kind, HEADS) for kind in (
    "apertus", "arcee", "biogpt", "cohere2_moe", "cwm", "diffllama", "doge", "fuyu", "gpt-sw3", "gpt_neox_japanese",
    "granitemoeshared", "hunyuan_v1_moe", "hyperclovax", "internlm3", "jais2", "jetmoe", "modernbert-decoder",
    "nanochat", "olmo_hybrid", "openai-gpt", "persimmon", "xlstm",
)}  # fmt: skip
TEXT |= {kind: (kind, HEADS | EXPERTS) for kind in ("afmoe", "exaone_moe", "hy_v3", "laguna", "mellum")}

VISION = {
    **{"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2},
    **{"image_size": 28, "patch_size": 14},
}
QWEN_TOWER = {
    **{"depth": 1, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 32},
    "patch_size": 14,
}
QWEN_IDS = {"image_token_id": 500, "video_token_id": 501, "vision_start_token_id": 502, "vision_end_token_id": 503}


def sections(*parts: int) -> dict[str, Any]:
    """Rotary embeddings whose sizes are shared out among time, height and width."""
    return {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": list(parts)}}


def typed(kind: str, config: dict[str, Any]) -> dict[str, Any]:
    return config | {"model_type": kind}


TOWERS: dict[str, tuple[str, dict[str, Any]]] = {
    "Qwen 2 VL": (
        "qwen2_vl",
        {"text_config": SMALL | sections(1, 1, 2), **QWEN_IDS}
        | {"vision_config": QWEN_TOWER | {"embed_dim": 32, "mlp_ratio": 2}},
    ),
    "Qwen 2.5 VL": (
        "qwen2_5_vl",
        {"text_config": SMALL | sections(1, 1, 2), **QWEN_IDS}
        | {"vision_config": QWEN_TOWER | {"fullatt_block_indexes": [0]}},
    ),
    "Qwen 3 VL": (
        "qwen3_vl",
        {"text_config": HEADS | sections(2, 1, 1), **QWEN_IDS}
        | {"vision_config": QWEN_TOWER | {"num_position_embeddings": 16, "deepstack_visual_indexes": [0]}},
    ),
    "Qwen 3.5": (
        "qwen3_5",
        {"text_config": HEADS | DELTA, "vision_config": QWEN_TOWER | {"num_position_embeddings": 16}, **QWEN_IDS},
    ),
    "Qwen 3.5 MoE": (
        "qwen3_5_moe",
        {"text_config": HEADS | SHARED | DELTA, **QWEN_IDS}
        | {"vision_config": QWEN_TOWER | {"num_position_embeddings": 16}},
    ),
    "Gemma 3": (
        "gemma3",
        {"text_config": HEADS | MIXED | {"query_pre_attn_scalar": 8}, "mm_tokens_per_image": 4}
        | {"vision_config": VISION | {"vision_use_head": False}, "image_token_index": 500}
        | {"boi_token_index": 501, "eoi_token_index": 502},
    ),
    "Gemma 3n": ("gemma3n", {"text_config": GEMMA_3N}),
    "Gemma 4": ("gemma4", {"text_config": GEMMA_4, "vision_config": None, "audio_config": None}),
    "PaliGemma": (
        "paligemma",
        {"text_config": typed("gemma", HEADS), "vision_config": VISION, "image_token_index": 500}
        | {"projection_dim": 32},
    ),
    "LLaVA": (
        "llava",
        {"text_config": typed("llama", SMALL), "vision_config": typed("clip_vision_model", VISION)}
        | {"image_token_index": 500},
    ),
    "LLaVA NeXT": (
        "llava_next",
        {"text_config": typed("llama", SMALL), "vision_config": typed("clip_vision_model", VISION)}
        | {"image_token_index": 500},
    ),
    "Llama 3.2 Vision": (
        "mllama",
        {"text_config": SMALL | {"num_hidden_layers": 3, "cross_attention_layers": [1]}, "image_token_index": 500}
        | {
            "vision_config": VISION
            | {"num_global_layers": 1, "attention_heads": 2, "vision_output_dim": 64}
            | {"intermediate_layers_indices": [0], "supported_aspect_ratios": [[1, 1]]}
        },
    ),
    "Llama 4": (
        "llama4",
        {"text_config": LLAMA_4}
        | {
            "vision_config": VISION
            | {"intermediate_size": 64, "vision_output_dim": 32, "projector_input_dim": 32}
            | {"projector_output_dim": 32}
        },
    ),
    "Mistral Small 3.1, Pixtral": (
        "mistral3",
        {"text_config": typed("mistral", HEADS), "vision_config": typed("pixtral", VISION | {"head_dim": 16})}
        | {"image_token_index": 500},
    ),
    "Idefics 3": (
        "idefics3",
        {"text_config": typed("llama", SMALL), "vision_config": VISION, "image_token_id": 500},
    ),
    "SmolVLM": ("smolvlm", {"text_config": typed("llama", SMALL), "vision_config": VISION, "image_token_id": 500}),
}
FAMILIES = TEXT | TOWERS
