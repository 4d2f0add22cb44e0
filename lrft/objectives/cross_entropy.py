"""Cross-entropy over trained tokens, from hidden states in chunks: the tensor (tokens, vocabulary) is never whole."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lrft.data.collate import IGNORE_INDEX, WEIGHTS
from lrft.model.layers import decoder_of, makes_chosen_logits

# Logits at once. On a CPU few enough to stay near its caches; a GPU wants larger products.
LOGITS_AT_ONCE = {"cpu": 2**24}
MORE_LOGITS_AT_ONCE = 2**26


@dataclass(frozen=True)
class Terms:
    """What the loss of a token is beside its cross-entropy, of logits z (vocabulary V) and the target t.

    (1 - label_smoothing) (-log p_t) + label_smoothing mean over the vocabulary (-log p) + z_loss (log sum exp z)^2:
    Szegedy et al., arXiv 1512.00567, section 7; Chowdhery et al., arXiv 2204.02311, section 5.
    """

    label_smoothing: float = 0.0
    z_loss: float = 0.0


PLAIN = Terms()


def wide(logits: Tensor) -> Tensor:
    """In at least float32."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def hidden_before_labels(model: nn.Module, inputs: Mapping[str, Tensor], labels: Tensor) -> tuple[Tensor, Tensor]:
    """The decoder's last hidden states (n, width) before each of the n trained tokens, and the tokens (n,)."""
    row, column = trained_places(labels)
    hidden = decoder_of(model)(**inputs, use_cache=False).last_hidden_state[row, column]
    return hidden, labels[row, column + 1]


def trained_places(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Row and column, int64 (n,), of the tokens that predict a label: labels (B, T) say their own column, one later.

    Kept on labels that `lrft.objectives.to_device` has sent to a GPU, for asking that one waits.
    """
    kept: tuple[Tensor, Tensor] | None = getattr(labels, "places", None)
    if kept is None:
        row, column = (labels[:, 1:] != IGNORE_INDEX).nonzero(as_tuple=True)
        return row, column
    return kept


def logits_before_labels(model: nn.Module, inputs: Mapping[str, Tensor], labels: Tensor) -> tuple[Tensor, Tensor]:
    """The model's own logits (B, n, vocabulary) and the labels (B, n) that they predict.

    At positions where some row has a label, where the model can be asked for chosen ones.
    """
    before = (labels[:, 1:] != IGNORE_INDEX).any(dim=0).nonzero().flatten()
    if makes_chosen_logits(model):
        logits = model(**inputs, use_cache=False, logits_to_keep=before).logits
    else:
        logits = model(**inputs, use_cache=False).logits[:, before]
    return logits, labels[:, before + 1]


def summed_cross_entropy(
    logits: Tensor,
    targets: Tensor,
    weights: Tensor | None = None,
    terms: Terms = PLAIN,
    each: Callable[[Tensor], None] | None = None,
) -> Tensor:
    """The definition: logits (..., vocabulary), targets (...) -> sum over targets that are not ignored, each times its
    weight (...). each: is given what is summed."""
    flat, targets = wide(logits).flatten(0, -2), targets.flatten()
    how: dict[str, Any] = {"ignore_index": IGNORE_INDEX, "label_smoothing": terms.label_smoothing}
    if weights is None and not terms.z_loss and each is None:
        return cross_entropy(flat, targets, reduction="sum", **how)
    losses = cross_entropy(flat, targets, reduction="none", **how)
    if terms.z_loss:
        losses = losses + terms.z_loss * flat.logsumexp(-1).square() * (targets != IGNORE_INDEX)
    losses = losses if weights is None else losses * weights.flatten()
    if each is not None:
        each(losses.detach())
    return losses.sum()


def mixed_cross_entropy(logits: Tensor, targets: Tensor, copies: int, weights: Tensor | None = None) -> Tensor:
    """Of the mean of the copies' probabilities. logits (copies n, vocabulary), targets, weights (copies n): all rows,
    again."""
    logs = logits.log_softmax(-1).gather(1, targets[:, None]).view(copies, -1)
    losses = math.log(copies) - logs.logsumexp(dim=0)
    return (losses if weights is None else losses * weights[: len(losses)]).sum()


def mixed(logits: Tensor, copies: int) -> Tensor:
    """Logarithms (n, vocabulary) of the mean of the copies' probabilities, of logits (copies n, vocabulary)."""
    return logits.log_softmax(-1).unflatten(0, (copies, -1)).logsumexp(dim=0) - math.log(copies)


def chunked_cross_entropy(
    head: nn.Module,
    hidden: Tensor,
    targets: Tensor,
    weights: Tensor | None = None,
    terms: Terms = PLAIN,
    look: Callable[[Tensor, Tensor], None] | None = None,
    each: Callable[[Tensor], None] | None = None,
) -> Tensor:
    """`summed_cross_entropy(head(hidden), targets, weights, terms)` for hidden (n, width), some rows at a time.

    Where a gradient is wanted, each part's is made at once with its logits: they are never made again. look: is given
    the logits and targets of each part where none is wanted. each: is given what is summed, part by part.
    """
    if not torch.is_grad_enabled():
        losses = []
        for part, t, w in _weighted_chunks(head, hidden, targets, weights):
            logits = head(part)
            losses.append(summed_cross_entropy(logits, t, w, terms, each))
            if look is not None:
                look(logits, t)
        return torch.stack(losses).sum() if losses else hidden.new_zeros(())
    trained = [p for p in head.parameters() if p.requires_grad]
    return _ChunkedCrossEntropy.apply(head, hidden, targets, weights, terms, each, *trained)


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        head: nn.Module,
        hidden: Tensor,
        targets: Tensor,
        weights: Tensor | None,
        terms: Terms,
        each: Callable[[Tensor], None] | None,
        *trained: Tensor,
    ) -> Tensor:
        total = hidden.new_zeros((), dtype=torch.promote_types(hidden.dtype, torch.float32))
        gradient = torch.empty_like(hidden)
        gradients = [torch.zeros_like(p) for p in trained]
        done = 0
        for part, target, weight in _weighted_chunks(head, hidden, targets, weights):
            part = part.detach().requires_grad_()
            with torch.enable_grad():
                logits = head(part)
            losses, slope = _with_slope(logits.detach().to(total.dtype), target, terms)
            if weight is not None:
                losses, slope = losses * weight[:, None], slope.mul_(weight[:, None])
            total += losses.sum()
            if each is not None:
                each(losses[:, 0])
            of_part, *of_trained = torch.autograd.grad(logits, [part, *trained], slope.to(logits.dtype))
            gradient[done : done + len(part)] = of_part
            for own, more in zip(gradients, of_trained, strict=True):
                own += more
            done += len(part)
        ctx.save_for_backward(gradient, *gradients)
        return total

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Any:
        gradient, *gradients = ctx.saved_tensors
        return None, scaled(gradient, slope), None, None, None, None, *(scaled(g, slope) for g in gradients)


