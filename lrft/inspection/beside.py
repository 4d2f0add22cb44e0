"""How far what was trained beside the adapters is from the base: modules in full, rows of tokens, biases."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lrft.adapters.beside import embedding_of, head_of, name_of
from lrft.adapters.storage import SavedAdapter
from lrft.export.merge_head import key_for, stored_names, stored_tensor
from lrft.model.added_tokens import with_rows
from lrft.model.stored import Stored


@dataclass(frozen=True)
class BesideReport:
    """A place. relative: the norm of the change over that of the base's numbers; None where the base has none."""

    place: str
    numbers: int
    norm: float | None
    relative: float | None


def reports(saved: SavedAdapter, skeleton: Any, stored: Stored, weights: Sequence[Path]) -> list[BesideReport]:
    """One for each place that was trained beside the adapters. skeleton: the base, without content. weights: files."""
    twin = tied_head(skeleton)
    return [one_of(place, list(pairs(saved, place, twin, stored, weights))) for place in saved.beside.places]


def tied_head(skeleton: Any) -> dict[str, str]:
    """The name of a head that is the embedding's matrix -> that of the embedding."""
    embedding, head = embedding_of(skeleton), head_of(skeleton)
    if embedding is None or head is None or head.weight is not embedding.weight:
        return {}
    return {name_of(skeleton, head): name_of(skeleton, embedding)}


def pairs(
    saved: SavedAdapter, place: str, twin: Mapping[str, str], stored: Stored, weights: Sequence[Path]
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """(trained tensor, the base's, None where its files have none)."""
    known, names = stored_names(stored), saved.beside
    for word, tensor in saved.tensors[place].items():
        name = f"{place}.{word}" if place in names.full else f"{place}.weight" if place in names.rows else place
        key = key_for(stored, name)
        if key not in known and word in ("weight", "rows") and place in twin:
            key = key_for(stored, f"{twin[place]}.weight")
        before = stored_tensor(weights, key) if key in known else None
        by_token = place in names.rows or (before is not None and len(before) < len(tensor))
        if before is not None and saved.added is not None and by_token:  # it had no rows for new tokens
            before = with_rows(before, saved.added)
        if before is not None and place in names.rows:
            before = before[list(names.rows[place])]
        yield tensor, before


def one_of(place: str, found: Iterable[tuple[Tensor, Tensor | None]]) -> BesideReport:
    found = list(found)
    numbers = sum(tensor.numel() for tensor, _ in found)
    if any(before is None or before.shape != tensor.shape for tensor, before in found):
        return BesideReport(place, numbers, None, None)
    change = math.hypot(*(norm(tensor - before.to(tensor)) for tensor, before in found if before is not None))
    below = math.hypot(*(norm(before) for _, before in found if before is not None))
    return BesideReport(place, numbers, change, change / below if below else None)


def norm(tensor: Tensor) -> float:
    return torch.linalg.vector_norm(tensor.float()).item()
