"""The transformers class that loads a checkpoint: the one named by its configuration.

A checkpoint that also sees or hears is a language model with towers in front of it. It is loaded whole, so that its
modules have the names of its files, and text trains the language part.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lrft.errors import LrftError
from lrft.model.head import KINDS, Head

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def auto_class(config: PretrainedConfig, folder: Path, head: Head | None = None) -> Any:
    """transformers' Auto class that builds the class which `config` names; else the first that knows its kind.

    head: the head it is to have, or None for that of a causal language model. Raises LrftError for a checkpoint that
    is none, such as an encoder-decoder, or that transformers knows no such head for.
    """
    import transformers
    from transformers.models.auto import modeling_auto as auto

    if head is not None:
        return class_with_head(config, folder, head)
    classes = (
        (transformers.AutoModelForCausalLM, auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES),
        (transformers.AutoModelForImageTextToText, auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES),
        (transformers.AutoModelForMultimodalLM, auto.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES),
    )
    kind, named = config.model_type, config.architectures or []
    own = getattr(config, "auto_map", None) or {}  # the checkpoint's own code
    known = [(cls, names.get(kind)) for cls, names in classes if kind in names or cls.__name__ in own]
    if not known and type(config) in auto.MODEL_FOR_CAUSAL_LM_MAPPING:  # a class of the user's own, registered there
        return transformers.AutoModelForCausalLM
    chosen = [cls for cls, name in known if name in named or cls.__name__ in own]
    if not chosen and own:
        return transformers.AutoModelForCausalLM
    if not chosen and (not known or config.is_encoder_decoder):
        what = named[0] if named else f"model of type {kind}"
        raise LrftError(
            f"{folder} holds a {what}, which transformers cannot load as a causal language model",
            "lrft trains decoder-only language models, and the language part of multimodal models.",
        )
    return chosen[0] if chosen else known[0][0]


def class_with_head(config: PretrainedConfig, folder: Path, head: Head) -> Any:
    """transformers' Auto class for a kind of head. Raises LrftError where the model's type has none."""
    import transformers

    name = KINDS[head.kind][0]
    found = getattr(transformers, name)
    own = getattr(config, "auto_map", None) or {}
    if type(config) not in found._model_mapping and name not in own:
        raise LrftError(f"{folder} is a model of type {config.model_type}, for which transformers has no {name}")
    return found
