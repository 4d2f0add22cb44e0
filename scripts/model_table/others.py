"""Families that transformers can load as language models and that `FAMILIES` does not spell out."""

from __future__ import annotations

from typing import Any

from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForMultimodalLM
from transformers.models.auto import modeling_auto as auto

from model_table.families import FAMILIES

# The first that knows a family builds it: checkpoints of models that also see are published whole.
CLASSES = (
    (AutoModelForImageTextToText, auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES),
    (AutoModelForCausalLM, auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES),
    (AutoModelForMultimodalLM, auto.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES),
)

DRAFTS = "it drafts for another model, whose hidden states it reads: it does not answer text alone"
ASIDE = {
    "evolla": "AutoModelForImageTextToText lists it and does not build it; it reads proteins",
    "gemma4_assistant": DRAFTS,
    "gemma4_unified_assistant": DRAFTS,
    "qwen2_5_omni": "its class has no forward pass; the part that answers text is qwen2_5_omni_thinker",
    "shieldgemma2": "an image classifier, listed as a language model; transformers cannot read what it writes of it",
}
"""Families that no tiny model is made of -> why."""


def others() -> list[str]:
    """Their model types: neither encoders, which are trained on masked words, nor encoder-decoders."""
    spelled = {kind for kind, _ in FAMILIES.values()}
    known = {kind for _, names in CLASSES for kind in names}
    kinds = sorted(known - spelled - auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES.keys())
    return [kind for kind in kinds if not encodes(kind)]


def encodes(kind: str) -> bool:
    try:
        return bool(CONFIG_MAPPING[kind]().is_encoder_decoder)
    except Exception:  # a default that its own class refuses
        return False


def class_of(kind: str) -> Any:
    """The Auto class that builds a model of this type."""
    return next(cls for cls, names in CLASSES if kind in names)


def is_text(kind: str) -> bool:
    return kind in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and kind not in auto.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES
