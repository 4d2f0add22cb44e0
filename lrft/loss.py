"""The token loss: one function for training, evaluation and checks, so that they cannot differ.

Logits are made only where a token is trained, some at a time: the tensor (tokens, vocabulary) is never whole.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

IGNORED = -100
# Logits at once. On a CPU few enough to stay near its caches; a GPU wants larger products.
LOGITS_AT_ONCE = {"cpu": 2**24}
MORE_LOGITS_AT_ONCE = 2**26


class Outputs:
    """What a micro-batch was answered with, for terms of the loss that look at more than the token loss.

    targets   (n,) the trained tokens
    """

    def __init__(self, targets: Tensor, logits: Callable[[], Tensor], base_logits: Callable[[], Tensor]) -> None:
        self.targets = targets
        self._logits, self._base_logits = logits, base_logits
        self.made: Tensor | None = None

    @property
    def logits(self) -> Tensor:
        """(n, vocabulary) float32: those that predict the targets. Made when they are first asked for."""
        if self.made is None:
            self.made = self._logits()
        return self.made

    def base_logits(self) -> Tensor:
        """The same of the untouched base, without gradient: one more forward pass."""
        return self._base_logits()


class TokenLoss(nn.Module):
    """A causal language model that answers a batch with its loss.

    A module, so that a distributed wrapper around it sees the whole pass. `direct` says that logits are the output
    embedding's product with the decoder's last hidden states; `layout.find_layout` finds out. A model that does more
    (scales or caps its logits) makes all logits of the trained positions at once.

    extra    in training, a mean over the micro-batch's trained tokens that is added to theirs, or None
    as_base  the context in which `model` is the untouched base
    copies   in how many copies rows are to come: the loss is then the mean over them in training, and that of the mean
             of their probabilities in evaluation
    computing  the context in which it answers: of a precision
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        direct: bool = False,
        as_base: Callable[[], AbstractContextManager[Any]] | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.direct = direct
        self.as_base = as_base
        self.extra: Callable[[Outputs], Tensor | None] | None = None
        self.copies: Callable[[], int] = lambda: 1
        self.last_extra: Tensor | None = None
        self.computing: Callable[[], AbstractContextManager[Any]] = nullcontext

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Sum of the cross-entropy over the trained tokens of `batch`, float32, shape ().

        batch["labels"] (B, T) holds token j at j where it is trained and -100 elsewhere, not shifted: the logits at
        j - 1 predict it. A sum, never a mean: who divides must know the tokens of the whole optimiser step.
        """
        with self.computing():
            return self.sum_of(batch)

    def sum_of(self, batch: Mapping[str, Tensor]) -> Tensor:
        targets, logits, loss = self.answer(batch)
        copies = self.copies()
        if not self.training:
            return loss() if copies == 1 else mixed_cross_entropy(logits(), targets, copies)
        if self.extra is None or not len(targets):
            return loss() / copies
        outputs = Outputs(targets, logits, lambda: self.base_answer(batch))
        term = self.extra(outputs)
        # Who has asked for the logits has them whole: then they serve the token loss too.
        total = loss() if outputs.made is None else summed_cross_entropy(outputs.made, targets)
        if term is None:
            return total / copies
        added = len(targets) * term / copies
        self.last_extra = added.detach()
        return total / copies + added

    def answer(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Callable[[], Tensor], Callable[[], Tensor]]:
        """The n trained tokens, and what makes the logits (n, vocabulary) before them and the sum of their losses."""
        labels = batch["labels"]
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        if self.direct:
            head = head_of(self.model)
            hidden, targets = hidden_before_labels(self.model, inputs, labels)
            return targets, lambda: wide(head(hidden)), lambda: chunked_cross_entropy(head, hidden, targets)
        logits, after = logits_before_labels(self.model, inputs, labels)
        chosen = after != IGNORED
        return after[chosen], lambda: wide(logits[chosen]), lambda: summed_cross_entropy(logits, after)

    @torch.no_grad()
    def base_answer(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The logits (n, vocabulary) of the untouched base. Raises ValueError where nobody has said how."""
        if self.as_base is None:
            raise ValueError("a loss that compares with the base needs as_base")
        with self.as_base():
            return self.answer(batch)[1]()

    def take_extra(self) -> Tensor | float:
        """What the extra term has added to the last answer."""
        taken, self.last_extra = self.last_extra, None
        return 0.0 if taken is None else taken


