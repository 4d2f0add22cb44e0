"""The named pieces of a transformers model: decoder, blocks, output head."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor, nn

from lrft.errors import LrftError
from lrft.utils.hardware import says_out_of_memory


def blocks_of(model: Any) -> list[Any]:
    """The blocks of a transformers model, in their order."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


def decoder_of(model: Any) -> nn.Module:
    """The part of the model that ends in hidden states.

    transformers may name a part that makes logits of them: then it is what that part has around the embedding.
    """
    decoder: nn.Module = model.get_decoder()
    head, embedding = head_of(model), model.get_input_embeddings()
    if not holds(decoder, embedding):  # the layer that makes logits may be called decoder
        decoder = model
    while holds(decoder, head):
        inner = next(
            (child for child in decoder.children() if child is not embedding and holds(child, embedding)), None
        )
        if inner is None:
            break
        decoder = inner
    return decoder


def head_of(model: Any) -> Any:
    """The layer that makes logits of hidden states; None for a model without one.

    A model that also sees or hears may name none of its own, and leave it to the language model inside.
    """
    for part in (model, model.get_decoder()):
        head = getattr(part, "get_output_embeddings", lambda: None)()
        if head is not None:
            return head
    return None


def makes_chosen_logits(model: nn.Module) -> bool:
    """Whether the model's forward takes `logits_to_keep`."""
    return "logits_to_keep" in inspect.signature(type(model).forward).parameters


def holds(module: nn.Module, part: nn.Module | None) -> bool:
    """Whether `part` is somewhere in `module`."""
    return part is not None and any(found is part for found in module.modules())


def logits_of_text(model: nn.Module, ids: Tensor, **more: Any) -> Tensor:
    """Logits of token ids (B, T): (B, T, vocabulary). `more` is handed to the model as it is.

    Raises LrftError for a model that wants more than text: its code may then raise anything.
    """
    try:
        answer = model(input_ids=ids, **more, use_cache=False)
    except (TypeError, ValueError, AttributeError, LookupError, RuntimeError) as error:
        if says_out_of_memory(error):
            raise
        raise LrftError(
            f"{type(model).__name__} cannot answer text alone: {str(error).strip().partition(chr(10))[0]}",
            "lrft trains causal language models on rows of text.",
        ) from error
    return outputs_in(answer)


def outputs_in(answer: Any) -> Tensor:
    """The logits of a model's answer; the last hidden states of a model without a head."""
    found: Tensor = getattr(answer, "logits", getattr(answer, "last_hidden_state", answer))
    return found
