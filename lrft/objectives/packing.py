"""Check, before the first step, whether a model supports packed batches.

Rows are laid end to end where the model answers them as it answers each row alone, and where a row's logits do not move
when its neighbours get other tokens; else they are padded. The loss goes from hidden states straight to chunks of
logits where the model's own logits are just that product; else the model makes its logits itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lrft.data import Rows
from lrft.data.collate import Form, ends_mask
from lrft.errors import CheckFailed
from lrft.model.invocation import looks_ahead
from lrft.model.layers import decoder_of, head_of, logits_of_text
from lrft.model.modes import evaluation_mode

# Largest difference of logits over the largest logit.
TOLERANCE = {"fp32": 1e-3, "bf16": 5e-2, "fp16": 1e-2}
# What other tokens in a row's neighbours may do to its logits: nothing, except that experts get other numbers of tokens
# at once and so round otherwise. That much is seen in a padded batch too; sums in float32 may differ by this.
ROUNDING = 8 * torch.finfo(torch.float32).eps
TIMES_PADDED = 2.0
ROWS = 2
ROWWISE = "rowwise_sdpa"
# Beyond these numbers of its configuration a model may treat a long row otherwise than a short one.
BORDERS = ("window", "chunk", "original_max_position", "index_topk")


@dataclass(frozen=True)
class Layout:
    """What was found. `said` is for the report, `warning` for the user ("" for none)."""

    form: Form = "padded"
    direct: bool = False
    said: str = ""
    warning: str = ""

    @property
    def packed(self) -> bool:
        return self.form != "padded"


@dataclass(frozen=True)
class Apart:
    """Leakage between packed rows, as logit differences relative to the largest logit."""

    difference: float
    """logit difference between packed rows and each row alone"""
    moved: float
    """change of a packed row's logits when its neighbours get other tokens"""
    moved_padded: float
    """the same in a padded batch, where rows cannot attend to each other"""

    @property
    def allowed(self) -> float:
        """How much a row's logits may move without a leak."""
        return max(ROUNDING, TIMES_PADDED * self.moved_padded)

    @property
    def leaks(self) -> bool:
        return not self.moved <= self.allowed  # a NaN leaks as well

    @property
    def trouble(self) -> str:
        """Description of the leak."""
        if not self.leaks or not math.isfinite(self.moved):
            return f"logits differ by {self.difference:.1e} of the largest"
        return f"a row's logits move by {self.moved:.1e} of the largest when its neighbour gets other tokens"


@torch.no_grad()
def find_layout(model: Any, rows: Rows, *, packing: bool | str, compute: str | None = None) -> Layout:
    """Test `model` on a few of `rows`. Raises CheckFailed when packing is true but not possible.

    packing  true, false or auto
    compute  fp32, bf16 or fp16, in which the model computes; None: as its weights are
    """
    ids = [torch.from_numpy(longest_of(rows, i)).to(model.device) for i in telling_rows(rows, model.config)]
    with evaluation_mode(model):
        alone = torch.cat([logits_of_text(model, row[None])[0] for row in ids])
        tolerance = TOLERANCE[compute or ("fp32" if model.dtype.itemsize > 2 else "bf16")]
        if not looks_ahead(model):
            refuse_looking_ahead(model, ids, alone[: len(ids[0])], tolerance)
        direct = relative_difference(direct_logits(model, ids), alone) <= tolerance
        if packing is False:
            return Layout("padded", direct)
    form = packed_form(model)
    apart = kept_apart(model, ids, form)
    if apart.difference <= tolerance and not apart.leaks:  # a NaN fails as well
        words = f"packing verified: relative logit difference {apart.difference:.0e}, no attention between rows"
        return Layout(form, direct, words)
    if packing is True:
        raise CheckFailed(
            f"packed sequences leak into each other on this model: {apart.trouble}",
            "Set data.packing: false.",
        )
    warning = (
        f"packed sequences leak into each other on this model ({apart.trouble}): rows are padded instead, "
        f"which is slower"
    )
    return Layout("padded", direct, warning=warning)


