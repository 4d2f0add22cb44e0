"""One of two models on a set of rows: what each row adds to every figure, and the answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lrft.data import Rows
from lrft.evaluation.generate import answer_rows, pad_token, with_prompts
from lrft.evaluation.loss import loss_of
from lrft.loading.others import others_of
from lrft.loading.saved import Target, answering
from lrft.objectives.base import Objective

Key = tuple[str, int]
"""where a row came from, and which of the rows from there it is"""


@dataclass(frozen=True)
class Side:
    """keys: of the rows. tokens: ids of each row as bytes, which says whether two models were asked the same.

    losses, weights: float64 (rows,), the summed loss and what counts in it. sums: by name (rows, ...), what the
    objective noted; of those in `placed` the row's own place alone. answers: by row, of those with a prompt.
    """

    keys: tuple[Key, ...]
    tokens: tuple[bytes, ...]
    losses: Tensor
    weights: Tensor
    sums: Mapping[str, Tensor]
    answers: Mapping[Key, dict[str, Any]]

    def of(self, keys: tuple[Key, ...]) -> Side:
        """The rows `keys` of it, in that order."""
        at = {key: n for n, key in enumerate(self.keys)}
        places = [at[key] for key in keys]
        return Side(
            keys,
            tuple(self.tokens[n] for n in places),
            self.losses[places],
            self.weights[places],
            {name: values[places] for name, values in self.sums.items()},
            {key: self.answers[key] for key in keys if key in self.answers},
        )


def measure(
    found: Target,
    rows: Rows,
    objective: Objective,
    *,
    longest: int,
    batch_size: int,
    as_base: bool = False,
    progress: Callable[[int], None] = lambda done: None,
) -> Side:
    """Measure every row by itself.

    objective: what both sides are measured by. longest: tokens of an answer, 0 for none. as_base: with the adapters
    switched off.
    """
    around: Callable[[], AbstractContextManager[Any]] = (
        found.attached.disabled if as_base and found.attached is not None else nullcontext
    )
    losses, layout = answering(found.model, rows, objective, found.attached, others_of(found, rows), found.head)
    own = None if found.head is None else found.head.pad_id
    pad_id = pad_token(found.tokenizer) if own is None else own
    loss, weights = torch.zeros(len(rows), dtype=torch.float64), torch.zeros(len(rows), dtype=torch.float64)
    noted: dict[int, dict[str, Tensor]] = {}

    def each(ids: list[int], summed: Tensor, weight: float, sums: Mapping[str, Tensor]) -> None:
        (row,) = ids
        loss[row], weights[row] = summed.item(), weight
        noted[row] = {name: (v[..., row] if name in objective.placed else v).cpu() for name, v in sums.items()}

    with around():
        loss_of(losses, rows, micro=1, pad_id=pad_id, objective=objective, form=layout.form, each=each)
        asked = with_prompts(rows) if longest else rows.slice([])
        answers = answer_rows(
            found.model,
            found.tokenizer,
            asked,
            max_new_tokens=longest,
            batch_size=batch_size,
            copies=(lambda: 1) if as_base else losses.copies,
            progress=progress,
        )
    return Side(
        tuple(keys_of(rows)),
        tuple(rows.tokens(i).tobytes() for i in range(len(rows))),
        loss,
        weights,
        stacked(noted, len(rows)),
        dict(zip(keys_of(asked), answers, strict=True)),
    )


def keys_of(rows: Rows) -> Iterator[Key]:
    """A key for each row; a file's place can have several rows, such as the pieces of a document."""
    seen: dict[str, int] = {}
    for i in range(len(rows)):
        source = rows.source(i)
        seen[source] = seen.get(source, -1) + 1
        yield source, seen[source]


def stacked(noted: Mapping[int, Mapping[str, Tensor]], n: int) -> dict[str, Tensor]:
    """By name float64 (n, ...); zeros for rows in which nothing counts."""
    first = next(iter(noted.values()), {})
    made = {name: torch.zeros(n, *value.shape, dtype=torch.float64) for name, value in first.items()}
    for row, sums in noted.items():
        for name, value in sums.items():
            made[name][row] = value
    return made
