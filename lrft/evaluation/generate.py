"""Greedy answers to prompts, in batches, and their exact match."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import LogitsProcessor, StoppingCriteria

from lrft.model.end_tokens import stop_ids
from lrft.model.load import position_limit
from lrft.model.modes import evaluation_mode

if TYPE_CHECKING:
    import numpy as np

    from lrft.data.dataset import Rows


def generate(
    model: nn.Module,
    prompts: Sequence[np.ndarray],
    *,
    pad_id: int,
    stop_ids: Sequence[int],
    max_new_tokens: int,
    batch_size: int = 8,
    copies: Callable[[], int] = lambda: 1,
    progress: Callable[[int], None] = lambda done: None,
) -> list[list[int]]:
    """Greedy answers (token ids, without the stop token) for prompts of token ids, in the order given.

    Prompts of a batch are padded on the left, masked, with positions counted from their own first token, so that a
    batch answers as each prompt does alone. With copies each token is the likeliest by the mean of the copies'
    probabilities. An answer ends at the model's last position.
    """
    inner: Any = getattr(model, "module", model)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    answers: list[list[int]] = [[] for _ in prompts]
    with evaluation_mode(inner):
        many, limit = copies(), position_limit(inner.config)
        for at in range(0, len(order), batch_size):
            chosen = order[at : at + batch_size]
            for group, most in with_room([len(prompts[i]) for i in chosen], [max_new_tokens] * len(chosen), limit):
                rows = [chosen[k] for k in group]
                made = answer_batch(
                    inner,
                    [prompts[i] for i in rows],
                    pad_id=pad_id,
                    stop_ids=stop_ids,
                    max_new_tokens=most,
                    copies=many,
                )
                for i, ids in zip(rows, made, strict=True):
                    answers[i] = until_stop(ids, stop_ids)
            progress(at + len(chosen))
    return answers


def with_room(lengths: Sequence[int], wanted: Sequence[int], limit: int | None) -> list[tuple[list[int], int]]:
    """Groups of prompts that can be answered together, each with the most tokens of its answers.

    Positions run on in a row that has ended while others go on. So a prompt whose own positions end before the longest
    answer of all is answered alone, as far as they reach. limit: the model's positions, None for any number.
    """
    most = max(wanted)
    alone = [k for k, length in enumerate(lengths) if limit is not None and length + most > limit]
    together = [k for k in range(len(lengths)) if k not in alone]
    groups = [([k], max(1, min(wanted[k], (limit or 0) - lengths[k]))) for k in alone]
    return [*([(together, max(wanted[k] for k in together))] if together else []), *groups]


def room_note(lengths: Sequence[int], wanted: int, limit: int | None) -> str:
    """That some prompts leave less room than `wanted` tokens, as a sentence; "" when all have it."""
    short = [length for length in lengths if limit is not None and length + wanted > limit]
    if not short or limit is None:
        return ""
    return (
        f"{len(short):,} of {len(lengths):,} prompts, of up to {max(short):,} tokens, leave less than {wanted:,} of "
        f"the model's {limit:,} positions: their answers end there"
    )


def answer_batch(
    model: Any,
    prompts: Sequence[np.ndarray],
    *,
    pad_id: int,
    stop_ids: Sequence[int],
    max_new_tokens: int,
    copies: int = 1,
    draw: LogitsProcessor | None = None,
    watch: StoppingCriteria | None = None,
) -> list[list[int]]:
    """The new token ids of each prompt, in one batch: up to and with its stop token, and padding behind it.

    draw   chooses the tokens in the place of the likeliest ones; it sees (copies rows, vocabulary)
    watch  sees (copies rows, tokens) after each step, and says which rows end there
    The model is in evaluation mode. With copies, the answer is that of the mean of their probabilities.
    """
    device = next(model.parameters()).device
    width = max(len(prompt) for prompt in prompts)
    ids = torch.full((len(prompts), width), pad_id, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.from_numpy(prompt.astype("int64"))
        mask[row, width - len(prompt) :] = 1
    out = model.generate(
        input_ids=ids.to(device).repeat(copies, 1),
        attention_mask=mask.to(device).repeat(copies, 1),
        logits_processor=[*([MeanOfCopies(copies)] if copies > 1 else []), *([draw] if draw else [])],
        stopping_criteria=[watch] if watch else [],
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        temperature=None,
        top_p=None,
        top_k=None,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        pad_token_id=pad_id,
        eos_token_id=list(stop_ids) or None,
    )
    return out[: len(prompts), width:].tolist()  # of the first copy: the others have the same


class MeanOfCopies(LogitsProcessor):
    """Gives every copy the logarithm of the mean of all copies' probabilities."""

    def __init__(self, copies: int) -> None:
        self.copies = copies

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """scores (copies rows, vocabulary)"""
        logs = scores.log_softmax(-1).unflatten(0, (self.copies, -1))
        return (logs.logsumexp(dim=0) - math.log(self.copies)).repeat(self.copies, 1)


def with_prompts(rows: Rows) -> Rows:
    """The rows that ask something and hold an answer to wish for.

    Plain text has no prompt (at most a beginning-of-text token) and no answer; one that is labelled bad is not wanted.
    """
    bad = {i for i in range(len(rows)) if rows.numbers("good", i)[0] < 0.5} if "good" in rows.names else set()
    return rows.slice([i for i in range(len(rows)) if len(rows.prompt(i)) > 1 and i not in bad])


def until_stop(ids: list[int], stop_ids: Sequence[int]) -> list[int]:
    """The ids before the first stop token."""
    return next((ids[:n] for n, token in enumerate(ids) if token in stop_ids), ids)


def stop_tokens(model: nn.Module, tokenizer: Any) -> list[int]:
    """Every id that ends an answer: the tokenizer's end token and those of the generation config."""
    return sorted({token for token in [tokenizer.eos_token_id, *stop_ids(model)] if token is not None})


def answer_rows(
    model: nn.Module,
    tokenizer: Any,
    rows: Rows,
    *,
    max_new_tokens: int,
    batch_size: int,
    copies: Callable[[], int] = lambda: 1,
    progress: Callable[[int], None] = lambda done: None,
) -> list[dict[str, Any]]:
    """[{"prompt", "expected", "answer", "match"}] for every row: the answer to all before its last trained span.

    `match` compares the texts without surrounding white space and nothing else.
    """
    answers = generate(
        model,
        [rows.prompt(i) for i in range(len(rows))],
        pad_id=pad_token(tokenizer),
        stop_ids=stop_tokens(model, tokenizer),
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        copies=copies,
        progress=progress,
    )
    results = []
    for i, ids in enumerate(answers):
        answer = tokenizer.decode(ids, skip_special_tokens=True).strip()
        expected = rows.answer(i).strip()
        prompt = tokenizer.decode(rows.prompt(i).tolist(), skip_special_tokens=False)
        results.append({"prompt": prompt, "expected": expected, "answer": answer, "match": answer == expected})
    return results


def pad_token(tokenizer: Any) -> int:
    """The id that fills up a batch. What it is does not matter: padding is masked by position, never by id."""
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    return 0
