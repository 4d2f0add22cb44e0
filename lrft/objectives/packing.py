"""How a model takes batches: found out by asking the model itself, before the first step.

Rows are laid end to end where the model answers them as it answers each row alone; else they are padded. The loss goes
from hidden states straight to chunks of logits where the model's own logits are just that product; else the model makes
its logits itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lrft.data import Rows
from lrft.data.collate import Form, ends_mask
from lrft.errors import CheckFailed
from lrft.model.layers import decoder_of, head_of
from lrft.model.modes import evaluation_mode

# Largest difference of logits over the largest logit.
TOLERANCE = {"fp32": 1e-3, "bf16": 5e-2, "fp16": 1e-2}
ROWS = 2
ROWWISE = "rowwise_sdpa"
# Beyond these numbers of its configuration a model may treat a long row otherwise than a short one.
BORDERS = ("window", "chunk", "original_max_position")


@dataclass(frozen=True)
class Layout:
    """What was found. `said` is for the report, `warning` for the user, "" when nothing is lost."""

    form: Form = "padded"
    direct: bool = False
    said: str = ""
    warning: str = ""

    @property
    def packed(self) -> bool:
        return self.form != "padded"


@torch.no_grad()
def find_layout(model: Any, rows: Rows, *, packing: bool | str, compute: str | None = None) -> Layout:
    """Ask `model` about a few of `rows`. Raises CheckFailed when packing is true and cannot be had.

    packing  true, false or auto
    compute  fp32, bf16 or fp16, in which the model computes; None: as its weights are
    """
    ids = [torch.from_numpy(rows.tokens(i).astype(np.int64)).to(model.device) for i in telling_rows(rows, model.config)]
    with evaluation_mode(model):
        alone = torch.cat([model(input_ids=row[None], use_cache=False).logits[0] for row in ids])
        tolerance = TOLERANCE[compute or ("fp32" if model.dtype.itemsize > 2 else "bf16")]
        direct = share(direct_logits(model, ids), alone) <= tolerance
        if packing is False:
            return Layout("padded", direct)
        form = packed_form(model)
        difference = share(packed_logits(model, ids, form), alone)
    if difference <= tolerance:  # a NaN fails as well
        return Layout(form, direct, f"packed equals alone within {difference:.0e} of the largest logit")
    if packing is True:
        raise CheckFailed(
            "packed rows are not what they are alone with this model: "
            f"logits differ by {difference:.1e} of the largest",
            "Its attention does not keep the rows apart. Set data.packing: false.",
        )
    warning = (
        f"this model does not keep packed rows apart (logits differ by {difference:.1e} of the largest): "
        "rows are padded, which costs time"
    )
    return Layout("padded", direct, warning=warning)


def packed_form(model: Any) -> Form:
    """How rows lie end to end for the model's attention kernel."""
    return "rowwise" if model.config._attn_implementation == ROWWISE else "packed"


def packed_equals_alone(model: Any, rows: Sequence[Tensor], form: Form) -> float:
    """Largest difference between the logits of rows laid end to end and of each row alone, over the largest logit.

    `rows`: token ids, each (n,). The model is asked in evaluation mode, without gradients.
    """
    with evaluation_mode(model):
        alone = torch.cat([model(input_ids=row[None], use_cache=False).logits[0] for row in rows])
        return share(packed_logits(model, rows, form), alone)


def packed_logits(model: Any, rows: Sequence[Tensor], form: Form) -> Tensor:
    """(sum of the rows' lengths, vocabulary); of infinities when the model does not take such a batch at all."""
    positions = torch.cat([torch.arange(len(row), device=row.device) for row in rows])
    mask = {"attention_mask": ends_mask([len(row) for row in rows]).to(positions.device)} if form == "rowwise" else {}
    try:
        answer = model(input_ids=torch.cat(list(rows))[None], position_ids=positions[None], use_cache=False, **mask)
    except (TypeError, ValueError, RuntimeError, IndexError):
        return torch.full((1,), torch.inf, device=positions.device)
    return answer.logits[0]


def direct_logits(model: Any, rows: Sequence[Tensor]) -> Tensor:
    """The output embedding's product with the decoder's last hidden states; infinite when there are no such parts."""
    try:
        decoder, head = decoder_of(model), head_of(model)
        return torch.cat([head(decoder(input_ids=row[None], use_cache=False).last_hidden_state[0]) for row in rows])
    except (TypeError, ValueError, RuntimeError, AttributeError):
        return torch.full((1,), torch.inf, device=rows[0].device)


def share(found: Tensor, expected: Tensor) -> float:
    """Largest difference over the largest expected value."""
    return ((found - expected).abs().max() / expected.abs().max()).item()


def telling_rows(rows: Rows, config: Any) -> list[int]:
    """Ids of the shortest rows, and of the longest where it passes a border of the model's configuration."""
    by_length = np.argsort(rows.lengths, kind="stable")
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
    if any(int(rows.lengths[longest]) > border for border in borders) and longest not in chosen:
        chosen.append(longest)
    return chosen
