"""Rows as a padded batch, for PEFT's loop and the Trainer; and a count of what a collator has given out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from performance.rows import END, Batch


def examples(batch: Batch) -> list[dict[str, list[int]]]:
    """The rows as a data set for trainers: ids and labels."""
    return [{"input_ids": row.tokens, "labels": row.labels} for row in batch.rows]


def padded(rows: Sequence[Mapping[str, Sequence[int]]]) -> dict[str, Tensor]:
    """input_ids, attention_mask and labels (B, T), padded at the right to the longest row."""
    ids = [torch.tensor(row["input_ids"]) for row in rows]
    labels = [torch.tensor(row["labels"]) for row in rows]
    return {
        "input_ids": pad_sequence(ids, batch_first=True, padding_value=END),
        "attention_mask": pad_sequence([torch.ones_like(i) for i in ids], batch_first=True),
        "labels": pad_sequence(labels, batch_first=True, padding_value=-100),
    }


class Counting:
    """A collator that remembers how many tokens and labels have left it."""

    def __init__(self, collate: Callable[[Any], Any]) -> None:
        self.collate = collate
        self.tokens = self.labelled = self.checksum = 0

    def __call__(self, rows: Any) -> Any:
        batch = self.collate(rows)
        mask = batch.get("attention_mask")
        labels = batch["labels"][batch["labels"] != -100]
        self.tokens += int(mask.sum()) if mask is not None else batch["input_ids"].numel()
        self.labelled += len(labels)
        self.checksum += int(labels.sum())
        return batch

    def per_step(self, steps: int) -> dict[str, int]:
        """What one of `steps` equal steps has had. Raises ValueError when they were not equal."""
        total = {"tokens": self.tokens, "labelled": self.labelled, "checksum": self.checksum}
        if any(value % steps for value in total.values()):
            raise ValueError(f"{steps} steps were not given equal rows: {total}")
        return {name: value // steps for name, value in total.items()}
