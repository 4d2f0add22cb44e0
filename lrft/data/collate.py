"""From row ids to tensors: the micro-batches of a rank, padded or laid end to end."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import torch

from lrft.data.dataset import Rows

IGNORE_INDEX = -100
"""label of an ignored position, as in torch's cross_entropy"""
WEIGHTS = "weights"
"""of the tokens of a batch, beside its labels, where rows have weights"""
ENTRIES = "entries"
"""of the rows of a batch, int64 (rows,): which entry of data.train each is from, where losses are told apart by it"""
Form = Literal["padded", "packed", "rowwise", "shared"]
"""How rows share a tensor: side by side, or end to end, or end to end with their ends as the attention mask, or so with
prompts that several sequences share (`lrft.objectives.shared_prompt`)"""


def micro_batches(
    ids: Sequence[int] | np.ndarray, lengths: np.ndarray, *, micro: int, rank: int = 0, world: int = 1
) -> list[list[int]]:
    """The micro-batches of `rank` for one optimiser step.

    Rows are sorted by length (longest first, so that memory runs out at once or never) and dealt to the
    ranks like cards. Every rank gets the same number of lists; a list is empty where the rank has no rows
    left, because ranks that make unequal numbers of passes wait for each other for ever.

    ids: the step's row ids. lengths: int64 (N,), tokens of every row of the set, indexed by id.
    """
    ids = np.asarray(ids, dtype=np.int64)
    longest_first = ids[np.argsort(-lengths[ids], kind="stable")]
    mine = longest_first[rank::world].tolist()
    most = math.ceil(len(ids) / world)
    count = math.ceil(most / micro)
    return [mine[i * micro : (i + 1) * micro] for i in range(count)]


def ends_mask(lengths: Sequence[int]) -> torch.Tensor:
    """The attention mask of rows laid end to end: int64 (1, 1, 1, rows), where each row ends.

    Four dimensions: transformers hands such a mask to the attention as it is (`lrft.model.packed_attention` reads it).
    """
    return torch.tensor(lengths).cumsum(0)[None, None, None]


def branches_mask(lengths: Sequence[int], shared: Sequence[int]) -> torch.Tensor:
    """The same of rows of which some go on from the beginning of another: int64 (1, 1, 2, rows), where each row ends,
    and how many tokens it shares, the first ones of the last row before it that shares none."""
    return torch.stack([torch.tensor(lengths).cumsum(0), torch.tensor(shared)])[None, None]


def sequence_numbers(batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Which sequence of the batch each token belongs to, from 0: int64, of the shape of input_ids."""
    ids = batch["input_ids"]
    if "position_ids" in batch:
        return (batch["position_ids"] == 0).long().cumsum(dim=1) - 1
    return torch.arange(len(ids), device=ids.device)[:, None].expand_as(ids)


def collate(rows: Rows, ids: Sequence[int], *, pad_id: int, form: Form) -> dict[str, torch.Tensor]:
    """Tensors of a micro-batch, int64; and float32 weights in the shape of the labels where rows of the set have some.

    padded:  input_ids, attention_mask, labels, each (B, T), right-padded.
    packed:  input_ids, position_ids (from 0 in each row), labels, each (1, sum T); no attention_mask.
    rowwise: the same, and attention_mask is `ends_mask`.
    The sequences of a row with several come one after the other: a pair is two of the B.
    labels[b, j] is token j when it counts in the loss, else -100. Not shifted: the first token of a row is
    never a label, so no row is asked to predict the start of its neighbour. The mask is by position, never by
    token id, so it does not matter whether the pad token is also the end token.
    """
    if len(ids) == 0:
        raise ValueError("a micro-batch without rows has no tensors")
    sequences = [sequence for i in ids for sequence in rows.sequences(i)]
    tokens = [np.asarray(ids, dtype=np.int64) for ids, _ in sequences]
    labels = [np.where(trained, t, IGNORE_INDEX) for t, (_, trained) in zip(tokens, sequences, strict=True)]
    weights = [rows.weight(int(i)) for i in ids for _ in rows.sequences(i)] if rows.weighted else []
    if form != "padded":
        flat: dict[str, np.ndarray] = {
            "input_ids": np.concatenate(tokens),
            "position_ids": np.concatenate([np.arange(len(t)) for t in tokens]),
            "labels": np.concatenate(labels),
        }
        if weights:
            flat[WEIGHTS] = np.repeat(np.array(weights, dtype=np.float32), [len(t) for t in tokens])
        batch = {name: torch.from_numpy(value)[None] for name, value in flat.items()}
        return batch | ({"attention_mask": ends_mask([len(t) for t in tokens])} if form == "rowwise" else {})
    shape = (len(tokens), max(map(len, tokens)))
    padded: dict[str, np.ndarray] = {
        "input_ids": np.full(shape, pad_id, dtype=np.int64),
        "attention_mask": np.zeros(shape, dtype=np.int64),
        "labels": np.full(shape, IGNORE_INDEX, dtype=np.int64),
    }
    if weights:
        padded[WEIGHTS] = np.broadcast_to(np.array(weights, dtype=np.float32)[:, None], shape).copy()
    for b, (token, label) in enumerate(zip(tokens, labels, strict=True)):
        padded["input_ids"][b, : len(token)] = token
        padded["attention_mask"][b, : len(token)] = 1
        padded["labels"][b, : len(token)] = label
    return {name: torch.from_numpy(value) for name, value in padded.items()}
