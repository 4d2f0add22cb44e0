"""Exact evaluation loss, and the objective's figures."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lrft.data.collate import Form, micro_batches
from lrft.model.modes import evaluation_mode
from lrft.objectives.base import Objective, added_up, look_ahead
from lrft.objectives.sft import Sft
from lrft.objectives.to_device import to_device

if TYPE_CHECKING:
    from lrft.data.dataset import Rows


def loss_of(
    model: nn.Module,
    rows: Rows,
    *,
    micro: int,
    pad_id: int,
    objective: Objective | None = None,
    form: Form = "padded",
    rank: int = 0,
    world: int = 1,
    reduce: Callable[[Tensor], Tensor] = lambda t: t,
    each: Callable[[list[int], Tensor, float, Mapping[str, Tensor]], None] = lambda ids, loss, weight, sums: None,
) -> dict[str, Any]:
    """{"loss", "tokens" or what else the objective counts, "perplexity" where it is one, "figures" where there
    are any}:
    means over all that counts in `rows`, whatever the batch and rank counts.

    model      a `LossModule`, or a distributed wrapper around one
    objective  how rows become batches and what counts in them; None: supervised fine-tuning, whose tokens count
    each       is told of every batch: its rows, its summed loss, what counts in it, and the sums that it noted

    Each rank measures its own rows, none twice; the sums are added up by `reduce`.
    """
    device = next(model.parameters()).device
    objective = objective or Sft()
    asked = [i for i in range(len(rows)) if objective.weight(rows, [i])]
    sums = torch.zeros(2, dtype=torch.float64, device=device)
    losses: Any = getattr(model, "module", model)
    noted: dict[str, Tensor] = {}
    micros = micro_batches(asked, rows.lengths, micro=micro, rank=rank, world=world)

    def batch(ids: list[int]) -> dict[str, Tensor]:
        # A rank without rows left goes through the motions: those that share a divided base wait for it.
        given = objective.collate(rows, (ids or asked[:1]) * losses.copies(), pad_id=pad_id, form=form)
        return to_device(given, device)

    with evaluation_mode(model):
        look_ahead(losses, ((batch(ids), bool(ids)) for ids in micros), reduce, rank=rank, world=world)
        for ids in micros:
            loss, weight = losses(batch(ids)).double(), objective.weight(rows, ids)
            sums[0] += loss if ids else 0.0
            sums[1] += weight
            each(ids, loss, weight, losses.sums)
            noted = added_up(noted, losses.sums, float(bool(ids)))
    losses.ahead, losses.gathered = None, {}
    total, counted = reduce(sums).tolist()
    mean = total / counted if counted else math.nan
    found: dict[str, Any] = {"loss": mean, counted_as(objective): int(counted) if counted.is_integer() else counted}
    if objective.perplexity:
        found["perplexity"] = math.exp(min(mean, 700.0))
    figures = objective.figures({name: reduce(value) for name, value in noted.items()})
    return found | ({"figures": figures} if figures else {})


def counted_as(objective: Objective) -> str:
    """The key of what the loss is a mean over: tokens, pairs, ..."""
    return f"{objective.unit.split()[-1]}s"
