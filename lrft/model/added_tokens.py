"""Tokens that a model does not know: added to its tokenizer, with rows in embedding and head.

Each new row is the mean of all rows before it, so that a token starts where a token is on average, and no random
number decides. The mean of the head's rows gives a new token the mean of all logits.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lrft.errors import LrftError


@dataclass(frozen=True)
class Added:
    """token -> id of each token that was added, in the order of the ids."""

    ids: Mapping[str, int]

    @property
    def first(self) -> int:
        """The lowest id: rows below it are those of the tokens that were there."""
        return min(self.ids.values())

    @property
    def rows(self) -> int:
        """How many rows an embedding needs at least."""
        return max(self.ids.values()) + 1

    def to_dict(self) -> dict[str, int]:
        return dict(self.ids)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any] | None) -> Added | None:
        """Raises TypeError or ValueError for what is no such map."""
        return cls({str(token): int(number) for token, number in value.items()}) if value else None


def add_tokens(tokenizer: Any, tokens: Iterable[tuple[str, bool]]) -> Added:
    """Give `tokenizer` the tokens (text, special), in place.

    Raises ValueError for one that it has already, or that it would not find where its text stands.
    """
    from tokenizers import AddedToken

    tokens = list(tokens)
    known = tokenizer.get_vocab()
    for text, _ in tokens:
        if text in known:
            raise ValueError(f"{text} is a token already (id {known[text]}): remove it")
    made = [AddedToken(text, special=special, normalized=False) for text, special in tokens]
    tokenizer.add_tokens(made)
    ids = {text: int(tokenizer.convert_tokens_to_ids(text)) for text, _ in tokens}
    for text, number in ids.items():
        for around in ("", "a", " "):
            found = tokenizer(f"{around}{text}{around}", add_special_tokens=False)["input_ids"]
            if number not in found:
                parts = ", ".join(map(repr, tokenizer.convert_ids_to_tokens(found)))
                raise ValueError(f"{text} would be split by this tokenizer: {around + text + around!r} gives {parts}")
    return Added(dict(sorted(ids.items(), key=lambda pair: pair[1])))


def make_rows(model: Any, added: Added) -> None:
    """Give the tokens rows in embedding and head of a model of transformers, in place. Raises LrftError where that is
    not possible."""
    try:
        embedding = model.get_input_embeddings()
        if len(embedding.weight) < added.rows:
            model.resize_token_embeddings(added.rows, mean_resizing=False)
            embedding = model.get_input_embeddings()
    except (NotImplementedError, AttributeError, ValueError, TypeError) as error:
        raise LrftError(f"{type(model).__name__} cannot take new tokens: {error}") from error
    head = model.get_output_embeddings()
    for tensor in {id(t): t for t in (embedding.weight, *tensors_by_token(head))}.values():
        fill(tensor.data, added)


def tensors_by_token(head: Any) -> list[Tensor]:
    """Weight and bias of a head that makes logits; none where there is no head."""
    return [] if head is None else [t for t in (head.weight, getattr(head, "bias", None)) if t is not None]


def with_rows(tensor: Tensor, added: Added) -> Tensor:
    """A copy of an embedding's or head's weight (rows, k), or bias (rows,), with the rows of the new tokens."""
    missing = max(0, added.rows - len(tensor))
    grown = torch.cat([tensor, tensor.new_zeros(missing, *tensor.shape[1:])])
    fill(grown, added)
    return grown


@torch.no_grad()
def fill(tensor: Tensor, added: Added) -> None:
    """Writes the mean of the rows before the new ones into these, in place."""
    mean = tensor[: added.first].mean(0, dtype=torch.float64).to(tensor.dtype)
    tensor[list(added.ids.values())] = mean
