"""Two models on the same rows: their figures with paired intervals, and their answers."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from lrft import registry
from lrft.errors import UsageError
from lrft.evaluation.loss import counted_as
from lrft.judging import paired
from lrft.judging.data_files import DataFile
from lrft.judging.side import Key, Side, measure
from lrft.loading.evaluation_rows import rows_for
from lrft.loading.saved import Target, load_target
from lrft.model.end_tokens import add_stops
from lrft.objectives.base import Objective

BASE = "base"
"""what --compare calls the untouched base of the first"""
Told = Callable[[str, int], Callable[[int], None]]
"""from what is being measured, and its rows, to what is told of the number of answers"""


@dataclass(frozen=True)
class Settings:
    """longest: tokens of an answer, 0 for none. limit: rows of each file, None for all."""

    longest: int
    batch_size: int
    limit: int | None = None
    base: str | None = None
    trusted: bool = False


def compare(first: str, second: str, files: Sequence[DataFile], settings: Settings, told: Told) -> dict[str, Any]:
    """Measure `first`, then `second`, which may be `base`: one model is in memory at a time. Returns what there is to
    say, as JSON values.

    Raises UsageError for a second model that cannot answer the same rows.
    """
    found = load_target(first, settings.base, settings.trusted)
    if second == BASE and found.attached is None:
        raise UsageError(f"{first} is a model without adapters: it is its own base", "Name a model with --compare.")
    objective, own = found.objective, found
    sides = [measured(first, first, found, own, files, settings, told)]
    if second == BASE:
        sides.append(measured(BASE, first, found, own, files, settings, told, as_base=True))
    else:
        asked = replace(own, model=None, attached=None)
        del found, own
        gc.collect()
        other = load_target(second, None, settings.trusted)
        refuse_other_head(first, second, asked, other)
        sides.append(measured(second, first, shared(asked, other), asked, files, settings, told))
    return {
        "first": first,
        "second": second,
        "objective": objective.name,
        "draws": paired.DRAWS,
        "data": {file.name: compared(file, a, b, objective) for file, a, b in zip(files, *sides, strict=True)},
    }


def refuse_other_head(first: str, second: str, a: Target, b: Target) -> None:
    """Raises UsageError where one answers with labels that the other does not have."""
    labels = [None if target.head is None else (target.head.kind, target.head.labels) for target in (a, b)]
    if labels[0] != labels[1]:
        said = ["predicts tokens" if one is None else f"tells {', '.join(one[1]) or 'a number'}" for one in labels]
        raise UsageError(f"{first} {said[0]}, {second} {said[1]}: they cannot be compared on the same rows")


def shared(first: Target, second: Target) -> Target:
    """The second target, to be measured as the first is. A model that is no run is asked with the first's own tokens,
    where its vocabulary is the same: its template is not the one that was trained."""
    plain = second.attached is None and second.tokenizer.get_vocab() == first.tokenizer.get_vocab()
    tokenizer = first.tokenizer if plain else second.tokenizer
    return replace(second, tokenizer=tokenizer, objective=first.objective, recipe=first.recipe)


def measured(
    label: str,
    name: str,
    found: Target,
    first: Target,
    files: Sequence[DataFile],
    settings: Settings,
    told: Told,
    *,
    as_base: bool = False,
) -> list[Side]:
    """A target on each file. label: what it is called. name, first: of the target whose rows these are."""
    kind = registry.rows_of(found.objective.name, vars(found.objective))
    sides = []
    for file in files:
        rows, report = rows_for(
            name,
            file.path,
            file.reading,
            first.section,
            found.tokenizer,
            found.folder,
            found.model.config,
            kind,
            found.head,
            trained_template=True,
        )
        add_stops(found.model, found.tokenizer.convert_tokens_to_ids(report.end_tokens))
        if settings.limit is not None:
            rows = rows.slice(range(min(settings.limit, len(rows))))
        sides.append(
            measure(
                found,
                rows,
                found.objective,
                longest=0 if found.head else settings.longest,
                batch_size=settings.batch_size,
                as_base=as_base,
                progress=told(f"{label} on {file.name}", len(rows)),
            )
        )
    return sides


def compared(file: DataFile, first: Side, second: Side, objective: Objective) -> dict[str, Any]:
    """What is said of one file. Rows that one side does not have are left out and counted."""
    there = set(second.keys)
    keys = tuple(key for key in first.keys if key in there)
    if not keys:
        raise UsageError(f"{file.name}: no row is left that both models can be asked")
    a, b = first.of(keys), second.of(keys)
    same = a.tokens == b.tokens
    by_token = counted_as(objective) == "tokens"
    found = paired.differences(a, b, objective, lambda name: same or not by_token or name == paired.EXACT_MATCH)
    return {
        "file": file.path or "the run's validation rows",
        "rows": len(keys),
        "left_out": len(first.keys) + len(second.keys) - 2 * len(keys),
        "same_tokens": same,
        "counted": [weight_of(side.weights) for side in (a, b)],
        "unit": objective.unit,
        "figures": paired.facts(found),
        "answers": [answer_of(key, a, b) for key in keys if key in a.answers and key in b.answers],
    }


def weight_of(weights: torch.Tensor) -> int | float:
    total = float(weights.sum())
    return int(total) if total.is_integer() else total


def answer_of(key: Key, first: Side, second: Side) -> dict[str, Any]:
    a, b = first.answers[key], second.answers[key]
    return {
        "row": key[0] if not key[1] else f"{key[0]}, part {key[1] + 1}",
        "prompt": a["prompt"],
        "expected": a["expected"],
        "first": a["answer"],
        "second": b["answer"],
        "first_match": a["match"],
        "second_match": b["match"],
    }
