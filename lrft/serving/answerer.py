"""A loaded model that answers prompts, several at a time, each with settings of its own, telling what it writes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import StoppingCriteria

from lrft.adapters.ensemble import copying
from lrft.errors import UsageError
from lrft.evaluation.generate import answer_batch, pad_token, stop_tokens, with_room
from lrft.evaluation.sampling import GREEDY, Draw, Sampling
from lrft.loading.saved import Target
from lrft.model.load import position_limit
from lrft.model.modes import evaluation_mode
from lrft.serving.text import Growing
from lrft.serving.tool_calls import Call


@dataclass(frozen=True)
class Request:
    """ids: int32 (n,), the prompt. stop: texts that end the answer and do not belong to it. shown: special tokens that
    are written into the text, which others are not."""

    ids: np.ndarray
    max_new_tokens: int
    sampling: Sampling = GREEDY
    stop: tuple[str, ...] = ()
    shown: tuple[str, ...] = ()
    told: Callable[[str], bool] = field(default=lambda text: True, compare=False)
    """gets the text as it grows; False ends the answer"""


@dataclass(frozen=True)
class Answer:
    """finish: stop (an end token or a stop text), length, or cancelled. calls: of tools, read from the text."""

    text: str
    tokens: int
    finish: str
    calls: tuple[Call, ...] = ()


class Watch(StoppingCriteria):
    """Hands each new token to the answer that it belongs to, and says which answers have ended."""

    def __init__(self, answers: Sequence[Growing], most: Sequence[int], ends: Sequence[int], copies: int) -> None:
        self.answers, self.most, self.ends, self.copies = answers, most, set(ends), copies

    def __call__(self, input_ids: Tensor, scores: Tensor, **more: Any) -> Tensor:
        """input_ids (copies rows, tokens). Returns bool (copies rows,)."""
        tokens = input_ids[: len(self.answers), -1].tolist()
        for answer, token, most in zip(self.answers, tokens, self.most, strict=True):
            if answer.finish:
                continue
            if token in self.ends:
                answer.end("stop")
                continue
            answer.add(token)
            if len(answer.ids) >= most:
                answer.end("length")
        done = torch.tensor([bool(answer.finish) for answer in self.answers], device=input_ids.device)
        return done.repeat(self.copies)


@dataclass(frozen=True)
class Answerer:
    """model: in its own mode and dtype. ends: ids that end an answer. placed: around each use of the model."""

    model: Any
    tokenizer: Any
    ends: tuple[int, ...]
    copies: Callable[[], int] = lambda: 1
    placed: Callable[[], AbstractContextManager[Any]] = nullcontext

    @classmethod
    def of(cls, found: Target) -> Answerer:
        """The target as it was trained."""
        ends = tuple(stop_tokens(found.model, found.tokenizer))
        return cls(found.model, found.tokenizer, ends, copying(found.model))

    def ending(self, *tokens: str) -> Answerer:
        """The same, whose answers end at `tokens` too."""
        more = [self.tokenizer.convert_tokens_to_ids(token) for token in tokens if token]
        return replace(self, ends=tuple(dict.fromkeys([*self.ends, *(t for t in more if t is not None)])))

    @property
    def positions(self) -> int | None:
        """The longest sequence that the model takes, in tokens; None when it does not say."""
        return position_limit(self.model.config)

    def room(self, ids: np.ndarray) -> int | None:
        """How many tokens an answer to this prompt can have; None for any number. Raises UsageError for none."""
        if self.positions is None:
            return None
        left = self.positions - len(ids)
        if left < 1:
            raise UsageError(f"the prompt has {len(ids):,} tokens, the model has {self.positions:,} positions")
        return left

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """Answers in the order of the requests, as one batch. Raises UsageError for a prompt without room.

        KeyboardInterrupt passes through; what was told by then is in the hands of `told`.
        """
        rooms = [self.room(request.ids) for request in requests]
        most = [
            request.max_new_tokens if room is None else min(room, request.max_new_tokens)
            for request, room in zip(requests, rooms, strict=True)
        ]
        growing = [Growing(self.tokenizer, request.stop, request.told, request.shown) for request in requests]
        with self.placed(), evaluation_mode(self.model):
            copies = self.copies()
            for group, longest in with_room([len(request.ids) for request in requests], most, self.positions):
                answer_batch(
                    self.model,
                    [requests[k].ids for k in group],
                    pad_id=pad_token(self.tokenizer),
                    stop_ids=self.ends,
                    max_new_tokens=longest,
                    copies=copies,
                    draw=Draw([requests[k].sampling for k in group], copies),
                    watch=Watch([growing[k] for k in group], [most[k] for k in group], self.ends, copies),
                )
        return [Answer(answer.text, len(answer.ids), answer.finish) for answer in growing]