def scaled(gradient: Tensor, slope: Tensor) -> Tensor:
    """gradient * slope, rounded once: in bfloat16 the slope alone would be off by up to 0.4 %, and that of a loss scale
    overflows in float16."""
    return (wide(gradient) * slope).to(gradient.dtype)


def _with_slope(logits: Tensor, target: Tensor, terms: Terms) -> tuple[Tensor, Tensor]:
    """The losses (n, 1) of logits (n, vocabulary), and their derivative: without terms, softmax - one at the target.

    z_loss adds 2 z_loss (log sum exp z) softmax; label_smoothing leaves 1 - label_smoothing of the one at the target,
    and spreads the rest over the vocabulary.
    """
    smoothing, at_target = terms.label_smoothing, target[:, None]
    if terms.z_loss:
        norm = logits.logsumexp(-1, keepdim=True)
        logs = logits - norm
    else:
        logs = logits.log_softmax(-1)
    loss = -logs.gather(1, at_target)
    if smoothing:
        loss = (1 - smoothing) * loss - smoothing * logs.mean(-1, keepdim=True)
    slope = logs.exp_()
    if terms.z_loss:
        loss = loss + terms.z_loss * norm.square()
        slope *= 1 + 2 * terms.z_loss * norm
    slope.scatter_add_(1, at_target, slope.new_full(at_target.shape, smoothing - 1.0))
    if smoothing:
        slope -= smoothing / slope.shape[-1]
    return loss, slope


def chunks(head: nn.Module, hidden: Tensor, *others: Tensor) -> Any:
    """(hidden, *others) in pieces whose logits are few enough."""
    size = rows_at_once(head.weight.shape[0] if isinstance(head.weight, Tensor) else 1, hidden.device.type)
    return zip(*(tensor.split(size) for tensor in (hidden, *others)), strict=True) if len(hidden) else ()


def _weighted_chunks(head: nn.Module, hidden: Tensor, targets: Tensor, weights: Tensor | None) -> Any:
    """(hidden, targets, weights or None) in such pieces."""
    if weights is not None:
        return chunks(head, hidden, targets, weights)
    return ((part, target, None) for part, target in chunks(head, hidden, targets))


def weight_of(batch: Mapping[str, Tensor]) -> float:
    """What the trained tokens of a batch count: their number, or the sum of their weights."""
    trained = batch["labels"][:, 1:] != IGNORE_INDEX
    if WEIGHTS not in batch:
        return int(trained.sum())
    return float(batch[WEIGHTS][:, 1:][trained].double().sum())


def rows_at_once(vocabulary: int, device: str) -> int:
    """Of how many tokens logits are made at once. device: cpu or cuda."""
    return max(64, LOGITS_AT_ONCE.get(device, MORE_LOGITS_AT_ONCE) // max(1, vocabulary))


def trained_tokens(batch: Mapping[str, Tensor]) -> int:
    """Number of tokens that the loss sums over."""
    return int((batch["labels"][:, 1:] != IGNORE_INDEX).sum())
