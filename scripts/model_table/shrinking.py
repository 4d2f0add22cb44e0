"""A tiny configuration of a family from the one that transformers gives it by default.

Sizes are told by the words in their keys, which families share. Layers are reduced to one of each kind.
"""

from __future__ import annotations

import re
from typing import Any

from transformers import CONFIG_MAPPING

from model_table.families import IDS, VOCABULARY, sections

Facts = dict[str, Any]

LAYERS = r"(^|_)(num_)?(hidden_)?layers?$|^n_layers?$|^depth$|_depth$|num_.*layers$"
TOKEN = r"token_(id|index)$|^im_.*_id$|patch_id$|_(bos|eos|pad|begin|end)_id$"
# The first pattern found in a key decides what an integer above LEAST becomes.
LEAST = 2
SIZES: tuple[tuple[str, int], ...] = (
    (r"vocab", VOCABULARY),
    (r"qk_head_dim", 16),
    (r"position_embeddings|max_pos|n_positions|max_seq|context|source_positions|max_length|max_.*_len$", 512),
    (r"rank$", 16),
    (r"mlp_only|first_k_dense|insert_layer|dense_layers|_offset$|shared_layers|nextn", 1),
    (r"head_dim$|_dim_head$|^dim_head$|d_head$|head_size$|qk_.*_dim$", 8),
    (r"key_value_heads|kv_heads", 2),
    (r"groups?$", 1),
    (r"heads$|n_head$", 4),
    (r"per_tok|moe_k$|top_?k|_top_n$|period$|interval$|freq$|pattern$|layer_group_size|per_.*block$", 2),
    (r"num_.*shared_experts|n_shared_experts|num_shared|zero_expert", 1),
    (r"experts", 4),
    (r"intermediate|ffn|inner|mlp_dim|dim_ff|dff|expert.*(size|dim)", 48),
    (r"blocks$", 2),
    (r"state_size|d_state|chunk|block_size|window|extent", 8),
    (r"image_size|resolution", 28),
    (r"image_seq|num_patches", 4),
    (r"query_pre_attn", 8),
    (r"(^|_)patch_size", 14),
    (r"hidden|d_model|n_embd|emb|width|_dim$|^dim$|_size$|channels?$|_dimension$|codebook", 32),
)


# What keys do not tell: what a family leaves out by default, and what must fit together.
MROPE = sections(1, 1, 2)
INDEXER = {"indexer_n_heads": 4, "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": 8}
INDEXER |= {"indexer_compress_ratio": 4}
HYBRID = ["linear_attention", "hybrid", "hybrid"]
PLAIN_ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}
CHOSEN = {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 24}
TALKER = {"shared_expert_intermediate_size": 48}
WIDER = {"per_layer_config": {"2": {"head_dim": 16}}}
OVER: dict[str, Facts] = {
    "chameleon": {"vocabulary_map": {"<image>": 500}},
    "cohere_compass": {"text_config": {"rope_parameters": {"full_attention": MROPE["rope_parameters"]}}},
    "cohere_compass_text": {"rope_parameters": {"full_attention": MROPE["rope_parameters"]}},
    "deepseek_ocr2": {"text_config": {"mlp_layer_types": ["dense", "sparse"], "num_experts_per_tok": 2}},
    "diffusion_gemma": {"text_config": CHOSEN},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "dots3_note": {"text_config": WIDER},
    "dots3_note_text": WIDER,
    "emu3": {"vocabulary_map": {"<image>": 500, "<|extra_200|>": 501, "<|visual token 000000|>": 502}},
    "ernie4_5_vl_moe": {"text_config": MROPE},
    "fun_asr_nano": {"adaptor_config": {"intermediate_size": 8}},
    "glm46v": {"text_config": MROPE},
    "glm4v": {"text_config": MROPE},
    "glm4v_moe": {"text_config": sections(1, 1, 0)},
    "glm5_next": {"text_config": {"index_kpool": 2, "index_topk": 4}},
    "glm_ocr": {"text_config": MROPE},
    "glmga": {"text_config": MROPE},
    "granite4_vision": {
        "deepstack_layer_map": [[-1, 0]],
        "downsample_rate": "1/2",
        "vision_config": {"hidden_size": 64},
    },
    "hrm_text": {"num_hidden_layers": 16, "num_layers_per_stack": 2, "H_cycles": 2, "L_cycles": 3},
    "hunyuan_vl": {"text_config": {"head_dim": 8} | sections(1, 1, 1, 1)},
    "kyutai_speech_to_text": {"codec_config": {"num_filters": 4}},
    "mistral4": PLAIN_ROPE,
    # Of few tokens to choose from, equal scores are common, and rounding decides: more than a row has.
    "mistral_large4": {"text_config": {"index_topk": 64}},
    "muse_spark": {"audio_config": {"hidden_sizes": [16, 16, 16, 32]}},
    "nemo_speechlm": {"audio_config": {"diarization_config": {"chunk_left_context": 2, "chunk_right_context": 2}}},
    "paddleocr_vl": {"text_config": MROPE},
    "qwen2_5_omni_thinker": {"text_config": MROPE, "vision_start_token_id": 505},
    "qwen3_omni_moe": {"talker_config": {"spatial_merge_size": 2, "text_config": TALKER}},
    "qwen3_omni_moe_thinker": {"vision_start_token_id": 505},
    "qwen4_exp": {"text_config": INDEXER},
    "qwen4_exp_text": INDEXER,
    "step3p7": {"text_config": {"sliding_window": 8}},
    "vibevoice_asr": {"acoustic_tokenizer_chunk_size": 3200}
    | {f"{kind}_tokenizer_encoder_config": {"num_filters": 2, "ffn_expansion": 2} for kind in ("acoustic", "semantic")},
    "zamba": {"layers_block_type": HYBRID, "num_hidden_layers": 3, "attention_hidden_size": 64}
    | {"attention_head_dim": 16, "use_mamba_kernels": False},
}


