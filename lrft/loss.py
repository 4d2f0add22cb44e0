"""The token loss: one function for training, evaluation and checks, so that they cannot differ."""

from __future__ import annotations

import inspect
from collections.abc import Mapping

from torch import Tensor, nn

IGNORED = -100


def token_loss(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """Sum of the cross-entropy over the trained tokens of `batch`, float32, shape ().

    batch["labels"] (B, T) holds token j at j where it is trained and -100 elsewhere, not shifted: the logits at j - 1
    predict it. A sum, never a mean: who divides must know the tokens of the whole optimiser step. Logits are made only
    at positions where some row has a label, where the model can do so.
    """
    labels = batch["labels"]
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    before = (labels[:, 1:] != IGNORED).any(dim=0).nonzero().flatten()
    if makes_chosen_logits(model):
        logits = model(**inputs, use_cache=False, logits_to_keep=before).logits
    else:
        logits = model(**inputs, use_cache=False).logits[:, before]
    targets = labels[:, before + 1]
    return nn.functional.cross_entropy(
        logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="sum"
    )


def makes_chosen_logits(model: nn.Module) -> bool:
    """Whether the model's forward takes `logits_to_keep` (looked up through a distributed wrapper)."""
    inner = getattr(model, "module", model)
    return "logits_to_keep" in inspect.signature(type(inner).forward).parameters


def trained_tokens(batch: Mapping[str, Tensor]) -> int:
    """Number of tokens that `token_loss` sums over."""
    return int((batch["labels"][:, 1:] != IGNORED).sum())
