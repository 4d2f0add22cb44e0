"""Tokens drawn at random, each row of a batch by its own settings and from its own generator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import LogitsProcessor


@dataclass(frozen=True)
class Sampling:
    """How the tokens of one answer are chosen."""

    temperature: float = 0.0
    """divisor of the logits; 0 takes the likeliest token"""
    top_p: float = 1.0
    """only the likeliest tokens are drawn from whose probabilities make up this share (nucleus sampling, Holtzman et
    al. 2020)"""
    seed: int = 0
    """the same seed and logits give the same answer, whatever other rows are in the batch"""


GREEDY = Sampling()


class Draw(LogitsProcessor):
    """Draws a token for each row and leaves it the only possible one, so that a greedy search takes it."""

    def __init__(self, rows: Sequence[Sampling], copies: int = 1) -> None:
        """copies: the rows come that many times, with equal scores, and each copy gets the same token."""
        self.rows, self.copies = rows, copies
        self.generators = [torch.Generator().manual_seed(row.seed) for row in rows]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """scores (copies rows, vocabulary)"""
        tokens = torch.stack([self.token(row, scores[row]) for row in range(len(self.rows))]).repeat(self.copies)
        return torch.full_like(scores, -torch.inf).scatter(1, tokens[:, None], 0.0)

    def token(self, row: int, scores: Tensor) -> Tensor:
        """The next token of a row, from its scores (vocabulary,)."""
        chosen = self.rows[row]
        if not chosen.temperature:
            return scores.argmax()
        logits = (scores.double() - scores.max().double()) / chosen.temperature
        probabilities, order = logits.softmax(-1).sort(descending=True, stable=True)
        before = probabilities.cumsum(-1) - probabilities  # of all likelier tokens: the first one is always kept
        kept = probabilities.where(before < chosen.top_p, 0.0).cumsum(-1)
        at = torch.rand((), generator=self.generators[row], dtype=torch.float64).to(kept.device) * kept[-1]
        return order[torch.searchsorted(kept, at, right=True).clamp(max=len(order) - 1)]
