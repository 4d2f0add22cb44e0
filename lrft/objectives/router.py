"""The loss that balances a mixture of experts, of the routers' logits in one pass. Fedus et al., arXiv 2101.03961."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lrft.model.layers import decoder_of


def own_coefficient(model: Any) -> float | None:
    """What the model's configuration weighs this loss with; None: it has no such loss."""
    value = getattr(model.config.get_text_config(), "router_aux_loss_coef", None)
    return None if value is None else float(value)


@contextmanager
def router_logits(model: nn.Module) -> Iterator[list[Any]]:
    """Inside, the routers' logits of each pass that is asked for them, in order: a tuple of (tokens, experts)."""
    found: list[Any] = []
    handle = decoder_of(model).register_forward_hook(lambda module, inputs, output: found.append(output.router_logits))
    try:
        yield found
    finally:
        handle.remove()


def balance_loss(model: Any, logits: Any, batch: Mapping[str, Tensor]) -> Tensor:
    """Experts times the sum over them of (share of tokens) (mean probability), padding aside, shape ().

    logits: of each layer (tokens, experts).
    """
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func  # brings all that models need

    mask = batch.get("attention_mask")
    top = model.config.get_text_config().num_experts_per_tok
    # The mask of rows laid end to end says where they end; nothing is padded there.
    padding = mask if mask is not None and mask.ndim == 2 else None
    loss: Any = load_balancing_loss_func(logits, logits[0].shape[-1], top, padding)
    return torch.as_tensor(loss)