def shrunk(kind: str) -> Facts:
    """What CONFIG_MAPPING[kind].from_dict takes."""
    return laid_over(smaller(CONFIG_MAPPING[kind]().to_dict(), {}), OVER.get(kind, {}))


def laid_over(facts: Facts, over: Facts) -> Facts:
    inside = {key: laid_over(facts[key], value) for key, value in over.items() if isinstance(facts.get(key), dict)}
    return {**facts, **over, **inside}


def smaller(facts: Facts, ids: dict[int, int]) -> Facts:
    """ids: token id -> the id that stands for it, which all parts of a configuration share."""
    kept = layers_kept(facts)
    return {key: smaller_value(str(key), value, facts, kept, ids) for key, value in facts.items()}


def smaller_value(key: str, value: Any, facts: Facts, kept: list[int], ids: dict[int, int]) -> Any:
    if key in IDS:
        return IDS[key]
    if key == "per_layer_config":
        return {str(at): smaller(value[name], ids) for at, name in numbered(value, kept)}
    if isinstance(value, dict):
        return smaller(value, ids)
    if isinstance(value, list | tuple):
        return smaller_list(key, list(value), facts, kept)
    if isinstance(value, bool) or not isinstance(value, int):
        return 0.0 if "drop" in key and isinstance(value, float) else value
    if re.search(TOKEN, key):
        return value if value < VOCABULARY - 12 else ids.setdefault(value, VOCABULARY - 1 - len(ids) % 12)
    if value == layer_count(facts) and re.search(LAYERS, key):
        return len(kept)
    if re.search(LAYERS, key):
        return min(value, 2)
    if value <= LEAST:
        return value
    if re.search(r"key_value_heads|kv_heads", key) and value >= facts.get("num_attention_heads", value):
        return 4
    return next((size for pattern, size in SIZES if re.search(pattern, key)), value)


def smaller_list(key: str, values: list[Any], facts: Facts, kept: list[int]) -> list[Any]:
    if len(values) == layer_count(facts):
        return [values[at] for at in kept]
    if key == "mrope_section":
        return [1, 1, 2]
    if re.search(r"ind?e?xe?s$|layers$|layer$", key) and all(isinstance(value, int) for value in values):
        return [0] if min(values, default=0) >= 0 else [-1]
    if "kernel" in key or "stride" in key:
        return values
    if all(isinstance(value, int) for value in values):
        return [next((size for pattern, size in SIZES if re.search(pattern, key)), v) for v in values]
    return values


def numbered(of_layers: Facts, kept: list[int]) -> list[tuple[int, str]]:
    """Places of the layers kept that have words of their own, and the names of these words."""
    names = {int(name): name for name in of_layers}
    return [(at, names[layer]) for at, layer in enumerate(kept) if layer in names]


def layer_count(facts: Facts) -> int:
    """How many layers a part of a configuration has; 0 where it does not say."""
    return next((facts[key] for key in ("num_hidden_layers", "n_layers", "n_layer", "num_layers") if facts.get(key)), 0)


def layers_kept(facts: Facts) -> list[int]:
    """Numbers of layers of which no two are alike in what lists say of them, at least two."""
    count = layer_count(facts)
    lists = [value for value in facts.values() if isinstance(value, list | tuple) and len(value) == count]
    own = {int(name): str(words) for name, words in (facts.get("per_layer_config") or {}).items()}
    kinds = {(own.get(at), *(str(each[at]) for each in lists)): at for at in reversed(range(count))}
    kept = sorted(kinds.values())
    return [*kept, *[kept[-1]] * (2 - len(kept))] if kept else [0, 0]