def refuse_looking_ahead(model: Any, rows: Sequence[Tensor], logits: Tensor, tolerance: float) -> None:
    """Raises CheckFailed where the logits at a token of the first row (n,) depend on later tokens, as an encoder's do.

    logits: the first row's (n, vocabulary). The row is asked again with other tokens in its second half, at the same
    length: a causal model then has the same sums to make, also in a few bits, and nothing moves.

    Such a model reads the answer that it is to learn: its loss falls to nothing, and it can generate nothing.
    """
    row, half = rows[0], -(-len(rows[0]) // 2)
    other = torch.cat([row[:half], others(row, rows)[0][half:]])
    found = model(input_ids=other[None], use_cache=False).logits[0]
    difference = relative_difference(found[:half], logits[:half])
    if difference > tolerance:
        raise CheckFailed(
            f"{type(model).__name__} is not a causal language model: its output at a token depends on later tokens "
            f"(logits differ by {difference:.1e} of the largest)",
            "lrft trains only models that predict each token from earlier ones, not encoders.",
        )


def packed_form(model: Any) -> Form:
    """How rows lie end to end for the model's attention kernel."""
    return "rowwise" if model.config._attn_implementation == ROWWISE else "packed"


@torch.no_grad()
def kept_apart(model: Any, rows: Sequence[Tensor], form: Form) -> Apart:
    """Ask `model` whether `rows` (token ids, each (n,)) are kept apart when they are laid end to end."""
    pair = rows[:ROWS] if len(rows) > 1 else [rows[0], others(rows[0], rows)[0]]
    given = rows if len(rows) > 1 else pair
    with evaluation_mode(model):
        return Apart(
            packed_equals_alone(model, given, form),
            largest_move(lambda asked: packed_logits(model, asked, form), pair, rows),
            largest_move(lambda asked: padded_logits(model, asked), pair, rows),
        )


def largest_move(ask: Callable[[Sequence[Tensor]], Tensor], pair: Sequence[Tensor], rows: Sequence[Tensor]) -> float:
    """Of the logits of one row of `pair` over its largest, when the other gets other tokens. Infinite without one."""
    lengths = [len(row) for row in pair]
    before = ask(pair)
    if len(before) != sum(lengths):
        return math.inf
    moves = []
    for watched, row in enumerate(pair):
        neighbour = 1 - watched
        for other in others(pair[neighbour], rows):
            asked = [row, other] if watched == 0 else [other, row]
            moves.append(relative_difference(ask(asked).split(lengths)[watched], before.split(lengths)[watched]))
    return max(moves) if not any(map(math.isnan, moves)) else math.nan


def others(row: Tensor, rows: Sequence[Tensor]) -> list[Tensor]:
    """The row with another token at every place, twice: tokens of `rows`, which the model has embeddings for."""
    pool = torch.cat(list(rows)).unique()  # sorted
    if len(pool) == 1:
        pool = torch.cat([pool, (pool - 1).abs()])  # 1 where there is only 0
        pool = pool.sort().values
    at = torch.searchsorted(pool, row)
    return [pool[(at + step) % len(pool)] for step in (1, max(1, len(pool) // 2))]


def packed_equals_alone(model: Any, rows: Sequence[Tensor], form: Form) -> float:
    """Largest difference between the logits of rows laid end to end and of each row alone, over the largest logit.

    `rows`: token ids, each (n,). The model is asked in evaluation mode, without gradients.
    """
    with evaluation_mode(model):
        alone = torch.cat([model(input_ids=row[None], use_cache=False).logits[0] for row in rows])
        return relative_difference(packed_logits(model, rows, form), alone)


def packed_logits(model: Any, rows: Sequence[Tensor], form: Form) -> Tensor:
    """(sum of the rows' lengths, vocabulary); of infinities when the model does not take such a batch at all."""
    positions = torch.cat([torch.arange(len(row), device=row.device) for row in rows])
    mask = {"attention_mask": ends_mask([len(row) for row in rows]).to(positions.device)} if form == "rowwise" else {}
    try:
        answer = model(input_ids=torch.cat(list(rows))[None], position_ids=positions[None], use_cache=False, **mask)
    except (TypeError, ValueError, RuntimeError, IndexError):
        return torch.full((1,), torch.inf, device=positions.device)
    return answer.logits[0]


def padded_logits(model: Any, rows: Sequence[Tensor]) -> Tensor:
    """(sum of the rows' lengths, vocabulary), the rows side by side and padded on the right."""
    ids = pad_sequence(list(rows), batch_first=True)
    mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    return torch.cat([answer[: len(row)] for answer, row in zip(logits, rows, strict=True)])


def direct_logits(model: Any, rows: Sequence[Tensor]) -> Tensor:
    """The output embedding's product with the decoder's last hidden states; infinite when there are no such parts."""
    try:
        decoder, head = decoder_of(model), head_of(model)
        return torch.cat([head(decoder(input_ids=row[None], use_cache=False).last_hidden_state[0]) for row in rows])
    except (TypeError, ValueError, RuntimeError, AttributeError):
        return torch.full((1,), torch.inf, device=rows[0].device)


def relative_difference(found: Tensor, expected: Tensor) -> float:
    """Largest difference over the largest expected value."""
    return ((found - expected).abs().max() / expected.abs().max()).item()


def longest_of(rows: Rows, i: int) -> np.ndarray:
    """The longest token sequence of row i: int64 (n,)."""
    return max((tokens for tokens, _ in rows.sequences(i)), key=len).astype(np.int64)


def telling_rows(rows: Rows, config: Any) -> list[int]:
    """Ids of the shortest rows, and of the longest where it passes a border of the model's configuration."""
    by_length = np.argsort(rows.longest, kind="stable")
    chosen = [int(i) for i in by_length[:ROWS]]
    longest = int(by_length[-1])
    text = config.get_text_config()
    borders = [
        value
        for key, value in text.to_dict().items()
        if any(word in key for word in BORDERS) and isinstance(value, int) and value > 0
    ]
    borders += [
        value
        for key, value in (getattr(text, "rope_parameters", None) or {}).items()
        if any(word in key for word in BORDERS) and isinstance(value, int)
    ]
    if any(int(rows.longest[longest]) > border for border in borders) and longest not in chosen:
        chosen.append(longest)
    return chosen
