"""Pairs whose answers share the forward pass of their prompt: the chosen sequence, then the rest of the rejected one.

The rest has the positions that follow the prompt, and its attention sees the prompt and itself
(`lrft.model.packed_attention`), so every hidden state is that of the sequence alone. What both sequences begin with is
computed once, up to the first token that is trained in one of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lrft.data import Rows
from lrft.data.collate import branches_mask
from lrft.model.layers import decoder_of, head_of
from lrft.model.modes import evaluation_mode
from lrft.objectives.packing import TOLERANCE, Layout, relative_difference, telling_rows

BEFORE, TARGETS, OF = "before", "targets", "of"
"""of a batch's trained tokens: where the token stands that predicts each, the token, and the number of its sequence"""
Marked = tuple[np.ndarray, np.ndarray]
"""the tokens of a sequence, and which of them are trained: (n,)"""


def shared_tokens(first: Marked, second: Marked) -> int:
    """How many tokens both sequences begin with, none of them trained, with at least one left in each."""
    most = min(len(tokens) - 1 for tokens, _ in (first, second))
    most = min(most, *(int(trained.argmax()) for _, trained in (first, second) if trained.any()))
    same = first[0][:most] == second[0][:most]
    return most if same.all() else int(same.argmin())


def collate(rows: Rows, ids: Sequence[int]) -> dict[str, Tensor]:
    """input_ids, position_ids int64 (1, T); attention_mask of `branches_mask`; before, targets and of, int64 (n,)."""
    flat: dict[str, list[np.ndarray]] = {name: [] for name in ("input_ids", "position_ids", BEFORE, TARGETS, OF)}
    lengths: list[int] = []
    shared: list[int] = []
    start = 0
    for i in ids:
        pair = rows.sequences(int(i))
        first, prompt = len(pair[0][0]), shared_tokens(*pair)
        for which, (own, trained) in enumerate(pair):
            left = prompt * which
            at = np.flatnonzero(trained)
            flat["input_ids"].append(own[left:])
            flat["position_ids"].append(np.arange(left, len(own)))
            # A token right behind the prompt is predicted by the prompt's last one, which stands in the first sequence.
            flat[BEFORE].append(start + at - 1 + (at > left) * (first - prompt) * which)
            flat[TARGETS].append(own[at])
            flat[OF].append(np.full(len(at), len(lengths)))
            lengths.append(len(own) - left)
            shared.append(left)
        start += lengths[-2] + lengths[-1]
    batch = {name: torch.from_numpy(np.concatenate(parts).astype(np.int64)) for name, parts in flat.items()}
    batch |= {name: batch[name][None] for name in ("input_ids", "position_ids")}
    return batch | {"attention_mask": branches_mask(lengths, shared)}


def hidden_before(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """The decoder's last hidden states (n, width) before each trained token of such a batch."""
    inputs = {name: batch[name] for name in ("input_ids", "position_ids", "attention_mask")}
    hidden: Tensor = decoder_of(model)(**inputs, use_cache=False).last_hidden_state
    return hidden[0, batch[BEFORE]]


@torch.no_grad()
def sharing(model: Any, rows: Rows, layout: Layout, compute: str) -> Layout:
    """`layout`, or that in which pairs share their prompts, where `model` answers them as it answers each sequence.

    compute: fp32, bf16 or fp16, in which the model computes
    """
    if layout.form != "rowwise" or not layout.direct:
        return layout
    ids = telling_rows(rows, model.config)
    batch = {name: value.to(model.device) for name, value in collate(rows, ids).items()}
    with evaluation_mode(model):
        found = head_of(model)(hidden_before(model, batch))
        alone = [
            model(input_ids=torch.from_numpy(tokens.astype(np.int64))[None].to(model.device), use_cache=False).logits[
                0, torch.from_numpy(np.flatnonzero(trained) - 1).to(model.device)
            ]
            for i in ids
            for tokens, trained in rows.sequences(i)
        ]
    if not relative_difference(found, torch.cat(alone)) <= TOLERANCE[compute]:  # a NaN fails as well
        return layout
    return replace(layout, form="shared", said=f"{layout.said}; a pair's answers share their prompt")
