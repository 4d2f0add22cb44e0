"""Log-probabilities of the trained tokens of sequences, in chunks: the tensor (tokens, vocabulary) is never whole."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lrft.data.collate import IGNORE_INDEX, sequence_numbers
from lrft.model.layers import head_of
from lrft.objectives import shared_prompt
from lrft.objectives.cross_entropy import chunks, hidden_before_labels, logits_before_labels, scaled, wide

INPUTS = ("input_ids", "attention_mask", "position_ids")


def sequences_in(batch: Mapping[str, Tensor]) -> int:
    """How many token sequences a batch holds."""
    if shared_prompt.OF in batch:
        return batch["attention_mask"].shape[-1]
    return int((batch["position_ids"] == 0).sum()) if "position_ids" in batch else len(batch["input_ids"])


def log_probabilities(model: nn.Module, batch: Mapping[str, Tensor], *, direct: bool) -> tuple[Tensor, Tensor]:
    """(sum of the log-probabilities of each sequence's trained tokens, their number): (S,) each, at least float32.

    batch as of `lrft.data.collate.collate`, or of `lrft.objectives.shared_prompt`. direct: as in `Objective.module`.
    """
    if shared_prompt.OF in batch:
        hidden, of = shared_prompt.hidden_before(model, batch), batch[shared_prompt.OF]
        return summed(chunked_log_probabilities(head_of(model), hidden, batch[shared_prompt.TARGETS]), of, batch)
    inputs = {name: batch[name] for name in INPUTS if name in batch}
    labels = batch["labels"]
    of = sequence_numbers(batch)[:, 1:][labels[:, 1:] != IGNORE_INDEX]  # row by row, as the tokens come below
    if direct:
        hidden, targets = hidden_before_labels(model, inputs, labels)
        tokens = chunked_log_probabilities(head_of(model), hidden, targets)
    else:
        logits, after = logits_before_labels(model, inputs, labels)
        chosen = after != IGNORE_INDEX
        tokens = of_targets(wide(logits[chosen]), after[chosen])
    return summed(tokens, of, batch)


def summed(tokens: Tensor, of: Tensor, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Sums and numbers of the tokens' values (n,) for each sequence; of: int64 (n,), which one a token belongs to."""
    empty = tokens.new_zeros(sequences_in(batch))
    return empty.index_add(0, of, tokens), empty.detach().index_add(0, of, torch.ones_like(tokens.detach()))


def of_targets(logits: Tensor, targets: Tensor) -> Tensor:
    """The definition: logits (n, vocabulary), targets (n,) -> (n,)."""
    return logits.log_softmax(-1).gather(1, targets[:, None])[:, 0]


def chunked_log_probabilities(head: nn.Module, hidden: Tensor, targets: Tensor) -> Tensor:
    """`of_targets(head(hidden), targets)` for hidden (n, width), some rows at a time.

    The gradient by a row of `hidden` is that row's own, times what comes from above: it is made at once with the
    logits. Where the head itself is trained the logits are made again in the backward pass.
    """
    if not torch.is_grad_enabled() or any(p.requires_grad for p in head.parameters()):

        def part(hidden: Tensor, targets: Tensor) -> Tensor:
            return of_targets(wide(head(hidden)), targets)

        again = torch.is_grad_enabled()
        parts = [
            checkpoint(part, some, target, use_reentrant=False) if again else part(some, target)
            for some, target in chunks(head, hidden, targets)
        ]
        return torch.cat(parts) if parts else hidden.sum(-1)
    found: Tensor = _ChunkedLogProbabilities.apply(head, hidden, targets)
    return found


class _ChunkedLogProbabilities(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, head: nn.Module, hidden: Tensor, targets: Tensor) -> Tensor:
        values = hidden.new_zeros(len(hidden), dtype=torch.promote_types(hidden.dtype, torch.float32))
        gradient = torch.empty_like(hidden)
        done = 0
        for part, target in chunks(head, hidden, targets):
            part = part.detach().requires_grad_()
            with torch.enable_grad():
                logits = head(part)
            logs = logits.detach().to(values.dtype).log_softmax(-1)
            end = done + len(part)
            values[done:end] = logs.gather(1, target[:, None])[:, 0]
            slope = logs.exp_().neg_()  # the derivative by the logits is one at the target - softmax
            slope.scatter_add_(1, target[:, None], torch.ones_like(target[:, None], dtype=slope.dtype))
            (gradient[done:end],) = torch.autograd.grad(logits, part, slope.to(logits.dtype))
            done = end
        ctx.save_for_backward(gradient)
        return values

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Any:
        (gradient,) = ctx.saved_tensors
        return None, scaled(gradient, slope[:, None]), None