def wide(logits: Tensor) -> Tensor:
    """In at least float32."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def hidden_before_labels(model: nn.Module, inputs: Mapping[str, Tensor], labels: Tensor) -> tuple[Tensor, Tensor]:
    """The decoder's last hidden states (n, width) before each of the n trained tokens, and the tokens (n,)."""
    row, column = (labels[:, 1:] != IGNORED).nonzero(as_tuple=True)
    hidden = decoder_of(model)(**inputs, use_cache=False).last_hidden_state[row, column]
    return hidden, labels[row, column + 1]


def logits_before_labels(model: nn.Module, inputs: Mapping[str, Tensor], labels: Tensor) -> tuple[Tensor, Tensor]:
    """The model's own logits (B, n, vocabulary) and the labels (B, n) that they predict.

    At positions where some row has a label, where the model can be asked for chosen ones.
    """
    before = (labels[:, 1:] != IGNORED).any(dim=0).nonzero().flatten()
    if makes_chosen_logits(model):
        logits = model(**inputs, use_cache=False, logits_to_keep=before).logits
    else:
        logits = model(**inputs, use_cache=False).logits[:, before]
    return logits, labels[:, before + 1]


def summed_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """The definition: logits (..., vocabulary), targets (...) -> sum over targets that are not ignored."""
    return cross_entropy(wide(logits).flatten(0, -2), targets.flatten(), ignore_index=IGNORED, reduction="sum")


def mixed_cross_entropy(logits: Tensor, targets: Tensor, copies: int) -> Tensor:
    """Of the mean of the copies' probabilities. logits (copies n, vocabulary), targets (copies n): all rows, again."""
    logs = logits.log_softmax(-1).gather(1, targets[:, None]).view(copies, -1)
    return -(logs.logsumexp(dim=0) - math.log(copies)).sum()


def chunked_cross_entropy(head: nn.Module, hidden: Tensor, targets: Tensor) -> Tensor:
    """`summed_cross_entropy(head(hidden), targets)` for hidden (n, width), some rows at a time.

    Where a gradient is wanted, each part's is made at once with its logits: they are never made again.
    """
    if not torch.is_grad_enabled():
        losses = [summed_cross_entropy(head(part), t) for part, t in parts(head, hidden, targets)]
        return torch.stack(losses).sum() if losses else hidden.new_zeros(())
    trained = [p for p in head.parameters() if p.requires_grad]
    return _ChunkedCrossEntropy.apply(head, hidden, targets, *trained)


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, head: nn.Module, hidden: Tensor, targets: Tensor, *trained: Tensor) -> Tensor:
        total = hidden.new_zeros((), dtype=torch.promote_types(hidden.dtype, torch.float32))
        gradient = torch.empty_like(hidden)
        gradients = [torch.zeros_like(p) for p in trained]
        done = 0
        for part, target in parts(head, hidden, targets):
            part = part.detach().requires_grad_()
            with torch.enable_grad():
                logits = head(part)
            logs = logits.detach().to(total.dtype).log_softmax(-1)
            total -= logs.gather(1, target[:, None]).sum()
            slope = logs.exp_()  # the derivative of the loss by the logits is softmax - one at the target
            slope.scatter_add_(1, target[:, None], -torch.ones_like(target[:, None], dtype=slope.dtype))
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
        return None, gradient * slope.to(gradient.dtype), None, *(g * slope for g in gradients)


def parts(head: nn.Module, hidden: Tensor, targets: Tensor) -> Any:
    """(hidden, targets) in pieces whose logits are few enough."""
    vocabulary = max(1, head.weight.shape[0] if isinstance(head.weight, Tensor) else 1)
    most = LOGITS_AT_ONCE.get(hidden.device.type, MORE_LOGITS_AT_ONCE)
    size = max(64, most // vocabulary)
    return zip(hidden.split(size), targets.split(size), strict=True) if len(hidden) else ()


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


def trained_tokens(batch: Mapping[str, Tensor]) -> int:
    """Number of tokens that the loss sums over."""
    return int((batch["labels"][:, 1:] != IGNORED).sum())
