"""The named pieces of a transformers model: decoder, blocks, output head."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn


def blocks_of(model: Any) -> list[Any]:
    """The blocks of a transformers model, in their order."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


def decoder_of(model: Any) -> nn.Module:
    """The part of the model that ends in hidden states."""
    decoder: nn.Module = model.get_decoder()
    return decoder


def head_of(model: Any) -> nn.Module:
    """The layer that makes logits of hidden states."""
    head: nn.Module = model.get_output_embeddings()
    return head


def makes_chosen_logits(model: nn.Module) -> bool:
    """Whether the model's forward takes `logits_to_keep`."""
    return "logits_to_keep" in inspect.signature(type(model).forward).parameters
